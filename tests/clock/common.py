"""What the tests of the clock share: a start, real time, and what must be put back.

Belongs here: nothing that judges.
"""

from __future__ import annotations

import datetime as dt
import os
import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic as bound_monotonic
from time import sleep as bound_sleep
from time import time as bound_time
from typing import Any

from pytest_statepersist.clock import (
    DatetimeAdapter,
)

START = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
DAY = 86_400.0
ADAPTERS = [DatetimeAdapter.TIME_MACHINE, DatetimeAdapter.FREEZEGUN]


class Real:
    """Real time: names of a module would be put on the clock, attributes of a class are not."""

    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)


def waits_for(condition: Callable[[], bool]) -> None:
    """Wait in real time for another thread; for what no virtual time can tell."""
    end = Real.monotonic() + 10
    while not condition():
        assert Real.monotonic() < end, "another thread never came so far"
        Real.sleep(0.002)


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
