"""Controllable time: a wall clock and a monotonic clock that a test moves by hand.

Belongs here: everything that decides what time it is for the code under test. Rules:

1. Time moves only when the test moves it, or when the thread that drives the clock waits.
2. Whatever waits on the clock is woken in one order: by deadline, callbacks before threads,
   callbacks in the order in which they were set, threads in the order in which they were met.
3. Whatever is patched is put back when its block ends, also when the block raises.

freezegun, time-machine and asyncio are imported only by the adapter that needs them.
"""

from __future__ import annotations

from pytest_statepersist.clock.hands import DstChange
from pytest_statepersist.clock.state import StateClock, Timer
from pytest_statepersist.clock.timeline import ClockClosed, ClockDeadlock, Waiting
from pytest_statepersist.clock.wall import DatetimeAdapter

__all__ = [
    "ClockClosed",
    "ClockDeadlock",
    "DatetimeAdapter",
    "DstChange",
    "StateClock",
    "Timer",
    "Waiting",
]
