"""Every public function and method, found by itself, is given what it should not be given.

The list is generated from the modules: a new class fails here until it is said how to make one
(`MAKERS`), a new method is tried without a word. Whatever an argument is replaced by, the answer
is a value or an error of the one tree, also from a store that was closed.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import pkgutil
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel

from pytest_statepersist import reference
from pytest_statepersist.reference import (
    cipher,
    clock,
    component_registry,
    conversation_json,
    conversation_records,
    conversation_sqlite,
    conversation_storage,
    conversations,
    crdt,
    database,
    database_rows,
    envelope,
    event_log,
    file_store,
    group_receiving,
    group_session,
    groups,
    identity,
    invites,
    items,
    local_storage,
    locking,
    log_mark,
    managers,
    messenger,
    migrations,
    recovery,
    remote,
    replica,
    retention,
    serializers,
    slots,
    snapshot_secrets,
    snapshot_store,
    snapshot_transfer,
    sqlite_file,
    state_snapshot,
    storage_keys,
    store_autosave,
    store_backup,
    store_events,
    store_schedule,
    transaction,
    transport,
    vault,
    vault_keys,
)
from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.errors import PersistenceError, ValidationError
from tests.reference.durable_case import SOAK
from tests.reference.durable_cases_de import TINY, app_message, app_session, live_state
from tests.reference.durable_cases_f import IDENTITIES
from tests.reference.snapshot_helpers import record, snapshot
from tests.reference.store_helpers import NOON, chain, conversation, session
from tests.reference.test_bad_input import conversation_record
from tests.reference.test_invites import SAMPLE

INNER = {
    "arguments", "cbor", "database_rows", "group_frames", "group_receiving", "group_session",
    "log_files", "log_frames", "message_protection", "migrations", "presence", "snapshot_index",
    "store_codec", "store_files", "store_schema", "strict_json", "timestamps", "values",
}  # fmt: skip
"""Modules that only the others call, with what those have checked; tested by what they read."""

KEY = envelope.EnvelopeKey(bytes(32))
CLOCK = clock.ManualClock(NOON)

WRONG: tuple[Any, ...] = (
    None, object(), "", "x", "\ud800", "a\0b", "../x", b"x", -1, 0, 2**70, float("nan"),
    float("inf"), [], {}, ["x", None], {"x": None}, datetime(2025, 3, 1), timedelta.max, True,
    lambda *args: None, str,
)  # fmt: skip
EACH = len(WRONG) if SOAK else 2
"""How many of them each argument is replaced by; which ones changes from one to the next."""
assert len(WRONG) % 5  # every fifth is taken, so that all are in the end

ENDLESS = {
    "ManualScheduler.advance", "ManualScheduler.run_until",  # as many calls as there are intervals
    "SystemClock.sleep", "ManualScheduler.every", "ThreadScheduler.every", "ThreadScheduler.after",
    "ThreadScheduler.stop", "AutoSaver.enable", "FileStore.enable_autosave", "BackupSchedule.start",
}  # fmt: skip
"""Numbers that are right for them would take for ever: no others than wrong types are tried."""


class Makers:
    """One of each class, made when it is asked for, and closed in the end."""

    def __init__(self, directory: Path, closing: ExitStack) -> None:
        self.directory, self.closing = directory, closing
        self.made: dict[type, Any] = {}
        self.known: dict[type, dict[str, Any]] = {}
        self.paths = 0

    def one(self, kind: type) -> Any:
        if kind not in self.made:
            made = MAKERS[kind](self)
            if isinstance(made, AbstractContextManager):
                self.closing.callback(closed, made)
            self.made[kind] = made
        return self.made[kind]

    def path(self, name: str) -> Path:
        self.paths += 1
        return self.directory / f"{name}-{self.paths}"

    def named(self, owner: type | None, *, again: bool) -> dict[str, Any]:
        """Values of some arguments that a store knows; in a new one if that one was closed."""
        if owner not in NAMED:
            return {}
        if again or owner not in self.known:
            try:
                self.known[owner] = NAMED[owner](self.one(owner))
            except PersistenceError:
                del self.made[owner]
                self.known[owner] = NAMED[owner](self.one(owner))
        return self.known[owner]


def closed(made: AbstractContextManager[object]) -> None:
    """Give back what an open store holds; another one that it needs may be closed before."""
    with suppress(PersistenceError):
        made.__exit__(None, None, None)


def a_messenger(make: Makers) -> messenger.Messenger:
    root = make.path("messenger")
    messenger.Messenger.init(root, "Alice", key=KEY, clock=CLOCK)
    return messenger.Messenger(root, key=KEY, transport=transport.MemoryTransport(), clock=CLOCK)


def a_group_store(make: Makers) -> groups.Groups:
    storage = make.one(snapshot_store.SnapshotStore)
    made = messenger.new_signature_key()
    return groups.Groups(storage, identity=IDENTITIES["Alice"], signature_key=made, clock=CLOCK)


def a_vault(make: Makers) -> vault.Vault:
    return vault.Vault(make.path("vault"), password="pass", cost=TINY, clock=CLOCK)


def a_session(make: Makers) -> conversations.Session:
    chats = make.one(conversations.Conversations)
    return typing.cast("conversations.Session", chats.create_session("title"))


def an_autosave(make: Makers) -> recovery.AutoSave:
    return recovery.AutoSave(
        make.one(local_storage.LocalStorage), make.one(database.Database),
        lambda: live_state("one"), scheduler=make.one(clock.ManualScheduler), clock=CLOCK,
    )  # fmt: skip


def a_key(make: Makers) -> slots.SignatureKey:
    return messenger.new_signature_key()


def a_line_of(make: Makers) -> remote.RemoteStore:
    return remote.RemoteStore("memory://bad-arguments")


MAKERS: dict[type, Callable[[Makers], Any]] = {
    cipher.Cipher: lambda m: cipher.Cipher(bytes(32)),
    cipher.KdfCost: lambda m: TINY,
    clock.ManualClock: lambda m: clock.ManualClock(NOON),
    clock.ManualScheduler: lambda m: clock.ManualScheduler(clock.ManualClock(NOON)),
    clock.SystemClock: lambda m: clock.SystemClock(),
    clock.ThreadScheduler: lambda m: clock.ThreadScheduler(),
    component_registry.ComponentRecord: lambda m: record(),
    component_registry.DirectoryRegistry: lambda m: component_registry.DirectoryRegistry(
        m.path("registry")
    ),
    conversation_json.JsonConversations: lambda m: conversation_json.JsonConversations(
        m.path("json")
    ),
    conversation_records.SessionRecord: lambda m: conversation_record(),
    conversation_records.SessionInfo: lambda m: conversation_record().info(10),
    conversation_storage.Change: lambda m: conversation_storage.Change(conversation_record(), None),
    conversation_sqlite.SqliteConversations: lambda m: conversation_sqlite.SqliteConversations(
        m.path("sqlite")
    ),
    conversation_storage.Filter: lambda m: conversation_storage.Filter(),
    conversations.Conversations: lambda m: conversations.Conversations(
        m.one(conversation_json.JsonConversations), clock=CLOCK
    ),
    conversations.Session: a_session,
    crdt.LastWriterWinsMap: lambda m: crdt.LastWriterWinsMap(),
    crdt.ObservedRemoveSet: lambda m: crdt.ObservedRemoveSet(),
    crdt.Stamper: lambda m: crdt.Stamper("me"),
    crdt.Stamp: lambda m: crdt.Stamp(1, "me"),
    crdt.Set: lambda m: crdt.Set("meta/topic", "x", crdt.Stamp(1, "me")),
    crdt.Add: lambda m: crdt.Add("x", "tag"),
    crdt.Remove: lambda m: crdt.Remove("x", frozenset({"tag"})),
    database.Database: lambda m: database.Database(m.path("database"), clock=CLOCK),
    database_rows.AppSession: lambda m: app_session(),
    database_rows.AppMessage: lambda m: app_message("x"),
    database_rows.Row: lambda m: app_session(),
    envelope.EnvelopeKey: lambda m: KEY,
    event_log.EventLog: lambda m: event_log.EventLog(m.path("log")),
    file_store.FileStore: lambda m: file_store.FileStore(m.path("files"), clock=CLOCK),
    groups.Groups: a_group_store,
    groups.Joining: lambda m: m.one(groups.Groups).prepare_joining(SAMPLE.guest(), 0),
    groups.Received: lambda m: groups.Received(b"g", m.one(group_receiving.Run), 0, 0),
    group_receiving.Run: lambda m: group_receiving.follow_frames(SAMPLE.guest(), (), 0),
    group_session.GroupSession: lambda m: SAMPLE.guest(),
    identity.Identity: lambda m: IDENTITIES["Alice"],
    invites.Invite: lambda m: SAMPLE,
    invites.InviteBook: lambda m: invites.InviteBook(m.path("book"), key=KEY),
    invites.InviteTicket: lambda m: invites.InviteTicket.new(),
    items.Conversation: lambda m: conversation(),
    items.FocusChain: lambda m: chain(),
    items.Item: lambda m: session(),
    items.Session: lambda m: session(),
    local_storage.LocalStorage: lambda m: local_storage.LocalStorage(m.path("local")),
    locking.StoreLock: lambda m: locking.StoreLock(m.path("lock")),
    log_mark.LogMark: lambda m: log_mark.LogMark(),
    managers.InMemoryManager: lambda m: managers.SessionManager(clock=CLOCK),
    managers.FocusManager: lambda m: managers.FocusManager(clock=CLOCK),
    managers.MemoryManager: lambda m: managers.MemoryManager(clock=CLOCK),
    managers.SessionManager: lambda m: managers.SessionManager(clock=CLOCK),
    messenger.Messenger: a_messenger,
    recovery.AutoSave: an_autosave,
    recovery.CrashOffer: lambda m: recovery.CrashOffer("t", 1, NOON, live_state("one")),
    recovery.LiveState: lambda m: live_state("one"),
    recovery.StateRecovery: lambda m: recovery.StateRecovery(
        m.one(local_storage.LocalStorage), m.one(database.Database), clock=CLOCK
    ),
    remote.RemoteStore: a_line_of,
    replica.ChannelDocument: lambda m: replica.ChannelDocument(),
    replica.Message: lambda m: replica.Message("m", "me", "Me", NOON, "hello"),
    replica.Replica: lambda m: replica.Replica("me"),
    replica.Update: lambda m: replica.Update("u", ()),
    retention.NightlyRetention: lambda m: retention.NightlyRetention(
        m.one(retention.Retention), m.one(clock.ManualScheduler)
    ),
    retention.Retention: lambda m: retention.Retention(m.one(database.Database)),
    serializers.AdaptiveSerializer: lambda m: serializers.AdaptiveSerializer(),
    serializers.BinarySerializer: lambda m: serializers.BinarySerializer(),
    serializers.CompactJsonSerializer: lambda m: serializers.CompactJsonSerializer(),
    serializers.GzipJsonSerializer: lambda m: serializers.GzipJsonSerializer(),
    serializers.JsonSerializer: lambda m: serializers.JsonSerializer(),
    serializers.ZstdJsonSerializer: lambda m: serializers.ZstdJsonSerializer(),
    slots.Changes: lambda m: slots.Changes(),
    slots.SignatureKey: a_key,
    BaseModel: a_key,
    slots.Slot: lambda m: slots.SIGNATURE_KEYS,
    snapshot_secrets.SecretsSealer: lambda m: snapshot_secrets.SecretsSealer("pass", cost=TINY),
    snapshot_store.SnapshotStore: lambda m: snapshot_store.SnapshotStore(m.path("store"), key=KEY),
    snapshot_transfer.ExportOptions: lambda m: snapshot_transfer.ExportOptions(),
    snapshot_transfer.ImportOptions: lambda m: snapshot_transfer.ImportOptions(),
    sqlite_file.SqliteFile: lambda m: sqlite_file.SqliteFile(
        m.path("sqlite-file"), migrations=migrations.APP_MIGRATIONS
    ),
    state_snapshot.Component: lambda m: snapshot().components[0],
    state_snapshot.StateSnapshot: lambda m: snapshot(),
    storage_keys.Key: lambda m: storage_keys.THEME,
    store_autosave.AutoSaver: lambda m: store_autosave.AutoSaver(
        lambda: None, lambda error: None, m.one(clock.ManualScheduler)
    ),
    store_backup.BackupContent: lambda m: m.one(file_store.FileStore).backup_content(),
    store_backup.Manifest: lambda m: m.one(store_backup.BackupContent).manifest,
    store_backup.FileEntry: lambda m: store_backup.FileEntry(
        sha256="0" * 64, size=1, stored=True
    ),
    store_events.EventHub: lambda m: store_events.EventHub(),
    store_schedule.BackupSchedule: lambda m: store_schedule.BackupSchedule(
        m.one(file_store.FileStore), m.path("backups"), clock=CLOCK
    ),
    transaction.Transaction: lambda m: transaction.Transaction(m.directory),
    transport.DirectoryTransport: lambda m: transport.DirectoryTransport(m.path("transport")),
    transport.MemoryTransport: lambda m: transport.MemoryTransport(),
    vault.Vault: a_vault,
    vault_keys.VaultHeader: lambda m: vault_keys.VaultHeader.create(
        "f" * 32, bytes(32), "pass", TINY
    ),
    Ed25519PrivateKey: lambda m: Ed25519PrivateKey.generate(),
}


def of_messenger(m: messenger.Messenger) -> dict[str, Any]:
    channel = m.create_channel("general").channel_id
    message = m.send(channel, "hello")
    return {
        "channel_id": channel, "user_id": str(m.identity.user_id), "message_id": message,
        "code": m.invite(channel),
    }  # fmt: skip


def of_database(d: database.Database) -> dict[str, Any]:
    name = d.create_session("t", model="m").id
    kind = database_rows.SnapshotKind.MANUAL
    return {
        "session_id": name,
        "snapshot_id": d.add_snapshot({}, kind=kind, trigger="t", summary="s").id,
        "recording_id": d.add_recording(name, "t", duration=1, events=[]).id,
        "proof_id": d.add_proof(name, "s").id,
        "at": 0,
    }


def of_conversations(c: conversations.Conversations) -> dict[str, Any]:
    made = c.create_session("t")
    made.save()
    return {"session_id": made.id, "text": made.export("json")}


def of_storage(s: conversation_storage.ConversationStorage) -> dict[str, Any]:
    s.save([conversation_storage.Change(conversation_record(), None)])
    return {"session_id": conversation_record().id, "limit": 1, "offset": 0}


def of_snapshot_store(s: snapshot_store.SnapshotStore) -> dict[str, Any]:
    s.write(slots.SIGNATURE_KEYS, slots.CLIENT, messenger.new_signature_key())
    return {"owner": slots.CLIENT}


def of_file_store(s: file_store.FileStore) -> dict[str, Any]:
    s.save(session())
    backups = s.root.with_name(f"{s.root.name}-backup")
    return {"item_id": "s1", "src": backups if backups.exists() else s.backup(backups)}


def of_registry(r: component_registry.DirectoryRegistry) -> dict[str, Any]:
    r.register(record())
    return {"component_id": "fetch"}


def of_vault(v: vault.Vault) -> dict[str, Any]:
    v.store("x", {"value": 1})
    return {"key": "x", "new": "pass", "cost": TINY}


NAMED: dict[Any, Callable[[Any], dict[str, Any]]] = {
    component_registry.DirectoryRegistry: of_registry,
    conversation_json.JsonConversations: of_storage,
    conversation_sqlite.SqliteConversations: of_storage,
    conversations.Conversations: of_conversations,
    database.Database: of_database,
    file_store.FileStore: of_file_store,
    groups.Groups: lambda g: {"group_id": g.create(os.urandom(8), "name").group_id},
    messenger.Messenger: of_messenger,
    snapshot_store.SnapshotStore: of_snapshot_store,
    vault.Vault: of_vault,
}
"""What has to be there for a method to come further than to say that it is not."""

STANDS_FOR: dict[Any, type] = {
    clock.Clock: clock.ManualClock,
    clock.Scheduler: clock.ManualScheduler,
    component_registry.ComponentRegistry: component_registry.DirectoryRegistry,
    conversation_storage.ConversationStorage: conversation_json.JsonConversations,
    managers.Manager: managers.SessionManager,
    serializers.Serializer: serializers.JsonSerializer,
    slots.StorageProvider: snapshot_store.SnapshotStore,
    transport.Transport: transport.MemoryTransport,
}
PLAIN: dict[Any, Any] = {
    str: "x", int: 1, float: 0.001, bool: True, bytes: b"x", datetime: NOON,
    timedelta: timedelta(1), object: "x", Any: "x", type(None): None, os.PathLike: "x",
    Exception: ValueError("x"),
}  # fmt: skip


def sample(make: Makers, hint: Any) -> Any:
    """Something of the declared type, right or nearly so."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, typing.TypeVar):
        return sample(make, hint.__bound__ or object)
    if hint in PLAIN or origin in PLAIN:
        return PLAIN.get(hint, PLAIN.get(origin))
    if hint is Path:
        return make.path("x")
    kind = STANDS_FOR.get(origin or hint, origin or hint)
    if kind in MAKERS:
        return make.one(kind)
    if origin is typing.Annotated:
        return sample(make, inner[0])
    if origin is Callable:
        return lambda *args: None
    if origin is type:
        return items.Session
    if origin is not None and inner and not isinstance(origin, type):
        return sample(make, inner[0])  # a union
    if origin is not None and isinstance(origin, type):
        return {} if issubclass(origin, Mapping) else ()
    if isinstance(hint, type) and issubclass(hint, Enum):
        return next(iter(hint))
    if inner:
        return sample(make, inner[0])
    raise LookupError(f"MAKERS does not say how to make a {hint!r}")


def public_callables() -> Iterator[tuple[str, type | None, str, Callable[..., Any]]]:
    """Yield name, class, attribute and function of everything public, constructors included."""
    for info in pkgutil.iter_modules(reference.__path__):
        module = importlib.import_module(f"{reference.__name__}.{info.name}")
        for name in getattr(module, "__all__", ()) if info.name not in INNER else ():
            value = getattr(module, name)
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(value):
                yield f"{info.name}.{name}", None, name, value
            elif inspect.isclass(value) and not issubclass(value, Exception | Enum):
                yield from () if getattr(value, "_is_protocol", False) else _methods(value)


def _methods(owner: type) -> Iterator[tuple[str, type | None, str, Callable[..., Any]]]:
    made_by_hand = not dataclasses.is_dataclass(owner) and not issubclass(owner, BaseModel)
    for name, member in vars(owner).items():
        if name == "__init__" and made_by_hand:
            yield f"{owner.__name__}()", None, name, owner
        elif not name.startswith("_"):
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if inspect.isfunction(function):
                yield f"{owner.__name__}.{name}", owner, name, function


def signature_of(function: Any) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    defined = function.__init__ if inspect.isclass(function) else inspect.unwrap(function)
    parameters = dict(inspect.signature(defined).parameters)
    hints = typing.get_type_hints(defined, include_extras=True)
    return {name: p for name, p in parameters.items() if name not in ("self", "cls")}, hints


def used(answer: object) -> None:
    """Look at what came back: a generator and a context manager do nothing before that."""
    if isinstance(answer, AbstractContextManager) and not isinstance(answer, Path):
        with answer:
            pass
    elif isinstance(answer, Iterator):
        list(answer)


def troubles(make: Makers) -> Iterator[str]:
    """Call everything with one wrong argument at a time; yield what was no error of ours."""
    number = 0
    everything = sorted(public_callables(), key=lambda each: ends(each[2]))
    for name, owner, attribute, function in everything:
        parameters, hints = signature_of(function)
        named = make.named(owner, again=ends(attribute) == 1)
        required = {
            p.name: sample(make, hints[p.name]) for p in parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }  # fmt: skip
        required |= {name: value for name, value in named.items() if name in parameters}
        called = function if owner is None else getattr(make.one(owner), attribute)
        yield from trouble(f"{name}()", called, (), required)
        for p in parameters.values():
            for _ in range(EACH if p.kind is not p.VAR_KEYWORD else 0):
                number += 1
                wrong = WRONG[number * 5 % len(WRONG)]
                if name in ENDLESS and isinstance(wrong, int | float):
                    continue
                if p.name == "cost" and wrong is None:
                    continue  # the default, which takes a second
                shown = f"{name}({p.name}={wrong!r:.40})"
                if p.kind is p.VAR_POSITIONAL:
                    yield from trouble(shown, called, (*required.values(), wrong), {})
                else:
                    yield from trouble(shown, called, (), {**required, p.name: wrong})
    # By now all that can be closed is.
    for name, owner, attribute, function in everything:
        parameters, hints = signature_of(function)
        if owner is not None and all(p.default is not p.empty for p in parameters.values()):
            yield from trouble(f"{name}() afterwards", getattr(make.one(owner), attribute), (), {})


def ends(method: str) -> int:
    """When to try a method: those that take something away late, those that close last."""
    word = method.split("_")[0]
    if word in ("close", "stop", "release"):
        return 2
    return word in ("clear", "delete", "discard", "forget", "leave", "remove", "restore")


def trouble(
    shown: str, called: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[str]:
    try:
        used(called(*args, **kwargs))
    except PersistenceError:
        pass
    except Exception as error:
        yield f"{shown}: {error!r:.150}"


def test_a_wrong_argument_is_an_error_of_the_tree(
    ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ram_path / "one" / "two"  # a path of ".." stays inside the test's own directory
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    with ExitStack() as closing:
        found = list(troubles(Makers(here, closing)))
    assert not found, "\n".join(found)


def test_an_argument_of_the_wrong_type_is_named_and_not_shown() -> None:
    with pytest.raises(ValidationError, match="key: is str, and must be bytes") as caught:
        envelope.EnvelopeKey("a secret")  # type: ignore[arg-type]
    assert "a secret" not in str(caught.value)
    for name, wrong in {
        "limit: is str": lambda: sample_list(limit="x"),
        "offset: is NaN": lambda: sample_list(offset=float("nan")),
        "offset: is bool": lambda: sample_list(offset=True),
        "of: is str": lambda: sample_list(of="abc"),
        "of: is list": lambda: sample_list(of=["abc", 1]),
    }.items():
        with pytest.raises(ValidationError, match=name):
            wrong()
    assert sample_list(limit=3, of=("a",)) == (3, 0.0, ("a",))


@checked
def sample_list(limit: int = 0, offset: float = 0.0, of: Iterable[str] = ()) -> object:
    return limit, offset, of
