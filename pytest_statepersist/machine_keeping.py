"""How pytest keeps the failures of a machine: as bundles that hold its history, tried first.

Belongs here: `MachineKeeper`, for one test of a machine. Rules:

1. A kept history is done again before Hypothesis looks for anything new. While it fails, the test
   fails with it; once it is followed to its end without a failure, its bundle goes.
2. A history that cannot be followed any more is left alone: nothing is known of it.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.bundle import DIRECTORY, kept, read, write
from pytest_statepersist.bundle_json import Bundle, bundle_name, stored
from pytest_statepersist.core.operations import Trace
from pytest_statepersist.errors import BundleError, UserError
from pytest_statepersist.fixtures import simulator_of
from pytest_statepersist.machines.history import Diverged, History
from pytest_statepersist.machines.kept import Told
from pytest_statepersist.options import REPLAY, REPLAYED
from pytest_statepersist.replaying import installed_version
from pytest_statepersist.simulator import CrashSimulator

__all__ = ["MachineKeeper"]


class MachineKeeper:
    """Keeps what a test of a machine finds, and tries first what it found before."""

    def __init__(self, item: pytest.Item) -> None:
        self._config = item.config
        self._test = item.nodeid
        self._directory = item.config.rootpath / DIRECTORY

    @contextmanager
    def exploring(self) -> Iterator[CrashSimulator]:
        """Lend the simulator of this run: its reports are in the summary and in JSON."""
        simulator = simulator_of(self._config)
        simulator.following = True
        try:
            yield simulator
        finally:
            simulator.following = False

    def keep(self, told: Told) -> str:
        """Write a bundle, or the history into those that an exploration has just written."""
        names = [each.bundle for each in told.report.findings] if told.report is not None else []
        for name in names:
            path = next(p for p in kept(self._directory) if p.name.split(".")[0] == name)
            write(replace(read(path), history=told.history), self._directory)
        if names:
            return names[0]
        bundle = self._bundle(told)
        write(bundle, self._directory)
        return bundle.name

    def _bundle(self, told: Told) -> Bundle:
        exploration = f"{told.machine}, {_digest(told.history)}"
        finding = _digest(f"{told.machine} {told.kind} {told.cause}")
        tree = stored(told.tree)
        return Bundle(
            name=bundle_name(finding, self._test, exploration, 0),
            test=self._test,
            exploration=exploration,
            ordinal=0,
            model="none",
            kind=told.kind,
            cause=told.cause[:500],
            text=told.text[:100_000],
            before="",
            after="",
            observed="",
            expected="",
            crash_point=0,
            deviations=0,
            points=((0, 0),),
            last=-1,
            missing=(),
            step_missing=(),
            stable=True,
            package=installed_version(),
            python=platform.python_version(),
            trace=Trace(tree),
            disk=tree,
            history=told.history,
        )

    def before(self, machine: Any) -> bool:
        """Do kept histories again. Where one bundle is replayed, that one is all there is to do."""
        __tracebackhide__ = True
        if REPLAY in self._config.stash:
            self._replay(machine, self._config.stash[REPLAY][self._test])
            return True
        for history, paths in self._mine().items():
            words = ""
            try:
                machine.replay(History.from_json(history))
            except (Diverged, UserError):
                continue
            except Exception as error:
                words = _words(error)
            if words:
                name = paths[0].name.split(".")[0]
                pytest.fail(f"The kept history {name} still fails.\n{words}", pytrace=False)
            for path in paths:
                path.unlink(missing_ok=True)
        return False

    def _mine(self) -> dict[str, list[Path]]:
        """Return the kept histories of this test, each with the bundles that hold it."""
        found: dict[str, list[Path]] = {}
        for path in kept(self._directory):
            try:
                bundle = read(path)
            except BundleError:
                continue  # somebody else says so when it is asked for
            if bundle.history and bundle.test == self._test:
                found.setdefault(bundle.history, []).append(path)
        return found

    def _replay(self, machine: Any, bundle: Bundle) -> None:
        row = {"bundle": bundle.name, "test": bundle.test, "status": "ERROR", "text": ""}
        self._config.stash[REPLAYED].append(row)
        if not bundle.history:
            row["text"] = f"the bundle {bundle.name} holds no history of a machine"
            return
        try:
            machine.replay(History.from_json(bundle.history))
        except (Diverged, UserError) as error:
            row["text"] = f"the history cannot be followed any more: {error}. Run the test itself"
        except Exception as error:
            row["status"] = "FAILED"
            row["text"] = f"FAILED {bundle.name}: {bundle.cause}\n{_words(error)}"
        else:
            row["status"] = "FIXED"
            row["text"] = f"FIXED {bundle.name}: the history does no harm any more"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _words(error: Exception) -> str:
    return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
