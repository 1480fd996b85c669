"""Making one call of a run fail, once or from there on.

Belongs here: `Fault`, what is to go wrong, and `Injection`, the handler that counts the calls of a
run and lets the chosen one fail. Rules:

1. Calls are counted in the order in which they are made, from 0, whatever thread makes them.
2. A one-shot fault hits one call. A persistent one hits that call and every later one that the
   error fits, as a full disk or one that was remounted read-only does.
3. A persistent full disk writes half of the first write that it stops: a disk fills up in the
   middle of something. What is there already can be synced, closed and renamed on it, unless such a
   call is what has failed: a store that overlooks the write gets no second error.
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
from pytest_statepersist.faults.gate import current
from pytest_statepersist.faults.installing import fail_sync
from pytest_statepersist.faults.leftovers import OF_EVERYTHING, Leftover, Synced
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.callsite import CallSites

__all__ = ["FAILED", "NATIVE", "Counting", "Fault", "Injection", "uncounted"]

NATIVE = object()
"""Stands for calls of C code among those that an injection has noted."""
FAILED = ("failed",)
"""Stands behind a call that was made to fail, or to do a part."""


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


_NEEDS_NONE = frozenset({Operation.FSYNC, Operation.CLOSE, Operation.RENAME, Operation.LINK})
"""What takes no space as a rule, though it can be told that there is none."""


class Counting:
    """A handler that lets every call through and keeps where each could have failed."""

    def __init__(self) -> None:
        self.sites: list[FaultSite] = []
        self._lock = threading.Lock()
        self._callsites = CallSites()

    def __call__(self, call: Call, run: Callable[[], Any]) -> Any:
        """Note the call and make it."""
        site, through = call.site, None
        if site is None:
            site, through = self._callsites.own()
        with self._lock:
            self.sites.append(
                FaultSite(
                    len(self.sites),
                    call.operation,
                    call.path,
                    call.function,
                    site,
                    fitting(call),
                    *_what_may_be_left(call),
                    call.nth,
                    through,
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
        """How many syncs of contents failed; that of a directory leaves nothing to differ in."""
        self.reverted = 0
        """How many files one failed sync has put back at most."""
        self.calls: list[Any] | None = None
        """What was called and written, where a list is given for it."""
        self.position: Callable[[], int] | None = None
        self._first: Operation | None = None
        """What kind of call met it first."""
        self._lock = threading.Lock()
        self._inside = threading.local()
        self._synced: Synced | None = None
        self._keeps = fault.leaves is Leftover.KEPT
        self._due: list[tuple[Call, bool]] = []
        """Calls that C code had not finished when they were answered, and whether they failed."""

    def __call__(self, call: Call, run: Callable[[], Any]) -> Any:
        """Make the call, or let it fail."""
        if self._keeps:
            return self._meet(call, run)
        if getattr(self._inside, "at_work", False):
            return run()  # our own call, that puts a content back
        if self._synced is None:
            gate = current()
            assert gate is not None  # it has just asked this handler
            self._synced = Synced(gate.directory)
        self.settle()
        self._synced.before(call)
        result = self._meet(call, run)
        if call.foreign:
            self._due.append((call, False))
        elif not (call.native and call.operation is Operation.FSYNC and result):
            self._synced.after(call)
        return result

    def settle(self) -> None:
        """Do what is due since the last call of C code: before the next one, and at the end."""
        due, self._due = self._due, []
        for call, failed in due:
            assert self._synced is not None  # nothing is due without it
            if failed:
                self._put_back(call)
            else:
                self._synced.after(call)

    def told(self, call: Call, *, failed: bool) -> None:
        """Note a call that was made already, and whether it was made to fail."""
        self.count += 1
        if self.calls is not None:
            self.calls.append(_sign(call))
        if failed:
            self.hits += 1
            if self.calls is not None:
                self.calls.append(FAILED)
            if call.operation is Operation.FSYNC:
                self.failed_syncs += _is_of_contents(call)

    def _meet(self, call: Call, run: Callable[[], Any]) -> Any:
        fault = self.fault
        with self._lock:
            index = self.count
            self.count += 1
        if self.calls is not None:
            self.calls.append(_sign(call))
        if index < fault.index or (index > fault.index and not fault.persistent):
            return run()
        if fault.error not in fitting(call) or (self.hits and self._has_room(call)):
            return run()
        self.hits += 1
        if self.hits == 1:
            self._first = call.operation
        if self.calls is not None:
            self.calls.append(FAILED)
        if self.hits == 1 and self.position is not None:
            self.began = self.position()
        return self._fail(call, run)

    def _has_room(self, call: Call) -> bool:
        """Say whether a disk that some call found full takes another one, which needs no space."""
        full = self.fault.error in ("ENOSPC", "EDQUOT")
        return full and call.operation in _NEEDS_NONE and self._first not in _NEEDS_NONE

    def _fail(self, call: Call, run: Callable[[], Any]) -> Any:
        error = self.fault.error
        half = call.size // 2
        if error == SHORT:
            assert call.shorten is not None  # else it would not fit
            return self._shorten(call, half)
        fills_up = self.fault.persistent and error in ("ENOSPC", "EDQUOT") and self.hits == 1
        if fills_up and call.shorten is not None and half:
            return self._shorten(call, half)
        if call.operation is Operation.FSYNC:
            contents = _is_of_contents(call)
            self.failed_syncs += contents
            if not call.native:
                self._fail_sync(call, run)
            if contents and self._synced is not None:
                self._due.append((call, True))
        if call.operation is Operation.CLOSE:
            run()  # the descriptor is released whatever close says
        raise os_error(error, call.path)

    def _shorten(self, call: Call, count: int) -> Any:
        assert call.shorten is not None  # that was asked
        if self.calls is not None:
            self.calls.append(("short", count))
        return call.shorten(count)

    def _fail_sync(self, call: Call, run: Callable[[], Any]) -> None:
        try:
            fail_sync(os_error(self.fault.error), run)
        finally:
            self._put_back(call)

    def _put_back(self, call: Call) -> None:
        if self._synced is None:
            return
        self._inside.at_work = True
        try:
            self.reverted = max(self.reverted, self._synced.put_back(call))
        finally:
            self._inside.at_work = False


def _sign(call: Call) -> Any:
    """Return what tells a call from others; what C code does cannot be told."""
    if call.native:
        return (NATIVE,)
    data = b"" if call.data is None else hashlib.blake2b(call.data).digest()
    return call.operation, call.path, call.function, call.size, data


def _what_may_be_left(call: Call) -> tuple[bool, bool]:
    """Return whether contents may revert where this call fails, and whether that is not tried."""
    if call.operation is not Operation.FSYNC or not _is_of_contents(call):
        return False, False
    reverts = not call.native or call.foreign or call.rewrite is not None
    return reverts, not reverts


def _is_of_contents(call: Call) -> bool:
    """Say whether a sync is one of contents, not of a directory."""
    if call.function in OF_EVERYTHING:
        return True
    try:
        if call.descriptor is not None:
            return not stat.S_ISDIR(real.fstat(call.descriptor).st_mode)
        gate = current()
        assert gate is not None  # it has just asked this handler
        return not stat.S_ISDIR(real.stat(f"{gate.prefix}{call.path}").st_mode)
    except OSError:
        return True
