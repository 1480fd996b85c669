"""Fixtures: each gives a factory or a tool, so that it works under Hypothesis' ``@given``.

Belongs here: the thin layer between pytest and the package. Everything heavy is imported inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_statepersist.simulator import CrashSimulator
    from pytest_statepersist.snapshots import SnapshotFactory

__all__ = ["crash_simulator", "snapshot_factory", "state_dir"]


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """An empty directory for the state of one test."""
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def crash_simulator(request: pytest.FixtureRequest) -> Iterator[CrashSimulator]:
    """Explores every disk that a crash may leave: check(), explore(), record()."""
    from pytest_statepersist.options import REPORTS, settings_for
    from pytest_statepersist.simulator import CrashSimulator

    simulator = CrashSimulator(**settings_for(request.config, request.node))
    yield simulator
    for report in simulator.reports:
        request.config.stash[REPORTS].append((report.name or request.node.nodeid, report))


@pytest.fixture
def snapshot_factory(tmp_path: Path) -> SnapshotFactory:
    """Makes snapshots of every kind of the reference implementation, valid ones and broken ones."""
    from pytest_statepersist.snapshots import SnapshotFactory

    return SnapshotFactory(tmp_path / "snapshots")
