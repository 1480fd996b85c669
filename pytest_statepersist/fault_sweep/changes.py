"""Whether anything in a directory was changed between two moments.

Belongs here: `Changes`, which asks the kernel, and `fingerprint` for where it cannot be asked.
Rules:

1. Times alone prove nothing where the kernel is asked: they stand still for a tick, so a write in
   place soon after another one leaves the same size and the same times.
2. What was open for writing counts as changed when it is closed: stores into a map are not told.
3. Each process asks with a queue of its own; a child of a fork would take events from its parent.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from pytest_statepersist.errors import RecorderUnavailable
from pytest_statepersist.recorders import inotify, real
from pytest_statepersist.recorders.inotify import Inotify

__all__ = ["Changes", "fingerprint"]


class Changes:
    """Says whether anything in a directory was changed since `begin`."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._process = -1
        self._queue: Inotify | None = None
        self._watched: list[str] = []
        self._mark: Any = None

    def begin(self) -> None:
        """Count what is changed from here on."""
        if self._process != os.getpid():
            self._process = os.getpid()
            try:
                self._queue = Inotify()
            except RecorderUnavailable:
                self._queue = None
        if self._queue is not None:
            self._watch(self._queue)
        if self._queue is None:
            self._mark = fingerprint(self._directory)

    def any(self) -> bool:
        """Say whether anything was changed since `begin`; then it no longer counts."""
        if self._queue is None:
            return bool(fingerprint(self._directory) != self._mark)
        found = self._queue.drain()
        for path in self._watched:
            with suppress(RecorderUnavailable, OSError):
                self._queue.watch(path, inotify.DELETE_SELF)  # each event takes its time
        return bool(found)

    def close(self) -> None:
        """Let go of the queue; it is made again where it is needed."""
        if self._queue is not None and self._process == os.getpid():
            self._queue.close()
        self._process, self._queue = -1, None

    def _watch(self, queue: Inotify) -> None:
        try:
            # A directory with two links has no other one in it; on btrfs each has one link.
            flat = real.stat(self._directory).st_nlink == 2
            walk = [self._directory] if flat else [path for path, _, _ in os.walk(self._directory)]
            for path in walk:
                queue.watch(path, inotify.CHANGES)
            self._watched = walk
            queue.drain()
        except (RecorderUnavailable, OSError):
            queue.close()
            self._queue = None


def fingerprint(directory: str) -> tuple[tuple[object, ...], ...]:
    """Return what shows whether anything in a directory was changed."""
    rows: list[tuple[Any, ...]] = []
    pending = [directory]
    while pending:
        here = pending.pop()
        try:
            status = real.stat(here)
            rows.append((here, status.st_mtime_ns, status.st_ctime_ns))
            with real.scandir(here) as entries:
                for entry in entries:
                    found = entry.stat(follow_symlinks=False)
                    rows.append((entry.path, found.st_ino, found.st_size, found.st_ctime_ns))
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except OSError as error:
            rows.append((here, error.errno or 0))
    rows.sort()  # by paths, then numbers
    return tuple(rows)
