"""Each call of the operating system fails once, in every durable operation of these stores.

Whatever fails, the caller gets an error of our tree (or the operation succeeds all the same),
what was saved is still there, nothing stays locked, and doing it again works.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.reference.cipher import KdfCost
from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.conversation_json import JsonConversations
from pytest_statepersist.reference.conversations import Conversations
from pytest_statepersist.reference.errors import NotFound, PersistenceError
from pytest_statepersist.reference.local_storage import LocalStorage
from pytest_statepersist.reference.vault import Vault

START = datetime(2025, 6, 1, tzinfo=UTC)
STEP = 1 if os.environ.get("STATEPERSIST_PROFILE") == "soak" else 3
"""The first failing call of a kind, and in every run each third after it."""
TINY = KdfCost(memory_kib=8, iterations=1, lanes=1)
CALLS = (
    "open", "read", "write", "fsync", "fstat", "lstat", "replace", "rename",
    "unlink", "mkdir", "scandir", "listdir",
)  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """``run`` is done to what ``prepare`` made; ``before`` or ``after`` is what may be seen."""

    prepare: Callable[[Path], Any]
    run: Callable[[Any], object]
    look: Callable[[Path], Any]
    before: Any
    after: Any


def local(root: Path) -> LocalStorage:
    return LocalStorage(root / "local")


def local_filled(root: Path) -> LocalStorage:
    storage = local(root)
    storage.set("a", 1)
    return storage


def local_look(root: Path) -> Mapping[str, Any]:
    storage = local(root)
    return {name: storage.get(name) for name in storage.names()}


def chats(root: Path) -> Conversations:
    return Conversations(JsonConversations(root / "c"), clock=ManualClock(START))


def chats_filled(root: Path) -> Conversations:
    store = chats(root)
    for name in ("a", "b"):
        session = store.create_session(name, session_id=name)
        session.send("one")
        session.save()
    store.list_sessions()
    return store


def chats_look(root: Path) -> Mapping[str, int]:
    store = chats(root)
    listed = {info.id: info.message_count for info in store.list_sessions()}
    assert listed == {name: len(store.load_session(name).messages) for name in listed}
    return listed


def _new_session(store: Conversations) -> None:
    store.create_session("n", session_id="n").save(overwrite=True)


def _continued(root: Path) -> Any:
    session = chats_filled(root).load_session("a")
    session.send("two")
    return session


def _two_stores(root: Path) -> Any:
    store, other = chats_filled(root), Conversations(JsonConversations(root / "other"))
    for name in ("x", "y"):
        other.create_session(name, session_id=name).save()
    return store, other


def vault(root: Path, password: str = "old") -> Vault:
    return Vault(root / "v", password=password, cost=TINY, clock=ManualClock(START))


def vault_filled(root: Path) -> Vault:
    opened = vault(root)
    opened.store("a", 1)
    opened.store("b", 2)
    return opened


def vault_look(root: Path) -> Mapping[str, Any]:
    opened = vault(root)
    return {info.key: opened.retrieve(info.key) for info in opened.list()}


TWO = {"a": 1, "b": 2}
OPERATIONS = {
    "local.open": Operation(lambda root: root, local, local_look, {}, {}),
    "local.set": Operation(local_filled, lambda s: s.set("a", 2), local_look, {"a": 1}, {"a": 2}),
    "local.get": Operation(local_filled, lambda s: s.get("a"), local_look, {"a": 1}, {"a": 1}),
    "local.remove": Operation(local_filled, lambda s: s.remove("a"), local_look, {"a": 1}, {}),
    "local.clear": Operation(local_filled, lambda s: s.clear(), local_look, {"a": 1}, {}),
    "local.import_all": Operation(
        local_filled,
        lambda s: s.import_all({"sidepanel.b": 2, "sidepanel.c": 3}),
        local_look,
        {"a": 1},
        {"a": 1, "b": 2, "c": 3},
    ),
    "chats.open": Operation(lambda root: root, chats, chats_look, {}, {}),
    "chats.new": Operation(chats, _new_session, chats_look, {}, {"n": 0}),
    "chats.save": Operation(
        _continued, lambda s: s.save(), chats_look, {"a": 1, "b": 1}, {"a": 2, "b": 1}
    ),
    "chats.list": Operation(
        chats_filled, lambda s: s.list_sessions(), chats_look, {"a": 1, "b": 1}, {"a": 1, "b": 1}
    ),
    "chats.delete": Operation(
        chats_filled, lambda s: s.delete_session("a"), chats_look, {"a": 1, "b": 1}, {"b": 1}
    ),
    "chats.clean_up": Operation(
        chats_filled,
        lambda s: s.clean_up(-timedelta(days=1)),
        chats_look,
        {"a": 1, "b": 1},
        {},
    ),
    "chats.delete_all": Operation(
        chats_filled, lambda s: s.delete_all(), chats_look, {"a": 1, "b": 1}, {}
    ),
    "chats.sync": Operation(
        _two_stores,
        lambda both: both[0].sync_with(both[1]),
        chats_look,
        {"a": 1, "b": 1},
        {"a": 1, "b": 1, "x": 0, "y": 0},
    ),
    "vault.open": Operation(lambda root: root, vault, vault_look, {}, {}),
    "vault.store": Operation(
        vault_filled, lambda v: v.store("a", 3), vault_look, TWO, {"a": 3, "b": 2}
    ),
    "vault.retrieve": Operation(vault_filled, lambda v: v.retrieve("a"), vault_look, TWO, TWO),
    "vault.delete": Operation(vault_filled, lambda v: v.delete("a"), vault_look, TWO, {"b": 2}),
    "vault.change_password": Operation(
        vault_filled, lambda v: v.change_password("old", cost=TINY), vault_look, TWO, TWO
    ),
    "vault.delete_all": Operation(vault_filled, lambda v: v.delete_all(), vault_look, TWO, {}),
}


@pytest.fixture(autouse=True)
def no_real_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The power stays on here; a sync may cost nothing."""
    fstat = os.fstat
    monkeypatch.setattr(os, "fsync", lambda descriptor: fstat(descriptor) and None)


class Failing:
    """Lets the n-th call of one function fail, below one directory or on a descriptor."""

    def __init__(self, name: str, nth: int, number: int) -> None:
        self.name, self.left, self.number = name, nth, number
        self.original = getattr(os, name)
        self.fired = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.left == 0 and not self.fired:
            self.fired = True
            raise OSError(self.number, os.strerror(self.number))
        self.left -= 1
        return self.original(*args, **kwargs)


@pytest.mark.parametrize("name", OPERATIONS)
def test_any_one_failing_call_loses_nothing_and_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    operation = OPERATIONS[name]
    failures = 0
    for call in CALLS:
        nth = 0
        while True:
            root = tmp_path / f"{call}{nth}"
            root.mkdir()
            subject = operation.prepare(root)
            fault = Failing(call, nth, errno.EIO if nth % 2 else errno.ENOSPC)
            with monkeypatch.context() as patch:
                patch.setattr(os, call, fault)
                try:
                    operation.run(subject)
                    refused = False
                except PersistenceError:
                    refused = True
            if not fault.fired:
                break
            failures += 1
            # On a copy, since opening is an operation too: it would make a deleted vault anew.
            shutil.copytree(root, tmp_path / "copy")
            seen = operation.look(tmp_path / "copy")
            shutil.rmtree(tmp_path / "copy")
            if refused:
                assert seen in (operation.before, operation.after), (call, nth)
                try:
                    operation.run(subject)
                except NotFound:
                    assert seen == operation.after  # a deletion that had happened
            assert operation.look(root) == operation.after, (call, nth)
            nth += STEP
    assert failures >= 3
