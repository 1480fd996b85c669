"""Encrypted storage for what must not lie around in the clear.

The law: nothing of a key, a value, a category or a tag is on the disk in the clear, in
temporaries and after crashes included; a file's name is random. What shows is how many entries
there are, how large they are, and when they were written.

    vault/
        vault.json              how the password becomes a key (`vault_keys`)
        .vault_index.enc        which entry is in which file, with its metadata
        5f0c…e1.vault           one entry each
    vault.lock

**The index is the commit.** `store` writes the new entry to a new file, then replaces the index:
that one durable rename makes it so. Only then the file of the old value goes. `delete` is the
same without a new file. A crash leaves files that no index names; opening removes them.
`change_password` replaces the header, which holds the data key under the password: after any
crash exactly one of the two passwords opens, and it opens everything.

An old index put back together with its old files is not noticed; nothing that is stored here
could tell.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

from pydantic import Field

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import (
    check_size,
    fsync_directory,
    make_directory,
    read_bounded,
    remove_durably,
    remove_temporaries,
    resolved_path,
    write_atomic,
)
from pytest_statepersist.reference.cipher import Cipher, KdfCost
from pytest_statepersist.reference.clock import Clock, SystemClock
from pytest_statepersist.reference.errors import (
    DamagedData,
    IntegrityError,
    NewerVersion,
    NotFound,
    StorageError,
    ValidationError,
    WrongPassword,
)
from pytest_statepersist.reference.locking import StoreLock
from pytest_statepersist.reference.presence import is_present
from pytest_statepersist.reference.timestamps import Moment
from pytest_statepersist.reference.transaction import JOURNAL_NAME, Transaction, recover
from pytest_statepersist.reference.values import Count, Text, Value, from_json, to_json
from pytest_statepersist.reference.vault_keys import (
    KEY_SIZE,
    Cost,
    VaultHeader,
    decode_key,
    encode_key,
)

__all__ = ["Category", "Vault", "VaultInfo"]

HEADER = "vault.json"
INDEX = ".vault_index.enc"
_SUFFIX = ".vault"
_SET_ASIDE = ".damaged"
_INDEX_VERSION = 1
_LARGEST_FILE = 1 << 30
_log = logging.getLogger(__name__)


class Category(StrEnum):
    """What an entry is about."""

    PERSONAL = "personal"
    PRIVATE = "private"
    KNOWLEDGE = "knowledge"
    HEALTH = "health"
    FINANCE = "finance"
    CREDENTIALS = "credentials"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class VaultInfo:
    """What a list shows of an entry."""

    key: str
    category: Category
    tags: tuple[str, ...]
    created_at: Moment
    updated_at: Moment


class _Metadata(Value):
    category: Category
    tags: tuple[Text, ...]
    created_at: Moment
    updated_at: Moment
    serial: Count  # grows with each change of the vault: the larger one is the later one


class _Indexed(_Metadata):
    file: Text

    def info(self, key: str) -> VaultInfo:
        return VaultInfo(key, self.category, self.tags, self.created_at, self.updated_at)


class _Index(Value):
    version: int = _INDEX_VERSION
    serial: Count = 0
    entries: dict[Text, _Indexed] = Field(default_factory=dict)


class _Entry(_Metadata):
    key: Text
    value: Any


@checked
class Vault:
    """The vault in the directory ``path``, opened by ``password`` or by an exported ``key``.

    A new vault is created where there is none (a password is needed for that); ``cost`` is what
    a guess at its password costs: `KdfCost` (Argon2id, the default) or `Pbkdf2Cost`. An existing
    vault keeps its own until `change_password`.

    Raises `WrongPassword`; `DamagedHeader` (which is both `WrongPassword` and `DamagedData`:
    "wrong password or damaged header"); `DamagedData` where the index is damaged (then
    ``rebuild_index=True`` makes a new one of the entries), `NewerVersion`, `LockTimeout`,
    `StorageError`. Safe between threads and processes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        password: str | None = None,
        key: str | None = None,
        cost: Cost | None = None,
        clock: Clock | None = None,
        timeout: float = 10.0,
        rebuild_index: bool = False,
    ) -> None:
        if (password is None) == (key is None):
            raise ValidationError("password", "pass either a password or an exported key")
        # Resolved, so that all who come by a link take the same lock beside the directory.
        self.path = resolved_path(path)
        self.clock: Clock = clock or SystemClock()
        self._cost: Cost = cost or KdfCost()
        self._cache = threading.Lock()
        self._cached: tuple[bytes, _Index] | None = None
        make_directory(self.path)
        self._lock = StoreLock(self.path.with_name(self.path.name + ".lock"), timeout=timeout)
        with self._lock:
            # Also makes durable what a killed writer left only in the page cache: below, files
            # are removed because of what the index says.
            recover(self.path)
            fsync_directory(self.path)
            self._vault_id, self._data_key = self._unlock(password, key)
            self._cipher = Cipher(self._data_key)
            if rebuild_index:
                self._rebuild_index()
            self._remove_unnamed(self._index())

    # -- entries -------------------------------------------------------------------------

    def store(
        self,
        key: str,
        value: Any,
        *,
        category: Category = Category.PRIVATE,
        tags: Iterable[str] = (),
    ) -> None:
        """Store a JSON value under a key: atomic, and durable on return.

        A crash leaves the old value or the new one. Raises `ValidationError`, `StorageError`.
        """
        if not key:
            raise ValidationError("key", "is empty")
        with self._changing() as index:
            old = index.entries.get(key)
            now = self.clock.now()
            entry = _Entry.build(
                key=key,
                value=value,
                category=category,
                tags=tuple(tags),
                created_at=old.created_at if old else now,
                updated_at=now,
                serial=index.serial + 1,
            )
            file = self._write_entry(entry)
            indexed = _Indexed(file=file, **_metadata(entry))
            self._write_index({**index.entries, key: indexed}, entry.serial)
            if old is not None:
                try:
                    remove_durably(self.path / old.file, missing_ok=True)
                except StorageError as error:
                    # The new value is safe; the old ciphertext goes when the vault is opened.
                    _log.warning("an old entry file could not be removed: %s", error)

    def retrieve(self, key: str) -> Any:
        """Return the value of a key. Raises `NotFound`; `DamagedData` for a damaged entry."""
        with self._reading() as index:
            return self._entry(key, index).value

    def delete(self, key: str) -> None:
        """Delete an entry: atomic, durable on return, and its file is gone. Raises `NotFound`."""
        with self._changing() as index:
            old = index.entries.get(key)
            if old is None:
                # Perhaps an earlier call was refused by the disk half-way: finish it.
                self._remove_unnamed(index)
                raise _no_entry(key)
            rest = {name: entry for name, entry in index.entries.items() if name != key}
            self._write_index(rest, index.serial + 1)
            remove_durably(self.path / old.file, missing_ok=True)

    def list(
        self, *, category: Category | None = None, tag: str | None = None
    ) -> tuple[VaultInfo, ...]:
        """Return the entries' metadata, sorted by key; no entry is decrypted."""
        with self._reading() as index:
            return tuple(
                entry.info(key)
                for key, entry in sorted(index.entries.items())
                if category in (None, entry.category) and (tag is None or tag in entry.tags)
            )

    def search(self, query: str, *, in_values: bool = False) -> tuple[VaultInfo, ...]:
        """Return the entries whose key, category or tags contain the query, ignoring case.

        ``in_values`` looks into the values too, and decrypts each; it raises `DamagedData` if
        one cannot be read, since nobody knows whether it would have matched.
        """
        wanted = query.casefold()
        found: list[VaultInfo] = []
        with self._reading() as index:
            for key, entry in sorted(index.entries.items()):
                texts = [key, entry.category.value, *entry.tags]
                if in_values:
                    texts.extend(_texts_in(self._entry(key, index).value))
                if any(wanted in text.casefold() for text in texts):
                    found.append(entry.info(key))
        return tuple(found)

    def __contains__(self, key: str) -> bool:
        with self._reading() as index:
            return key in index.entries

    # -- the vault as a whole ------------------------------------------------------------

    def change_password(
        self, new: str, *, current: str | None = None, cost: Cost | None = None
    ) -> None:
        """Let the new password open the vault and the old one no more.

        One atomic replacement of the header, durable on return: after a crash at any moment
        exactly one of the two opens everything. ``current``, where given, is checked first.
        ``cost`` is Argon2id's unless told. Raises `WrongPassword`, `StorageError`.
        """
        with self._changing():
            if current is not None:
                self._header().unlock(current, str(self.path))
            self._write_header(new, cost or KdfCost())

    def export_key(self) -> str:
        """Return the data key as text: it opens this vault, whatever the password becomes."""
        return encode_key(self._vault_id, self._data_key)

    @classmethod
    def import_key(
        cls,
        path: str | os.PathLike[str],
        key: str,
        *,
        password: str,
        cost: Cost | None = None,
        clock: Clock | None = None,
        timeout: float = 10.0,
    ) -> Self:
        """Open a vault by its exported key and give it a new password; durable on return.

        For a forgotten password, and for a lost or damaged header. Raises `WrongPassword` if
        the key is another vault's.
        """
        vault = cls(path, key=key, clock=clock, timeout=timeout)
        with vault._lock:
            vault._write_header(password, cost or KdfCost())
        return vault

    def delete_all(self) -> None:
        """Remove the whole vault, header included, in one step; the empty directory stays.

        After a crash either everything is there, or nothing will be once the directory has
        been opened again. This object is of no use afterwards.
        """
        with self._changing():
            remove_temporaries(self.path)
            transaction = Transaction(self.path)
            for name in (HEADER, INDEX, *self._entry_files(_SUFFIX, _SUFFIX + _SET_ASIDE)):
                transaction.delete(name)
            try:
                transaction.commit()
            except StorageError:
                if not self._finish_journal():
                    raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do nothing: no file stays open. A key cannot be wiped from Python's memory."""

    # -- opening -------------------------------------------------------------------------

    def _unlock(self, password: str | None, key: str | None) -> tuple[str, bytes]:
        if key is not None:
            vault_id, data_key = decode_key(key)
            if len(data_key) != KEY_SIZE:
                raise WrongPassword("this exported vault key has the wrong length")
            if not is_present(self.path / INDEX) and not self._entry_files():
                raise NotFound(f"{self.path}: there is no vault for this key to open")
            return vault_id, data_key
        assert password is not None
        try:
            header = self._header()
        except NotFound:
            return self._create(password)
        return header.vault_id, header.unlock(password, str(self.path / HEADER))

    def _create(self, password: str) -> tuple[str, bytes]:
        if self._entry_files():
            raise DamagedData(
                f"{self.path}: there are entries, but the header {HEADER} is gone; restore a "
                "backup of it, or use `Vault.import_key` with the exported key"
            )
        self._vault_id, self._data_key = secrets.token_hex(16), os.urandom(KEY_SIZE)
        self._cipher = Cipher(self._data_key)
        self._write_index({}, 0)
        # Last: a header means that the vault is complete, and that an index must be there.
        self._write_header(password, self._cost)
        return self._vault_id, self._data_key

    def _header(self) -> VaultHeader:
        path = self.path / HEADER
        return VaultHeader.from_bytes(read_bounded(path, 1 << 16), str(path))

    def _write_header(self, password: str, cost: Cost) -> None:
        header = VaultHeader.create(self._vault_id, self._data_key, password, cost)
        write_atomic(self.path / HEADER, header.to_bytes())

    def _remove_unnamed(self, index: _Index) -> None:
        """Remove entry files that no index names: of interrupted stores and deletions."""
        named = {entry.file for entry in index.entries.values()}
        unnamed = [name for name in self._entry_files() if name not in named]
        try:
            for name in unnamed:
                os.unlink(self.path / name)
        except OSError as error:
            raise StorageError(self.path, error) from error
        if unnamed:
            fsync_directory(self.path)

    def _entry_files(self, *suffixes: str) -> Sequence[str]:
        try:
            return sorted(
                name for name in os.listdir(self.path) if name.endswith(suffixes or _SUFFIX)
            )
        except OSError as error:
            raise StorageError(self.path, error) from error

    def _rebuild_index(self) -> None:
        """Make an index of the entries; what cannot be read is set aside, not deleted."""
        entries: dict[str, _Indexed] = {}
        for file in self._entry_files():
            try:
                entry = self._read_entry(file)
            except DamagedData as error:
                _log.warning("%s is set aside: %s", file, error)
                try:
                    os.rename(self.path / file, self.path / (file + _SET_ASIDE))
                except OSError as problem:
                    raise StorageError(self.path / file, problem) from problem
                continue
            present = entries.get(entry.key)
            if present is None or present.serial < entry.serial:
                entries[entry.key] = _Indexed(file=file, **_metadata(entry))
        self._write_index(entries, max([0, *(entry.serial for entry in entries.values())]))

    # -- files ---------------------------------------------------------------------------

    @contextmanager
    def _changing(self) -> Iterator[_Index]:
        with self._reading() as index:
            yield index

    @contextmanager
    def _reading(self) -> Iterator[_Index]:
        # Readers lock too: between the index and the entry a writer could replace both.
        with self._lock:
            self._finish_journal()
            yield self._index()

    def _finish_journal(self) -> bool:
        return is_present(self.path / JOURNAL_NAME) and recover(self.path)

    def _index(self) -> _Index:
        path = self.path / INDEX
        try:
            raw = read_bounded(path, _LARGEST_FILE)
        except NotFound:
            if not is_present(self.path / HEADER) and not self._entry_files():
                raise NotFound(f"{self.path}: the vault was deleted") from None
            raise DamagedData(
                f"{path}: the index is gone; open the vault with rebuild_index=True"
            ) from None
        with self._cache:
            if self._cached is not None and self._cached[0] == raw:
                return self._cached[1]
            try:
                index = _Index.parse(from_json(self._cipher.decrypt(raw, self._context("index"))))
            except (DamagedData, ValidationError, WrongPassword) as error:
                if isinstance(error, WrongPassword) and self._is_other_vault():
                    raise WrongPassword(
                        f"{self.path}: this is another vault than the one the key belongs to"
                    ) from error
                raise IntegrityError(
                    f"{path}: the index is damaged ({error}); open the vault with "
                    "rebuild_index=True"
                ) from error
            if index.version > _INDEX_VERSION:
                raise NewerVersion(f"{path}: index version {index.version}; update the application")
            self._cached = (raw, index)
            return index

    def _is_other_vault(self) -> bool:
        try:
            return self._header().vault_id != self._vault_id
        except (NotFound, DamagedData):
            return False

    def _write_index(self, entries: Mapping[str, _Indexed], serial: int) -> None:
        index = _Index(entries=dict(entries), serial=serial)
        plain = to_json(index.model_dump(mode="json")).encode()
        data = self._cipher.encrypt(plain, self._context("index"))
        check_size(data, _LARGEST_FILE, "index")
        write_atomic(self.path / INDEX, data)

    def _write_entry(self, entry: _Entry) -> str:
        file = secrets.token_hex(16) + _SUFFIX
        metadata = entry.model_dump(mode="json", exclude={"value"})
        plain = to_json({**metadata, "value": entry.value}).encode()
        data = self._cipher.encrypt(plain, self._context(file))
        check_size(data, _LARGEST_FILE, "value")
        write_atomic(self.path / file, data)
        return file

    def _entry(self, key: str, index: _Index) -> _Entry:
        indexed = index.entries.get(key)
        if indexed is None:
            raise _no_entry(key)
        entry = self._read_entry(indexed.file)
        if entry.key != key or entry.serial != indexed.serial:
            raise IntegrityError(f"{self.path / indexed.file}: holds another entry than the index")
        return entry

    def _read_entry(self, file: str) -> _Entry:
        path = self.path / file
        try:
            raw = read_bounded(path, _LARGEST_FILE)
            return _Entry.parse(from_json(self._cipher.decrypt(raw, self._context(file))))
        except NotFound:
            raise DamagedData(
                f"{path}: this entry's file is gone, and nothing of ours removes it; restore a "
                "backup of the file"
            ) from None
        except (DamagedData, ValidationError, WrongPassword) as error:
            # Not the password: the header has vouched for the key, and the index opened with it.
            raise IntegrityError(
                f"{path}: the entry is damaged ({error}); restore a backup of the file, or delete "
                "the entry"
            ) from error

    def _context(self, place: str) -> str:
        return f"vault {self._vault_id} {place}"


def _metadata(entry: _Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in _Metadata.model_fields}


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield str(name)
            yield from _texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts_in(inner)
    elif value is not None:
        yield value if isinstance(value, str) else to_json(value)


def _no_entry(key: str) -> NotFound:
    return NotFound(f"there is no vault entry {key!r}; `list` shows what is there")
