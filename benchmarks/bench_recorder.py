"""What recording costs, as a ratio to the same workload without it.

Run: ``pytest benchmarks/bench_recorder.py --benchmark-only -s``. Each workload runs bare and
recorded in turn, on a file system in memory (/dev/shm) and on disk; the ratios of the best and of
the middle round are printed. The target is 2 for writes of 4 KiB and 3 for cycles of open, write,
close and rename. What is compared is processor time, user and kernel, since other processes and a
real disk's waiting would only flatter the ratio. Only the workload is timed: start and stop are
printed by themselves.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.recorders.python import PythonRecorder

DATA = b"x" * 4096
WRITES, CYCLES = 2000, 400
MEDIA = {"memory": "/dev/shm", "disk": None}
ROUNDS = 9
_around: list[float] = []


def raw_writes(directory: Path) -> None:
    with open(directory / "f", "wb", buffering=0) as file:
        for _ in range(WRITES):
            file.write(DATA)


def buffered_writes(directory: Path) -> None:
    with open(directory / "f", "wb") as file:
        for _ in range(WRITES):
            file.write(DATA)


def os_writes(directory: Path) -> None:
    fd = os.open(directory / "f", os.O_CREAT | os.O_WRONLY)
    for _ in range(WRITES):
        os.write(fd, DATA)
    os.close(fd)


def cycles(directory: Path) -> None:
    temporary, final = directory / "t", directory / "f"
    for _ in range(CYCLES):
        with open(temporary, "wb") as file:
            file.write(DATA)
        os.replace(temporary, final)


WORKLOADS: dict[Callable[[Path], None], tuple[int, float]] = {
    raw_writes: (WRITES, 2.0),
    buffered_writes: (WRITES, 2.0),
    os_writes: (WRITES, 2.0),
    cycles: (CYCLES, 3.0),
}


def once(workload: Callable[[Path], None], folder: str | None, *, recorded: bool) -> float:
    """Return the processor time of one run in a new directory, start and stop left out."""
    directory = Path(tempfile.mkdtemp(dir=folder))
    try:
        with ExitStack() as stack:
            begun = time.perf_counter()
            if recorded:
                stack.enter_context(PythonRecorder(directory))
            around = time.perf_counter() - begun
            spent = time.process_time()
            workload(directory)
            spent = time.process_time() - spent
            begun = time.perf_counter()
        if recorded:
            _around.append(around + time.perf_counter() - begun)
        return spent
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda each: each.__name__)
def test_recording(benchmark: Any, medium: str, workload: Callable[[Path], None]) -> None:
    folder = MEDIA[medium]
    if folder is not None and not os.path.isdir(folder):
        pytest.skip(f"there is no {folder} here")
    bare: list[float] = []
    recorded: list[float] = []

    def both() -> None:
        bare.append(once(workload, folder, recorded=False))
        recorded.append(once(workload, folder, recorded=True))

    benchmark.pedantic(both, rounds=ROUNDS)
    count, target = WORKLOADS[workload]
    best = min(recorded) / min(bare)
    middle = statistics.median(recorded) / statistics.median(bare)
    benchmark.extra_info.update(ratio_of_best=best, ratio_of_middle=middle, target=target)
    print(
        f"\n{workload.__name__:16} {medium:7} bare {min(bare) / count * 1e6:5.1f} us, recorded "
        f"{min(recorded) / count * 1e6:5.1f} us: best {best:.2f}, middle {middle:.2f} "
        f"(target {target})"
    )


@pytest.fixture(scope="module", autouse=True)
def start_and_stop() -> Iterator[None]:
    yield
    if _around:
        print(f"\nstart and stop together: {min(_around) * 1e3:.1f} ms")
