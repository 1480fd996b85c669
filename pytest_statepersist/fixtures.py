"""Fixtures: each gives a factory or a tool, so that it works under Hypothesis' ``@given``.

Belongs here: the thin layer between pytest and the package. Everything heavy is imported inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_statepersist.simulator import CrashSimulator
    from pytest_statepersist.snapshots import SnapshotFactory

__all__ = ["crash_simulator", "snapshot_factory", "state_dir"]


SIMULATOR: pytest.StashKey[CrashSimulator] = pytest.StashKey()


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """An empty directory for the state of one test."""
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture(scope="session")
def crash_simulator(request: pytest.FixtureRequest) -> CrashSimulator:
    """Explores every disk that a crash may leave: check(), explore(), record()."""
    from pytest_statepersist.options import CURRENT, settings_for
    from pytest_statepersist.simulator import CrashSimulator, Settings, changed_settings

    config = request.config

    class OfTheTest(CrashSimulator):
        """Lives as long as the session, so that ``@given`` may use it; settings are the test's."""

        @property
        def settings(self) -> Settings:
            return changed_settings(
                Settings(), settings_for(config, config.stash.get(CURRENT, None))
            )

        @settings.setter
        def settings(self, value: Settings) -> None:
            """Settings come from the test that runs."""

    simulator = OfTheTest()
    config.stash[SIMULATOR] = simulator
    return simulator


def collect_reports(item: pytest.Item) -> None:
    """Keep the reports of the test that ends, as data: for the summary, JSON and JUnit."""
    simulator = item.config.stash.get(SIMULATOR, None)
    if simulator is None or not simulator.reports:
        return
    from pytest_statepersist.options import REPORTS
    from pytest_statepersist.report.data import as_data

    for report in simulator.reports:
        data = as_data(report.name or item.nodeid, report)
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
