"""What pytest was told about exploring crashes, and where the results are collected.

Belongs here: reading ini settings, options and markers into settings of a `CrashSimulator`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_statepersist.baseline import Accepted
    from pytest_statepersist.bundle_json import Bundle
    from pytest_statepersist.checked import Checked
    from pytest_statepersist.matrix import Row

__all__ = [
    "BASELINE",
    "CAPABILITIES",
    "CHECKS",
    "CURRENT",
    "MARKER_KEYWORDS",
    "REPLAY",
    "REPLAYED",
    "REPORTS",
    "Baseline",
    "ReplayDone",
    "baseline_of",
    "bundles_of",
    "keep_check",
    "settings_for",
]

REPORTS: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()
"""Explorations of this run as plain data, see `report.data`."""
CHECKS: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()
"""Every other check of this run (faults, kills, …) as plain data, see `report.data.as_check`."""
CAPABILITIES: pytest.StashKey[list[Row]] = pytest.StashKey()
"""Which promises of which stores were tested, with what result; see `matrix`."""
CURRENT: pytest.StashKey[pytest.Item] = pytest.StashKey()
"""The test that runs."""
REPLAY: pytest.StashKey[dict[str, Bundle]] = pytest.StashKey()
"""The bundles that are replayed, by the id of their test; absent where none is."""
REPLAYED: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()
"""What came of it, as plain data: "bundle", "test", "status" and "text"."""
MARKER_KEYWORDS = (
    "model",
    "budget",
    "seed",
    "deviations",
    "recovery_crashes",
    "recorder",
    "time_limit",
    "repairs",
    "redundant_syncs",
)


class ReplayDone(BaseException):
    """Ends a test whose replay is done and fine: the rest of it would explore."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The accepted findings of a run; with ``everything`` all are, and they are written."""

    accepted: tuple[Accepted, ...] = ()
    path: str = ""
    everything: bool = False

    def note(self, finding: str, test: str) -> str | None:
        """Return the note with which a finding of a test is accepted, ``None`` if it is not."""
        for each in self.accepted:
            if each.id == finding and each.test in ("", test):
                return each.note
        return "" if self.everything else None


BASELINE: pytest.StashKey[Baseline] = pytest.StashKey()
"""The accepted findings of this run."""


def baseline_of(config: pytest.Config) -> Baseline:
    """Read the baseline that the ini file names; raises `pytest.UsageError` where it cannot be."""
    name = config.getini("statepersist_baseline")
    write = bool(config.getoption("--statepersist-write-baseline"))
    if not name:
        if write:
            raise pytest.UsageError(
                "--statepersist-write-baseline needs the ini setting statepersist_baseline = FILE"
            )
        return Baseline()
    from pytest_statepersist.baseline import read_baseline
    from pytest_statepersist.errors import UserError

    path = config.rootpath / name
    if write and not path.exists():
        return Baseline((), str(path), True)
    try:
        return Baseline(read_baseline(path), str(path), write)
    except UserError as error:
        raise pytest.UsageError(str(error)) from None


def bundles_of(config: pytest.Config) -> dict[str, Bundle]:
    """Read the bundles that are to be replayed; raises `pytest.UsageError` where one cannot be."""
    given = config.getoption("--statepersist-replay")
    if not given:
        return {}
    from pytest_statepersist.bundle import DIRECTORY, find, read
    from pytest_statepersist.errors import UserError

    kept = config.rootpath / DIRECTORY
    found: dict[str, Bundle] = {}
    for each in given:
        try:
            path = find(each, kept)
            bundle = read(path)
        except UserError as error:
            raise pytest.UsageError(str(error)) from None
        if not bundle.test:
            raise pytest.UsageError(
                f"the bundle {bundle.name} was not made by a test; replay it with "
                "pytest_statepersist.replay_bundle(path, recover=…)"
            )
        if bundle.test in found:
            raise pytest.UsageError(
                f"{bundle.name} and {found[bundle.test].name} are of one test, which a run replays "
                "once; 'statepersist replay' takes any number"
            )
        if path.absolute().parent != kept:
            _refuse_other_files(config, bundle)
        found[bundle.test] = bundle
    return found


def _refuse_other_files(config: pytest.Config, bundle: Bundle) -> None:
    """A bundle from elsewhere names a file that pytest would import: only tests are asked for."""
    if config.args_source is pytest.Config.ArgsSource.ARGS:
        return
    name = bundle.test.split("::")[0].rpartition("/")[2]
    if not any(fnmatch(name, pattern) for pattern in config.getini("python_files")):
        raise pytest.UsageError(
            f"the bundle {bundle.name} names {bundle.test}, whose file is not one of tests; give "
            "the file as an argument as well if it is"
        )


def keep_check(config: pytest.Config, checked: Checked) -> None:
    """Keep the result of a check of the test that runs: for the summary, JSON and JUnit."""
    from pytest_statepersist.report.data import as_check
    from pytest_statepersist.report.summary import check_text

    item = config.stash.get(CURRENT, None)
    test = item.nodeid if item is not None else ""
    data = as_check(checked.name or test, checked) | {"test": test}
    config.stash[CHECKS].append(data)
    if item is not None:
        item.user_properties.append((f"statepersist.{data['check']}", check_text(data)))
        for finding in data["findings"]:
            item.user_properties.append(("statepersist.finding", finding["text"]))


_BY_MARKER_ONLY = frozenset({"repairs", "redundant_syncs"})


def settings_for(config: pytest.Config, node: pytest.Item | None) -> dict[str, Any]:
    """Return the settings for a test: ini, then options, then the closest marker."""
    found: dict[str, Any] = {}
    numbers = {"seed": int, "deviations": int, "recovery_crashes": int, "time_limit": float}
    for name in ("workspace", *MARKER_KEYWORDS):
        if name in _BY_MARKER_ONLY:
            continue
        text = config.getini(f"statepersist_{name}")
        if text:
            found[name] = _number(name, text, numbers[name]) if name in numbers else text
    for name in ("model", "budget", "seed", "deviations"):
        value = config.getoption(f"--statepersist-{name}")
        if value is not None:
            found[name] = value
    if node is not None:
        for mark in reversed(list(node.iter_markers("statepersist"))):
            found.update(mark.kwargs)
    if isinstance(found.get("model"), str):
        found["model"] = _models(found["model"])
    if isinstance(found.get("budget"), str) and found["budget"].isdigit():
        found["budget"] = int(found["budget"])
    return found


def _number(name: str, text: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(text)
    except ValueError:
        raise pytest.UsageError(f"statepersist_{name} = {text!r} is not a number") from None


def _models(text: str) -> tuple[str, ...]:
    if text.strip() == "all":
        from pytest_statepersist.core.models import MODELS

        return tuple(MODELS)
    return tuple(name.strip() for name in text.split(",") if name.strip())
