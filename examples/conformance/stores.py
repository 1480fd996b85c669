"""Adapters of stores from the standard library and from PyPI, as their documentation uses them.

Belongs here: how each is opened and called, and what a user would expect of it. Whether the
expectation holds is for `test_stores` to find out, and for ``xfails.toml`` to list.
"""

from __future__ import annotations

import json
import shelve
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import diskcache
import pickledb
import semidbm
import tinydb
import transaction
import ZODB
import ZODB.FileStorage
from cachelib import FileSystemCache

from pytest_statepersist.adapter import Capabilities, StoreAdapter, Value

HOPES = Capabilities(durable=True, crash_recovery=True)
"""What one expects of anything that saves."""


class MappingAdapter(StoreAdapter):
    """Stores that are dictionaries."""

    capabilities = HOPES

    def save(self, store: Any, key: str, value: Value) -> None:
        store[key] = value

    def load(self, store: Any, key: str) -> Value:
        value: Value = store[key]
        return value

    def delete(self, store: Any, key: str) -> None:
        del store[key]

    def keys(self, store: Any) -> Iterable[str]:
        return list(store)


class ShelveAdapter(MappingAdapter):
    """``shelve`` on the pure-Python ``dbm.dumb``, which is there on every machine."""

    def open(self, directory: Path) -> Any:
        import dbm.dumb

        return shelve.Shelf(dbm.dumb.open(str(directory / "shelf")))


class SemidbmAdapter(MappingAdapter):
    """``semidbm``, with JSON as values."""

    def open(self, directory: Path) -> Any:
        return semidbm.open(str(directory / "store"), "c")

    def save(self, store: Any, key: str, value: Value) -> None:
        store[key.encode()] = json.dumps(value).encode()

    def load(self, store: Any, key: str) -> Value:
        value: Value = json.loads(store[key.encode()])
        return value

    def delete(self, store: Any, key: str) -> None:
        del store[key.encode()]

    def keys(self, store: Any) -> Iterable[str]:
        return [key.decode() for key in iter(store)]


class DiskcacheAdapter(MappingAdapter):
    """``diskcache.Cache`` with its default settings."""

    def open(self, directory: Path) -> Any:
        return diskcache.Cache(str(directory))


class SqliteAdapter(StoreAdapter):
    """``sqlite3`` as its documentation shows it: one table, a commit after each change."""

    capabilities = HOPES
    missing = (KeyError,)

    def open(self, directory: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(directory / "store.db")
        with connection:
            connection.execute("CREATE TABLE IF NOT EXISTS t (k TEXT PRIMARY KEY, v TEXT)")
        return connection

    def save(self, store: sqlite3.Connection, key: str, value: Value) -> None:
        with store:
            store.execute("INSERT OR REPLACE INTO t VALUES (?, ?)", (key, json.dumps(value)))

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


class TinydbAdapter(StoreAdapter):
    """``tinydb`` with its default storage: one JSON file, written anew each time."""

    capabilities = HOPES
    missing = (KeyError,)

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


class ZodbAdapter(StoreAdapter):
    """``ZODB`` on a file storage, one transaction for each change."""

    capabilities = HOPES
    missing = (KeyError,)

    def open(self, directory: Path) -> Any:
        manager = transaction.TransactionManager(explicit=False)
        database = ZODB.DB(ZODB.FileStorage.FileStorage(str(directory / "data.fs")))
        return database, database.open(manager), manager

    def save(self, store: Any, key: str, value: Value) -> None:
        with store[2]:
            store[1].root()[key] = value

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


class PickledbAdapter(StoreAdapter):
    """``pickledb`` with a ``save`` after each change: one JSON file, replaced."""

    capabilities = HOPES
    missing = (KeyError,)

    def open(self, directory: Path) -> Any:
        store = pickledb.PickleDB(str(directory / "db.json"))
        store.load()
        return store

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


class CachelibAdapter(StoreAdapter):
    """``cachelib.FileSystemCache`` whose entries never expire: one file for each key."""

    capabilities = Capabilities(durable=True, crash_recovery=True, list=False)
    missing = (KeyError,)

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
