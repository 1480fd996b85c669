"""Making one call of a run fail, once or from there on.

Belongs here: `Fault`, what is to go wrong, and `Injection`, the handler that counts the calls of a
run and lets the chosen one fail. Rules:

1. Calls are counted in the order in which they are made, from 0, whatever thread makes them.
2. A one-shot fault hits one call. A persistent one hits that call and every later one that the
   error fits, as a full disk or one that was remounted read-only does.
3. A persistent full disk writes half of the first write that it stops: a disk fills up in the
   middle of something.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytest_statepersist.faults.calls import (
    SHORT,
    Call,
    FaultSite,
    Operation,
    fitting,
    os_error,
)
from pytest_statepersist.faults.gate import fail_sync
from pytest_statepersist.recorders.callsite import CallSites

__all__ = ["Counting", "Fault", "Injection"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to go wrong: the error that the call at ``index`` meets.

    ``phase`` is "workload", or "recovery before" or "recovery after": on the tree before or after
    the workload.
    """

    index: int
    error: str
    persistent: bool = False
    phase: str = "workload"

    def __str__(self) -> str:
        lasting = " from there on" if self.persistent else ""
        return f"{self.error} at call {self.index}{lasting} ({self.phase})"


class Counting:
    """A handler that lets every call through and keeps where each could have failed."""

    def __init__(self) -> None:
        self.sites: list[FaultSite] = []
        self._lock = threading.Lock()
        self._callsites = CallSites()

    def __call__(self, call: Call, run: Callable[[], Any]) -> Any:
        """Note the call and make it."""
        with self._lock:
            self.sites.append(
                FaultSite(
                    len(self.sites),
                    call.operation,
                    call.path,
                    call.function,
                    call.site or self._callsites.site(),
                    fitting(call),
                )
            )
        return run()


class Injection:
    """A handler that lets one fault happen; ``hits`` counts the calls that met it."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.count = 0
        self.hits = 0
        self.began = 0
        """What ``position`` gave when the fault came first: the length of a recording."""
        self.position: Callable[[], int] | None = None
        self._lock = threading.Lock()

    def __call__(self, call: Call, run: Callable[[], Any]) -> Any:
        """Make the call, or let it fail."""
        fault = self.fault
        with self._lock:
            index = self.count
            self.count += 1
        if index < fault.index or (index > fault.index and not fault.persistent):
            return run()
        if fault.error not in fitting(call):
            return run()
        self.hits += 1
        if self.hits == 1 and self.position is not None:
            self.began = self.position()
        return self._fail(call, run)

    def _fail(self, call: Call, run: Callable[[], Any]) -> Any:
        error = self.fault.error
        half = call.size // 2
        if error == SHORT:
            assert call.shorten is not None  # else it would not fit
            return call.shorten(half)
        fills_up = self.fault.persistent and error in ("ENOSPC", "EDQUOT") and self.hits == 1
        if fills_up and call.shorten is not None and half:
            return call.shorten(half)
        if call.operation is Operation.FSYNC and not call.native:
            return fail_sync(os_error(error), run)
        if call.operation is Operation.CLOSE:
            run()  # the descriptor is released whatever close says
        raise os_error(error, call.path)
