"""Adapters of stores from the standard library and from PyPI, as their documentation uses them.

Belongs here: how each is opened and called, and what its documentation promises. Rules:

1. ``capabilities`` are what the documentation says, in words that stand in the docstring, and no
   more: a store is not accused of what it never promised.
2. Where people rely on more than that, a second adapter (``…ReliedOn``) asks for it: what fails
   there is no defect of the store, and worth knowing before one relies on it.

Whether the promises hold is for `test_stores` to find out, and for ``xfails.toml`` to list.
"""

from __future__ import annotations

import dbm.dumb
import json
import shelve
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import diskcache
import pickledb
import semidbm
import sqlitedict
import tinydb
import transaction
import ZODB
import ZODB.FileStorage
from cachelib import FileSystemCache

from pytest_statepersist.adapter import Capabilities, StoreAdapter, Value

NOTHING = Capabilities()
"""No word about crashes in the documentation."""
RELIED_ON = Capabilities(durable=True, crash_recovery=True)
"""What people rely on in anything that saves, whatever its documentation says."""


class MappingAdapter(StoreAdapter):
    """Stores that are dictionaries."""

    def save(self, store: Any, key: str, value: Value) -> None:
        store[key] = value

    def load(self, store: Any, key: str) -> Value:
        value: Value = store[key]
        return value

    def delete(self, store: Any, key: str) -> None:
        del store[key]

    def keys(self, store: Any) -> Iterable[str]:
        return list(store)


class SqliteAdapter(StoreAdapter):
    """``sqlite3`` as its documentation shows it: one table, a commit after each change.

    "All changes within a single transaction in SQLite either occur completely or not at all, even
    if" the program or the system crashes or the power fails; transactions are "durable" too. Of
    the threads of one program each needs a connection of its own (``check_same_thread``).
    """

    capabilities = Capabilities(
        durable=True, crash_recovery=True, atomic_keys=True, concurrent_writers=True
    )
    busy = (sqlite3.OperationalError,)
    refusal = (ValueError, TypeError, sqlite3.ProgrammingError)
    synchronous = "FULL"

    def open(self, directory: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(directory / "store.db")
        connection.execute(f"PRAGMA synchronous = {self.synchronous}")
        with connection:
            connection.execute("CREATE TABLE IF NOT EXISTS t (k TEXT PRIMARY KEY, v TEXT)")
        return connection

    def save(self, store: sqlite3.Connection, key: str, value: Value) -> None:
        self.save_many(store, {key: value})

    def save_many(self, store: sqlite3.Connection, values: Mapping[str, Value]) -> None:
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        with store:
            store.executemany("INSERT OR REPLACE INTO t VALUES (?, ?)", rows)

    def load(self, store: sqlite3.Connection, key: str) -> Value:
        with closing(store.execute("SELECT v FROM t WHERE k = ?", (key,))) as rows:
            row = rows.fetchone()
        if row is None:
            raise KeyError(key)
        value: Value = json.loads(row[0])
        return value

    def delete(self, store: sqlite3.Connection, key: str) -> None:
        with store:
            store.execute("DELETE FROM t WHERE k = ?", (key,))

    def keys(self, store: sqlite3.Connection) -> Iterable[str]:
        return [row[0] for row in store.execute("SELECT k FROM t").fetchall()]


class SqliteExtraAdapter(SqliteAdapter):
    """``sqlite3`` with ``synchronous=EXTRA``, which syncs the directory once more."""

    synchronous = "EXTRA"


class ZodbAdapter(StoreAdapter):
    """``ZODB`` on a file storage, one transaction for each change.

    "ZODB is an ACID Transactional database." A file storage has one opener at a time.
    """

    capabilities = Capabilities(durable=True, crash_recovery=True, atomic_keys=True)

    def open(self, directory: Path) -> Any:
        manager = transaction.TransactionManager(explicit=False)
        database = ZODB.DB(ZODB.FileStorage.FileStorage(str(directory / "data.fs")))
        return database, database.open(manager), manager

    def save(self, store: Any, key: str, value: Value) -> None:
        self.save_many(store, {key: value})

    def save_many(self, store: Any, values: Mapping[str, Value]) -> None:
        with store[2]:
            store[1].root().update(values)

    def load(self, store: Any, key: str) -> Value:
        value: Value = store[1].root()[key]
        return value

    def delete(self, store: Any, key: str) -> None:
        with store[2]:
            del store[1].root()[key]

    def keys(self, store: Any) -> Iterable[str]:
        return list(store[1].root())

    def close(self, store: Any) -> None:
        database, connection, manager = store
        manager.abort()
        connection.close()
        database.close()


class DiskcacheAdapter(MappingAdapter):
    """``diskcache.Cache`` with its default settings.

    "Thread-safe and process-safe"; "read and write operations performed in a transaction are
    atomic", which is said of other openers: no word of crashes, and SQLite runs with
    ``synchronous=NORMAL``. What is not promised is not declared, so that no crash is asked for.
    """

    capabilities = Capabilities(atomic_keys=True, concurrent_writers=True)
    busy = (diskcache.Timeout,)

    def open(self, directory: Path) -> Any:
        return diskcache.Cache(str(directory))

    def save_many(self, store: Any, values: Mapping[str, Value]) -> None:
        with store.transact():
            for key, value in values.items():
                store[key] = value


class SqlitedictAdapter(MappingAdapter):
    """``sqlitedict`` with ``autocommit=True``.

    `commit` is said to "persist all data to disk", and only ``journal_mode="OFF"`` to be for those
    who "don't care about crash-consistency".
    """

    capabilities = Capabilities(durable=True, crash_recovery=True)

    def open(self, directory: Path) -> Any:
        return sqlitedict.SqliteDict(str(directory / "store.db"), autocommit=True)


class ShelveAdapter(MappingAdapter):
    """``shelve`` on the pure-Python ``dbm.dumb``, which is there on every machine.

    `close` is said to synchronize the shelf, and `sync` to do that "on disk, if feasible".
    """

    capabilities = Capabilities(durable_on_close=True)

    def open(self, directory: Path) -> Any:
        return shelve.Shelf(dbm.dumb.open(str(directory / "shelf")))


class ShelveReliedOnAdapter(ShelveAdapter):
    """The same, relied on."""

    capabilities = RELIED_ON


class SemidbmAdapter(MappingAdapter):
    """``semidbm`` with JSON as values and a `sync` after each change.

    "You should call this method to guarantee that the data is written to disk." What a crash
    inside a change leaves is not said.
    """

    capabilities = Capabilities(durable=True)

    def open(self, directory: Path) -> Any:
        return semidbm.open(str(directory / "store"), "c")

    def save(self, store: Any, key: str, value: Value) -> None:
        store[key.encode()] = json.dumps(value).encode()
        store.sync()

    def load(self, store: Any, key: str) -> Value:
        value: Value = json.loads(store[key.encode()])
        return value

    def delete(self, store: Any, key: str) -> None:
        del store[key.encode()]
        store.sync()

    def keys(self, store: Any) -> Iterable[str]:
        return [key.decode() for key in iter(store)]


class SemidbmReliedOnAdapter(SemidbmAdapter):
    """The same, relied on."""

    capabilities = RELIED_ON


class TinydbAdapter(StoreAdapter):
    """``tinydb`` with its default storage: one JSON file, written anew each time.

    Its documentation advises against it where transactions are needed.
    """

    capabilities = NOTHING

    def open(self, directory: Path) -> tinydb.TinyDB:
        return tinydb.TinyDB(directory / "db.json")

    def save(self, store: tinydb.TinyDB, key: str, value: Value) -> None:
        store.upsert({"key": key, "value": value}, tinydb.Query().key == key)

    def load(self, store: tinydb.TinyDB, key: str) -> Value:
        found = store.get(tinydb.Query().key == key)
        if found is None:
            raise KeyError(key)
        value: Value = found["value"]  # type: ignore[call-overload]
        return value

    def delete(self, store: tinydb.TinyDB, key: str) -> None:
        store.remove(tinydb.Query().key == key)

    def keys(self, store: tinydb.TinyDB) -> Iterable[str]:
        return [each["key"] for each in store.all()]


class TinydbReliedOnAdapter(TinydbAdapter):
    """The same, relied on."""

    capabilities = RELIED_ON


class PickledbAdapter(StoreAdapter):
    """``pickledb`` with a `save` after each change: one JSON file, replaced.

    `save` is said to "atomically save database to disk".
    """

    capabilities = Capabilities(crash_recovery=True)

    def open(self, directory: Path) -> Any:
        return pickledb.PickleDB(str(directory / "db.json")).load()

    def save(self, store: Any, key: str, value: Value) -> None:
        store.set(key, value)
        store.save()

    def load(self, store: Any, key: str) -> Value:
        value: Value | None = store.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def delete(self, store: Any, key: str) -> None:
        store.remove(key)
        store.save()

    def keys(self, store: Any) -> Iterable[str]:
        return list(store.all())

    def close(self, store: Any) -> None:
        pass


class PickledbReliedOnAdapter(PickledbAdapter):
    """The same, relied on."""

    capabilities = RELIED_ON


class CachelibAdapter(StoreAdapter):
    """``cachelib.FileSystemCache`` whose entries never expire: one file for each key.

    A cache, whose documentation promises nothing; its keys cannot be listed.
    """

    capabilities = Capabilities(list=False)

    def open(self, directory: Path) -> Any:
        return FileSystemCache(str(directory), threshold=0, default_timeout=0)

    def save(self, store: Any, key: str, value: Value) -> None:
        if not store.set(key, value):
            raise OSError(f"the cache did not take {key!r}")

    def load(self, store: Any, key: str) -> Value:
        value: Value | None = store.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def delete(self, store: Any, key: str) -> None:
        if not store.delete(key):
            raise OSError(f"the cache did not delete {key!r}")

    def close(self, store: Any) -> None:
        pass


class CachelibReliedOnAdapter(CachelibAdapter):
    """The same, relied on."""

    capabilities = Capabilities(list=False, durable=True, crash_recovery=True)
