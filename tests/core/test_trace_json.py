"""The JSON form of traces: everything comes back, and nothing malformed gets in."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.operations import OUTSIDE, ROOT, Trace
from pytest_statepersist.core.trace_json import AbsentData, dump, load
from pytest_statepersist.core.tree import Directory, File, Symlink, Tree
from pytest_statepersist.errors import TraceError

SITE = op.Site("/home/me/save.py", 12, "save")
BASE = Tree(
    {
        0: Directory({"f": 1, "d": 2, "s": 3, "hard": 1, "big": 5}, 0o750, 7),
        1: File(b"old", 0o600, 5, (("user.a", b"1"),)),
        2: Directory({"caf\udce9": 4}),
        3: Symlink("d/f"),
        4: File(b"old"),
        5: File(AbsentData(1 << 40, "ab" * 32)),
    }
)
EVERYTHING = Trace(
    BASE,
    (
        op.Create(6, ROOT, "t", mode=0o640, path="t", site=SITE, time=1_700_000_000_000_000_000),
        op.Write(6, 0, b"new", op.Durability.DATA, path="t", site=SITE, task=3),
        op.Write(6, 3, b"new", op.Durability.FULL),
        op.Truncate(6, 5),
        op.Allocate(6, 9),
        op.Allocate(6),
        op.ZeroRange(6, 1, 2),
        op.SetAttributes(6, 0o600, -5, (0, 1), (("user.b", b"2"), ("user.c", b"3"))),
        op.SetAttributes(6, xattrs=(("user.b", None),)),
        op.Fsync(6),
        op.Fsync(6, True, True),
        op.SyncRange(6, 0, 4096),
        op.SyncAll(),
        op.Close(6),
        op.Rename(6, ROOT, "t", ROOT, "f", replaced=1),
        op.Mkdir(7, ROOT, "n"),
        op.Symlink(8, 7, "l", "../f"),
        op.Link(6, 7, "again"),
        op.Unlink(6, 7, "again"),
        op.Unlink(8, 7, "l"),
        op.Rmdir(7, ROOT, "n"),
        op.Create(9, OUTSIDE, "/tmp/x"),
        op.Rename(9, OUTSIDE, "/tmp/x", ROOT, "x"),
        op.Rename(9, ROOT, "x", ROOT, "f", replaced=6, exchange=True),
    ),
    (op.Acknowledgement(0, "None"), op.Acknowledgement(24, "'saved'")),
    "/somewhere",
    "strace",
)


def same(left: Trace, right: Trace) -> None:
    assert left == right
    assert left.operations == right.operations
    assert dict(left.base.nodes) == dict(right.base.nodes)
    for mine, theirs in zip(left.base.nodes.values(), right.base.nodes.values(), strict=True):
        assert getattr(mine, "mtime", None) == getattr(theirs, "mtime", None)


def test_everything_comes_back() -> None:
    text = EVERYTHING.to_json()
    assert text.isascii()
    same(Trace.from_json(text), EVERYTHING)
    assert json.loads(text)["version"] == 1


def test_equal_contents_are_stored_once() -> None:
    blobs = json.loads(dump(EVERYTHING))["blobs"]
    assert len(blobs) == len(set(blobs)) == 5


def test_a_large_content_is_absent_and_says_so() -> None:
    node = load(dump(EVERYTHING)).base["big"]
    assert isinstance(node, File)
    assert isinstance(node.content, AbsentData)
    with pytest.raises(TraceError, match="record again"):
        node.content.read(0, 1)


names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=()), min_size=1, max_size=8
).filter(lambda name: name not in (".", ".."))
sites = st.none() | st.builds(op.Site, st.text(), st.integers(0, 10**6), st.text())
common = {
    "path": st.text(max_size=5),
    "site": sites,
    "time": st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
    "task": st.integers(0, 9),
}
changes = st.one_of(
    st.builds(op.Write, st.just(1), st.integers(0, 1 << 40), st.binary(max_size=40), **common),
    st.builds(op.Truncate, st.just(1), st.integers(0, 1 << 40), **common),
    st.builds(op.SetAttributes, st.just(1), st.none() | st.integers(0, 0o7777), **common),
    st.builds(op.Fsync, st.sampled_from([0, 1]), st.booleans(), st.booleans(), **common),
    st.builds(op.Close, st.just(1), **common),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(changes, max_size=8), names, st.binary(max_size=20), st.lists(st.text(), max_size=2)
)
def test_round_trip(
    operations: list[op.Operation], name: str, content: bytes, texts: list[str]
) -> None:
    base = Tree({0: Directory({name: 1}), 1: File(content)})
    marks = tuple(op.Acknowledgement(len(operations), text) for text in texts)
    trace = Trace(base, tuple(operations), marks)
    same(load(dump(trace)), trace)


TEXT = dump(EVERYTHING)
DOCUMENT: dict[str, Any] = json.loads(TEXT)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        items: list[tuple[Any, Any]] = list(value.items())
    else:
        items = list(enumerate(value)) if isinstance(value, list) else []
    for key, item in items:
        found += places(item, (*path, key))
    return found


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    here: Any = document
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    return document


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=6),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(places(DOCUMENT)), junk)
def test_a_changed_text_is_read_or_refused(path: tuple[Any, ...], value: Any) -> None:
    try:
        trace = load(json.dumps(changed(path, value)))
    except TraceError:
        return
    same(load(dump(trace)), trace)


@settings(max_examples=100, deadline=None)
@given(
    st.text(max_size=30)
    | st.integers(0, len(dump(EVERYTHING)) - 1).map(dump(EVERYTHING).__getitem__)
)
def test_what_is_no_trace_is_refused(text: str) -> None:
    with pytest.raises(TraceError):
        load(text)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 2, "version 2"),
        (("format",), "other", "format"),
        (("blobs", 0), "not base64!", "base64"),
        (("operations", 1, "data"), 99, "not there"),
        (("operations", 1, "offset"), -1, "negative"),
        (("operations", 1, "offset"), 1 << 64, "64 bits"),
        (("operations", 1, "offset"), True, "whole number"),
        (("operations", 1, "op"), "eval", "unknown kind"),
        (("operations", 1, "durability"), "maybe", "unknown"),
        (("operations", 0, "name"), "a/b", "not a name"),
        (("operations", 0, "mode"), 0o10000, "mode"),
        (("operations", 0, "parent"), -2, "negative"),
        (("operations", 0, "inode"), 1, "was there before"),
        (("acknowledgements", 0, 0), 25, "behind the last"),
        (("base", 0, "entries", "f"), 77, "does not contain"),
        (("base", 2, "entries"), {"loop": 0}, "twice"),
        (("base", 0, "entries"), {"..": 1}, "entry"),
        (("base", 1, "inode"), 0, "twice"),
        (("base", 1, "kind"), "fifo", "unknown kind"),
        (("base", 5, "content", "digest"), "xyz", "SHA-256"),
        (("sites", 0), ["f"], "list of 3"),
        (("more",), 1, "too much"),
    ],
)
def test_each_mistake_is_named(path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        load(json.dumps(changed(path, value)))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "NaN", "[" * 100_000])
def test_other_texts(text: str) -> None:
    with pytest.raises(TraceError):
        load(text)


def test_huge_sizes_cost_no_memory() -> None:
    trace = Trace(BASE, (op.Truncate(1, 1 << 60), op.Write(1, 1 << 61, b"end")))
    assert load(dump(trace)) == trace
