"""How many fault cases a sweep runs in a second of processor time: more than 200.

The subject is a save of 20 calls that change the directory (five atomic replacements, each opened,
written, synced and renamed), with six errors, those that fit each call, once and from there on.
A case is a run under a fault, its recovery, the retry, and the power-loss states after it.
Processor time, that of all child processes included, since the machine is shared; the wall time is
shown beside it. Run with ``pytest benchmarks/bench_faults.py``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pytest_statepersist.fault_injector import FaultInjector

BOUND = 200
ERRORS = ("ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES", "short")
ROUNDS = 3
PARTS = 5


def save(directory: Path, value: int) -> None:
    for part in range(PARTS):
        temporary = directory / f"{part}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            left = memoryview(str(value).encode() * 100)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, directory / str(part))


def load(directory: Path) -> tuple[bytes, ...]:
    return tuple((directory / str(part)).read_bytes() for part in range(PARTS))


def whole(found: tuple[bytes, ...], done: tuple[Any, ...]) -> bool:
    return all(part in (b"1" * 100, b"2" * 100) for part in found)


def processor_time() -> float:
    return sum(os.times()[:4])


def sweep() -> tuple[int, int, float, float]:
    started, begun = time.perf_counter(), processor_time()
    report = FaultInjector(errors=ERRORS, recovery=False).sweep(
        setup=lambda d: save(d, 1),
        workload=lambda d: save(d, 2),
        recover=load,
        invariant=whole,
    )
    assert report.findings == (), str(report)
    changing = [each for each in report.sites if each.operation.changes]
    assert len(changing) == 20
    used = processor_time() - begun
    return report.cases, report.states, used, time.perf_counter() - started


def test_a_sweep_runs_many_cases_a_second(benchmark: Any) -> None:
    runs = [sweep() for _ in range(ROUNDS)]
    cases, states, seconds, wall = min(runs, key=lambda run: run[2])
    benchmark.extra_info["cases"] = cases
    benchmark.extra_info["power-loss states"] = states
    benchmark.extra_info["cases a second"] = round(cases / seconds)
    benchmark.extra_info["cases a second of wall time"] = round(cases / wall)
    benchmark.pedantic(sweep, rounds=1)
    assert cases >= 120
    assert cases / seconds > BOUND, f"{cases / seconds:.0f} cases a second, bound {BOUND}"
