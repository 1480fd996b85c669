"""A disk tree as a value.

Belongs here: what a file system shows at one moment (names, links, contents, modes, times) and how
two such moments are compared. Rules:

1. A tree is made of inodes, so hard links are visible; paths are derived.
2. Contents are bytes, or a `LargeData` that reads a piece at a time; no tree holds a big file.
3. Nothing here opens a file. What is large comes from an object that the edge supplies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol, TypeAlias, overload

from pytest_statepersist.errors import TraceError

__all__ = [
    "BLOCK",
    "LARGE",
    "OUTSIDE",
    "ROOT",
    "Content",
    "Directory",
    "File",
    "HardLink",
    "LargeData",
    "Node",
    "PatchedData",
    "Symlink",
    "Tree",
    "digest_of",
    "read_content",
    "size_of",
]

ROOT = 0
"""Inode number of the watched directory itself."""
OUTSIDE = -1
"""Stands for every directory outside the watched one; never part of a tree."""
BLOCK = 4096
"""Bytes in a data block: the unit in which writes tear, at file offsets that it divides."""
LARGE = 1 << 20
"""Files above this many bytes are kept as `LargeData`."""


class LargeData(Protocol):
    """Contents that are not held in memory: a size, a digest, and pieces on request."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the whole content."""

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``."""


Content: TypeAlias = "bytes | LargeData"


@dataclass(frozen=True, slots=True)
class PatchedData:
    """A large content with some of its bytes replaced; the rest stays where it is.

    The first ``kept`` bytes come from ``base``, zeros follow up to ``size``, and ``patches``
    (offset to bytes, not overlapping) lie over both.
    """

    base: LargeData
    kept: int
    size: int
    patches: Mapping[int, bytes]

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the whole content, computed piece by piece."""
        whole = hashlib.sha256()
        for offset in range(0, self.size, LARGE):
            whole.update(self.read(offset, LARGE))
        return whole.hexdigest()

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``."""
        end = min(offset + length, self.size)
        if end <= offset:
            return b""
        kept = min(self.kept, self.base.size)
        piece = bytearray(self.base.read(offset, min(end, kept) - offset) if offset < kept else b"")
        piece.extend(bytes(end - offset - len(piece)))
        for begin, data in self.patches.items():
            if begin < end and begin + len(data) > offset:
                inside = data[max(0, offset - begin) : end - begin]
                at = max(begin, offset) - offset
                piece[at : at + len(inside)] = inside
        return bytes(piece)


def size_of(content: Content) -> int:
    """Return the length of a content in bytes."""
    return len(content) if isinstance(content, bytes) else content.size


def read_content(content: Content, offset: int = 0, length: int | None = None) -> bytes:
    """Return a piece of a content; the whole when ``length`` is left out."""
    if isinstance(content, bytes):
        return content[offset:] if length is None else content[offset : offset + length]
    return content.read(offset, content.size - offset if length is None else length)


def digest_of(content: Content) -> str:
    """Return the hexadecimal SHA-256 of a content."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return content.digest


@dataclass(frozen=True, slots=True)
class File:
    """A regular file. ``mtime`` is in nanoseconds since the epoch, ``None`` where unknown."""

    content: Content = b""
    mode: int = 0o644
    mtime: int | None = field(default=None, compare=False)
    xattrs: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory: names to inode numbers."""

    entries: Mapping[str, int] = field(default_factory=dict)
    mode: int = 0o755
    mtime: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link and its target as stored."""

    target: str


@dataclass(frozen=True, slots=True)
class HardLink:
    """In `Tree.from_mapping`: one more name of the file at another path of the same mapping."""

    path: str


Node: TypeAlias = File | Directory | Symlink


class _Reading:
    """`Tree.read`: of a tree the bytes of one of its files, of the class a real directory.

    Opening files is the business of an edge, which is asked for by name when it is needed.
    """

    @overload
    def __get__(self, tree: None, owner: type[Tree]) -> Callable[[object], Tree]: ...

    @overload
    def __get__(self, tree: Tree, owner: type[Tree]) -> Callable[[str], bytes]: ...

    def __get__(self, tree: Tree | None, owner: type[Tree]) -> Callable[..., object]:
        if tree is not None:
            return tree.content
        read: Callable[..., object] = import_module("pytest_statepersist.recorders.scan").read_tree
        return read


class Tree:
    """One moment of a directory: inode number to node; the root is inode 0.

    Two trees are equal when they show the same names, links, contents, modes and extended
    attributes; inode numbers and times do not count.

    ``Tree.read(directory)`` makes one of a real directory; ``tree.read(path)`` is `content`.
    """

    read = _Reading()
    __slots__ = ("_key", "nodes")

    def __init__(self, nodes: Mapping[int, Node] | None = None) -> None:
        self.nodes: Mapping[int, Node] = dict(nodes) if nodes is not None else {ROOT: Directory()}
        self._key: tuple[object, ...] | None = None
        root = self.nodes.get(ROOT)
        if not isinstance(root, Directory):
            raise TraceError("a tree needs a directory as inode 0, its root")
        for number, node in self.nodes.items():
            if isinstance(node, Directory):
                for name, child in node.entries.items():
                    if child not in self.nodes:
                        raise TraceError(
                            f"entry {name!r} of directory inode {number} points to inode {child}, "
                            "which the tree does not contain"
                        )

    @classmethod
    def from_mapping(cls, files: Mapping[str, bytes | str | HardLink | None]) -> Tree:
        """Build a tree from relative paths: bytes for a file, ``None`` for a directory.

        A ``str`` is the target of a symbolic link, a `HardLink` one more name of the file at
        another path. Parent directories are made as needed. Raises `TraceError` for what cannot be.
        """
        entries: dict[int, dict[str, int]] = {ROOT: {}}
        nodes: dict[int, Node] = {}
        numbers = 0

        def directory(parts: list[str]) -> int:
            nonlocal numbers
            here = ROOT
            for part in parts:
                found = entries[here].get(part)
                if found is None:
                    numbers += 1
                    found = entries[here][part] = numbers
                    entries[found] = {}
                if found not in entries:
                    raise TraceError(f"{'/'.join(parts)!r} passes through a file")
                here = found
            return here

        made: dict[str, int] = {}
        later: list[tuple[str, HardLink]] = []

        def place(path: str) -> list[str]:
            parts = [part for part in path.split("/") if part]
            if not parts or ".." in parts or "." in parts:
                raise TraceError(f"{path!r} is not a relative path inside a tree")
            return parts

        def enter(parts: list[str], number: int) -> None:
            parent = directory(parts[:-1])
            if parts[-1] in entries[parent]:
                raise TraceError(f"{'/'.join(parts)!r} is there twice")
            entries[parent][parts[-1]] = number
            made["/".join(parts)] = number

        for path, value in files.items():
            parts = place(path)
            if value is None:
                directory(parts)
            elif isinstance(value, HardLink):
                later.append((path, value))
            elif isinstance(value, str | bytes | bytearray | memoryview):
                numbers += 1
                enter(parts, numbers)
                number = made["/".join(parts)]
                nodes[number] = Symlink(value) if isinstance(value, str) else File(bytes(value))
            else:
                raise TraceError(
                    f"{path!r} is given as {type(value).__name__}: give bytes for a file, text for "
                    "a symbolic link, HardLink(path) for one more name, None for a directory"
                )
        for path, link in later:
            target = made.get("/".join(place(link.path)))
            if target is None:
                raise TraceError(f"{path!r} is a link to {link.path!r}, which is no file here")
            enter(place(path), target)
        nodes.update({number: Directory(names) for number, names in entries.items()})
        return cls(nodes)

    def resolve(self, path: str) -> int | None:
        """Return the inode number at a relative path, ``None`` where there is none.

        Symbolic links are not followed. ``""`` and ``"."`` are the root.
        """
        here = ROOT
        for part in path.split("/"):
            if part in ("", "."):
                continue
            node = self.nodes[here]
            if not isinstance(node, Directory) or part not in node.entries:
                return None
            here = node.entries[part]
        return here

    def __getitem__(self, path: str) -> Node:
        """Return the node at a path; raises `KeyError` where there is none."""
        number = self.resolve(path)
        if number is None:
            raise KeyError(path)
        return self.nodes[number]

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self.resolve(path) is not None

    def content(self, path: str) -> bytes:
        """Return the whole content of the file at ``path``.

        Raises `KeyError` where there is no such name and `TraceError` where it is not a file.
        """
        node = self[path]
        if not isinstance(node, File):
            raise TraceError(f"{path!r} is a {type(node).__name__.lower()}, not a file")
        return read_content(node.content)

    def walk(self) -> Iterator[tuple[str, int, Node]]:
        """Yield (path, inode number, node) of everything below the root, sorted by path."""
        stack: list[tuple[str, int]] = [("", ROOT)]
        while stack:
            path, number = stack.pop()
            node = self.nodes[number]
            if path:
                yield path, number, node
            if isinstance(node, Directory):
                prefix = f"{path}/" if path else ""
                for name in sorted(node.entries, reverse=True):
                    stack.append((prefix + name, node.entries[name]))

    def paths(self) -> list[str]:
        """Return the relative paths of all files, sorted; directories and links are left out."""
        return [path for path, _, node in self.walk() if isinstance(node, File)]

    def key(self) -> tuple[object, ...]:
        """Return a hashable value that is equal for equal trees."""
        if self._key is None:
            seen: dict[int, int] = {}
            rows: list[object] = []
            for path, number, node in self.walk():
                link = seen.setdefault(number, len(seen))
                if isinstance(node, File):
                    data = node.content
                    value = data if isinstance(data, bytes) and len(data) < 64 else digest_of(data)
                    rows.append((path, link, value, node.mode, node.xattrs))
                elif isinstance(node, Directory):
                    rows.append((path, link, None, node.mode))
                else:
                    rows.append((path, link, node.target))
            self._key = tuple(rows)
        return self._key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tree) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def __repr__(self) -> str:
        shown = []
        for path, _, node in self.walk():
            if isinstance(node, File):
                shown.append(f"{path}: {size_of(node.content)} bytes")
            elif isinstance(node, Directory):
                shown.append(f"{path}/")
            else:
                shown.append(f"{path} -> {node.target}")
        return f"<Tree {', '.join(shown) or 'empty'}>"

    def differences(self, other: Tree) -> list[str]:
        """Say in words, one line each, how ``other`` differs from this tree."""
        mine = {path: (number, node) for path, number, node in self.walk()}
        theirs = {path: (number, node) for path, number, node in other.walk()}
        lines = []
        for path in sorted(mine.keys() | theirs.keys()):
            if path not in theirs:
                lines.append(f"{path} is missing")
            elif path not in mine:
                lines.append(f"{path} is there unexpectedly")
            else:
                lines.extend(_node_differences(path, mine[path][1], theirs[path][1]))
        if not lines and self != other:
            lines.append("the hard links connect different names")
        return lines


def _node_differences(path: str, mine: Node, theirs: Node) -> Iterator[str]:
    if type(mine) is not type(theirs):
        yield f"{path} is a {type(theirs).__name__.lower()}, not a {type(mine).__name__.lower()}"
    elif isinstance(mine, File) and isinstance(theirs, File):
        if size_of(mine.content) != size_of(theirs.content):
            yield (f"{path} has {size_of(theirs.content)} bytes instead of {size_of(mine.content)}")
        elif digest_of(mine.content) != digest_of(theirs.content):
            yield f"{path} has other bytes of the same length"
        if mine.mode != theirs.mode:
            yield f"{path} has mode {theirs.mode:o} instead of {mine.mode:o}"
        if mine.xattrs != theirs.xattrs:
            yield f"{path} has other extended attributes"
    elif isinstance(mine, Directory) and isinstance(theirs, Directory):
        if mine.mode != theirs.mode:
            yield f"{path}/ has mode {theirs.mode:o} instead of {mine.mode:o}"
    elif isinstance(mine, Symlink) and isinstance(theirs, Symlink) and mine != theirs:
        yield f"{path} points to {theirs.target!r} instead of {mine.target!r}"
