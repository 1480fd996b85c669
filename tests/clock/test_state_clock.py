"""The controllable clock: what it shows, and in which order things happen."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.clock import (
    ClockDeadlock,
    DstChange,
    StateClock,
)
from pytest_statepersist.errors import UserError
from pytest_statepersist.reference.clock import Clock, Scheduler
from tests.clock.common import DAY, START, Real


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


def test_what_is_no_time_is_an_error(clock: StateClock) -> None:
    with pytest.raises(UserError, match="aware datetime, not '2026'"):
        clock.set_wall("2026")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="parts per million, not wall_ppm='fast'"):
        clock.drift(wall_ppm="fast")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"step\(\) turns"):
        clock.step_back(-5)


def test_importing_it_costs_none_of_the_adapters() -> None:
    code = (
        "import sys, pytest_statepersist.clock, pytest_statepersist.tamper, "
        "pytest_statepersist.leaks\n"
        "heavy = {'asyncio', 'freezegun', 'time_machine', 'pytest', 'hypothesis', 'cryptography'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
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
    with pytest.raises(UserError, match=r"does not jump.*set_zone\("):
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
    root = str(Path(__file__).parent.parent.parent)
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
