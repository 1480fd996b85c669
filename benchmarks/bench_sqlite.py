"""What recording SQLite costs: a committed transaction recorded against unrecorded.

The bound is 3 times, with synchronous=OFF to leave out the disk. ``idle`` is the floor: SQLite's
calls go through callbacks in Python that do nothing but make the real call. What is compared is
processor time, in rounds that alternate. Run with ``pytest benchmarks/bench_sqlite.py -s``.
"""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.core.tree import Tree
from pytest_statepersist.recorders.builder import TraceBuilder
from pytest_statepersist.recorders.sqlite import SqliteRecorder
from pytest_statepersist.recorders.sqlite_calls import hooks

TRANSACTIONS = 500
ROUNDS = 9
BOUND = 3.0


def transactions(directory: str, mode: str) -> float:
    """Return seconds per committed transaction on a new database."""
    connection = sqlite3.connect(f"{directory}/a.db")
    connection.execute(f"PRAGMA journal_mode={mode}")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("CREATE TABLE t (x)")
    begin = time.process_time()
    for number in range(TRANSACTIONS):
        connection.execute("INSERT INTO t VALUES (?)", (number,))
        connection.commit()
    duration = time.process_time() - begin
    connection.close()
    return duration / TRANSACTIONS


def measure(mode: str, *, recorded: bool, parent: Path | None, idle: bool = False) -> float:
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        if not recorded:
            return transactions(directory, mode)
        with SqliteRecorder(TraceBuilder(directory, Tree())) as recorder:
            hooks().recorder = None if idle else recorder
            try:
                return transactions(directory, mode)
            finally:
                hooks().recorder = recorder


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "wal", "memory"])
def test_recording_a_transaction(benchmark: Any, mode: str) -> None:
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() else None
    plain: list[float] = []
    idle: list[float] = []
    recorded: list[float] = []

    def all_three() -> None:
        plain.append(measure(mode, recorded=False, parent=parent))
        idle.append(measure(mode, recorded=True, parent=parent, idle=True))
        recorded.append(measure(mode, recorded=True, parent=parent))

    benchmark.pedantic(all_three, rounds=ROUNDS)
    ratios = {
        "best": min(recorded) / min(plain),
        "middle": statistics.median(recorded) / statistics.median(plain),
        "idle": min(idle) / min(plain),
    }
    benchmark.extra_info.update(ratios, bound=BOUND)
    shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    print(
        f"\n{mode}: {min(plain) * 1e6:.1f} us, recorded {min(recorded) * 1e6:.1f} us: {shown} "
        f"(at most {BOUND})"
    )
    assert ratios["best"] <= BOUND
