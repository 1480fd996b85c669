"""What recording SQLite costs: a committed transaction recorded against unrecorded.

The bound is 3 times, with synchronous=OFF to leave out the disk; a callback that does nothing
costs 1.5 times. Run with ``pytest benchmarks/bench_sqlite.py``.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.core.tree import Tree
from pytest_statepersist.recorders.builder import TraceBuilder
from pytest_statepersist.recorders.sqlite import SqliteRecorder

TRANSACTIONS = 500
ROUNDS = 9
BOUND = 3.0


def transactions(directory: str, mode: str) -> float:
    """Return seconds per committed transaction on a new database."""
    connection = sqlite3.connect(f"{directory}/a.db")
    connection.execute(f"PRAGMA journal_mode={mode}")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("CREATE TABLE t (x)")
    begin = time.perf_counter()
    for number in range(TRANSACTIONS):
        connection.execute("INSERT INTO t VALUES (?)", (number,))
        connection.commit()
    duration = time.perf_counter() - begin
    connection.close()
    return duration / TRANSACTIONS


def measure(mode: str, *, recorded: bool, parent: Path | None) -> float:
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        if not recorded:
            return transactions(directory, mode)
        with SqliteRecorder(TraceBuilder(directory, Tree())):
            return transactions(directory, mode)


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "wal", "memory"])
def test_recording_a_transaction(benchmark: Any, mode: str) -> None:
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() else None
    plain = recorded = float("inf")
    for _ in range(ROUNDS):  # alternating, so that both meet the same machine
        plain = min(plain, measure(mode, recorded=False, parent=parent))
        recorded = min(recorded, measure(mode, recorded=True, parent=parent))
    benchmark.extra_info["ratio"] = round(recorded / plain, 2)
    benchmark.pedantic(measure, (mode,), {"recorded": True, "parent": parent}, rounds=3)
    print(
        f"\n{mode}: {plain * 1e6:.1f} µs, recorded {recorded * 1e6:.1f} µs, "
        f"{recorded / plain:.2f} times (at most {BOUND})"
    )
    assert recorded / plain <= BOUND
