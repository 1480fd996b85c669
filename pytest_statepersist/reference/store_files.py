"""The file store's directory: which files it has, reading and quarantining one, its recovery.

The law: everything about names, links and places on disk is here, nothing about what an item
means. All of it is called under the store's lock.

Layout below the root: ``sessions/``, ``conversations/`` and ``focus/``, each with ``ID.json``
(in whatever format); ``.lock``; ``.journal`` while a change of several files is under way.
The root may be a symbolic link, which is resolved once, at open. No other link is followed:
one in the place of an item is reported and set aside, one in the place of a directory refused.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_statepersist.reference.atomic import (
    fsync_directory,
    make_directory,
    read_bounded,
    resolved_path,
)
from pytest_statepersist.reference.errors import (
    InvalidId,
    NotFound,
    PersistenceError,
    StorageError,
    ValidationError,
)
from pytest_statepersist.reference.ids import check_id
from pytest_statepersist.reference.items import ITEM_TYPES, Item
from pytest_statepersist.reference.presence import is_link, is_present
from pytest_statepersist.reference.transaction import JOURNAL_NAME, recover

__all__ = ["DIRECTORIES", "Known", "StoreFiles"]

DIRECTORIES = tuple(model.directory for model in ITEM_TYPES)
_SUFFIX = ".json"
_DAMAGED = ".damaged-"


@dataclass(frozen=True, slots=True)
class Known:
    """What a process last saw durable at a place; the key to incremental saves.

    ``digest`` is of the plaintext, ``stored`` of the file: the same bytes need no second look.
    Bytes, not times and inodes: a file that is replaced twice within a tick may show both again.
    """

    digest: bytes
    stored: bytes


class StoreFiles:
    """The files of one store. Raises `StorageError` when the layout cannot be made."""

    def __init__(self, root: str | os.PathLike[str], *, limit: int) -> None:
        self.root = resolved_path(root)
        self.limit = limit

    def create(self) -> None:
        """Make the root; durable on return. Needs no lock: the lock lives in it."""
        make_directory(self.root)

    def prepare(self) -> None:
        """Make the directories and recover; on return all that can be read is durable.

        Raises `ValidationError` for a linked directory, `DamagedData` for a forged journal.
        """
        for directory in DIRECTORIES:
            path = self.root / directory
            if is_link(path):
                raise ValidationError(directory, f"{path} is a symbolic link; move the files here")
            make_directory(path)
        self.recover()
        self.sync()

    def sync(self, directories: Iterable[str] = DIRECTORIES) -> None:
        """Make names durable: whoever changed them may have been killed before its last sync.

        Raises `StorageError`.
        """
        for directory in directories:
            fsync_directory(self.root / directory)

    def recover(self) -> None:
        """Finish or clear away what a crash interrupted; durable on return."""
        recover(self.root, (".", *DIRECTORIES))

    def has_journal(self) -> bool:
        """Whether a change of several files was cut short; raises `StorageError`."""
        return is_present(self.root / JOURNAL_NAME)

    def path(self, place: str) -> Path:
        """Return the file of a place ("sessions/ID.json")."""
        return self.root / place

    def ids(self, model: type[Item]) -> tuple[str, ...]:
        """Return the ids that have a file, sorted. Raises `StorageError`."""
        return tuple(name for name in self._stems(model) if _is_id(name))

    def misnamed(self, model: type[Item]) -> Iterator[tuple[Path, InvalidId]]:
        """Yield the files that look like items but have an impossible id."""
        for name in self._stems(model):
            try:
                check_id(name)
            except InvalidId as error:
                yield self.root / model.directory / f"{name}{_SUFFIX}", error

    def _stems(self, model: type[Item]) -> list[str]:
        return sorted(
            name.removesuffix(_SUFFIX)
            for name in self._names(model.directory)
            if name.endswith(_SUFFIX) and not name.startswith(".")
        )

    def _names(self, directory: str) -> list[str]:
        try:
            return os.listdir(self.root / directory)
        except OSError as error:
            raise StorageError(self.root / directory, error) from error

    def read(self, place: str) -> bytes:
        """Return a file's bytes. Raises `NotFound`, `DamagedData`, `StorageError`."""
        try:
            return read_bounded(self.path(place), self.limit, follow_symlinks=False)
        except NotFound:
            raise NotFound(
                f"{self.path(place)}: nothing is stored there{self._aside(place)}"
            ) from None

    def _aside(self, place: str) -> str:
        path = self.path(place)
        start = path.name + _DAMAGED
        try:
            aside = sorted(name for name in os.listdir(path.parent) if name.startswith(start))
        except OSError:
            return ""  # a courtesy, no part of the answer
        return f"; a damaged copy is kept as {aside[0]}" if aside else ""

    def has(self, place: str) -> bool:
        """Tell whether anything is at ``place``. Raises `StorageError`."""
        return is_present(self.path(place))

    def quarantine(self, place: str) -> Path:
        """Rename a damaged file out of the way, durably; it is never deleted.

        The new name tells its content, so that the same damage has the same name.
        Raises `StorageError`.
        """
        path = self.path(place)
        try:
            raw = read_bounded(path, self.limit, follow_symlinks=False)
            mark = hashlib.sha256(raw).hexdigest()[:16]
        except PersistenceError:
            mark = secrets.token_hex(8)
        target = path.with_name(f"{path.name}{_DAMAGED}{mark}")
        try:
            os.rename(path, target)
        except OSError as error:
            raise StorageError(path, error) from error
        fsync_directory(path.parent)
        return target

    def quarantined(self) -> tuple[Path, ...]:
        """Return all files that were set aside, sorted."""
        return tuple(
            sorted(
                self.root / directory / name
                for directory in DIRECTORIES
                for name in self._names(directory)
                if _DAMAGED in name
            )
        )


def _is_id(name: str) -> bool:
    try:
        check_id(name)
    except InvalidId:
        return False
    return True
