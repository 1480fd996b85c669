"""What a trace leaves when nothing is lost: the operations applied to the base, in order.

Belongs here: `apply`, and `Extents`, a content made of pieces of other contents. Rules:

1. Pure, and independent of `effects`: the two are checked against each other.
2. Every operation is checked against the tree so far; what contradicts it is a `TraceError`.
3. No large content is loaded or copied: pieces refer to the bytes of the trace and of the base.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.tree import (
    LARGE,
    OUTSIDE,
    ROOT,
    Content,
    Directory,
    File,
    Node,
    Symlink,
    Tree,
    read_content,
    size_of,
)
from pytest_statepersist.errors import TraceError

__all__ = ["Extents", "apply", "check"]

_CHUNK = 1 << 20


class _Piece(NamedTuple):
    length: int
    source: Content | None
    """``None`` for zeros."""
    offset: int


class Extents:
    """A content as a list of pieces; it changes by `write`, `truncate` and `zero`.

    It is a `LargeData` as well, once it changes no more.
    """

    __slots__ = ("_digest", "_pieces", "_starts", "size")

    def __init__(self, content: Content = b"") -> None:
        self.size = size_of(content)
        self._starts = [0] if self.size else []
        self._pieces = [_Piece(self.size, content, 0)] if self.size else []
        self._digest: str | None = None

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes at an offset; a gap before them becomes zeros."""
        if data:
            self._put(offset, _Piece(len(data), data, 0))

    def zero(self, offset: int, length: int) -> None:
        """Make a range zeros as far as the content reaches; the size stays."""
        length = min(length, self.size - offset)
        if length > 0:
            self._put(offset, _Piece(length, None, 0))

    def truncate(self, size: int) -> None:
        """Set the size, cutting off or adding zeros."""
        self._digest = None
        if size > self.size:
            self._add(size - self.size)
            return
        index = self._split(size)
        del self._starts[index:], self._pieces[index:]
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``."""
        end = min(offset + length, self.size)
        found: list[bytes] = []
        index = max(bisect_right(self._starts, offset) - 1, 0)
        while offset < end:
            start, piece = self._starts[index], self._pieces[index]
            inner = offset - start
            count = min(piece.length - inner, end - offset)
            if piece.source is None:
                found.append(bytes(count))
            else:
                found.append(read_content(piece.source, piece.offset + inner, count))
            offset += count
            index += 1
        return b"".join(found)

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the whole content, computed a piece at a time."""
        if self._digest is None:
            state = hashlib.sha256()
            for offset in range(0, self.size, _CHUNK):
                state.update(self.read(offset, _CHUNK))
            self._digest = state.hexdigest()
        return self._digest

    def content(self) -> Content:
        """Return bytes for what is small, the untouched original or itself for what is large."""
        if self.size <= LARGE:
            return self.read(0, self.size)
        if len(self._pieces) == 1:
            only = self._pieces[0]
            if only.source is not None and size_of(only.source) == only.length:
                return only.source
        return self

    def _put(self, offset: int, piece: _Piece) -> None:
        self._digest = None
        if offset > self.size:
            self._add(offset - self.size)
        if offset == self.size:
            self._starts.append(offset)
            self._pieces.append(piece)
            self.size += piece.length
            return
        first = self._split(offset)
        end = offset + piece.length
        last = self._split(end) if end < self.size else len(self._starts)
        self._starts[first:last] = [offset]
        self._pieces[first:last] = [piece]
        self.size = max(self.size, end)

    def _add(self, zeros: int) -> None:
        self._starts.append(self.size)
        self._pieces.append(_Piece(zeros, None, 0))
        self.size += zeros

    def _split(self, offset: int) -> int:
        """Make a piece begin at ``offset`` and return its index."""
        if offset >= self.size:
            return len(self._starts)
        index = bisect_right(self._starts, offset) - 1
        start, piece = self._starts[index], self._pieces[index]
        if start == offset:
            return index
        head = offset - start
        self._pieces[index] = piece._replace(length=head)
        self._starts.insert(index + 1, offset)
        tail = _Piece(piece.length - head, piece.source, piece.offset + head)
        self._pieces.insert(index + 1, tail)
        return index + 1


@dataclass(slots=True)
class _File:
    data: Extents
    mode: int
    mtime: int | None
    xattrs: dict[str, bytes]


@dataclass(slots=True)
class _Directory:
    mode: int = 0o755
    mtime: int | None = None
    entries: dict[str, int] = field(default_factory=dict)


def apply(trace: op.Trace) -> Tree:
    """Return the tree after the whole trace; raises `TraceError` where it contradicts itself."""
    return _run(trace).tree()


def check(trace: op.Trace) -> None:
    """Raise `TraceError` where a trace contradicts itself, as one made by hand may."""
    _run(trace)


def _run(trace: op.Trace) -> _Disk:
    disk = _Disk(trace.base)
    for index, operation in enumerate(trace.operations):
        disk.step(index, operation)
    return disk


class _Disk:
    """The names and files so far. OUTSIDE is one flat directory that is not in the result."""

    def __init__(self, base: Tree) -> None:
        self.nodes: dict[int, _File | _Directory | Symlink] = {OUTSIDE: _Directory()}
        self.at = ""
        for number, node in base.nodes.items():
            if isinstance(node, File):
                data = Extents(node.content)
                self.nodes[number] = _File(data, node.mode, node.mtime, dict(node.xattrs))
            elif isinstance(node, Directory):
                self.nodes[number] = _Directory(node.mode, node.mtime, dict(node.entries))
            else:
                self.nodes[number] = node

    def tree(self) -> Tree:
        nodes: dict[int, Node] = {}
        waiting = [ROOT]
        while waiting:
            number = waiting.pop()
            node = self.nodes[number]
            if number in nodes:
                continue
            if isinstance(node, _File):
                xattrs = tuple(sorted(node.xattrs.items()))
                nodes[number] = File(node.data.content(), node.mode, node.mtime, xattrs)
            elif isinstance(node, _Directory):
                nodes[number] = Directory(node.entries, node.mode, node.mtime)
                waiting.extend(node.entries.values())
            else:
                nodes[number] = node
        return Tree(nodes)

    def step(self, index: int, operation: op.Operation) -> None:
        self.at = f"operation {index} ({type(operation).__name__} {operation.path!r})"
        match operation:
            case op.Create():
                node = _File(Extents(), operation.mode, operation.time, {})
                self._new(operation, operation.inode, node)
            case op.Mkdir():
                self._new(operation, operation.inode, _Directory(operation.mode, operation.time))
            case op.Symlink():
                self._new(operation, operation.inode, Symlink(operation.target))
            case op.Link():
                if isinstance(self._node(operation.inode), _Directory):
                    self._fail("links a directory")
                self._enter(operation.parent, operation.name, operation.inode, operation.time)
            case op.Unlink():
                self._take(operation.parent, operation.name, operation.inode, operation.time)
                if isinstance(self._node(operation.inode), _Directory):
                    self._fail("unlinks a directory")
            case op.Rmdir():
                self._take(operation.parent, operation.name, operation.inode, operation.time)
                if self._directory(operation.inode).entries:
                    self._fail("removes a directory that is not empty")
            case op.Rename():
                self._rename(operation)
            case op.SetAttributes():
                self._attributes(operation)
            case op.SyncAll():
                pass
            case op.Fsync():
                self._node(operation.inode)
            case _:
                self._data(operation)

    def _data(
        self,
        operation: op.Write | op.Truncate | op.Allocate | op.ZeroRange | op.SyncRange | op.Close,
    ) -> None:
        file = self._node(operation.inode)
        if not isinstance(file, _File):
            self._fail(f"needs a regular file, and inode {operation.inode} is not one")
        match operation:
            case op.Write():
                self._positive(operation.offset)
                file.data.write(operation.offset, operation.data)
            case op.Truncate():
                self._positive(operation.size)
                file.data.truncate(operation.size)
            case op.Allocate():
                if operation.size is not None:
                    if operation.size < file.data.size:
                        self._fail("makes the file shorter")
                    file.data.truncate(operation.size)
            case op.ZeroRange():
                self._positive(operation.offset, operation.length)
                file.data.zero(operation.offset, operation.length)
            case _:
                return
        file.mtime = operation.time

    def _attributes(self, operation: op.SetAttributes) -> None:
        node = self._node(operation.inode)
        if isinstance(node, Symlink):
            return  # a tree shows neither mode nor times of a link
        if operation.mode is not None:
            node.mode = operation.mode
        if operation.mtime is not None:
            node.mtime = operation.mtime
        if isinstance(node, _File):
            for name, value in operation.xattrs:
                if value is not None:
                    node.xattrs[name] = value
                elif node.xattrs.pop(name, None) is None:
                    self._fail(f"removes the extended attribute {name!r}, which is not there")

    def _rename(self, operation: op.Rename) -> None:
        target = self._directory(operation.new_parent)
        if operation.new_parent == OUTSIDE and not operation.exchange:
            target.entries.pop(operation.new_name, None)
        if operation.exchange:
            if operation.replaced is None:
                self._fail("exchanges with nothing")
            self._take(operation.parent, operation.name, operation.inode, operation.time)
            where, name = operation.new_parent, operation.new_name
            self._take(where, name, operation.replaced, operation.time)
            self._enter(operation.parent, operation.name, operation.replaced, operation.time)
        else:
            self._take(operation.parent, operation.name, operation.inode, operation.time)
            if operation.replaced is not None and operation.new_parent != OUTSIDE:
                where, name = operation.new_parent, operation.new_name
                self._take(where, name, operation.replaced, operation.time)
                replaced = self.nodes[operation.replaced]
                if isinstance(replaced, _Directory) and replaced.entries:
                    self._fail("replaces a directory that is not empty")
        self._enter(operation.new_parent, operation.new_name, operation.inode, operation.time)
        self._no_loop(operation.inode)

    def _no_loop(self, number: int) -> None:
        """A directory moved into itself would leave the tree, and walks would not end."""
        waiting, seen = [number], {number}
        while waiting:
            node = self.nodes[waiting.pop()]
            if isinstance(node, _Directory):
                for child in node.entries.values():
                    if child == number:
                        self._fail("moves a directory into itself")
                    if child not in seen and isinstance(self.nodes[child], _Directory):
                        seen.add(child)
                        waiting.append(child)

    def _new(
        self,
        operation: op.Create | op.Mkdir | op.Symlink,
        number: int,
        node: _File | _Directory | Symlink,
    ) -> None:
        if number in self.nodes or number < 0:
            self._fail(f"makes inode {number}, which was there before")
        self.nodes[number] = node
        if operation.name or operation.parent != OUTSIDE:
            self._enter(operation.parent, operation.name, number, operation.time)

    def _enter(self, parent: int, name: str, number: int, time: int | None) -> None:
        directory = self._directory(parent)
        if not name or (parent != OUTSIDE and ("/" in name or name in (".", ".."))):
            self._fail(f"uses {name!r}, which is not a name")
        if name in directory.entries:
            self._fail(f"makes the name {name!r}, which was there before")
        directory.entries[name] = number
        directory.mtime = time

    def _take(self, parent: int, name: str, number: int, time: int | None) -> None:
        directory = self._directory(parent)
        found = directory.entries.pop(name, None)
        if found != number:
            what = "nothing" if found is None else f"inode {found}"
            self._fail(f"expects inode {number} as {name!r}, where there was {what}")
        directory.mtime = time

    def _node(self, number: int) -> _File | _Directory | Symlink:
        node = self.nodes.get(number)
        if node is None or number == OUTSIDE:
            self._fail(f"names inode {number}, which was never made")
        return node

    def _directory(self, number: int) -> _Directory:
        node = self.nodes.get(number)
        if not isinstance(node, _Directory):
            self._fail(f"needs a directory, and inode {number} is not one")
        return node

    def _positive(self, *values: int) -> None:
        if min(values) < 0:
            self._fail("has a negative offset or size")

    def _fail(self, what: str) -> NoReturn:
        raise TraceError(
            f"{self.at} {what}; the trace is damaged, or was recorded from another directory"
        )
