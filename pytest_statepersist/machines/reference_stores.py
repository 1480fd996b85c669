"""Adapters of the reference stores: what the machines and the conformance suites run on first.

Belongs here: one adapter for each store of the reference implementation, written as a user would,
through public calls only. Passwords cost as little as they may: what is tested is not their price.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from pytest_statepersist.adapter import Capabilities, StoreAdapter, StoreClock, Value
from pytest_statepersist.leaks import Sealed
from pytest_statepersist.reference.cipher import MAGIC, Cipher
from pytest_statepersist.reference.cipher import KdfCost as CipherCost
from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.conversation_json import JsonConversations
from pytest_statepersist.reference.conversation_sqlite import SqliteConversations
from pytest_statepersist.reference.conversations import Conversations
from pytest_statepersist.reference.database import Database
from pytest_statepersist.reference.database_rows import SnapshotKind
from pytest_statepersist.reference.envelope import EnvelopeKey
from pytest_statepersist.reference.errors import (
    InvalidId,
    LockTimeout,
    NewerVersion,
    NotFound,
    PersistenceError,
    QuotaExceeded,
    ValidationError,
    WrongPassword,
)
from pytest_statepersist.reference.file_store import FileStore
from pytest_statepersist.reference.items import Item, Session
from pytest_statepersist.reference.local_storage import DEFAULT_QUOTA, LocalStorage
from pytest_statepersist.reference.managers import SessionManager
from pytest_statepersist.reference.retention import Retention
from pytest_statepersist.reference.serializers import CompactJsonSerializer
from pytest_statepersist.reference.slots import GROUP_STATE, Changes, GroupState
from pytest_statepersist.reference.snapshot_store import SnapshotStore
from pytest_statepersist.reference.store_schema import Schema
from pytest_statepersist.reference.vault import Vault
from pytest_statepersist.reference.vault_keys import Pbkdf2Cost

__all__ = [
    "REFERENCE_STORES",
    "ConversationsAdapter",
    "DatabaseAdapter",
    "EncryptedFileStoreAdapter",
    "FileStoreAdapter",
    "GroupStoreAdapter",
    "LocalStorageAdapter",
    "SqliteConversationsAdapter",
    "VaultAdapter",
]

_PASSWORD = "correct horse"
_NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class ReferenceAdapter(StoreAdapter):
    """What all reference stores have in common: their tree of exceptions."""

    missing = (NotFound,)
    refusal = (ValidationError, InvalidId, QuotaExceeded)
    damage = (PersistenceError,)
    wrong_key = (WrongPassword,)
    busy = (LockTimeout,)
    full = (QuotaExceeded,)
    newer = (NewerVersion,)


class _VersionOneSession(Item):
    """A session as version 1 of the code knew it."""

    directory: ClassVar[str] = "sessions"

    name: str = ""
    context: dict[str, Any] = Field(default_factory=dict)


class _VersionOneStore(FileStore):
    """A store opened by version 1 of the code."""


class FileStoreAdapter(ReferenceAdapter):
    """The file store: each value is the state of a session."""

    capabilities = Capabilities(
        durable=True, durable_on_close=True, atomic_keys=True, crash_recovery=True,
        tamper_evident=True, concurrent_writers=True, backup=True, migration=True,
        refuses_newer=True, permissions=True,
    )  # fmt: skip
    old_versions = (1,)

    def open(self, directory: Path) -> FileStore:
        """Open the store without a key."""
        return FileStore(directory)

    def save(self, store: FileStore, key: str, value: Value) -> None:
        """Save a session."""
        store.save(_session(key, value))

    def load(self, store: FileStore, key: str) -> Value:
        """Return the state of a session."""
        if isinstance(store, _VersionOneStore):
            return _loaded(lambda: store.load(_VersionOneSession, key).context)
        return _loaded(lambda: store.load(Session, key).state)

    def delete(self, store: FileStore, key: str) -> None:
        """Delete a session."""
        store.delete(Session, key)

    def keys(self, store: FileStore) -> Iterable[str]:
        """Return the ids of all sessions."""
        return store.ids(Session)

    def save_many(self, store: FileStore, values: Mapping[str, Value]) -> None:
        """Save through a manager: all of them in one step, or none."""
        manager = SessionManager()
        manager.adopt(tuple(_session(key, value) for key, value in values.items()))
        store.attach(sessions=manager)
        store.save_all(or_nothing=True)

    def backup(self, store: FileStore, destination: Path) -> None:
        """Make a full backup."""
        store.backup(destination)

    def restore(self, store: FileStore, source: Path) -> None:
        """Restore a full backup."""
        store.restore(source)

    def write_old(self, directory: Path, version: int, values: Mapping[str, Value]) -> None:
        """Write sessions of schema version 1."""
        for key, value in values.items():
            _write_item(directory, key, version, {"name": "", "context": value})

    def migrate(self, store: FileStore) -> None:
        """Rewrite what is old."""
        store.migrate()

    def open_old(self, directory: Path, version: int) -> FileStore:
        """Open with the schema and the model of version 1."""
        return _VersionOneStore(directory, schema=Schema(version, {}))

    def write_newer(self, directory: Path) -> None:
        """Write a session of a version that is not there yet."""
        _write_item(directory, "newer", 3, {"title": "", "state": {}, "mood": "unknown"})


class EncryptedFileStoreAdapter(FileStoreAdapter):
    """The file store with a passphrase."""

    capabilities = Capabilities(
        durable=True, durable_on_close=True, atomic_keys=True, crash_recovery=True,
        encryption=True, tamper_evident=True, key_change=True, concurrent_writers=True,
        backup=True, permissions=True,
    )  # fmt: skip

    def open(self, directory: Path) -> FileStore:
        """Open with the usual passphrase."""
        return self.open_with_key(directory, _PASSWORD)

    def open_with_key(self, directory: Path, key: str) -> FileStore:
        """Open with a passphrase; a wrong one is told when something is loaded."""
        return FileStore(directory, cipher=_cipher(key))

    def change_key(self, store: FileStore, old: str, new: str) -> None:
        """Encrypt everything anew."""
        store.rekey(_cipher(new))

    def sealed(self, data: bytes) -> Iterable[Sealed]:
        """Return the one message of a file."""
        return _sealed(data)


class LocalStorageAdapter(ReferenceAdapter):
    """The key-value store for settings: all values in one file."""

    capabilities = Capabilities(
        durable=True, durable_on_close=True, atomic_keys=True, crash_recovery=True, quota=True,
        tamper_evident=True, concurrent_writers=True, refuses_newer=True, permissions=True,
    )  # fmt: skip

    def open(self, directory: Path) -> LocalStorage:
        """Open with the usual quota."""
        return self.open_with_quota(directory, DEFAULT_QUOTA)

    def open_with_quota(self, directory: Path, quota: int) -> LocalStorage:
        """Open with a quota in bytes."""
        return LocalStorage(directory / "local.json", quota=quota)

    def save(self, store: LocalStorage, key: str, value: Value) -> None:
        """Set a name."""
        store.set(key, value)

    def load(self, store: LocalStorage, key: str) -> Value:
        """Return a value; ``get`` gives a default for what is absent, which is not asked for."""
        absent = object()
        value = store.get(key, absent)
        if value is absent:
            raise NotFound(f"{key!r} is not stored")
        return dict(value)

    def delete(self, store: LocalStorage, key: str) -> None:
        """Remove a name."""
        if not store.remove(key):
            raise NotFound(f"{key!r} is not stored")

    def keys(self, store: LocalStorage) -> Iterable[str]:
        """Return the names."""
        return store.names()

    def save_many(self, store: LocalStorage, values: Mapping[str, Value]) -> None:
        """Import values in one step."""
        if "" in values:
            raise ValidationError("name", "is empty")
        store.import_all({f"{store.prefix}.{key}": value for key, value in values.items()})

    def write_newer(self, directory: Path) -> None:
        """Write a file of a version that is not there yet."""
        header = {"entries": 0, "format": "local-storage", "version": 3}
        (directory / "local.json").write_text(json.dumps(header) + "\n")


class VaultAdapter(ReferenceAdapter):
    """The vault: one encrypted file for each value."""

    capabilities = Capabilities(
        durable=True, durable_on_close=True, crash_recovery=True, encryption=True,
        tamper_evident=True, rollback_evident=False, key_change=True, concurrent_writers=True,
        permissions=True,
    )  # fmt: skip
    _cost: ClassVar[Pbkdf2Cost] = Pbkdf2Cost(iterations=1)

    def open(self, directory: Path) -> Vault:
        """Open with the usual password."""
        return self.open_with_key(directory, _PASSWORD)

    def open_with_key(self, directory: Path, key: str) -> Vault:
        """Open with a password; a wrong one is told at once."""
        return Vault(directory / "vault", password=key, cost=self._cost)

    def change_key(self, store: Vault, old: str, new: str) -> None:
        """Change the password."""
        store.change_password(new, current=old, cost=self._cost)

    def sealed(self, data: bytes) -> Iterable[Sealed]:
        """Return the one message of a file."""
        return _sealed(data)

    def save(self, store: Vault, key: str, value: Value) -> None:
        """Store an entry."""
        store.store(key, value)

    def load(self, store: Vault, key: str) -> Value:
        """Return an entry's value."""
        return _loaded(lambda: store.retrieve(key))

    def delete(self, store: Vault, key: str) -> None:
        """Delete an entry."""
        store.delete(key)

    def keys(self, store: Vault) -> Iterable[str]:
        """Return the keys of all entries."""
        return [entry.key for entry in store.list()]


class ConversationsAdapter(ReferenceAdapter):
    """Conversations, one JSON file each: a value is the newest message of a session."""

    capabilities = Capabilities(
        durable=True, durable_on_close=True, crash_recovery=True, tamper_evident=True,
        permissions=True,
    )  # fmt: skip

    def open(self, directory: Path) -> Conversations:
        """Open the directory of JSON files."""
        return Conversations(JsonConversations(directory / "conversations"))

    def save(self, store: Conversations, key: str, value: Value) -> None:
        """Append the value as a message and save the session."""
        text = _text(value)
        try:
            session = store.load_session(key)
        except NotFound:
            session = store.create_session("", session_id=key)
        session.send(text)
        session.save()

    def load(self, store: Conversations, key: str) -> Value:
        """Return the newest message."""
        (message,) = store.messages(key, limit=1)
        return dict(json.loads(message.content))

    def delete(self, store: Conversations, key: str) -> None:
        """Delete a session."""
        store.delete_session(key)

    def keys(self, store: Conversations) -> Iterable[str]:
        """Return the ids of all sessions."""
        return [info.id for info in store.list_sessions()]


class SqliteConversationsAdapter(ConversationsAdapter):
    """Conversations in SQLite."""

    capabilities = Capabilities(
        durable=True, durable_on_close=True, crash_recovery=True, permissions=True
    )

    def open(self, directory: Path) -> Conversations:
        """Open the database file."""
        return Conversations(SqliteConversations(directory / "conversations.db"))


class DatabaseAdapter(ReferenceAdapter):
    """The app database: values are starred manual snapshots, snapshots are automatic ones."""

    capabilities = Capabilities(
        durable=True, durable_on_close=True, atomic_keys=True, crash_recovery=True,
        snapshots=True, stars=True, retention=True, atomic_cleanup=True,
        concurrent_writers=True, permissions=True,
    )  # fmt: skip

    def open(self, directory: Path) -> Database:
        """Open the database file, at a fixed moment."""
        return self.open_with_clock(directory, ManualClock(_NOON))

    def open_with_clock(self, directory: Path, clock: StoreClock) -> Database:
        """Open the database file with a clock."""
        return Database(directory / "app.db", clock=clock)

    def save(self, store: Database, key: str, value: Value) -> None:
        """Replace the snapshot of this name."""
        self.save_many(store, {key: value})

    def save_many(self, store: Database, values: Mapping[str, Value]) -> None:
        """Replace snapshots in one transaction."""
        with store.transaction():
            for key, value in values.items():
                for old in self._named(store, key):
                    store.delete_snapshot(old.id)
                store.add_snapshot(
                    value, kind=SnapshotKind.MANUAL, trigger={}, summary={}, description=key,
                    starred=True,
                )  # fmt: skip

    def load(self, store: Database, key: str) -> Value:
        """Return the state of the snapshot of this name."""
        found = self._named(store, key)
        if not found:
            raise NotFound(f"{key!r} is not stored")
        return dict(found[0].state)

    def delete(self, store: Database, key: str) -> None:
        """Delete the snapshot of this name."""
        with store.transaction():
            for old in self._named(store, key):
                store.delete_snapshot(old.id)

    def keys(self, store: Database) -> Iterable[str]:
        """Return the names."""
        return [str(s.description) for s in store.snapshots(kind=SnapshotKind.MANUAL)]

    def snapshot(self, store: Database, name: str) -> str:
        """Take an automatic snapshot."""
        taken = store.add_snapshot({"name": name}, kind=SnapshotKind.AUTO, trigger={}, summary={})
        return taken.id

    def snapshots(self, store: Database) -> Iterable[str]:
        """Return the ids of automatic snapshots."""
        return [each.id for each in store.snapshots(kind=SnapshotKind.AUTO)]

    def star(self, store: Database, snapshot: str, starred: bool) -> None:
        """Set or take back a star."""
        store.star_snapshot(snapshot, starred)

    def starred(self, store: Database) -> Iterable[str]:
        """Return the ids of automatic snapshots with a star."""
        return [each.id for each in store.snapshots(kind=SnapshotKind.AUTO, starred=True)]

    def clean_up(self, store: Database) -> None:
        """Run the retention once."""
        Retention(store).run()

    @staticmethod
    def _named(store: Database, key: str) -> list[Any]:
        found = store.snapshots(kind=SnapshotKind.MANUAL)
        return [each for each in found if each.description == key]


class GroupStoreAdapter(ReferenceAdapter):
    """The snapshot store of groups: a value is the opaque tree of a group."""

    capabilities = Capabilities(
        durable=True, durable_on_close=True, atomic_keys=True, delete=False,
        crash_recovery=True, encryption=True, tamper_evident=True, rollback_evident=False,
        permissions=True,
    )  # fmt: skip

    def open(self, directory: Path) -> SnapshotStore:
        """Open with the usual key."""
        return self.open_with_key(directory, _PASSWORD)

    def open_with_key(self, directory: Path, key: str) -> SnapshotStore:
        """Open with a raw key; a wrong one is told at once."""
        raw = hashlib.sha256(key.encode()).digest()
        return SnapshotStore(directory / "groups", key=EnvelopeKey(raw))

    def save(self, store: SnapshotStore, key: str, value: Value) -> None:
        """Write the state of a group."""
        self.save_many(store, {key: value})

    def save_many(self, store: SnapshotStore, values: Mapping[str, Value]) -> None:
        """Write the states of several groups in one commit."""
        changes = Changes()
        for key, value in values.items():
            group = _group(key)
            state = GroupState(group_id=group, epoch=1, ratchet_tree=_text(value).encode(),
                               group_context=b"", members=())  # fmt: skip
            changes.write(GROUP_STATE, group, state)
        store.commit(changes)

    def load(self, store: SnapshotStore, key: str) -> Value:
        """Return what the tree of a group holds."""
        return dict(json.loads(store.read(GROUP_STATE, _group(key)).ratchet_tree))

    def keys(self, store: SnapshotStore) -> Iterable[str]:
        """Return the ids of all groups."""
        return [group.decode() for group in store.groups()]


REFERENCE_STORES: tuple[type[StoreAdapter], ...] = (
    FileStoreAdapter,
    EncryptedFileStoreAdapter,
    LocalStorageAdapter,
    VaultAdapter,
    ConversationsAdapter,
    SqliteConversationsAdapter,
    DatabaseAdapter,
    GroupStoreAdapter,
)
"""Every adapter above."""


def _session(key: str, value: Value) -> Session:
    return Session(id=_checked(key), created_at=_NOON, updated_at=_NOON, state=value)


def _checked(key: str) -> str:
    """Refuse a bad id as the store does; pydantic would wrap its error."""
    from pytest_statepersist.reference.ids import check_id

    return check_id(key)


def _group(key: str) -> bytes:
    try:
        return key.encode()
    except UnicodeEncodeError as error:
        raise ValidationError("group id", "is no valid text") from error


def _text(value: Value) -> str:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except ValueError as error:
        raise ValidationError("value", str(error)) from error
    return text


def _loaded(load: Any) -> Value:
    value: Value = load()
    return value


def _cipher(passphrase: str) -> Cipher:
    return Cipher.from_passphrase(passphrase, cost=CipherCost(memory_kib=8, iterations=1, lanes=1))


def _sealed(data: bytes) -> Iterable[Sealed]:
    """Read a `Cipher` header, laid out as its module says; the key check names the key."""
    if data.startswith(MAGIC) and len(data) >= 68:
        yield Sealed(nonce=data[40:52], ciphertext=data[52:], key=data[16:40].hex())


def _write_item(directory: Path, key: str, version: int, fields: Mapping[str, Any]) -> None:
    data = {
        "id": key,
        "created_at": _NOON.isoformat(),
        "updated_at": _NOON.isoformat(),
        **fields,
    }
    checksum = hashlib.sha256(CompactJsonSerializer().dumps(["sessions", version, data]))
    item = {"kind": "sessions", "version": version, "sha256": checksum.hexdigest(), "data": data}
    place = directory / "sessions" / f"{key}.json"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(CompactJsonSerializer().dumps(item))
