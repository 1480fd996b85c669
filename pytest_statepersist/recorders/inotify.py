"""File-system notifications of Linux, through libc.

Belongs here: watching directories and reading raw events, nothing about what they mean. Rules:

1. No thread and no callback: events are read when asked for, in the order the kernel queued them.
2. The kernel merges an event into the one before it when both are equal and unread; it never
   drops one silently: an overflow is an event of its own (inotify(7)).
3. Only directories are watched; an event names an entry of one of them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from dataclasses import dataclass

from pytest_statepersist.errors import RecorderUnavailable

__all__ = ["Event", "Inotify", "available"]

ACCESS = 0x00000001
MODIFY = 0x00000002
ATTRIB = 0x00000004
CLOSE_WRITE = 0x00000008
CLOSE_NOWRITE = 0x00000010
OPEN = 0x00000020
MOVED_FROM = 0x00000040
MOVED_TO = 0x00000080
CREATE = 0x00000100
DELETE = 0x00000200
DELETE_SELF = 0x00000400
MOVE_SELF = 0x00000800
OVERFLOW = 0x00004000
IGNORED = 0x00008000
IS_DIRECTORY = 0x40000000
CHANGES = MODIFY | ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE

_ONLY_DIRECTORIES = 0x01000000
_NO_FOLLOW = 0x02000000
_HEADER = struct.Struct("iIII")
_BUFFER = 1 << 14
_LARGEST = _HEADER.size + 256
"""Bytes of an event with the longest name that there can be."""


@dataclass(frozen=True, slots=True)
class Event:
    """One notification: the watched directory as it was named, the entry, and the mask."""

    directory: str
    name: str
    mask: int
    cookie: int = 0

    @property
    def path(self) -> str:
        """The entry below the directory, as a path."""
        return f"{self.directory}/{self.name}" if self.name else self.directory


def available() -> bool:
    """Say whether this platform has inotify and lets us use it."""
    try:
        Inotify().close()
    except RecorderUnavailable:
        return False
    return True


class Inotify:
    """One queue of events. Raises `RecorderUnavailable` where the platform has none to give."""

    def __init__(self) -> None:
        self._descriptor = -1
        if not sys.platform.startswith("linux"):
            raise RecorderUnavailable("this platform has no inotify")
        self._libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(self._libc, "inotify_init1"):
            raise RecorderUnavailable("the C library of this system has no inotify")
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            reason = os.strerror(ctypes.get_errno())
            raise RecorderUnavailable(
                f"inotify gives no queue: {reason}; usually fs.inotify.max_user_instances is "
                "used up"
            )
        self._names: dict[int, str] = {}

    def watch(self, directory: str, mask: int = CHANGES) -> int:
        """Watch the entries of one directory, known by this path in its events."""
        added: int = self._libc.inotify_add_watch(
            self._descriptor, os.fsencode(directory), mask | _ONLY_DIRECTORIES | _NO_FOLLOW
        )
        if added < 0:
            code = ctypes.get_errno()
            if code == errno.ENOSPC:
                raise RecorderUnavailable(
                    "there are more directories than inotify may watch; raise "
                    "fs.inotify.max_user_watches"
                )
            raise OSError(code, os.strerror(code), directory)
        self._names[added] = directory
        return added

    def unwatch(self, watch: int) -> None:
        """Stop watching one directory; one that is gone already is fine."""
        self._libc.inotify_rm_watch(self._descriptor, watch)
        self._names.pop(watch, None)

    def read(self) -> list[Event]:
        """Return what happened since the last call, in order; empty if nothing did."""
        return self.parse(self.drain())

    def drain(self) -> bytes:
        """Take what happened since the last call, as the kernel wrote it."""
        data = b""
        try:
            while True:
                part = _read(self._descriptor, _BUFFER)
                data = data + part if data else part
                # A read gives as many events as fit (inotify(7)): with room for one more left
                # over, that was all.
                if len(part) <= _BUFFER - _LARGEST:
                    return data
        except BlockingIOError:
            return data

    def parse(self, data: bytes) -> list[Event]:
        """Return the events in what `drain` took."""
        events: list[Event] = []
        at = 0
        while at < len(data):
            watch, mask, cookie, length = _HEADER.unpack_from(data, at)
            at += _HEADER.size
            name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
            at += length
            directory = self._names.get(watch, "")
            if mask & IGNORED:
                self._names.pop(watch, None)
            events.append(Event(directory, name, mask, cookie))
        return events

    def close(self) -> None:
        """Give the queue back; called twice it does nothing."""
        if self._descriptor >= 0:
            _close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


# Bound here, because a recording replaces the names in `os`.
_read, _close = os.read, os.close
