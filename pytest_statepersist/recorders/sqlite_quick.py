"""The replacements that SQLite calls most, each written out in one function.

Belongs here: `quick_write`, `quick_open`, `quick_close`, `quick_fchown`, and what they share with
`sqlite_calls`, whose rules hold. A transaction makes some fifteen of these calls, and each function
of Python that one of them calls costs as much as what it does. So they do by themselves what
`Hooks` and `SqliteRecorder` would do in the usual case, and leave every other case to those.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from threading import get_ident
from typing import TYPE_CHECKING, Any

from pytest_statepersist.core.operations import Close
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.builder import Inode

if TYPE_CHECKING:
    from pytest_statepersist.recorders.sqlite import SqliteRecorder
    from pytest_statepersist.recorders.sqlite_calls import Hooks

__all__ = [
    "DROPPED_WITH_OWNER",
    "PAGE",
    "OpenFile",
    "broken",
    "failed",
    "quick_close",
    "quick_fchown",
    "quick_open",
    "quick_write",
]

PAGE = 512
"""Bytes from which on a write is a page of a database, which its journal may hold as well."""
DROPPED_WITH_OWNER = stat.S_ISUID | stat.S_ISGID
"""Bits of a mode that a change of owner takes away."""
_getframe, _get_ident = sys._getframe, get_ident
_pwrite, _fstat = real.system.pwrite, real.fstat
_os_open, _os_close, _os_fchown = real.os_open, real.close, real.optional("fchown")
_O_CREAT, _O_EXCL = os.O_CREAT, os.O_EXCL
_memory: Any = (ctypes.c_char * sys.maxsize).from_address(0)
"""All of this process: a slice is `ctypes.string_at`, and a third of its price."""


@dataclass(slots=True, eq=False)
class OpenFile:
    """An open file that matters."""

    number: int
    node: Inode
    written: bool = False


def quick_write(hooks: Hooks, name: str) -> Callable[[int, int, int, int], int]:
    """Return the replacement of a write at an offset, one more of a statement written out."""
    calls, plain = hooks.real, hooks.plain

    def write(descriptor: int, buffer: int, count: int, offset: int) -> int:
        recorder = hooks.recorder
        if recorder is None:
            return calls[name](descriptor, buffer, count, offset)
        try:
            thread, turn = _get_ident(), recorder.turn
            outer, quick = turn.inside, thread == turn.owner
            if quick:
                turn.inside = True
                if turn.owner is None:
                    turn.inside, quick = outer, False
            if not quick:
                lock = turn.lock
                lock.acquire()
            try:
                data = _memory[buffer : buffer + count]
                written: int
                if name in plain:
                    # The same call of the same library, and half as dear as through ctypes.
                    try:
                        written = _pwrite(descriptor, data, offset)
                    except OSError as error:
                        return failed(error)
                else:
                    written = calls[name](descriptor, buffer, count, offset)
                frame = _getframe(1)
                file = recorder.files.get(descriptor)
                if (
                    written != count
                    or file is None
                    or frame.f_code is not recorder.last_code
                    or frame.f_lasti != recorder.last_line
                    or thread != recorder.last_thread
                    or not (node := file.node).inside
                ):
                    if written > 0:
                        recorder.wrote(descriptor, offset, data[:written], frame)
                    return written
                # What `SqliteRecorder.wrote` does, for one more write of a statement.
                if count >= PAGE:
                    recent = recorder.recent
                    if data in recent:
                        data = recent[recent.index(data)]
                    else:
                        recent.appendleft(data)
                again = recorder.again
                time = node.changed = again()
                file.written = True
                end = offset + count
                if end > node.size:
                    node.size = end
                writes = recorder.writes
                writes.run = None
                writes.extend(
                    (node.path, recorder.last_site, time, recorder.last_task, file.number, offset)
                )
                recorder.log.append(data)
                return written
            finally:
                if quick:
                    turn.inside = outer
                else:
                    lock.release()
        except BaseException as error:
            return broken(recorder, error, -1)

    return write


def quick_open(hooks: Hooks) -> Callable[[bytes, int, int], int]:
    """Return the replacement of an open, that of a known file written out."""
    calls, plain = hooks.real, hooks.plain

    def call(path: bytes, flags: int, mode: int) -> int:
        recorder = hooks.recorder
        if recorder is None:
            return calls["open"](path, flags, mode)
        try:
            thread, turn = _get_ident(), recorder.turn
            outer, quick = turn.inside, thread == turn.owner
            if quick:
                turn.inside = True
                if turn.owner is None:
                    turn.inside, quick = outer, False
            if not quick:
                lock = turn.lock
                lock.acquire()
            try:
                name = recorder.here.get(path, "")
                known = recorder.names.get(name)
                if known is None or "open" not in plain:
                    recorder.frame = _getframe(1)
                    if not name or "open" not in plain:
                        return hooks.open(recorder, calls["open"], path, flags, mode)
                    return _open_new(recorder, path, name, flags, mode)
                node = recorder.inodes[known]
                if node.identity is None:
                    recorder.frame = _getframe(1)
                    return hooks.open(recorder, calls["open"], path, flags, mode)
                try:
                    descriptor = _os_open(path, flags, mode)
                except OSError as error:
                    return failed(error)
                status = _fstat(descriptor)
                if recorder.identities.get((status.st_dev, status.st_ino)) != known:
                    recorder.frame = _getframe(1)
                    recorder.opened_instead(descriptor, path, known)
                    return descriptor
                # What `SqliteRecorder.opened` does then.
                node.opens += 1
                node.was_opened = True
                recorder.files[descriptor] = OpenFile(known, node)
                recorder.seen = descriptor, len(recorder.log), status
                return descriptor
            finally:
                recorder.frame = None
                if quick:
                    turn.inside = outer
                else:
                    lock.release()
        except BaseException as error:
            return broken(recorder, error, -1)

    return call


def quick_close(hooks: Hooks) -> Callable[[int], int]:
    """Return the replacement of a close, that of a file written out."""
    calls, plain = hooks.real, hooks.plain

    def call(descriptor: int) -> int:
        recorder = hooks.recorder
        if recorder is None:
            return calls["close"](descriptor)
        try:
            thread, turn = _get_ident(), recorder.turn
            outer, quick = turn.inside, thread == turn.owner
            if quick:
                turn.inside = True
                if turn.owner is None:
                    turn.inside, quick = outer, False
            if not quick:
                lock = turn.lock
                lock.acquire()
            try:
                if descriptor in recorder.directories or "close" not in plain:
                    recorder.frame = _getframe(1)
                    return hooks.close(recorder, calls["close"], descriptor)
                result = 0
                try:
                    _os_close(descriptor)
                except OSError as error:
                    result = failed(error)
                file = recorder.files.pop(descriptor, None)
                if file is not None:
                    # What `SqliteRecorder.closed` does.
                    node = file.node
                    node.opens -= 1
                    if file.written and not node.lost:
                        site, time, task = recorder.moment(_getframe(1))
                        recorder.log.append((Close, node.path, site, time, task, file.number))
                    if node.links <= 0:
                        recorder.builder.let_go(node)
                return result
            finally:
                recorder.frame = None
                if quick:
                    turn.inside = outer
                else:
                    lock.release()
        except BaseException as error:
            return broken(recorder, error, -1)

    return call


def quick_fchown(hooks: Hooks) -> Callable[[int, int, int], int]:
    """Return the replacement of an fchown, that of a file which was just opened written out.

    As root SQLite gives every journal the owner that it has: only a time changes.
    """
    calls, plain = hooks.real, hooks.plain

    def call(descriptor: int, user: int, group: int) -> int:
        recorder = hooks.recorder
        if recorder is None:
            return calls["fchown"](descriptor, user, group)
        try:
            thread, turn = _get_ident(), recorder.turn
            outer, quick = turn.inside, thread == turn.owner
            if quick:
                turn.inside = True
                if turn.owner is None:
                    turn.inside, quick = outer, False
            if not quick:
                lock = turn.lock
                lock.acquire()
            try:
                seen, file = recorder.seen, recorder.files.get(descriptor)
                if (
                    seen is None
                    or file is None
                    or seen[0] != descriptor
                    or seen[1] != len(recorder.log)
                    or (status := seen[2]).st_uid != user
                    or status.st_gid != group
                    or status.st_mode & DROPPED_WITH_OWNER
                    or "fchown" not in plain
                ):
                    recorder.frame = _getframe(1)
                    return hooks.fchown(recorder, calls["fchown"], descriptor, user, group)
                try:
                    _os_fchown(descriptor, user, group)
                except OSError as error:
                    return failed(error)
                now = recorder.now
                file.node.changed = now()
                return 0
            finally:
                recorder.frame = None
                if quick:
                    turn.inside = outer
                else:
                    lock.release()
        except BaseException as error:
            return broken(recorder, error, -1)

    return call


def _open_new(recorder: SqliteRecorder, path: bytes, name: str, flags: int, mode: int) -> int:
    """Open what is not known directly in the directory; the kernel says whether it is new."""
    try:
        if flags & _O_CREAT:
            try:
                descriptor = _os_open(path, flags | _O_EXCL, mode)
            except FileExistsError:
                if flags & _O_EXCL:
                    raise
            else:
                recorder.made_here(descriptor, path, name)
                return descriptor
        descriptor = _os_open(path, flags, mode)
    except OSError as error:
        return failed(error)
    recorder.opened(descriptor, path, existed=True)
    return descriptor


def broken(recorder: SqliteRecorder, error: BaseException, result: int) -> int:
    """Keep what went wrong in a replacement for the recorder to raise, and fail the call."""
    if recorder.failure is None:
        recorder.failure = error
    ctypes.set_errno(errno.EIO)
    return result


def failed(error: OSError) -> int:
    """Say in the way of C why a call failed."""
    ctypes.set_errno(error.errno or errno.EIO)
    return -1
