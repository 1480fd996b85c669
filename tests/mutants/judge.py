"""One machine, or one conformance test, on one store: did it fail, and in whose words?

Belongs here: running a `Target` as a user's test run would, in the `ci` profile, up to the first
failure. Nothing here knows of mutants: the same judge passes the sound stores.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import sys
import tempfile
import time
import unittest
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, Verbosity, settings
from hypothesis.stateful import run_state_machine_as_test

from pytest_statepersist import machines
from pytest_statepersist.adapter import StoreAdapter
from pytest_statepersist.conformance.bench import Bench
from pytest_statepersist.conformance.needs import needs_of
from pytest_statepersist.conformance.suite import GROUPS
from pytest_statepersist.machines import reference_stores
from pytest_statepersist.machines.base import StoreMachine
from pytest_statepersist.machines.profiles import PROFILES
from tests.mutants import bare_stores

__all__ = ["Target", "Verdict", "judge"]

_SETTINGS = {"repairs": False, "samples": 0}
"""What explains findings, or looks beyond a complete exploration, decides no verdict here."""

_MACHINES = str(Path(machines.__file__).parent)


@dataclass(frozen=True, slots=True)
class Target:
    """Who looks at a store: ``AtomicityMachine``, or ``durable/test_an_overwrite_survives``."""

    by: str
    store: str
    """The name of an adapter."""

    def __str__(self) -> str:
        return f"{self.by} on {self.store}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``outcome`` is "passed", "failed" or "not covered"; ``test`` is the test or rule that failed.

    ``message`` is the type of the error and its text; ``cpu`` is in seconds.
    """

    outcome: str
    test: str = ""
    message: str = ""
    cpu: float = 0.0
    examples: int = 0


def judge(
    target: Target,
    *,
    seed: int | None = None,
    examples: int | None = None,
    recoveries: int | None = None,
) -> Verdict:
    """Run a target once.

    ``seed`` replaces the profile's fixed choice of examples, ``examples`` their number. A
    conformance test that is given ``recoveries`` looks no further than at the first disks of those
    that it looks at by default.
    """
    adapter = _adapter(target.store)
    logging.disable(logging.CRITICAL)
    began = time.process_time()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            if "/" in target.by:
                first = {} if recoveries is None else {"budget": recoveries, "recovery_crashes": 0}
                found = _conformance(*target.by.split("/"), adapter, {**_SETTINGS, **first})
            else:
                found = _machine(getattr(machines, target.by).for_store(adapter), seed, examples)
    finally:
        logging.disable(logging.NOTSET)
    outcome, test, message, examples = found
    return Verdict(outcome, test, message, round(time.process_time() - began, 2), examples)


def _adapter(name: str) -> StoreAdapter:
    where = reference_stores if hasattr(reference_stores, name) else bare_stores
    adapter: StoreAdapter = getattr(where, name)()
    return adapter


_Found = tuple[str, str, str, int]


def _conformance(
    group: str, name: str, adapter: StoreAdapter, settings: dict[str, Any]
) -> _Found:
    test = getattr(GROUPS[group](), name)
    lacking = adapter.lacks(*needs_of(test))
    if lacking is not None:
        return "not covered", name, lacking, 0
    root = Path(tempfile.mkdtemp(prefix="mutant-", dir=_in_memory()))
    try:
        test(Bench(adapter, root, settings))
    except pytest.skip.Exception as reason:
        return "not covered", name, str(reason), 0
    except (Exception, pytest.fail.Exception) as error:
        return "failed", name, _words(error), 0
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return "passed", name, "", 0


class _First(unittest.SkipTest):
    """Ends a run at its first failure: Hypothesis lets this one through as it is."""


def _machine(machine: type[StoreMachine], seed: int | None, number: int | None) -> _Found:
    examples = 0
    failures: list[tuple[str, Exception]] = []

    class Watched(machine):  # type: ignore[valid-type, misc]
        def __init__(self) -> None:
            nonlocal examples
            examples += 1
            super().__init__()

        def teardown(self) -> None:
            error = sys.exception() if sys.version_info >= (3, 12) else sys.exc_info()[1]
            try:
                super().teardown()
            except Exception as second:
                error = error or second
            if isinstance(error, Exception) and not _of_hypothesis(error):
                failures.append((_rule(error, self), error))
                raise _First from error

    if seed is not None:
        Watched._hypothesis_internal_use_seed = seed
    profile = PROFILES["ci"].settings(machine.weight)
    how = settings(
        profile,
        max_examples=number or profile.max_examples,
        derandomize=seed is None, database=None, verbosity=Verbosity.quiet,
        phases=(Phase.explicit, Phase.generate),
    )  # fmt: skip
    Watched.begin()
    try:
        run_state_machine_as_test(Watched, settings=how)
    except _First:
        rule, error = failures[0]
        return "failed", rule, _words(error), examples
    except unittest.SkipTest as reason:
        return "not covered", "", str(reason), examples
    finally:
        Watched.end()
    return "passed", "", "", examples


def _of_hypothesis(error: Exception) -> bool:
    return type(error).__module__.startswith("hypothesis.")


def _rule(error: Exception, machine: StoreMachine) -> str:
    """Return the name of the rule in which an error was raised."""
    trace: Any = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        ours = os.path.dirname(frame.f_code.co_filename) == _MACHINES
        ours = ours and os.path.basename(frame.f_code.co_filename) != "base.py"
        if ours and frame.f_locals.get("self") is machine:
            return str(frame.f_code.co_name)
        trace = trace.tb_next
    return "?"


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _in_memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
