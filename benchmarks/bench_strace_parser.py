"""Lines of strace output that are parsed in a second: at least 50,000.

The text is what strace wrote for the recorded workload (fixtures/strace). Processor time is what
counts: other processes would only slow the clock. What strace recording
costs a program is reported beside it, without a bound. Run with
``pytest benchmarks/bench_strace_parser.py``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.core.tree import Tree
from pytest_statepersist.errors import RecorderUnavailable
from pytest_statepersist.recorders.builder import TraceBuilder
from pytest_statepersist.recorders.strace import StraceRecorder, check_available
from pytest_statepersist.recorders.strace_model import StraceModel, births_in
from pytest_statepersist.recorders.strace_order import in_order
from pytest_statepersist.recorders.strace_parser import parse

BOUND = 50_000
FIXTURE = Path(__file__).parents[1] / "fixtures" / "strace" / "strace-6.1.txt"


def lines() -> list[str]:
    with open(FIXTURE, encoding="ascii") as text:
        return text.readlines()


def rate(benchmark: Any, count: int) -> float:
    found = count / benchmark.stats.stats.min
    benchmark.extra_info["lines_per_second"] = round(found)
    print(f"\n{found:,.0f} lines a second (at least {BOUND:,})")
    return float(found)


@pytest.mark.benchmark(timer=time.process_time)
def test_parsing(benchmark: Any) -> None:
    text = lines() * 50
    benchmark.pedantic(lambda: sum(1 for _ in parse(text)), rounds=5)
    assert rate(benchmark, len(text)) >= BOUND


@pytest.mark.benchmark(timer=time.process_time)
def test_parsing_and_modelling(benchmark: Any) -> None:
    text = lines()

    def replay() -> None:
        events = list(parse(text))
        builder = TraceBuilder("/tmp/statepersist-fixture/state", Tree(), recorder="strace")
        model = StraceModel(builder, births=births_in(events))
        model.add_task(events[0].task, builder.directory, "workload")
        for event, horizon in in_order(events):
            model.feed(event, horizon)

    benchmark.pedantic(replay, rounds=50)
    assert rate(benchmark, len(text)) >= BOUND


WRITES = 2000
PROGRAM = f"""
import os
fd = os.open("f", os.O_WRONLY | os.O_CREAT)
for _ in range({WRITES}):
    os.pwrite(fd, b"x" * 100, 0)
"""


def test_cost_of_recording(benchmark: Any, tmp_path: Path) -> None:
    try:
        check_available()
    except RecorderUnavailable as error:
        pytest.skip(str(error))
    command = [sys.executable, "-S", "-E", "-c", PROGRAM]
    directory = tmp_path / "state"
    directory.mkdir()

    def run() -> None:
        (directory / "f").unlink(missing_ok=True)
        StraceRecorder(directory).run(command, cwd=directory)

    begin = time.perf_counter()
    benchmark.pedantic(run, rounds=3)
    per_call = (time.perf_counter() - begin) / 3 / WRITES
    print(f"\n{per_call * 1e6:.0f} µs for each recorded call, all included (no bound)")
