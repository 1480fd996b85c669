"""The builder: names, inodes, and what happened outside."""

from __future__ import annotations

import pytest

from pytest_statepersist.core.operations import (
    OUTSIDE,
    ROOT,
    Close,
    Create,
    Durability,
    Fsync,
    Link,
    Mkdir,
    Rename,
    Unlink,
    Write,
)
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.recorders.builder import NOWHERE, TraceBuilder


def make(**files: bytes | None) -> TraceBuilder:
    return TraceBuilder("/w", Tree.from_mapping(files))


def kinds(builder: TraceBuilder) -> list[type]:
    return [type(operation) for operation in builder.finish().operations]


def test_a_save_by_rename() -> None:
    builder = make(f=b"old")
    old = builder.entry(ROOT, "f")
    t = builder.create(ROOT, "t", NOWHERE, identity=(1, 5))
    builder.opened(t)
    builder.write(t, 0, b"new!", NOWHERE)
    builder.fsync(t, NOWHERE)
    builder.close(t, NOWHERE, written=True)
    builder.rename(ROOT, "t", ROOT, "f", NOWHERE)
    trace = builder.finish()
    assert kinds(builder) == [Create, Write, Fsync, Close, Rename]
    rename = trace.operations[-1]
    assert isinstance(rename, Rename)
    assert (rename.inode, rename.replaced, rename.path) == (t, old, "f")
    assert builder[t].size == 4
    assert builder.entry(ROOT, "f") == t
    assert builder.entry(ROOT, "t") is None


def test_a_freed_real_inode_is_forgotten_only_when_closed_and_unlinked() -> None:
    builder = make()
    first = builder.create(ROOT, "a", NOWHERE, identity=(1, 7))
    builder.opened(first)
    builder.unlink(ROOT, "a", NOWHERE)
    assert builder.find((1, 7)) == first
    builder.close(first, NOWHERE, written=False)
    assert builder.find((1, 7)) is None
    assert builder.create(ROOT, "b", NOWHERE, identity=(1, 7)) != first


def test_a_file_outside_that_stays_there_is_not_in_the_trace() -> None:
    builder = make()
    number = builder.create(OUTSIDE, "/tmp/x", NOWHERE)
    builder.write(number, 0, b"x", NOWHERE)
    builder.acknowledge("'saved'")
    builder.mkdir(ROOT, "d", NOWHERE)
    trace = builder.finish()
    assert kinds(builder) == [Mkdir]
    assert trace.acknowledgements[0].position == 0


def test_a_file_outside_that_is_renamed_in_keeps_its_history_in_place() -> None:
    builder = make()
    number = builder.create(OUTSIDE, "/tmp/x", NOWHERE)
    builder.mkdir(ROOT, "d", NOWHERE)
    builder.write(number, 0, b"x", NOWHERE)
    builder.fsync(number, NOWHERE)
    builder.rename(OUTSIDE, "/tmp/x", OUTSIDE, "/tmp/y", NOWHERE)
    builder.acknowledge("")
    builder.rename(OUTSIDE, "/tmp/y", ROOT, "f", NOWHERE)
    trace = builder.finish()
    assert kinds(builder) == [Create, Mkdir, Write, Fsync, Rename]
    assert trace.acknowledgements[0].position == 4
    assert trace.operations[-1] == Rename(number, OUTSIDE, "/tmp/y", ROOT, "f", path="f")


def test_an_adopted_file_counts_as_unsynced_until_a_later_sync() -> None:
    builder = make()
    builder.adopt("/tmp/x", b"data", NOWHERE, identity=(1, 1))
    builder.rename(OUTSIDE, "/tmp/x", ROOT, "f", NOWHERE)
    assert kinds(builder) == [Create, Write, Rename]


def test_a_directory_made_outside_brings_its_files_and_their_history() -> None:
    builder = make()
    top = builder.mkdir(OUTSIDE, "/tmp/d", NOWHERE)
    f = builder.create(top, "f", NOWHERE)
    builder.write(f, 0, b"1", NOWHERE)
    gone = builder.create(top, "g", NOWHERE)
    builder.unlink(top, "g", NOWHERE)
    builder.rename(OUTSIDE, "/tmp/d", ROOT, "d", NOWHERE)
    assert kinds(builder) == [Mkdir, Create, Write, Create, Unlink, Rename]
    assert builder[f].path == "d/f"
    assert gone not in [inode.number for inode in builder.inside()]


def test_a_directory_that_was_there_outside_is_adopted_with_links() -> None:
    builder = make()
    seen = builder.create(OUTSIDE, "/tmp/d/seen", NOWHERE, identity=(1, 2))
    builder.fsync(seen, NOWHERE)
    tree = Tree.from_mapping({"seen": b"", "sub/f": b"1"})
    identities = {(1, 2): tree.resolve("seen") or 0}
    builder.adopt_tree("/tmp/d", tree, NOWHERE, identities=identities)
    builder.rename(OUTSIDE, "/tmp/d", ROOT, "d", NOWHERE)
    assert kinds(builder) == [Create, Fsync, Mkdir, Rename, Mkdir, Create, Write, Rename]
    assert builder.locate("/w/d/seen").inode == seen


def test_a_file_renamed_out_and_back_keeps_its_inode() -> None:
    builder = make(f=b"1")
    number = builder.entry(ROOT, "f")
    builder.rename(ROOT, "f", OUTSIDE, "/tmp/f", NOWHERE)
    assert builder.entry(ROOT, "f") is None
    builder.rename(OUTSIDE, "/tmp/f", ROOT, "g", NOWHERE)
    assert builder.entry(ROOT, "g") == number
    assert kinds(builder) == [Rename, Rename]


def test_exchange_swaps_the_names() -> None:
    builder = make(a=b"1", b=b"2")
    a, b = builder.entry(ROOT, "a"), builder.entry(ROOT, "b")
    builder.rename(ROOT, "a", ROOT, "b", NOWHERE, exchange=True)
    assert (builder.entry(ROOT, "a"), builder.entry(ROOT, "b")) == (b, a)


def test_two_names_of_one_inode_rename_to_nothing() -> None:
    builder = make(a=b"1")
    a = builder.entry(ROOT, "a")
    assert a is not None
    builder.link(a, ROOT, "b", NOWHERE)
    builder.rename(ROOT, "a", ROOT, "b", NOWHERE)
    assert kinds(builder) == [Link]
    assert builder.entry(ROOT, "a") == a


@pytest.mark.parametrize(
    ("act", "culprit"),
    [
        (lambda b: b.unlink(ROOT, "no", NOWHERE), "no"),
        (lambda b: b.rename(ROOT, "no", ROOT, "f", NOWHERE), "no"),
        (lambda b: b.create(ROOT, "f", NOWHERE), "f"),
        (lambda b: b.rename(ROOT, "f", ROOT, "no", NOWHERE, exchange=True), "no"),
    ],
)
def test_what_cannot_be_true_is_a_doubt(act: object, culprit: str) -> None:
    builder = make(f=b"1")
    assert callable(act)
    act(builder)
    assert [doubt.culprit for doubt in builder.doubts] == [culprit]


def test_a_large_file_outside_is_not_kept_and_can_still_be_adopted() -> None:
    builder = make()
    number = builder.create(OUTSIDE, "/tmp/big", NOWHERE, identity=(1, 3))
    builder.acknowledge("")
    for index in range(65):
        builder.write(number, index << 20, b"x" * (1 << 20), NOWHERE)
    assert len(builder) == 0
    assert builder.find((1, 3)) is None
    assert builder.adopt("/tmp/big", b"whole", NOWHERE, identity=(1, 3)) == number
    builder.rename(OUTSIDE, "/tmp/big", ROOT, "big", NOWHERE)
    assert kinds(builder) == [Create, Write, Rename]
    assert builder.finish().acknowledgements[0].position == 0


def test_locate_walks_the_model() -> None:
    builder = TraceBuilder(
        "/w", Tree.from_mapping({"d/f": b"", "l": "d", "abs": "/w/d/f", "up": "../o"})
    )
    f = builder.base.resolve("d/f")
    d = builder.base.resolve("d")
    assert d is not None
    assert builder.locate("/w/d/f") == (d, "f", f)
    assert builder.locate("/w/./l/f") == (d, "f", f)
    assert builder.locate("/w/abs").inode == f
    assert builder.locate("/w/abs", follow=False).inode == builder.base.resolve("abs")
    assert builder.locate("f", start=d).inode == f
    assert builder.locate("../d/f", start=d).inode == f
    assert builder.locate("/w/d/../../w/d/f").inode == f
    assert builder.locate("/w/new") == (ROOT, "new", None)
    assert builder.locate("/w/up") == (OUTSIDE, "/o", None)
    assert builder.locate("/elsewhere/x") == (OUTSIDE, "/elsewhere/x", None)
    assert builder.locate("/w").inode == ROOT
    assert builder.locate("/w/d").inode == d
    loop = TraceBuilder("/w", Tree.from_mapping({"a": "b", "b": "a"}))
    assert loop.locate("/w/a").parent == ROOT


def test_locate_enters_a_directory_made_outside() -> None:
    builder = make()
    top = builder.mkdir(OUTSIDE, "/tmp/d", NOWHERE)
    f = builder.create(top, "f", NOWHERE)
    assert builder.locate("/tmp/d/f") == (top, "f", f)
    assert builder.locate("/tmp/d/../e") == (OUTSIDE, "/tmp/e", None)


def test_paths_of_what_is_below_a_renamed_directory_follow() -> None:
    builder = TraceBuilder("/w", Tree.from_mapping({"d/e/f": b""}))
    f = builder.base.resolve("d/e/f")
    assert f is not None
    builder.rename(ROOT, "d", ROOT, "x", NOWHERE)
    builder.write(f, 0, b"1", NOWHERE)
    assert builder.finish().operations[-1].path == "x/e/f"


def test_writes_of_which_the_log_has_only_the_bytes() -> None:
    def write(number: int, offset: int, data: bytes) -> None:
        builder.writes.extend((builder[number].path, None, 5, 1, number, offset))
        builder.log.append(data)

    builder = make(f=b"old")
    inside = builder.entry(ROOT, "f")
    assert inside is not None
    outside = builder.create(OUTSIDE, "/x", NOWHERE)
    write(outside, 0, b"lost")
    write(inside, 0, b"one")
    builder.acknowledge("1")
    builder.fsync(inside, NOWHERE)
    write(inside, 3, b"two")
    assert builder.positions() == [0, 0, 0, 1, 2, 3]
    two = (Write, "f", None, 5, 1, inside, 3, b"two", Durability.NONE)
    assert builder.entries(4) == [two]
    for _ in range(2):
        trace = builder.finish()
        assert trace.operations == (
            Write(inside, 0, b"one", path="f", time=5, task=1),
            Fsync(inside, path="f"),
            Write(inside, 3, b"two", path="f", time=5, task=1),
        )
        assert [mark.position for mark in trace.acknowledgements] == [1]
        assert builder.entries()[-1] == two
        builder.forget(outside)  # and then all is as it was
    write(inside, 6, b"three")
    assert [entry[7] for entry in builder.entries() if entry[0] is Write] == [
        b"one",
        b"two",
        b"three",
    ]
