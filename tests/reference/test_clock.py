"""Clocks and schedulers: virtual time in order, real time in the background."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest

from pytest_statepersist.reference.clock import (
    ManualClock,
    ManualScheduler,
    SystemClock,
    ThreadScheduler,
)
from pytest_statepersist.reference.errors import ValidationError

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


def test_the_manual_clock_stands_still_and_can_be_moved() -> None:
    clock = ManualClock(NOON)
    assert clock.now() == clock.now() == NOON
    clock.advance(90)
    clock.sleep(10)
    assert (clock.now(), clock.monotonic()) == (NOON + timedelta(seconds=100), 100.0)


def test_a_jump_of_the_wall_clock_leaves_monotonic_time_alone() -> None:
    clock = ManualClock(NOON)
    clock.set(NOON - timedelta(days=1))
    assert (clock.now(), clock.monotonic()) == (NOON - timedelta(days=1), 0.0)


def test_naive_times_and_backward_advances_are_refused() -> None:
    with pytest.raises(ValidationError, match="time zone"):
        ManualClock(datetime(2025, 1, 1))
    with pytest.raises(ValidationError, match="backwards"):
        ManualClock().advance(-1)
    with pytest.raises(ValidationError, match="backwards"):
        ManualScheduler(ManualClock()).advance(-1)


def test_jobs_run_in_order_of_their_time_then_of_their_age() -> None:
    clock = ManualClock(NOON)
    scheduler = ManualScheduler(clock)
    seen: list[tuple[float, str]] = []

    def note(name: str):  # type: ignore[no-untyped-def]
        return lambda: seen.append((clock.monotonic(), name))

    scheduler.every(3, note("three"))
    scheduler.every(2, note("two"))
    scheduler.after(6, note("once"))
    assert scheduler.run_until(NOON + timedelta(seconds=6)) == 6
    assert seen == [
        (2, "two"),
        (3, "three"),
        (4, "two"),
        (6, "three"),
        (6, "two"),
        (6, "once"),
    ]
    assert clock.now() == NOON + timedelta(seconds=6)


def test_cancelled_jobs_do_not_run_even_when_cancelled_by_another_job() -> None:
    scheduler = ManualScheduler(ManualClock())
    seen: list[int] = []
    second = scheduler.after(2, lambda: seen.append(2))
    scheduler.after(1, second.cancel)
    assert scheduler.advance(5) == 1
    assert seen == []


def test_a_job_that_takes_longer_than_its_beat_skips_beats() -> None:
    clock = ManualClock()
    scheduler = ManualScheduler(clock)
    starts: list[float] = []

    def slow() -> None:
        starts.append(clock.monotonic())
        clock.sleep(25)

    scheduler.every(10, slow)
    scheduler.advance(60)
    assert starts == [10.0, 35.0, 60.0]


def test_a_failing_job_comes_out_and_keeps_its_beat() -> None:
    scheduler = ManualScheduler(ManualClock())
    runs: list[int] = []

    def fail() -> None:
        runs.append(1)
        raise RuntimeError("job")

    scheduler.every(1, fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="job"):
            scheduler.advance(1)
    assert len(runs) == 2


@pytest.mark.parametrize("interval", [0, -1, float("nan")])
def test_intervals_must_be_positive(interval: float) -> None:
    with pytest.raises(ValidationError):
        ManualScheduler(ManualClock()).every(interval, list)


def test_the_thread_scheduler_runs_repeats_cancels_and_stops() -> None:
    twice = threading.Event()
    count = 0

    def beat() -> None:
        nonlocal count
        count += 1
        if count >= 2:
            twice.set()

    with ThreadScheduler() as scheduler:
        handle = scheduler.every(0.005, beat)
        assert twice.wait(10)
        handle.cancel()
        once = threading.Event()
        scheduler.after(0, once.set)
        assert once.wait(10)
    final = count
    with pytest.raises(ValidationError, match="stopped"):
        scheduler.after(0, list)
    assert count == final


def test_the_thread_scheduler_reports_errors_and_goes_on() -> None:
    errors: list[Exception] = []
    done = threading.Event()

    def fail() -> None:
        raise RuntimeError("job")

    with ThreadScheduler(errors.append) as scheduler:
        scheduler.after(0, fail)
        scheduler.after(0.001, done.set)
        assert done.wait(10)
    assert [str(error) for error in errors] == ["job"]


def test_a_job_may_stop_its_own_scheduler() -> None:
    scheduler = ThreadScheduler()
    stopped = threading.Event()
    scheduler.after(0, lambda: (scheduler.stop(), stopped.set()))
    assert stopped.wait(10)
    scheduler.stop()


def test_the_system_clock_is_aware_and_moves() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    clock.sleep(0.001)
    assert clock.monotonic() > before
    assert clock.now().utcoffset() == timedelta(0)
