"""What a crash state costs, as ratios in one run: the floor is a bare run of the same recovery.

Run with ``make bench``, or alone: ``pytest benchmarks/bench_explorer.py --benchmark-only -s``.
Figures are attached to each benchmark as ``extra_info`` and printed.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
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


def anything_goes(path: Path) -> Any:
    """Load a document that a crash may have damaged."""
    try:
        return load(path)
    except ValueError:
        return None


def document(value: Any, rows: int) -> str:
    """A JSON document of a few KB as applications keep them: 25 rows are 2 KB, 55 rows 4.5 KB."""
    row = {"name": "a name of some length", "tags": ["one", "two"], "weight": 1.5}
    return json.dumps({"value": value, "rows": [{"id": n, **row} for n in range(rows)]})


def explore(workload: Any, **changes: Any) -> Any:
    return CrashSimulator(repairs=False).explore(
        setup=lambda d: save(d / "state", 0),
        workload=workload,
        recover=lambda d: load(d / "state"),
        invariant=anything,
        **changes,
    )


# -- what a crash state costs ----------------------------------------------------------------------


def write_in_place(path: Path, value: Any, rows: int) -> None:
    path.write_text(document(value, rows))


def write_beside(path: Path, value: Any, rows: int) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(document(value, rows))
    os.replace(temporary, path)


def write_durably(path: Path, value: Any, rows: int) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w") as file:
        file.write(document(value, rows))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def append(path: Path, value: Any, rows: int) -> None:
    with open(path, "a") as file:
        file.write(json.dumps({"value": value, "text": "x" * 200}) + "\n")


def load_log(path: Path) -> Any:
    last = None
    with open(path) as file:
        for line in file:
            try:
                last = json.loads(line)["value"]
            except ValueError:
                break
    return last


def one_file(save_one: Any, saves: int, read: Any = anything_goes) -> tuple[Any, Any, Any]:
    """Return (setup, workload, recover) of a store in one file; each takes directory and rows."""

    def setup(directory: Path, rows: int) -> None:
        save_one(directory / "state", -1, rows)

    def workload(directory: Path, rows: int) -> None:
        for number in range(saves):
            save_one(directory / "state", number, rows)

    return setup, workload, lambda directory: read(directory / "state")


def many_files() -> tuple[Any, Any, Any]:
    def setup(directory: Path, rows: int) -> None:
        for number in range(10):
            write_in_place(directory / f"part{number}", -1, rows)

    def workload(directory: Path, rows: int) -> None:
        for number in range(4):
            write_in_place(directory / f"part{number}", number, rows)

    def recover(directory: Path) -> Any:
        return [anything_goes(path) for path in sorted(directory.iterdir())]

    return setup, workload, recover


WORKLOADS: dict[str, tuple[Any, Any, Any]] = {
    "written durably": one_file(write_durably, 30),
    "replaced without fsync": one_file(write_beside, 20),
    "cut and written in place": one_file(write_in_place, 12),
    "appended without fsync": one_file(append, 40, load_log),
    "ten files": many_files(),
}


def bare(recover: Any, directory: Path, clock: Any, runs: int) -> float:
    begun = clock()
    for _ in range(runs):
        recover(directory)
    return float(clock() - begun) / runs


@pytest.mark.parametrize("models", ["posix", "all"])
@pytest.mark.parametrize("rows", [25, 55])
@pytest.mark.parametrize("name", WORKLOADS)
def test_a_crash_state(benchmark: Any, name: str, rows: int, models: str) -> None:
    """Both readings, per state judged and per recovery really run, against a bare recovery.

    Bare runs and explorations alternate, and the middle one of the rounds counts: then a machine
    that others use slows both alike. ``search`` is wall time, ``whole`` processor time, children
    and recording included.
    """
    setup, workload, recover = WORKLOADS[name]
    wall: list[float] = []
    whole: list[float] = []
    reports: list[Any] = []
    with tempfile.TemporaryDirectory(dir=_memory()) as made:
        prepared = Path(made)
        setup(prepared, rows)
        workload(prepared, rows)
        held = sum(path.stat().st_size for path in prepared.iterdir())

        def once() -> None:
            elapsed = bare(recover, prepared, time.perf_counter, 100)
            spent = bare(recover, prepared, _processor, 100)
            begun = _processor()
            report = CrashSimulator(repairs=False).explore(
                setup=lambda d: setup(d, rows),
                workload=lambda d: workload(d, rows),
                recover=recover,
                invariant=anything,
                model=list(MODELS) if models == "all" else "posix",
            )
            whole.append((_processor() - begun) / spent)
            elapsed = (elapsed + bare(recover, prepared, time.perf_counter, 100)) / 2
            wall.append(sum(c.seconds for c in report.coverage) / elapsed)
            reports.append(report)

        benchmark.pedantic(once, rounds=3)
    report = reports[-1]
    states = sum(c.states + c.sampled for c in report.coverage)
    report_line(
        benchmark,
        kilobytes=held / 1024,
        states=states,
        recoveries=report.runs,
        search_a_state=statistics.median(wall) / states,
        search_a_recovery=statistics.median(wall) / report.runs,
        whole_a_state=statistics.median(whole) / states,
        whole_a_recovery=statistics.median(whole) / report.runs,
    )


def _processor() -> float:
    """Processor time of this process and of the children that it has waited for."""
    return time.process_time() + _of_children()


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _memory() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def report_line(benchmark: Any, **figures: float) -> None:
    benchmark.extra_info.update(figures)
    shown = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
    print(f"\n{benchmark.name}: {shown}")


# -- how it grows ----------------------------------------------------------------------------------


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
    report_line(
        benchmark,
        operations=operations,
        seconds=report.seconds,
        milliseconds_an_operation=report.seconds / operations * 1e3,
    )


MEASURED = """
import os, resource, sys
from pathlib import Path
from pytest_statepersist import CrashSimulator
sys.path.insert(0, {benchmarks!r})
import bench_explorer as bench
{body}
print(len(report.trace), report.seconds,
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def measured(body: str) -> tuple[int, float, float]:
    """Run an exploration in a process of its own: operations, seconds, most megabytes held."""
    script = MEASURED.format(benchmarks=os.path.dirname(__file__), body=body)
    command = [sys.executable, "-c", script]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(shown[0]), float(shown[1]), float(shown[2])


def test_memory_of_a_long_trace(benchmark: Any) -> None:
    """12,000 operations stay below 300 MB."""
    body = "report = bench.explore(lambda d: [bench.save(d / 'state', n) for n in range(2000)])"
    found = benchmark.pedantic(lambda: measured(body), rounds=1)
    report_line(benchmark, operations=found[0], seconds=found[1], megabytes=found[2])


def test_memory_of_a_large_base(benchmark: Any) -> None:
    """A file of 1 GiB in the base tree, of which the workload writes one block."""
    body = """
def setup(d):
    bench.save(d / 'state', 0)
    with open(d / 'large', 'wb') as file:
        file.truncate(1 << 30)
def workload(d):
    with open(d / 'large', 'r+b') as file:
        file.write(b'x' * 4096)
    bench.save(d / 'state', 1)
report = CrashSimulator().explore(
    setup=setup, workload=workload, recover=lambda d: bench.load(d / 'state'), before=0, after=1)
"""
    found = benchmark.pedantic(lambda: measured(body), rounds=1)
    report_line(benchmark, operations=found[0], seconds=found[1], megabytes=found[2])


# -- loading ---------------------------------------------------------------------------------------


LOADING = """
import time, pytest, _pytest.config
begun = time.process_time()
import pytest_statepersist.plugin
print(time.process_time() - begun)
"""


def test_loading_the_plugin(benchmark: Any) -> None:
    """What a run of pytest that uses nothing of it pays: its import, where pytest is loaded.

    Whole runs of pytest differ by more than that. Bytecode is kept, as it is once installed.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", LOADING]
    times: list[float] = []

    def once() -> None:
        shown = subprocess.run(command, check=True, capture_output=True, env=environment)
        times.append(float(shown.stdout))

    benchmark.pedantic(once, rounds=11, warmup_rounds=1)
    report_line(
        benchmark,
        milliseconds_added=min(times) * 1e3,
        middle_milliseconds_added=statistics.median(times) * 1e3,
    )
