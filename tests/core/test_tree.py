"""Trees and contents as values."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_statepersist.core.tree import (
    LARGE,
    ROOT,
    Directory,
    File,
    PatchedData,
    Symlink,
    Tree,
    digest_of,
    read_content,
    size_of,
)
from pytest_statepersist.errors import TraceError


class Held:
    """A large content that is held in memory after all."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.digest = hashlib.sha256(data).hexdigest()

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


@given(
    st.binary(max_size=30),
    st.integers(0, 40),
    st.integers(0, 40),
    st.dictionaries(st.sampled_from([0, 10, 20, 30]), st.binary(max_size=10), max_size=4),
    st.integers(0, 45),
    st.integers(0, 45),
)
def test_patched_data_is_a_bytearray(
    base: bytes, kept: int, size: int, patches: dict[int, bytes], offset: int, length: int
) -> None:
    patches = {at: data[: max(0, size - at)] for at, data in patches.items()}
    plain = bytearray(base[:kept].ljust(size, b"\0")[:size])
    for at, data in patches.items():
        plain[at : at + len(data)] = data
    patched = PatchedData(Held(base), kept, size, patches)
    assert patched.read(offset, length) == plain[offset : offset + length]
    assert patched.digest == hashlib.sha256(plain).hexdigest()
    assert read_content(patched) == plain
    assert read_content(patched, 3) == plain[3:]
    assert size_of(patched) == size


def test_a_digest_is_the_same_however_the_content_is_held() -> None:
    data = bytes(range(256)) * (LARGE // 128)
    patched = PatchedData(Held(data), len(data), len(data), {})
    assert digest_of(patched) == digest_of(data) == Held(data).digest
    one, other = (Tree({0: Directory({"f": 1}), 1: File(held)}) for held in (data, patched))
    assert one == other


def test_from_mapping_makes_parents_links_and_empty_directories() -> None:
    tree = Tree.from_mapping({"a/b/c": b"1", "a/d": None, "a/l": "b/c", "f": b""})
    assert [path for path, _, _ in tree.walk()] == ["a", "a/b", "a/b/c", "a/d", "a/l", "f"]
    assert tree.paths() == ["a/b/c", "f"]
    assert tree.read("a/b/c") == b"1"
    assert tree["a/l"] == Symlink("b/c")
    assert tree.resolve("") == tree.resolve(".") == ROOT
    assert tree.resolve("a//b/./c") == tree.resolve("a/b/c")
    assert "a/d" in tree
    assert "a/l/c" not in tree
    assert 1 not in tree
    with pytest.raises(KeyError):
        tree["nothing"]
    with pytest.raises(TraceError, match="not a file"):
        tree.read("a")


@pytest.mark.parametrize("path", ["", "/", "../f", "a/./b", "f/g"])
def test_a_path_that_leaves_the_tree_is_refused(path: str) -> None:
    with pytest.raises(TraceError):
        Tree.from_mapping({"f": b"", path: b""})


def test_a_tree_needs_a_root_and_no_dangling_names() -> None:
    with pytest.raises(TraceError, match="root"):
        Tree({0: File()})
    with pytest.raises(TraceError, match="points to inode 7"):
        Tree({0: Directory({"f": 7})})


def test_equality_is_what_a_reader_can_see() -> None:
    def tree(**fields: object) -> Tree:
        return Tree({0: Directory({"f": 5}), 5: File(b"x", **fields)})  # type: ignore[arg-type]

    assert tree() == tree(mtime=3)
    assert hash(tree()) == hash(tree(mtime=3))
    assert tree() == Tree({0: Directory({"f": 9}), 9: File(b"x"), 4: File(b"lost")})
    assert tree() != tree(mode=0o600)
    assert tree() != tree(xattrs=(("user.a", b"1"),))
    linked = Tree({0: Directory({"f": 5, "g": 5}), 5: File(b"x")})
    copied = Tree({0: Directory({"f": 5, "g": 6}), 5: File(b"x"), 6: File(b"x")})
    assert linked != copied
    assert linked.differences(copied) == ["the hard links connect different names"]
    assert tree() != "a tree"


def test_differences_name_each_path_once() -> None:
    one = Tree.from_mapping({"a": b"1", "b": b"12", "c": b"1", "d": None, "l": "x", "same": b""})
    two = Tree.from_mapping({"a": b"2", "b": b"1", "d": b"", "l": "y", "e": b"", "same": b""})
    assert one.differences(two) == [
        "a has other bytes of the same length",
        "b has 1 bytes instead of 2",
        "c is missing",
        "d is a file, not a directory",
        "e is there unexpectedly",
        "l points to 'y' instead of 'x'",
    ]
    assert one.differences(one) == []
    assert repr(two).startswith("<Tree a: 1 bytes, b: 1 bytes, d: 0 bytes")
    assert repr(Tree()) == "<Tree empty>"
