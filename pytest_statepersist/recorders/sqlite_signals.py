"""Signal handlers wait while SQLite is in a callback.

Belongs here: `DeferredSignals`. Python runs its handlers at the start of any Python function, so a
time limit or Ctrl-C often falls on a callback that C code has just entered. What the handler raises
is lost there, and the C code gets a result that nobody set. So, while a recording runs, a handler
that falls into a callback is sent again a moment later, until it falls outside.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable, Iterable
from types import CodeType, FrameType
from typing import Any

__all__ = ["DeferredSignals"]

_DELAY = 0.001  # seconds; a callback takes some microseconds


class DeferredSignals:
    """Wraps the handlers that Python code has set; ``codes`` are those of the callbacks."""

    def __init__(self, codes: Iterable[CodeType]) -> None:
        self._codes = frozenset(codes)
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def install(self) -> None:
        """Wrap the handlers; only the main thread may, and only it ever runs one."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler) and not isinstance(handler, signal.Handlers):
                self._before[number] = handler
                signal.signal(number, self._handle)

    def remove(self) -> None:
        """Put the handlers back, apart from those that were changed meanwhile."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in list(self._before.items()):
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)
                del self._before[number]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        below = frame
        while below is not None:
            if below.f_code in self._codes:
                again = threading.Timer(_DELAY, _thread.interrupt_main, (number,))
                again.daemon = True
                again.start()
                return
            below = below.f_back
        self._before[number](number, frame)
