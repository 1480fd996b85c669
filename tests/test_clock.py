"""The controllable clock: what it shows, in which order things happen, and that it is undone."""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime as dt
import importlib
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic as bound_monotonic
from time import sleep as bound_sleep
from time import time as bound_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.clock import (
    ClockClosed,
    ClockDeadlock,
    DatetimeAdapter,
    DstChange,
    StateClock,
)
from pytest_statepersist.errors import UserError
from pytest_statepersist.reference.clock import Clock, Scheduler

START = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
DAY = 86_400.0
ADAPTERS = [DatetimeAdapter.TIME_MACHINE, DatetimeAdapter.FREEZEGUN]


class Real:
    """Real time: names of a module would be put on the clock, attributes of a class are not."""

    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)


@pytest.fixture
def clock() -> Iterator[StateClock]:
    with StateClock(START) as clock:
        yield clock


def waits_for(condition: Callable[[], bool]) -> None:
    """Wait in real time for another thread; for what no virtual time can tell."""
    end = Real.monotonic() + 10
    while not condition():
        assert Real.monotonic() < end, "another thread never came so far"
        Real.sleep(0.002)


# --- reading and moving -----------------------------------------------------------------------


def test_nothing_moves_by_itself(clock: StateClock) -> None:
    before = clock.now(), clock.monotonic()
    Real.sleep(0.01)
    assert (clock.now(), clock.monotonic()) == before == (START, 1000.0)


def test_every_view_shows_the_same_moment(clock: StateClock) -> None:
    clock.advance(12.345678)
    assert clock.now() == START + timedelta(seconds=12.345678)
    assert clock.time_ns() == round(clock.now().timestamp() * 1e6) * 1000
    assert clock.time() == clock.now().timestamp()
    assert clock.monotonic_ns() == 1_012_345_678_000
    assert clock.local_now() == clock.now()


def test_it_is_the_clock_that_the_reference_implementation_asks_for(clock: StateClock) -> None:
    as_clock: Clock = clock
    as_scheduler: Scheduler = clock  # what mypy checks
    calls: list[float] = []
    handle = as_scheduler.every(30, lambda: calls.append(as_clock.monotonic()))
    as_scheduler.after(45, lambda: calls.append(-1))
    as_clock.sleep(100)
    handle.cancel()
    as_clock.sleep(100)
    assert calls == [1030, -1, 1060, 1090]
    assert as_clock.now().tzinfo is UTC


def test_advance_moves_both_and_step_the_wall_only(clock: StateClock) -> None:
    clock.advance(timedelta(days=30))
    assert (clock.now(), clock.monotonic()) == (START + timedelta(days=30), 1000 + 30 * DAY)
    clock.step(-3600)
    assert (clock.now(), clock.monotonic()) == (
        START + timedelta(days=30, hours=-1),
        1000 + 30 * DAY,
    )
    clock.step_back(timedelta(hours=1))
    clock.set_wall(datetime(1999, 12, 31, tzinfo=UTC))
    assert (clock.now().year, clock.monotonic()) == (1999, 1000 + 30 * DAY)


def test_a_step_fires_no_timer(clock: StateClock) -> None:
    fired: list[int] = []
    clock.after(10, lambda: fired.append(1))
    clock.step(DAY)
    assert fired == []
    clock.step(-2 * DAY)
    clock.advance(10)
    assert fired == [1]


def test_advance_to(clock: StateClock) -> None:
    clock.advance_to(START + timedelta(hours=5))
    assert clock.monotonic() == 1000 + 5 * 3600
    with pytest.raises(UserError, match="already later"):
        clock.advance_to(START)
    with clock.frozen(), pytest.raises(UserError, match="frozen"):
        clock.advance_to(START + timedelta(hours=6))


def test_a_frozen_wall_lets_timers_run(clock: StateClock) -> None:
    fired: list[datetime] = []
    clock.every(10, lambda: fired.append(clock.now()))
    with clock.frozen():
        clock.advance(25)
        assert (clock.now(), clock.monotonic()) == (START, 1025)
    assert fired == [START, START]
    clock.advance(5)
    assert clock.now() == START + timedelta(seconds=5)
    with pytest.raises(UserError, match="not frozen"):
        clock.thaw()


def test_frozen_monotonic_time_lets_no_timer_run(clock: StateClock) -> None:
    fired: list[float] = []
    clock.after(10, lambda: fired.append(clock.monotonic()))
    with clock.frozen(monotonic=True):
        clock.advance(3600)
        assert fired == []
        with pytest.raises(ClockDeadlock, match="frozen monotonic"):
            clock.sleep(1)
    clock.advance(9)
    assert fired == []
    clock.advance(1)
    assert fired == [1010]


def test_freezes_nest(clock: StateClock) -> None:
    with clock.frozen(monotonic=True):
        with clock.frozen():
            clock.advance(1)
            # The inner freeze asked for less, but what stands already does not start again.
            assert clock.monotonic() == 1000
        clock.advance(1)
        assert (clock.now(), clock.monotonic()) == (START, 1000)
    clock.advance(1)
    assert (clock.now(), clock.monotonic()) == (START + timedelta(seconds=1), 1001)


def test_drift(clock: StateClock) -> None:
    clock.drift(wall_ppm=100)
    clock.advance(DAY)
    assert clock.now() == START + timedelta(days=1, seconds=8.64)
    assert clock.monotonic() == 1000 + DAY
    clock.drift(wall_ppm=-100, monotonic_ppm=1000)
    fired: list[float] = []
    clock.after(1001, lambda: fired.append(clock.monotonic()))
    clock.advance(999.999)
    assert fired == []
    clock.advance(0.001)
    assert fired == [1000 + DAY + 1001]
    with pytest.raises(UserError, match="stands or runs back"):
        clock.drift(wall_ppm=-1_000_000)


@given(st.lists(st.tuples(st.sampled_from(["advance", "step"]), st.floats(-1e7, 1e7)), max_size=20))
@settings(max_examples=50, deadline=None)
def test_wall_and_monotonic_are_the_sums_of_their_moves(moves: list[tuple[str, float]]) -> None:
    clock = StateClock(START)
    wall = monotonic = 0
    for what, by in moves:
        delta = timedelta(seconds=abs(by) if what == "advance" else by)
        micro = delta // timedelta(microseconds=1)
        if what == "advance":
            clock.advance(delta)
            monotonic += micro
        else:
            clock.step(delta)
        wall += micro
        assert clock.now() == START + timedelta(microseconds=wall)
        assert clock.monotonic_ns() == (1_000_000_000 + monotonic) * 1000


def test_durations_round_up_to_a_microsecond_but_not_for_float_noise(clock: StateClock) -> None:
    clock.advance(0.1 + 0.2)
    assert clock.monotonic_ns() == 1_000_300_000_000
    clock.advance(1e-9)
    assert clock.monotonic_ns() == 1_000_300_001_000


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "10", None, True])
def test_what_is_no_duration_is_an_error(clock: StateClock, bad: Any) -> None:
    for verb in (clock.advance, clock.step, clock.sleep):
        with pytest.raises(UserError):
            verb(bad)


def test_time_cannot_pass_backwards(clock: StateClock) -> None:
    with pytest.raises(UserError, match=r"step\(-seconds\)"):
        clock.advance(-1)
    with pytest.raises(UserError, match="cannot sleep"):
        clock.sleep(-1)
    with pytest.raises(UserError, match="must be positive"):
        clock.every(0, print)
    with pytest.raises(UserError, match="seconds ago"):
        clock.after(-1, print)


def test_a_naive_moment_is_an_error(clock: StateClock) -> None:
    naive = datetime(2026, 1, 1)
    for make in (lambda: StateClock(naive), lambda: clock.set_wall(naive)):
        with pytest.raises(UserError, match="no time zone"):
            make()


def test_importing_it_costs_none_of_the_adapters() -> None:
    code = (
        "import sys, pytest_statepersist.clock, pytest_statepersist.tamper, "
        "pytest_statepersist.leaks\n"
        "heavy = {'asyncio', 'freezegun', 'time_machine', 'pytest', 'hypothesis', 'cryptography'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"


# --- local time -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "start", "at", "jump"),
    [
        ("Europe/Berlin", "2026-01-01", "2026-03-29T01:00", 3600),
        ("Europe/Berlin", "2026-06-01", "2026-10-25T01:00", -3600),
        ("America/New_York", "2026-01-01", "2026-03-08T07:00", 3600),
        ("Australia/Lord_Howe", "2026-01-01", "2026-04-04T15:00", -1800),
        ("Africa/Casablanca", "2026-01-01", "2026-02-15T02:00", -3600),
    ],
)
def test_leap_over_a_dst_change(zone: str, start: str, at: str, jump: int) -> None:
    clock = StateClock(datetime.fromisoformat(start).replace(tzinfo=UTC), zone=zone)
    seen: list[datetime] = []
    change = clock.next_dst_change()
    clock.after(change.at - timedelta(seconds=1) - clock.now(), lambda: seen.append(clock.now()))
    before = clock.monotonic() - clock.time()
    moment = datetime.fromisoformat(at).replace(tzinfo=UTC)
    assert clock.leap_dst() == DstChange(zone, moment, timedelta(seconds=jump)) == change
    assert clock.now() == moment + timedelta(seconds=1)
    assert seen == [moment - timedelta(seconds=1)]
    # Local time has jumped; neither UTC nor monotonic time has.
    gained = clock.local_now().replace(tzinfo=None) - seen[0].astimezone(clock.zone).replace(
        tzinfo=None
    )
    assert gained == timedelta(seconds=2 + jump)
    assert clock.monotonic() - clock.time() == pytest.approx(before)


def test_a_zone_without_changes_is_an_error(clock: StateClock) -> None:
    with pytest.raises(UserError, match="does not jump"):
        clock.leap_dst()


def test_an_unknown_zone_is_an_error() -> None:
    with pytest.raises(UserError, match="IANA"):
        StateClock(zone="Europe/Atlantis")


# --- timers -----------------------------------------------------------------------------------


def test_thirty_days_of_a_thirty_second_timer(clock: StateClock) -> None:
    count = 0

    def beat() -> None:
        nonlocal count
        count += 1

    clock.every(30, beat)
    clock.advance(timedelta(days=30))
    assert count == 86_400
    assert clock.now() == START + timedelta(days=30)


def test_timers_fire_in_order_and_at_their_time(clock: StateClock) -> None:
    log: list[tuple[str, float]] = []
    for name, delay in (("c", 3), ("a", 1), ("b", 2), ("a2", 1)):
        clock.after(delay, lambda name=name: log.append((name, clock.monotonic())))  # type: ignore[misc]
    clock.advance(10)
    assert log == [("a", 1001), ("a2", 1001), ("b", 1002), ("c", 1003)]
    assert clock.monotonic() == 1010


def test_a_timer_may_set_timers_and_cancel_itself(clock: StateClock) -> None:
    log: list[float] = []

    def beat() -> None:
        log.append(clock.monotonic())
        if len(log) == 3:
            timer.cancel()
            clock.after(0.5, lambda: log.append(-clock.monotonic()))

    timer = clock.every(1, beat)
    clock.advance(10)
    assert log == [1001, 1002, 1003, -1003.5]
    assert not timer.active
    timer.cancel()


def test_a_timer_that_sleeps_skips_the_beats_it_missed(clock: StateClock) -> None:
    log: list[float] = []

    def slow() -> None:
        log.append(clock.monotonic())
        clock.sleep(25)

    clock.every(10, slow)
    clock.advance(60)
    assert log == [1010, 1040]
    assert clock.monotonic() == 1065  # the last call began at 1040 and slept


def test_an_exception_of_a_timer_comes_out_where_time_was_moved(clock: StateClock) -> None:
    def broken() -> None:
        raise OSError("disk full")

    clock.every(10, broken)
    for expected in (1010, 1020):
        with pytest.raises(OSError, match="disk full"):
            clock.advance(100)
        assert clock.monotonic() == expected


def test_run_until(clock: StateClock) -> None:
    count: list[int] = []
    clock.every(30, lambda: count.append(1))
    assert clock.run_until(lambda: len(count) == 3, limit=DAY)
    assert clock.monotonic() == 1090
    assert not clock.run_until(lambda: False, limit=100)
    assert clock.monotonic() == 1190


# --- other processes --------------------------------------------------------------------------


def test_a_peer_is_skewed_but_in_the_same_time(clock: StateClock) -> None:
    peer = clock.peer(skew=-90)
    fired: list[str] = []
    peer.after(10, lambda: fired.append("peer"))
    clock.after(5, lambda: fired.append("own"))
    clock.advance(10)
    assert fired == ["own", "peer"]
    assert clock.now() - peer.now() == timedelta(seconds=90)
    peer.drift(wall_ppm=1000)
    peer.advance(1000)
    assert clock.now() - peer.now() == timedelta(seconds=89)
    peer.step(3600)
    assert clock.now() == START + timedelta(seconds=1010)


def test_a_clock_is_handed_to_a_child_process(clock: StateClock) -> None:
    clock.advance(1.5)
    code = (
        "from pytest_statepersist.clock import StateClock\n"
        "import time\n"
        "clock = StateClock.from_environ()\n"
        "with clock.installed():\n"
        "    time.sleep(86400)\n"
        "    print(clock.now().isoformat(), clock.monotonic(), time.time() == clock.time())\n"
    )
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root, **clock.environ(skew=60)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    expected = START + timedelta(days=1, seconds=61.5)
    assert done.stdout.split() == [expected.isoformat(), "87401.5", "True"]


@pytest.mark.parametrize("text", [None, "", "{}", "[1]", '{"wall_us": 1e99}'])
def test_a_bad_hand_over_is_an_error(text: str | None) -> None:
    with pytest.raises(UserError, match="STATEPERSIST_CLOCK"):
        StateClock.from_environ({} if text is None else {"STATEPERSIST_CLOCK": text})


# --- threads, with the clock handed over ------------------------------------------------------


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


# --- adapters: time and datetime --------------------------------------------------------------


def originals() -> dict[str, Any]:
    names = [
        "time",
        "time_ns",
        "monotonic",
        "monotonic_ns",
        "perf_counter",
        "sleep",
        "localtime",
        "gmtime",
        "ctime",
    ]
    found = {name: getattr(time, name) for name in names}
    found |= {"datetime": dt.datetime, "Thread.start": threading.Thread.start}
    found |= {"join": threading.Thread.join, "wait": threading.Condition.wait}
    found |= {"SimpleQueue": queue.SimpleQueue, "queue.time": queue.time}  # type: ignore[attr-defined]
    found |= {"stat": os.stat, "TZ": os.environ.get("TZ"), "tzname": time.tzname}
    found |= {"bound": (bound_monotonic, bound_sleep, bound_time)}
    return found


@pytest.fixture(autouse=True)
def everything_is_put_back() -> Iterator[None]:
    before = originals()
    yield
    assert originals() == before
    assert abs(time.monotonic() - Real.monotonic()) < 5


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_datetime_and_time_follow(clock: StateClock, adapter: DatetimeAdapter) -> None:
    with clock.installed(datetime=adapter):
        for advance, step in ((0.0, 0.0), (0.25, 0.0), (0.0, -7 * DAY)):
            clock.advance(advance)
            clock.step(step)
            assert dt.datetime.now(UTC) == datetime.now(UTC) == clock.now()
            assert datetime.now() == clock.now().replace(tzinfo=None)
            assert dt.date.today() == clock.now().date()
            assert time.time() == bound_time() == clock.time()
            assert time.time_ns() == clock.time_ns()
            assert time.monotonic() == bound_monotonic() == time.perf_counter()
            assert time.monotonic() == clock.monotonic()
            assert time.clock_gettime(time.CLOCK_MONOTONIC) == clock.monotonic()
            assert time.clock_gettime_ns(time.CLOCK_REALTIME) == clock.time_ns()
            assert time.gmtime()[:6] == time.localtime()[:6] == clock.now().timetuple()[:6]
            assert time.strftime("%Y-%m-%dT%H:%M:%S") == f"{clock.now():%Y-%m-%dT%H:%M:%S}"
            assert time.ctime() == time.asctime() == f"{clock.now():%a %b %e %H:%M:%S %Y}"
        assert time.gmtime(0).tm_year == 1970
        assert time.strftime("%Y", time.gmtime(0)) == "1970"
    assert abs(datetime.now(UTC).timestamp() - time.time()) < 5


@pytest.mark.parametrize("adapter", [*ADAPTERS, DatetimeAdapter.NONE])
def test_sleeping_takes_no_real_time(clock: StateClock, adapter: DatetimeAdapter) -> None:
    begun = Real.monotonic()
    with clock.installed(datetime=adapter):
        time.sleep(30 * DAY)
        bound_sleep(0.5)
        assert clock.monotonic() == 1000.5 + 30 * DAY
        assert time.time() == clock.time()
        with pytest.raises(ValueError, match="non-negative"):
            time.sleep(-1)
    assert Real.monotonic() - begun < 30


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_other_threads_see_the_same_time(clock: StateClock, adapter: DatetimeAdapter) -> None:
    """freezegun alone leaves `time.time` real below a frame of `threading`."""
    seen: list[Any] = []

    def look() -> None:
        seen.append((time.time(), time.monotonic(), datetime.now(UTC)))

    with clock.installed(datetime=adapter):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert seen == [(clock.time(), clock.monotonic(), clock.now())]


def test_local_time_leaps_in_naive_code() -> None:
    clock = StateClock(datetime(2026, 3, 28, tzinfo=UTC), zone="Europe/Berlin")
    with clock.installed(datetime=DatetimeAdapter.TIME_MACHINE):
        clock.advance_to(clock.next_dst_change().at - timedelta(seconds=1))
        assert datetime.now() == datetime(2026, 3, 29, 1, 59, 59)
        assert time.localtime()[3:6] == (1, 59, 59)
        clock.advance(1)
        assert datetime.now() == datetime(2026, 3, 29, 3, 0, 0)
        assert time.localtime()[3:6] == (3, 0, 0)
        clock.set_zone("Asia/Tokyo")
        assert datetime.now() == datetime(2026, 3, 29, 10, 0, 0)


def test_freezegun_refuses_what_it_would_get_wrong() -> None:
    clock = StateClock(START, zone="Europe/Berlin")
    with (
        pytest.raises(UserError, match="aware datetimes too"),
        clock.installed(datetime=DatetimeAdapter.FREEZEGUN),
    ):
        raise AssertionError("unreachable")


def test_inside_a_freeze_freezegun_is_chosen(clock: StateClock) -> None:
    import freezegun

    with freezegun.freeze_time("2001-01-01"):
        with clock.installed():
            assert datetime.now(UTC) == clock.now()
            clock.advance(60)
            assert datetime.now(UTC) == clock.now()
            assert time.monotonic() == 1060
        assert dt.datetime.now().year == 2001
        with (
            pytest.raises(UserError, match="while freezegun is active"),
            clock.installed(datetime=DatetimeAdapter.TIME_MACHINE),
        ):
            raise AssertionError("unreachable")


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_blocks_nest_and_are_undone_when_they_raise(
    clock: StateClock, adapter: DatetimeAdapter
) -> None:
    peer = clock.peer(skew=3600)
    with clock.installed(datetime=adapter):
        with pytest.raises(OSError, match="inside"), peer.installed(datetime=adapter):
            assert datetime.now(UTC) == peer.now()
            assert time.monotonic() == bound_monotonic() == peer.monotonic()
            time.sleep(10)
            raise OSError("inside")
        assert datetime.now(UTC) == clock.now() == START + timedelta(seconds=10)
        assert time.monotonic() == bound_monotonic() == clock.monotonic() == 1010


def test_a_kept_replacement_is_real_after_the_block(clock: StateClock) -> None:
    with clock.installed():
        kept = time.monotonic
        assert kept() == 1000
    assert abs(kept() - Real.monotonic()) < 5


def test_a_module_imported_inside_gets_the_real_functions_back(
    clock: StateClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_module_of_test_clock.py").write_text("from time import monotonic, sleep\n")
    monkeypatch.syspath_prepend(tmp_path)
    with clock.installed():
        module = importlib.import_module("late_module_of_test_clock")
        assert module.monotonic() == 1000
    assert module.monotonic is Real.monotonic
    assert module.sleep is Real.sleep
    del sys.modules["late_module_of_test_clock"]


def test_named_modules_stay_in_real_time(
    clock: StateClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("waits_for_another_process")
    exec("import time\ndef now(): return time.monotonic()", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with clock.installed(real=["waits_for_another_process"]):
        assert abs(module.now() - Real.monotonic()) < 5
    with clock.installed():
        assert module.now() == 1000


def test_child_processes_are_waited_for_in_real_time(clock: StateClock) -> None:
    with clock.installed():
        done = subprocess.run(
            [sys.executable, "-c", "import time; time.sleep(0.1); print('done')"],
            capture_output=True,
            timeout=60,
            check=True,
        )
    assert done.stdout.strip() == b"done"
    assert clock.monotonic() == 1000


# --- adapters: threading ----------------------------------------------------------------------


class AutoSave:
    """The background saver that every app has: it knows nothing of virtual time."""

    def __init__(self, interval: float) -> None:
        self.saves: list[float] = []
        self.interval = interval
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, name="autosave")

    def run(self) -> None:
        while not self.stopping.wait(self.interval):
            self.saves.append(time.monotonic())

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join()


def test_a_background_saver_runs_in_virtual_time(clock: StateClock) -> None:
    with clock.installed():
        saver = AutoSave(30)
        saver.thread.start()
        clock.advance(95)
        assert saver.saves == [1030, 1060, 1090]
        assert [(w.thread, w.until) for w in clock.waiting()] == [("autosave", 1120)]
        time.sleep(25)
        assert saver.saves[-1] == 1120
        saver.stop()
        assert clock.monotonic() == 1120


def test_two_background_savers_keep_their_order(clock: StateClock) -> None:
    logs = []
    for _ in range(10):
        with clock.installed():
            log: list[tuple[str, float]] = []
            begun, stop = time.monotonic(), threading.Event()

            def run(
                name: str,
                every: float,
                log: list[tuple[str, float]] = log,
                stop: threading.Event = stop,
                begun: float = begun,
            ) -> None:
                while not stop.wait(every):
                    log.append((name, time.monotonic() - begun))

            threads = [threading.Thread(target=run, args=args) for args in (("a", 20), ("b", 30))]
            for thread in threads:
                thread.start()
            clock.advance(60)
            stop.set()
            for thread in threads:
                thread.join()
            logs.append(log)
    assert logs == [[("a", 20), ("b", 30), ("a", 40), ("a", 60), ("b", 60)]] * 10


def test_everything_that_blocks_in_threading_is_virtual(clock: StateClock) -> None:
    with clock.installed():
        began = time.monotonic()

        def passed() -> float:
            nonlocal began
            now = time.monotonic()
            gone, began = now - began, now
            return gone

        assert not threading.Event().wait(10)
        assert passed() == 10
        condition = threading.Condition()
        with condition:
            assert not condition.wait_for(lambda: False, 20)
        assert passed() == 20
        assert not threading.Semaphore(0).acquire(timeout=30)
        assert passed() == 30
        with pytest.raises(queue.Empty):
            queue.Queue[int]().get(timeout=40)
        assert passed() == 40
        with pytest.raises(queue.Empty):
            queue.SimpleQueue[int]().get(timeout=50)
        assert passed() == 50
        fired: list[float] = []
        timer = threading.Timer(60, lambda: fired.append(time.monotonic()))
        timer.start()
        timer.join()
        assert (passed(), fired) == (60, [time.monotonic()])
        thread = threading.Thread(target=time.sleep, args=(70,))
        thread.start()
        thread.join(5)
        assert thread.is_alive()
        assert passed() == 5
        thread.join()
        assert passed() == 65
        with concurrent.futures.ThreadPoolExecutor(2) as pool:

            def nap(seconds: int) -> int:
                time.sleep(seconds)
                return seconds

            done = list(pool.map(nap, [10, 30, 20]))
            assert (done, passed()) == ([10, 30, 20], 30)
            with pytest.raises(concurrent.futures.TimeoutError):
                pool.submit(time.sleep, 100).result(timeout=40)
            assert passed() == 40
        assert passed() == 60


def test_producer_and_consumer_pass_on_in_order(clock: StateClock) -> None:
    with clock.installed():
        channel: queue.Queue[int | None] = queue.Queue(maxsize=1)
        got: list[tuple[int, float]] = []

        def produce() -> None:
            for number in range(5):
                time.sleep(10)
                channel.put(number)
            channel.put(None)

        def consume() -> None:
            while (item := channel.get()) is not None:
                got.append((item, time.monotonic()))

        threads = [threading.Thread(target=t) for t in (consume, produce)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [(n, 1010 + 10 * n) for n in range(5)]


def test_a_deadlock_in_patched_code_is_told(clock: StateClock) -> None:
    with clock.installed():
        gate = threading.Event()
        thread = threading.Thread(target=gate.wait, name="stuck")
        thread.start()
        with pytest.raises(ClockDeadlock) as caught:
            thread.join()
        assert "drives the clock) waits for the end of thread 'stuck'" in str(caught.value)
        assert "'stuck' waits for a condition" in str(caught.value)
        gate.set()
        thread.join()


def test_a_thread_that_the_clock_does_not_know_may_end_a_wait(clock: StateClock) -> None:
    event = threading.Event()
    go = threading.Lock()
    go.acquire()

    def stranger() -> None:
        go.acquire()
        Real.sleep(0.1)
        event.set()

    thread = threading.Thread(target=stranger)
    thread.start()
    with clock.installed():
        go.release()
        assert event.wait()
        assert clock.monotonic() == 1000
    thread.join()


def test_waits_that_outlive_the_block_go_on_in_real_time(clock: StateClock) -> None:
    woken: list[str] = []
    release = threading.Event()

    def sleeper() -> None:
        time.sleep(0.2)
        woken.append("sleeper")

    def waiter() -> None:
        woken.append(f"waiter {release.wait(3600)}")

    def patient() -> None:
        woken.append(f"patient {release.wait()}")

    threads = [
        threading.Thread(target=target, daemon=True) for target in (sleeper, waiter, patient)
    ]
    with clock.installed():
        for thread in threads:
            thread.start()
        clock.settle()
        assert len(clock.waiting()) == 3
    waits_for(lambda: woken == ["sleeper"])
    release.set()
    for thread in threads:
        thread.join(20)
    assert sorted(woken) == ["patient True", "sleeper", "waiter True"]


def test_a_notify_is_never_lost(clock: StateClock) -> None:
    """A waiter that is notified at the very moment of its deadline gets one or the other."""
    with clock.installed():
        for _ in range(50):
            condition, results = threading.Condition(), list[bool]()

            def wait(condition: Any = condition, results: list[bool] = results) -> None:
                with condition:
                    results.append(condition.wait(10))

            def notify(condition: Any = condition) -> None:
                time.sleep(10)
                with condition:
                    condition.notify()

            threads = [threading.Thread(target=t) for t in (notify, wait)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert results == [True]  # `notify` was started first, so it runs first


def test_misuse_of_threads_raises_as_ever(clock: StateClock) -> None:
    with clock.installed():
        with pytest.raises(RuntimeError, match="un-acquired"):
            threading.Condition().wait(1)
        thread = threading.Thread(target=lambda: None)
        with pytest.raises(RuntimeError, match="before it is started"):
            thread.join()
        thread.start()
        with pytest.raises(RuntimeError, match="once"):
            thread.start()
        thread.join()
        with pytest.raises(RuntimeError, match="current thread"):
            threading.current_thread().join()


# --- adapters: asyncio ------------------------------------------------------------------------


def test_loops_run_in_virtual_time(clock: StateClock) -> None:
    log: list[tuple[str, float]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert loop.time() == clock.monotonic()
        loop.call_later(45, lambda: log.append(("later", loop.time())))
        await asyncio.gather(nap("a", 30), nap("b", 10), nap("c", 30 * DAY))
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(60):
                await asyncio.Event().wait()

    async def nap(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        log.append((name, asyncio.get_running_loop().time()))

    with clock.installed():
        asyncio.run(main())
    end = 1000 + 30 * DAY
    assert log == [("b", 1010), ("a", 1030), ("later", 1045), ("c", end)]
    assert clock.monotonic() == end + 60


def test_a_loop_that_is_running_already_is_covered(clock: StateClock) -> None:
    async def main() -> float:
        with clock.installed():
            await asyncio.sleep(3600)
            moved = clock.monotonic()
        await asyncio.sleep(0.001)
        return moved

    assert asyncio.run(main()) == 4600
    assert clock.monotonic() == 4600


def test_loop_timers_and_clock_timers_share_one_order(clock: StateClock) -> None:
    log: list[str] = []

    async def main() -> None:
        clock.after(20, lambda: log.append("clock"))
        loop = asyncio.get_running_loop()
        loop.call_later(10, log.append, "loop 1")
        loop.call_later(30, log.append, "loop 2")
        await asyncio.sleep(40)

    with clock.installed():
        asyncio.run(main())
    assert log == ["loop 1", "clock", "loop 2"]


def test_work_in_an_executor_is_waited_for(clock: StateClock) -> None:
    async def main() -> tuple[str, float]:
        def work() -> str:
            Real.sleep(0.1)
            time.sleep(20)
            return "done"

        result = await asyncio.wait_for(asyncio.to_thread(work), 30)
        return result, time.monotonic()

    with clock.installed():
        assert asyncio.run(main()) == ("done", 1020)


def test_real_sockets_still_work(clock: StateClock) -> None:
    async def main() -> bytes:
        ours, theirs = socket.socketpair()
        theirs_reader, theirs_writer = await asyncio.open_connection(sock=theirs)
        reader, writer = await asyncio.open_connection(sock=ours)

        async def echo() -> None:
            theirs_writer.write(await theirs_reader.readexactly(5))
            await theirs_writer.drain()

        task = asyncio.create_task(echo())
        writer.write(b"hello")
        answer = await asyncio.wait_for(reader.readexactly(5), 30)
        await task
        for each in (writer, theirs_writer):
            each.close()
            await each.wait_closed()
        return answer

    with clock.installed():
        assert asyncio.run(main()) == b"hello"
    assert clock.monotonic() == 1000


def test_a_loop_in_another_thread_follows_the_driver(clock: StateClock) -> None:
    log: list[float] = []

    async def beat() -> None:
        for _ in range(3):
            await asyncio.sleep(10)
            log.append(time.monotonic())

    with clock.installed():
        thread = threading.Thread(target=lambda: asyncio.run(beat()), name="loop")
        thread.start()
        clock.advance(15)
        assert log == [1010]
        assert [w.what for w in clock.waiting()] == ["an event loop's next event"]
        clock.advance(15)
        assert log == [1010, 1020, 1030]
        thread.join()


def test_a_loop_that_waits_for_nothing_is_a_deadlock(clock: StateClock) -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with clock.installed(), pytest.raises(ClockDeadlock, match="event loop"):
        asyncio.run(main())


def test_without_asyncio_loops_are_real(clock: StateClock) -> None:
    async def main() -> float:
        await asyncio.sleep(0.01)
        return asyncio.get_running_loop().time()

    with clock.installed(asyncio=False):
        assert abs(asyncio.run(main()) - Real.monotonic()) < 5
    assert clock.monotonic() == 1000


# --- file times -------------------------------------------------------------------------------


def mtime(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


@pytest.mark.parametrize("patched", [False, True])
def test_file_times_follow(clock: StateClock, tmp_path: Path, patched: bool) -> None:
    (tmp_path / "before").write_bytes(b"")
    before = (tmp_path / "before").stat().st_mtime_ns
    (tmp_path / "sub").mkdir()

    def block() -> None:
        with clock.mtime_follows(tmp_path):
            for day, name in enumerate(["a", "sub/b", "c"]):
                (tmp_path / name).write_bytes(b"x")
                assert mtime(tmp_path / name) == START + timedelta(days=day)
                clock.advance(DAY)
            (tmp_path / "a").write_bytes(b"y")
            clock.step(-10 * DAY)
            (tmp_path / "d").write_bytes(b"")

    if patched:
        with clock.installed():
            block()
    else:
        block()
    times = {name: mtime(tmp_path / name) for name in ("a", "sub/b", "c", "d")}
    assert times == {
        "a": START + timedelta(days=3),
        "sub/b": START + timedelta(days=1),
        "c": START + timedelta(days=2),
        "d": START - timedelta(days=7),
    }
    assert (tmp_path / "before").stat().st_mtime_ns == before


def test_file_times_are_on_the_disk(clock: StateClock, tmp_path: Path) -> None:
    with clock.mtime_follows(tmp_path) as stamp:
        (tmp_path / "a").write_bytes(b"")
        stamp()
        code = f"import os; print(os.stat({str(tmp_path / 'a')!r}).st_mtime_ns)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, timeout=60
        )
    assert int(done.stdout) == clock.time_ns()


def test_times_that_the_program_sets_are_left_alone(clock: StateClock, tmp_path: Path) -> None:
    with clock.mtime_follows(tmp_path):
        (tmp_path / "restored").write_bytes(b"")
        os.utime(tmp_path / "restored", (1e9, 1e9))
        (tmp_path / "moved.tmp").write_bytes(b"")
        clock.advance(DAY)
        (tmp_path / "moved.tmp").rename(tmp_path / "moved")
        (tmp_path / "moved").chmod(0o600)
        clock.advance(DAY)
    assert (tmp_path / "restored").stat().st_mtime == 1e9
    assert mtime(tmp_path / "moved") == START


def test_the_newest_file_is_the_newest_in_virtual_time(clock: StateClock, tmp_path: Path) -> None:
    with clock.mtime_follows(tmp_path):
        for name in ("1.snap", "2.snap", "3.snap"):
            (tmp_path / name).write_bytes(b"")
            clock.step(-3600)  # the wall clock runs back between saves
        newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime)
    assert newest.name == "1.snap"


def test_file_times_need_a_directory(clock: StateClock, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="is not a directory"),
        clock.mtime_follows(tmp_path / "missing"),
    ):
        raise AssertionError("unreachable")
