"""Run the suites of all stores and print one table.

Run it with ``python -m examples.conformance [STORE …]``. Exit code 0 when each store fails what
``xfails.toml`` lists and nothing else, 1 when one does not (each test is named), 2 for a store that
there is none of. ``--reasons`` prints the line of explanation of every expected failure.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from examples.conformance import stores
from pytest_statepersist.adapter import StoreAdapter

__all__ = ["COLUMNS", "LIST", "Outcomes", "adapter", "listed", "main", "names"]

HERE = Path(__file__).parent
LIST = HERE / "xfails.toml"
COLUMNS = ("passed", "expected failures", "not covered", "not declared")


# Rewritten assertions and Hypothesis' summary would take longer than the suite of a small store.
# What a store left open is also collected after the last test, where no mark of a test reaches.
_OPTIONS = (
    "-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:randomly",
    "-p", "no:hypothesispytest", "-W", "ignore:unclosed:ResourceWarning",
    "-W", "ignore::pytest.PytestUnraisableExceptionWarning",
)  # fmt: skip


@dataclass(slots=True)
class Outcomes:
    """What became of each test of one store's suite."""

    store: str
    found: dict[str, str] = field(default_factory=dict)
    """One of `COLUMNS`, or "failed", by the name of the test."""
    said: dict[str, str] = field(default_factory=dict)
    """The last line of what a failed test said."""

    def row(self) -> str:
        """Return the store's line of the table."""
        counts = (list(self.found.values()).count(column) for column in COLUMNS)
        cells = (f"{n:>{len(column) + 2}}" for n, column in zip(counts, COLUMNS, strict=True))
        return f"{self.store:<18}" + "".join(cells)

    def disagreements(self, known: Mapping[str, str]) -> Iterator[str]:
        """Yield one sentence for each test that did what the list does not say."""
        for test, outcome in self.found.items():
            if outcome == "failed":
                yield f"{self.store}: {test} failed: {self.said.get(test, '')}"
            elif test in known and outcome != "expected failures":
                yield f"{self.store}: {test} is listed as failing, and was {outcome}"


class _Watcher:
    """A plugin that notes what became of the tests, and where asked gives another list to them."""

    def __init__(self, xfails: Path) -> None:
        self.xfails = xfails
        self.outcomes: dict[str, Outcomes] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            item.cls.xfails = self.xfails  # type: ignore[attr-defined]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        _, suite, test = report.nodeid.split("::")
        store = suite.removeprefix("Test")
        outcomes = self.outcomes.setdefault(store, Outcomes(store))
        if report.failed:
            outcomes.found[test] = "failed"
            outcomes.said[test] = _last_words(report)
        elif report.skipped:
            outcomes.found.setdefault(test, _kind(report))
        elif report.when == "call":
            outcomes.found.setdefault(test, "passed")


def names() -> list[str]:
    """Return the names of all stores, in the order of `test_stores`."""
    source = (HERE / "test_stores.py").read_text(encoding="utf-8")
    lines = [line for line in source.splitlines() if line.startswith("class Test")]
    return [line.removeprefix("class Test").partition("(")[0] for line in lines]


def adapter(name: str) -> StoreAdapter:
    """Return the adapter of a store."""
    made: StoreAdapter = getattr(stores, f"{name}Adapter")()
    return made


def listed(name: str, path: Path = LIST) -> Mapping[str, str]:
    """Return the expected failures of a store with their reasons."""
    found: Mapping[str, str] = tomllib.loads(path.read_text(encoding="utf-8")).get(
        f"Test{name}", {}
    )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suites of the named stores, or of all, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.conformance",
        description="Run the conformance suites on stores that nobody here wrote.",
    )
    parser.add_argument("store", nargs="*", help=f"default: all of them ({', '.join(names())})")
    parser.add_argument("--reasons", action="store_true", help="print why each failure is expected")
    parser.add_argument("--xfails", type=Path, default=LIST, help="another list than xfails.toml")
    chosen = parser.parse_args(arguments)
    wanted = chosen.store or names()
    if unknown := sorted(set(wanted) - set(names())):
        parser.error(f"there is no store {', '.join(unknown)}; choose from {', '.join(names())}")
    print(f"{'store':<18}" + "".join(f"  {column}" for column in COLUMNS), flush=True)
    wrong: list[str] = []
    for name in wanted:
        outcomes = run(name, chosen.xfails)
        known = listed(name, chosen.xfails)
        print(outcomes.row(), flush=True)
        if chosen.reasons:
            for test, reason in known.items():
                print(f"    {test}: {reason}")
        wrong += outcomes.disagreements(known)
    if wrong:
        print(f"\nNot what the list says ({len(wrong)}):", *wrong, sep="\n  ")
    return 1 if wrong else 0


def run(name: str, xfails: Path = LIST) -> Outcomes:
    """Run one store's suite in this process; raises `RuntimeError` where it could not be run."""
    watcher = _Watcher(xfails.resolve())
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = pytest.main([*_OPTIONS, f"{HERE / 'test_stores.py'}::Test{name}"], [watcher])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not watcher.outcomes:
        raise RuntimeError(f"the suite of {name} could not be run:\n{printed.getvalue()}")
    return watcher.outcomes[name]


def _kind(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return "expected failures"
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return "not declared" if "declare" in reason else "not covered"


def _last_words(report: pytest.TestReport) -> str:
    lines = report.longreprtext.strip().splitlines()
    errors = [line.removeprefix("E").strip() for line in lines if line.startswith("E ")]
    return (errors or lines or [""])[0]
