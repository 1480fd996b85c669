"""A log that was cut, put back or exchanged beside newer groups is noticed; a longer one is right.

The index of the groups is authenticated and takes along, with each commit, how far the log was
durable and a digest of what was in it. What is tried here leaves every file genuine by itself.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pytest_statepersist.reference.errors import (
    DamagedLog,
    IntegrityError,
    PersistenceError,
    RolledBack,
)
from pytest_statepersist.reference.event_log import EventLog, LogMark
from pytest_statepersist.reference.group_backup import export_state, import_state
from pytest_statepersist.reference.log_files import LogFiles
from pytest_statepersist.reference.log_frames import scan
from tests.reference.group_world import KEY, EnvelopeKey, World, channel_of
from tests.reference.kill_points import tree

FIXTURES = Path(__file__).parents[2] / "fixtures/reference"
LOG = ("commit_log", "snapshots")


def put_log(source: Path, target: Path) -> None:
    for name in LOG:
        shutil.rmtree(target / name)
        shutil.copytree(source / name, target / name)


def refused(world: World, name: str, error: type[PersistenceError], match: str) -> None:
    """Opening is refused, twice, with the same answer, and changes no file."""
    before = tree(world.root(name))
    for _ in "twice":
        with pytest.raises(error, match=match) as caught:
            world.open(name)
        assert type(caught.value) is error
    assert tree(world.root(name)) == before


def spoken(world: World, *texts: str) -> str:
    channel = channel_of(world, "alice")
    say(world, channel, *texts)
    return channel


def say(world: World, channel: str, *texts: str) -> None:
    with world.open("alice") as alice:
        for text in texts:
            alice.send(channel, text)
        alice.advance(channel)  # a change of the group: it takes the log's mark along


def test_a_log_cut_anywhere_is_noticed(ram_path: Path) -> None:
    world = World(ram_path)
    channel = spoken(world, "one", "two", "three")
    root = world.root("alice")
    segment = root / "commit_log/000001.log"
    whole = segment.read_bytes()
    header, data = LogFiles(root, EnvelopeKey(KEY)).read_segment(1)
    last = scan(data, header).batches[-1]
    for length in (len(whole) - 1, len(whole) - len(last.body) // 2, 300, 44):
        segment.write_bytes(whole[:length])
        refused(world, "alice", RolledBack, "the log ends with record")
    segment.write_bytes(whole)
    assert world.texts("alice", channel) == ["one", "two", "three"]


def test_an_older_log_beside_newer_groups_is_noticed(ram_path: Path) -> None:
    world = World(ram_path)
    channel = spoken(world, "one")
    shutil.copytree(world.root("alice"), world.root("old"))
    say(world, channel, "two")
    put_log(world.root("old"), world.root("alice"))
    refused(world, "alice", RolledBack, "the log ends with record")


@pytest.mark.parametrize("compacted", [False, True], ids=["records", "compacted"])
@pytest.mark.parametrize("more", [(), ("three", "four", "five")], ids=["as long", "longer"])
def test_another_log_is_noticed_even_if_it_is_as_long(
    ram_path: Path, compacted: bool, more: tuple[str, ...]
) -> None:
    """The same beginning, under the same key: a copy of the root that went its own way."""
    world = World(ram_path)
    channel = spoken(world, "one")
    shutil.copytree(world.root("alice"), world.root("other"))
    say(world, channel, "two")
    with world.open("other") as other:
        for text in ("TWO", *more):
            other.send(channel, text)
        if compacted:
            other.compact()
    put_log(world.root("other"), world.root("alice"))
    if compacted and more:
        refused(world, "alice", RolledBack, "was compacted after record")
    else:
        refused(world, "alice", IntegrityError, "not the one that is known")


def test_older_groups_beside_a_compacted_log_are_noticed(ram_path: Path) -> None:
    world = World(ram_path)
    channel = spoken(world, "one")
    shutil.copytree(world.root("alice"), world.root("old"))
    say(world, channel, "two")
    with world.open("alice") as alice:
        alice.compact()
    put_log(world.root("alice"), world.root("old"))
    refused(world, "old", RolledBack, "was compacted after record")


def test_a_log_without_which_groups_were_saved_must_be_there(ram_path: Path) -> None:
    """Also where no group is left: the index knows that there was a log."""
    world = World(ram_path)
    channel = spoken(world, "one")
    with world.open("alice") as alice:
        alice.forget(channel)
    for name in LOG:
        shutil.rmtree(world.root("alice") / name)
    with pytest.raises(DamagedLog, match="no segment"):
        world.open("alice")


def test_a_longer_log_is_what_a_crash_leaves(ram_path: Path) -> None:
    """Records come before the index: without the index's last step all of them count."""
    world = World(ram_path)
    channel = spoken(world, "one")
    groups = ram_path / "groups"
    shutil.copytree(world.root("alice") / "mls_groups", groups)
    say(world, channel, "two", "three")
    shutil.rmtree(world.root("alice") / "mls_groups")
    shutil.copytree(groups, world.root("alice") / "mls_groups")
    with world.open("alice") as alice:
        assert [m.text for m in alice.history(channel)] == ["one", "two", "three"]


def test_an_import_knows_its_log(ram_path: Path) -> None:
    world = World(ram_path)
    spoken(world, "one")
    world.init("bob")
    key = EnvelopeKey(KEY)
    with world.open("alice") as alice:
        export_state(alice, ram_path / "export", key=key)
    with world.open("bob") as bob:
        bob.compact()
    import_state(world.root("new"), ram_path / "export", export_key=key, key=key)
    with world.open("new") as new:
        assert [m.text for m in new.history(new.channels()[0].channel_id)] == ["one"]
    put_log(world.root("bob"), world.root("new"))  # as long: neither has a record
    refused(world, "new", IntegrityError, "not the one that is known")


def test_logs_and_messengers_of_the_first_format_open(ram_path: Path) -> None:
    """Made before there were marks: one snapshot without a head, one index without a mark."""
    shutil.copytree(FIXTURES / "event_log_v1", ram_path / "plain")
    with EventLog(ram_path / "plain") as log:
        found, mark = log.recovered, log.mark
        assert found.snapshot is not None
        assert found.snapshot.state == b"state"
        assert [record.data for record in found.records] == [b"two", b"three"]
    for _ in "twice":
        with EventLog(ram_path / "plain", known=mark) as log:
            log.compact(b"later")
            assert log.mark == mark
    world = World(ram_path)
    shutil.copytree(FIXTURES / "messenger_v1", world.root("alice"))
    shutil.copytree(world.root("alice"), world.root("old"))
    channel = "e8377048-e58b-4e00-ae3b-2a6ead43ae45"
    with world.open("alice") as alice:
        assert [m.text for m in alice.history(channel)] == ["one", "two"]
        assert alice.channel(channel).topic == "talk"
        assert alice.undelivered(channel) == 1  # it went to a transport that is gone
        alice.forget(channel)
    with world.open("alice") as alice:
        assert [m.text for m in alice.history(channel)] == ["one", "two"]
    put_log(world.root("old"), world.root("alice"))  # the same: nothing was said since
    with world.open("alice"):
        pass


def test_a_mark_is_of_records_and_of_their_order() -> None:
    one = LogMark().after(b"a", b"bc")
    assert one == LogMark().after(b"a").after(b"bc")
    assert one.sequence == 2
    others = [(b"ab", b"c"), (b"bc", b"a"), (b"abc", b""), (b"", b"abc")]
    assert one not in [LogMark().after(*records) for records in others]
    assert LogMark.of_state(0, b"") != LogMark()
