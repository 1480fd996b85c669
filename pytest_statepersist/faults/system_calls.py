"""The system calls of Linux that touch files: their numbers, and what each of them is.

Belongs here: the tables, and reading from a call's arguments which file it is about. What becomes
of a call is the supervisor's business. Rules:

1. A call on two names is about the one that it makes; where that is outside, the one it takes.
2. Numbers are those of the machine's own 64-bit programs; a 32-bit program is not supervised.

Facts: the manual pages of section 2; numbers from the kernel's tables
(arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
"""

from __future__ import annotations

import enum
import os
import platform
from dataclasses import dataclass
from typing import Any

from pytest_statepersist.faults.calls import Operation

__all__ = [
    "ARCHITECTURES",
    "CALLS",
    "LOCKING",
    "Architecture",
    "Shape",
    "SystemCall",
    "architecture",
]

LOCKING = frozenset({6, 7, 37, 38})
"""Commands of fcntl that take a lock: F_SETLK, F_SETLKW, and those of open file descriptions."""


class Shape(enum.Enum):
    """How the arguments name a file."""

    DESCRIPTOR = "descriptor"
    PATH = "path"
    AT = "descriptor of a directory, and path"
    ADDRESS = "address of a memory map"


@dataclass(frozen=True, slots=True)
class SystemCall:
    """One system call. ``names`` are the places of its arguments that name files, best first.

    ``flags`` and ``size`` are places of arguments, -1 for none; ``vector`` is whether the size is
    that of an array of buffers, ``offset`` the place of the offset of a positioned write.
    """

    name: str
    operation: Operation
    shape: Shape
    names: tuple[int, ...] = (0,)
    flags: int = -1
    size: int = -1
    vector: bool = False
    offset: int = -1


def _calls(
    text: str, operation: Operation, shape: Shape, *names: int, **more: Any
) -> list[SystemCall]:
    return [SystemCall(name, operation, shape, names or (0,), **more) for name in text.split()]


CALLS = {
    call.name: call
    for group in (
        _calls("open", Operation.OPEN, Shape.PATH, flags=1),
        _calls("openat openat2", Operation.OPEN, Shape.AT, 0, flags=2),
        _calls("creat", Operation.OPEN, Shape.PATH),
        _calls("read pread64", Operation.READ, Shape.DESCRIPTOR, size=2),
        _calls("readv preadv preadv2", Operation.READ, Shape.DESCRIPTOR),
        _calls("readlink", Operation.READ, Shape.PATH),
        _calls("readlinkat", Operation.READ, Shape.AT),
        _calls("write", Operation.WRITE, Shape.DESCRIPTOR, size=2),
        _calls("pwrite64", Operation.WRITE, Shape.DESCRIPTOR, size=2, offset=3),
        _calls("writev", Operation.WRITE, Shape.DESCRIPTOR, size=2, vector=True),
        _calls(
            "pwritev pwritev2", Operation.WRITE, Shape.DESCRIPTOR, size=2, vector=True, offset=3
        ),
        _calls("sendfile", Operation.WRITE, Shape.DESCRIPTOR),
        _calls("copy_file_range splice", Operation.WRITE, Shape.DESCRIPTOR, 2),
        _calls("fsync fdatasync syncfs sync_file_range", Operation.FSYNC, Shape.DESCRIPTOR),
        _calls("msync", Operation.FSYNC, Shape.ADDRESS),
        _calls("ftruncate", Operation.TRUNCATE, Shape.DESCRIPTOR),
        _calls("truncate", Operation.TRUNCATE, Shape.PATH),
        _calls("fallocate", Operation.ALLOCATE, Shape.DESCRIPTOR),
        _calls("close", Operation.CLOSE, Shape.DESCRIPTOR),
        _calls("rename", Operation.RENAME, Shape.PATH, 1, 0),
        _calls("renameat renameat2", Operation.RENAME, Shape.AT, 2, 0),
        _calls("link", Operation.LINK, Shape.PATH, 1, 0),
        _calls("linkat", Operation.LINK, Shape.AT, 2, 0),
        _calls("symlink", Operation.SYMLINK, Shape.PATH, 1),
        _calls("symlinkat", Operation.SYMLINK, Shape.AT, 1),
        _calls("unlink", Operation.UNLINK, Shape.PATH),
        _calls("unlinkat", Operation.UNLINK, Shape.AT, flags=2),
        _calls("rmdir", Operation.RMDIR, Shape.PATH),
        _calls("mkdir", Operation.MKDIR, Shape.PATH),
        _calls("mkdirat", Operation.MKDIR, Shape.AT),
        _calls(
            "chmod chown lchown utimes setxattr lsetxattr removexattr lremovexattr",
            Operation.ATTRIBUTES,
            Shape.PATH,
        ),
        _calls("fchmod fchown fsetxattr fremovexattr", Operation.ATTRIBUTES, Shape.DESCRIPTOR),
        _calls("fchmodat fchmodat2 fchownat utimensat", Operation.ATTRIBUTES, Shape.AT),
        _calls("getdents64", Operation.LIST, Shape.DESCRIPTOR),
        _calls("stat lstat access", Operation.STAT, Shape.PATH),
        _calls("newfstatat statx faccessat faccessat2", Operation.STAT, Shape.AT),
        _calls("flock fcntl", Operation.LOCK, Shape.DESCRIPTOR, flags=1),
    )
    for call in group
}
"""By name."""

_X86_64 = """
    read 0 write 1 open 2 close 3 stat 4 lstat 6 access 21 newfstatat 262 faccessat 269 statx 332
    readlink 89 readlinkat 267 faccessat2 439
    pread64 17 pwrite64 18 readv 19 writev 20 msync 26 sendfile 40
    fcntl 72 flock 73 fsync 74 fdatasync 75 truncate 76 ftruncate 77 rename 82 mkdir 83 rmdir 84
    creat 85 link 86 unlink 87 symlink 88 chmod 90 fchmod 91 chown 92 fchown 93 lchown 94
    setxattr 188 lsetxattr 189 fsetxattr 190 removexattr 197 lremovexattr 198 fremovexattr 199
    getdents64 217 utimes 235 openat 257 mkdirat 258 fchownat 260 unlinkat 263 renameat 264
    linkat 265 symlinkat 266 fchmodat 268 splice 275 sync_file_range 277 utimensat 280
    fallocate 285 preadv 295 pwritev 296 syncfs 306 renameat2 316 copy_file_range 326 preadv2 327
    pwritev2 328 openat2 437 fchmodat2 452
"""
_AARCH64 = """
    faccessat 48 readlinkat 78 newfstatat 79 statx 291 faccessat2 439
    setxattr 5 lsetxattr 6 fsetxattr 7 removexattr 14 lremovexattr 15 fremovexattr 16 fcntl 25
    flock 32 mkdirat 34 unlinkat 35 symlinkat 36 linkat 37 renameat 38 truncate 45 ftruncate 46
    fallocate 47 fchmod 52 fchmodat 53 fchownat 54 fchown 55 openat 56 close 57 getdents64 61
    read 63 write 64 readv 65 writev 66 pread64 67 pwrite64 68 preadv 69 pwritev 70 sendfile 71
    splice 76 fsync 82 fdatasync 83 sync_file_range 84 utimensat 88 msync 227 syncfs 267
    renameat2 276 copy_file_range 285 preadv2 286 pwritev2 287 openat2 437 fchmodat2 452
"""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A machine's system calls by number, and how seccomp names the machine (``audit``)."""

    audit: int
    calls: dict[int, SystemCall]


def _architecture(audit: int, text: str) -> Architecture:
    words = text.split()
    calls = {int(n): CALLS[name] for name, n in zip(words[::2], words[1::2], strict=True)}
    return Architecture(audit, calls)


ARCHITECTURES = {
    "x86_64": _architecture(0xC000003E, _X86_64),
    "aarch64": _architecture(0xC00000B7, _AARCH64),
}
"""By the name that `platform.machine` gives."""


def architecture() -> Architecture | None:
    """Return the tables of this machine, ``None`` where there are none."""
    return ARCHITECTURES.get(platform.machine()) if os.name == "posix" else None
