"""Snapshots are synced as in life; in memory that costs nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_statepersist.snapshots import SnapshotFactory


@pytest.fixture
def factory() -> Iterator[SnapshotFactory]:
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as place:
        yield SnapshotFactory(place)
