"""Figures of app state, conversations and the vault, durable writes included.

Run: ``pytest benchmarks/bench_reference_de.py --benchmark-only``. Writes are measured twice:
``durable`` as the code is, and ``no-fsync`` with `os.fsync` replaced by nothing (SQLite with
``synchronous=OFF``), because figures published elsewhere usually leave the syncs out. The
durable one is what a user pays; the difference is the disk.

The figures that other systems state: a conversation of 100 messages is saved or loaded in
under 2 ms, a session in under 1 ms; up to 10,000 messages or 10 MB a session; 5 MB of local
storage; state saved each 30 s; 100,000 iterations of PBKDF2.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.reference.clock import ManualClock, ManualScheduler
from pytest_statepersist.reference.conversation_json import JsonConversations
from pytest_statepersist.reference.conversation_sqlite import SqliteConversations
from pytest_statepersist.reference.conversations import Conversations, Session
from pytest_statepersist.reference.database import Database
from pytest_statepersist.reference.database_rows import SnapshotKind
from pytest_statepersist.reference.local_storage import LocalStorage
from pytest_statepersist.reference.recovery import AutoSave, LiveState
from pytest_statepersist.reference.retention import Retention
from pytest_statepersist.reference.sqlite_file import SqliteFile
from pytest_statepersist.reference.vault import Vault
from pytest_statepersist.reference.vault_keys import Pbkdf2Cost


@pytest.fixture(params=["durable", "no-fsync"])
def syncing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no-fsync":
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    mode: str = request.param
    return mode


def relaxed(file: SqliteFile, syncing: str) -> None:
    if syncing == "no-fsync":
        file.query("PRAGMA synchronous=OFF")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "app.sqlite", clock=ManualClock()) as opened:
        yield opened


@pytest.fixture(params=["sqlite", "json"])
def conversations(
    request: pytest.FixtureRequest, tmp_path: Path, syncing: str
) -> Iterator[Conversations]:
    with ExitStack() as stack:
        if request.param == "sqlite":
            storage = SqliteConversations(tmp_path / "c.sqlite")
            relaxed(storage.file, syncing)
            yield stack.enter_context(Conversations(storage))
        else:
            yield stack.enter_context(Conversations(JsonConversations(tmp_path / "c")))


def filled(store: Conversations, messages: int, size: int = 100) -> Session:
    session = store.create_session("t")
    for _ in range(messages):
        session.send("x" * size)
    session.save()
    return session


Benchmark = Callable[..., Any]


# -- local storage -----------------------------------------------------------------------


def test_local_storage_set(benchmark: Benchmark, tmp_path: Path, syncing: str) -> None:
    storage = LocalStorage(tmp_path / "s")
    numbers = itertools.count()
    benchmark(lambda: storage.set("ui", {"lastView": str(next(numbers))}))


def test_local_storage_get(benchmark: Benchmark, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "s")
    for n in range(50):
        storage.set(f"k{n}", "x" * 100)
    benchmark(lambda: storage.get("k7"))


def test_auto_save_of_100_messages(
    benchmark: Benchmark, tmp_path: Path, database: Database, syncing: str
) -> None:
    session = database.create_session("t", model="m")
    for _ in range(100):
        database.add_message(session.id, "user", "x" * 100)
    messages = tuple(database.messages(session.id))
    numbers = itertools.count()
    clock = ManualClock()
    auto = AutoSave(
        LocalStorage(tmp_path / "s"),
        database,
        lambda: LiveState(session=session, messages=messages, balance=float(next(numbers))),
        scheduler=ManualScheduler(clock),
        clock=clock,
    )
    benchmark(auto.save)


# -- database ----------------------------------------------------------------------------


def test_database_add_message(benchmark: Benchmark, database: Database, syncing: str) -> None:
    relaxed(database.file, syncing)
    session = database.create_session("t", model="m")
    benchmark(lambda: database.add_message(session.id, "user", "x" * 100))


def test_database_read_100_messages(benchmark: Benchmark, database: Database) -> None:
    session = database.create_session("t", model="m")
    with database.transaction():
        for _ in range(100):
            database.add_message(session.id, "user", "x" * 100)
    assert len(benchmark(lambda: database.messages(session.id))) == 100


def test_retention_of_1000_snapshots(
    benchmark: Benchmark, database: Database, syncing: str
) -> None:
    relaxed(database.file, syncing)
    clock = database.clock
    assert isinstance(clock, ManualClock)
    retention = Retention(database)

    def setup() -> None:
        with database.transaction():
            for _ in range(1000):
                database.add_snapshot({}, kind=SnapshotKind.AUTO, trigger=None, summary=None)
        clock.advance(31 * 86_400)

    benchmark.pedantic(retention.run, setup=setup, rounds=5)  # type: ignore[attr-defined]
    assert database.snapshots() == []


# -- conversations -----------------------------------------------------------------------


@pytest.mark.parametrize("messages", [1, 100, 10_000])
def test_conversation_save(
    benchmark: Benchmark, conversations: Conversations, messages: int
) -> None:
    rounds = 5 if messages == 10_000 else 50
    session = filled(conversations, max(0, messages - rounds))

    def one_more() -> None:
        session.send("y" * 100)

    benchmark.pedantic(session.save, setup=one_more, rounds=rounds)  # type: ignore[attr-defined]


@pytest.mark.parametrize("messages", [1, 100, 10_000])
def test_conversation_load(
    benchmark: Benchmark, conversations: Conversations, messages: int
) -> None:
    session = filled(conversations, messages)
    loaded = benchmark(lambda: conversations.load_session(session.id))
    assert len(loaded.messages) == messages


def test_conversation_list_of_1000(benchmark: Benchmark, conversations: Conversations) -> None:
    for _ in range(1000):
        filled(conversations, 1)
    conversations.list_sessions()
    assert len(benchmark(conversations.list_sessions)) == 1000


# -- vault -------------------------------------------------------------------------------


def test_vault_store(benchmark: Benchmark, tmp_path: Path, syncing: str) -> None:
    vault = Vault(tmp_path / "v", password="p", cost=Pbkdf2Cost(1))
    numbers = itertools.count()
    benchmark(lambda: vault.store("key", next(numbers)))


def test_vault_retrieve(benchmark: Benchmark, tmp_path: Path) -> None:
    vault = Vault(tmp_path / "v", password="p", cost=Pbkdf2Cost(1))
    for n in range(100):
        vault.store(str(n), n)
    assert benchmark(lambda: vault.retrieve("7")) == 7


@pytest.mark.parametrize("cost", ["argon2id", "pbkdf2", "pbkdf2-100000"])
def test_vault_open(benchmark: Benchmark, tmp_path: Path, cost: str) -> None:
    costs = {"argon2id": None, "pbkdf2": Pbkdf2Cost(), "pbkdf2-100000": Pbkdf2Cost(100_000)}
    Vault(tmp_path / "v", password="p", cost=costs[cost])
    benchmark.pedantic(  # type: ignore[attr-defined]
        lambda: Vault(tmp_path / "v", password="p"), rounds=3
    )
