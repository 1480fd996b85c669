"""Replicated types converge whatever the order, the grouping and the repetition."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.reference import cbor
from pytest_statepersist.reference.crdt import (
    Add,
    LastWriterWinsMap,
    ObservedRemoveSet,
    Remove,
    Set,
    Stamp,
    Stamper,
)
from pytest_statepersist.reference.errors import DamagedData

stamps = st.builds(Stamp, st.integers(0, 5), st.sampled_from("abc"))
values = st.one_of(st.none(), st.booleans(), st.integers(0, 3), st.text("xy", max_size=2))
sets = st.builds(Set, st.sampled_from("kl"), values, stamps)
# A tag belongs to one element, as `Stamper.tag` makes them.
tags = st.integers(0, 5).map(lambda n: ("ef"[n % 2], f"t{n}"))
adds = tags.map(lambda pair: Add(*pair))
removes = st.lists(tags, min_size=1).map(
    lambda pairs: Remove(pairs[0][0], frozenset(t for e, t in pairs if e == pairs[0][0]))
)


def shuffled(operations: list, seed: int) -> list:  # type: ignore[type-arg]
    """The same operations in another order, some of them twice."""
    rng = random.Random(seed)
    again = operations + rng.sample(operations, len(operations) // 2)
    rng.shuffle(again)
    return again


@given(operations=st.lists(sets, max_size=12), seed=st.integers(0, 999), cut=st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_maps_converge(operations: list[Set], seed: int, cut: int) -> None:
    one, other = LastWriterWinsMap(), LastWriterWinsMap()
    for operation in operations:
        one.apply(operation)
    for operation in shuffled(operations, seed):
        other.apply(operation)
    assert one == other
    left, right = LastWriterWinsMap(), LastWriterWinsMap()
    for operation in operations[:cut]:
        left.apply(operation)
    for operation in shuffled(operations[cut:], seed):
        right.apply(operation)
    right.merge(left)
    right.merge(left)
    assert right == one
    assert LastWriterWinsMap.load(cbor.decode(cbor.encode(one.dump()))) == one


@given(
    operations=st.lists(st.one_of(adds, removes), max_size=12),
    seed=st.integers(0, 999),
    cut=st.integers(0, 12),
)
@settings(max_examples=150, deadline=None)
def test_sets_converge(operations: list[Add | Remove], seed: int, cut: int) -> None:
    one, other = ObservedRemoveSet(), ObservedRemoveSet()
    for operation in operations:
        one.apply(operation)
    for operation in shuffled(operations, seed):
        other.apply(operation)
    assert one == other
    left, right = ObservedRemoveSet(), ObservedRemoveSet()
    for operation in operations[:cut]:
        left.apply(operation)
    for operation in shuffled(operations[cut:], seed):
        right.apply(operation)
    merged = ObservedRemoveSet.load(cbor.decode(cbor.encode(left.dump())))
    merged.merge(right)
    right.merge(left)
    assert right == merged == one
    # What is in: exactly the elements with an insertion that no removal names.
    removed = {tag for item in operations if isinstance(item, Remove) for tag in item.tags}
    expected = {i.element for i in operations if isinstance(i, Add) and i.tag not in removed}
    assert set(one) == expected


def test_the_last_writer_wins_and_removal_is_a_write() -> None:
    made = LastWriterWinsMap()
    made.apply(Set("k", "new", Stamp(2, "a")))
    made.apply(Set("k", "old", Stamp(1, "z")))
    assert made.get("k") == "new"
    assert "k" in made
    made.apply(Set("k", None, Stamp(3, "a")))
    assert (list(made), len(made), made.get("k", "default")) == ([], 0, "default")


def test_an_insertion_that_the_remover_had_not_seen_survives() -> None:
    here, there = ObservedRemoveSet(), ObservedRemoveSet()
    first = Add("m", "t1")
    here.apply(first)
    there.apply(first)
    removal, second = here.removal("m"), Add("m", "t2")
    here.apply(removal)
    assert "m" not in here
    here.apply(second)
    there.apply(second)
    there.apply(removal)
    assert here == there
    assert list(here) == ["m"]


def test_a_stamper_is_ahead_of_all_it_has_seen() -> None:
    stamper = Stamper("me")
    stamper.observe(Stamp(7, "you"))
    first, second = stamper.stamp(), stamper.stamp()
    assert Stamp(7, "you") < first < second
    assert stamper.tag() != stamper.tag()


@pytest.mark.parametrize("bad", [None, [], {"k": 1}, {"k": [1, "a"]}, {"k": ["x", "a", None]}])
def test_damaged_maps_are_refused(bad: object) -> None:
    with pytest.raises(DamagedData):
        LastWriterWinsMap.load(bad)


@pytest.mark.parametrize("bad", [None, {}, {"tags": {}, "removed": [1]}, {"removed": []}])
def test_damaged_sets_are_refused(bad: object) -> None:
    with pytest.raises(DamagedData):
        ObservedRemoveSet.load(bad)
