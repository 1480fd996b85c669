"""Fixtures: each gives a factory or a tool, so that it works under Hypothesis' ``@given``.

Belongs here: the thin layer between pytest and the package. Everything heavy is imported inside.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from pytest_statepersist.clock import StateClock
    from pytest_statepersist.fault_injector import FaultInjector
    from pytest_statepersist.keeping import SimulatorOfTests
    from pytest_statepersist.simulator import CrashSimulator
    from pytest_statepersist.snapshots import SnapshotFactory

__all__ = [
    "crash_simulator",
    "fake_state_dir",
    "fault_injector",
    "snapshot_factory",
    "state_clock",
    "state_dir",
    "tamper",
]


SIMULATOR: pytest.StashKey[SimulatorOfTests] = pytest.StashKey()


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """An empty directory for the state of one test."""
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture(scope="session")
def crash_simulator(request: pytest.FixtureRequest) -> CrashSimulator:
    """Explores every disk that a crash may leave: check(), explore(), record()."""
    return simulator_of(request.config)


def simulator_of(config: pytest.Config) -> SimulatorOfTests:
    """Return the one simulator of a run, which is made when it is first asked for."""
    if SIMULATOR not in config.stash:
        from pytest_statepersist.keeping import SimulatorOfTests

        config.stash[SIMULATOR] = SimulatorOfTests(config)
    return config.stash[SIMULATOR]


def collect_reports(item: pytest.Item) -> None:
    """Keep the reports of the test that ends, as data: for the summary, JSON and JUnit."""
    simulator = item.config.stash.get(SIMULATOR, None)
    if simulator is None:
        return
    simulator.test_ends()
    if not simulator.reports:
        return
    from pytest_statepersist.options import REPORTS
    from pytest_statepersist.report.data import as_data

    for report in simulator.reports:
        data = as_data(report.name or item.nodeid, report) | {"test": item.nodeid}
        item.config.stash[REPORTS].append(data)
        for verdict in data["verdicts"]:
            item.user_properties.append((f"statepersist.{verdict['model']}", verdict["text"]))
        for finding in data["findings"]:
            item.user_properties.append(("statepersist.finding", finding["text"]))
    simulator.reports.clear()


@pytest.fixture
def snapshot_factory(tmp_path: Path) -> SnapshotFactory:
    """Makes snapshots of every kind of the reference implementation, valid ones and broken ones."""
    from pytest_statepersist.snapshots import SnapshotFactory

    return SnapshotFactory(tmp_path / "snapshots")


@pytest.fixture(scope="session")
def fault_injector(request: pytest.FixtureRequest) -> FaultInjector:
    """Lets each call of a save fail once with each error that fits: check(), sweep()."""
    from pytest_statepersist.fault_injector import FaultInjector
    from pytest_statepersist.faults.report import FaultReport
    from pytest_statepersist.options import CURRENT, keep_check, settings_for

    config = request.config
    known = ("model", "seed", "deviations", "time_limit", "workspace")

    class OfTheTest(FaultInjector):
        """Takes what its settings share with crash_simulator's from the test that runs."""

        def sweep(self, **arguments: Any) -> FaultReport:
            found = settings_for(config, config.stash.get(CURRENT, None))
            chosen = {name: found[name] for name in known if name in found}
            chosen |= {name: value for name, value in arguments.items() if name in known}
            report = FaultInjector(**chosen).sweep(
                **{name: value for name, value in arguments.items() if name not in known}
            )
            self.reports.append(report)
            keep_check(config, report.checked())
            return report

    return OfTheTest()


@pytest.fixture(scope="session")
def fake_state_dir() -> Callable[..., AbstractContextManager[Path]]:
    """Make a directory in memory: ``with fake_state_dir(capacity=4096) as directory``.

    For tests of quotas and retention; a claim about crashes is refused while it is active.
    """
    from pytest_statepersist.faults.fake import fake_state_dir

    return fake_state_dir


@pytest.fixture
def state_clock() -> Iterator[StateClock]:
    """A clock that moves only when the test moves it; see `StateClock`."""
    from pytest_statepersist.clock import StateClock

    with StateClock() as clock:
        yield clock


class Tamper:
    """Everything that damages files or looks for what they must not show."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        from pytest_statepersist import leaks, tamper

        for module in (tamper, leaks):
            if name in module.__all__:
                found = getattr(module, name)
                return self._kept(found) if name in _JUDGES else found
        raise AttributeError(
            f"tamper has no {name!r}; it has {', '.join(sorted((*tamper.__all__, *leaks.__all__)))}"
        )

    def _kept(self, judge: Callable[..., Any]) -> Callable[..., Any]:
        """Return a judge whose reports are shown at the end of the run."""
        from pytest_statepersist.options import keep_check

        @functools.wraps(judge)
        def kept(*arguments: Any, **options: Any) -> Any:
            report = judge(*arguments, **options)
            keep_check(self._config, report.checked())
            return report

        return kept


_JUDGES = frozenset({"check_integrity", "scan_leaks", "scan_nonces", "scan_permissions"})


@pytest.fixture(scope="session")
def tamper(request: pytest.FixtureRequest) -> Tamper:
    """check_integrity(), tamperings(), scan_leaks(), scan_nonces(), scan_permissions()."""
    return Tamper(request.config)
