"""Traces and trees that a user makes by hand, and what a model says of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_statepersist import (
    MODELS,
    CrashSimulator,
    HardLink,
    Trace,
    TraceByHand,
    TraceError,
    Tree,
    UserError,
)
from pytest_statepersist.core import operations as op

O8, N8 = b"O" * 8192, b"N" * 8192
POSIX, EXT4, KILL = MODELS["posix"], MODELS["ext4"], MODELS["kill"]


def test_a_tree_is_read_from_a_directory_and_a_file_from_a_tree(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "d").mkdir(parents=True)
    (state / "f").write_bytes(b"one")
    os.link(state / "f", state / "d" / "g")
    (state / "l").symlink_to("f")
    (state / "large").write_bytes(b"x" * 2_000_000)
    tree = Tree.read(state)
    (state / "f").write_bytes(b"two")
    (state / "large").write_bytes(b"y" * 2_000_000)
    large = b"x" * 2_000_000
    wanted = {"f": b"one", "d/g": HardLink("f"), "l": "f", "large": large}
    for path, mode in (("f", 0o644), ("d", 0o755), ("", 0o755)):
        assert tree[path].mode & 0o7000 == mode & 0o7000  # type: ignore[union-attr]
    assert not [line for line in Tree.from_mapping(wanted).differences(tree) if "mode" not in line]
    assert tree.read("f") == tree.content("d/g") == b"one"
    assert tree.read("large") == large
    with pytest.raises(UserError, match="not a directory"):
        Tree.read(state / "f")
    with pytest.raises(UserError, match="not a directory"):
        Tree.read(str(state / "nothing"))


def test_what_was_recorded_and_what_a_disk_shows(tmp_path: Path) -> None:
    """The way of a user who has a real workload and a real disk after a crash."""
    state, seen = tmp_path / "state", tmp_path / "seen"
    state.mkdir()
    seen.mkdir()
    (state / "f").write_bytes(O8)
    with CrashSimulator().record(state) as recording:
        (state / "t").write_bytes(N8)
        os.replace(state / "t", state / "f")
        os.link(state / "f", state / "g")
        os.unlink(state / "f")
    (seen / "f").write_bytes(N8)
    (seen / "g").write_bytes(N8)  # a copy of a disk does not know of links
    end = len(recording.trace)
    assert POSIX.allows(recording.trace, Tree.read(seen))
    assert EXT4.allows(recording.trace, Tree.read(seen), at=end)
    (seen / "f").write_bytes(O8)
    assert not EXT4.allows(recording.trace, Tree.read(seen))


def test_links_of_the_tree_must_be_links_of_the_state() -> None:
    trace = TraceByHand({"a": O8, "b": O8}).create("c").trace
    linked = Tree.from_mapping({"a": O8, "b": HardLink("a")})
    assert not POSIX.allows(trace, linked)
    assert POSIX.allows(trace, Tree.from_mapping({"a": O8, "b": O8}))
    trace = TraceByHand({"a": O8}).link("a", "b").write("a", 0, N8).trace
    assert POSIX.allows(trace, Tree.from_mapping({"b": HardLink("a"), "a": N8}))
    assert POSIX.allows(trace, Tree.from_mapping({"a": N8, "b": N8}))
    assert not POSIX.allows(trace, Tree.from_mapping({"a": N8, "b": O8}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TraceByHand({"f": b""}).rename("g", "f"), "'g', which is not there"),
        (lambda: TraceByHand({"f": b""}).create("f"), "'f', which is there"),
        (lambda: TraceByHand({"f": b""}).create("d/f"), "no directory"),
        (lambda: TraceByHand({"f": b""}).mkdir("d").write("d", 0, b""), "regular file"),
        (lambda: TraceByHand({"d/f": b""}).rmdir("d"), "no empty directory"),
        (lambda: TraceByHand({"d": None}).unlink("d"), "is a directory"),
        (lambda: TraceByHand({"f": b""}).write("f", 0, b"", "some"), "durability"),
        (lambda: TraceByHand({"f": b""}).rename("f", "g", exchange=True), "'g', which is not"),
        (lambda: Tree.from_mapping({"a": HardLink("b")}), "no file here"),
        (lambda: Tree.from_mapping({"a": b"", "a/": b""}), "twice"),
        (lambda: Tree.from_mapping({"a": 5}), "int"),  # type: ignore[dict-item]
    ],
)
def test_what_could_not_have_happened_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        make()


def test_a_trace_that_contradicts_itself_gets_no_answer() -> None:
    base = Tree.from_mapping({"f": b"old"})
    for operation in (op.Write(7, 0, b"x"), op.Unlink(1, 0, "g"), op.Fsync(9)):
        with pytest.raises(TraceError, match="operation 0"):
            POSIX.allows(Trace(base, (operation,)), base)
    for at in (-1, 1):
        with pytest.raises(UserError, match="crash point"):
            POSIX.allows(Trace(base), base, at=at)


def test_json_by_hand_leaves_out_what_has_a_default() -> None:
    text = json.dumps(
        {
            "format": "statepersist-trace",
            "version": 1,
            "blobs": ["bmV3", "b2xk"],
            "base": [
                {"inode": 0, "kind": "directory", "entries": {"f": 1}},
                {"inode": 1, "kind": "file", "content": 1},
            ],
            "operations": [
                {"op": "create", "inode": 2, "parent": 0, "name": "t"},
                {"op": "write", "inode": 2, "offset": 0, "data": 0},
                {"op": "fsync", "inode": 2},
                {
                    "op": "rename",
                    "inode": 2,
                    "parent": 0,
                    "name": "t",
                    "new_parent": 0,
                    "new_name": "f",
                    "replaced": 1,
                },
            ],
        }
    )
    by_hand = TraceByHand({"f": b"old"}).create("t", b"new").fsync("t").rename("t", "f").trace
    trace = Trace.from_json(text)
    assert trace.base == by_hand.base
    assert [type(each) for each in trace.operations] == [type(each) for each in by_hand.operations]
    assert not POSIX.allows(trace, Tree.from_mapping({"f": b""}))
    assert POSIX.allows(trace, Tree.from_mapping({"f": b"new"}))
    with pytest.raises(TraceError, match="'offset'"):
        Trace.from_json(text.replace('"offset": 0, ', ""))
    with pytest.raises(TraceError, match="'ofset'"):
        Trace.from_json(text.replace('"offset": 0, ', '"offset": 0, "ofset": 1, '))


def test_a_process_that_dies_leaves_no_half_of_a_truncation() -> None:
    trace = TraceByHand({"f": O8}).truncate("f", 5000).trace
    half = Tree.from_mapping({"f": b"O" * 5000 + bytes(3192)})
    assert not KILL.allows(trace, half)
    assert POSIX.allows(trace, half)
    for size in (5000, 8192):
        assert KILL.allows(trace, Tree.from_mapping({"f": O8[:size]}))
    grown = TraceByHand({"f": O8}).truncate("f", 5000).truncate("f", 8192).trace
    assert KILL.allows(grown, half, at=2)
    assert not KILL.allows(grown, Tree.from_mapping({"f": O8}), at=2)


def test_the_mode_of_the_root_is_no_part_of_a_tree() -> None:
    trace = TraceByHand({"d/f": O8}).chmod("", 0o700).chmod("d", 0o700).fsync("").fsync("d").trace
    old, new = Tree.from_mapping({"d/f": O8}), Tree.from_mapping({"d/f": O8})
    nodes = dict(new.nodes)
    nodes[2] = replace(nodes[2], mode=0o700)
    assert POSIX.allows(trace, Tree(nodes), at=4)
    assert not POSIX.allows(trace, old, at=4)
