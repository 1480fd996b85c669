"""The gate for SQLite: its own system calls and syncs, below the recorder.

Belongs here: what a call of SQLite is (`Call`), and how C code is told that it failed: a result
and errno, from which SQLite makes SQLITE_IOERR or SQLITE_FULL. Rules:

1. The replacements are put in place before the recorder's, which take them for the system's.
2. No exception passes through C code: whatever a handler raises that is no OSError is an I/O error.
3. Replacements are made once and kept for ever: a thread may still be inside of one.
4. SQLite syncs a directory by a plain fsync, which is in no table, right after `openDirectory`. So
   that call is asked about twice, as an open and as a sync; where the sync is to fail, SQLite gets
   a descriptor of the directory that cannot be synced (O_PATH: fsync gives EBADF). SQLite reports
   that when it removes a journal, and ignores it when it has made one (unixDelete and unixSync).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pytest_statepersist.faults import gate as gates
from pytest_statepersist.faults.calls import Call, Operation
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.sqlite_library import PROTOTYPES, SYNC, SQLiteLibrary, library

__all__ = ["sqlite_gate"]

_IOERR_FSYNC = 10 | 4 << 8
_FAILED = {"fallocate": errno.EIO, "openDirectory": 14}  # SQLITE_CANTOPEN
_READS: dict[str, Any] = {
    name: ctypes.CFUNCTYPE(ctypes.c_ssize_t, *arguments, use_errno=True)
    for name, arguments in {
        "read": (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t),
        "pread": (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64),
        "pread64": (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64),
    }.items()
}
_OPERATIONS = {
    "open": Operation.OPEN,
    "close": Operation.CLOSE,
    "openDirectory": Operation.OPEN,
    "write": Operation.WRITE,
    "pwrite": Operation.WRITE,
    "pwrite64": Operation.WRITE,
    "read": Operation.READ,
    "pread": Operation.READ,
    "pread64": Operation.READ,
    "ftruncate": Operation.TRUNCATE,
    "fallocate": Operation.ALLOCATE,
    "unlink": Operation.UNLINK,
    "mkdir": Operation.MKDIR,
    "rmdir": Operation.RMDIR,
}
_MEMORY = "-shm"
"""The file of WAL mode that is shared memory: no state, and no file system call either."""


class _SqliteGate:
    """Replacements by name, and what each of them calls."""

    def __init__(self, sqlite: SQLiteLibrary) -> None:
        self.sqlite = sqlite
        self.real: dict[str, Callable[..., int]] = {}
        self.before: dict[str, int] = {}
        self.sync_real: dict[int, Callable[[int, int], int]] = {}
        self.sync_before: dict[int, int] = {}
        self.prototypes = {**PROTOTYPES, **_READS}
        self.thunks = {
            name: self.prototypes[name](self._made(name, operation))
            for name, operation in _OPERATIONS.items()
            if sqlite.system_call(name) is not None
        }
        self.sync_thunk = SYNC(self._sync)
        self.write = next((name for name in ("pwrite", "pwrite64") if name in self.thunks), None)
        """By which call it writes at an offset, ``None`` where it seeks instead."""
        self.users = 0

    def install(self) -> None:
        self.users += 1
        if self.users > 1:
            return
        for table in self.sqlite.method_tables:
            address = self.sqlite.sync_method(table)
            self.sync_real[table], self.sync_before[table] = SYNC(address), address
            self.sqlite.set_sync_method(table, _address(self.sync_thunk))
        for name, thunk in self.thunks.items():
            before = self.sqlite.system_call(name)
            assert before is not None  # a call does not leave the table
            self.real[name], self.before[name] = self.prototypes[name](before), before
            self.sqlite.set_system_call(name, _address(thunk))

    def remove(self) -> None:
        self.users -= 1
        if self.users:
            return
        for name, before in self.before.items():
            if self.sqlite.system_call(name) == _address(self.thunks[name]):
                self.sqlite.set_system_call(name, before)
        for table, before in self.sync_before.items():
            if self.sqlite.sync_method(table) == _address(self.sync_thunk):
                self.sqlite.set_sync_method(table, before)

    def _made(self, name: str, operation: Operation) -> Callable[..., int]:
        by_path = operation in (
            Operation.OPEN,
            Operation.UNLINK,
            Operation.MKDIR,
            Operation.RMDIR,
        )

        def call(*arguments: Any) -> int:
            run = self.real[name]
            gate = gates.current()
            if gate is None:
                return run(*arguments)
            first = arguments[0]
            place = gate.place(first) if by_path else gate.place_of(first)
            if place is None or place.endswith(_MEMORY) or (name == "close" and _is_synced(first)):
                return run(*arguments)
            made = Call(operation, place, f"sqlite.{name}", native=True)
            made.descriptor = None if by_path else first
            if name == "open":
                made.creates = bool(arguments[1] & os.O_CREAT) and not os.path.lexists(first)
                made.writes = bool(arguments[1] & (os.O_WRONLY | os.O_RDWR))
            elif operation in (Operation.WRITE, Operation.READ):
                made.size = arguments[2]
            if operation is Operation.WRITE:
                fd, buffer, size, *rest = arguments
                made.shorten = lambda count: run(fd, buffer, count, *rest)
                made.growth = lambda: max(
                    0, (rest[0] if rest else 0) + size - real.fstat(fd).st_size
                )
            failed = _FAILED.get(name, -1)
            result = _answer(gate, made, lambda: run(*arguments), failed)
            if name == "openDirectory" and result == 0:
                descriptor = arguments[1][0]
                self._sync_directory(gate, os.path.dirname(os.fsdecode(first)), descriptor)
            return result

        return call

    def _sync_directory(self, gate: gates.Gate, path: str, descriptor: int) -> None:
        place = gate.place_of(descriptor)
        if place is None:
            return
        made = Call(Operation.FSYNC, place, "sqlite.syncDirectory", native=True)
        made.descriptor = descriptor
        if _answer(gate, made, lambda: 0, -1) == 0:
            return
        with suppress(OSError):  # without it the sync happens, and the fault is none
            unable = os.open(path or os.curdir, os.O_PATH | os.O_CLOEXEC)
            os.dup2(unable, descriptor, inheritable=False)
            os.close(unable)

    def _sync(self, file: int, flags: int) -> int:
        table = ctypes.c_void_p.from_address(file).value or 0
        run = self.sync_real[table]
        gate = gates.current()
        if gate is None:
            return run(file, flags)
        descriptor = self.sqlite.descriptor(file)
        place = None if descriptor is None else gate.place_of(descriptor)
        if place is None:
            return run(file, flags)
        made = Call(Operation.FSYNC, place, "sqlite.sync", native=True, descriptor=descriptor)
        if self.write is not None:
            made.rewrite = lambda content: self._rewrite(descriptor, content)
        return _answer(gate, made, lambda: run(file, flags), _IOERR_FSYNC)

    def _rewrite(self, descriptor: int | None, content: bytes) -> None:
        """Give a file another content by SQLite's own calls, which its recorder sees."""
        assert self.write is not None  # else there is no rewriting
        self._now("ftruncate")(descriptor, len(content))
        if content:
            buffer = ctypes.create_string_buffer(content, len(content))
            self._now(self.write)(descriptor, ctypes.addressof(buffer), len(content), 0)

    def _now(self, name: str) -> Callable[..., int]:
        """Return what stands in SQLite's table for a call, the recorder's replacement included."""
        address = self.sqlite.system_call(name)
        assert address is not None  # a call does not leave the table
        function: Callable[..., int] = self.prototypes[name](address)
        return function


def _is_synced(descriptor: int) -> bool:
    """Say whether it is one of a directory: the recorder knows by its close that it was synced."""
    return stat.S_ISDIR(real.fstat(descriptor).st_mode)


def _answer(gate: gates.Gate, made: Call, run: Callable[[], int], failed: int) -> int:
    """Ask the handler; an exception becomes the result by which C code knows a failure."""
    try:
        result: int = gate.handler(made, run)
    except OSError as error:
        ctypes.set_errno(error.errno or errno.EIO)
        return failed
    except BaseException:
        ctypes.set_errno(errno.EIO)
        return failed
    return result


@functools.cache
def _gate() -> _SqliteGate:
    return _SqliteGate(library())


@contextmanager
def sqlite_gate() -> Iterator[None]:
    """Send SQLite's calls to the gate of this process; raises as `library` does."""
    gate = _gate()
    gate.install()
    try:
        yield
    finally:
        gate.remove()


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None  # a callback has an address
    return address
