"""The replacements of SQLite's system calls and syncs while a recording runs.

Belongs here: when each real call is made, and under which lock; what a call means is
`SqliteRecorder`'s. The calls that SQLite makes most are in `sqlite_quick`. Rules:

1. The builder's lock is held across the real call and its record, and from the opening of a
   directory to its close, between which SQLite syncs it.
2. An exception inside a callback cannot pass through SQLite's C code: the call fails with an I/O
   error instead, and the recorder raises what happened when it stops. Signal handlers, which raise
   anywhere, are kept out of callbacks (`sqlite_signals`).
3. Without a recorder, and in a forked child, every replacement only passes through.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import mmap
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pytest_statepersist.errors import UserError
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.sqlite_library import PROTOTYPES, SYNC, SQLiteLibrary, library
from pytest_statepersist.recorders.sqlite_quick import (
    QUICK,
    Lend,
    broken,
    failed,
    quick_calls,
)
from pytest_statepersist.recorders.sqlite_signals import DeferredSignals

if TYPE_CHECKING:
    from pytest_statepersist.recorders.sqlite import SqliteRecorder

__all__ = ["Hooks", "hooks"]

_getframe, _fstat = sys._getframe, real.fstat
_POSITIONED = frozenset({"pwrite", "pwrite64"})
_O_CREAT = os.O_CREAT
_DATA_ONLY = 0x10  # SQLITE_SYNC_DATAONLY
_F2FS_IOCTL = 0xF5  # the group of SQLite's only ioctl: F2FS atomic writes
_IOERR_FSYNC = 10 | 4 << 8
_CANTOPEN = 14


class Hooks:
    """The replacements of SQLite's calls: made once, kept for ever, idle without a recorder.

    They outlive each recording because a thread may still be inside of one when it ends.
    """

    def __init__(self, sqlite: SQLiteLibrary) -> None:
        self.sqlite = sqlite
        self.recorder: SqliteRecorder | None = None
        self.before: dict[str, int] = {}
        self.sync_before: dict[int, int] = {}
        self.sync_real: dict[int, Callable[[int, int], int]] = {}
        self.real: dict[str, Callable[..., int]] = {"sync": self._real_sync}
        self.plain: set[str] = set()
        """Calls that nobody has replaced: what `os` calls is the same function."""
        self.thunks: dict[str, Any] = {}
        own: list[Any] = [Hooks.install, Hooks.remove]
        calls: dict[str, Callable[..., int]] = {}
        for name in PROTOTYPES:
            replacement = self._pwrite if name in _POSITIONED else getattr(self, f"_{name}", None)
            if replacement is not None:
                calls[name] = self._guarded(name, PROTOTYPES[name], replacement)
        own += calls.values()
        positioned = [name for name in _POSITIONED if sqlite.system_call(name) is not None]
        self._quick = frozenset([*QUICK, *positioned])
        self.lend: Lend = lambda _: None
        if len(positioned) == 1:
            quick, self.lend = quick_calls(calls, positioned[0])
            calls |= quick
            own += quick.values()
        for name, call in calls.items():
            if sqlite.system_call(name) is not None:
                self.real[name] = sqlite.original(name)
                self.thunks[name] = PROTOTYPES[name](call)
        callback: Any = self._guarded("sync", SYNC, self._sync)
        own.append(callback)
        self.signals = DeferredSignals(function.__code__ for function in own)
        self.sync_thunk = SYNC(callback)
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.lend(None)
        self.recorder = None

    def install(self, recorder: SqliteRecorder) -> None:
        """Put the replacements in place; raises `UserError` while another recorder has them."""
        if self.recorder is not None:
            raise UserError(
                "SQLite is being recorded already: one recording must end before the next begins"
            )
        self.signals.install()
        try:
            for table in self.sqlite.method_tables:
                before = self.sqlite.sync_method(table)
                self.sync_real[table] = SYNC(before)
                self.sqlite.set_sync_method(table, _address(self.sync_thunk))
                self.sync_before[table] = before
            for name, thunk in self.thunks.items():
                before_call = self.sqlite.system_call(name)
                assert before_call is not None  # a call does not leave the table
                self.real[name] = PROTOTYPES[name](before_call)
                self.before[name] = before_call
                own = name == "open" and self.sqlite.has(before_call)
                if own or before_call == _in_libc(name):
                    self.plain.add(name)
                    self.real[name] = _PLAINLY.get(name, self.real[name])
                else:
                    self.plain.discard(name)
                self.sqlite.set_system_call(name, _address(thunk))
            self.recorder = recorder
            if all(name in self.plain or name not in self.thunks for name in self._quick):
                self.lend(recorder)
        except BaseException:
            self.lend(None)
            self._restore()
            raise

    def remove(self, recorder: SqliteRecorder) -> None:
        """Put back what was there before ``recorder`` installed them."""
        if self.recorder is recorder:
            # Under the lock no callback is between a real call and its record.
            with recorder.builder.lock:
                self.lend(None)
                self.recorder = None
                self._restore()

    def _restore(self) -> None:
        for name, address in self.before.items():
            # Someone who came after us calls us: then idle is all we can be.
            if self.sqlite.system_call(name) == _address(self.thunks[name]):
                self.sqlite.set_system_call(name, address)
        self.before.clear()
        for table, address in self.sync_before.items():
            if self.sqlite.sync_method(table) == _address(self.sync_thunk):
                self.sqlite.set_sync_method(table, address)
        self.sync_before.clear()
        self.signals.remove()  # last, so that no handler stops this half-way

    def _guarded(self, name: str, prototype: Any, replacement: Callable[..., int]) -> Any:
        """Return what SQLite calls in the place of a call: a function for each number of arguments.

        One for any number would cost more than all that is done here.
        """
        arguments = len(prototype._argtypes_)
        failed = {"sync": _IOERR_FSYNC, "openDirectory": _CANTOPEN, "fallocate": errno.EIO}
        result_of_failure = failed.get(name, -1)
        calls = self.real

        def one(argument: Any) -> int:
            recorder = self.recorder
            if recorder is None:
                return calls[name](argument)
            try:
                lock = recorder.turn.lock
                lock.acquire()
                try:
                    recorder.frame = _getframe(1)
                    return replacement(recorder, calls[name], argument)
                finally:
                    recorder.frame = None
                    lock.release()
            except BaseException as error:
                return broken(recorder, error, result_of_failure)

        def two(first: Any, second: Any) -> int:
            recorder = self.recorder
            if recorder is None:
                return calls[name](first, second)
            try:
                lock = recorder.turn.lock
                lock.acquire()
                try:
                    recorder.frame = _getframe(1)
                    return replacement(recorder, calls[name], first, second)
                finally:
                    recorder.frame = None
                    lock.release()
            except BaseException as error:
                return broken(recorder, error, result_of_failure)

        def three(first: Any, second: Any, third: Any) -> int:
            recorder = self.recorder
            if recorder is None:
                return calls[name](first, second, third)
            try:
                lock = recorder.turn.lock
                lock.acquire()
                try:
                    recorder.frame = _getframe(1)
                    return replacement(recorder, calls[name], first, second, third)
                finally:
                    recorder.frame = None
                    lock.release()
            except BaseException as error:
                return broken(recorder, error, result_of_failure)

        def more(*arguments: Any) -> int:
            recorder = self.recorder
            if recorder is None:
                return calls[name](*arguments)
            try:
                lock = recorder.turn.lock
                lock.acquire()
                try:
                    recorder.frame = _getframe(1)
                    return replacement(recorder, calls[name], *arguments)
                finally:
                    recorder.frame = None
                    lock.release()
            except BaseException as error:
                return broken(recorder, error, result_of_failure)

        return {1: one, 2: two, 3: three}.get(arguments, more)

    # -- replacements: each takes the recorder, the real call, and the call's arguments ---------

    def _open(
        self, recorder: SqliteRecorder, real: Callable[..., int], path: bytes, flags: int, mode: int
    ) -> int:
        existed = not flags & _O_CREAT or _exists(path)
        descriptor = real(path, flags, mode)
        if descriptor >= 0:
            recorder.opened(descriptor, path, existed)
        return descriptor

    def _close(self, recorder: SqliteRecorder, real: Callable[..., int], descriptor: int) -> int:
        if descriptor in recorder.directories:
            recorder.directories.remove(descriptor)
            recorder.builder.lock.release()  # once for its opening
            if not self.sqlite.never_syncs:
                data_only = self.sqlite.syncs_data_only
                failed = cannot_be_synced(descriptor)
                recorder.synced(descriptor, data_only=data_only, failed=failed)
        result = real(descriptor)
        recorder.closed(descriptor)
        return result

    def _write(self, recorder: SqliteRecorder, real: Callable[..., int], *arguments: int) -> int:
        descriptor, buffer, count = arguments
        written = real(descriptor, buffer, count)
        if written > 0:
            offset = os.lseek(descriptor, 0, os.SEEK_CUR) - written
            recorder.wrote(descriptor, offset, ctypes.string_at(buffer, written))
        return written

    def _pwrite(self, recorder: SqliteRecorder, real: Callable[..., int], *arguments: int) -> int:
        descriptor, buffer, count, offset = arguments
        data = ctypes.string_at(buffer, count)
        written = real(descriptor, buffer, count, offset)
        if written > 0:
            recorder.wrote(descriptor, offset, data[:written], recorder.frame)
        return written

    def _ftruncate(
        self, recorder: SqliteRecorder, real: Callable[..., int], descriptor: int, size: int
    ) -> int:
        result = real(descriptor, size)
        if result == 0:
            recorder.truncated(descriptor, size)
        return result

    def _fallocate(
        self, recorder: SqliteRecorder, real: Callable[..., int], *arguments: int
    ) -> int:
        descriptor, offset, length = arguments
        result = real(descriptor, offset, length)
        if result == 0:
            recorder.allocated(descriptor, offset + length)
        return result

    def _fchmod(
        self, recorder: SqliteRecorder, real: Callable[..., int], descriptor: int, mode: int
    ) -> int:
        before = _fstat(descriptor)
        result = real(descriptor, mode)
        if result == 0:
            recorder.changed_attributes(descriptor, before, same_owner=False)
        return result

    def _fchown(
        self,
        recorder: SqliteRecorder,
        real: Callable[..., int],
        descriptor: int,
        user: int,
        group: int,
    ) -> int:
        before = recorder.status(descriptor)
        result = real(descriptor, user, group)
        if result == 0:
            same = before.st_uid == user and before.st_gid == group
            recorder.changed_attributes(descriptor, before, same_owner=same)
        return result

    def _unlink(self, recorder: SqliteRecorder, real: Callable[..., int], path: bytes) -> int:
        result = real(path)
        if result == 0:
            recorder.unlinked(path)
        return result

    def _mkdir(
        self, recorder: SqliteRecorder, real: Callable[..., int], path: bytes, mode: int
    ) -> int:
        result = real(path, mode)
        if result == 0:
            recorder.made_directory(os.fsdecode(path))
        return result

    def _rmdir(self, recorder: SqliteRecorder, real: Callable[..., int], path: bytes) -> int:
        result = real(path)
        if result == 0:
            recorder.removed_directory(os.fsdecode(path))
        return result

    def _openDirectory(
        self, recorder: SqliteRecorder, real: Callable[..., int], path: bytes, descriptor: Any
    ) -> int:
        if recorder.unfinished_sync is not None:
            recorder.unfinished_sync()  # the file was synced before its directory is
        result = real(path, descriptor)
        if result == 0:
            recorder.directories.add(descriptor[0])
            recorder.builder.lock.acquire()  # until the close, so that the sync has its place
        return result

    def _mmap(self, recorder: SqliteRecorder, real: Callable[..., int], *arguments: int) -> int:
        _, _, protection, flags, descriptor, _ = arguments
        if protection & mmap.PROT_WRITE and flags & mmap.MAP_SHARED and descriptor >= 0:
            recorder.cannot_see(descriptor, "writing to memory that maps it")
        return real(*arguments)

    def _ioctl(self, recorder: SqliteRecorder, real: Callable[..., int], *arguments: Any) -> int:
        descriptor, request, _ = arguments
        if request >> 8 & 0xFF == _F2FS_IOCTL:
            recorder.cannot_see(descriptor, "an atomic write of F2FS")
        return real(*arguments)

    def _real_sync(self, file: int, flags: int) -> int:
        return self.sync_real[ctypes.c_void_p.from_address(file).value or 0](file, flags)

    def _sync(
        self, recorder: SqliteRecorder, real: Callable[..., int], file: int, flags: int
    ) -> int:
        data_only = self.sqlite.syncs_data_only or bool(flags & _DATA_ONLY)
        descriptor = None if self.sqlite.never_syncs else self.sqlite.descriptor(file)

        def record(*, failed: bool = False) -> None:
            recorder.unfinished_sync = None
            recorder.synced(descriptor, data_only=data_only, failed=failed)

        recorder.unfinished_sync = record
        try:
            result = real(file, flags)
            if recorder.unfinished_sync is not None:
                record(failed=result != 0)
        finally:
            recorder.unfinished_sync = None
        return result


def _ftruncate(descriptor: int, size: int) -> int:
    try:
        real.system.ftruncate(descriptor, size)
    except OSError as error:
        return failed(error)
    return 0


def _unlink(path: bytes) -> int:
    try:
        real.system.unlink(path)
    except OSError as error:
        return failed(error)
    return 0


_PLAINLY: dict[str, Callable[..., int]] = {
    "ftruncate": _ftruncate,
    "unlink": _unlink,
}
"""System calls that cost half as much through `os` as through ctypes."""


def _exists_by_status(path: bytes) -> bool:
    try:
        real.lstat(path)
    except OSError:
        return False
    return True


def _exists_by_access(path: bytes) -> bool:
    """Like a status, and cheaper: there is none to make, and no exception."""
    found: bool = _access(path, 0, follow_symlinks=False, effective_ids=True)
    return found


_access = real.system.access
_exists = (
    _exists_by_access
    if os.access in os.supports_follow_symlinks and os.access in os.supports_effective_ids
    else _exists_by_status
)


def cannot_be_synced(descriptor: int) -> bool:
    """Say whether a descriptor is one that fsync refuses (O_PATH, which fault injection uses)."""
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_PATH)


@functools.cache
def hooks() -> Hooks:
    """Return the one set of hooks of this process; raises as `library` does."""
    return Hooks(library())


def _in_libc(name: str) -> int | None:
    """Return the address of the C library's function of that name, if it has one."""
    try:
        return _address(getattr(ctypes.CDLL(None), name))
    except AttributeError:
        return None


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None  # a callback has an address
    return address
