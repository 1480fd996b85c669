"""Putting the gate's replacements in place, above the recorder's, and taking them away.

Belongs here: which name gets which replacement, and the one thing that has to happen below the
recorder: a sync that fails is to be recorded as failed.
"""

from __future__ import annotations

import _io
import builtins
import fcntl
import io
import os
import posix
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import local
from typing import Any

from pytest_statepersist.faults.calls import Operation
from pytest_statepersist.faults.gate_calls import (
    allocating,
    copying,
    listing,
    looking,
    on_descriptor,
    on_path,
    os_opening,
    truncating,
    writing,
    writing_many,
)
from pytest_statepersist.faults.gate_files import fileio, opening
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.interpose import Interposition, Table
from pytest_statepersist.recorders.python import interposition as recorder_interposition

__all__ = ["fail_sync", "installed"]

_failing = local()


@contextmanager
def installed() -> Iterator[None]:
    """Put the replacements in place; a gate takes effect in them without further cost."""
    with _Below(), recorder_interposition(), _above():
        yield


def fail_sync(error: OSError, run: Callable[[], Any]) -> Any:
    """Make a sync fail below the recorder, so that it is recorded as one that failed."""
    _failing.error = error
    try:
        run()
    finally:
        _failing.error = None
    raise error  # nobody between here and the system took it


# -- replacements
def _table() -> Table:
    path, descriptor = on_path, on_descriptor
    functions: dict[str, Callable[[Any], Any]] = {
        "open": os_opening,
        "write": writing,
        "pwrite": writing,
        "writev": writing_many,
        "pwritev": writing_many,
        "posix_fallocate": allocating,
        "sendfile": copying,
        "copy_file_range": copying,
        "splice": copying,
        "read": descriptor(Operation.READ),
        "readv": descriptor(Operation.READ),
        "pread": descriptor(Operation.READ),
        "preadv": descriptor(Operation.READ),
        "fsync": descriptor(Operation.FSYNC),
        "fdatasync": descriptor(Operation.FSYNC),
        "close": descriptor(Operation.CLOSE),
        "truncate": truncating,
        "ftruncate": truncating,
        "stat": looking,
        "lstat": looking,
        "access": looking,
        "readlink": looking,
        "listdir": listing,
        "scandir": listing,
        "rename": path(Operation.RENAME, second=True),
        "replace": path(Operation.RENAME, second=True),
        "link": path(Operation.LINK, second=True),
        "symlink": path(Operation.SYMLINK, second=True),
        "unlink": path(Operation.UNLINK),
        "remove": path(Operation.UNLINK),
        "mkdir": path(Operation.MKDIR),
        "rmdir": path(Operation.RMDIR),
        "chmod": path(Operation.ATTRIBUTES),
        "fchmod": path(Operation.ATTRIBUTES),
        "chown": path(Operation.ATTRIBUTES),
        "fchown": path(Operation.ATTRIBUTES),
        "lchown": path(Operation.ATTRIBUTES),
        "utime": path(Operation.ATTRIBUTES),
        "setxattr": path(Operation.ATTRIBUTES),
        "removexattr": path(Operation.ATTRIBUTES),
    }
    table: dict[tuple[Any, str], Callable[[Any], Any]] = {}
    for name, factory in functions.items():
        for module in (os, posix):
            table[module, name] = factory
    for module in (builtins, io, _io):
        table[module, "open"] = opening
    for module in (io, _io):
        table[module, "FileIO"] = fileio
    for name in ("flock", "lockf"):
        table[fcntl, name] = descriptor(Operation.LOCK)
    return table


_made: list[Interposition] = []


def _above() -> Interposition:
    if not _made:
        _made.append(Interposition(_table(), layer=2, rebind=True))
    return _made[0]


class _Below:
    """Makes the syncs that the recorder calls fail on demand, until the last user has gone."""

    users = 0

    def __enter__(self) -> None:
        _Below.users += 1
        real.system.fsync = _fsync_below
        if _fdatasync is not None:
            real.system.fdatasync = _fdatasync_below

    def __exit__(self, *_: object) -> None:
        _Below.users -= 1
        if _Below.users:
            return
        real.system.fsync = _fsync
        if _fdatasync is not None:
            real.system.fdatasync = _fdatasync


# Globals of this package are the one place where the recorder does not look for bound functions.
_fsync = real.system.fsync
_fdatasync = getattr(real.system, "fdatasync", None)


def _meet() -> None:
    error = getattr(_failing, "error", None)
    if error is not None:
        _failing.error = None
        raise error


def _fsync_below(fd: Any) -> None:
    _meet()
    _fsync(fd)


def _fdatasync_below(fd: Any) -> None:
    _meet()
    assert _fdatasync is not None  # else it would not have been put in place
    _fdatasync(fd)
