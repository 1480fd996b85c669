"""Slots in snapshots: typed, committed together, never an older one for a newer."""

from __future__ import annotations

import errno
import shutil
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import BaseModel

from pytest_statepersist.reference.cipher import KdfCost
from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.envelope import EnvelopeKey
from pytest_statepersist.reference.errors import (
    ConflictError,
    DamagedData,
    IntegrityError,
    InvalidId,
    LockTimeout,
    NotFound,
    PersistenceError,
    RolledBack,
    StorageError,
    ValidationError,
    WrongPassword,
)
from pytest_statepersist.reference.log_mark import LogMark
from pytest_statepersist.reference.slots import (
    CLIENT,
    EPOCH_SECRETS,
    GROUP_STATE,
    KEY_PACKAGES,
    MESSAGE_COUNTERS,
    OWN_LEAF,
    PENDING_COMMITS,
    PENDING_PROPOSALS,
    PRE_SHARED_KEYS,
    SIGNATURE_KEYS,
    SLOTS,
    Changes,
    EpochSecrets,
    GroupState,
    InviteKey,
    KeyPackage,
    Member,
    MessageCounters,
    OwnLeaf,
    PendingCommit,
    PendingProposal,
    PreSharedKey,
    Scope,
    SignatureKey,
    Slot,
)
from pytest_statepersist.reference.snapshot_index import parse_snapshot_name, snapshot_name
from pytest_statepersist.reference.snapshot_store import INDEX_NAME, SnapshotStore, render_store
from tests.reference.fault_points import failing
from tests.reference.kill_points import each_kill_point, tree

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
GROUP, OTHER = b"g" * 16, b"o" * 16
SECRET = b"canary: the epoch secret, 32 byt"


def state(epoch: int, group: bytes = GROUP) -> GroupState:
    member = Member(
        leaf=b"leaf", user_id="u1", name="Alice", joined_at=NOON, signature_key=b"s" * 32
    )
    invite = InviteKey(invite_id="i", public_key=b"p" * 32)
    return GroupState(
        group_id=group,
        epoch=epoch,
        ratchet_tree=b"tree",
        group_context=b"context",
        members=(member,),
        invites=(invite,),
    )


def secrets(epoch: int) -> EpochSecrets:
    return EpochSecrets(epoch=epoch, secret=SECRET, earlier=(b"e" * 32,))


VALUES: dict[str, BaseModel] = {
    GROUP_STATE.name: state(3),
    EPOCH_SECRETS.name: secrets(3),
    KEY_PACKAGES.name: KeyPackage(public_key=b"p", private_key=b"q", created_at=NOON),
    SIGNATURE_KEYS.name: SignatureKey(public_key=b"p", private_key=b"q"),
    PENDING_PROPOSALS.name: PendingProposal(frame=b"f"),
    PENDING_COMMITS.name: PendingCommit(frame=b"f", state=state(4), secrets=secrets(4)),
    OWN_LEAF.name: OwnLeaf(leaf=b"leaf", private_key=b"k"),
    PRE_SHARED_KEYS.name: PreSharedKey(secret=b"s"),
    MESSAGE_COUNTERS.name: MessageCounters(incarnation=b"i", reserved=9, fetched=4),
}


def key() -> EnvelopeKey:
    return EnvelopeKey(bytes(32))


def opened(root: Path, **options: object) -> SnapshotStore:
    return SnapshotStore(root, key=key(), clock=ManualClock(NOON), **options)  # type: ignore[arg-type]


def at_epoch(epoch: int, group: bytes = GROUP) -> Changes:
    """A change of state and secrets, which belong together."""
    changes = Changes().write(GROUP_STATE, group, state(epoch, group))
    return changes.write(EPOCH_SECRETS, group, secrets(epoch))


def epoch_of(store: SnapshotStore, group: bytes = GROUP) -> int:
    found = store.read(GROUP_STATE, group).epoch
    assert store.read(EPOCH_SECRETS, group).epoch == found  # never half a change
    return found


@pytest.mark.parametrize("slot", SLOTS, ids=lambda slot: slot.name)
def test_each_slot_is_written_read_and_deleted(ram_path: Path, slot: Slot[BaseModel]) -> None:
    value = VALUES[slot.name]
    owner = CLIENT if slot.scope is Scope.CLIENT else GROUP
    with opened(ram_path) as store:
        with pytest.raises(NotFound):
            store.read(slot, owner)
        store.write(slot, owner, value)
        store.write(slot, owner, value, key="second")
    with opened(ram_path) as store:
        assert store.read(slot, owner) == value
        assert store.keys(slot, owner) == ("", "second")
        store.delete(slot, owner)
    with opened(ram_path) as store:
        assert store.keys(slot, owner) == ("second",)
        with pytest.raises(NotFound):
            store.read(slot, owner)
        with pytest.raises(NotFound):
            store.delete(slot, owner)


def test_a_slot_takes_only_its_own_model_and_owner() -> None:
    with pytest.raises(ValidationError, match="holds a GroupState"):
        Changes().write(GROUP_STATE, GROUP, PreSharedKey(secret=b"s"))  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="CLIENT"):
        Changes().write(SIGNATURE_KEYS, GROUP, SignatureKey(public_key=b"", private_key=b""))
    for bad in (b"", b"x" * 65):
        with pytest.raises(InvalidId):
            Changes().delete(GROUP_STATE, bad)
    with pytest.raises(ValidationError, match="owner"):
        Changes().delete(GROUP_STATE, "text")  # type: ignore[arg-type]


def test_a_change_makes_a_snapshot_and_old_ones_are_pruned(ram_path: Path) -> None:
    with opened(ram_path, keep=3) as store:
        for epoch in range(6):
            store.commit(at_epoch(epoch))
        assert [snapshot.epoch for snapshot in store.history(GROUP)] == [5, 4, 3]
        newest = store.history(GROUP)[0]
        assert newest.saved_at == "2025-03-01T12:00:00.000000Z"
        assert newest.slots["group_state"][""]["ratchet_tree"] == b"tree"  # type: ignore[index]
    assert len(list(ram_path.glob("group-*.snapshot"))) == 3
    with opened(ram_path, keep=1) as store:
        store.commit(at_epoch(6))
        assert store.epochs() == {GROUP: 6}
    assert [path.name for path in ram_path.glob("group-*")] == [snapshot_name(GROUP, 7)]


def test_several_groups_and_the_client_change_in_one_step(ram_path: Path) -> None:
    signature = SignatureKey(public_key=b"p", private_key=b"q")
    with opened(ram_path) as store:
        changes = at_epoch(1).write(GROUP_STATE, OTHER, state(2, OTHER))
        store.commit(changes.write(SIGNATURE_KEYS, CLIENT, signature))
    with opened(ram_path) as store:
        assert store.groups() == (GROUP, OTHER)
        assert store.read(SIGNATURE_KEYS, CLIENT) == signature
        contents, removed = store.dump()
        assert set(contents) == {CLIENT, GROUP, OTHER}
        assert removed == {}


def test_a_removed_group_stays_removed(ram_path: Path) -> None:
    with opened(ram_path) as store:
        store.commit(at_epoch(4))
    kept = {path: path.read_bytes() for path in ram_path.glob("group-*")}
    with opened(ram_path) as store:
        store.commit(Changes().remove_group(GROUP))
        assert (store.groups(), store.was_removed(GROUP)) == ((), True)
        assert not list(ram_path.glob("group-*"))
    for path, data in kept.items():  # somebody, or something, puts the file back
        path.write_bytes(data)
    with opened(ram_path, known_epochs={GROUP: 4}) as store:
        assert store.groups() == ()
        with pytest.raises(NotFound, match="was removed"):
            store.read(GROUP_STATE, GROUP)
        with pytest.raises(ConflictError):
            store.commit(at_epoch(5))
        with pytest.raises(ValidationError):
            store.commit(at_epoch(5).remove_group(GROUP))
        store.commit(at_epoch(9).readmit_group(GROUP))
        assert epoch_of(store) == 9
        assert not store.was_removed(GROUP)


# ---- tampering ------------------------------------------------------------------------


def test_nothing_readable_is_on_disk_and_files_are_private(ram_path: Path) -> None:
    with opened(ram_path / "store") as store:
        store.commit(at_epoch(1))
    for name, data in tree(ram_path).items():
        assert SECRET not in data
        assert b"Alice" not in data
        assert stat.S_IMODE((ram_path / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((ram_path / "store").stat().st_mode) == 0o700


def test_an_older_snapshot_is_never_taken_for_a_newer_one(ram_path: Path) -> None:
    with opened(ram_path) as store:
        store.commit(at_epoch(1))
        store.commit(at_epoch(2))
    old, new = (ram_path / snapshot_name(GROUP, number) for number in (1, 2))
    genuine = new.read_bytes()
    new.write_bytes(old.read_bytes())
    with opened(ram_path) as store:
        with pytest.raises(RolledBack, match="commit 1 and epoch 1"):
            store.read(GROUP_STATE, GROUP)
        assert store.groups() == (GROUP,)
    new.write_bytes(genuine)
    with opened(ram_path) as store:
        assert epoch_of(store) == 2


def test_an_older_copy_of_everything_is_noticed_by_known_epochs(ram_path: Path) -> None:
    with opened(ram_path / "store") as store:
        store.commit(at_epoch(1))
    shutil.copytree(ram_path / "store", ram_path / "old")
    with opened(ram_path / "store") as store:
        store.commit(at_epoch(2))
        known, number = store.epochs(), store.commit_number
    with pytest.raises(RolledBack, match="commit 2 is known"):
        opened(ram_path / "old", known_commit=number)
    with opened(ram_path / "store", known_epochs=known, known_commit=number) as store:
        assert epoch_of(store) == 2
    with pytest.raises(RolledBack, match="at epoch 1, but epoch 2"):
        opened(ram_path / "old", known_epochs=known)
    with pytest.raises(RolledBack, match="at epoch None"):
        opened(ram_path / "empty", known_epochs=known)


def test_snapshots_of_two_groups_cannot_be_exchanged(ram_path: Path) -> None:
    with opened(ram_path) as store:
        store.commit(at_epoch(1).write(GROUP_STATE, OTHER, state(1, OTHER)))
    shutil.copy(ram_path / snapshot_name(OTHER, 1), ram_path / snapshot_name(GROUP, 1))
    with opened(ram_path) as store:
        with pytest.raises(IntegrityError):
            store.read(GROUP_STATE, GROUP)
        assert store.read(GROUP_STATE, OTHER).group_id == OTHER


def test_every_changed_byte_is_noticed(ram_path: Path) -> None:
    with opened(ram_path) as store:
        store.commit(at_epoch(1))
    for path in (ram_path / snapshot_name(GROUP, 1), ram_path / INDEX_NAME):
        genuine = path.read_bytes()
        for position in range(0, len(genuine), 7):
            changed = bytearray(genuine)
            changed[position] ^= 0x10
            path.write_bytes(changed)
            with pytest.raises(PersistenceError), opened(ram_path) as store:
                store.read(GROUP_STATE, GROUP)
        path.write_bytes(genuine)
    with opened(ram_path) as store:
        assert epoch_of(store) == 1


def test_missing_files_are_told_apart(ram_path: Path) -> None:
    with opened(ram_path) as store:
        store.commit(at_epoch(1))
    index = (ram_path / INDEX_NAME).read_bytes()
    (ram_path / INDEX_NAME).unlink()
    with pytest.raises(DamagedData, match="missing though there are snapshots"):
        opened(ram_path)
    (ram_path / INDEX_NAME).write_bytes(index)
    (ram_path / snapshot_name(GROUP, 1)).unlink()
    with opened(ram_path) as store, pytest.raises(DamagedData, match="is missing"):
        store.read(GROUP_STATE, GROUP)


def test_the_wrong_password_is_said_and_changes_nothing(ram_path: Path) -> None:
    def with_password(password: str) -> SnapshotStore:
        cheap = EnvelopeKey.from_password(password, cost=KdfCost(8, 1, 1))
        return SnapshotStore(ram_path, key=cheap)

    with with_password("right") as store:
        store.commit(at_epoch(1))
    before = tree(ram_path)
    with pytest.raises(WrongPassword):
        with_password("wrong")
    assert tree(ram_path) == before
    with with_password("right") as store:
        assert epoch_of(store) == 1


def test_one_owner_at_a_time(ram_path: Path) -> None:
    with opened(ram_path) as store, pytest.raises(LockTimeout):
        opened(ram_path, lock_timeout=0)
    with pytest.raises(ValidationError, match="closed"):
        store.groups()
    with pytest.raises(ValidationError):
        opened(ram_path, keep=0)


def test_a_store_can_be_rendered(ram_path: Path) -> None:
    with opened(ram_path / "a") as store:
        store.commit(at_epoch(7).remove_group(OTHER))
        contents, removed = store.dump()
    files = render_store(
        contents, removed, log=LogMark(), key=key(), clock=ManualClock(NOON)
    )
    (ram_path / "b").mkdir()
    for name, data in files.items():
        (ram_path / "b" / name).write_bytes(data)
    with opened(ram_path / "b") as store:
        assert epoch_of(store) == 7
        assert store.was_removed(OTHER)


@pytest.mark.parametrize(
    "name", ["x", "group-.snapshot", "group-zz-00000001.snapshot", "client-1.snapshot"]
)
def test_foreign_names_are_no_snapshots(name: str) -> None:
    assert parse_snapshot_name(name) is None
    assert parse_snapshot_name(snapshot_name(GROUP, 12)) == (GROUP, 12)
    assert parse_snapshot_name(snapshot_name(CLIENT, 10**9)) == (CLIENT, 10**9)


# ---- kills and faults -----------------------------------------------------------------


def test_a_kill_at_any_call_leaves_the_old_or_the_new_state(ram_path: Path) -> None:
    root = ram_path / "store"
    done: list[str] = []
    seen: set[tuple[int, int, bool]] = set()

    def make() -> Callable[[], None]:
        shutil.rmtree(root, ignore_errors=True)
        with opened(root) as store:
            store.commit(at_epoch(1).write(GROUP_STATE, OTHER, state(1, OTHER)))
        done.clear()
        return work

    def work() -> None:
        with opened(root) as store:
            changes = at_epoch(2).write(GROUP_STATE, OTHER, state(2, OTHER))
            store.commit(changes)
            done.append("advanced")
            store.commit(Changes().remove_group(OTHER))
            done.append("removed")

    def look() -> tuple[int, int, bool]:
        with opened(root) as store:
            gone = store.was_removed(OTHER)
            other = 2 if gone else store.read(GROUP_STATE, OTHER).epoch
            return epoch_of(store), other, gone

    def after() -> None:
        found = look()
        assert found[0] == found[1]
        assert found[0] == 2 or "advanced" not in done
        assert found[2] or "removed" not in done
        assert look() == found
        seen.add(found)

    assert each_kill_point(make, after) > 15
    assert seen == {(1, 1, False), (2, 2, False), (2, 2, True)}


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_any_call_may_fail_and_trying_again_works(ram_path: Path, code: int) -> None:
    point, fired = 0, True
    while fired:
        root = ram_path / str(point)
        with opened(root) as store:
            store.commit(at_epoch(1).write(GROUP_STATE, OTHER, state(1, OTHER)))
        with failing(point, code) as fault:
            use_stubbornly(root)
        fired = fault.fired
        with opened(root) as store:
            assert epoch_of(store) == 3, fault.call
            assert store.was_removed(OTHER)
        assert len(tree(root)) == 4, fault.call  # lock, index, two snapshots: no rubbish
        point += 1
    assert point > 15


def use_stubbornly(root: Path) -> None:
    store = twice(lambda: opened(root))
    twice(lambda: store.commit(at_epoch(2)))
    twice(lambda: store.commit(Changes().remove_group(OTHER)))
    assert store.groups() == (GROUP,)
    twice(lambda: store.commit(at_epoch(3)))
    store.close()


def twice(action: Callable[[], object]) -> SnapshotStore:
    try:
        result = action()
    except StorageError:
        result = action()
    return result  # type: ignore[return-value]


def test_what_a_failed_last_sync_left_is_written_anew(ram_path: Path) -> None:
    with opened(ram_path) as store:
        store.commit(at_epoch(1))
        inode = (ram_path / INDEX_NAME).stat().st_ino
        # The index' rename happens, the sync of its directory fails.
        with failing(11) as fault, pytest.raises(StorageError):
            store.commit(at_epoch(2))
        assert fault.call.startswith("fsync")
        renamed = (ram_path / INDEX_NAME).stat().st_ino
        assert renamed != inode
        assert epoch_of(store) == 2
        assert (ram_path / INDEX_NAME).stat().st_ino != renamed
