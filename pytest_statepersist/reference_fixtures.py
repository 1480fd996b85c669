"""Fixtures for each part of the reference implementation: factories that open it in a directory.

Belongs here: how a part is opened for a test, with a clock that stands still and keys that cost
nothing. A factory called without a directory makes a new one. Factories hold no state of a test, so
they live as long as the session and may be used under ``@given``; what one opened is closed at the
end of the test (`close_all`), latest first. Nothing is imported before it is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_statepersist.reference.clock import ManualClock

__all__ = [
    "app_autosave",
    "app_database",
    "app_recovery",
    "atomic_file",
    "backup_schedule",
    "component_registry",
    "conversation_store",
    "envelope_key",
    "event_log",
    "file_store",
    "group_snapshot_store",
    "invite_book",
    "local_storage",
    "messenger",
    "nightly_retention",
    "reference_clock",
    "remote_store",
    "replica",
    "state_serializer",
    "state_snapshot",
    "user_identity",
    "vault",
]

Factory = Callable[..., Any]
KEY = bytes(range(32))
"""The key of every encrypted part that is opened without one; it protects nothing."""


@pytest.fixture
def reference_clock() -> ManualClock:
    """A clock that moves only when it is told: `reference.clock.ManualClock`."""
    return new_clock()


def new_clock() -> ManualClock:
    """Return a clock that stands still at the start of 2030, UTC."""
    from datetime import UTC, datetime

    from pytest_statepersist.reference.clock import ManualClock

    return ManualClock(datetime(2030, 1, 1, tzinfo=UTC))


class _Places:
    """Gives each part a directory of its own and closes what was opened."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers = itertools.count(1)
        self.opened = ExitStack()

    def new(self, name: str) -> Path:
        directory = self._root / f"{name}-{next(self._numbers)}"
        directory.mkdir(mode=0o700)
        return directory

    def keep(self, part: Any) -> Any:
        close = getattr(part, "close", None)
        if close is not None:
            self.opened.callback(close)
        return part


_OPENED: pytest.StashKey[ExitStack] = pytest.StashKey()


@pytest.fixture(scope="session")
def _places(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Places:
    places = _Places(tmp_path_factory.mktemp("reference"))
    request.config.stash[_OPENED] = places.opened
    return places


def close_all(config: pytest.Config) -> None:
    """Close what the factories opened for the test that ends."""
    opened = config.stash.get(_OPENED, None)
    if opened is not None:
        opened.close()


def _envelope_key() -> Any:
    from pytest_statepersist.reference.envelope import EnvelopeKey

    return EnvelopeKey(KEY)


@pytest.fixture(scope="session")
def atomic_file(_places: _Places) -> Factory:
    """Writes a file atomically and durably, and returns its path: atomic_file(data, path=None)."""

    def write(data: bytes, path: Path | None = None, **options: Any) -> Path:
        from pytest_statepersist.reference.atomic import write_atomic

        where = path or _places.new("file") / "data"
        write_atomic(where, data, **options)
        return where

    return write


@pytest.fixture(scope="session")
def state_serializer() -> Factory:
    """Makes a serializer: state_serializer("json"), compact-json, gzip-json, zstd-json, binary."""

    def make(name: str = "json") -> Any:
        from pytest_statepersist.reference.serializers import Format, serializer_for

        return serializer_for(Format(name))

    return make


@pytest.fixture(scope="session")
def file_store(_places: _Places) -> Factory:
    """Opens a `FileStore` of sessions and more: file_store(directory=None, …)."""

    def open_(directory: Path | None = None, **options: Any) -> Any:
        from pytest_statepersist.reference.file_store import FileStore

        options.setdefault("clock", new_clock())
        return _places.keep(FileStore(directory or _places.new("store"), **options))

    return open_


@pytest.fixture(scope="session")
def backup_schedule(_places: _Places) -> Factory:
    """Makes a `BackupSchedule` of dated backups: backup_schedule(store, directory=None, …)."""

    def open_(store: Any, directory: Path | None = None, **options: Any) -> Any:
        from pytest_statepersist.reference.store_schedule import BackupSchedule

        options.setdefault("clock", new_clock())
        return BackupSchedule(store, directory or _places.new("backups"), **options)

    return open_


@pytest.fixture(scope="session")
def component_registry(_places: _Places) -> Factory:
    """Opens a `DirectoryRegistry` of components: component_registry(directory=None, …)."""

    def open_(directory: Path | None = None, **options: Any) -> Any:
        from pytest_statepersist.reference.component_registry import DirectoryRegistry

        return _places.keep(DirectoryRegistry(directory or _places.new("registry"), **options))

    return open_


@pytest.fixture(scope="session")
def state_snapshot() -> Factory:
    """Makes a `StateSnapshot` of components by their ids: state_snapshot("fetch", …)."""

    def make(*ids: str, **options: Any) -> Any:
        from pytest_statepersist.reference.state_snapshot import Component, StateSnapshot

        options.setdefault("created_at", int(new_clock().now().timestamp()))
        parts = [Component(component_id=name, source_uri=f"test://{name}") for name in ids]
        return StateSnapshot(components=tuple(parts), **options)

    return make


@pytest.fixture(scope="session")
def remote_store(_places: _Places) -> Factory:
    """Opens a `RemoteStore` on an fsspec URL, or on local files: remote_store(url=None)."""

    def open_(url: str | None = None, **options: Any) -> Any:
        from pytest_statepersist.reference.remote import RemoteStore

        return RemoteStore(url or _places.new("remote").as_uri(), **options)

    return open_


@pytest.fixture(scope="session")
def local_storage(_places: _Places) -> Factory:
    """Opens a `LocalStorage` with a byte quota: local_storage(path=None, …)."""

    def open_(path: Path | None = None, **options: Any) -> Any:
        from pytest_statepersist.reference.local_storage import LocalStorage

        return _places.keep(LocalStorage(path or _places.new("local") / "storage", **options))

    return open_


@pytest.fixture(scope="session")
def app_database(_places: _Places) -> Factory:
    """Opens the SQLite `Database` of sessions, snapshots and more: app_database(path=None, …)."""

    def open_(path: Path | None = None, **options: Any) -> Any:
        from pytest_statepersist.reference.database import Database

        options.setdefault("clock", new_clock())
        return _places.keep(Database(path or _places.new("database") / "app.sqlite", **options))

    return open_


@pytest.fixture(scope="session")
def nightly_retention() -> Factory:
    """Makes a `NightlyRetention` in virtual time: (it, scheduler) of (database, clock=None, …)."""

    def make(database: Any, clock: ManualClock | None = None, **options: Any) -> Any:
        from pytest_statepersist.reference.clock import ManualScheduler
        from pytest_statepersist.reference.retention import NightlyRetention, Retention

        scheduler = ManualScheduler(clock or new_clock())
        return NightlyRetention(Retention(database), scheduler, **options), scheduler

    return make


@pytest.fixture(scope="session")
def app_recovery() -> Factory:
    """Makes a `StateRecovery` for the start of an app: app_recovery(storage, database, …)."""

    def make(storage: Any, database: Any, **options: Any) -> Any:
        from pytest_statepersist.reference.recovery import StateRecovery

        options.setdefault("clock", new_clock())
        return StateRecovery(storage, database, **options)

    return make


@pytest.fixture(scope="session")
def app_autosave() -> Factory:
    """Makes an `AutoSave` in virtual time: (it, scheduler) of (storage, database, state, …)."""

    def make(
        storage: Any, database: Any, state: Any, clock: ManualClock | None = None, **options: Any
    ) -> Any:
        from pytest_statepersist.reference.clock import ManualScheduler
        from pytest_statepersist.reference.recovery import AutoSave

        scheduler = ManualScheduler(clock or new_clock())
        options.setdefault("clock", scheduler.clock)
        return AutoSave(storage, database, state, scheduler=scheduler, **options), scheduler

    return make


@pytest.fixture(scope="session")
def conversation_store(_places: _Places) -> Factory:
    """Opens `Conversations`: conversation_store(path=None, backend="json" or "sqlite", …)."""

    def open_(path: Path | None = None, *, backend: str = "json", **options: Any) -> Any:
        from pytest_statepersist.reference.conversation_json import JsonConversations
        from pytest_statepersist.reference.conversation_sqlite import SqliteConversations
        from pytest_statepersist.reference.conversations import Conversations

        storage: Any
        if backend == "sqlite":
            storage = SqliteConversations(path or _places.new("conversations") / "sessions.sqlite")
        else:
            storage = JsonConversations(path or _places.new("conversations") / "sessions")
        options.setdefault("clock", new_clock())
        return _places.keep(Conversations(storage, **options))

    return open_


@pytest.fixture(scope="session")
def vault(_places: _Places) -> Factory:
    """Opens a `Vault` whose password is cheap to check: vault(path=None, password="…", …)."""

    def open_(path: Path | None = None, **options: Any) -> Any:
        from pytest_statepersist.reference.cipher import KdfCost
        from pytest_statepersist.reference.vault import Vault

        if "key" not in options:
            options.setdefault("password", "correct horse battery staple")
        options.setdefault("cost", KdfCost(8, 1, 1))
        options.setdefault("clock", new_clock())
        return _places.keep(Vault(path or _places.new("vault") / "vault", **options))

    return open_


@pytest.fixture(scope="session")
def envelope_key() -> Factory:
    """Makes an `EnvelopeKey` that seals and opens envelopes: envelope_key(password=None)."""

    def make(password: str | None = None, **options: Any) -> Any:
        if password is None:
            return _envelope_key()
        from pytest_statepersist.reference.cipher import KdfCost
        from pytest_statepersist.reference.envelope import EnvelopeKey

        options.setdefault("cost", KdfCost(8, 1, 1))
        return EnvelopeKey.from_password(password, **options)

    return make


@pytest.fixture(scope="session")
def user_identity() -> Factory:
    """Makes the `Identity` of a new user: user_identity(display_name)."""

    def make(display_name: str = "Ada") -> Any:
        from pytest_statepersist.reference.identity import Identity
        from pytest_statepersist.reference.message_protection import new_signature_key

        return Identity.create(display_name, new_signature_key(), new_clock())

    return make


@pytest.fixture(scope="session")
def group_snapshot_store(_places: _Places) -> Factory:
    """Opens a `SnapshotStore` of encrypted group state: group_snapshot_store(directory=None, …)."""

    def open_(directory: Path | None = None, **options: Any) -> Any:
        from pytest_statepersist.reference.snapshot_store import SnapshotStore

        options.setdefault("key", _envelope_key())
        options.setdefault("clock", new_clock())
        return _places.keep(SnapshotStore(directory or _places.new("groups"), **options))

    return open_


@pytest.fixture(scope="session")
def event_log(_places: _Places) -> Factory:
    """Opens an append-only `EventLog`: event_log(directory=None, …)."""

    def open_(directory: Path | None = None, **options: Any) -> Any:
        from pytest_statepersist.reference.event_log import EventLog

        return _places.keep(EventLog(directory or _places.new("log"), **options))

    return open_


@pytest.fixture(scope="session")
def replica() -> Factory:
    """Makes a `Replica` of channels as mergeable documents: replica(actor)."""

    def make(actor: str) -> Any:
        from pytest_statepersist.reference.replica import Replica

        return Replica(actor)

    return make


@pytest.fixture(scope="session")
def invite_book(_places: _Places) -> Factory:
    """Opens an `InviteBook` of saved invite codes: invite_book(directory=None, …)."""

    def open_(directory: Path | None = None, **options: Any) -> Any:
        from pytest_statepersist.reference.invites import InviteBook

        options.setdefault("key", _envelope_key())
        return InviteBook(directory or _places.new("invites"), **options)

    return open_


@pytest.fixture(scope="session")
def messenger(_places: _Places) -> Factory:
    """Opens a `Messenger`; with a name, as a new user: messenger(name, root=None, …)."""

    def open_(
        name: str | None = None, *, root: Path | None = None, transport: Any = None, **options: Any
    ) -> Any:
        from pytest_statepersist.reference.messenger import Messenger
        from pytest_statepersist.reference.transport import MemoryTransport

        options.setdefault("key", _envelope_key())
        options.setdefault("clock", new_clock())
        where = root or _places.new("messenger") / "state"
        if name is not None:
            Messenger.init(where, name, key=options["key"], clock=options["clock"])
        return _places.keep(Messenger(where, transport=transport or MemoryTransport(), **options))

    return open_
