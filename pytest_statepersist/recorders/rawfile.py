"""What a raw file of Python calls instead of its own methods while it is recorded.

Belongs here: `RawFile`, whose methods become attributes of one `io.FileIO`, which buffered layers
in C find by name. Rules:

1. The raw file is referred to weakly: one that nobody holds is closed at once.
2. Where a write goes is asked of the kernel, unless nobody but the file object can have moved the
   position: the recording saw it being opened, it cannot be read, it does not append, it was never
   sought in, and nobody was given its descriptor's number. Then it is counted, and the count is
   compared with the kernel's when the file is closed.
3. `RawFile.write` is written for speed: the plain case is recorded here, and all others by the
   session.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from pytest_statepersist.core.operations import Write
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.session import DRAIN, Description, Session, Slot

__all__ = ["ATTRIBUTES", "RawFile", "compare_position"]

ATTRIBUTES = ("write", "truncate", "close", "seek", "fileno")
"""The methods that may take the place of a raw file's own."""
_lseek, _getframe = real.lseek, sys._getframe
_write, _close, _FileIO = real.FileIO.write, real.FileIO.close, real.FileIO


class RawFile:
    """One raw file in one recording; `streams.attach` makes it, without a call that costs time."""

    __slots__ = ("closes", "fd", "found", "plain", "raw", "session", "slot")

    slot: Slot
    session: Session
    raw: Callable[[], Any]
    """A weak reference to it."""
    fd: int
    found: Description
    closes: bool
    """Whether the descriptor is closed with it."""
    plain: bool
    """Whether it is an `io.FileIO` itself, of no subclass."""

    def write(self, data: Any, /) -> int | None:
        """Write and record."""
        # Functions are taken from their objects before they are called: a call through an
        # attribute that is no method looks a method up first.
        session, referred = self.session, self.raw
        acquire, release, now = session.acquire, session.release, session.now
        acquire()
        try:
            raw = referred()
            if raw is None or not self.plain or self.slot.session is not session:
                return self._write_otherwise(raw, data)
            count: int | None = _write(raw, data)
            if not count:
                return count
            found = self.found
            node = found.node
            site = session.site_of(_getframe(1))
            kind = type(data)
            if (
                site is None
                or session.before_moment is not None
                or not node.inside
                or (
                    count != len(data)
                    if kind is bytes
                    else kind is not memoryview or count != data.nbytes
                )
            ):
                session.wrote(self.fd, found, data, count)
                return count
            if kind is memoryview:
                # Kept once where the same bytes come again: memory that is touched for the first
                # time costs more than all the rest here.
                data = data.tobytes()
                if data == session.previous:
                    data = session.previous
                else:
                    session.previous = data
            end = found.position
            if end < 0:
                end = _lseek(self.fd, 0, 1)
            else:
                end += count
                found.position = end
            at = node.changed = now()
            found.written = True
            if end > node.size:
                node.size = end
            log = session.log
            log.append(
                (Write, node.path, site, at, session.last_task, found.inode, end - count, data,
                 found.durability)
            )  # fmt: skip
            if not len(log) % DRAIN:
                session.drain()
            return count
        finally:
            release()

    def truncate(self, size: int | None = None, /) -> int:
        """Cut or lengthen, and record."""
        session, found = self.session, self.found
        with session.lock:
            raw = self.raw()
            result: int = type(raw).truncate(raw, size)
            if self.slot.session is session:
                session.builder.truncate(found.inode, result, session.moment())
                found.written = True
            return result

    def close(self) -> None:
        """Close and record."""
        session, found, fd, referred = self.session, self.found, self.fd, self.raw
        acquire, release = session.acquire, session.release
        acquire()
        try:
            raw = referred()
            ends = (raw is None or not raw.closed) and self.slot.session is session
            if ends and found.position >= 0:
                compare_position(session, fd, found)
            try:
                if raw is None:
                    if self.closes:
                        what = f"unclosed file {found.node.path!r}"
                        warnings.warn(what, ResourceWarning, stacklevel=2)
                        real.close(fd)
                elif self.plain:
                    _close(raw)
                else:
                    type(raw).close(raw)
            finally:
                if ends and self.closes and session.files.get(fd) is found:
                    session.closed(fd, _getframe(1))
        finally:
            release()

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Seek; from now on only the kernel knows the position."""
        self.found.position = -1
        result: int = _FileIO.seek(self.raw(), offset, whence)
        return result

    def fileno(self) -> int:
        """Give the descriptor out; from now on only the kernel knows the position."""
        self.found.position = -1
        result: int = _FileIO.fileno(self.raw())
        return result

    def _write_otherwise(self, raw: Any, data: Any) -> int | None:
        """Write where the object is gone, of a subclass, or no longer recorded."""
        session, fd, found = self.session, self.fd, self.found
        own = raw is not None and not self.plain
        start = _lseek(fd, 0, os.SEEK_CUR) if own else 0
        # Without the object (in a cycle that is being collected) the descriptor is still there.
        count: int | None = real.write(fd, data) if raw is None else type(raw).write(raw, data)
        if count and self.slot.session is session:
            if own:  # a subclass wrote what it liked: read it back
                end = _lseek(fd, 0, os.SEEK_CUR)
                if end > start:
                    session.wrote_at(found, start, session.read_back(fd, start, end - start))
            else:
                session.wrote(fd, found, data, count)
        return count


def compare_position(session: Session, fd: int, found: Description) -> None:
    """Doubt the recording where a counted position is not the kernel's: it was moved unseen."""
    counted, found.position = found.position, -1
    try:
        if counted >= 0 and _lseek(fd, 0, 1) != counted:
            session.moved(found)
    except OSError:
        pass  # the descriptor was closed beneath the object
