"""The replacements that SQLite calls most, each written out in one function.

Belongs here: `quick_calls`, and what it shares with `sqlite_calls`, whose rules hold. A transaction
makes some fifteen of these calls, and after each the interpreter is slow for a while: it is the
number of its steps that costs. Rules:

1. A quick call does by itself what `Hooks` and `SqliteRecorder` would do in the usual case: the
   owner of the turn makes it (`turn`), nobody has replaced the system's own function, and the name
   or the descriptor is known. It leaves every other case to them, before it has done anything or
   with the real call made.
2. What it needs of a recorder is in variables of the functions' closure, one step each, where an
   attribute of an object takes two. `lend` sets them while nobody is inside.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import get_ident
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, TypeAlias

from pytest_statepersist.core.operations import ROOT, Close, Site, Truncate, Unlink
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.builder import Inode, Moment
from pytest_statepersist.recorders.turn import Turn

if TYPE_CHECKING:
    from pytest_statepersist.recorders.sqlite import SqliteRecorder

__all__ = [
    "DROPPED_WITH_OWNER",
    "PAGE",
    "QUICK",
    "Lend",
    "OpenFile",
    "broken",
    "failed",
    "quick_calls",
]

Lend: TypeAlias = "Callable[[SqliteRecorder | None], None]"
"""Gives the quick functions the recorder that runs, or none."""
PAGE = 512
"""Bytes from which on a write is a page of a database, which its journal may hold as well."""
DROPPED_WITH_OWNER = stat.S_ISUID | stat.S_ISGID
"""Bits of a mode that a change of owner takes away."""
QUICK = ("open", "close", "fchown", "ftruncate", "unlink")
"""The calls that have quick functions, beside the write at an offset."""
_DRAIN = 64
"""After how many pages and other operations the kernel's notifications are read."""
_BITS = 0o7777
_getframe, _get_ident, _new = sys._getframe, get_ident, object.__new__
_pwrite, _fstat = real.system.pwrite, real.fstat
_os_open, _os_close, _os_fchown = real.os_open, real.close, real.optional("fchown")
_os_unlink, _os_ftruncate = real.system.unlink, real.system.ftruncate
_O_CREAT, _O_EXCL = os.O_CREAT, os.O_EXCL
_memory: Any = (ctypes.c_char * sys.maxsize).from_address(0)
"""All of this process: a slice is `ctypes.string_at`, and a third of its price."""
_nobody = Turn()
"""The turn while no recorder is lent."""
_nobody.end()


@dataclass(slots=True, eq=False)
class OpenFile:
    """An open file that matters."""

    number: int
    node: Inode
    written: bool = False


def quick_calls(
    slow: Mapping[str, Callable[..., int]], write_name: str
) -> tuple[dict[str, Callable[..., int]], Lend]:
    """Return the quick functions by name, and what lends them a recorder.

    ``slow`` has the functions that take all other cases.
    """
    slow_write, slow_open, slow_close = slow[write_name], slow["open"], slow["close"]
    slow_fchown, slow_ftruncate = slow["fchown"], slow["ftruncate"]
    slow_unlink = slow["unlink"]
    turn = _nobody
    recorder: Any = None
    builder: Any = None
    files: Any = None
    log: Any = None
    writes: Any = None
    recent: Any = None
    names: Any = None
    here: Any = None
    inodes: Any = None
    identities: Any = None
    directories: Any = None
    sites: Any = None
    now: Any = None
    task, line, since = -1, -1, 0
    code: CodeType | None = None
    site: Site | None = None

    def lend(to: SqliteRecorder | None) -> None:
        nonlocal turn, recorder, builder, files, log, writes, recent, names, here, sites, now
        nonlocal task, line, code, site, inodes, identities, directories
        turn, recorder, code, site = _nobody, to, None, None
        if to is None:
            builder = files = log = writes = recent = names = here = sites = now = None
            inodes = identities = directories = None
            return
        builder, files, log, writes = to.builder, to.files, to.log, to.writes
        recent, names, here = to.recent, to.names, to.here
        inodes, identities, directories = to.inodes, to.identities, to.directories
        sites, now, tasks = to.clock.sites, to.clock.now, to.clock.tasks
        if to.turn.owner is not None:
            task = tasks.setdefault(to.turn.owner, len(tasks))
            turn = to.turn

    def moment(frame: FrameType) -> Moment:
        """Return the moment of a call from this frame, which is one of the owner's."""
        nonlocal since
        known = sites.get((id(frame.f_code), frame.f_lasti))
        if known is None:
            found: Moment = recorder.moment(frame)
            return found
        since += 1
        if since >= _DRAIN:
            since = 0
            recorder.clock.drain(1)
        return known[0], now(), task

    def write(descriptor: int, buffer: int, count: int, offset: int) -> int:
        nonlocal line, code, site, since
        mine = turn
        if _get_ident() == mine.owner:
            outer = mine.inside
            mine.inside = True
            try:
                if mine.owner is not None:
                    data = _memory[buffer : buffer + count]
                    # The same call of the same library, and half as dear as through ctypes.
                    try:
                        written: int = _pwrite(descriptor, data, offset)
                    except OSError as error:
                        return failed(error)
                    frame, file = _getframe(1), files.get(descriptor)
                    if file is None or written != count or not (node := file.node).inside:
                        if written > 0:
                            recorder.wrote(descriptor, offset, data[:written], frame)
                        return written
                    if frame.f_lasti != line or frame.f_code is not code:
                        known = sites.get((id(frame.f_code), frame.f_lasti))
                        if known is None:
                            recorder.wrote(descriptor, offset, data, frame)
                            return written
                        line, code, site = frame.f_lasti, frame.f_code, known[0]
                    # What `SqliteRecorder.wrote` does.
                    if count >= PAGE:
                        since += 1
                        if since >= _DRAIN:
                            since = 0
                            recorder.clock.drain(1)
                        if data in recent:
                            data = recent[recent.index(data)]
                        else:
                            recent.appendleft(data)
                    time = node.changed = now()
                    file.written = True
                    end = offset + count
                    if end > node.size:
                        node.size = end
                    writes.run = None
                    writes.extend((node.path, site, time, task, file.number, offset))
                    log.append(data)
                    return written
            except BaseException as error:
                return broken(recorder, error, -1)
            finally:
                mine.inside = outer
        return slow_write(descriptor, buffer, count, offset)

    def open(path: bytes, flags: int, mode: int) -> int:
        mine = turn
        if _get_ident() == mine.owner:
            outer = mine.inside
            mine.inside = True
            try:
                if mine.owner is not None and (name := here.get(path)) is not None:
                    known = names.get(name)
                    if known is None:
                        return _open_new(recorder, path, name, flags, mode, _getframe(1), moment)
                    node = inodes[known]
                    if node.identity is not None:
                        try:
                            descriptor = _os_open(path, flags, mode)
                        except OSError as error:
                            return failed(error)
                        status = _fstat(descriptor)
                        if identities.get((status.st_dev, status.st_ino)) != known:
                            recorder.frame = _getframe(1)
                            recorder.opened_instead(descriptor, path, known)
                            return descriptor
                        # What `SqliteRecorder.opened` does then.
                        node.opens += 1
                        node.was_opened = True
                        made = _new(OpenFile)
                        made.number, made.node, made.written = known, node, False
                        files[descriptor] = made
                        recorder.seen = descriptor, len(log), status
                        return descriptor
            except BaseException as error:
                return broken(recorder, error, -1)
            finally:
                mine.inside = outer
                if recorder is not None:
                    recorder.frame = None
        return slow_open(path, flags, mode)

    def close(descriptor: int) -> int:
        mine = turn
        if _get_ident() == mine.owner:
            outer = mine.inside
            mine.inside = True
            try:
                if mine.owner is not None and descriptor not in directories:
                    result = 0
                    try:
                        _os_close(descriptor)
                    except OSError as error:
                        result = failed(error)
                    file = files.pop(descriptor, None)
                    if file is not None:
                        # What `SqliteRecorder.closed` does.
                        node = file.node
                        node.opens -= 1
                        if file.written and not node.lost:
                            where, time, who = moment(_getframe(1))
                            log.append((Close, node.path, where, time, who, file.number))
                        if node.links <= 0:
                            builder.let_go(node)
                    return result
            except BaseException as error:
                return broken(recorder, error, -1)
            finally:
                mine.inside = outer
        return slow_close(descriptor)

    def fchown(descriptor: int, user: int, group: int) -> int:
        # As root SQLite gives every journal the owner that it has: only a time changes.
        mine = turn
        if _get_ident() == mine.owner:
            outer = mine.inside
            mine.inside = True
            try:
                if mine.owner is not None and (seen := recorder.seen) is not None:
                    opened, length, status = seen
                    if (
                        opened == descriptor
                        and length == len(log)
                        and status.st_uid == user
                        and status.st_gid == group
                        and not status.st_mode & DROPPED_WITH_OWNER
                        and (file := files.get(descriptor)) is not None
                    ):
                        try:
                            _os_fchown(descriptor, user, group)
                        except OSError as error:
                            return failed(error)
                        file.node.changed = now()
                        return 0
            except BaseException as error:
                return broken(recorder, error, -1)
            finally:
                mine.inside = outer
        return slow_fchown(descriptor, user, group)

    def ftruncate(descriptor: int, size: int) -> int:
        mine = turn
        if _get_ident() == mine.owner:
            outer = mine.inside
            mine.inside = True
            try:
                if mine.owner is not None and (file := files.get(descriptor)) is not None:
                    node = file.node
                    if node.inside:
                        try:
                            _os_ftruncate(descriptor, size)
                        except OSError as error:
                            return failed(error)
                        # What `SqliteRecorder.truncated` does.
                        where, time, who = moment(_getframe(1))
                        node.changed, node.size, file.written = time, size, True
                        log.append((Truncate, node.path, where, time, who, file.number, size))
                        return 0
            except BaseException as error:
                return broken(recorder, error, -1)
            finally:
                mine.inside = outer
        return slow_ftruncate(descriptor, size)

    def unlink(path: bytes) -> int:
        mine = turn
        if _get_ident() == mine.owner:
            outer = mine.inside
            mine.inside = True
            try:
                name = here.get(path) if mine.owner is not None else None
                if name is not None and (known := names.get(name)) is not None:
                    try:
                        _os_unlink(path)
                    except OSError as error:
                        return failed(error)
                    # What `TraceBuilder.unlink` does for a name directly in the directory.
                    where, time, who = moment(_getframe(1))
                    del names[name]
                    node = inodes[known]
                    node.links -= 1
                    node.changed = time
                    if node.links <= 0 and node.opens <= 0:
                        builder.let_go(node)
                    log.append((Unlink, name, where, time, who, known, ROOT, name))
                    return 0
            except BaseException as error:
                return broken(recorder, error, -1)
            finally:
                mine.inside = outer
        return slow_unlink(path)

    functions: dict[str, Callable[..., int]] = {
        write_name: write,
        "open": open,
        "close": close,
        "fchown": fchown,
        "ftruncate": ftruncate,
        "unlink": unlink,
    }
    return functions, lend


def _open_new(
    recorder: SqliteRecorder,
    path: bytes,
    name: str,
    flags: int,
    mode: int,
    frame: FrameType,
    moment: Callable[[FrameType], Moment],
) -> int:
    """Open what is not known directly in the directory; the kernel says whether it is new."""
    try:
        descriptor = -1
        if flags & _O_CREAT:
            try:
                descriptor = _os_open(path, flags | _O_EXCL, mode)
            except FileExistsError:
                if flags & _O_EXCL:
                    raise
        new = descriptor >= 0
        if not new:
            descriptor = _os_open(path, flags, mode)
    except OSError as error:
        return failed(error)
    status = _fstat(descriptor)
    identity = (status.st_dev, status.st_ino)
    if not new or identity in recorder.identities:
        recorder.frame = frame
        recorder.opened(descriptor, path, existed=not new)  # what had it before went unseen
        return descriptor
    site, time, task = moment(frame)
    node = recorder.builder.create_here(name, status.st_mode & _BITS, identity, site, time, task)
    made = _new(OpenFile)
    made.number, made.node, made.written = node.number, node, False
    recorder.files[descriptor] = made
    recorder.seen = descriptor, len(recorder.log), status
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
