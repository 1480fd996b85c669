"""Lets the modification times of files follow a clock.

Belongs here: giving changed files the virtual time of their change. How, and why it is true:
virtual time stands still between two movements, so whatever changed since the last one changed
*now*. Just before the clock moves, everything below the directory that the kernel has stamped
since is given the present virtual time with `os.utime`. The times are then on the disk, where
any process sees them.
Rules:

1. `os.stat`, `os.lstat`, `os.fstat` and `os.scandir` bring the times up to date first, so that code
   which writes and compares at once sees virtual times too. Native code that does so sees the
   real time until the clock moves.
2. A time that the program set itself (`os.utime`, `shutil.copy2`) is left alone: only times that
   the kernel could have given since the block began are replaced.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from pytest_statepersist.errors import UserError

if TYPE_CHECKING:
    from pytest_statepersist.clock.state import StateClock

__all__ = ["mtime_follows"]

_Signature = tuple[int, int]
# The kernel stamps files from a clock that lags by up to a tick, at most 10 ms.
_LAG_NS = 20_000_000
_ASKING = ("stat", "lstat", "fstat", "scandir")


@contextmanager
def mtime_follows(clock: StateClock, directory: Path) -> Iterator[Callable[[], None]]:
    """Do what `StateClock.mtime_follows` promises; raises `UserError` if it is no directory."""
    if not directory.is_dir():
        raise UserError(f"{str(directory)!r} is not a directory, so no file times can follow there")
    follower = _Follower(clock, os.path.realpath(directory))
    real = {name: getattr(os, name) for name in _ASKING}
    replaced = {name: _asking(function, follower.stamp) for name, function in real.items()}
    with clock.watched(before=follower.stamp):
        for name, function in replaced.items():
            setattr(os, name, function)
        try:
            yield follower.stamp
        finally:
            follower.stamp()
            follower.live = False
            for name, function in replaced.items():
                if getattr(os, name) is function:
                    setattr(os, name, real[name])


def _asking(real: Callable[..., Any], first: Callable[[], None]) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        first()
        return real(*args, **kwargs)

    function.__name__ = function.__qualname__ = real.__name__
    return function


class _Follower:
    """Remembers the times of each inode, to see which have changed."""

    def __init__(self, clock: StateClock, root: str) -> None:
        self._clock = clock
        self._root = root
        self._lock = RLock()
        self._busy = False
        self._since = _kernel_now() - _LAG_NS
        self._seen = {found.st_ino: _times(found) for _, found in self._walk()}
        self.live = True

    def stamp(self) -> None:
        """Give every file and directory that has changed the present virtual time."""
        with self._lock:
            if self._busy or not self.live:
                return
            self._busy = True
            try:
                self._stamp()
            finally:
                self._busy = False

    def _stamp(self) -> None:
        now = self._clock.time_ns()
        seen: dict[int, _Signature] = {}
        for path, found in self._walk():
            before = self._seen.get(found.st_ino)
            seen[found.st_ino] = times = _times(found)
            if before is not None and before[0] == found.st_mtime_ns:
                continue  # at most its name, mode or owner has changed
            # A change time cannot be set by a program: what is later was set by hand.
            if not self._since <= found.st_mtime_ns <= times[1]:
                continue
            try:
                os.utime(path, ns=(found.st_atime_ns, now), follow_symlinks=False)
                seen[found.st_ino] = _times(os.lstat(path))
            except OSError:
                # Gone or replaced meanwhile, by another thread: the next look will see it.
                seen.pop(found.st_ino)
        self._seen = seen

    def _walk(self) -> Iterator[tuple[str, os.stat_result]]:
        stack = [self._root]
        while stack:
            path = stack.pop()
            try:
                found = os.lstat(path)
                if stat.S_ISDIR(found.st_mode):
                    stack.extend(os.path.join(path, name) for name in os.listdir(path))
            except OSError:
                continue
            yield path, found


def _times(found: os.stat_result) -> _Signature:
    return found.st_mtime_ns, found.st_ctime_ns


def _kernel_now() -> int:
    """Return the kernel's time in nanoseconds, also where `time` is on a clock."""
    with tempfile.TemporaryFile() as file:
        return os.fstat(file.fileno()).st_ctime_ns
