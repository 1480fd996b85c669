"""Examples a second of every machine on the file store, and what a crash costs.

Run with ``python benchmarks/bench_machines.py [examples]``. The first table runs each machine once;
"without crashes" leaves the crash rules out, and RoundTrip never records. The second one says what
each step of one crash costs: recording, the model's arithmetic, the disk, recovery. Both count
seconds of the processor.

``python benchmarks/bench_machines.py profile [dev]`` runs all machines on the file store with the
examples of a profile in two processes, as a test run on two cores does, and fails where that takes
longer than a minute: seconds of the wall, and of the processor, which other load does not change.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
import unittest
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from pytest_statepersist import machines
from pytest_statepersist.core.models import get_model
from pytest_statepersist.core.states import disk_of, window_at
from pytest_statepersist.explorer.workplace import workplace
from pytest_statepersist.machines import StoreMachine
from pytest_statepersist.machines.expected import Worlds
from pytest_statepersist.machines.lives import Life, put_on_disk
from pytest_statepersist.machines.reference_stores import (
    DatabaseAdapter,
    EncryptedFileStoreAdapter,
    FileStoreAdapter,
)
from pytest_statepersist.recorders.python import interposition

EXAMPLES = int(sys.argv[1]) if sys.argv[1:] and sys.argv[1].isdigit() else 40
BOUND = 60.0
STEPS = 15
STORES = {"RetentionMachine": DatabaseAdapter, "IntegrityMachine": EncryptedFileStoreAdapter}


def run(machine: type[StoreMachine], examples: int) -> float:
    how = settings(
        machine.TestCase.settings, max_examples=examples, stateful_step_count=STEPS,
        database=None, derandomize=True, phases=[Phase.generate],
    )  # fmt: skip
    machine.begin()
    started = _processor()
    try:
        run_state_machine_as_test(machine, settings=how)
    finally:
        machine.end()
    return _processor() - started


def without_crashes(machine: type[StoreMachine]) -> type[StoreMachine] | None:
    """Return the machine with its crash rules taken away, ``None`` where it has none."""
    rules = [name for name in ("power_loss", "kill") if hasattr(machine, name)]
    if not rules:
        return None
    changes = {**dict.fromkeys(rules), "then": lambda self, data: self.look()}
    calm: type[StoreMachine] = type("Calm", (machine,), changes)
    return calm


def whole_machines() -> None:
    print(f"{'machine':<20} {'examples':>8} {'seconds':>8} {'per s':>7}   without crashes")
    total = 0.0
    for name in machines.MACHINES:
        kind = getattr(machines, name)
        machine = kind.for_store(STORES.get(name, FileStoreAdapter))
        examples = max(5, round(EXAMPLES * kind.weight))
        try:
            seconds = run(machine, examples)
        except unittest.SkipTest as reason:
            print(f"{name:<20} skipped: {reason}")
            continue
        total += seconds
        calm = without_crashes(machine)
        rest = f"{examples / run(calm, examples):7.1f} per s" if calm else ""
        print(f"{name:<20} {examples:>8} {seconds:>8.1f} {examples / seconds:>7.1f}   {rest}")
    print(f"{'together':<20} {'':>8} {total:>8.1f}")


def one_crash(rounds: int = 40) -> None:
    spent: defaultdict[str, float] = defaultdict(float)
    adapter = FileStoreAdapter()

    def timed(step: str, function: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = function()
        spent[step] += time.process_time() - started
        return result

    interposition().install()
    with workplace(None) as place:
        directory, aside = Path(place.directory), Path(place.aside)
        for number in range(rounds):
            life = timed("start recording", lambda: Life(directory, Worlds()))
            store = timed("open (recovery)", lambda: adapter.open(directory))
            timed(
                "two saves", lambda s=store, n=number: [adapter.save(s, k, {"n": n}) for k in "ab"]
            )
            past = timed("stop and self-check", life.end)
            adapter.abandon(store)
            disk = timed("effects", lambda p=past: disk_of(p.trace, get_model("posix")))
            root = timed("window", lambda d=disk, p=past: window_at(d, len(p.trace)).root())
            timed("put on disk", lambda d=disk, r=root: put_on_disk(directory, aside, d, r.state()))
    interposition().uninstall()
    print(f"\none crash of the file store, {len(past.trace)} operations:")
    for step, seconds in spent.items():
        print(f"  {step:<22} {seconds / rounds * 1000:6.2f} ms")
    print(f"  {'together':<22} {sum(spent.values()) / rounds * 1000:6.2f} ms")


def one_of_profile(name: str) -> tuple[str, float, float, str]:
    """Run a machine as its test case does: (name, wall, processor, what became of it)."""
    logging.disable(logging.WARNING)
    kind = getattr(machines, name)
    case = kind.for_store(STORES.get(name, FileStoreAdapter)).TestCase
    outcome = unittest.TestResult()
    wall, before = time.perf_counter(), _processor()
    unittest.TestSuite([case("runTest")]).run(outcome)
    bad = [*outcome.failures, *outcome.errors]
    what = bad[0][1] if bad else f"{case.settings.max_examples} examples"
    return name, time.perf_counter() - wall, _processor() - before, what


def _processor() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def profile(name: str) -> bool:
    """Run all machines with the examples of a profile; say whether that was in time."""
    os.environ["STATEPERSIST_PROFILE"] = name
    started, processor, failed = time.perf_counter(), 0.0, False
    print(f"profile {name}, two processes:")
    with ProcessPoolExecutor(2) as pool:
        for machine, wall, used, what in pool.map(one_of_profile, machines.MACHINES):
            processor += used
            failed = failed or "examples" not in what
            print(f"  {machine:<20} {wall:6.1f} s, processor {used:6.1f} s, {what}")
    wall = time.perf_counter() - started
    print(f"  together {wall:.1f} s; processor {processor:.1f} s")
    return wall <= BOUND and not failed


if __name__ == "__main__":
    if sys.argv[1:2] == ["profile"]:
        sys.exit(not profile(sys.argv[2] if sys.argv[2:] else "dev"))
    # Damage is what Integrity is about; the stores need not tell us.
    logging.disable(logging.WARNING)
    whole_machines()
    one_crash()
