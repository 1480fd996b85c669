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

import hashlib
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_statepersist.core import operations as op
from pytest_statepersist.faults.calls import (
    SHORT,
    Call,
    FaultSite,
    Operation,
    fitting,
    os_error,
)
from pytest_statepersist.faults.gate import current, fail_sync
from pytest_statepersist.faults.leftovers import Leftover, Synced
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.callsite import CallSites

__all__ = ["NATIVE", "Counting", "Fault", "Injection", "uncounted"]

NATIVE = object()
"""Stands for calls of C code among those that an injection has noted."""


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
    leaves: Leftover = Leftover.KEPT
    """What reads give after a sync that met it."""

    def __str__(self) -> str:
        lasting = " from there on" if self.persistent else ""
        reverted = ", content reverted" if self.leaves is Leftover.REVERTED else ""
        return f"{self.error} at call {self.index}{lasting}{reverted} ({self.phase})"


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
                    _can_revert(call),
                )
            )
        return run()


_COUNTED: dict[type, Operation] = {
    op.Write: Operation.WRITE,
    op.Fsync: Operation.FSYNC,
    op.Rename: Operation.RENAME,
    op.Unlink: Operation.UNLINK,
    op.Mkdir: Operation.MKDIR,
    op.Link: Operation.LINK,
}


def uncounted(
    trace: op.Trace, sites: Sequence[FaultSite]
) -> Iterator[tuple[Operation, int, int]]:
    """Yield the kinds of call of which more were recorded than came by: (kind, recorded, came)."""
    for kind, operation in _COUNTED.items():
        recorded = sum(isinstance(each, kind) for each in trace.operations)
        counted = sum(site.operation is operation for site in sites)
        if recorded > counted:
            yield operation, recorded, counted


class Injection:
    """A handler that lets one fault happen; ``hits`` counts the calls that met it."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.count = 0
        self.hits = 0
        self.began = 0
        """What ``position`` gave when the fault came first: the length of a recording."""
        self.failed_syncs = 0
        self.calls: list[Any] | None = None
        """What was called and written, where a list is given for it."""
        self.position: Callable[[], int] | None = None
        self._lock = threading.Lock()
        self._inside = threading.local()
        self._synced: Synced | None = None

    def __call__(self, call: Call, run: Callable[[], Any]) -> Any:
        """Make the call, or let it fail."""
        if self.fault.leaves is Leftover.KEPT:
            return self._meet(call, run)
        if getattr(self._inside, "at_work", False):
            return run()  # our own call, that puts a content back
        if self._synced is None:
            gate = current()
            assert gate is not None  # it has just asked this handler
            self._synced = Synced(gate.directory)
        self._synced.before(call)
        result = self._meet(call, run)
        self._synced.after(call)
        return result

    def _meet(self, call: Call, run: Callable[[], Any]) -> Any:
        fault = self.fault
        with self._lock:
            index = self.count
            self.count += 1
        if self.calls is not None:
            self.calls.append(_sign(call))
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
        if call.operation is Operation.FSYNC:
            self.failed_syncs += 1
            if not call.native:
                self._fail_sync(call, run)
        if call.operation is Operation.CLOSE:
            run()  # the descriptor is released whatever close says
        raise os_error(error, call.path)

    def _fail_sync(self, call: Call, run: Callable[[], Any]) -> None:
        try:
            fail_sync(os_error(self.fault.error), run)
        finally:
            if self._synced is not None:
                self._inside.at_work = True
                try:
                    self._synced.put_back(call)
                finally:
                    self._inside.at_work = False


def _sign(call: Call) -> Any:
    """Return what tells a call from others; what C code does cannot be told."""
    if call.native:
        return (NATIVE,)
    data = b"" if call.data is None else hashlib.blake2b(call.data).digest()
    return call.operation, call.path, call.function, call.size, data


def _can_revert(call: Call) -> bool:
    if call.operation is not Operation.FSYNC or call.native or call.descriptor is None:
        return False
    return stat.S_ISREG(real.fstat(call.descriptor).st_mode)
