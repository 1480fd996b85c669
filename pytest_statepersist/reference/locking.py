"""One writer at a time: the lock that every store of this package takes.

The law: a `StoreLock` excludes other threads *and* other processes, and a thread that holds
it may take it again. It is an operating-system lock, so a killed holder releases it; the lock
file stays behind, empty, and means nothing by its mere existence.

A system may refuse to release a lock (of a network file system whose server is away, say). What the
holder did is done by then, so that is no error of his: it is tried again at once, and whenever
somebody in this process wants that lock.
"""

from __future__ import annotations

import inspect
import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import filelock

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import checked_path
from pytest_statepersist.reference.errors import LockTimeout, StorageError, ValidationError

__all__ = ["StoreLock"]

# Where flock is missing, newer filelock would fall back to "the file exists", which a killed
# holder never releases. Older versions have no such fallback and no such option.
_OPTIONS: Mapping[str, Any] = (
    {"fallback_to_soft": False}
    if "fallback_to_soft" in inspect.signature(filelock.FileLock.__init__).parameters
    else {}
)
_log = logging.getLogger(__name__)
_refused: dict[str, list[filelock.BaseFileLock]] = {}
"""Locks that the system did not release, by path."""
_refused_guard = threading.Lock()


@checked
class StoreLock:
    """An exclusive lock on ``path``, for use in ``with``; reentrant in one thread.

    ``timeout`` is in seconds; 0 tries once. Entering raises `LockTimeout` when it passes, and
    `StorageError` when the lock file cannot be opened. The directory must exist. Two
    `StoreLock` objects on one path exclude each other, in one thread too: share the object.
    Processes that wait poll, so that the lock is not fair: whoever takes it again and again
    without a pause may starve the others until their ``timeout``.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 10.0) -> None:
        self.path = checked_path(path)
        self.timeout = min(timeout, threading.TIMEOUT_MAX)  # infinite: as long as it can be
        self._between_threads = threading.RLock()
        self._between_processes = self._new_lock()
        self._depth = 0
        self._holder: int | None = None

    def _new_lock(self) -> filelock.BaseFileLock:
        return filelock.FileLock(str(self.path), mode=0o600, thread_local=False, **_OPTIONS)

    @property
    def held(self) -> bool:
        """Whether some thread holds the lock through this object."""
        return self._depth > 0

    def acquire(self) -> None:
        """Take the lock, waiting up to ``timeout`` seconds. Raises `LockTimeout`."""
        deadline = time.monotonic() + self.timeout
        if not self._between_threads.acquire(timeout=max(0.0, self.timeout)):
            raise self._timed_out("another thread")
        try:
            if self._depth == 0:
                self._release_refused()
                self._between_processes.acquire(
                    timeout=max(0.0, deadline - time.monotonic()), poll_interval=0.01
                )
            self._depth += 1
            self._holder = threading.get_ident()
        except filelock.Timeout:
            self._between_threads.release()
            raise self._timed_out("another process or store object") from None
        except OSError as error:
            self._between_threads.release()
            raise StorageError(self.path, error) from error
        except BaseException:
            self._between_threads.release()
            raise

    def release(self) -> None:
        """Give back one `acquire`; the last one lets others in.

        Raises `ValidationError`, with nothing given back, in a thread that does not hold it.
        """
        if self._holder != threading.get_ident():
            raise ValidationError("lock", f"{self.path} is not held by the thread that releases it")
        try:
            self._depth -= 1
            if self._depth == 0:
                self._holder = None
                self._let_others_in()
        finally:
            self._between_threads.release()

    def _let_others_in(self) -> None:
        try:
            self._between_processes.release()
        except OSError:
            with _refused_guard:
                _refused.setdefault(str(self.path), []).append(self._between_processes)
            # Nobody takes that one again, so that releasing it late cannot take it from a holder.
            self._between_processes = self._new_lock()
            self._release_refused()

    def _release_refused(self) -> None:
        with _refused_guard:
            for lock in _refused.pop(str(self.path), []):
                try:
                    lock.release(force=True)
                except OSError as error:
                    _log.warning("%s could not be unlocked yet: %s", self.path, error)
                    _refused.setdefault(str(self.path), []).append(lock)

    def __enter__(self) -> StoreLock:
        self.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def _timed_out(self, holder: str) -> LockTimeout:
        return LockTimeout(
            f"{self.path}: {holder} kept the lock for more than {self.timeout:g} s; "
            "wait for it to finish, or open the store with a larger timeout"
        )
