"""What a failed sync leaves in the page cache: the new content, or the old one again.

Belongs here: `Leftover`, knowing what the last sync of each file left, and putting that back as
btrfs does. That the pages count as clean, so that no later sync writes them, is in `core.forcing`.
Rules:

1. What was there when the run began counts as synced; so does what was written to a file that was
   opened for synchronous writes.
2. A file is put back by calls that the recorder sees: the trace holds what reads then gave.
3. A sync of everything that fails puts back every file. That some of them are put back and others
   are not, which is as possible, is not tried.
4. A sync that C code makes is recorded as failed once it has returned, and a call of another
   program happens then; so what is due after them is done before the next call (`Injection`).

Facts: Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020: on ext4 and
XFS the new content stays readable while the disk keeps the old; on btrfs it reverts, size included.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable
from contextlib import suppress

from pytest_statepersist.core.models import FailedSync, Model
from pytest_statepersist.faults.calls import Call, Operation
from pytest_statepersist.recorders import real

__all__ = ["OF_EVERYTHING", "Leftover", "Synced", "leftovers"]


OF_EVERYTHING = frozenset({"syncfs"})
"""Functions that sync all files."""


class Leftover(enum.Enum):
    """What reads give after a sync has failed."""

    KEPT = "the new content, which no later sync writes"
    REVERTED = "the content of the last sync"

    def fits(self, model: Model) -> bool:
        """Say whether a file system with this model can leave it."""
        return model.failed_sync in (FailedSync.EITHER, _MODELS[self])


_MODELS = {Leftover.KEPT: FailedSync.KEEPS, Leftover.REVERTED: FailedSync.REVERTS}


def leftovers(models: Iterable[Model]) -> tuple[Leftover, ...]:
    """Return what a failed sync may leave under any of these models."""
    chosen = tuple(models)
    return tuple(each for each in Leftover if any(each.fits(model) for model in chosen))


class Synced:
    """What each file of a directory held when it was last synced, as far as a run changed it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._contents: dict[int, bytes] = {}
        self._synchronous: set[int] = set()

    def before(self, call: Call) -> None:
        """Look at a file before the first call that may change it."""
        if call.operation in _CHANGING and not call.creates:
            self._look(call, again=False)

    def after(self, call: Call) -> None:
        """Note what a call that succeeded has made durable."""
        if call.function in OF_EVERYTHING:
            self._contents.clear()  # what comes next is looked at before it changes
        elif call.operation is Operation.FSYNC:
            self._look(call, again=True)
        elif call.operation is Operation.OPEN and call.synchronous:
            with suppress(OSError):
                self._synchronous.add(real.stat(self._path(call)).st_ino)
        elif call.operation is Operation.WRITE and self._synchronous:
            with suppress(OSError):
                if real.stat(self._path(call)).st_ino in self._synchronous:
                    self._look(call, again=True)

    def put_back(self, call: Call) -> int:
        """Give what a failed sync was about, a file or all, the content of its last sync again.

        Return how many files that were.
        """
        if call.function in OF_EVERYTHING:
            changed = [*self._changed()]
            for path in changed:
                self.put_back(Call(Operation.FSYNC, path, "fsync"))
            return len(changed)
        try:
            fd, own = self._opened(call, os.O_WRONLY)
        except OSError:
            return 0
        try:
            content = self._contents.get(real.fstat(fd).st_ino)
            if content is not None and call.rewrite is not None:
                call.rewrite(content)
            elif content is not None:
                os.ftruncate(fd, len(content))
                written = 0
                while written < len(content):
                    written += os.pwrite(fd, content[written:], written)
            return 1
        finally:
            if own:
                os.close(fd)

    def _changed(self) -> Iterable[str]:
        """Return the files that do not hold what they held when they were synced."""
        seen: set[int] = set()
        for directory, _, names in os.walk(self._directory):
            for path in (os.path.join(directory, name) for name in names):
                with suppress(OSError), real.open(path, "rb") as file:
                    inode = real.fstat(file.fileno()).st_ino
                    synced = self._contents.get(inode)
                    if inode not in seen and synced is not None and file.read() != synced:
                        seen.add(inode)
                        yield os.path.relpath(path, self._directory)

    def _look(self, call: Call, *, again: bool) -> None:
        try:
            fd, own = self._opened(call, os.O_RDONLY)
        except OSError:
            return
        try:
            status = real.fstat(fd)
            if again or status.st_ino not in self._contents:
                self._contents[status.st_ino] = _whole(fd, status.st_size)
        except OSError:
            pass  # a directory has no content
        finally:
            if own:
                real.close(fd)

    def _opened(self, call: Call, mode: int) -> tuple[int, bool]:
        """Return a descriptor, and whether it is ours: closing one drops locks of this process."""
        fd = call.descriptor
        if fd is not None and real.system.allows(fd, mode):
            return fd, False
        if call.native and not call.foreign:
            raise OSError  # C code holds its locks by descriptors of the same file
        opening = real.os_open if mode == os.O_RDONLY else os.open
        return opening(self._path(call), mode | os.O_CLOEXEC | os.O_NOFOLLOW), True

    def _path(self, call: Call) -> str:
        return os.path.join(self._directory, call.path)


_CHANGING = frozenset({Operation.OPEN, Operation.WRITE, Operation.TRUNCATE, Operation.ALLOCATE})


def _whole(fd: int, size: int) -> bytes:
    parts, at = [], 0
    while at < size:
        part = real.pread(fd, min(size - at, 1 << 20), at)
        if not part:
            break
        parts.append(part)
        at += len(part)
    return b"".join(parts)
