"""Whatever is saved can be loaded: each store refuses what it would refuse to read.

And what is too large for one opening of a store is no damage: with a larger limit it is there.
"""

from __future__ import annotations

import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.reference import (
    conversation_json,
    group_backup,
    invites,
    local_storage,
    log_files,
    messenger,
    snapshot_store,
    transport,
    vault,
)
from pytest_statepersist.reference.cipher import Cipher
from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.component_registry import DirectoryRegistry
from pytest_statepersist.reference.conversation_json import JsonConversations
from pytest_statepersist.reference.conversations import Conversations
from pytest_statepersist.reference.envelope import EnvelopeKey
from pytest_statepersist.reference.errors import (
    TooLarge,
    ValidationError,
)
from pytest_statepersist.reference.event_log import EventLog
from pytest_statepersist.reference.group_backup import export_state
from pytest_statepersist.reference.invites import InviteBook, InviteOrigin
from pytest_statepersist.reference.items import Session
from pytest_statepersist.reference.local_storage import _Content
from pytest_statepersist.reference.messenger import Messenger
from pytest_statepersist.reference.serializers import (
    GzipJsonSerializer,
    JsonSerializer,
    Serializer,
)
from pytest_statepersist.reference.slots import CLIENT, PRE_SHARED_KEYS, PreSharedKey
from pytest_statepersist.reference.snapshot_store import SnapshotStore
from pytest_statepersist.reference.transport import DirectoryTransport, MemoryTransport, Transport
from pytest_statepersist.reference.vault import Vault
from tests.reference.durable_cases_de import TINY
from tests.reference.kill_points import tree, without_syncing
from tests.reference.snapshot_helpers import record
from tests.reference.store_helpers import NOON, open_store, session
from tests.reference.test_invites import invite

KEY = EnvelopeKey(bytes(32))
BIG = "x" * 3000


@pytest.fixture(autouse=True)
def _no_power_loss() -> Any:
    with without_syncing():
        yield


@pytest.mark.parametrize("serializer", [JsonSerializer(), GzipJsonSerializer()], ids=["json", "gz"])
@pytest.mark.parametrize("cipher", [None, Cipher(b"k" * 32)], ids=["plain", "encrypted"])
def test_a_file_store_saves_nothing_that_it_cannot_load(
    ram_path: Path, serializer: Serializer, cipher: Cipher | None
) -> None:
    store = open_store(ram_path, limit=2000, serializer=serializer, cipher=cipher)
    store.save(session("a", "fits"))
    before = tree(ram_path)
    with pytest.raises(ValidationError, match="2000"):
        store.save(session("a", BIG))
    assert tree(ram_path) == before
    assert store.load(Session, "a") == session("a", "fits")


def test_a_file_beyond_the_limit_is_reported_left_alone_and_not_overwritten(ram_path: Path) -> None:
    root = ram_path / "store"
    open_store(root).save(session("a", BIG))
    open_store(root).save(session("b"))
    before = tree(root)
    small = open_store(root, limit=2000)
    report = small.load_all()
    assert [item.id for item in report.sessions] == ["b"]
    (failure,) = report.failed
    assert isinstance(failure.error, TooLarge)
    assert failure.quarantined is None
    for action in (
        lambda: small.load(Session, "a"),
        lambda: small.save(session("a", "short")),
        lambda: small.backup(ram_path / "backup"),
    ):
        with pytest.raises(TooLarge):
            action()
    assert {n: d for n, d in tree(root).items() if not n.endswith(".lock")} == {
        n: d for n, d in before.items() if not n.endswith(".lock")
    }
    assert open_store(root).load(Session, "a") == session("a", BIG)


def test_a_registry_takes_no_part_that_it_cannot_return(ram_path: Path) -> None:
    registry = DirectoryRegistry(ram_path, limit=1000)
    registry.register(record("a"))
    for bad in (
        record("a", binary=b"x" * 1001),
        record("a", metadata={"note": BIG}),
        record("a", secrets={"key": BIG}),
    ):
        with pytest.raises(ValidationError, match="1000"):
            registry.apply([record("b"), bad])
        assert registry.ids() == ("a",)
        assert registry.get("a").binary == record("a").binary


def test_a_local_storage_reads_whatever_fits_its_quota() -> None:
    """A short entry takes several times in the file what counts against the quota."""
    entries = {f"s.{letter}": "1" for letter in string.ascii_letters}
    counted, stored = local_storage._size(entries), len(local_storage._encode(_Content(entries)))
    assert 4 * counted < stored < 16 * counted


def chats(root: Path) -> Conversations:
    return Conversations(JsonConversations(root / "c"), clock=ManualClock(NOON))


def save_session(root: Path, text: str) -> None:
    with chats(root) as opened:
        made = opened.create_session(text, session_id=f"s{len(text)}")
        made.save()


def save_entry(root: Path, text: str) -> None:
    Vault(root / "v", password="x", cost=TINY).store("key", text)


def save_slot(root: Path, text: str) -> None:
    with SnapshotStore(root / "g", key=KEY) as store:
        secret = PreSharedKey(secret=text.encode())
        store.write(PRE_SHARED_KEYS, CLIENT, secret, key="p")


def save_state(root: Path, text: str) -> None:
    with EventLog(root) as log:
        log.append(b"one")
        log.compact(text.encode())


def save_invite(root: Path, text: str) -> None:
    for _ in range(1 + len(text) // 300):
        InviteBook(root / "i", key=KEY).save(invite(), InviteOrigin.ISSUED, NOON)


def save_frame(root: Path, text: str) -> None:
    DirectoryTransport(root / "t").publish(b"g", text.encode())


def look(root: Path) -> object:
    """Everything that the above may have saved, as a new process finds it."""
    with chats(root) as opened, SnapshotStore(root / "g", key=KEY) as store, EventLog(root) as log:
        return (
            [info.title for info in opened.list_sessions()],
            [each.key for each in Vault(root / "v", password="x", cost=TINY).list()],
            store.keys(PRE_SHARED_KEYS, CLIENT),
            log.recovered,
            len(InviteBook(root / "i", key=KEY).list()) > 1,
            DirectoryTransport(root / "t").fetch(b"g", 0),
        )


BOUNDS: dict[str, tuple[Any, str, Callable[[Path, str], object]]] = {
    "conversations": (conversation_json, "_LARGEST_FILE", save_session),
    "vault": (vault, "_LARGEST_FILE", save_entry),
    "slots": (snapshot_store, "_LARGEST_SNAPSHOT", save_slot),
    "log snapshot": (log_files, "_LARGEST_FILE", save_state),
    "invitations": (invites, "_LARGEST", save_invite),
    "transport": (transport, "LARGEST_FRAME", save_frame),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_what_could_not_be_read_back_is_refused_and_costs_nothing(
    name: str, ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, bound, save = BOUNDS[name]
    save(ram_path, "small")
    before = look(ram_path)
    monkeypatch.setattr(module, bound, 2500)
    with pytest.raises(ValidationError, match="2500"):
        save(ram_path, BIG)
    after = look(ram_path)
    if name == "invitations":  # those that still fitted are there
        assert after[:4] == before[:4]  # type: ignore[index]
    elif name != "log snapshot":  # its record was appended before
        assert after == before


@pytest.mark.parametrize("size", [0, -1, 1 << 30])
def test_a_segment_that_could_not_be_read_is_refused(ram_path: Path, size: int) -> None:
    with pytest.raises(ValidationError, match="segment_size"):
        EventLog(ram_path, segment_size=size)
    assert os.listdir(ram_path) == []


# ---- messenger ------------------------------------------------------------------------


def open_messenger(root: Path, name: str, network: Transport) -> Messenger:
    if not (root / name).exists():
        Messenger.init(root / name, name, key=KEY)
    return Messenger(root / name, key=KEY, transport=network)


def test_a_message_that_no_frame_can_hold_is_refused_before_it_is_saved(
    ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would wait for its delivery for ever, and everything after it."""
    monkeypatch.setattr(transport, "LARGEST_FRAME", 4000)
    monkeypatch.setattr(messenger, "LARGEST_UPDATE", 2000)
    with open_messenger(ram_path, "alice", MemoryTransport()) as alice:
        channel = alice.create_channel("general").channel_id
        with pytest.raises(ValidationError, match="2000"):
            alice.send(channel, BIG)
        with pytest.raises(ValidationError, match="2000"):
            alice.set_topic(channel, BIG)
        alice.send(channel, "short")
        assert [message.text for message in alice.history(channel)] == ["short"]
        alice.sync(channel)
        assert alice.undelivered(channel) == 0


def test_whatever_was_missed_is_taken_in_portions(
    ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log takes 64 MiB at once; who was away may have missed more than that."""
    network = MemoryTransport()
    with open_messenger(ram_path, "alice", network) as alice:
        channel = alice.create_channel("general").channel_id
        code = alice.invite(channel)
        with open_messenger(ram_path, "bob", network) as bob:
            bob.join(code)
        for number in range(6):
            alice.send(channel, f"{number}" * 1000)
    monkeypatch.setattr(messenger, "LARGEST_BODY", 4000)  # a portion is half of it
    with open_messenger(ram_path, "bob", network) as bob:
        before = bob._log.last_sequence
        assert bob.sync(channel).received == 6
        assert bob._log.last_sequence == before + 6
        assert len(bob.history(channel)) == 6


def test_an_export_that_could_not_be_imported_is_refused(
    ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_backup, "_LARGEST", 500)
    with (
        open_messenger(ram_path, "alice", MemoryTransport()) as alice,
        pytest.raises(ValidationError, match="500"),
    ):
        export_state(alice, ram_path / "export", key=KEY)
    assert not (ram_path / "export").exists()
