"""Puts `time`, `threading` and `asyncio` of this process on a clock, for a block.

Belongs here: the replaced functions and the bookkeeping that undoes them. Rules:

1. Every replaced function asks who calls: the test runner and this package's own machinery go on
   in real time, else a test's timeout would never fire or fire at once.
2. A replaced function that somebody kept is harmless: after the block it does the real thing.
3. Blocks nest and are undone in reverse order; a name that someone else replaced meanwhile is
   left alone.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any

from pytest_statepersist.clock.aio import loops_on
from pytest_statepersist.clock.timeline import EndWait, NotifiedWait, Outcome, Wait
from pytest_statepersist.clock.wall import DatetimeAdapter, follow_wall

if TYPE_CHECKING:
    from pytest_statepersist.clock.state import StateClock

__all__ = ["RUNNERS", "installed"]

RUNNERS = (
    "_pytest", "pluggy", "pytest_timeout", "pytest_benchmark", "pytest_randomly", "xdist",
    "execnet", "hypothesis", "freezegun", "time_machine", "coverage", "subprocess",
    "multiprocessing", "selectors",
)  # fmt: skip
"""Modules (with what is below them) that always see real time."""
_PACKAGE = "pytest_statepersist"
_OURS_THAT_FOLLOW = "pytest_statepersist.reference"
_OURS = tuple(
    f"{_PACKAGE}.{name}"
    for name in (
        "bundle", "cli", "clock", "conformance", "core", "explorer", "faults", "fixtures",
        "leaks", "machines", "plugin", "recorders", "report", "simulator", "strategies", "tamper",
    )
)  # fmt: skip
_BLOCKING = ("threading", "queue", "concurrent.futures")
# Whoever stands above these has called; the timeline stands at the root of threads it started.
_THROUGH = ("threading", "queue", "pytest_statepersist.clock.timeline")
_real_start = threading.Thread.start
_real_join = threading.Thread.join
_real_wait = threading.Condition.wait
_real_sleep = time.sleep


@contextmanager
def installed(
    clock: StateClock,
    *,
    adapter: DatetimeAdapter,
    threads: bool,
    asyncio: bool,
    real: tuple[str, ...],
) -> Iterator[StateClock]:
    """Do what `StateClock.installed` promises."""
    exempt = RUNNERS + real + (() if asyncio else ("asyncio",)) + (() if threads else _BLOCKING)
    callers = _Callers(exempt, through=_THROUGH if threads else ())
    with ExitStack() as stack:
        chosen = stack.enter_context(follow_wall(clock, adapter, exempt + _OURS))
        block = _Block(clock, callers)
        stack.callback(block.undo)
        block.replace_time(wall=chosen is not DatetimeAdapter.TIME_MACHINE)
        if threads:
            block.replace_threading()
        block.replace_names()
        if asyncio:
            stack.enter_context(loops_on(clock))
        yield clock


class _Callers:
    """Decides by the calling module who sees real time."""

    def __init__(self, real: tuple[str, ...], through: tuple[str, ...]) -> None:
        self._real = real
        self._through = through
        self._known: dict[str, bool] = {}

    def real(self, name: str) -> bool:
        """Say whether a module sees real time."""
        known = self._known.get(name)
        if known is None:
            known = any(name == root or name.startswith(root + ".") for root in self._real)
            if name.startswith(_PACKAGE + "."):
                known = known or not name.startswith(_OURS_THAT_FOLLOW)
            self._known[name] = known
        return known

    def exempt(self, frame: FrameType | None) -> bool:
        """Say whether the code that called into `threading` or `time` sees real time."""
        while frame is not None:
            name = frame.f_globals.get("__name__") or ""
            if name not in self._through:
                return self.real(name)
            frame = frame.f_back
        return False


class _Block:
    """The replacements of one block."""

    def __init__(self, clock: StateClock, callers: _Callers) -> None:
        self._clock = clock
        self._callers = callers
        self._live = True
        self._undo: list[tuple[Any, str, Any, Any]] = []
        self._back: dict[int, Any] = {}
        self._names: dict[int, Any] = {}
        self._keep: list[Any] = []
        self._starting = threading.local()

    # --- bookkeeping --------------------------------------------------------------------------

    def _set(self, owner: Any, name: str, new: Any) -> None:
        old = getattr(owner, name)
        self._undo.append((owner, name, old, new))
        self._back[id(new)] = old
        self._keep.append(new)
        setattr(owner, name, new)

    def replace_names(self) -> None:
        """Replace what modules bound with `from time import …` before the block."""
        for module_name, module in list(sys.modules.items()):
            if module is None or module is time or self._callers.real(module_name):
                continue
            for name, value in list(getattr(module, "__dict__", {}).items()):
                new = self._names.get(id(value))
                if new is not None:
                    self._undo.append((module, name, value, new))
                    setattr(module, name, new)

        # The standard library's own timers keep both functions as default arguments.
        timers = sys.modules.get("sched")
        if timers is not None:
            made = timers.scheduler.__init__
            kept = tuple(self._names.get(id(each), each) for each in made.__defaults__)
            self._set(made, "__defaults__", kept)

    def undo(self) -> None:
        """Put everything back, and let virtual waits of other threads go on in real time."""
        self._live = False
        for owner, name, old, new in reversed(self._undo):
            if getattr(owner, name, None) is new:
                setattr(owner, name, old)
        # Modules imported inside the block may have bound a replacement.
        for module in list(sys.modules.values()):
            for name, value in list(getattr(module, "__dict__", {}).items()):
                old = self._back.get(id(value))
                if old is not None and module is not sys.modules[__name__]:
                    setattr(module, name, old)
        self._clock.timeline.release(self)

    # --- time -----------------------------------------------------------------------------------

    def replace_time(self, *, wall: bool) -> None:
        """Replace the functions of `time`; those of the wall only if nobody else did."""
        clock = self._clock
        monotonic, monotonic_ns = clock.monotonic, clock.monotonic_ns
        self._function("monotonic", monotonic)
        self._function("monotonic_ns", monotonic_ns)
        self._function("perf_counter", monotonic)
        self._function("perf_counter_ns", monotonic_ns)
        self._function("sleep", self._sleep)
        for name in ("ctime", "asctime", "localtime", "gmtime", "strftime"):
            if wall or name in ("ctime", "asctime"):
                self._calendar(name)
        if wall:
            self._function("time", clock.time)
            self._function("time_ns", clock.time_ns)
        if hasattr(time, "clock_gettime"):
            self._gettime(wall=wall)

    def _function(self, name: str, virtual: Callable[..., Any]) -> None:
        before = getattr(time, name)
        callers = self._callers

        def replaced(*args: Any) -> Any:
            if not self._live or callers.exempt(sys._getframe(1)):
                return before(*args)
            return virtual(*args)

        replaced.__name__ = replaced.__qualname__ = name
        self._set(time, name, replaced)
        self._names[id(before)] = replaced
        self._names[id(_REAL_TIME[name])] = replaced

    def _calendar(self, name: str) -> None:
        """Give a calendar function of `time` the virtual moment where its caller left it out."""
        # freezegun's own stand-ins compute local time from the real zone: go round them.
        really = _REAL_TIME[name]
        arguments = 1 if name == "strftime" else 0

        def virtual(*args: Any) -> Any:
            if len(args) > arguments and args[arguments] is not None:
                return really(*args)
            seconds = self._clock.time_ns() / 1_000_000_000
            if name in ("asctime", "strftime"):
                return really(*args[:arguments], _REAL_TIME["localtime"](seconds))
            return really(seconds)

        self._function(name, virtual)

    def _gettime(self, *, wall: bool) -> None:
        monotonic = {
            getattr(time, name)
            for name in ("CLOCK_MONOTONIC", "CLOCK_MONOTONIC_RAW", "CLOCK_BOOTTIME")
            if hasattr(time, name)
        }
        for name, unit in (("clock_gettime", 1_000_000_000), ("clock_gettime_ns", 1)):
            before = getattr(time, name)

            def virtual(clock_id: int, before: Any = before, unit: int = unit) -> Any:
                if clock_id in monotonic:
                    ns = self._clock.monotonic_ns()
                elif wall and clock_id == time.CLOCK_REALTIME:
                    ns = self._clock.time_ns()
                else:
                    return before(clock_id)
                return ns if unit == 1 else ns / unit

            self._function(name, virtual)

    def _sleep(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("sleep length must be non-negative")
        self._wait(Wait(), seconds, then=lambda rest: _real_sleep(rest or 0.0))

    def _wait(
        self,
        wait: Wait,
        seconds: float | None,
        *,
        then: Callable[[float | None], Any] | None = None,
    ) -> Outcome:
        """Wait on the clock; if the block ends first, do the rest of the wait really."""
        clock = self._clock
        begun = clock.monotonic()
        ns = None if seconds is None else _ns(seconds)
        outcome = clock.wait(wait, ns, owner=self)
        if outcome is Outcome.RELEASED and then is not None:
            then(None if seconds is None else max(0.0, seconds - (clock.monotonic() - begun)))
        return outcome

    # --- threading ------------------------------------------------------------------------------

    def replace_threading(self) -> None:
        """Replace what blocks: conditions (and all that is made of them), joins, simple queues."""
        callers, starting = self._callers, self._starting

        def wait(condition: Any, timeout: float | None = None) -> bool:
            if (
                not self._live
                or getattr(starting, "now", False)
                or (timeout is not None and timeout <= 0)
                or callers.exempt(sys._getframe(1))
            ):
                return _real_wait(condition, timeout)
            return self._wait_for_notify(condition, timeout)

        def start(thread: threading.Thread) -> None:
            # A started thread, or one whose constructor was not called, gets the real error.
            if not self._live or callers.exempt(sys._getframe(1)) or _cannot_start(thread):
                _real_start(thread)
                return
            starting.now = True
            try:
                self._clock.timeline.start(thread, lambda: _real_start(thread))
            finally:
                starting.now = False

        def join(thread: threading.Thread, timeout: float | None = None) -> None:
            if (
                not self._live
                or (timeout is not None and timeout <= 0)
                or not thread.is_alive()
                or thread is threading.current_thread()
                or callers.exempt(sys._getframe(1))
            ):
                _real_join(thread, timeout)
                return
            outcome = self._wait(EndWait(thread), timeout)
            if outcome is not Outcome.TIME:
                _real_join(thread, None if outcome is Outcome.READY else timeout)

        self._set(threading.Condition, "wait", wait)
        self._set(threading.Thread, "start", start)
        self._set(threading.Thread, "join", join)
        # The one in C blocks where the clock cannot see; the standard library has one in Python.
        visible = getattr(queue, "_PySimpleQueue", None)
        if visible is not None and queue.SimpleQueue is not visible:
            self._names[id(queue.SimpleQueue)] = visible
            self._set(queue, "SimpleQueue", visible)
            # That class is real and stays: there is nothing to take back from other modules.
            self._back.pop(id(visible))

    def _wait_for_notify(self, condition: Any, timeout: float | None) -> bool:
        """Do what `Condition.wait` does, with the clock in place of the timeout."""
        if not condition._is_owned():
            raise RuntimeError("cannot wait on un-acquired lock")
        wait = NotifiedWait()
        condition._waiters.append(wait.gate)
        saved = condition._release_save()
        notified = False

        def really(rest: float | None) -> None:
            nonlocal notified
            notified = wait.gate.acquire(timeout=-1 if rest is None else rest)

        try:
            if self._wait(wait, timeout, then=really) is Outcome.READY:
                notified = True
            return notified
        finally:
            condition._acquire_restore(saved)
            if not notified:
                try:
                    condition._waiters.remove(wait.gate)
                except ValueError:
                    pass


def _cannot_start(thread: threading.Thread) -> bool:
    started = getattr(thread, "_started", None)
    return started is None or started.is_set()


def _ns(seconds: float) -> int:
    return timedelta(seconds=seconds) // timedelta(microseconds=1) * 1000


_REAL_TIME = {
    name: getattr(time, name)
    for name in (
        "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep", "ctime", "asctime",
        "localtime", "gmtime", "strftime", "time", "time_ns", "clock_gettime", "clock_gettime_ns",
    )
    if hasattr(time, name)
}  # fmt: skip
