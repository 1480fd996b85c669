"""Backup, restore and moving to another machine: all of it, or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_statepersist.reference.cipher import KdfCost
from pytest_statepersist.reference.envelope import EnvelopeKey
from pytest_statepersist.reference.errors import (
    BackupError,
    ConflictError,
    NotFound,
    PersistenceError,
    StorageError,
    WrongPassword,
)
from pytest_statepersist.reference.group_backup import export_state, import_state
from pytest_statepersist.reference.group_frames import Frame
from pytest_statepersist.reference.transport import MemoryTransport
from tests.reference.fault_points import failing
from tests.reference.group_world import KEY, World, channel_of
from tests.reference.kill_points import each_kill_point, tree

CANARY = "canary-e8d1 in the backup"


def password(word: str = "export") -> EnvelopeKey:
    return EnvelopeKey.from_password(word, cost=KdfCost(8, 1, 1))


def exported(world: World, name: str) -> Path:
    path = world.directory / f"{name}.export"
    with world.open(name) as messenger:
        export_state(messenger, path, key=password(), clock=world.clock)
    return path


def imported(world: World, name: str, path: Path, *, replace: bool = False) -> None:
    import_state(
        world.root(name),
        path,
        export_key=password(),
        key=EnvelopeKey(KEY),
        replace=replace,
        clock=world.clock,
    )


def numbers(world: World) -> list[object]:
    assert isinstance(world.transport, MemoryTransport)
    frames = [Frame.decode(data) for box in world.transport._frames.values() for data in box]
    return [(frame.epoch, frame.leaf, frame.number) for frame in frames]


def test_another_machine_goes_on_where_the_first_one_was(ram_path: Path) -> None:
    world = World(ram_path)
    channel = channel_of(world, "alice", "bob")
    with world.open("bob") as bob:
        bob.send(channel, CANARY)
        bob.set_topic(channel, "moving")
        identity, invites = bob.identity, bob.invites.list()
    path = exported(world, "bob")
    assert CANARY.encode() not in path.read_bytes()
    imported(world, "laptop", path)
    with world.open("laptop") as laptop:
        assert laptop.identity == identity
        assert laptop.invites.list() == invites
        assert laptop.channel(channel).topic == "moving"
        assert [message.text for message in laptop.history(channel)] == [CANARY]
        laptop.send(channel, "from the laptop")
        assert laptop.advance(channel).epoch == 3
    assert world.texts("alice", channel) == [CANARY, "from the laptop"]
    assert all(CANARY.encode() not in data for data in tree(world.root("laptop")).values())


def test_an_old_backup_repeats_no_message_number(ram_path: Path) -> None:
    world = World(ram_path)
    channel = channel_of(world, "alice", "bob")
    path = exported(world, "bob")
    with world.open("bob") as bob:
        for number in range(3):
            bob.send(channel, f"lost {number}")
    imported(world, "bob", path, replace=True)
    with world.open("bob") as bob:
        for number in range(3):
            bob.send(channel, f"new {number}")
        # What the backup did not have comes back from the transport.
        assert len(bob.history(channel)) == 6
    used = numbers(world)
    assert len(set(used)) == len(used)
    assert len(world.texts("alice", channel)) == 6


def test_removed_groups_stay_removed_over_a_restore(ram_path: Path) -> None:
    world = World(ram_path)
    channel = channel_of(world, "alice")
    with world.open("alice") as alice:
        alice.forget(channel)
    imported(world, "laptop", exported(world, "alice"))
    with world.open("laptop") as laptop:
        assert laptop.channels() == ()
        with pytest.raises(NotFound, match="any more"):
            laptop.channel(channel)


def test_an_import_replaces_only_when_told_to(ram_path: Path) -> None:
    world = World(ram_path)
    channel = channel_of(world, "alice")
    path = exported(world, "alice")
    world.init("bob")
    with world.open("bob") as bob:
        bob.create_channel("bob's own")
    before = tree(world.root("bob"))
    with pytest.raises(ConflictError, match="replace=True"):
        imported(world, "bob", path)
    assert tree(world.root("bob")) == before
    imported(world, "bob", path, replace=True)
    with world.open("bob") as bob:
        assert [found.channel_id for found in bob.channels()] == [channel]
        assert bob.identity.display_name == "Alice"


def test_a_bad_export_is_refused_before_anything_is_touched(ram_path: Path) -> None:
    world = World(ram_path)
    channel_of(world, "alice")
    path = exported(world, "alice")
    genuine = path.read_bytes()
    target = world.root("laptop")
    for bad in (b"", genuine[:-1], genuine[:60] + b"X" + genuine[61:], b"x" * 200):
        path.write_bytes(bad)
        with pytest.raises(BackupError):
            imported(world, "laptop", path)
    path.unlink()
    with pytest.raises(BackupError, match="there is no export"):
        imported(world, "laptop", path)
    path.write_bytes(genuine)
    with pytest.raises(WrongPassword):
        import_state(target, path, export_key=password("wrong"), key=EnvelopeKey(KEY))
    assert not target.exists()


def test_a_damaged_group_is_not_exported_in_silence(ram_path: Path) -> None:
    world = World(ram_path)
    channel_of(world, "alice")
    path = exported(world, "alice")
    before = path.read_bytes()
    for snapshot in (world.root("alice") / "mls_groups").glob("group-*"):
        snapshot.write_bytes(b"damage")
    with pytest.raises(PersistenceError):
        exported(world, "alice")
    assert path.read_bytes() == before


def test_a_kill_at_any_call_leaves_the_old_or_the_imported_state(ram_path: Path) -> None:
    world = World(ram_path / "world")
    ours = channel_of(world, "alice")
    world.init("bob")
    with world.open("bob") as bob:
        theirs = bob.create_channel("bob's own").channel_id
    path = exported(world, "alice")
    shutil.copytree(world.directory, ram_path / "base")
    done: list[bool] = []
    seen: set[str] = set()

    def make() -> Callable[[], None]:
        shutil.rmtree(world.directory)
        shutil.copytree(ram_path / "base", world.directory)
        done.clear()
        return work

    def work() -> None:
        imported(world, "bob", path, replace=True)
        done.append(True)

    def after() -> None:
        with world.open("bob") as bob:
            (found,) = bob.channels()
            assert found.group is not None
            name = bob.identity.display_name
            assert (name, found.channel_id) in (("Bob", theirs), ("Alice", ours))
            assert name == "Alice" or not done
            bob.send(found.channel_id, "fine")
            seen.add(name)

    assert each_kill_point(make, after) > 30
    assert seen == {"Alice", "Bob"}


def test_any_call_may_fail_and_trying_again_works(ram_path: Path) -> None:
    world = World(ram_path / "world")
    channel = channel_of(world, "alice")
    path = exported(world, "alice")
    point, fired = 0, True
    while fired:
        name = f"laptop{point}"
        with failing(point) as fault:
            try:
                imported(world, name, path)
            except StorageError:
                imported(world, name, path, replace=True)
        with world.open(name) as laptop:
            assert laptop.channel(channel).group is not None
        fired = fault.fired
        point += 1
    assert point > 30
