"""The SQLite library that `_sqlite3` uses, reached from inside the process.

Belongs here: finding its symbols, replacing its system calls, replacing the sync method of its
open files. Nothing here knows what a trace is. Rules:

1. What is changed is put back exactly, pointer by pointer.
2. A function that SQLite could still be inside of is never freed: replacements live as long as the
   process, and whoever supplies them makes them pass through when there is nothing to observe.
3. No private structure is read: a file's descriptor is learnt by asking SQLite for its size and
   watching which descriptor it looks at.

Facts: https://www.sqlite.org/c3ref/vfs.html (xSetSystemCall), c3ref/io_methods.html (xSync), and
the table `aSyscall` in SQLite's os_unix.c, in which `fsync` and `fdatasync` are absent.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from pytest_statepersist.errors import RecorderUnavailable

__all__ = ["PROTOTYPES", "SYNC", "SQLiteLibrary", "library"]

_pointer = ctypes.c_void_p
_int = ctypes.c_int
_size = ctypes.c_size_t
_offset = ctypes.c_int64

PROTOTYPES: dict[str, Any] = {
    # `use_errno` keeps errno between the real call and SQLite, which looks at it after failures.
    name: ctypes.CFUNCTYPE(*types, use_errno=True)
    for name, types in {
        "open": (_int, ctypes.c_char_p, _int, _int),
        "close": (_int, _int),
        "write": (ctypes.c_ssize_t, _int, _pointer, _size),
        "pwrite": (ctypes.c_ssize_t, _int, _pointer, _size, _offset),
        "pwrite64": (ctypes.c_ssize_t, _int, _pointer, _size, _offset),
        "ftruncate": (_int, _int, _offset),
        "fallocate": (_int, _int, _offset, _offset),
        "fstat": (_int, _int, _pointer),
        "unlink": (_int, ctypes.c_char_p),
        "openDirectory": (_int, ctypes.c_char_p, ctypes.POINTER(_int)),
        "mkdir": (_int, ctypes.c_char_p, ctypes.c_uint),
        "rmdir": (_int, ctypes.c_char_p),
        "fchmod": (_int, _int, ctypes.c_uint),
        "fchown": (_int, _int, ctypes.c_uint, ctypes.c_uint),
        "mmap": (_pointer, _pointer, _size, _int, _int, _int, _offset),
        "ioctl": (_int, _int, ctypes.c_ulong, _pointer),
    }.items()
}
"""Signatures of SQLite's replaceable system calls, as its os_unix.c casts them."""

SYNC = ctypes.CFUNCTYPE(_int, _pointer, _int, use_errno=True)
"""Signature of xSync: (file, flags)."""
_SLEEP = ctypes.CFUNCTYPE(_int, _pointer, _int)
_FILE_SIZE = ctypes.CFUNCTYPE(_int, _pointer, ctypes.POINTER(ctypes.c_int64))
_X_CLOSE, _X_SYNC, _X_FILE_SIZE = 1, 5, 6  # places in sqlite3_io_methods, counted in pointers

_OPEN_READONLY, _OPEN_READWRITE, _OPEN_CREATE = 0x1, 0x2, 0x4
_OPEN_DELETEONCLOSE, _OPEN_EXCLUSIVE = 0x8, 0x10
_OPEN_MAIN_DB, _OPEN_TEMP_DB = 0x100, 0x200


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("version", _int),
        ("file_size", _int),
        ("longest_path", _int),
        ("next", _pointer),
        ("name", ctypes.c_char_p),
        ("data", _pointer),
        ("open", ctypes.CFUNCTYPE(_int, _pointer, ctypes.c_char_p, _pointer, _int, _pointer)),
        *((f"unused{number}", _pointer) for number in range(8)),
        ("sleep", _pointer),
        *((f"unused{number}", _pointer) for number in range(8, 11)),
        ("set_system_call", ctypes.CFUNCTYPE(_int, _pointer, ctypes.c_char_p, _pointer)),
        ("get_system_call", ctypes.CFUNCTYPE(_pointer, _pointer, ctypes.c_char_p)),
        ("next_system_call", _pointer),
    )


class SQLiteLibrary:
    """Handles into one SQLite library; made once for a process by `library`."""

    def __init__(self, symbols: ctypes.CDLL) -> None:
        self._find = symbols.sqlite3_vfs_find
        self._find.argtypes, self._find.restype = [ctypes.c_char_p], _pointer
        address = self._find(b"unix")
        if not address:
            raise RecorderUnavailable(
                "this SQLite has no 'unix' file layer, which the recorder observes (it is built "
                "for another platform or with SQLITE_OS_OTHER): record with strace instead"
            )
        self._address: int = address
        self._vfs = _Vfs.from_address(address)
        if self._vfs.version < 3:
            raise RecorderUnavailable(
                f"SQLite {sqlite3.sqlite_version} is too old to be observed (its file layer has "
                "no replaceable system calls): record with strace instead"
            )
        self._thunks: list[Any] = []
        self._probed: int | None = None
        self._probing: int | None = None
        self._fstat = self.original("fstat")
        self._fstat_probe = PROTOTYPES["fstat"](self._see_fstat)
        self._code = _symbol_at(ctypes.cast(symbols.sqlite3_vfs_find, _pointer))
        self.syncs_data_only = _imports_fdatasync(symbols)
        symbols.sqlite3_compileoption_used.argtypes = [ctypes.c_char_p]
        self.never_syncs = bool(symbols.sqlite3_compileoption_used(b"NO_SYNC"))

    # ---- system calls

    def system_call(self, name: str) -> int | None:
        """Return the address of the system call in use, ``None`` where SQLite has no such call."""
        address: int | None = self._vfs.get_system_call(self._address, name.encode())
        return address or None

    def original(self, name: str) -> Any:
        """Return the system call in use as a function."""
        return PROTOTYPES[name](self.system_call(name))

    def set_system_call(self, name: str, address: int) -> None:
        """Put the function at ``address`` in the place of a system call, for every connection."""
        self._vfs.set_system_call(self._address, name.encode(), address)

    def has(self, address: int) -> bool:
        """Say whether a function is of the library itself, as the `open` is that nobody replaced.

        That one is open(2) with its three arguments (posixOpen in os_unix.c).
        """
        found = _symbol_at(address)
        return found is not None and self._code is not None and found.base == self._code.base

    # ---- sleeps

    @contextmanager
    def sleeping(self, sleep: Callable[[float, Callable[[], int]], int]) -> Iterator[None]:
        """Let SQLite sleep by a function of the seconds and of what would sleep really.

        It returns the microseconds slept (xSleep). SQLite sleeps where a lock is taken.
        """
        before = self._vfs.sleep
        really = _SLEEP(before)

        def slept(vfs: int, microseconds: int) -> int:
            return sleep(microseconds / 1_000_000, lambda: int(really(vfs, microseconds)))

        thunk = _SLEEP(slept)
        self._thunks.append(thunk)  # for ever: a thread may still be inside of it
        place = self._address + _Vfs.sleep.offset
        self._set_pointer(place, ctypes.cast(thunk, _pointer).value)
        try:
            yield
        finally:
            self._set_pointer(place, before)

    def _set_pointer(self, place: int, address: int | None) -> None:
        with _Writable(place):
            ctypes.c_void_p.from_address(place).value = address

    # ---- syncs

    @functools.cached_property
    def method_tables(self) -> tuple[int, ...]:
        """Addresses of the method tables that open files of this library share."""
        return tuple(dict.fromkeys(self._method_tables()))

    def _method_tables(self) -> Iterator[int]:
        temporary = _OPEN_READWRITE | _OPEN_CREATE | _OPEN_EXCLUSIVE | _OPEN_DELETEONCLOSE
        opener = ctypes.cast(self._vfs.open, _pointer).value
        address: int | None = self._find(None)
        while address:
            vfs = _Vfs.from_address(address)
            here, address = address, vfs.next
            # The variants of 'unix' (by how they lock) share one way to open.
            if ctypes.cast(vfs.open, _pointer).value != opener:
                continue
            for path, flags in (
                (b"/dev/null\0\0\0", _OPEN_READONLY | _OPEN_MAIN_DB),
                (None, temporary | _OPEN_TEMP_DB),
            ):
                file = (ctypes.c_void_p * (vfs.file_size // 8 + 1))()
                if vfs.open(here, path, ctypes.byref(file), flags, None) == 0 and file[0]:
                    table: int = file[0]
                    yield table
                    close = ctypes.CFUNCTYPE(_int, _pointer).from_address(table + 8 * _X_CLOSE)
                    close(ctypes.addressof(file))

    def sync_method(self, table: int) -> int:
        """Return the address of the sync method in a table."""
        return int(ctypes.c_void_p.from_address(table + 8 * _X_SYNC).value or 0)

    def set_sync_method(self, table: int, address: int) -> None:
        """Replace the sync method in a table: open files, older ones included, use it at once."""
        self._set_pointer(table + 8 * _X_SYNC, address)

    def descriptor(self, file: int) -> int | None:
        """Return the descriptor of an open file; call it with no other probe running."""
        table = ctypes.c_void_p.from_address(file).value
        assert table is not None  # an open file has methods
        file_size = _FILE_SIZE.from_address(table + 8 * _X_FILE_SIZE)
        before = self.system_call("fstat")
        assert before is not None  # asked for when the library was found
        self._fstat = PROTOTYPES["fstat"](before)
        self._probed, self._probing = None, threading.get_ident()
        probe = ctypes.cast(self._fstat_probe, _pointer).value
        assert probe is not None
        self.set_system_call("fstat", probe)
        try:
            file_size(file, ctypes.byref(ctypes.c_int64()))
        finally:
            self.set_system_call("fstat", before)
            self._probing = None
        return self._probed

    def _see_fstat(self, descriptor: int, buffer: int) -> int:
        if threading.get_ident() == self._probing:
            self._probed = descriptor
        result: int = self._fstat(descriptor, buffer)
        return result


class _Writable:
    """Makes the memory page of a pointer writable for a moment, and what it was before after."""

    _read_only: ClassVar[dict[int, int]] = {}
    """Protections by page. A library's own keep theirs; one to write on is asked each time."""

    def __init__(self, address: int) -> None:
        self._page = address - address % mmap.PAGESIZE
        self._protection = self._read_only.get(self._page) or _protection(address)
        if not self._protection & mmap.PROT_WRITE:
            self._read_only[self._page] = self._protection

    def __enter__(self) -> None:
        if not self._protection & mmap.PROT_WRITE:
            self._protect(self._protection | mmap.PROT_WRITE)

    def __exit__(self, *_: object) -> None:
        if not self._protection & mmap.PROT_WRITE:
            self._protect(self._protection)

    def _protect(self, protection: int) -> None:
        if _mprotect()(self._page, mmap.PAGESIZE, protection) != 0:
            raise RecorderUnavailable(
                "the SQLite library's method table cannot be made writable "
                f"({os.strerror(ctypes.get_errno())}; a hardened system forbids it): record with "
                "strace instead"
            )


@functools.cache
def _mprotect() -> Any:
    function = ctypes.CDLL(None, use_errno=True).mprotect
    function.argtypes = [_pointer, _size, _int]
    return function


def _protection(address: int) -> int:
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            span, flags = line.split(maxsplit=2)[:2]
            start, end = (int(part, 16) for part in span.split("-"))
            if start <= address < end:
                return (
                    (mmap.PROT_READ if "r" in flags else 0)
                    | (mmap.PROT_WRITE if "w" in flags else 0)
                    | (mmap.PROT_EXEC if "x" in flags else 0)
                )
    raise RecorderUnavailable(
        "the SQLite library's method table is not in /proc/self/maps: record with strace instead"
    )


class _SymbolInfo(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", _pointer),
        ("name", ctypes.c_char_p),
        ("address", _pointer),
    )


def _symbol_at(address: Any) -> _SymbolInfo | None:
    """Return what dladdr(3) knows of an address."""
    info = _SymbolInfo()
    dladdr = ctypes.CDLL(None).dladdr
    dladdr.argtypes = [_pointer, ctypes.POINTER(_SymbolInfo)]
    return info if dladdr(address, ctypes.byref(info)) else None


def _imports_fdatasync(symbols: ctypes.CDLL) -> bool:
    """Say whether this SQLite may sync by fdatasync; when in doubt yes, since that forces less.

    A build that found fdatasync uses it for every sync, of directories too, whatever the flags.
    """
    info = _symbol_at(ctypes.cast(symbols.sqlite3_vfs_find, _pointer))
    if info is None or not info.file:
        return True
    try:
        with (
            open(info.file, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return content.find(b"\0fdatasync\0") >= 0
    except (OSError, ValueError):
        return True


@functools.cache
def library() -> SQLiteLibrary:
    """Return the SQLite that `sqlite3` uses in this process.

    Raises `RecorderUnavailable` where it cannot be reached, and names strace as the way out.
    """
    if not sys.platform.startswith("linux") or not Path("/proc/self/maps").exists():
        raise RecorderUnavailable(
            f"SQLite can only be observed from inside on Linux, this is {sys.platform}"
        )
    import _sqlite3

    # Built into the interpreter, the extension has no file: its symbols are the program's own.
    source = getattr(_sqlite3, "__file__", None)
    symbols = ctypes.CDLL(source)
    try:
        source_id = symbols.sqlite3_sourceid
        symbols.sqlite3_vfs_find  # noqa: B018  looked up to learn whether it is there
    except AttributeError:
        raise RecorderUnavailable(
            "this interpreter's sqlite3 is linked statically and hides SQLite's symbols, so its "
            "writes cannot be observed from inside: record with strace, or use a Python that "
            "links the system's SQLite (as Linux distributions ship it)"
        ) from None
    source_id.restype = ctypes.c_char_p
    connection = sqlite3.connect(":memory:")
    try:
        expected: str = connection.execute("SELECT sqlite_source_id()").fetchone()[0]
    finally:
        connection.close()
    if source_id().decode() != expected:
        raise RecorderUnavailable(
            "the SQLite symbols that this process shows belong to another copy of SQLite than the "
            "one that sqlite3 uses: record with strace instead"
        )
    return SQLiteLibrary(symbols)
