"""What a crash state costs, as ratios in one run: the floor is a bare run of the same recovery.

Run with ``make bench``. Figures are attached to each benchmark as ``extra_info`` and printed.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist import CrashSimulator
from pytest_statepersist.core.models import MODELS
from pytest_statepersist.core.states import crash_states

PAD = "x" * 2000


def save(path: Path, value: Any, *, synced: bool = True) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w") as file:
        json.dump({"value": value, "pad": PAD}, file)
        if synced:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)
    if synced:
        descriptor = os.open(path.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def load(path: Path) -> Any:
    with open(path) as file:
        return json.load(file)["value"]


def anything(recovered: Any, acknowledged: Any) -> bool:
    return True


def explore(workload: Any, **changes: Any) -> Any:
    return CrashSimulator().explore(
        setup=lambda d: save(d / "state", 0),
        workload=workload,
        recover=lambda d: load(d / "state"),
        invariant=anything,
        **changes,
    )


def bare_seconds(runs: int = 3000) -> float:
    """One bare recovery on a prepared directory: the best of five rounds."""
    with tempfile.TemporaryDirectory(dir=_memory()) as name:
        path = Path(name) / "state"
        save(path, 1)
        best = float("inf")
        for _ in range(5):
            begun = time.perf_counter()
            for _ in range(runs):
                load(path)
            best = min(best, (time.perf_counter() - begun) / runs)
    return best


def _memory() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def report_line(benchmark: Any, **figures: float) -> None:
    benchmark.extra_info.update(figures)
    shown = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
    print(f"\n{benchmark.name}: {shown}")


def test_a_state_that_shares_a_verdict(benchmark: Any) -> None:
    """200 correct saves: about 1,000 classes, one run for each save."""
    bare = bare_seconds()
    seconds: list[float] = []

    def once() -> None:
        report = explore(lambda d: [save(d / "state", n) for n in range(200)])
        (coverage,) = report.coverage
        seconds.append(coverage.seconds / coverage.states)

    benchmark.pedantic(once, rounds=5)
    report_line(
        benchmark,
        microseconds_a_state=min(seconds) * 1e6,
        times_a_bare_recovery=min(seconds) / bare,
    )


def test_a_state_that_is_run(benchmark: Any) -> None:
    """Unsynced overwrites of one file, whose every version is another content: each is run."""
    bare = bare_seconds()
    seconds: list[float] = []

    def workload(directory: Path) -> None:
        for number in range(200):
            (directory / "state").write_text(json.dumps({"value": number, "pad": PAD}))

    def once() -> None:
        report = CrashSimulator(deviations=0).explore(
            setup=lambda d: save(d / "state", 0),
            workload=workload,
            recover=lambda d: (d / "state").read_text(),
            invariant=anything,
        )
        (coverage,) = report.coverage
        seconds.append(coverage.seconds / max(coverage.runs, 1))

    benchmark.pedantic(once, rounds=5)
    report_line(
        benchmark, microseconds_a_run=min(seconds) * 1e6, times_a_bare_recovery=min(seconds) / bare
    )


def test_ten_saves_without_fsync(benchmark: Any) -> None:
    """The classic tool of the field needed 248 s for the 398 states of such a workload."""
    reports: list[Any] = []

    def workload(directory: Path) -> None:
        for number in range(10):
            save(directory / "state", number, synced=False)

    benchmark.pedantic(lambda: reports.append(explore(workload)), rounds=5)
    report = reports[-1]
    trees = sum(1 for _ in crash_states(report.trace, MODELS["posix"], deviations=2, limit=100_000))
    seconds = min(r.seconds for r in reports)
    report_line(
        benchmark,
        seconds=seconds,
        disks_up_to_2_deviations=trees,
        classes=report.states_checked,
        recoveries=report.runs,
        milliseconds_a_disk=seconds / trees * 1e3,
        times_faster_than_149_ms=0.149 / (seconds / trees),
    )


@pytest.mark.parametrize("saves", [2, 20, 200, 2000])
def test_time_grows_linearly_with_the_trace(benchmark: Any, saves: int) -> None:
    """Each correct save is six operations; the unsynced window stays the same."""
    reports: list[Any] = []
    benchmark.pedantic(
        lambda: reports.append(explore(lambda d: [save(d / "state", n) for n in range(saves)])),
        rounds=1 if saves > 200 else 3,
    )
    report = min(reports, key=lambda r: r.seconds)
    operations = len(report.trace)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report_line(
        benchmark,
        operations=operations,
        seconds=report.seconds,
        milliseconds_an_operation=report.seconds / operations * 1e3,
        megabytes=memory,
    )


def test_loading_the_plugin(benchmark: Any, tmp_path: Path) -> None:
    """A run of pytest that uses nothing of it, with and without the plugin, alternating."""
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    plain = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    times: dict[bool, list[float]] = {True: [], False: []}

    def once() -> None:
        for loaded in (True, False):
            command = plain if loaded else [*plain, "-p", "no:statepersist"]
            begun = time.perf_counter()
            subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
            times[loaded].append(time.perf_counter() - begun)

    benchmark.pedantic(once, rounds=7)
    extra = min(times[True]) - min(times[False])
    report_line(benchmark, milliseconds_added=extra * 1e3, seconds_without=min(times[False]))
