"""Channels come back: listed with their groups, sending, catching up, re-joined, removed."""

from __future__ import annotations

import errno
import logging
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pytest_statepersist.reference.envelope import EnvelopeKey
from pytest_statepersist.reference.errors import (
    ConflictError,
    DamagedData,
    DamagedLog,
    LockTimeout,
    NotFound,
    PersistenceError,
    RolledBack,
    TransportError,
    ValidationError,
    WrongPassword,
)
from pytest_statepersist.reference.group_frames import Frame
from pytest_statepersist.reference.messenger import Messenger
from pytest_statepersist.reference.transport import MemoryTransport
from tests.reference.durable_case import SOAK
from tests.reference.fault_points import failing
from tests.reference.group_world import World, channel_of
from tests.reference.kill_points import each_kill_point, tree

CANARY = "canary-51c9 said in confidence"


class Offline(MemoryTransport):
    """Fails as told: before a frame is taken, or after."""

    def __init__(self) -> None:
        super().__init__()
        self.before = self.after = self.fetching = False

    def publish(self, group_id: bytes, frame: bytes, *, commit_after: int | None = None) -> int:
        if self.before:
            raise TransportError("offline")
        position = super().publish(group_id, frame, commit_after=commit_after)
        if self.after:
            raise TransportError("the answer was lost")
        return position

    def fetch(self, group_id: bytes, after: int) -> tuple[tuple[int, bytes], ...]:
        if self.fetching:
            raise TransportError("offline")
        return super().fetch(group_id, after)


def test_channels_are_listed_with_their_groups_after_a_restart(ram_path: Path) -> None:
    world = World(ram_path)
    world.init("alice")
    with world.open("alice") as alice:
        assert alice.channels() == ()
        made = alice.create_channel("general")
        other = alice.create_channel("random")
        alice.set_topic(made.channel_id, "all and nothing")
        alice.rename_channel(other.channel_id, "noise")
    with world.open("alice") as alice:
        listed = {channel.channel_id: channel for channel in alice.channels()}
        general = listed[made.channel_id]
        assert (general.name, general.topic) == ("general", "all and nothing")
        assert general.group is not None
        assert (general.group.epoch, len(general.group.members)) == (0, 1)
        assert listed[other.channel_id].name == "noise"
        assert alice.channel(made.channel_id) == general


def test_sending_works_in_a_group_of_an_earlier_session(ram_path: Path) -> None:
    world = World(ram_path)
    channel = channel_of(world, "alice", "bob")
    with world.open("alice") as alice:
        sent = alice.send(channel, "hello from a new session")
    with world.open("bob") as bob:
        report = bob.sync(channel)
        assert (report.received, report.rejected) == (1, ())
        (message,) = bob.history(channel)
        assert (message.message_id, message.text) == (sent, "hello from a new session")
        assert message.author_name == "Alice"
    with world.open("bob") as bob:
        assert len(bob.history(channel)) == 1
        bob.send(channel, "and back")
    assert world.texts("alice", channel) == ["hello from a new session", "and back"]


def test_what_was_missed_while_away_is_fetched(ram_path: Path) -> None:
    world = World(ram_path)
    channel = channel_of(world, "alice", "bob", "carol")
    for number in range(3):
        with world.open("alice") as alice:
            alice.send(channel, f"a{number}")
            alice.advance(channel)
        with world.open("carol") as carol:
            carol.send(channel, f"c{number}")
            carol.advance(channel)
    with world.open("bob") as bob:
        report = bob.sync(channel)
        assert (report.received, report.rejected) == (6, ())
        bob_view = bob.channel(channel).group
    expected = ["a0", "c0", "a1", "c1", "a2", "c2"]
    assert world.texts("alice", channel) == world.texts("carol", channel) == expected
    with world.open("alice") as alice:
        alice.sync(channel)
        group = alice.channel(channel).group
        assert group is not None
        assert bob_view is not None
        assert group.epoch == bob_view.epoch == report.epoch


def test_messages_can_be_deleted_and_topics_converge(ram_path: Path) -> None:
    world = World(ram_path)
    channel = channel_of(world, "alice", "bob")
    with world.open("alice") as alice:
        first = alice.send(channel, "regretted")
        alice.send(channel, "kept")
        alice.set_topic(channel, "alice's")
    with world.open("bob") as bob:
        bob.sync(channel)
        bob.set_topic(channel, "bob's")
        bob.delete_message(channel, first)
        with pytest.raises(NotFound):
            bob.delete_message(channel, first)
    assert world.texts("alice", channel) == ["kept"]
    with world.open("alice") as alice:
        assert alice.channel(channel).topic == "bob's"


# ---- invitations ----------------------------------------------------------------------


def test_a_saved_code_lets_a_member_rejoin_after_losing_everything(ram_path: Path) -> None:
    world = World(ram_path)
    channel = channel_of(world, "alice", "bob")
    with world.open("bob") as bob:
        (saved,) = bob.invites.list()
        bob.send(channel, "before")
    with world.open("alice") as alice:
        alice.sync(channel)
        alice.advance(channel)
        alice.send(channel, "meanwhile")
    for path in (world.root("bob") / "mls_groups").glob("group-*"):
        path.write_bytes(b"a failing disk")
    with world.open("bob") as bob:
        (broken,) = bob.channels()
        assert broken.group is None
        assert "join the group again" in broken.problem
        with pytest.raises(DamagedData):
            bob.send(channel, "impossible")
        assert bob.rejoin(channel).group is not None
        bob.send(channel, "back again")
    assert world.texts("alice", channel) == ["before", "meanwhile", "back again"]
    shutil.rmtree(world.root("bob"))
    world.init("bob")  # a new identity, on an empty disk, with the code from the old notes
    with world.open("bob") as bob:
        bob.join(saved.code)
        bob.send(channel, "from scratch")
    assert world.texts("alice", channel)[-1] == "from scratch"


def test_joining_twice_and_codes_that_are_none_are_refused(ram_path: Path) -> None:
    world = World(ram_path)
    channel = channel_of(world, "alice", "bob")
    with world.open("bob") as bob:
        code = bob.invites.list()[0].code
        with pytest.raises(ConflictError, match="already a member"):
            bob.join(code)
        with pytest.raises(DamagedData):
            bob.join("hello")
        with pytest.raises(NotFound):
            bob.rejoin(str(uuid.uuid4()))
        with pytest.raises(NotFound):
            bob.channel("no id at all")
    world.init("carol")
    with world.open("alice") as alice:
        alice.sync(channel)
        code = alice.invite(channel)
        alice.revoke(channel, alice.invites.list()[-1].invite.ticket.invite_id)
    with world.open("carol") as carol, pytest.raises(NotFound, match="revoked"):
        carol.join(code)


def test_leaving_and_being_removed_are_for_good(ram_path: Path) -> None:
    world = World(ram_path)
    channel = channel_of(world, "alice", "bob", "carol")
    with world.open("bob") as bob:
        bob.sync(channel)
        bob.leave(channel)
        assert bob.channels() == ()
    with world.open("alice") as alice:
        alice.sync(channel)
        assert [m.name for m in alice.advance(channel).members] == ["Alice", "Carol"]
        with world.open("carol") as carol:
            view = alice.remove_member(channel, str(carol.identity.user_id))
            assert [member.name for member in view.members] == ["Alice"]
            alice.send(channel, "alone at last")
            assert carol.sync(channel).removed
            with pytest.raises(NotFound, match="any more"):
                carol.send(channel, "still here?")
        with pytest.raises(NotFound):
            alice.remove_member(channel, "nobody")
    for name in ("bob", "carol"):
        with world.open(name) as gone:
            assert gone.channels() == ()
            assert "alone at last" not in [m.text for m in gone.history(channel)]


def test_who_finds_himself_removed_on_sending_is_told(ram_path: Path) -> None:
    world = World(ram_path)
    channel = channel_of(world, "alice", "bob")
    with world.open("bob") as bob, world.open("alice") as alice:
        alice.remove_member(channel, str(bob.identity.user_id))
        with pytest.raises(NotFound, match="no longer a member"):
            bob.send(channel, "too late")
        alice.forget(channel)
        assert alice.channels() == ()


# ---- an unreliable network ------------------------------------------------------------


def test_what_could_not_be_sent_is_delivered_once_later(ram_path: Path) -> None:
    network = Offline()
    world = World(ram_path, network)
    channel = channel_of(world, "alice", "bob")
    with world.open("alice") as alice:
        network.fetching = True
        with pytest.raises(TransportError, match="saved"):
            alice.send(channel, "first")
        network.fetching, network.before = False, True
        with pytest.raises(TransportError, match="saved"):
            alice.send(channel, "second")
        network.before, network.after = False, True
        with pytest.raises(TransportError):
            alice.sync(channel)
        network.after = False
    with world.open("alice") as alice:
        assert alice.undelivered(channel) == 2
        alice.sync(channel)
        alice.sync(channel)
        assert alice.undelivered(channel) == 0
        assert alice.sync(channel).delivered == 0
    assert world.texts("bob", channel) == ["first", "second"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_whose_fate_is_open_is_settled_by_the_next_sync(ram_path: Path, when: str) -> None:
    network = Offline()
    world = World(ram_path, network)
    channel = channel_of(world, "alice", "bob")
    with world.open("alice") as alice:
        alice.sync(channel)
        setattr(network, when, True)
        with pytest.raises(TransportError):
            alice.advance(channel)
        setattr(network, when, False)
    with world.open("alice") as alice:
        assert alice.sync(channel).removed is False
        alice.send(channel, "in the new epoch")
    assert world.texts("bob", channel) == ["in the new epoch"]


def test_two_who_commit_at_once_agree(ram_path: Path) -> None:
    network = Offline()
    world = World(ram_path, network)
    channel = channel_of(world, "alice", "bob")
    with world.open("alice") as alice, world.open("bob") as bob:
        alice.sync(channel)
        bob.sync(channel)
        network.before = True
        with pytest.raises(TransportError):
            alice.advance(channel)  # pending, never published
        network.before = False
        bob.advance(channel)
        code = alice.invite(channel)
        bob.send(channel, "hello")
        world.init("carol")
        with world.open("carol") as carol:
            carol.join(code)
            carol.send(channel, "hello too")
    for name in ("alice", "bob", "carol"):
        assert world.texts(name, channel)[-1] == "hello too"


# ---- what is on disk ------------------------------------------------------------------


def test_nothing_said_is_readable_on_disk(ram_path: Path) -> None:
    world = World(ram_path)
    channel = channel_of(world, "alice", "bob")
    with world.open("alice") as alice:
        alice.send(channel, CANARY)
        alice.set_topic(channel, CANARY)
        alice.compact()
        alice.send(channel, CANARY)
    assert world.texts("bob", channel) == [CANARY, CANARY]
    for name, data in tree(ram_path).items():
        assert CANARY.encode() not in data, name
        assert b"general" not in data, name
    layout = {name.split("/")[1] for name in tree(ram_path) if name.startswith("alice/")}
    assert layout == {
        ".lock", "identity.json", "mls_groups", "commit_log", "snapshots", "invites"
    }  # fmt: skip


def test_compaction_keeps_history_metadata_and_outbox(ram_path: Path) -> None:
    network = Offline()
    world = World(ram_path, network)
    channel = channel_of(world, "alice", "bob")
    with world.open("alice", compact_after=5) as alice:
        for number in range(12):
            alice.send(channel, f"m{number:02}")
        network.fetching = True
        with pytest.raises(TransportError):
            alice.send(channel, "m12")
        network.fetching = False
        alice.compact()
    assert list((world.root("alice") / "snapshots").glob("snapshot_*.dat"))
    expected = [f"m{number:02}" for number in range(13)]
    with world.open("alice") as alice:
        assert [m.text for m in alice.history(channel)] == expected
    assert world.texts("alice", channel) == world.texts("bob", channel) == expected


def test_an_older_copy_of_the_whole_root_is_noticed(ram_path: Path) -> None:
    world = World(ram_path)
    channel = channel_of(world, "alice")
    shutil.copytree(world.root("alice"), world.root("old"))
    with world.open("alice") as alice:
        alice.advance(channel)
        known = alice.epochs()
    assert known == {channel: 1}
    with world.open("alice", known_epochs=known):
        pass
    with pytest.raises(RolledBack):
        world.open("old", known_epochs=known)


def test_damage_is_said_by_name_and_locks_are_given_back(ram_path: Path) -> None:
    world = World(ram_path)
    channel = channel_of(world, "alice")
    with world.open("alice") as alice:
        alice.send(channel, "one")
        alice.send(channel, "two")
        with pytest.raises(LockTimeout):
            world.open("alice", lock_timeout=0)
        with pytest.raises(ValidationError):
            alice.create_channel(" ")
    with pytest.raises(WrongPassword):
        Messenger(world.root("alice"), key=EnvelopeKey(bytes(32)), transport=world.transport)
    segment = world.root("alice") / "commit_log" / "000001.log"
    raw = bytearray(segment.read_bytes())
    raw[200] ^= 1
    genuine = segment.read_bytes()
    segment.write_bytes(raw)
    with pytest.raises(DamagedLog):
        world.open("alice")
    segment.unlink()
    for _ in "twice":  # the first opening begins no new log in its place
        with pytest.raises(DamagedLog, match="no segment"):
            world.open("alice")
    segment.write_bytes(genuine)
    assert world.texts("alice", channel) == ["one", "two"]
    with pytest.raises(NotFound):
        world.open("nobody")
    with pytest.raises(ConflictError):
        world.init("alice")


def test_log_lines_say_what_was_saved_and_loaded(
    ram_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world = World(ram_path)
    channel = channel_of(world, "alice")
    with world.open("alice") as alice:
        alice.channels()
    hexadecimal = uuid.UUID(channel).hex
    for line in (
        "saved identity",
        f"saved group {hexadecimal} at epoch 0",
        f"loaded group {hexadecimal} at epoch 0",
        "loaded Alice and 1 group(s)",
    ):
        assert line in caplog.text


# ---- kills and faults -----------------------------------------------------------------

STEP = 1 if SOAK else 4
"""Which calls: all of them in the soak profile. `test_every_durable_operation` always has all."""


def session(world: World, channel: str, done: list[str]) -> None:
    """A session of Bob's that uses everything that writes."""
    with world.open("bob") as bob:
        bob.send(channel, "one")
        done.append("one")
        bob.advance(channel)
        bob.invite(channel)
        done.append("invite")
        bob.send(channel, "two")
        done.append("two")
        bob.compact()
        own = bob.create_channel("own")
        done.append(own.channel_id)
        bob.forget(own.channel_id)
        done.append("forgotten")


def copied(world: World, base: Path) -> Callable[[], MemoryTransport]:
    """Return a function that puts the world back as it was."""
    shutil.copytree(world.directory, base)
    frames = world.transport

    def reset() -> MemoryTransport:
        assert isinstance(frames, MemoryTransport)
        shutil.rmtree(world.directory)
        shutil.copytree(base, world.directory)
        fresh = MemoryTransport()
        fresh._frames = {group: list(found) for group, found in frames._frames.items()}
        fresh._commits = dict(frames._commits)
        world.transport = fresh
        return fresh

    return reset


def test_a_kill_at_any_call_loses_and_repeats_nothing(ram_path: Path) -> None:
    world = World(ram_path / "world")
    channel = channel_of(world, "alice", "bob")
    reset = copied(world, ram_path / "base")
    done: list[str] = []

    def make() -> Callable[[], None]:
        reset()
        done.clear()
        return lambda: session(world, channel, done)

    def after() -> None:
        assert isinstance(world.transport, MemoryTransport)
        with world.open("bob") as bob:
            channels = {found.channel_id for found in bob.channels()}
            assert channel in channels
            assert "forgotten" not in done or channels == {channel}
            assert len(bob.invites.list()) >= 1 + ("invite" in done)
            bob.send(channel, "after")
            said = [message.text for message in bob.history(channel)]
        assert [text for text in said if text in done] == [
            text for text in done if text in ("one", "two")
        ]
        assert world.texts("alice", channel) == said
        numbers = [
            (frame.epoch, frame.leaf, frame.number)
            for found in world.transport._frames.values()
            for frame in (Frame.decode(data) for data in found)
        ]
        assert len(set(numbers)) == len(numbers)

    assert each_kill_point(make, after, step=STEP) > 80


def test_after_any_failing_call_the_user_can_go_on(ram_path: Path) -> None:
    world = World(ram_path / "world")
    channel = channel_of(world, "alice", "bob")
    reset = copied(world, ram_path / "base")
    point, fired = 0, True
    while fired:
        reset()
        done: list[str] = []
        with failing(point, (errno.EIO, errno.ENOSPC)[point % 2]) as fault:
            try:
                session(world, channel, done)
            except PersistenceError:
                pass
        with world.open("bob") as bob:
            bob.send(channel, "after")
            said = [message.text for message in bob.history(channel)]
        assert [text for text in done if text in ("one", "two")] == [
            text for text in said if text in done
        ], fault.call
        assert world.texts("alice", channel) == said, fault.call
        fired = fault.fired
        point += STEP
    assert point > 80


# ---- a machine ------------------------------------------------------------------------


class Conversation(RuleBasedStateMachine):
    """Three members talk, commit, restart and lose connections in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="statepersist-", dir=_memory()))
        self.network = Offline()
        self.world = World(self.directory, self.network)
        self.said: list[str] = []

    @initialize()
    def begin(self) -> None:
        self.channel = channel_of(self.world, "alice", "bob", "carol")

    names = st.sampled_from(["alice", "bob", "carol"])

    @rule(name=names, trouble=st.sampled_from(["", "", "before", "after", "fetching"]))
    def say(self, name: str, trouble: str) -> None:
        text = f"{len(self.said)} by {name}"
        self.said.append(text)
        self.act(name, trouble, lambda messenger: messenger.send(self.channel, text))

    @rule(name=names, trouble=st.sampled_from(["", "before", "after"]))
    def commit(self, name: str, trouble: str) -> None:
        self.act(name, trouble, lambda messenger: messenger.advance(self.channel))

    @rule(name=names)
    def compact(self, name: str) -> None:
        self.act(name, "", lambda messenger: messenger.compact())

    def act(self, name: str, trouble: str, action: Callable[[Messenger], object]) -> None:
        if trouble:
            setattr(self.network, trouble, True)
        with self.world.open(name) as messenger:
            try:
                action(messenger)
            except TransportError:
                assert trouble
        if trouble:
            setattr(self.network, trouble, False)

    @invariant()
    def no_number_twice(self) -> None:
        for frames in self.network._frames.values():
            decoded = [Frame.decode(frame) for frame in frames]
            used = {(frame.epoch, frame.leaf, frame.number) for frame in decoded}
            distinct = {frame.encode() for frame in decoded}
            assert len(used) == len(distinct)

    def teardown(self) -> None:
        if hasattr(self, "channel"):
            for _ in range(2):  # the second round fetches what the first one delivered
                for name in ("alice", "bob", "carol"):
                    with self.world.open(name) as messenger:
                        messenger.sync(self.channel)
            shown = [self.world.texts(name, self.channel) for name in ("alice", "bob", "carol")]
            assert shown[0] == shown[1] == shown[2]
            assert sorted(shown[0]) == sorted(self.said)
        shutil.rmtree(self.directory)


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


Conversation.TestCase.settings = settings(max_examples=8, stateful_step_count=12, deadline=None)
TestConversation = Conversation.TestCase
