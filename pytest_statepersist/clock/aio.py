"""Puts asyncio's event loops on a clock.

Belongs here: the one place where a loop of the standard library waits. `loop.time()` asks
`time.monotonic`, which `patches` has replaced; what is left is the selector, which a loop asks to
wait until its next timer. Rules:

1. Only a loop's own call is virtual: a selector in anyone else's hands works as ever.
2. A loop that listens to real sockets or pipes is given a moment of real time before virtual time
   moves, and waits really when it has no timer.
"""

from __future__ import annotations

import math
import selectors
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytest_statepersist.clock.timeline import Outcome, Wait

if TYPE_CHECKING:
    from pytest_statepersist.clock.state import StateClock

__all__ = ["loops_on"]

_KINDS = ("SelectSelector", "PollSelector", "EpollSelector", "DevpollSelector", "KqueueSelector")
_GRACE_S = 0.02


@contextmanager
def loops_on(clock: StateClock) -> Iterator[None]:
    """Let every selector event loop, running or to come, wait on the clock for a block."""
    undo: list[tuple[type[Any], Any, bool, Any]] = []
    live = [True]
    for kind in (getattr(selectors, name, None) for name in _KINDS):
        if kind is None:
            continue
        own, before = "select" in kind.__dict__, kind.select
        new = _virtual_select(clock, before, live)
        undo.append((kind, before, own, new))
        kind.select = new
    try:
        yield
    finally:
        live.clear()
        for kind, before, own, new in reversed(undo):
            if kind.select is new:
                if own:
                    kind.select = before
                else:
                    del kind.select


def _virtual_select(
    clock: StateClock, real: Callable[..., list[Any]], live: list[bool]
) -> Callable[..., list[Any]]:
    def select(selector: Any, timeout: float | None = None) -> list[Any]:
        frame = sys._getframe(1)
        if not live or frame.f_globals.get("__name__") != "asyncio.base_events":
            return real(selector, timeout)
        events = real(selector, 0)
        if events or (timeout is not None and timeout <= 0):
            return events
        wait = _LoopWait(frame.f_locals["self"], selector, real)
        del frame
        # At least a microsecond, the clock's resolution, or the loop would ask again for ever.
        ns = None if timeout is None else max(1, math.ceil(round(timeout * 1e6, 3))) * 1000
        outcome = clock.wait(wait, ns, owner=live)
        return [] if outcome is Outcome.TIME else real(selector, 0)

    return select


class _LoopWait(Wait):
    """A loop that waits for events of its selector, or for its next timer."""

    what = "an event loop's next event"

    def __init__(self, loop: Any, selector: Any, real: Callable[..., list[Any]]) -> None:
        super().__init__()
        self._loop = loop
        self._selector = selector
        self._real = real
        # One descriptor is the loop's own, through which other threads wake it.
        self._sockets = len(selector.get_map() or ()) > 1
        self.grace_s = _GRACE_S if self._sockets else 0.0

    def ready(self) -> bool:
        return bool(self._real(self._selector, 0))

    def outside(self) -> bool:
        return self._sockets

    def block(self) -> None:
        self._real(self._selector, None)

    def wake(self) -> bool:
        try:
            self._loop.call_soon_threadsafe(lambda: None)
        except RuntimeError:
            pass  # closed meanwhile: nobody waits any more
        return True

    def release(self) -> None:
        self.released = True
        self.wake()

    def linger(self, seconds: float) -> bool:
        return bool(self._real(self._selector, max(0.0, seconds)))
