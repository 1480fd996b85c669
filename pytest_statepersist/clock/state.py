"""`StateClock`: the clock that a test holds in its hand.

Belongs here: the public verbs (advance, step, freeze, drift, leap, sleep, every, peer …), each a
few lines over `hands` and `timeline`. Rules:

1. `advance` lets time pass; everything that is due on the way happens, in order.
2. `step` and `set_wall` turn the wall clock only: no timer fires, monotonic time stands still.
3. It satisfies a plain clock protocol (`now`, `monotonic`, `sleep`, `every`, `after`), so that it
   can be injected wherever a system clock is; only `installed` patches anything.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pytest_statepersist.clock.hands import (
    SECOND,
    DstChange,
    Hand,
    as_zone,
    from_ns,
    nanoseconds,
    next_dst_change,
    to_ns,
)
from pytest_statepersist.clock.timeline import (
    CLOSED,
    ClockClosed,
    EndWait,
    Entry,
    Outcome,
    Timeline,
    Wait,
    Waiting,
    check_thread,
)
from pytest_statepersist.clock.wall import DatetimeAdapter
from pytest_statepersist.errors import UserError

__all__ = ["ENVIRONMENT", "StateClock", "Timer"]

ENVIRONMENT = "STATEPERSIST_CLOCK"
"""Name of the environment variable that hands a clock to a child process."""
_START = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)


class Timer:
    """A callback that a clock will make; `cancel` it when it is no longer wanted."""

    __slots__ = ("_cancel", "active")

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self.active = True

    def cancel(self) -> None:
        """Take the callback back; doing so twice is no error."""
        self.active = False
        self._cancel()


class StateClock:
    """A wall clock and a monotonic clock that move only when told.

    ``start`` is an aware datetime (2026-01-15 12:00 UTC unless told: never the real time, so
    that a failure replays), ``zone`` the IANA name of local time, ``monotonic`` the first
    reading in seconds, ``settle_s`` the real seconds after which a running thread that makes no
    progress counts as blocked outside the clock. All durations are seconds or `timedelta`, with a
    resolution of a microsecond. The thread that makes the clock drives it: its sleeps move
    time, those of other threads end when time is moved past their deadline.

    Raises `UserError` for a naive start, an unknown zone or a number that is not finite.
    """

    def __init__(
        self,
        start: datetime = _START,
        *,
        zone: str | ZoneInfo = "UTC",
        monotonic: float = 1000.0,
        settle_s: float = 2.0,
        _timeline: Timeline | None = None,
    ) -> None:
        self._timeline = _timeline or Timeline(settle_s=settle_s)
        self._zone = as_zone(zone)
        true = self._timeline.true
        self._wall = Hand(true, to_ns(start, what="start"))
        self._mono = Hand(true, nanoseconds(monotonic, what="monotonic"))
        self._frozen: list[tuple[Fraction, Fraction]] = []
        self._turned: list[Callable[[], None]] = []

    def __enter__(self) -> StateClock:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<StateClock {self.now().isoformat()} monotonic={self.monotonic():.6f}>"

    # --- reading ----------------------------------------------------------------------------

    @property
    def zone(self) -> ZoneInfo:
        """The zone of local time."""
        return self._zone

    def now(self) -> datetime:
        """Return the wall time as an aware UTC datetime."""
        return from_ns(self.time_ns())

    def local_now(self) -> datetime:
        """Return the wall time as an aware datetime in the clock's zone."""
        return self.now().astimezone(self._zone)

    def time(self) -> float:
        """Return the wall time in seconds since the epoch."""
        return self.time_ns() / SECOND

    def time_ns(self) -> int:
        """Return the wall time in nanoseconds since the epoch."""
        return self._wall.at(self._timeline.true)

    def monotonic(self) -> float:
        """Return the monotonic time in seconds."""
        return self.monotonic_ns() / SECOND

    def monotonic_ns(self) -> int:
        """Return the monotonic time in nanoseconds."""
        return self._mono.at(self._timeline.true)

    # --- letting time pass ------------------------------------------------------------------

    def advance(self, by: float | timedelta) -> None:
        """Let time pass on both clocks, and everything happen that is due on the way.

        Returns when every thread that woke up waits again or has ended. An exception of a
        callback comes out here, with the clock standing at that moment. Raises `UserError` for
        a negative duration: wall time goes back with `step`.
        """
        ns = nanoseconds(by, what="the time to advance")
        if ns < 0:
            raise UserError(
                f"time cannot pass backwards ({by!r}); step(-seconds) turns the wall clock back, "
                "and nothing turns monotonic time back"
            )
        self._timeline.move_by(ns)

    def advance_to(self, moment: datetime) -> None:
        """Let time pass until the wall clock shows ``moment`` (an aware datetime).

        Raises `UserError` where the wall clock is already later, or stands still.
        """
        shown = to_ns(moment, what="the moment to advance to")
        if shown < self.time_ns():
            raise UserError(
                f"the wall clock shows {self.now().isoformat()}, already later than "
                f"{moment.isoformat()}; set_wall() turns it back"
            )
        target = self._wall.when(shown)
        if target is None:
            raise UserError("the wall clock is frozen, so it never gets there; thaw() it first")
        self._timeline.move_to(max(target, self._timeline.true))

    def run_until(self, predicate: Callable[[], bool], *, limit: float | timedelta) -> bool:
        """Let time pass from deadline to deadline until the predicate holds, at most ``limit``.

        Returns whether it held. The predicate is asked after each deadline.
        """
        ns = self.monotonic_ns() + nanoseconds(limit, what="limit")
        return self._timeline.run_until(_Until(predicate), self._due(ns))

    # --- misbehaving ------------------------------------------------------------------------

    def step(self, by: float | timedelta) -> None:
        """Turn the wall clock forward or (negative) back; monotonic time and timers do not move.

        This is what NTP, a user, or the resume of a suspended machine does.
        """
        ns = nanoseconds(by, what="the step")
        self._turn(self._wall.moved(self._timeline.true, ns))

    def step_back(self, by: float | timedelta) -> None:
        """Turn the wall clock back by a positive duration."""
        if nanoseconds(by, what="the step back") < 0:
            raise UserError(f"cannot step back by {by}; step() turns the clock forward")
        self.step(-by)

    def set_wall(self, moment: datetime) -> None:
        """Turn the wall clock to an aware moment, in the future or the past."""
        shown = to_ns(moment, what="the wall time")
        self._turn(Hand(self._timeline.true, shown, self._wall.rate))

    def set_zone(self, zone: str | ZoneInfo) -> None:
        """Move to another time zone, as a traveller's laptop does."""
        self._zone = as_zone(zone)
        self._turn(self._wall)

    def leap_dst(self, *, margin: float | timedelta = 1.0) -> DstChange:
        """Let time pass to ``margin`` before the next jump of local time, then ``margin`` past it.

        Everything due on the way happens, which may be months. Raises `UserError` where the
        clock's zone has no such change.
        """
        change = self.next_dst_change()
        before = nanoseconds(margin, what="margin")
        at = to_ns(change.at, what="the change")
        if self.time_ns() < at - before:
            self.advance_to(from_ns(at - before))
        self.advance_to(from_ns(at + before))
        return change

    def next_dst_change(self) -> DstChange:
        """Return when local time next jumps; raises `UserError` where it never does."""
        change = next_dst_change(self._zone, self.now())
        if change is None:
            raise UserError(
                f"local time in {self._zone.key} does not jump within two years; "
                "move to a zone that does, for example set_zone('Europe/Berlin')"
            )
        return change

    def freeze(self, *, monotonic: bool = False) -> None:
        """Stop the wall clock, and the monotonic one too if asked, until `thaw`.

        Time can still pass: the frozen clock just does not show it. No timer of a clock
        whose monotonic time is frozen ever comes due.
        """
        self._frozen.append((self._wall.rate, self._mono.rate))
        self._run_at(Fraction(0), Fraction(0) if monotonic else self._mono.rate)

    def thaw(self) -> None:
        """Let the clock go on from where it stopped; raises `UserError` if it was not frozen."""
        if not self._frozen:
            raise UserError("the clock is not frozen")
        self._run_at(*self._frozen.pop())

    @contextmanager
    def frozen(self, *, monotonic: bool = False) -> Iterator[StateClock]:
        """Freeze the clock for a block."""
        self.freeze(monotonic=monotonic)
        try:
            yield self
        finally:
            self.thaw()

    def drift(self, *, wall_ppm: float = 0.0, monotonic_ppm: float = 0.0) -> None:
        """Let the clocks run fast (positive) or slow, in parts per million of true time.

        ``advance`` counts true time: after ``drift(wall_ppm=100)`` a day is 8.64 s too long on
        the wall. Raises `UserError` for a rate that is not positive, or while frozen.
        """
        if self._frozen:
            raise UserError("a frozen clock cannot drift; thaw() it first")
        try:
            rates = [1 + Fraction(str(ppm)) / 1_000_000 for ppm in (wall_ppm, monotonic_ppm)]
        except ValueError:
            given = f"wall_ppm={wall_ppm!r}, monotonic_ppm={monotonic_ppm!r}"
            raise UserError(f"a drift is in parts per million, not {given}") from None
        if min(rates) <= 0:
            raise UserError("a clock that drifts by -1,000,000 ppm or more stands or runs back")
        self._run_at(rates[0], rates[1])

    # --- other processes --------------------------------------------------------------------

    def peer(
        self,
        *,
        skew: float | timedelta = 0.0,
        monotonic: float = 5000.0,
        zone: str | ZoneInfo | None = None,
    ) -> StateClock:
        """Return the clock of another process or machine, in the same passing of time.

        Its wall clock is ``skew`` ahead of this one (negative: behind) and is turned, frozen and
        drifted by itself; its monotonic time has another origin, as on another machine.
        Advancing either advances both.
        """
        wall = from_ns(self.time_ns() + nanoseconds(skew, what="skew"))
        return StateClock(
            wall,
            zone=self._zone if zone is None else zone,
            monotonic=monotonic,
            _timeline=self._timeline,
        )

    def environ(self, *, skew: float | timedelta = 0.0) -> dict[str, str]:
        """Return environment variables that hand this clock to a child process, as it shows now.

        The child calls `StateClock.from_environ`. From then on its time is its own: two processes
        share no timeline, and nothing moves the child's clock but the child.
        """
        state = {
            "wall_us": (self.time_ns() + nanoseconds(skew, what="skew")) // 1000,
            "monotonic_us": self.monotonic_ns() // 1000,
            "zone": self._zone.key,
        }
        return {ENVIRONMENT: json.dumps(state, sort_keys=True)}

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> StateClock:
        """Return the clock that a parent process handed over through `environ`.

        Raises `UserError` where it handed over none, or one that cannot be read.
        """
        text = (os.environ if environ is None else environ).get(ENVIRONMENT)
        if text is None:
            raise UserError(
                f"no clock was handed over: {ENVIRONMENT} is not set; start this process with "
                "env={**os.environ, **clock.environ()}"
            )
        try:
            state = json.loads(text)
            wall, monotonic = int(state["wall_us"]), int(state["monotonic_us"])
            zone = str(state["zone"])
            start = from_ns(wall * 1000)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(f"{ENVIRONMENT} holds no clock: {text!r}") from error
        clock = cls(start, zone=zone)
        clock._mono = Hand(clock._timeline.true, monotonic * 1000)
        return clock

    # --- sleeping and timers ----------------------------------------------------------------

    def sleep(self, seconds: float | timedelta) -> None:
        """Sleep in virtual time: the driver moves time, any other thread waits until it is moved.

        Raises `UserError` for a negative duration, `ClockDeadlock` in the driver when monotonic
        time is frozen and nothing else is due, `ClockClosed` when the clock goes away.
        """
        ns = nanoseconds(seconds, what="the time to sleep")
        if ns < 0:
            raise UserError(f"cannot sleep for {seconds!r} seconds")
        if self.wait(Wait(), ns) is Outcome.RELEASED:
            raise ClockClosed(CLOSED)

    def wait(self, wait: Wait, ns: int | None, *, owner: object = None) -> Outcome:
        """Wait for something for at most ``ns`` nanoseconds; for the adapters of this package."""
        if ns is None:
            return self._timeline.wait(wait, lambda: None, owner=owner)
        until = self.monotonic_ns() + ns
        return self._timeline.wait(wait, self._due(until), owner=owner, shown=until / SECOND)

    def after(self, delay_s: float | timedelta, fn: Callable[[], object]) -> Timer:
        """Call ``fn`` once, when this much monotonic time has passed.

        It runs in the thread that moves time. Raises `UserError` for a negative delay.
        """
        ns = nanoseconds(delay_s, what="the delay")
        if ns < 0:
            raise UserError(f"cannot call anything {delay_s!r} seconds ago")
        due = self._due(self.monotonic_ns() + ns)

        def run() -> None:
            timer.active = False
            fn()

        entry = self._timeline.call(due, run)
        timer = Timer(lambda: self._timeline.forget(entry))
        return timer

    def every(self, interval_s: float | timedelta, fn: Callable[[], object]) -> Timer:
        """Call ``fn`` each time that this much monotonic time has passed, until cancelled.

        The rhythm is fixed: a call that itself takes longer than the interval skips the beats that
        it missed. Raises `UserError` for an interval that is not positive.
        """
        interval = nanoseconds(interval_s, what="the interval")
        if interval <= 0:
            raise UserError(f"an interval must be positive, not {interval_s!r}")
        beat = self.monotonic_ns() + interval
        entry: Entry

        def arm() -> None:
            nonlocal entry
            entry = self._timeline.call(self._due(beat), run)

        def run() -> None:
            nonlocal beat
            try:
                fn()
            finally:
                missed = max(0, (self.monotonic_ns() - beat) // interval)
                beat += (missed + 1) * interval
                if timer.active:
                    arm()

        timer = Timer(lambda: self._timeline.forget(entry))
        arm()
        return timer

    # --- threads ----------------------------------------------------------------------------

    def spawn(
        self, fn: Callable[..., object], *args: Any, name: str | None = None
    ) -> threading.Thread:
        """Start a daemon thread for which time waits until it sleeps on the clock or ends."""
        thread = threading.Thread(target=fn, args=args, name=name, daemon=True)
        self._timeline.start(thread, thread.start)
        return thread

    def adopt(self, thread: threading.Thread) -> threading.Thread:
        """Make time wait for a thread that something else started."""
        self._timeline.adopt(check_thread(thread))
        return thread

    def join(self, *threads: threading.Thread) -> None:
        """Let time pass until these threads have ended.

        Raises `ClockDeadlock` where no passing of time could end them.
        """
        for thread in threads:
            self.wait(EndWait(check_thread(thread)), None)

    def settle(self) -> None:
        """Wait in real time until every thread known to the clock waits or has ended."""
        self._timeline.settle()

    def drive(self) -> None:
        """Make the calling thread the one whose sleeps move time."""
        self._timeline.drive()

    def waiting(self) -> tuple[Waiting, ...]:
        """Return the threads that wait on the clock, with what they wait for and until when."""
        return self._timeline.waiting()

    def close(self) -> None:
        """Drop all timers, and raise `ClockClosed` in every thread that sleeps on the clock.

        Peers share the timeline and are closed with it.
        """
        self._timeline.close()

    # --- adapters ---------------------------------------------------------------------------

    def installed(
        self,
        *,
        datetime: DatetimeAdapter = DatetimeAdapter.AUTO,
        threads: bool = True,
        asyncio: bool = True,
        real: Iterable[str] = (),
    ) -> AbstractContextManager[StateClock]:
        """Put `datetime`, `time`, `threading` and `asyncio` on the clock for a block.

        ``datetime`` chooses who replaces `datetime.now`: time-machine where it is installed, else
        freezegun. ``threads`` covers timeouts of `threading` and `queue` objects and
        `Thread.join`, ``asyncio`` the loops of the standard library. ``real`` names modules that
        go on with real time, for example one that waits for another process. ``TZ`` of the process
        is the clock's zone meanwhile. One block at a time is meant, or blocks in blocks: what is
        replaced belongs to the whole process, so all of its threads see it.

        Not covered: functions of `time` kept in default arguments or objects (time-machine sees
        those for wall time), timeouts of bare locks and sockets, other processes, uvloop.
        Raises `UserError` where the adapter asked for is not installed or cannot do it.
        """
        from pytest_statepersist.clock.patches import installed

        return installed(self, adapter=datetime, threads=threads, asyncio=asyncio, real=tuple(real))

    def mtime_follows(
        self, directory: str | os.PathLike[str]
    ) -> AbstractContextManager[Callable[[], None]]:
        """Give files that change below ``directory`` the virtual time of their change, for a block.

        See `clock.mtimes` for how. Yields a function that does so at once.
        """
        from pytest_statepersist.clock.mtimes import mtime_follows

        return mtime_follows(self, Path(directory))

    @contextmanager
    def watched(
        self, *, before: Callable[[], None] | None = None, after: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Have functions called before and after each change of what the wall clock shows."""
        timeline = self._timeline
        if before is not None:
            timeline.before_move.append(before)
        if after is not None:
            timeline.after_move.append(after)
            self._turned.append(after)
        try:
            yield
        finally:
            if before is not None:
                timeline.before_move.remove(before)
            if after is not None:
                timeline.after_move.remove(after)
                self._turned.remove(after)

    @property
    def timeline(self) -> Timeline:
        """The passing of time that this clock shares with its peers; for adapters."""
        return self._timeline

    # --- helpers ----------------------------------------------------------------------------

    def _due(self, shown: int) -> Callable[[], int | None]:
        return lambda: self._mono.when(shown)

    def _turn(self, wall: Hand) -> None:
        for tell in tuple(self._timeline.before_move):
            tell()
        self._wall = wall
        for tell in tuple(self._turned):
            tell()

    def _run_at(self, wall: Fraction, mono: Fraction) -> None:
        true = self._timeline.true
        self._wall = self._wall.running_at(true, wall)
        self._mono = self._mono.running_at(true, mono)


class _Until(Wait):
    """A wait of the driver for a condition that it asks itself."""

    what = "a condition of the test"

    def __init__(self, predicate: Callable[[], bool]) -> None:
        super().__init__()
        self._predicate = predicate

    def ready(self) -> bool:
        return bool(self._predicate())

    def linger(self, seconds: float) -> bool:
        # Nothing is left that could change the answer but a thread: those were waited for.
        return self.ready()
