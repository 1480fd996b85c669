"""The functions of `os` that change files, and what to record of each.

Belongs here: one replacement for each function, under its own name; those that set attributes are
in `attribute_calls`. Rules:

1. A replacement makes the real call with the caller's own arguments (or the text of a path, which
   the system asks for), so that errors and results are the system's; only a call that succeeded is
   recorded (a failed sync as failed).
2. Without a recording, and for what is no file of interest, it is the real call and nothing else.
3. Replacements are bound methods: like functions in C they do not become methods of a class that
   holds them.
"""

# ruff: noqa: D102 (each method is documented where the function of its name in `os` is)

from __future__ import annotations

import importlib
import os
import stat
import sys
from collections.abc import Sequence
from threading import get_ident
from typing import Any

from pytest_statepersist.core.operations import OUTSIDE, Durability
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.adopting import adopt, adopt_if_possible, adopt_synced
from pytest_statepersist.recorders.attribute_calls import AttributeCalls, before
from pytest_statepersist.recorders.real import system
from pytest_statepersist.recorders.session import (
    DRAIN,
    Description,
    Session,
    durability_of,
)

__all__ = ["Calls"]

_CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_write, _lseek, _getframe = system.write, system.lseek, sys._getframe
_get_ident = get_ident
_rename, _replace = system.rename, system.replace
_TMPFILE = getattr(os, "O_TMPFILE", 0)
_RWF_DSYNC, _RWF_SYNC = getattr(os, "RWF_DSYNC", 0), getattr(os, "RWF_SYNC", 0)
_RWF_APPEND = getattr(os, "RWF_APPEND", 0)


class Calls(AttributeCalls):
    """Replacements by the name that each has in `os`; `names` lists those of this platform."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled replacement is the real function for whoever loads it.
        return importlib.import_module, ("os",)

    @classmethod
    def names(cls) -> list[str]:
        """Return the functions of `os` that have a replacement here."""
        own = [name for kind in (cls, AttributeCalls) for name in vars(kind)]
        own = [name for name in own if not name.startswith("_") and name != "names"]
        return [name for name in own if hasattr(system, name)]

    # -- descriptors ---------------------------------------------------------------------------

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> Any:
        session = self._slot.session
        if session is None:
            return real.os_open(path, flags, mode, dir_fd=dir_fd)
        if not flags & _CHANGING:
            fd = real.os_open(path, flags, mode, dir_fd=dir_fd)
            session.files.pop(fd, None)
            return fd
        durability = durability_of(flags)
        if _TMPFILE and flags & _TMPFILE == _TMPFILE:
            with session.lock:
                fd = real.os_open(path, flags, mode, dir_fd=dir_fd)
                session.opened_nameless(fd, durability)
                return fd
        place = session.place(path, dir_fd)
        if place[0] == OUTSIDE and _is_special(path, dir_fd):
            return real.os_open(path, flags, mode, dir_fd=dir_fd)
        with session.lock:
            fd = real.os_open(path, flags, mode, dir_fd=dir_fd)
            session.opened(
                fd,
                path,
                place=place,
                truncated=bool(flags & os.O_TRUNC),
                durability=durability,
            )
            return fd

    def close(self, fd: int) -> None:
        session = self._slot.session
        if session is None or fd not in session.files:
            system.close(fd)
            return
        with session.lock:
            try:
                system.close(fd)
            finally:
                session.closed(fd)

    def closerange(self, fd_low: int, fd_high: int, /) -> None:
        session = self._slot.session
        if session is None:
            system.closerange(fd_low, fd_high)
            return
        with session.lock:
            system.closerange(fd_low, fd_high)
            for fd in [fd for fd in session.files if fd_low <= fd < fd_high]:
                session.closed(fd)

    def dup(self, fd: int, /) -> Any:
        session = self._slot.session
        if session is None or session.description(fd) is None:
            return system.dup(fd)
        with session.lock:
            copy = system.dup(fd)
            session.duplicated(fd, copy)
            return copy

    def dup2(self, fd: int, fd2: int, inheritable: bool = True) -> Any:
        session = self._slot.session
        if session is None:
            return system.dup2(fd, fd2, inheritable)
        with session.lock:
            session.description(fd)
            copy = system.dup2(fd, fd2, inheritable)
            if fd != fd2:
                session.closed(fd2)
                session.duplicated(fd, fd2)
            return copy

    def lseek(self, fd: int, position: int, how: int, /) -> Any:
        session = self._slot.session
        found = None if session is None else session.files.get(fd)
        if found is not None:
            found.position = -1
        return system.lseek(fd, position, how)

    # -- contents ------------------------------------------------------------------------------

    def write(self, fd: int, data: Any, /) -> Any:
        session = self._slot.session
        if session is None:
            return system.write(fd, data)
        found = session.files.get(fd) or session.description(fd)
        if found is None:
            return _write(fd, data)
        turn = session.turn
        if _get_ident() == turn.owner:
            outer = turn.inside
            turn.inside = True
            try:
                if turn.owner is not None:
                    count = _write(fd, data)
                    frame, writes = _getframe(1), session.writes
                    if (
                        writes.run is not found
                        or frame.f_lasti != session.last_line
                        or frame.f_code is not session.last_code
                        or type(data) is not bytes
                        or count != len(data)
                        or not count
                    ):
                        session.wrote(fd, found, data, count, frame)
                        return count
                    end, node = _lseek(fd, 0, 1), found.node
                    if (
                        writes.end != end - count
                        or writes.path is not node.path
                        or found.position >= 0
                    ):
                        session.wrote(fd, found, data, count, frame)
                        return count
                    # What `Session.went` does for one more of a row.
                    now = session.now
                    time = node.changed = now()
                    writes.end = end
                    if end > node.size:
                        node.size = end
                    writes.append(time)
                    log = session.log
                    log.append(data)
                    if not len(log) % DRAIN:
                        session.drain()
                    return count
            finally:
                turn.inside = outer
        with session.lock:
            count = _write(fd, data)
            session.wrote(fd, found, data, count, _getframe(1))
            return count

    def writev(self, fd: int, buffers: Sequence[Any], /) -> Any:
        session = self._slot.session
        found = None if session is None else session.description(fd)
        if session is None or found is None:
            return system.writev(fd, buffers)
        with session.lock:
            count = system.writev(fd, buffers)
            session.wrote(fd, found, _joined(buffers, count), count, _getframe(1))
            return count

    def pwrite(self, fd: int, data: Any, offset: int, /) -> Any:
        session = self._slot.session
        found = None if session is None else session.description(fd)
        if session is None or found is None:
            return system.pwrite(fd, data, offset)
        with session.lock:
            count = system.pwrite(fd, data, offset)
            session.wrote_at(found, _position(fd, offset, count), _joined([data], count))
            return count

    def pwritev(self, fd: int, buffers: Sequence[Any], offset: int, flags: int = 0, /) -> Any:
        session = self._slot.session
        found = None if session is None else session.description(fd)
        if session is None or found is None:
            return system.pwritev(fd, buffers, offset, flags)
        with session.lock:
            count = system.pwritev(fd, buffers, offset, flags)
            durability = None
            if flags & _RWF_SYNC:
                durability = Durability.FULL
            elif flags & _RWF_DSYNC and found.durability is Durability.NONE:
                durability = Durability.DATA
            at = _position(fd, offset, count, append=bool(flags & _RWF_APPEND))
            session.wrote_at(found, at, _joined(buffers, count), durability)
            return count

    def sendfile(self, out_fd: int, in_fd: int, offset: int | None, count: int, *rest: Any) -> Any:
        session = self._slot.session
        found = None if session is None else session.description(out_fd)
        if session is None or found is None:
            return system.sendfile(out_fd, in_fd, offset, count, *rest)
        with session.lock:
            return _copied(
                session, found, out_fd, None, system.sendfile(out_fd, in_fd, offset, count, *rest)
            )

    def copy_file_range(
        self,
        src: int,
        dst: int,
        count: int,
        offset_src: int | None = None,
        offset_dst: int | None = None,
    ) -> Any:
        session = self._slot.session
        found = None if session is None else session.description(dst)
        if session is None or found is None:
            return system.copy_file_range(src, dst, count, offset_src, offset_dst)
        with session.lock:
            done = system.copy_file_range(src, dst, count, offset_src, offset_dst)
            return _copied(session, found, dst, offset_dst, done)

    def splice(
        self,
        src: int,
        dst: int,
        count: int,
        offset_src: int | None = None,
        offset_dst: int | None = None,
        flags: int = 0,
    ) -> Any:
        session = self._slot.session
        found = None if session is None else session.description(dst)
        if session is None or found is None:
            return system.splice(src, dst, count, offset_src, offset_dst, flags)
        with session.lock:
            done = system.splice(src, dst, count, offset_src, offset_dst, flags)
            return _copied(session, found, dst, offset_dst, done)

    def truncate(self, path: Any, length: int) -> None:
        session = self._slot.session
        if session is None:
            system.truncate(path, length)
            return
        with session.lock:
            number = before(session, path)
            system.truncate(path, length)
            if number is not None:
                session.builder.truncate(number, length, session.moment())
                _mark(session, path)

    def ftruncate(self, fd: int, length: int, /) -> None:
        self.truncate(fd, length)

    def posix_fallocate(self, fd: int, offset: int, length: int, /) -> None:
        session = self._slot.session
        found = None if session is None else session.description(fd)
        if session is None or found is None:
            system.posix_fallocate(fd, offset, length)
            return
        with session.lock:
            system.posix_fallocate(fd, offset, length)
            size = real.fstat(fd).st_size
            grown = size if size > session.builder[found.inode].size else None
            session.builder.allocate(found.inode, session.moment(), size=grown)
            found.written = True

    # -- syncs ---------------------------------------------------------------------------------

    def fsync(self, fd: Any) -> None:
        self._sync(system.fsync, fd, data_only=False)

    def fdatasync(self, fd: Any) -> None:
        self._sync(system.fdatasync, fd, data_only=True)

    def _sync(self, call: Any, fd: Any, *, data_only: bool) -> None:
        session = self._slot.session
        if session is None:
            call(fd)
            return
        descriptor = fd if isinstance(fd, int) else fd.fileno()
        with session.lock:
            try:
                status = real.fstat(descriptor)
            except OSError:
                call(fd)
                return
            number = session.builder.find((status.st_dev, status.st_ino))
            if number is None:
                number = adopt_synced(session, descriptor, status)
            failed = True
            try:
                call(descriptor)
                failed = False
            finally:
                if number is not None:
                    session.builder.fsync(
                        number, session.moment(), data_only=data_only, failed=failed
                    )
                    session.drain()

    def sync(self) -> None:
        session = self._slot.session
        if session is None:
            system.sync()
            return
        with session.lock:
            system.sync()
            session.builder.sync_all(session.moment())

    # -- names ---------------------------------------------------------------------------------

    def rename(
        self,
        src: Any,
        dst: Any,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        session = self._slot.session
        if (
            session is None
            or src_dir_fd is not None
            or dst_dir_fd is not None
            or not session.renamed_here(_rename, src, dst, _getframe(1))
        ):
            self._rename(_rename, src, dst, src_dir_fd, dst_dir_fd)

    def replace(
        self,
        src: Any,
        dst: Any,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        session = self._slot.session
        if (
            session is None
            or src_dir_fd is not None
            or dst_dir_fd is not None
            or not session.renamed_here(_replace, src, dst, _getframe(1))
        ):
            self._rename(_replace, src, dst, src_dir_fd, dst_dir_fd)

    def _rename(
        self, call: Any, src: Any, dst: Any, src_fd: int | None, dst_fd: int | None
    ) -> None:
        session = self._slot.session
        if session is None:
            call(src, dst, src_dir_fd=src_fd, dst_dir_fd=dst_fd)
            return
        frame = _getframe(2)
        # Paths are turned into text once; the real call gets what the caller gave.
        here = src if type(src) is str else os.fsdecode(src)
        there = dst if type(dst) is str else os.fsdecode(dst)
        with session.lock:
            builder = session.builder
            old = session.place(here, src_fd)
            new = session.place(there, dst_fd)
            if old[0] == OUTSIDE == new[0] and builder.entry(*old) is None:
                call(src, dst, src_dir_fd=src_fd, dst_dir_fd=dst_fd)
                return
            session.check(*old, here, src_fd)
            session.check(*new, there, dst_fd)
            inside = builder[new[0]].inside
            if old[0] == OUTSIDE != new[0]:
                adopt_if_possible(session, here, old[1], src_fd)
            elif inside and not builder[old[0]].inside and builder.entry(*old) is None:
                # It lies in a directory that was made outside meanwhile, and came there unseen.
                old = (OUTSIDE, session.full(*old))
                adopt_if_possible(session, here, old[1], src_fd)
            call(src, dst, src_dir_fd=src_fd, dst_dir_fd=dst_fd)
            builder.rename(*old, *new, session.moment(frame))
            if old[0] == OUTSIDE != new[0]:
                number = builder.entry(*new)
                if number is not None and builder[number].entries is not None:
                    session.watch_below(
                        number, os.path.join(session.directory, builder[number].path)
                    )

    def link(
        self,
        src: Any,
        dst: Any,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        options: dict[str, Any] = {"src_dir_fd": src_dir_fd, "dst_dir_fd": dst_dir_fd}
        if not follow_symlinks:
            options["follow_symlinks"] = False
        session = self._slot.session
        if session is None:
            system.link(src, dst, **options)
            return
        with session.lock:
            builder = session.builder
            old, new = session.place(src, src_dir_fd), session.place(dst, dst_dir_fd)
            session.check(*old, src, src_dir_fd)
            session.check(*new, dst, dst_dir_fd)
            system.link(src, dst, **options)
            status = real.lstat(dst, dir_fd=dst_dir_fd)
            number = builder.find((status.st_dev, status.st_ino))
            if number is None:
                if new[0] == OUTSIDE:
                    return
                number = adopt(session, src, session.full(*old), src_dir_fd)
            if number is not None:
                builder.link(number, *new, session.moment())

    def symlink(
        self,
        src: Any,
        dst: Any,
        target_is_directory: bool = False,
        *,
        dir_fd: int | None = None,
    ) -> None:
        session = self._slot.session
        if session is None:
            system.symlink(src, dst, target_is_directory, dir_fd=dir_fd)
            return
        with session.lock:
            place = session.place(dst, dir_fd)
            session.check(*place, dst, dir_fd)
            system.symlink(src, dst, target_is_directory, dir_fd=dir_fd)
            status = real.lstat(dst, dir_fd=dir_fd)
            identity = (status.st_dev, status.st_ino)
            target = os.fsdecode(src)
            session.builder.symlink(*place, target, session.moment(), identity=identity)

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove(system.unlink, "unlink", path, dir_fd)

    def remove(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove(system.remove, "unlink", path, dir_fd)

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove(system.rmdir, "rmdir", path, dir_fd)

    def _remove(self, call: Any, kind: str, path: Any, dir_fd: int | None) -> None:
        session = self._slot.session
        if session is None:
            call(path, dir_fd=dir_fd)
            return
        with session.lock:
            place = session.place(path, dir_fd)
            session.check(*place, path, dir_fd)
            call(path, dir_fd=dir_fd)
            getattr(session.builder, kind)(*place, session.moment())

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        session = self._slot.session
        if session is None:
            system.mkdir(path, mode, dir_fd=dir_fd)
            return
        with session.lock:
            place = session.place(path, dir_fd)
            system.mkdir(path, mode, dir_fd=dir_fd)
            status = real.lstat(path, dir_fd=dir_fd)
            number = session.builder.mkdir(
                *place,
                session.moment(),
                mode=stat.S_IMODE(status.st_mode),
                identity=(status.st_dev, status.st_ino),
            )
            if session.builder[number].inside:
                session.watch(number, os.path.join(session.directory, session.builder[number].path))

    def mknod(
        self, path: Any, mode: int = 0o600, device: int = 0, *, dir_fd: int | None = None
    ) -> None:
        session = self._slot.session
        if session is None:
            system.mknod(path, mode, device, dir_fd=dir_fd)
            return
        with session.lock:
            place = session.place(path, dir_fd)
            system.mknod(path, mode, device, dir_fd=dir_fd)
            status = real.lstat(path, dir_fd=dir_fd)
            if stat.S_ISREG(status.st_mode):
                session.builder.create(
                    *place,
                    session.moment(),
                    mode=stat.S_IMODE(status.st_mode),
                    identity=(status.st_dev, status.st_ino),
                )


def _is_special(path: Any, dir_fd: int | None) -> bool:
    """Say whether an open could block for ever (a fifo) or is of no interest (a terminal)."""
    try:
        return not stat.S_ISREG(real.stat(path, dir_fd=dir_fd).st_mode)
    except OSError:
        return False


def _joined(buffers: Sequence[Any], count: int) -> bytes:
    if len(buffers) == 1 and type(buffers[0]) is bytes:
        return buffers[0][:count]
    return b"".join(memoryview(item).cast("B") for item in buffers)[:count]


def _position(fd: int, offset: int, count: int, *, append: bool = False) -> int:
    """Return where a pwrite went: Linux appends with O_APPEND, whatever the offset says."""
    if append or system.appends(fd):
        return real.fstat(fd).st_size - count
    return offset


def _copied(session: Session, found: Description, fd: int, offset: int | None, count: int) -> int:
    if count:
        found.position = -1
        start = real.lseek(fd, 0, os.SEEK_CUR) - count if offset is None else offset
        session.wrote_at(found, start, session.read_back(fd, start, count))
    return count


def _mark(session: Session, path: Any) -> None:
    if isinstance(path, int) and path in session.files:
        session.files[path].written = True
