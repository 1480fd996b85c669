"""What the kernel says happened, against what the trace says.

Belongs here: an inotify queue for one recording and the proof that every event in it is explained.
The rules, of Linux (inotify(7), fs/notify):

1. One queue has one order. Creations, removals and moves of names must be the trace's, one by one.
2. A MODIFY event says which name was written through. It must fall between the same two changes of
   names as a write, truncation or allocation of that file in the trace. Equal neighbours in the
   queue are merged, so a missing event means nothing.
3. A CLOSE_WRITE event of a file that no recorder saw being opened for writing means that something
   else had it open: a mapping, a child process, native code.
4. A sync leaves no event and no other mark: what native code syncs cannot be seen here.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.tree import Directory, Tree
from pytest_statepersist.recorders import real

__all__ = ["Notifications", "Unexplained", "explain"]

_MODIFY, _CLOSE_WRITE = 0x2, 0x8
_FROM, _TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_OVERFLOW = 0x4000
_EXCLUDE_UNLINKED = 0x04000000
_MASK = _MODIFY | _CLOSE_WRITE | _FROM | _TO | _CREATE | _DELETE | _EXCLUDE_UNLINKED
_NAMES = _FROM | _TO | _CREATE | _DELETE
_VERBS = {
    _FROM: "renamed away",
    _TO: "renamed to",
    _CREATE: "created",
    _DELETE: "removed",
    _MODIFY: "written",
    _CLOSE_WRITE: "open for writing",
}
_HEADER = struct.Struct("iIII")
_BUFFER = 1 << 14
_FULL = _BUFFER - _HEADER.size - 256
"""From so many bytes on a read may have left an event, with the longest name that there can be."""
_read = real.read


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its kind (one bit), the directory's inode number, the entry, and a bound.

    It was read when the recording had ``before`` operations; at ``after`` the queue was empty.
    """

    kind: int
    directory: int
    name: str
    after: int
    before: int


@dataclass(frozen=True, slots=True)
class Unexplained:
    """The first event that the trace does not explain."""

    path: str
    verb: str


class Notifications:
    """An inotify queue for the directories of one recording.

    Where the platform has none, or it overflows, `unproved` says why nothing can be proved.
    """

    def __init__(self) -> None:
        self.unproved: str | None = None
        self.closed = False
        self.since: dict[int, int] = {}
        """Inode numbers of the watched directories, and when the watch began."""
        self._directories: dict[int, int] = {}
        self._chunks: list[tuple[bytes, int, int]] = []
        self._drained = 0
        self._descriptor = -1
        self._libc = _library()
        if self._libc is None or not hasattr(self._libc, "inotify_init1"):
            self.unproved = "this platform has no inotify"
            return
        self._descriptor = _spare_queue()
        if self._descriptor < 0:
            self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            self._fail("inotify gives no queue (fs.inotify.max_user_instances?)")

    def watch(self, number: int, path: str, *, since: int = 0) -> None:
        """Watch the entries of a real directory, which is this inode of the trace.

        ``since`` is how many operations were recorded before.
        """
        if self._descriptor < 0 or self._libc is None:
            return
        watch = self._libc.inotify_add_watch(self._descriptor, os.fsencode(path), _MASK)
        if watch < 0:
            self._fail(f"inotify cannot watch {path} (fs.inotify.max_user_watches?)")
        else:
            self._directories[watch] = number
            self.since.setdefault(number, since)

    def drain(self, before: int) -> None:
        """Take what is in the queue; it belongs to the first ``before`` operations."""
        if self._descriptor < 0:
            return
        after, self._drained = self._drained, before
        try:
            chunk = _read(self._descriptor, _BUFFER)
            self._chunks.append((chunk, after, before))
            # A read gives as many events as fit (inotify(7)): with room for one more left over,
            # that was all.
            while len(chunk) > _FULL:
                chunk = _read(self._descriptor, _BUFFER)
                self._chunks.append((chunk, after, before))
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give the queue back; called twice it does nothing."""
        self.closed = True
        if self._descriptor >= 0 and self._libc is not None:
            for watch in self._directories:
                self._libc.inotify_rm_watch(self._descriptor, watch)
            _keep_queue(self._descriptor)
            self._descriptor = -1

    def events(self) -> Iterator[Event]:
        """Yield what was drained, in the kernel's order."""
        for chunk, after, before in self._chunks:
            at = 0
            while at < len(chunk):
                watch, mask, _, length = _HEADER.unpack_from(chunk, at)
                at += _HEADER.size + length
                if mask & _OVERFLOW:
                    self.unproved = "the queue of inotify overflowed"
                    return
                name = os.fsdecode(chunk[at - length : at].rstrip(b"\0"))
                directory = self._directories.get(watch)
                if directory is not None and name:
                    yield Event(mask & _MASK, directory, name, after, before)

    def _fail(self, what: str) -> None:
        self.unproved = f"{what}: {os.strerror(ctypes.get_errno())}"
        if self._descriptor >= 0:
            real.close(self._descriptor)
            self._descriptor = -1


@cache
def _library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


_spare: list[tuple[int, int]] = []
"""A queue that is not in use, and the process that made it: to close one takes milliseconds."""


def _spare_queue() -> int:
    while _spare:
        process, descriptor = _spare.pop()
        if process == os.getpid():
            _empty(descriptor)
            return descriptor
    return -1


def _keep_queue(descriptor: int) -> None:
    if _spare:
        real.close(descriptor)
    else:
        _spare.append((os.getpid(), descriptor))


def _empty(descriptor: int) -> None:
    try:
        while real.read(descriptor, _BUFFER):
            pass
    except BlockingIOError:
        pass


class _Names:
    """The names at a position of the trace."""

    def __init__(self, base: Tree) -> None:
        self.entries: dict[tuple[int, str], int] = {
            (number, name): child
            for number, node in base.nodes.items()
            if isinstance(node, Directory)
            for name, child in node.entries.items()
        }
        self._paths: dict[int, str] = {number: path for path, number, _ in base.walk()}

    def path(self, directory: int, name: str) -> str:
        above = self._paths.get(directory, "")
        return f"{above}/{name}" if above else name

    def step(self, operation: op.Operation) -> None:
        match operation:
            case op.Create() | op.Mkdir() | op.Symlink() | op.Link():
                self._set(operation.parent, operation.name, operation.inode)
            case op.Unlink() | op.Rmdir():
                self.entries.pop((operation.parent, operation.name), None)
            case op.Rename():
                self.entries.pop((operation.parent, operation.name), None)
                self._set(operation.new_parent, operation.new_name, operation.inode)
                if operation.exchange and operation.replaced is not None:
                    self._set(operation.parent, operation.name, operation.replaced)

    def _set(self, parent: int, name: str, inode: int) -> None:
        self.entries[parent, name] = inode
        self._paths[inode] = self.path(parent, name)


_Expected: TypeAlias = tuple[int, int, str]


def _events(operation: op.Operation) -> list[_Expected]:
    """Return the (kind, directory, name) of the events of names that an operation must leave."""
    match operation:
        case op.Create() | op.Mkdir() | op.Symlink() | op.Link():
            events = [(_CREATE, operation.parent, operation.name)]
        case op.Unlink() | op.Rmdir():
            events = [(_DELETE, operation.parent, operation.name)]
        case op.Rename():
            old = (operation.parent, operation.name)
            new = (operation.new_parent, operation.new_name)
            events = [(_FROM, *old), (_TO, *new)]
            if operation.exchange:
                events += [(_FROM, *new), (_TO, *old)]
        case _:
            return []
    return events


class _Explainer:
    """Walks through the trace as the events ask for it."""

    def __init__(self, trace: op.Trace, since: dict[int, int]) -> None:
        self.names = _Names(trace.base)
        self._since = since
        self._operations = trace.operations
        self._position = 0
        self._looked = -1, list[_Expected]()
        """For which operation the events were worked out last, and what they are."""
        self._changed: set[int] = set()
        self._owed: list[_Expected] = []

    def window(self, start: int) -> None:
        """Forget what was written before operation ``start``: its events were read before."""
        while self._position < min(start, len(self._operations)):
            self._step()
        self._changed.clear()

    def name(self, event: Event) -> bool:
        """Say whether the next change of a name in the trace is this one."""
        while not self._owed and self._position < len(self._operations):
            self._owed = [*self._expected()]
            self._step()
        if self._owed[:1] != [(event.kind, event.directory, event.name)]:
            return False
        self._owed.pop(0)
        return True

    def write(self, inode: int | None, end: int) -> bool:
        """Say whether this inode was written before operation ``end`` and the next new name."""
        while inode not in self._changed and self._position < min(end, len(self._operations)):
            if self._expected():
                break
            self._step()
        return inode in self._changed

    def _step(self) -> None:
        operation = self._operations[self._position]
        names_change = bool(self._expected())
        self._position += 1
        self.names.step(operation)
        if isinstance(operation, op.Write | op.Truncate | op.Allocate | op.ZeroRange):
            self._changed.add(operation.inode)
        elif names_change:
            self._changed.clear()

    def _expected(self) -> list[_Expected]:
        """Return the events of the next operation in directories that were watched by then."""
        at, events = self._looked
        if at != self._position:
            at, never = self._position, len(self._operations)
            events = _events(self._operations[at])
            events = [each for each in events if self._since.get(each[1], never) <= at]
            self._looked = at, events
        return events


def explain(
    trace: op.Trace,
    notifications: Notifications,
    *,
    opened: Callable[[int], bool],
    ignored: Callable[[str], bool] | None = None,
    positions: list[int] | None = None,
) -> Unexplained | None:
    """Return the first event that the trace does not explain, or ``None``.

    ``opened`` says whether a recorder saw an inode being opened for writing, ``ignored`` which
    paths do not count, ``positions`` how many of the first n recorded operations are in the trace.
    """
    if positions is None:
        positions = list(range(len(trace) + 1))
    last = len(positions) - 1
    since = {number: positions[min(at, last)] for number, at in notifications.since.items()}
    explainer = _Explainer(trace, since)
    read = (0, 0)
    for event in notifications.events():
        path = explainer.names.path(event.directory, event.name)
        if ignored is not None and ignored(path):
            continue
        if (event.after, event.before) != read:
            explainer.window(positions[min(event.after, last)])
            read = (event.after, event.before)
        if event.kind & _NAMES:
            explained = explainer.name(event)
        else:
            inode = explainer.names.entries.get((event.directory, event.name))
            if event.kind == _CLOSE_WRITE:
                explained = inode is not None and opened(inode)
            else:
                explained = explainer.write(inode, positions[min(event.before, last)])
        if not explained:
            return Unexplained(path, _VERBS.get(event.kind, "changed"))
    return None
