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
from threading import get_ident
from types import FrameType
from typing import Any

from pytest_statepersist.core.operations import Close
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.session import (
    DRAIN,
    Description,
    Session,
    Slot,
)

__all__ = ["ATTRIBUTES", "RawFile", "compare_position"]

ATTRIBUTES = ("write", "truncate", "close", "seek", "fileno")
"""The methods that may take the place of a raw file's own."""
_lseek, _getframe, _get_ident = real.lseek, sys._getframe, get_ident
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
        turn = session.turn
        if _get_ident() == turn.owner:
            outer = turn.inside
            turn.inside = True
            try:
                raw = referred()
                if turn.owner is not None and raw is not None:
                    count: int | None = _write(raw, data)
                    if not count:
                        return count
                    found, frame, writes = self.found, _getframe(1), session.writes
                    node, start = found.node, found.position
                    if start < 0:
                        start = _lseek(self.fd, 0, 1) - count
                    else:
                        found.position = start + count
                    if type(data) is not bytes:
                        previous = session.previous  # as `Session.kept`
                        if len(previous) == count and previous.startswith(data):
                            data = previous
                        else:
                            data = session.kept(data, count)
                    if (
                        frame.f_lasti != session.last_line
                        or frame.f_code is not session.last_code
                        or len(data) != count
                        or not found.quick
                    ):
                        session.went(found, start, data, count, frame)
                        return count
                    # What `Session.went` does for one more write of a line.
                    now, path = session.now, node.path
                    time = node.changed = now()
                    end = start + count
                    if end > node.size:
                        node.size = end
                    if writes.run is found and writes.end == start and writes.path is path:
                        writes.append(time)
                    else:
                        found.written = True
                        writes.extend(
                            (path, session.last_site, time, session.last_task, found.inode, start)
                        )
                        writes.run, writes.path = found, path
                    writes.end = end
                    log = session.log
                    log.append(data)
                    if not len(log) % DRAIN:
                        session.drain()
                    return count
            finally:
                turn.inside = outer
        return self.write_slowly(data)

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
        turn = session.turn
        if _get_ident() == turn.owner:
            outer = turn.inside
            turn.inside = True
            try:
                raw = referred()
                files = session.files
                if (
                    turn.owner is not None
                    and raw is not None
                    and self.plain
                    and self.closes
                    and found.written
                    and files.get(fd) is found
                    and found.references == 1
                    and not raw.closed
                ):
                    counted, frame = found.position, _getframe(1)
                    if counted >= 0:
                        found.position = -1
                        try:
                            if _lseek(fd, 0, 1) != counted:
                                session.moved(found)
                        except OSError:
                            pass  # the descriptor was closed beneath the object
                    try:
                        _close(raw)
                    except BaseException:
                        session.closed(fd, frame)
                        raise
                    # What `Session.closed` does.
                    node, log = found.node, session.log
                    if node.lost:
                        session.closed(fd, frame)
                        return
                    del files[fd]
                    found.references = 0
                    # As `Session.moment`, for the owner; it drains below.
                    line = session.sites.get((id(frame.f_code), frame.f_lasti))
                    if line is None:
                        site, time, task = session.moment(frame)
                    else:
                        now = session.now
                        site, time, task = line[0], now(), session.own_task
                    node.opens -= 1
                    log.append((Close, node.path, site, time, task, found.inode))
                    if node.links <= 0:
                        session.builder.let_go(node)
                    session.since_drain = 0
                    session.notifications.drain(len(log))
                    return
            finally:
                turn.inside = outer
        self._close_slowly(_getframe(1))

    def _close_slowly(self, frame: FrameType) -> None:
        """Close what may be gone, of a subclass, shared, or no longer recorded."""
        session, found, fd, referred = self.session, self.found, self.fd, self.raw
        closes = self.closes
        with session.lock:
            raw = referred()
            ends = (raw is None or not raw.closed) and self.slot.session is session
            if ends and found.position >= 0:
                compare_position(session, fd, found)
            try:
                if raw is None:
                    if closes:
                        # A buffer around it closes it again, when its number may be another's.
                        self.fd, self.closes = -1, False
                        what = f"unclosed file {found.node.path!r}"
                        warnings.warn(what, ResourceWarning, stacklevel=3)
                        real.close(fd)
                elif self.plain:
                    _close(raw)
                else:
                    type(raw).close(raw)
            finally:
                if ends and closes and session.files.get(fd) is found:
                    session.closed(fd, frame)

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

    def write_slowly(self, data: Any, /) -> int | None:
        """Write where the object is gone, of a subclass, or no longer recorded, or wait first."""
        session, fd, found = self.session, self.fd, self.found
        with session.lock:
            raw = self.raw()
            if raw is None and fd < 0:
                raise ValueError("I/O operation on closed file")
            own = raw is not None and not self.plain
            start = _lseek(fd, 0, os.SEEK_CUR) if own else 0
            # Without the object (in a cycle that is being collected) its descriptor is still there.
            count: int | None = real.write(fd, data) if raw is None else type(raw).write(raw, data)
            if count and self.slot.session is session:
                if own:  # a subclass wrote what it liked: read it back
                    end = _lseek(fd, 0, os.SEEK_CUR)
                    if end > start:
                        session.wrote_at(found, start, session.read_back(fd, start, end - start))
                else:
                    session.wrote(fd, found, data, count, _getframe(1))
            return count


def compare_position(session: Session, fd: int, found: Description) -> None:
    """Doubt the recording where a counted position is not the kernel's: it was moved unseen."""
    counted, found.position = found.position, -1
    try:
        if counted >= 0 and _lseek(fd, 0, 1) != counted:
            session.moved(found)
    except OSError:
        pass  # the descriptor was closed beneath the object
