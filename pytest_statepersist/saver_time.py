"""The time of savers under the scheduler: no wait with a limit passes in real time.

Belongs here: the clock that savers read, and what they wait by: sleeps, locks with a time limit,
polls of an event loop. Who comes next is decided elsewhere. Rules:

1. Calls take no time. It passes when nobody can make a call: then until the first who has waited
   long enough. So no time limit runs out while another saver could still have released the lock.
2. In an order in which a saver is late, the others' waits are over at once, a bounded number of
   times, each twice as long as the one before: whoever goes on without the lock is seen.
3. Reading the clock takes a microsecond, so that a loop which only looks at it ends.
4. What waits for another program goes on in real time, as that program does.
"""

from __future__ import annotations

import gc
import itertools
import mmap
import queue
import selectors
import struct
import sys
import threading
import time
from _thread import LockType
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from pytest_statepersist.recorders.interpose import Interposition
from pytest_statepersist.recorders.methods import Methods

__all__ = ["Moments", "Waiter", "interposed_time", "limited"]

_SLICE = 0.02
"""Seconds after which a wait looks whether its time is over."""
_ALONE = 0.1
"""Seconds that one waits really who runs in no order."""
_TICK = 1000
"""Nanoseconds that reading the clock takes."""
_PATIENCE = 100
"""So many waits in a row are over at once in an order in which others are late."""
_IN_REAL_TIME = ("subprocess", "multiprocessing")
_OURS, _OURS_THAT_WAITS = "pytest_statepersist.", "pytest_statepersist.reference"
_NUMBER = struct.Struct("<q")
_NOW, _TASKS, _SLOT = 0, 8, 24
_DEADLINE, _LATE, _GAVE_UP = range(0, _SLOT, 8)


class Moments:
    """The time of one order, shared by its savers, which may be processes of their own.

    ``now`` and ``deadline`` are nanoseconds since the order began.
    """

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self.began = {"monotonic": time.monotonic_ns(), "time": time.time_ns()}
        self.began["perf_counter"] = time.perf_counter_ns()

    def _get(self, place: int) -> int:
        return int(_NUMBER.unpack_from(self._page, place)[0])

    def _set(self, place: int, value: int) -> None:
        _NUMBER.pack_into(self._page, place, value)

    @property
    def now(self) -> int:
        """What has passed by waiting."""
        return self._get(_NOW)

    @now.setter
    def now(self, value: int) -> None:
        self._set(_NOW, value)

    def deadline(self, number: int) -> int:
        """Return when the first of a saver's waits with a limit is over, 0 where it has none."""
        return self._get(_TASKS + number * _SLOT + _DEADLINE)

    def set_deadline(self, number: int, value: int) -> None:
        """Note when the first of a saver's waits is over."""
        self._set(_TASKS + number * _SLOT + _DEADLINE, value)

    def is_due(self, number: int) -> bool:
        """Say whether a wait of this saver is over which it has not yet noticed."""
        return 0 < self.deadline(number) <= self.now

    def hurry(self, number: int) -> None:
        """Let this saver's waits be over at once: whoever it waits for is late."""
        self._set(_TASKS + number * _SLOT + _LATE, _PATIENCE)

    def patience(self, number: int) -> int:
        """Return how many more of its waits are over at once."""
        return self._get(_TASKS + number * _SLOT + _LATE)

    def lose_patience(self, number: int) -> None:
        """Note that one of its waits was over at once."""
        place = _TASKS + number * _SLOT
        self._set(place + _LATE, self._get(place + _LATE) - 1)
        self._set(place + _GAVE_UP, self._get(place + _GAVE_UP) + 1)

    def gave_up(self, number: int) -> int:
        """Return how many of its waits were over at once."""
        return self._get(_TASKS + number * _SLOT + _GAVE_UP)


class Waiter:
    """A saver, seen from inside, as one that waits and reads the clock."""

    def __init__(self, moments: Moments, number: int, *, alone: bool = False) -> None:
        self.moments = moments
        self.alone = alone
        self.number = number
        self._ahead = number
        """Nanoseconds by which it is ahead of the others; no two read the same."""
        self._ticks = itertools.count(1)
        self._waits: dict[int, int] = {}
        self._lock = threading.RLock()
        self.has_company: Callable[[], bool] = bool
        """Says whether another of its threads runs, for which it may wait."""
        self.inside = threading.local()

    def read(self, clock: str) -> int:
        """Return what a clock shows it, in nanoseconds."""
        passed = self.moments.now + self._ahead + next(self._ticks) * _TICK
        return self.moments.began[clock] + passed

    def is_over(self, seconds: float) -> bool:
        """Say whether a wait is over at once, and let its time pass."""
        if self.moments.patience(self.number) <= 0 or self.has_company():
            return False
        self.skip(seconds * (1 << min(self.moments.gave_up(self.number), 30)))
        self.moments.lose_patience(self.number)
        return True

    def skip(self, seconds: float) -> None:
        """Be ahead of the others by so much more."""
        self._ahead += int(seconds * 1e9)

    @contextmanager
    def waiting(self, deadline: int) -> Iterator[None]:
        """Be known to wait until then."""
        me = threading.get_ident()
        self._note(me, deadline)
        try:
            yield
        finally:
            self._note(me, None)

    def _note(self, thread: int, deadline: int | None) -> None:
        with self._lock:
            if deadline is None:
                del self._waits[thread]
            else:
                self._waits[thread] = deadline
            self.moments.set_deadline(self.number, min(self._waits.values(), default=0))


class _Current(Protocol):
    def __call__(self) -> Waiter | None:
        """Return whose thread this is, ``None`` for one that no saver runs in."""


def limited(waiter: Waiter, seconds: float, attempt: Callable[[float], bool]) -> bool:
    """Wait until ``attempt``, which may wait so many seconds, succeeds, or time is over."""
    if getattr(waiter.inside, "now", False):
        return attempt(seconds)
    waiter.inside.now = True
    try:
        if attempt(0.0):
            return True
        if seconds <= 0 or waiter.is_over(seconds):
            return False
        if waiter.alone:
            if attempt(min(seconds, _ALONE)):
                return True
            waiter.skip(seconds)
            return False
        deadline = waiter.moments.now + max(int(seconds * 1e9), 1)
        with waiter.waiting(deadline):
            while not attempt(_SLICE):
                if waiter.moments.now >= deadline:
                    return attempt(0.0)
            return True
    finally:
        waiter.inside.now = False


def in_real_time(depth: int) -> bool:
    """Say whether the caller's caller, so many frames up, waits for another program."""
    name = sys._getframe(depth + 1).f_globals.get("__name__") or ""
    if name.startswith(_OURS):  # a recorder compares what it reads with what files say
        return not name.startswith(_OURS_THAT_WAITS)
    return name.partition(".")[0] in _IN_REAL_TIME


@contextmanager
def interposed_time(current: _Current) -> Iterator[None]:
    """Put clocks and waits with a time limit of all savers on their order's time."""
    with Methods(_methods(current)), _clocks(current), _bound_before(current):
        yield


@contextmanager
def _bound_before(current: _Current) -> Iterator[None]:
    """Replace what locks of `multiprocessing` keep in each instance: a method that is bound."""
    module = sys.modules.get("multiprocessing.synchronize")
    kinds = () if module is None else (module.SemLock,)
    found = [each for each in gc.get_objects() if isinstance(each, kinds)] if kinds else []
    factory = _acquiring(current)
    kept = [(each, each.acquire) for each in found]
    for each, method in kept:
        acquire = factory(lambda _, *arguments, method=method: method(*arguments))
        each.acquire = partial(acquire, each)
    try:
        yield
    finally:
        for each, method in kept:
            each.acquire = method


def _clocks(current: _Current) -> Interposition:
    def reading(clock: str, unit: int) -> Callable[[Any], Any]:
        def factory(original: Any) -> Any:
            def read() -> Any:
                waiter = current()
                if waiter is None or in_real_time(1):
                    return original()
                shown = waiter.read(clock)
                return shown if unit == 1 else shown / unit

            return read

        return factory

    table: dict[tuple[Any, str], Callable[[Any], Any]] = {
        (time, clock + ending): reading(clock, unit)
        for clock in ("monotonic", "perf_counter", "time")
        for ending, unit in (("", 1_000_000_000), ("_ns", 1))
    }
    table[threading.Thread, "join"] = lambda original: _join(current, original)
    for name in ("EpollSelector", "PollSelector", "SelectSelector"):
        if hasattr(selectors, name):
            kind = getattr(selectors, name)
            table[kind, "select"] = lambda original: _select(current, original)
    return Interposition(table, layer=3, rebind=True)


def _join(current: _Current, original: Any) -> Any:
    def join(self: threading.Thread, timeout: float | None = None) -> None:
        waiter = current()
        if waiter is None or timeout is None or timeout <= 0 or not self.is_alive():
            original(self, timeout)
            return

        def attempt(seconds: float) -> bool:
            original(self, seconds)
            return not self.is_alive()

        limited(waiter, timeout, attempt)

    return join


def _select(current: _Current, original: Any) -> Any:
    def select(self: Any, timeout: float | None = None) -> Any:
        waiter = current()
        if waiter is None or timeout is None or timeout <= 0 or in_real_time(1):
            return original(self, timeout)
        found: list[Any] = []

        def attempt(seconds: float) -> bool:
            found[:] = original(self, seconds)
            return bool(found)

        limited(waiter, timeout, attempt)
        return found

    return select


def _acquiring(current: _Current) -> Callable[[Any], Any]:
    def acquiring(original: Any) -> Any:
        def acquire(self: Any, blocking: bool = True, timeout: float | None = -1) -> bool:
            waiter = current()
            if waiter is None or not blocking or timeout is None or timeout <= 0:
                return bool(original(self, blocking, timeout))
            if timeout > threading.TIMEOUT_MAX:
                return bool(original(self, blocking, timeout))  # which says that it is too long

            def attempt(seconds: float) -> bool:
                if seconds <= 0:
                    return bool(original(self, False))
                return bool(original(self, True, seconds))

            return limited(waiter, timeout, attempt)

        return acquire

    return acquiring


def _methods(current: _Current) -> dict[tuple[type, str], Callable[[Any], Any]]:
    def getting(original: Any) -> Any:
        def get(self: Any, block: bool = True, timeout: float | None = None) -> Any:
            waiter = current()
            if waiter is None or not block or timeout is None or timeout <= 0:
                return original(self, block, timeout)
            found: list[Any] = []

            def attempt(seconds: float) -> bool:
                try:
                    found.append(original(self, True, seconds))
                except queue.Empty:
                    return False
                return True

            if not limited(waiter, timeout, attempt):
                raise queue.Empty
            return found[0]

        return get

    return {
        (LockType, "acquire"): _acquiring(current),
        (LockType, "acquire_lock"): _acquiring(current),
        (type(threading.RLock()), "acquire"): _acquiring(current),
        (queue.SimpleQueue, "get"): getting,
    }
