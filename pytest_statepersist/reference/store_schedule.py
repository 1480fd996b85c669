"""Dated backups of a file store, made at an interval and thinned out.

The law: the newest backups are kept, and a full one for as long as a kept differential one
needs it. Nothing is removed before the new backup is durable, and a removal is atomic: a
crash never leaves half a backup under its name.

Names sort by time: ``20250301T120000Z-full``, ``20250301T130000Z-diff``.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable
from datetime import UTC
from pathlib import Path

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import (
    fsync_directory,
    is_temporary,
    make_directory,
    temporary_name,
)
from pytest_statepersist.reference.clock import Clock, Handle, Scheduler, SystemClock
from pytest_statepersist.reference.errors import PersistenceError, StorageError, ValidationError
from pytest_statepersist.reference.file_store import FileStore
from pytest_statepersist.reference.locking import StoreLock
from pytest_statepersist.reference.store_backup import outside, read_manifest

__all__ = ["BackupSchedule"]

_log = logging.getLogger(__name__)

_NAME = re.compile(r"\d{8}T\d{6}Z(-\d+)?-(full|diff)")


@checked
class BackupSchedule:
    """Dated backups of ``store`` in ``directory``, which belongs to this store alone.

    Each ``full_every``-th backup is a full one (1: all of them), the others are differential
    against the latest full one. The newest ``keep`` are kept. Raises `ValidationError`.
    """

    def __init__(
        self,
        store: FileStore,
        directory: str | os.PathLike[str],
        *,
        keep: int = 7,
        full_every: int = 1,
        clock: Clock | None = None,
        on_error: Callable[[PersistenceError], object] | None = None,
    ) -> None:
        if keep < 1 or full_every < 1:
            raise ValidationError("keep" if keep < 1 else "full_every", "must be 1 or more")
        self._store = store
        self._directory = outside(store.root, directory)
        self._keep = keep
        self._full_every = full_every
        self._clock = clock or SystemClock()
        self._on_error = on_error
        make_directory(self._directory)
        self._lock = StoreLock(self._directory / ".lock")

    def start(self, scheduler: Scheduler, interval_s: float = 24 * 3600.0) -> Handle:
        """Back up each ``interval_s`` seconds; cancel the handle to stop.

        A backup that fails is given to ``on_error`` (else to the log); the next beat tries
        again.
        """
        return scheduler.every(interval_s, self._beat)

    def run_now(self) -> Path:
        """Make one backup, durable on return, then remove what is too old.

        Raises `BackupError`, `StorageError`, `LockTimeout`.
        """
        with self._lock:
            self._remove_leftovers()
            base = self._base()
            made = self._store.backup(self._new_path("diff" if base else "full"), base=base)
            self._prune(made)
            return made

    def backups(self) -> tuple[Path, ...]:
        """Return all backups, oldest first. Raises `StorageError`."""
        return tuple(self._directory / name for name in self._names() if _NAME.fullmatch(name))

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self._directory))
        except OSError as error:
            raise StorageError(self._directory, error) from error

    def _beat(self) -> None:
        try:
            self.run_now()
        except PersistenceError as error:
            if self._on_error is None:
                _log.exception("the scheduled backup to %s failed", self._directory)
            else:
                self._on_error(error)

    def _base(self) -> Path | None:
        """Return the full backup to build on; None if it is time for a full one."""
        for since_full, path in enumerate(reversed(self.backups()), start=1):
            if path.name.endswith("-full"):
                return path if since_full < self._full_every else None
        return None

    def _new_path(self, kind: str) -> Path:
        stamp = self._clock.now().astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
        taken = {path.name.rpartition("-")[0] for path in self.backups()}
        name, number = stamp, 1
        while name in taken:  # two in one second, or the clock was set back
            number += 1
            name = f"{stamp}-{number}"
        return self._directory / f"{name}-{kind}"

    def _prune(self, newest: Path) -> None:
        backups = self.backups()
        kept = {*backups[-self._keep :], newest}
        needed = {self._base_of(path) for path in kept}
        for path in backups:
            if path not in kept and path.name not in needed:
                self._remove(path)

    def _base_of(self, path: Path) -> str | None:
        try:
            manifest = read_manifest(path)
        except PersistenceError:
            return None  # damaged: it needs nothing any more, but is not ours to remove early
        return None if manifest.base is None else Path(manifest.base.path).name

    def _remove(self, path: Path) -> None:
        hidden = path.with_name(temporary_name(path.name))
        try:
            os.rename(path, hidden)
        except OSError as error:
            raise StorageError(path, error) from error
        fsync_directory(self._directory)
        shutil.rmtree(hidden, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        for name in self._names():
            if is_temporary(name):
                shutil.rmtree(self._directory / name, ignore_errors=True)
