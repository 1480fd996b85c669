"""Channels as replicated documents: they converge, and a replica survives its snapshot."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.reference import cbor
from pytest_statepersist.reference.crdt import Add, Remove, Set, Stamp
from pytest_statepersist.reference.errors import DamagedData
from pytest_statepersist.reference.replica import Delivered, Message, Replica, Update

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
CHANNEL = "c"


def message(message_id: str, author: str = "alice", minute: int = 0) -> Message:
    return Message(message_id, author, author.title(), NOON + timedelta(minutes=minute), "hello")


@given(
    script=st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from(["say", "edit", "delete", "topic"])),
        max_size=12,
    ),
    seed=st.integers(0, 999),
)
@settings(max_examples=80, deadline=None)
def test_replicas_converge_in_any_order_with_repetitions(
    script: list[tuple[str, str]], seed: int
) -> None:
    writers = {name: Replica(name) for name in "ab"}
    rng = random.Random(seed)
    updates: list[Update] = []
    for number, (name, action) in enumerate(script):
        writer = writers[name]
        document = writer.channel(CHANNEL)
        known = list(document.present)
        operations: tuple[Set | Add | Remove, ...]
        if action == "say" or (action != "topic" and not known):
            operations = writer.add_message(message(f"m{number}", name, number))
        elif action == "edit":
            operations = writer.add_message(message(rng.choice(known), name, number))[:1]
        elif action == "delete":
            operations = (document.present.removal(rng.choice(known)),)
        else:
            operations = (writer.set_meta("topic", f"topic {number}"),)
        update = writer.update(operations)
        updates.append(update)
        writer.apply(writer.event(CHANNEL, update))
        if rng.random() < 0.5:  # what the other side sees at once, or later
            other = writers["ab".replace(name, "")]
            other.apply(other.event(CHANNEL, update))
    for writer in writers.values():
        rest = updates + rng.sample(updates, len(updates) // 2)
        rng.shuffle(rest)
        for update in rest:
            writer.apply(writer.event(CHANNEL, Update.decode(update.encode())))
    one, two = (writers[name].channel(CHANNEL) for name in "ab")
    assert one == two
    assert one.messages() == two.messages()
    loaded = Replica.load("a", writers["a"].dump())
    assert loaded.channel(CHANNEL) == one
    assert loaded.dump() == writers["a"].dump()
    latest = [stamp.counter for document in (one,) for stamp in document.meta.stamps()]
    assert all(loaded.stamper.stamp().counter > counter for counter in latest)


def test_the_outbox_holds_what_has_not_come_back() -> None:
    replica = Replica("a")
    update = replica.update(replica.add_message(message("m")))
    replica.apply(replica.event(CHANNEL, update, own=True))
    assert replica.outbox == {CHANNEL: {update.update_id: update.encode()}}
    assert Replica.load("a", replica.dump()).outbox == replica.outbox
    replica.apply(replica.event(CHANNEL, Delivered((update.update_id, "unknown"))))
    assert replica.outbox == {CHANNEL: {}}
    assert [found.message_id for found in replica.channel(CHANNEL).messages()] == ["m"]


def test_an_answer_stands_behind_its_question_whatever_the_clocks_say() -> None:
    one, two = Replica("a"), Replica("b")
    question = one.update(one.add_message(message("q", "a", minute=59)))
    for replica in (one, two):
        replica.apply(replica.event(CHANNEL, question))
    answer = two.update(two.add_message(message("a", "b", minute=1)))  # a clock that is behind
    one.apply(one.event(CHANNEL, answer))
    assert [found.message_id for found in one.channel(CHANNEL).messages()] == ["q", "a"]


def test_nobody_writes_in_anothers_name() -> None:
    update = Replica("mallory").update(Replica("mallory").add_message(message("m", "alice")))
    update.check_author("alice")
    with pytest.raises(DamagedData, match="another member"):
        update.check_author("mallory")
    bodiless = Update("u", (Set("bodies/m", None, Stamp(9, "mallory")),))
    with pytest.raises(DamagedData):
        bodiless.check_author("mallory")


@pytest.mark.parametrize(
    "content",
    [None, [], ["u"], [1, []], ["u", 3], ["u", [["jump"]]], ["u", [["set", "x", 1, 1, "a"]]],
     ["u", [["set", "meta/x", [], 1, "a"]]], ["u", [["remove", "e", "t"]]]],
)  # fmt: skip
def test_damaged_updates_are_refused(content: object) -> None:
    with pytest.raises(DamagedData):
        Update.decode(cbor.encode(content))


@pytest.mark.parametrize("content", [None, [], {"channels": {}}, {"channels": {"c": 1}}])
def test_damaged_states_and_events_are_refused(content: object) -> None:
    with pytest.raises(DamagedData):
        Replica.load("a", cbor.encode(content))
    with pytest.raises(DamagedData):
        Replica("a").apply(cbor.encode(content))


@pytest.mark.parametrize("key", ["bodies", "bodies/", "meta", "meta/", "", "/", "x/y", "Bodies/m"])
def test_an_update_that_names_no_place_is_refused(key: str) -> None:
    """Else a member could write where `check_author` does not look, and be in all histories."""
    forged = ["forged", [["set", key, b"no message", 1, "mallory"], ["add", "", "tag"]]]
    with pytest.raises(DamagedData):
        Update.decode(cbor.encode(forged))
