"""Time as an argument: clocks that tell it and schedulers that wait for it.

The law: no store calls ``datetime.now`` or ``time.sleep`` itself. It is given a `Clock` and,
where it acts by itself, a `Scheduler`; tests hand in the manual ones, in which a year passes
in a microsecond and nothing runs unless told to.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.errors import ValidationError

__all__ = [
    "Clock",
    "Handle",
    "ManualClock",
    "ManualScheduler",
    "Scheduler",
    "SystemClock",
    "ThreadScheduler",
]

_log = logging.getLogger(__name__)


class Clock(Protocol):
    """What a store may ask about time."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""

    def monotonic(self) -> float:
        """Return seconds that never run backwards, from an arbitrary start."""

    def sleep(self, seconds: float) -> None:
        """Let that many seconds pass."""


class Handle(Protocol):
    """A scheduled job."""

    def cancel(self) -> None:
        """Never start the job again; one that runs now runs to its end."""


class Scheduler(Protocol):
    """What a store may ask to be done later."""

    def every(self, interval_s: float, fn: Callable[[], object]) -> Handle:
        """Call ``fn`` each ``interval_s`` seconds, first after one interval."""

    def after(self, delay_s: float, fn: Callable[[], object]) -> Handle:
        """Call ``fn`` once, ``delay_s`` seconds from now."""


@checked
class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return `time.monotonic`."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block this thread."""
        time.sleep(seconds)


@checked
class ManualClock:
    """A clock that stands still until it is told otherwise; safe between threads.

    ``set`` moves the wall time only, as an administrator or NTP would: forwards or back, while
    `monotonic` stays. ``advance`` moves both. ``sleep`` returns at once, having advanced.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._lock = threading.Lock()
        self._now = _aware(start or datetime(2025, 1, 1, tzinfo=UTC))
        self._monotonic = 0.0

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        """Return the sum of all advances, in seconds."""
        with self._lock:
            return self._monotonic

    def sleep(self, seconds: float) -> None:
        """Advance by ``seconds`` without waiting."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass on both clocks. Raises `ValidationError` if negative."""
        if seconds < 0:
            raise ValidationError("seconds", "time cannot pass backwards; use set() for a jump")
        with self._lock:
            try:
                self._now += timedelta(seconds=seconds)
            except OverflowError:
                raise ValidationError("seconds", f"{seconds}: the calendar ends before") from None
            self._monotonic += seconds

    def set(self, now: datetime) -> None:
        """Jump the wall time to an aware moment. Raises `ValidationError` if it is naive."""
        moment = _aware(now)
        with self._lock:
            self._now = moment


def _aware(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValidationError("datetime", f"{moment!r} has no time zone; pass tzinfo=UTC")
    return moment.astimezone(UTC)


@dataclass(order=True, slots=True)
class _Job:
    due: float
    serial: int
    fn: Callable[[], object] = field(compare=False)
    interval: float | None = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.cancelled = True


class _Agenda:
    """Jobs ordered by due time, then by age; the arithmetic that both schedulers share."""

    def __init__(self) -> None:
        self._heap: list[_Job] = []
        self._serials = itertools.count()

    def add(self, now: float, delay: float, fn: Callable[[], object], *, repeat: bool) -> _Job:
        if not delay > 0 and (repeat or delay != 0):
            raise ValidationError("interval", f"{delay!r} seconds; it must be positive")
        job = _Job(now + delay, next(self._serials), fn, delay if repeat else None)
        heapq.heappush(self._heap, job)
        return job

    def next_due(self) -> float | None:
        while self._heap and self._heap[0].cancelled:
            heapq.heappop(self._heap)
        return self._heap[0].due if self._heap else None

    def take(self, now: float) -> _Job:
        """Remove and return the first job, already queued again if it repeats."""
        job = heapq.heappop(self._heap)
        if job.interval is not None:
            # Beats that were slept through are skipped, not made up for.
            missed = max(0, int((now - job.due) // job.interval))
            job.due += (missed + 1) * job.interval
            heapq.heappush(self._heap, job)
        return job


@checked
class ManualScheduler:
    """Runs jobs in virtual time, in the order in which they fall due, on the caller's thread.

    What a job raises comes out of `advance`; later jobs are still queued and run at the next
    call.
    """

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self._agenda = _Agenda()

    def every(self, interval_s: float, fn: Callable[[], object]) -> Handle:
        """Call ``fn`` each ``interval_s`` virtual seconds."""
        return self._agenda.add(self.clock.monotonic(), interval_s, fn, repeat=True)

    def after(self, delay_s: float, fn: Callable[[], object]) -> Handle:
        """Call ``fn`` once, ``delay_s`` virtual seconds from now."""
        return self._agenda.add(self.clock.monotonic(), delay_s, fn, repeat=False)

    def advance(self, seconds: float) -> int:
        """Let ``seconds`` pass, running what falls due on the way; return how many ran."""
        if seconds < 0:
            raise ValidationError("seconds", "time cannot pass backwards")
        end = self.clock.monotonic() + seconds
        ran = 0
        while (due := self._agenda.next_due()) is not None and due <= end:
            self.clock.advance(max(0.0, due - self.clock.monotonic()))
            job = self._agenda.take(self.clock.monotonic())
            ran += 1
            job.fn()
        self.clock.advance(max(0.0, end - self.clock.monotonic()))
        return ran

    def run_until(self, moment: datetime) -> int:
        """Advance to a wall time (aware); return how many jobs ran."""
        return self.advance((_aware(moment) - self.clock.now()).total_seconds())


@checked
class ThreadScheduler:
    """Runs jobs in real time, one after the other, on one background daemon thread.

    A job that raises is reported to ``on_error`` (the log unless given) and keeps its beat.
    Use as a context manager or call `stop`.
    """

    def __init__(self, on_error: Callable[[Exception], object] | None = None) -> None:
        self._on_error = on_error
        self._agenda = _Agenda()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="reference-scheduler", daemon=True)
        self._thread.start()

    def every(self, interval_s: float, fn: Callable[[], object]) -> Handle:
        """Call ``fn`` each ``interval_s`` seconds; beats that were slept through are skipped."""
        return self._add(interval_s, fn, repeat=True)

    def after(self, delay_s: float, fn: Callable[[], object]) -> Handle:
        """Call ``fn`` once, ``delay_s`` seconds from now."""
        return self._add(delay_s, fn, repeat=False)

    def stop(self, timeout: float | None = None) -> None:
        """Start no further job and wait for the running one (not when called from a job)."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def __enter__(self) -> ThreadScheduler:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _add(self, delay: float, fn: Callable[[], object], *, repeat: bool) -> Handle:
        with self._changed:
            if self._stopped:
                raise ValidationError("scheduler", "it was stopped; create a new one")
            job = self._agenda.add(time.monotonic(), delay, fn, repeat=repeat)
            self._changed.notify_all()
            return job

    def _run(self) -> None:
        while (job := self._wait_for_job()) is not None:
            try:
                job.fn()
            except Exception as error:
                if self._on_error is None:
                    _log.exception("a scheduled job failed")
                else:
                    self._on_error(error)

    def _wait_for_job(self) -> _Job | None:
        with self._changed:
            while not self._stopped:
                due = self._agenda.next_due()
                now = time.monotonic()
                if due is not None and due <= now:
                    return self._agenda.take(now)
                self._changed.wait(None if due is None else due - now)
            return None
