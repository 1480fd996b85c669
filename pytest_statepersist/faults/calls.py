"""What a call on the state directory is, and which errors it can meet.

Belongs here: `Call`, and the table of errors that fit each operation, as the manual pages of Linux
give them. Nothing here makes a call fail. Rules:

1. An error fits where the system call can return it on a file system that works as documented.
2. Python makes a call again that a signal interrupted (PEP 475), so EINTR fits no Python call but
   `close`; SQLite and other programs meet it everywhere. What a file system had put off (NFS
   does) can fail as late as in `close`, for want of space as well.
3. "short" is no error: fewer bytes are written than were asked for, and the call says so.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pytest_statepersist.core.operations import Site
from pytest_statepersist.errors import UserError

__all__ = ["ERRORS", "SHORT", "Call", "FaultSite", "Operation", "fitting", "os_error"]

SHORT = "short"


class Operation(enum.Enum):
    """What kind of call it is."""

    OPEN = "open"
    READ = "read"
    WRITE = "write"
    FSYNC = "fsync"
    TRUNCATE = "truncate"
    ALLOCATE = "allocate"
    CLOSE = "close"
    RENAME = "rename"
    LINK = "link"
    SYMLINK = "symlink"
    UNLINK = "unlink"
    MKDIR = "mkdir"
    RMDIR = "rmdir"
    ATTRIBUTES = "attributes"
    LIST = "list"
    STAT = "stat"
    LOCK = "lock"

    @property
    def changes(self) -> bool:
        """Whether such a call can change the directory."""
        return self not in _CHANGES_NOTHING


_CHANGES_NOTHING = frozenset(
    {Operation.READ, Operation.LIST, Operation.STAT, Operation.LOCK, Operation.CLOSE}
)
ERRORS = ("ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES", "EMFILE", "ENOLCK", "EINTR", SHORT)
"""Every error that a sweep knows."""

_FULL = ("ENOSPC", "EDQUOT")
_NAMES = ("EIO", "EROFS", "EACCES")
_FITTING: dict[Operation, tuple[str, ...]] = {
    Operation.OPEN: ("EIO", "EACCES", "EMFILE"),
    Operation.READ: ("EIO",),
    Operation.WRITE: (*_FULL, "EIO", SHORT),
    Operation.FSYNC: ("EIO", *_FULL),
    Operation.TRUNCATE: ("EIO", "EROFS"),
    Operation.ALLOCATE: (*_FULL, "EIO"),
    Operation.CLOSE: ("EIO", *_FULL, "EINTR"),
    Operation.RENAME: (*_FULL, *_NAMES),
    Operation.LINK: (*_FULL, *_NAMES),
    Operation.SYMLINK: (*_FULL, *_NAMES),
    Operation.UNLINK: _NAMES,
    Operation.MKDIR: (*_FULL, *_NAMES),
    Operation.RMDIR: _NAMES,
    Operation.ATTRIBUTES: _NAMES,
    Operation.LIST: ("EIO", "EACCES", "EMFILE"),
    Operation.STAT: ("EIO", "EACCES"),
    Operation.LOCK: ("ENOLCK",),
}
_IN_C = frozenset({Operation.OPEN, Operation.READ, Operation.WRITE, Operation.FSYNC})


@dataclass(slots=True)
class Call:
    """One call on the directory that is about to be made.

    ``path`` is relative to the directory, ``size`` in bytes for reads and writes. ``writes`` and
    ``creates`` say what an open is for. ``shorten(n)`` makes the call with n bytes only; ``native``
    calls come from C code, which sees EINTR.
    """

    operation: Operation
    path: str
    function: str
    size: int = 0
    writes: bool = False
    creates: bool = False
    native: bool = False
    descriptor: int | None = None
    data: memoryview | None = None
    """What a write is to write, where that is known."""
    synchronous: bool = False
    """Whether an open asks that each write is synced."""
    shorten: Callable[[int], Any] | None = None
    growth: Callable[[], int] | None = None
    """How many bytes the call would add to what the directory takes; ``None`` for none."""
    site: Site | None = None
    """Where it came from, for a call of another program; that of Python's is looked up."""
    nth: int = 0
    """The how-manieth call of its name that its process makes, where that is counted."""
    foreign: bool = False
    """Whether another program makes it, once the handler has returned."""
    rewrite: Callable[[bytes], None] | None = None
    """Gives the file of a sync another content, for code that shares no descriptor with Python."""


@dataclass(frozen=True, slots=True)
class FaultSite:
    """One call that a workload made: where a fault can be put."""

    index: int
    operation: Operation
    path: str
    function: str
    site: Site | None
    errors: tuple[str, ...]
    reverts: bool = False
    """Whether it is a sync of a file whose content can revert when it fails."""
    only_keeps: bool = False
    """Whether it is a sync of contents that revert on some file systems, which is not tried."""
    nth: int = 0
    """The how-manieth call of its name in its process, where strace is to make it fail."""
    through: Site | None = None
    """The line of an installed library that made the call for the line that is blamed."""

    def __str__(self) -> str:
        where = f" at {self.site}" if self.site else ""
        where += f", through {self.through}" if self.through else ""
        return f"{self.function}({self.path!r}){where}"


def fitting(call: Call) -> tuple[str, ...]:
    """Return the errors that a call can meet, by name."""
    errors = _FITTING[call.operation]
    if call.operation is Operation.OPEN and call.creates:
        errors = (*_FULL, *errors)
    if call.operation is Operation.OPEN and call.writes:
        errors = (*errors, "EROFS")
    if call.native and call.operation in _IN_C:
        errors = (*errors, "EINTR")
    if call.shorten is None or call.size < 2:
        errors = tuple(error for error in errors if error != SHORT)
    return errors


def os_error(name: str, path: str | None = None) -> OSError:
    """Return the exception that Python raises for an error of this name."""
    number: int = getattr(errno, name)
    return (
        OSError(number, os.strerror(number))
        if path is None
        else OSError(number, os.strerror(number), path)
    )


def check_errors(errors: Iterable[str]) -> tuple[str, ...]:
    """Return the names as a tuple; raises `UserError` for one that is unknown."""
    chosen = (errors,) if isinstance(errors, str) else tuple(errors)
    for name in chosen:
        if name not in ERRORS:
            raise UserError(f"there is no error {name!r} to inject; choose from {ERRORS}")
    if not chosen:
        raise UserError("no error was named; leave errors= out for all that fit")
    return chosen


def check_operations(operations: Iterable[str | Operation] | None) -> frozenset[Operation]:
    """Return the kinds of call asked for, all where None; raises `UserError` for an unknown."""
    if operations is None:
        return frozenset(Operation)
    names = (operations,) if isinstance(operations, str | Operation) else tuple(operations)
    known = {each.value: each for each in Operation}
    found = set()
    for name in names:
        kind = name if isinstance(name, Operation) else known.get(name)
        if kind is None:
            raise UserError(f"there is no operation {name!r}; choose from {tuple(known)}")
        found.add(kind)
    if not found:
        raise UserError("no operation was named; leave operations= out for all of them")
    return frozenset(found)
