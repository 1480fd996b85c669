"""A quota for the state directory: writes fail when it is full, as on a full disk.

Belongs here: counting the bytes of a directory at each call, and refusing what does not fit. Rules:

1. A write that fits in part is made in part; the next one fails. That is what file systems do.
2. What is counted are the sizes of the files, each inode once; a new name costs nothing.
3. Code that is not Python is not stopped, SQLite apart: `used` shows afterwards what it took.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pytest_statepersist.errors import BlindSpot, RecorderUnavailable, UserError
from pytest_statepersist.faults.calls import Call, Operation, os_error
from pytest_statepersist.faults.gate import gated
from pytest_statepersist.faults.installing import installed
from pytest_statepersist.recorders import real

__all__ = ["Quota", "quota"]


class Quota:
    """The handler that refuses what does not fit; ``refused`` counts the calls that it stopped."""

    def __init__(self, directory: str, limit: int, error: str) -> None:
        self.directory = directory
        self.limit = limit
        self.error = error
        self.refused = 0
        self._lock = threading.RLock()

    @property
    def used(self) -> int:
        """Bytes in the files of the directory now, each inode once."""
        return _used(self.directory)

    def __call__(self, call: Call, run: Callable[[], Any]) -> Any:
        """Make the call if it fits, a part of a write if that fits, or raise the error."""
        if call.growth is None:
            return run()
        with self._lock:
            growth = call.growth()
            free = self.limit - self.used
            if growth <= max(free, 0) or growth == 0:
                return run()
            self.refused += 1
            part = call.size - (growth - max(free, 0))
            if call.operation is Operation.WRITE and call.shorten is not None and part > 0:
                return call.shorten(part)
            raise os_error(self.error, call.path)


@contextmanager
def quota(
    directory: str | os.PathLike[str], limit: int, *, error: str = "ENOSPC"
) -> Iterator[Quota]:
    """Let the files of a directory take ``limit`` bytes at most while the block runs.

    ``error`` is "ENOSPC" (a full disk) or "EDQUOT" (a user's quota). Raises `UserError` for another
    error or a limit below 0, `BlindSpot` where native code went past the quota meanwhile.
    """
    if error not in ("ENOSPC", "EDQUOT"):
        raise UserError(f"error={error!r} is no error of a full disk: 'ENOSPC' or 'EDQUOT'")
    if limit < 0:
        raise UserError(f"limit={limit!r} cannot be: give bytes from 0")
    path = os.path.realpath(os.fspath(directory))
    handler = Quota(path, limit, error)
    before = handler.used
    with ExitStack() as stack:
        stack.enter_context(installed())
        with _PassedOver():
            from pytest_statepersist.faults.sqlite import sqlite_gate

            stack.enter_context(sqlite_gate())
        stack.enter_context(gated(path, handler))
        yield handler
    after = handler.used
    if after > max(limit, before):
        raise BlindSpot(
            f"{path} holds {after} bytes under a quota of {limit}: something that is not Python "
            "wrote there, which no quota at the level of calls can stop. Use a small tmpfs.",
            culprit=path,
        )


class _PassedOver:
    """Pass over a SQLite that is not there or cannot be reached."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, ImportError | RecorderUnavailable)


def _used(directory: str) -> int:
    seen: set[tuple[int, int]] = set()
    total = 0
    pending = [directory]
    while pending:
        try:
            with real.scandir(pending.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    identity = (status.st_dev, status.st_ino)
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(entry.path)
                    elif identity not in seen:
                        seen.add(identity)
                        total += status.st_size
        except FileNotFoundError:
            continue  # it went while it was looked at
    return total
