"""apply: what a trace leaves when nothing is lost."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.apply import Extents, apply
from pytest_statepersist.core.operations import OUTSIDE, ROOT, Trace
from pytest_statepersist.core.tree import LARGE, File, Tree, size_of
from pytest_statepersist.errors import TraceError

BASE = Tree.from_mapping({"f": b"old", "d/g": b"g", "e": None})
F, D, G, E = (BASE.resolve(path) or 0 for path in ("f", "d", "d/g", "e"))


def after(*operations: op.Operation, base: Tree = BASE) -> Tree:
    return apply(Trace(base, operations))


step = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 40), st.binary(max_size=20)),
    st.tuples(st.just("zero"), st.integers(0, 40), st.integers(0, 20)),
    st.tuples(st.just("truncate"), st.integers(0, 40)),
)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=30), st.lists(step, max_size=12))
def test_extents_are_a_bytearray(start: bytes, steps: list[tuple[object, ...]]) -> None:
    extents, plain = Extents(start), bytearray(start)
    for name, *arguments in steps:
        getattr(extents, str(name))(*arguments)
        if name == "write":
            offset, data = arguments
            if data:
                plain.extend(bytes(max(0, offset - len(plain))))
                plain[offset : offset + len(data)] = data
        elif name == "zero":
            offset, length = arguments
            end = min(offset + length, len(plain))
            if end > offset:
                plain[offset:end] = bytes(end - offset)
        else:
            (size,) = arguments
            plain = plain[:size] + bytes(max(0, size - len(plain)))
        assert extents.size == len(plain)
    assert extents.read(0, 1000) == plain
    assert extents.read(3, 7) == plain[3:10]
    assert extents.digest == hashlib.sha256(plain).hexdigest()


class Counting:
    """A large content that counts what is read of it."""

    size = 1 << 40
    digest = "d"

    def __init__(self) -> None:
        self.loaded = 0

    def read(self, offset: int, length: int) -> bytes:
        self.loaded += length
        return b"\xab" * length


def test_a_large_base_is_never_loaded() -> None:
    big = Counting()
    base = Tree({0: Tree.from_mapping({"big": b""}).nodes[0], 1: File(big)})
    assert after(base=base).nodes[1] == File(big)
    node = after(op.Write(1, 1 << 30, b"new"), base=base).nodes[1]
    assert isinstance(node, File)
    assert size_of(node.content) == 1 << 40
    assert not isinstance(node.content, bytes)
    assert node.content.read((1 << 30) - 1, 5) == b"\xabnew\xab"
    assert big.loaded == 2


def test_a_large_file_grown_by_writes_stays_pieces() -> None:
    tree = after(*(op.Write(F, i * 4096, b"x" * 4096) for i in range(300)))
    node = tree["f"]
    assert isinstance(node, File)
    assert isinstance(node.content, Extents)
    assert node.content.digest == hashlib.sha256(b"x" * 4096 * 300).hexdigest()
    assert node.content.size > LARGE


def test_a_save_by_rename() -> None:
    tree = after(
        op.Create(9, ROOT, "t", mode=0o600),
        op.Write(9, 0, b"new", time=5),
        op.Fsync(9),
        op.Close(9),
        op.Rename(9, ROOT, "t", ROOT, "f", replaced=F),
        op.Fsync(ROOT),
    )
    node = tree["f"]
    assert node == File(b"new", 0o600)
    assert isinstance(node, File)
    assert node.mtime == 5
    assert "t" not in tree


def test_every_operation() -> None:
    tree = after(
        op.Mkdir(10, ROOT, "n", mode=0o700),
        op.Symlink(11, 10, "s", "../f"),
        op.Link(F, 10, "hard"),
        op.Truncate(F, 2),
        op.Allocate(F, 6),
        op.Allocate(F),
        op.Write(F, 4, b"xy"),
        op.ZeroRange(F, 5, 100),
        op.SetAttributes(F, mode=0o600, mtime=7, xattrs=(("user.b", b"1"), ("user.a", b"2"))),
        op.SetAttributes(F, xattrs=(("user.b", None),)),
        op.SetAttributes(11, mode=0o777),
        op.SetAttributes(D, mode=0o711, mtime=8),
        op.SyncRange(F, 0, 4096),
        op.SyncAll(),
        op.Unlink(G, D, "g"),
        op.Rmdir(D, ROOT, "d"),
        op.Rename(10, ROOT, "n", ROOT, "e", replaced=E),
    )
    assert [path for path, _, _ in tree.walk()] == ["e", "e/hard", "e/s", "f"]
    assert tree["f"] == File(b"ol\0\0x\0", 0o600, xattrs=(("user.a", b"2"),))
    assert tree.resolve("f") == tree.resolve("e/hard")


def test_outside_is_not_in_the_tree() -> None:
    tree = after(
        op.Create(9, OUTSIDE, ""),
        op.Create(10, OUTSIDE, "/tmp/x"),
        op.Write(10, 0, b"x"),
        op.Rename(10, OUTSIDE, "/tmp/x", ROOT, "x"),
        op.Rename(F, ROOT, "f", OUTSIDE, "/tmp/f"),
        op.Write(F, 0, b"still a file"),
        op.Rename(D, ROOT, "d", OUTSIDE, "/tmp/f"),
        op.Link(9, E, "tmpfile"),
    )
    assert tree.paths() == ["e/tmpfile", "x"]
    assert tree.read("x") == b"x"


def test_exchange() -> None:
    tree = after(op.Rename(F, ROOT, "f", D, "g", replaced=G, exchange=True))
    assert (tree.read("f"), tree.read("d/g")) == (b"g", b"old")


@pytest.mark.parametrize(
    "operation",
    [
        op.Create(F, ROOT, "n"),
        op.Create(9, ROOT, "f"),
        op.Create(9, ROOT, ""),
        op.Create(9, ROOT, "a/b"),
        op.Create(9, ROOT, ".."),
        op.Create(9, F, "n"),
        op.Create(9, 77, "n"),
        op.Create(-5, ROOT, "n"),
        op.Link(77, ROOT, "n"),
        op.Link(D, ROOT, "n"),
        op.Link(OUTSIDE, ROOT, "n"),
        op.Unlink(F, ROOT, "g"),
        op.Unlink(G, ROOT, "f"),
        op.Unlink(E, ROOT, "e"),
        op.Rmdir(D, ROOT, "d"),
        op.Rmdir(F, ROOT, "f"),
        op.Rename(F, ROOT, "f", D, "g"),
        op.Rename(F, ROOT, "f", D, "g", replaced=E),
        op.Rename(F, ROOT, "f", ROOT, "n", exchange=True),
        op.Rename(E, ROOT, "e", ROOT, "d", replaced=D),
        op.Rename(D, ROOT, "d", D, "d"),
        op.Write(D, 0, b"1"),
        op.Write(F, -1, b"1"),
        op.Write(77, 0, b"1"),
        op.Truncate(F, -1),
        op.Allocate(F, 1),
        op.ZeroRange(F, 0, -1),
        op.Fsync(77),
        op.Fsync(OUTSIDE),
        op.Close(D),
        op.SetAttributes(77, mode=1),
        op.SetAttributes(F, xattrs=(("user.x", None),)),
    ],
    ids=repr,
)
def test_a_contradiction_is_named(operation: op.Operation) -> None:
    with pytest.raises(TraceError, match=r"operation 0 \(\w+ ''\)"):
        after(operation)
