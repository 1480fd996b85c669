"""Bad input of every kind gets an error of the one tree, and loses nothing.

Two ways: paths that cannot be, at every place that takes one; and documents of every kind that
are read, with one value in them replaced by something nasty and every checksum that is no
secret made right again, as an attacker or a buggy sibling program would. What a document then
gives is a value or a `PersistenceError`, and a value that came out can be used.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.reference import cbor
from pytest_statepersist.reference.atomic import (
    fsync_directory,
    make_directory,
    read_bounded,
    remove_durably,
    remove_temporaries,
    write_atomic,
)
from pytest_statepersist.reference.cipher import Cipher
from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.component_registry import DirectoryRegistry
from pytest_statepersist.reference.conversation_export import parse_records, parse_session
from pytest_statepersist.reference.conversation_json import JsonConversations
from pytest_statepersist.reference.conversation_records import SessionRecord
from pytest_statepersist.reference.conversation_sqlite import SqliteConversations
from pytest_statepersist.reference.conversations import Conversations
from pytest_statepersist.reference.database import Database
from pytest_statepersist.reference.envelope import EnvelopeKey
from pytest_statepersist.reference.errors import PersistenceError
from pytest_statepersist.reference.event_log import EventLog
from pytest_statepersist.reference.file_store import FileStore
from pytest_statepersist.reference.group_backup import export_state, import_state
from pytest_statepersist.reference.identity import load_identity, parse_identity, save_identity
from pytest_statepersist.reference.invites import Invite, InviteBook
from pytest_statepersist.reference.local_storage import LocalStorage
from pytest_statepersist.reference.log_inspection import inspect_log
from pytest_statepersist.reference.messenger import Messenger
from pytest_statepersist.reference.recovery import StateRecovery
from pytest_statepersist.reference.replica import ChannelDocument, Message, Replica, Update
from pytest_statepersist.reference.serializers import JsonSerializer
from pytest_statepersist.reference.snapshot_diff import diff
from pytest_statepersist.reference.snapshot_merge import merge
from pytest_statepersist.reference.snapshot_store import SnapshotStore
from pytest_statepersist.reference.state_snapshot import StateSnapshot
from pytest_statepersist.reference.storage_keys import CRASH_RECORD, KEYS
from pytest_statepersist.reference.store_backup import make_content, unseal_manifest, verified
from pytest_statepersist.reference.store_codec import ItemCodec
from pytest_statepersist.reference.store_schedule import BackupSchedule
from pytest_statepersist.reference.store_schema import SCHEMA
from pytest_statepersist.reference.transaction import recover
from pytest_statepersist.reference.transport import DirectoryTransport, MemoryTransport
from pytest_statepersist.reference.vault import Vault
from pytest_statepersist.reference.vault_keys import VaultHeader
from tests.reference.durable_cases_de import TINY, live_state
from tests.reference.durable_cases_f import IDENTITIES
from tests.reference.snapshot_helpers import snapshot
from tests.reference.store_helpers import NOON, chain, conversation, open_store, session
from tests.reference.test_invites import SAMPLE

RAW = EnvelopeKey(bytes(32))

# ---- paths that cannot be -------------------------------------------------------------

OPENERS: dict[str, Callable[[str], object]] = {
    "write_atomic": lambda p: write_atomic(p, b""),
    "read_bounded": lambda p: read_bounded(p, 10),
    "make_directory": make_directory,
    "remove_durably": remove_durably,
    "remove_temporaries": remove_temporaries,
    "fsync_directory": fsync_directory,
    "recover": recover,
    "FileStore": FileStore,
    "BackupSchedule": lambda p: BackupSchedule(open_store(Path("store")), p),
    "FileStore.backup": lambda p: open_store(Path("store")).backup(p),
    "FileStore.restore": lambda p: open_store(Path("store")).restore(p),
    "DirectoryRegistry": DirectoryRegistry,
    "StateSnapshot.save": lambda p: snapshot().save(p),
    "StateSnapshot.load": StateSnapshot.load,
    "LocalStorage": LocalStorage,
    "Database": Database,
    "JsonConversations": JsonConversations,
    "SqliteConversations": SqliteConversations,
    "Vault": lambda p: Vault(p, password="x", cost=TINY),
    "SnapshotStore": lambda p: SnapshotStore(p, key=RAW),
    "EventLog": EventLog,
    "inspect_log": inspect_log,
    "InviteBook": lambda p: InviteBook(p, key=RAW),
    "save_identity": lambda p: save_identity(p, IDENTITIES["Alice"]),
    "load_identity": load_identity,
    "DirectoryTransport": lambda p: DirectoryTransport(p).publish(b"g", b"frame"),
    "Messenger.init": lambda p: Messenger.init(p, "Alice", key=RAW),
    "Messenger": lambda p: Messenger(p, key=RAW, transport=MemoryTransport()),
    "import_state-root": lambda p: import_state(p, exported(), export_key=RAW, key=RAW),
    "import_state": lambda p: import_state("new", p, export_key=RAW, key=RAW),
}


def exported() -> str:
    Messenger.init("own", "Alice", key=RAW)
    with Messenger("own", key=RAW, transport=MemoryTransport()) as messenger:
        export_state(messenger, "export", key=RAW)
    return "export"


@pytest.mark.parametrize("name", OPENERS)
@pytest.mark.parametrize(
    "path",
    ["", "a\0b", "a\ud800b", "file/below", "loop/below", "x" * 300],
    ids=["empty", "NUL", "surrogate", "below a file", "below a circle of links", "too long"],
)
def test_a_path_that_cannot_be_is_an_error_of_the_tree(
    name: str, path: str, ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ram_path)
    (ram_path / "file").write_bytes(b"not a directory")
    (ram_path / "loop").symlink_to("loop")
    with pytest.raises(PersistenceError):
        OPENERS[name](path)
    assert (ram_path / "file").read_bytes() == b"not a directory"


def test_secrets_that_no_text_can_be_are_refused(tmp_path: Path) -> None:
    for use in (
        lambda: EnvelopeKey.from_password("\ud800"),
        lambda: EnvelopeKey.from_password(""),
        lambda: EnvelopeKey(b"short"),
        lambda: Cipher.from_passphrase("\ud800"),
        lambda: Cipher.from_passphrase(""),
        lambda: Cipher(b"short"),
        lambda: Vault(tmp_path, password="\ud800", cost=TINY),
        lambda: Vault(tmp_path, password="", cost=TINY),
        lambda: Vault(tmp_path, key="\ud800"),
    ):
        with pytest.raises(PersistenceError):
            use()


# ---- documents with something nasty in them -------------------------------------------

NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 99, 2**31, 2**63, 2**70, -(2**70), 0.5, 1e308, "", "x", "a\0b",
    "é" * 300, "..", "../x", "/etc", "CON", "0" * 64, "f" * 32, "=" * 8,
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2025-03-01T12:00:00",
    "2025-03-01T12:00:00Z", [], {}, [[]], {"": {}}, {"x": [None]}, [1, "a", None], b"", b"\0" * 40,
)  # fmt: skip


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value in a document, the document itself first."""
    yield path
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield from places(inner, (*path, key))


REMOVED = object()


def replaced(document: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of a document with one value replaced, or taken out."""
    if not path:
        return document if new is REMOVED else new
    copied = copy.deepcopy(document)
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    if new is REMOVED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return copied


def sha(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"),
                                     ensure_ascii=False).encode()).hexdigest()  # fmt: skip


def with_dict(value: Any, change: Callable[[dict[str, Any]], None]) -> Any:
    if isinstance(value, dict):
        change(value)
    return value


@dataclass(frozen=True)
class Kind:
    """A document and what reads it; whether it may hold bytes, and whether damage is an error.

    A cache or a crash record that cannot be read is passed over, whatever is in it.
    """

    make: Callable[[], Any]
    read: Callable[[Any, Path], object]
    binary: bool = False
    refused: bool = True



def read_snapshot(document: Any, directory: Path) -> object:
    found = StateSnapshot.from_json(json.dumps(document), verify=False)
    assert StateSnapshot.from_json(found.to_json()).to_json() == found.to_json()
    diff(found, snapshot())
    return merge(snapshot(), found, snapshot("fetch")).snapshot.to_json()


def snapshot_document() -> Any:
    document = json.loads(snapshot().to_json())
    del document["sha256"]
    return document


def item_envelope(item: Any) -> Any:
    return json.loads(ItemCodec(JsonSerializer(), SCHEMA).encode(item).data)


def read_item(model: str) -> Callable[[Any, Path], object]:
    def read(document: Any, directory: Path) -> object:
        def reseal(envelope: dict[str, Any]) -> None:
            parts = [envelope.get(name) for name in ("kind", "version", "data")]
            envelope["sha256"] = sha(parts)

        store = open_store(directory)
        document = with_dict(document, reseal)
        name = store.root / model / "x1.json"
        name.write_bytes(json.dumps(document, ensure_ascii=False).encode())
        report = store.load_all()
        found = (*report.sessions, *report.conversations, *report.focus_chains)
        assert len(found) + len(report.failed) == 1
        if report.failed and report.failed[0].quarantined is not None:
            assert report.failed[0].quarantined.exists()
        if report.failed:
            raise report.failed[0].error
        for item in found:
            store.save(item.model_copy(update={"id": "copy"}))
            store.load(type(item), "copy")
        return store.migrate()

    return read


def read_old_item(kind: str) -> Callable[[Any, Path], object]:
    read = read_item(kind)

    def wrapped(document: Any, directory: Path) -> object:
        return read({"kind": kind, "version": 1, "sha256": "", "data": document}, directory)

    return wrapped


def read_manifest(document: Any, directory: Path) -> object:
    sealed = {"manifest": document, "sha256": sha(document)}
    manifest, _ = unseal_manifest(sealed)
    backup = directory / "backup"
    (backup / "files/sessions").mkdir(parents=True)
    (backup / "manifest.json").write_text(json.dumps(sealed))
    (backup / "files/sessions/a.json").write_bytes(b"{}")
    store = open_store(directory / "store")
    for place, entry in manifest.files.items():
        try:
            verified(place, b"{}", entry)
        except PersistenceError:
            pass
    return store.restore(backup)


def manifest_document() -> Any:
    files = {"sessions/a.json": b"{}"}
    made = make_content(files, created_at=NOON, schema_version=2).manifest
    return made.model_dump(mode="json")


@cache
def conversation_record() -> SessionRecord:
    with Conversations(_Kept(), clock=ManualClock(NOON)) as chats:
        made = chats.create_session("t", session_id="x1", max_context_messages=3)
        made.send("hello")
        made.send("there", role="assistant")
        made.save()
        made.send("again")
        made.save()
        return chats.storage.load("x1")


class _Kept(JsonConversations):
    """A store whose one record is taken out before its directory goes."""

    def __init__(self) -> None:
        import tempfile

        self._home = tempfile.TemporaryDirectory()
        super().__init__(Path(self._home.name) / "c")

    def close(self) -> None:
        self._home.cleanup()


def resealed(document: Any) -> Any:
    """Make the revision id right, where the content is of a shape that has one."""
    try:
        plain = {k: v for k, v in document.items() if k not in ("format", "version")}
        plain.pop("messageCount", None)
        record = SessionRecord.parse(plain)
        document["revisionId"] = record.sealed().revision_id
    except (PersistenceError, AttributeError):
        pass
    return document


def use_record(record: SessionRecord, directory: Path) -> None:
    """A record that was accepted must be good for everything: both backends, exports, sync."""
    with (
        Conversations(JsonConversations(directory / "j"), clock=ManualClock(NOON)) as one,
        Conversations(SqliteConversations(directory / "s"), clock=ManualClock(NOON)) as other,
    ):
        try:
            got = one.import_session(record.to_json())
        except PersistenceError:
            return
        for form in ("json", "markdown", "txt"):
            got.export(form)
        got.context()
        got.send("more")
        got.save()
        one.sync_with(other)
        again = other.load_session(got.id)
        assert again.messages == got.messages
        assert [info.id for info in other.list_sessions()] == [got.id]
        one.clean_up(timedelta(days=1))


def read_conversation(document: Any, directory: Path) -> object:
    record = parse_session(json.dumps(resealed(document), ensure_ascii=False))
    use_record(record, directory)
    return record


def read_conversations(document: Any, directory: Path) -> object:
    if isinstance(document, dict) and isinstance(document.get("sessions"), list):
        document["sessions"] = [resealed(each) for each in document["sessions"]]
    records = parse_records(json.dumps(document, ensure_ascii=False))
    for record in records:
        use_record(record, directory)
    return records


def read_local(document: Any, directory: Path) -> object:
    """Lines with a right checksum: what a sibling program may have written."""
    if not isinstance(document, list):
        return None
    header, *rows = document or [{}]
    lines = [json.dumps(header)]
    for row in rows:
        body = json.dumps(row, ensure_ascii=False)
        lines.append(f"{zlib.crc32(body.encode()):08x} {body}")
    (directory / "local").write_text("\n".join(lines) + "\n")
    storage = LocalStorage(directory / "local")
    for key in KEYS.values():
        storage.get(key)
    storage.set("theme", "dark")
    copy_of = LocalStorage(directory / "copy")
    copy_of.import_all(storage.export_all())
    with Database(directory / "db", clock=ManualClock(NOON)) as database:
        StateRecovery(storage, database, clock=ManualClock(NOON)).pending()
    return copy_of.names()


def local_document() -> Any:
    values = {
        "settings": {"version": 1, "defaultModel": "m", "notifications": {"enabled": True}},
        "theme": "dark",
        "ui": {"sidebarCollapsed": True, "lastView": "x", "panelSizes": {"a": 1.5}},
        "ui.lastView": "y",
        "recent.searches": ["a"],
        "auth.token": "t",
        "tour.completed": True,
    }
    header = {"format": "local-storage", "version": 1, "entries": len(values)}
    return [header, *([f"sidepanel.{name}", value] for name, value in values.items())]


def crash_document() -> Any:
    state = live_state("one", "two").model_dump(mode="json", by_alias=True)
    return {"timestamp": "2025-03-01T11:59:00.000000Z", "state": state}


def read_crash_record(document: Any, directory: Path) -> object:
    storage = LocalStorage(directory / "local")
    storage.set(CRASH_RECORD, document)
    with Database(directory / "db", clock=ManualClock(NOON)) as database:
        recovery = StateRecovery(storage, database, clock=ManualClock(NOON))
        offer = recovery.pending()
        if offer is not None:
            recovery.restore(offer)
        return database.check()


def read_invite(document: Any, directory: Path) -> object:
    body = cbor.encode(document)
    word = base64.urlsafe_b64encode(body + hashlib.sha256(body).digest()[:8]).decode().rstrip("=")
    invite = Invite.decode("SPI1." + word)
    guest = invite.guest()
    Messenger.init(directory / "home", "Bob", key=RAW)
    with Messenger(directory / "home", key=RAW, transport=MemoryTransport()) as messenger:
        try:
            messenger.join("SPI1." + word)
        except PersistenceError:
            pass
        messenger.channels()
        messenger.invites.list()
    return guest


def invite_document() -> Any:
    word = SAMPLE.encode().removeprefix("SPI1.")
    raw = base64.urlsafe_b64decode(word + "=" * (-len(word) % 4))
    return cbor.decode(raw[:-8])


def update_document() -> Any:
    replica = Replica("me")
    said = replica.add_message(Message("m1", "me", "Me", NOON, "hello"))
    made = (*said, replica.set_meta("topic", "x"), replica.channel("c").present.removal("m1"))
    return cbor.decode(Update("u1", made).encode())


def read_update(document: Any, directory: Path) -> object:
    """What another member sent: genuine, signed, and nasty."""
    update = Update.decode(cbor.encode(document))
    update.check_author("me")
    channel = ChannelDocument()
    channel.apply(update)
    channel.messages()
    replica = Replica("other")
    replica.apply(replica.event("c", update))
    loaded = Replica.load("other", replica.dump())
    return loaded.channel("c").messages()


def read_identity(document: Any, directory: Path) -> object:
    return parse_identity(json.dumps(document).encode())


def read_header(document: Any, directory: Path) -> object:
    def reseal(body: dict[str, Any]) -> None:
        body.pop("checksum", None)
        body["checksum"] = sha(body)

    raw = json.dumps(with_dict(document, reseal)).encode()
    kdf = document.get("kdf") if isinstance(document, dict) else None
    header = VaultHeader.from_bytes(raw, "here")
    if isinstance(kdf, dict) and kdf.get("memoryKib") == 8 and kdf.get("iterations") == 1:
        header.unlock("pass", "here")  # others only cost time
    return header


def header_document() -> Any:
    made = VaultHeader.create("f" * 32, bytes(32), "pass", TINY)
    return json.loads(made.to_bytes())


def read_journal(document: Any, directory: Path) -> object:
    body = json.dumps(document).encode()
    (directory / ".journal").write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    (directory / "kept").write_bytes(b"kept")
    try:
        return recover(directory)
    finally:
        assert (directory / "kept").read_bytes() == b"kept"


def journal_document() -> Any:
    name = ".a.0123456789abcdef.tmp~"
    return {"version": 1, "put": [[name, "a", "0" * 64]], "delete": ["b"]}


def read_index(document: Any, directory: Path) -> object:
    """The index of a JSON directory is a cache: whatever is in it, the list is right."""
    store = JsonConversations(directory / "c")
    with Conversations(store, clock=ManualClock(NOON)) as chats:
        chats.create_session("t", session_id="x1").save()
        expected = chats.list_sessions()
        body = json.dumps(document).encode()
        raw = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        (directory / "c/index.json").write_bytes(raw)
        assert chats.list_sessions() == expected
        chats.delete_session("x1")
        assert chats.list_sessions() == ()
    return None


def index_document() -> Any:
    info = conversation_record().info(10).model_dump(mode="json", by_alias=True)
    return {"x2.json": [[10, 1, 1], info, ""]}


KINDS: dict[str, Kind] = {
    "state snapshot": Kind(snapshot_document, read_snapshot),
    "session": Kind(lambda: item_envelope(session("x1")), read_item("sessions")),
    "conversation of the file store": Kind(
        lambda: item_envelope(conversation("x1")), read_item("conversations"),
    ),
    "focus chain": Kind(lambda: item_envelope(chain("x1")), read_item("focus")),
    "conversation of version 1": Kind(
        lambda: {
            "id": "x1", "created_at": "2025-03-01T12:00:00Z", "updated_at": "2025-03-01T12:00:00Z",
            "messages": [{"role": "user", "text": "hi", "time": 1740830400}],
        },
        read_old_item("conversations"),
    ),
    "focus chain of version 1": Kind(
        lambda: {
            "id": "x1", "created_at": "2025-03-01T12:00:00Z", "updated_at": "2025-03-01T12:00:00Z",
            "items": ["look"], "finished": [0],
        },
        read_old_item("focus"),
    ),
    "manifest": Kind(manifest_document, read_manifest),
    "conversation": Kind(lambda: json.loads(conversation_record().to_json()), read_conversation),
    "conversations": Kind(
        lambda: {
            "format": "conversations", "version": 1,
            "sessions": [json.loads(conversation_record().to_json())],
        },
        read_conversations,
    ),
    "index of conversations": Kind(index_document, read_index, refused=False),
    "local storage": Kind(local_document, read_local),
    "crash record": Kind(crash_document, read_crash_record, refused=False),
    "invite code": Kind(invite_document, read_invite, binary=True),
    "update of another member": Kind(update_document, read_update, binary=True),
    "identity": Kind(lambda: json.loads(IDENTITIES["Alice"].encode()), read_identity),
    "vault header": Kind(header_document, read_header),
    "journal": Kind(journal_document, read_journal),
}  # fmt: skip


UNFINDABLE = ("manifest", "journal")
"""Kinds that name files, which are not there."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_document_is_read(kind: str, ram_path: Path) -> None:
    """Or else the next test would show nothing."""
    make, read = KINDS[kind].make, KINDS[kind].read
    if kind in UNFINDABLE:
        with pytest.raises(PersistenceError, match=r"is gone|is no item"):
            read(make(), ram_path)
    else:
        read(make(), ram_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_with_something_nasty_in_it(kind: str, ram_path: Path) -> None:
    make, read = KINDS[kind].make, KINDS[kind].read
    document = make()
    everywhere = list(places(document))
    refused = 0
    chosen = list(nasty_ones(everywhere, binary=KINDS[kind].binary))
    for number, (path, new) in enumerate(chosen):
        here = ram_path / str(number)
        here.mkdir()
        try:
            read(replaced(document, path, new), here)
        except PersistenceError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{kind}: {path} = {new!r}: {error!r}") from error
        shutil.rmtree(here)
    assert not KINDS[kind].refused or refused > len(chosen) / 10, (refused, len(chosen))


def nasty_ones(
    everywhere: list[tuple[Any, ...]], *, binary: bool
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each place with some of the values; in the soak profile with all of them."""
    values = (*(new for new in NASTY if binary or not isinstance(new, bytes)), REMOVED)
    for number, path in enumerate(everywhere):
        each = values if SOAK else values[number % STRIDE :: STRIDE]
        yield from ((path, new) for new in each)


SOAK = os.environ.get("STATEPERSIST_PROFILE") == "soak"
STRIDE = 12
