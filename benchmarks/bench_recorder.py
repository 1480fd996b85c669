"""What recording costs, as a ratio to the same workload without it.

Run: ``pytest benchmarks/bench_recorder.py --benchmark-only -s``. Each workload runs bare and
recorded, on a file system in memory (/dev/shm) and on disk; the ratios are printed at the end. The
target is 2 for writes of 4 KiB and 3 for cycles of open, write, close and rename. What is compared
is processor time, user and kernel, since other processes and a real disk's waiting would only
flatter the ratio. Only the workload is timed: start and stop are printed by themselves.
"""

from __future__ import annotations

import os
import shutil
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
_seconds: dict[tuple[str, str, bool], float] = {}
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


@pytest.fixture
def directory(medium: str) -> Iterator[Path]:
    folder = MEDIA[medium]
    if folder is not None and not os.path.isdir(folder):
        pytest.skip(f"there is no {folder} here")
    made = Path(tempfile.mkdtemp(dir=folder))
    yield made
    shutil.rmtree(made)


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("recorded", [False, True], ids=["bare", "recorded"])
@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda each: each.__name__)
def test_recording(
    benchmark: Any,
    directory: Path,
    medium: str,
    workload: Callable[[Path], None],
    recorded: bool,
) -> None:
    with ExitStack() as stack:

        def prepare() -> None:
            begin = time.perf_counter()
            stack.close()
            for path in directory.iterdir():
                path.unlink()
            if recorded:
                stack.enter_context(PythonRecorder(directory))
                _around.append(time.perf_counter() - begin)

        benchmark.pedantic(workload, args=(directory,), setup=prepare, rounds=7)
    count, _ = WORKLOADS[workload]
    _seconds[workload.__name__, medium, recorded] = benchmark.stats.stats.min / count


@pytest.fixture(scope="module", autouse=True)
def ratios() -> Iterator[None]:
    yield
    for (name, medium, recorded), seconds in _seconds.items():
        bare = _seconds.get((name, medium, False))
        if recorded and bare:
            target = next(limit for work, (_, limit) in WORKLOADS.items() if work.__name__ == name)
            print(
                f"\n{name:16} {medium:7} bare {bare * 1e6:6.1f} us, recorded {seconds * 1e6:6.1f} "
                f"us: ratio {seconds / bare:4.2f} (target {target})",
                end="",
            )
    if _around:
        print(f"\nstart and stop together: {min(_around) * 1e3:.1f} ms")
