"""Threads on a clock that they were handed: one order, and no hang without a word."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from pytest_statepersist.clock import (
    ClockClosed,
    ClockDeadlock,
    StateClock,
)
from tests.clock.common import DAY, START, Real


def test_a_thread_sleeps_until_time_has_passed_its_deadline(clock: StateClock) -> None:
    log: list[float] = []

    def saver() -> None:
        while True:
            clock.sleep(30)
            log.append(clock.monotonic())

    clock.spawn(saver, name="saver")
    clock.settle()
    (waiting,) = clock.waiting()
    assert (waiting.thread, waiting.what, waiting.until) == ("saver", "a sleep", 1030)
    clock.advance(29.999999)
    assert log == []
    clock.advance(0.000001)
    assert log == [1030]
    clock.advance(timedelta(minutes=5))
    assert log == [1030 + 30 * n for n in range(11)]


def test_threads_wake_in_one_order(clock: StateClock) -> None:
    """By deadline, then callbacks first, then threads as they were started: run after run."""
    for _ in range(20):
        log: list[str] = []

        def worker(name: str, naps: list[float], log: list[str] = log) -> None:
            for nap in naps:
                clock.sleep(nap)
                log.append(name)

        threads = [
            clock.spawn(worker, "a", [3, 3, 3]),
            clock.spawn(worker, "b", [1, 2, 3]),
            clock.spawn(worker, "c", [3]),
        ]
        clock.after(3, lambda log=log: log.append("callback"))  # type: ignore[misc]
        clock.advance(9)
        assert log == ["b", "callback", "a", "b", "c", "a", "b", "a"]
        clock.join(*threads)


def test_a_woken_thread_sees_exactly_its_deadline(clock: StateClock) -> None:
    seen: list[float] = []

    def sleeper() -> None:
        clock.sleep(10)
        Real.sleep(0.02)  # time must wait for what the thread still does
        seen.append(clock.monotonic())
        clock.sleep(5)
        seen.append(clock.monotonic())

    clock.join(clock.spawn(sleeper))
    assert seen == [1010, 1015]
    clock.advance(100)
    assert seen == [1010, 1015]


def test_join_lets_time_pass(clock: StateClock) -> None:
    clock.join(clock.spawn(clock.sleep, 3600), clock.spawn(clock.sleep, 60))
    assert clock.monotonic() == 4600


def test_a_deadlock_is_told_with_names(clock: StateClock) -> None:
    sleeper = clock.spawn(clock.sleep, 10, name="sleeper")
    with clock.frozen(monotonic=True), pytest.raises(ClockDeadlock) as caught:
        clock.sleep(1)
    text = str(caught.value)
    assert "'sleeper' waits for a sleep" in text
    assert "(drives the clock) waits for a sleep" in text
    assert "Usual causes" in text
    clock.join(sleeper)


def test_a_wait_that_periodic_timers_keep_alive_ends_too(clock: StateClock) -> None:
    frozen = clock.peer()
    frozen.freeze(monotonic=True)
    clock.every(DAY, lambda: None)
    with pytest.raises(ClockDeadlock, match="days of virtual time"):
        frozen.sleep(1)


def test_a_thread_blocked_on_a_bare_lock_does_not_stop_time() -> None:
    with StateClock(START, settle_s=0.1) as clock:
        lock, log = threading.Lock(), list[str]()

        def holder() -> None:
            with lock:
                clock.sleep(10)
            log.append("holder")
            clock.sleep(1)

        def waiter() -> None:
            clock.sleep(5)
            with lock:
                log.append("waiter")
                clock.sleep(1)

        threads = [clock.spawn(holder, name="h"), clock.spawn(waiter, name="w")]
        clock.advance(7)
        waits = {row.thread: row.what for row in clock.waiting()}
        assert waits == {"h": "a sleep", "w": "something that the clock cannot see"}
        clock.join(*threads)
        assert sorted(log) == ["holder", "waiter"]
        # When the waiter gets the lock at 10, time may have moved on to 11 before it sleeps.
        assert clock.monotonic() in (1011, 1012)


def test_another_thread_may_move_time(clock: StateClock) -> None:
    """Four threads advance at once; none loses a movement, and none waits for another."""
    fired: list[float] = []
    clock.every(1, lambda: fired.append(clock.monotonic()))

    def move() -> None:
        for _ in range(50):
            clock.advance(1)

    threads = [clock.spawn(move) for _ in range(4)]
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert clock.monotonic() == 1200
    assert fired == [1001 + n for n in range(200)]


def test_drive_hands_the_wheel_over(clock: StateClock) -> None:
    def driver() -> None:
        clock.drive()
        clock.sleep(3600)

    thread = threading.Thread(target=driver)
    thread.start()
    thread.join(20)
    assert clock.monotonic() == 4600
    clock.sleep(1)  # the driver is gone, so that this thread takes over
    assert clock.monotonic() == 4601


def test_closing_ends_the_sleeps_of_other_threads() -> None:
    ended: list[str] = []
    clock = StateClock(START)

    def sleeper() -> None:
        try:
            clock.sleep(10)
        except ClockClosed as error:
            ended.append(str(error))

    thread = clock.spawn(sleeper)
    clock.settle()
    clock.close()
    thread.join(20)
    assert "stop the thread" in ended[0]
    with pytest.raises(ClockClosed):
        clock.advance(1)
