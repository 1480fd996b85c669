"""Diff names exactly what differs; the three-way merge takes both sides or reports a conflict."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.reference.snapshot_diff import (
    ABSENT,
    ComponentChange,
    FieldChange,
    diff,
)
from pytest_statepersist.reference.snapshot_merge import Conflict, merge
from pytest_statepersist.reference.state_snapshot import Component, Policy, StateSnapshot
from tests.reference.snapshot_helpers import NOON, POLICY, component, snapshot


def of(*components: Component, **changes: object) -> StateSnapshot:
    return snapshot(components=components, **changes)


def test_a_diff_names_what_was_added_removed_and_changed_field_by_field() -> None:
    before = of(component("a"), component("b"), component("c"))
    after = of(
        component("b"),
        component("c", metadata={"tools": ["get"], "limits": {"size": 11, "note": None}}),
        component("d"),
        created_at=NOON + 1,
    )
    found = diff(before, after)
    assert found.added == ("d",)
    assert found.removed == ("a",)
    assert found.changed == (
        ComponentChange(
            "c",
            (
                FieldChange("metadata.limits.size", 10, 11),
                FieldChange("metadata.tools", ["get", "put"], ["get"]),
            ),
        ),
    )
    assert found.header == (FieldChange("created_at", NOON, NOON + 1),)
    assert found


def test_values_that_look_alike_differ() -> None:
    sides = [of(component("a", metadata={"x": value})) for value in (1, 1.0, True, None)]
    sides.append(of(component("a", metadata={})))
    for one in sides:
        for other in sides:
            assert bool(diff(one, other)) is (one is not other)
    last = diff(sides[3], sides[4]).changed[0].fields[0]
    assert (last.before, last.after) == (None, ABSENT)


metadata = st.dictionaries(
    st.sampled_from("xyz"), st.none() | st.integers(0, 2) | st.just({"k": 1}) | st.just({"k": 2}),
    max_size=3,
)  # fmt: skip
components = st.builds(
    lambda name, meta, uri, policy, binary: component(
        name, metadata=meta, source_uri=uri, policy=policy, **({} if binary else NO_BINARY)
    ),
    st.sampled_from("abc"),
    metadata,
    st.sampled_from(["u:1", "u:2"]),
    st.sampled_from([None, POLICY, Policy(content="deny", created_at=1)]),
    st.booleans(),
)
NO_BINARY: dict[str, Any] = {"binary": None, "binary_sha256": None}
snapshots = st.lists(components, max_size=3, unique_by=lambda c: c.component_id).map(
    lambda found: of(*sorted(found, key=lambda c: c.component_id))
)


@given(one=snapshots, other=snapshots)
@settings(max_examples=60)
def test_an_empty_diff_means_equal_and_diffs_mirror(one: Any, other: Any) -> None:
    assert bool(diff(one, other)) is (one.to_json() != other.to_json())
    there, back = diff(one, other), diff(other, one)
    assert (there.added, there.removed) == (back.removed, back.added)
    assert [c.component_id for c in there.changed] == [c.component_id for c in back.changed]


@given(base=snapshots, side=snapshots)
@settings(max_examples=60)
def test_what_only_one_side_changed_is_taken(base: Any, side: Any) -> None:
    for ours, theirs in ((side, base), (base, side), (side, side)):
        result = merge(base, ours, theirs)
        assert result.conflicts == ()
        assert result.snapshot.to_json() == side.to_json()


@given(base=snapshots, ours=snapshots, theirs=snapshots)
@settings(max_examples=80)
def test_a_merge_is_fair_and_valid(base: Any, ours: Any, theirs: Any) -> None:
    one, other = merge(base, ours, theirs), merge(base, theirs, ours)
    one.snapshot.validate()
    mirrored = [Conflict(c.component_id, c.path, c.base, c.theirs, c.ours) for c in other.conflicts]
    assert list(one.conflicts) == mirrored
    if not one.conflicts:
        assert one.snapshot.to_json() == other.snapshot.to_json()
    for name in {c.component_id for s in (base, ours, theirs) for c in s.components}:
        merged = one.snapshot.component(name)
        if merged is None:  # only what one side removed and the other left alone may go
            sides = [s.component(name) for s in (ours, theirs)]
            assert None in sides
            assert all(side in (None, base.component(name)) for side in sides)
        else:  # units are never mixed from two sides
            whole = [s.component(name) for s in (base, ours, theirs)]
            units = [(c.source_uri, c.binary, c.binary_sha256) for c in whole if c]
            assert (merged.source_uri, merged.binary, merged.binary_sha256) in units
            assert merged.policy in [c.policy for c in whole if c]


def test_independent_changes_come_together() -> None:
    base = of(component("a"))
    ours = of(component("a", source_uri="oci://new:2"), component("b"))
    theirs = of(component("a", metadata={"tools": []}), component("c"), created_at=NOON + 5)
    result = merge(base, ours, theirs)
    assert result.conflicts == ()
    assert result.snapshot == of(
        component("a", source_uri="oci://new:2", metadata={"tools": []}),
        component("b"),
        component("c"),
        created_at=NOON + 5,
    )


def test_conflicts_are_reported_and_ours_or_the_changed_one_stays() -> None:
    base = of(component("a"), component("b"), component("c"))
    ours = of(
        component("a", metadata={"x": 1}),
        component("c", source_uri="u:ours"),
        component("new", metadata={"by": "us"}),
    )
    theirs = of(
        component("a", metadata={"x": 2}),
        component("b", source_uri="u:theirs"),
        component("new", metadata={"by": "them"}),
    )
    result = merge(base, ours, theirs)
    assert [(c.component_id, c.path) for c in result.conflicts] == [
        ("a", "metadata.x"),
        ("b", ""),
        ("c", ""),
        ("new", ""),
    ]
    merged = {c.component_id: c for c in result.snapshot.components}
    assert merged["a"].metadata == {"x": 1}
    assert merged["b"].source_uri == "u:theirs"
    assert merged["c"].source_uri == "u:ours"
    assert merged["new"].metadata == {"by": "us"}
    assert result.conflicts[1].ours is ABSENT


def test_the_snapshots_own_metadata_is_merged_too() -> None:
    def tagged(**tags: str) -> StateSnapshot:
        base = snapshot("a")
        return base.model_copy(update={"metadata": base.metadata.model_copy(update={"tags": tags})})

    result = merge(tagged(a="0", b="0"), tagged(a="1", b="0"), tagged(a="0", b="2", c="3"))
    assert result.conflicts == ()
    assert result.snapshot.metadata.tags == {"a": "1", "b": "2", "c": "3"}
    result = merge(tagged(a="0"), tagged(a="1"), tagged(a="2"))
    assert [(c.component_id, c.path) for c in result.conflicts] == [(None, "metadata.tags.a")]
