"""Makes one valid snapshot of each kind, through the public functions of the reference stores.

The law: a maker writes below a directory that it was given, and returns what `load` must give back
and which file holds it. `load` opens everything anew, so what it returns was on the disk; what it
raises on a damaged file is of the reference's own tree of errors.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from pytest_statepersist.reference.atomic import read_bounded, write_atomic
from pytest_statepersist.reference.cipher import Cipher
from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.conversation_json import JsonConversations
from pytest_statepersist.reference.conversations import Conversations
from pytest_statepersist.reference.database import Database
from pytest_statepersist.reference.database_rows import SnapshotKind as Taken
from pytest_statepersist.reference.envelope import EnvelopeKey, Purpose
from pytest_statepersist.reference.errors import DamagedData
from pytest_statepersist.reference.event_log import EventLog
from pytest_statepersist.reference.file_store import FileStore
from pytest_statepersist.reference.group_backup import export_state, import_state
from pytest_statepersist.reference.items import (
    Conversation,
    FocusChain,
    FocusItem,
    Item,
    Message,
    Role,
    Session,
)
from pytest_statepersist.reference.local_storage import LocalStorage
from pytest_statepersist.reference.messenger import Messenger
from pytest_statepersist.reference.serializers import JsonSerializer
from pytest_statepersist.reference.slots import GROUP_STATE, GroupState
from pytest_statepersist.reference.snapshot_index import snapshot_name
from pytest_statepersist.reference.snapshot_store import SnapshotStore
from pytest_statepersist.reference.state_snapshot import (
    Component,
    SnapshotMetadata,
    StateSnapshot,
)
from pytest_statepersist.reference.store_remote import pack_backup, unpack_backup
from pytest_statepersist.reference.transport import MemoryTransport
from pytest_statepersist.reference.vault import INDEX, Vault
from pytest_statepersist.reference.vault_keys import Pbkdf2Cost

__all__ = ["ENCRYPTED", "MAKERS", "NOW", "MadeSnapshot", "Order", "SnapshotKind"]

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
"""The moment that ages count back from; a fixed one, so that a seed says everything."""
_KEY = bytes(range(32))
_PASSWORD = "correct horse"
_GROUP = b"factory-group-id"
_BATCH = 4


class SnapshotKind(StrEnum):
    """What is made."""

    STATE = "state"
    SESSION = "session"
    CONVERSATION = "conversation"
    FOCUS = "focus"
    DATABASE = "database"
    VAULT = "vault"
    ENVELOPE = "envelope"
    GROUP = "group"
    LOG_SEGMENT = "log-segment"
    LOG_SNAPSHOT = "log-snapshot"
    STORAGE = "storage"
    CHAT = "chat"
    BACKUP = "backup"
    PACKED_BACKUP = "packed-backup"
    EXPORT = "export"


ENCRYPTED: dict[SnapshotKind, tuple[bool, ...]] = {
    SnapshotKind.STATE: (False,),
    SnapshotKind.SESSION: (False, True),
    SnapshotKind.CONVERSATION: (False, True),
    SnapshotKind.FOCUS: (False, True),
    SnapshotKind.DATABASE: (False,),
    SnapshotKind.VAULT: (True,),
    SnapshotKind.ENVELOPE: (True,),
    SnapshotKind.GROUP: (True,),
    SnapshotKind.LOG_SEGMENT: (False, True),
    SnapshotKind.LOG_SNAPSHOT: (False, True),
    SnapshotKind.STORAGE: (False,),
    SnapshotKind.CHAT: (False,),
    SnapshotKind.BACKUP: (False, True),
    # What is packed plain is compressed, and no longer as large as was asked for.
    SnapshotKind.PACKED_BACKUP: (True,),
    SnapshotKind.EXPORT: (True,),
}
"""Whether a kind can be plain, encrypted, or both; the first one is what you get unasked."""


@dataclass(frozen=True, slots=True)
class MadeSnapshot:
    """A snapshot on disk: ``path`` is the file that holds it, below ``directory``.

    ``value`` is what `load` returned when it was made; of a broken one `load` raises an error of
    the reference implementation. ``created_at`` is the moment that the snapshot tells.
    """

    kind: SnapshotKind
    directory: Path
    path: Path
    value: Any
    created_at: datetime
    encrypted: bool
    load: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Order:
    """What a maker is asked for; ``size`` is the payload's in bytes."""

    directory: Path
    size: int
    created_at: datetime
    encrypted: bool
    seed: int

    def text(self) -> str:
        """Return ``size`` letters that depend on the seed alone."""
        draw = random.Random(self.seed)
        return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=self.size))

    def data(self) -> bytes:
        """Return ``size`` bytes that depend on the seed alone."""
        return random.Random(self.seed).randbytes(self.size)

    def clock(self) -> ManualClock:
        """Return a clock that stands at the moment of the snapshot."""
        return ManualClock(self.created_at)


Made = tuple[Path, Callable[[], Any]]


def _state(order: Order) -> Made:
    path = order.directory / "state.json"
    snapshot = StateSnapshot(
        created_at=int(order.created_at.timestamp()),
        metadata=SnapshotMetadata(description=f"made with seed {order.seed}", source="factory"),
        components=(
            Component(component_id="tool", source_uri="oci://registry.example.org/tool:1",
                      metadata={"notes": order.text()}),
        ),
    )  # fmt: skip
    snapshot.save(path)
    return path, lambda: StateSnapshot.load(path)


def _item(make: Callable[[Order], Item]) -> Callable[[Order], Made]:
    def maker(order: Order) -> Made:
        item = make(order)
        # Not the adaptive serializer: what is large would be compressed, and no longer that large.
        options: dict[str, Any] = {
            "cipher": Cipher(_KEY) if order.encrypted else None,
            "clock": order.clock(),
            "serializer": JsonSerializer(),
        }
        with FileStore(order.directory, **options) as store:
            store.save(item)

        def load() -> Item:
            with FileStore(order.directory, **options) as store:
                return store.load(type(item), item.id)

        return order.directory / item.directory / f"{item.id}.json", load

    return maker


def _times(order: Order) -> dict[str, Any]:
    return {"id": f"made-{order.seed}", "created_at": order.created_at,
            "updated_at": order.created_at}  # fmt: skip


def _session(order: Order) -> Item:
    return Session(**_times(order), title="made by a factory", state={"notes": order.text()})


def _conversation(order: Order) -> Item:
    return Conversation(
        **_times(order),
        messages=tuple(
            Message(
                role=Role.ASSISTANT if number % 2 else Role.USER,
                content=turn,
                created_at=order.created_at + timedelta(seconds=number),
            )
            for number, turn in enumerate(_turns(order.text()))
        ),
    )


def _turns(text: str) -> list[str]:
    return [text[start : start + 400] for start in range(0, len(text), 400)]


def _focus(order: Order) -> Item:
    words = order.text().split() or ["nothing"]
    return FocusChain(
        **_times(order), name="made", items=tuple(FocusItem(text=word) for word in words)
    )


def _database(order: Order) -> Made:
    path = order.directory / "app.db"
    with Database(path, clock=order.clock()) as database:
        made = database.add_snapshot(
            {"notes": order.text()},
            kind=Taken.MANUAL,
            trigger={"by": "factory"},
            summary={"seed": order.seed},
        )

    def load() -> Any:
        with Database(path, clock=order.clock()) as database:
            database.check()
            return database.snapshot(made.id)

    return path, load


def _vault(order: Order) -> Made:
    directory = order.directory / "vault"
    cost = Pbkdf2Cost(iterations=1000)
    with Vault(directory, password=_PASSWORD, cost=cost, clock=order.clock()) as vault:
        vault.store("note", order.text(), tags=["made"])
    (path,) = (p for p in directory.glob("*.vault") if p.name != INDEX)

    def load() -> Any:
        with Vault(directory, password=_PASSWORD, clock=order.clock()) as vault:
            return vault.retrieve("note"), vault.list()[0].created_at

    return path, load


def _envelope(order: Order) -> Made:
    path, key = order.directory / "sealed.mlss", EnvelopeKey(_KEY)
    bound = {"purpose": Purpose.EXPORT, "context": b"factory"}
    write_atomic(path, key.seal(order.data(), **bound))  # type: ignore[arg-type]
    return path, lambda: key.open(read_bounded(path, 1 << 40), **bound)  # type: ignore[arg-type]


def _group(order: Order) -> Made:
    directory = order.directory / "groups"

    def opened(**known: Any) -> SnapshotStore:
        return SnapshotStore(directory, key=EnvelopeKey(_KEY), clock=order.clock(), **known)

    with opened() as store:
        state = GroupState(group_id=_GROUP, epoch=order.seed % 1000, ratchet_tree=order.data(),
                           group_context=b"factory", members=())  # fmt: skip
        store.write(GROUP_STATE, _GROUP, state)
        commit = store.commit_number

    def load() -> Any:
        with opened(known_commit=commit) as store:
            return store.read(GROUP_STATE, _GROUP), store.history(_GROUP)[0].saved_at

    return directory / snapshot_name(_GROUP, commit), load


def _log(order: Order, compacted: bool) -> Made:
    def opened(**known: Any) -> EventLog:
        return EventLog(
            order.directory, key=EnvelopeKey(_KEY) if order.encrypted else None, **known
        )

    data = order.data()
    step = max(1, -(-len(data) // _BATCH))
    with opened() as log:
        for start in range(0, max(1, len(data)), step):
            log.append(data[start : start + step])
        if compacted:
            log.compact(data)
        last = log.last_sequence

    def load() -> Any:
        # The number is known, so that a record which is gone cannot pass for one never written.
        with opened(at_least=last) as log:
            found = log.recovered
        state = found.snapshot.state if found.snapshot else None
        return state, tuple(record.data for record in found.records)

    name = f"snapshots/snapshot_{last}.dat" if compacted else "commit_log/000001.log"
    return order.directory / name, load


def _storage(order: Order) -> Made:
    path = order.directory / "storage"
    LocalStorage(path).set("notes", order.text())

    def load() -> Any:
        storage = LocalStorage(path)
        if storage.damage.lines or "notes" not in storage:
            raise DamagedData(f"{path}: {storage.damage}")  # `get` would give a default
        return storage.get("notes")

    return path, load


def _chat(order: Order) -> Made:
    directory, name = order.directory / "conversations", f"made-{order.seed}"

    def opened() -> Conversations:
        return Conversations(JsonConversations(directory), clock=order.clock())

    with opened() as store:
        session = store.create_session("made by a factory", session_id=name)
        for turn in _turns(order.text()):
            session.send(turn)
        session.save()

    def load() -> Any:
        with opened() as store:
            found = store.load_session(name)
            return found.info.created_at, tuple(message.content for message in found.messages)

    return directory / f"{name}.json", load


def _backup(order: Order) -> Made:
    item, stores = _session(order), itertools.count()

    def opened() -> FileStore:
        return FileStore(
            order.directory / f"store-{next(stores)}", serializer=JsonSerializer(),
            cipher=Cipher(_KEY) if order.encrypted else None, clock=order.clock(),
        )  # fmt: skip

    place = order.directory / "backup"
    with opened() as store:
        store.save(item)
        store.backup(place)

    def load() -> Item:
        with opened() as store:
            store.restore(place)
            return store.load(type(item), item.id)

    return place / "files" / item.directory / f"{item.id}.json", load


def _packed_backup(order: Order) -> Made:
    item, path = _session(order), order.directory / "packed"
    options: dict[str, Any] = {"cipher": Cipher(_KEY), "clock": order.clock()}
    with FileStore(order.directory / "store", **options) as store:
        store.save(item)
        write_atomic(path, pack_backup(store.backup_content()))

    def load() -> Item:
        with FileStore(order.directory / "restored", **options) as store:
            store.restore_content(unpack_backup(read_bounded(path, 1 << 40)))
            return store.load(type(item), item.id)

    return path, load


def _export(order: Order) -> Made:
    key, path, roots = EnvelopeKey(_KEY), order.directory / "exported", itertools.count()
    options: dict[str, Any] = {"key": key, "transport": MemoryTransport(), "clock": order.clock()}
    home = order.directory / "home"
    Messenger.init(home, "Made", key=key, clock=order.clock())
    with Messenger(home, **options) as messenger:
        channel = messenger.create_channel("made by a factory").channel_id
        for turn in _turns(order.text()):
            messenger.send(channel, turn)
        export_state(messenger, path, key=key, clock=order.clock())

    def load() -> Any:
        root = order.directory / f"imported-{next(roots)}"
        import_state(root, path, export_key=key, key=key, clock=order.clock())
        with Messenger(root, **options) as messenger:
            said = messenger.history(channel)
            return tuple((message.sent_at, message.text) for message in said)

    return path, load


MAKERS: dict[SnapshotKind, Callable[[Order], Made]] = {
    SnapshotKind.STATE: _state,
    SnapshotKind.SESSION: _item(_session),
    SnapshotKind.CONVERSATION: _item(_conversation),
    SnapshotKind.FOCUS: _item(_focus),
    SnapshotKind.DATABASE: _database,
    SnapshotKind.VAULT: _vault,
    SnapshotKind.ENVELOPE: _envelope,
    SnapshotKind.GROUP: _group,
    SnapshotKind.LOG_SEGMENT: lambda order: _log(order, compacted=False),
    SnapshotKind.LOG_SNAPSHOT: lambda order: _log(order, compacted=True),
    SnapshotKind.STORAGE: _storage,
    SnapshotKind.CHAT: _chat,
    SnapshotKind.BACKUP: _backup,
    SnapshotKind.PACKED_BACKUP: _packed_backup,
    SnapshotKind.EXPORT: _export,
}
