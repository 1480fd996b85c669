"""What recording SQLite costs: a committed transaction recorded against unrecorded.

Run: ``pytest benchmarks/bench_sqlite.py --benchmark-only -s``. The bound is 3 times, with
synchronous=OFF to leave out the disk. ``called`` is what the calls alone cost: SQLite makes them
through callbacks in Python that do nothing but make the real call.

What is compared is processor time. On a busy machine a processor is slower for seconds at a time,
so rounds are short, the kinds follow each other in each round, and the bound is for the fastest
fifth of the rounds of each kind, which were disturbed least; a single fastest one is luck. The
ratio of the middle rounds is printed beside it.
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
from pytest_statepersist.recorders.python import PythonRecorder
from pytest_statepersist.recorders.sqlite import SqliteRecorder, is_shared_memory
from pytest_statepersist.recorders.sqlite_calls import hooks

WARMING, TRANSACTIONS = 5, 60
ROUNDS = 61
BOUND = 3.0
MODES = ["delete", "truncate", "persist", "wal", "memory"]


def transactions(directory: str, mode: str) -> float:
    """Return processor seconds per committed transaction on a new database."""
    connection = sqlite3.connect(f"{directory}/a.db")
    connection.execute(f"PRAGMA journal_mode={mode}")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("CREATE TABLE t (x)")
    begin = 0.0
    for number in range(WARMING + TRANSACTIONS):
        if number == WARMING:
            begin = time.process_time()
        connection.execute("INSERT INTO t VALUES (?)", (number,))
        connection.commit()
    duration = time.process_time() - begin
    connection.close()
    return duration / TRANSACTIONS


def plain(directory: str, mode: str) -> float:
    return transactions(directory, mode)


def called(directory: str, mode: str) -> float:
    with SqliteRecorder(TraceBuilder(directory, Tree())) as recorder:
        hooks().lend(None)
        hooks().recorder = None
        try:
            return transactions(directory, mode)
        finally:
            hooks().recorder = recorder


def recorded(directory: str, mode: str) -> float:
    with SqliteRecorder(TraceBuilder(directory, Tree())):
        return transactions(directory, mode)


def beside(directory: str, mode: str) -> float:
    """Record with the Python recorder beside it, which adds the kernel's notifications."""
    ignore = lambda path: is_shared_memory(f"{directory}/{path}")  # noqa: E731
    with PythonRecorder(directory, companions=[SqliteRecorder], ignore=ignore):
        return transactions(directory, mode)


@pytest.mark.parametrize("mode", MODES)
def test_recording_a_transaction(benchmark: Any, mode: str) -> None:
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() else None
    kinds = {each.__name__: each for each in (plain, called, recorded, beside)}
    spent: dict[str, list[float]] = {name: [] for name in kinds}

    def one_of_each() -> None:
        for name, kind in kinds.items():
            with tempfile.TemporaryDirectory(dir=parent) as directory:
                spent[name].append(kind(directory, mode))

    benchmark.pedantic(one_of_each, rounds=ROUNDS)
    quiet = {name: statistics.mean(sorted(each)[: ROUNDS // 5]) for name, each in spent.items()}
    ratios = {name: quiet[name] / quiet["plain"] for name in kinds if name != "plain"}
    middle = statistics.median(spent["recorded"]) / statistics.median(spent["plain"])
    benchmark.extra_info.update(ratios, middle=middle, bound=BOUND)
    shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    print(
        f"\n{mode}: {quiet['plain'] * 1e6:.1f} us, recorded {quiet['recorded'] * 1e6:.1f} us: "
        f"{shown} (at most {BOUND}); middle {middle:.2f}"
    )
    assert ratios["recorded"] <= BOUND
