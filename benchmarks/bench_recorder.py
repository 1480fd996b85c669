"""What recording costs, as a ratio to the same workload without it.

Run: ``pytest benchmarks/bench_recorder.py --benchmark-only -s``. Each workload runs bare and
recorded in turn, on a file system in memory (/dev/shm) and on disk. The target is 2 for writes of
4 KiB and 3 for cycles of open, write, close and rename. What is compared is processor time, user
and kernel, since other processes and a real disk's waiting would only flatter the ratio. Only the
workload is timed: start and stop are printed by themselves.

``floor`` is what the least possible hook costs: the kernel notifies, and a function in Python makes
the real call and does nothing else.

On a busy machine a processor is slower for seconds at a time, so rounds are short, the three kinds
follow each other in each round, and the ratio that counts is that of the middle rounds: as many
were disturbed in one kind as in the other. That of the best rounds is printed beside it.
"""

from __future__ import annotations

import builtins
import io
import os
import shutil
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.recorders.notify import Notifications
from pytest_statepersist.recorders.python import PythonRecorder

_write = io.FileIO.write
DATA = b"x" * 4096
WRITES, CYCLES = 500, 100
MEDIA = {"memory": "/dev/shm", "disk": None}
ROUNDS = 61
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


class Bare:
    """A raw file's write that does nothing but write."""

    __slots__ = ("raw",)

    def __init__(self, raw: io.FileIO) -> None:
        self.raw = weakref.ref(raw)

    def write(self, data: bytes, /) -> int | None:
        raw = self.raw()
        assert raw is not None
        return _write(raw, data)


@contextmanager
def floor(directory: Path) -> Iterator[None]:
    """Notify, and make every call through a function in Python."""
    notifications = Notifications()
    notifications.watch(0, str(directory))
    os_write, os_replace, io_open = os.write, os.replace, io.open

    def opened(*arguments: Any, **options: Any) -> Any:
        file = io_open(*arguments, **options)
        raw: Any = getattr(file, "raw", file)
        raw.write = Bare(raw).write
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data, /: os_write(fd, data))
        patch.setattr(os, "replace", lambda old, new: os_replace(old, new))
        patch.setattr(builtins, "open", opened)
        yield
    notifications.close()


KINDS: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {
    "bare": nullcontext,
    "floor": floor,
    "recorded": PythonRecorder,
}


def once(workload: Callable[[Path], None], folder: str | None, kind: str) -> float:
    """Return the processor time of one run in a new directory, start and stop left out."""
    directory = Path(tempfile.mkdtemp(dir=folder))
    try:
        with ExitStack() as stack:
            begun = time.perf_counter()
            stack.enter_context(KINDS[kind](directory))
            around = time.perf_counter() - begun
            spent = time.process_time()
            workload(directory)
            spent = time.process_time() - spent
            begun = time.perf_counter()
        if kind == "recorded":
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
    spent: dict[str, list[float]] = {kind: [] for kind in KINDS}

    def one_of_each() -> None:
        for kind in KINDS:
            spent[kind].append(once(workload, folder, kind))

    benchmark.pedantic(one_of_each, rounds=ROUNDS, warmup_rounds=1)
    count, target = WORKLOADS[workload]
    middle = {kind: statistics.median(each) for kind, each in spent.items()}
    best = min(spent["recorded"]) / min(spent["bare"])
    least = middle["floor"] / middle["bare"]
    ratio = middle["recorded"] / middle["bare"]
    benchmark.extra_info.update(ratio=ratio, ratio_of_best=best, floor=least, target=target)
    bare, recorded = (middle[kind] / count * 1e6 for kind in ("bare", "recorded"))
    print(
        f"\n{workload.__name__:16} {medium:7} bare {bare:5.1f} us, recorded {recorded:5.1f} us: "
        f"{ratio:.2f} (target {target}), best {best:.2f}, floor {least:.2f}"
    )


@pytest.fixture(scope="module", autouse=True)
def start_and_stop() -> Iterator[None]:
    yield
    if _around:
        print(f"\nstart and stop together: {min(_around) * 1e3:.1f} ms")
