"""Traces written by hand: what was done by path, turned into operations on inodes.

Belongs here: `TraceByHand`, for asking a model about a workload that nobody recorded. It knows
names and sizes as a running program sees them, and refuses what could not have happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn, Self

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.tree import (
    OUTSIDE,
    ROOT,
    Directory,
    File,
    HardLink,
    Tree,
    size_of,
)
from pytest_statepersist.errors import TraceError

__all__ = ["TraceByHand"]

_DURABILITY = {each.value: each for each in op.Durability}


class TraceByHand:
    """Collects operations named by path; each method returns the object, `trace` is the result.

    ``base`` is the tree at the start: a `Tree`, or a mapping as for `Tree.from_mapping`. Paths that
    begin with ``/`` are outside the directory. A file may be named by its inode number as well; the
    root is ``""``. Raises `TraceError` for what could not have happened.
    """

    def __init__(
        self, base: Mapping[str, bytes | str | HardLink | None] | Tree | None = None
    ) -> None:
        self.base = base if isinstance(base, Tree) else Tree.from_mapping(base or {})
        self.operations: list[op.Operation] = []
        self.acknowledgements: list[op.Acknowledgement] = []
        self.names: dict[tuple[int, str], int] = {}
        self.directories: set[int] = {ROOT}
        self.sizes: dict[int, int] = {}
        self.next = max(self.base.nodes) + 1
        for number, node in self.base.nodes.items():
            if isinstance(node, Directory):
                self.directories.add(number)
                for name, child in node.entries.items():
                    self.names[number, name] = child
            elif isinstance(node, File):
                self.sizes[number] = size_of(node.content)

    def __len__(self) -> int:
        return len(self.operations)

    @property
    def trace(self) -> op.Trace:
        """The trace so far."""
        return op.Trace(
            self.base, tuple(self.operations), tuple(self.acknowledgements), recorder="by hand"
        )

    # -- names --------------------------------------------------------------------------------

    def create(self, path: str, data: bytes = b"", mode: int = 0o644) -> Self:
        """Make a new file (``""``: one without a name, by O_TMPFILE), and write to it if asked."""
        inode, parent, name = self._new(path)
        self.sizes[inode] = 0
        self.add(op.Create(inode, parent, name, mode, path=path))
        return self.write(inode, 0, data) if data else self

    def mkdir(self, path: str, mode: int = 0o755) -> Self:
        """Make a directory."""
        inode, parent, name = self._new(path)
        self.directories.add(inode)
        return self.add(op.Mkdir(inode, parent, name, mode, path=path))

    def symlink(self, path: str, target: str) -> Self:
        """Make a symbolic link at a path."""
        return self.add(op.Symlink(*self._new(path), target, path=path))

    def link(self, old: str | int, new: str) -> Self:
        """Give a file one more name."""
        inode, place = self.inode(old), self._free(new)
        self.names[place] = inode
        return self.add(op.Link(inode, *place, path=new))

    def unlink(self, path: str) -> Self:
        """Remove a name of a file or symbolic link."""
        inode, place = self.inode(path), self._place(path)
        if inode in self.directories:
            self._fail(f"unlinks {path!r}, which is a directory")
        del self.names[place]
        return self.add(op.Unlink(inode, *place, path=path))

    def rmdir(self, path: str) -> Self:
        """Remove an empty directory."""
        inode, place = self.inode(path), self._place(path)
        if inode not in self.directories or any(parent == inode for parent, _ in self.names):
            self._fail(f"removes {path!r}, which is no empty directory")
        del self.names[place]
        return self.add(op.Rmdir(inode, *place, path=path))

    def rename(self, old: str, new: str, *, exchange: bool = False) -> Self:
        """Move a name, over what the new one had before; ``exchange`` swaps the two."""
        inode, here, there = self.inode(old), self._place(old), self._place(new)
        before = self.names.get(there)
        if exchange and before is None:
            self._fail(f"exchanges {old!r} with {new!r}, which is not there")
        del self.names[here]
        self.names[there] = inode
        if exchange and before is not None:
            self.names[here] = before
        return self.add(op.Rename(inode, *here, *there, before, exchange, path=old))

    # -- contents -----------------------------------------------------------------------------

    def write(
        self,
        path: str | int,
        offset: int,
        data: bytes,
        durability: op.Durability | str = op.Durability.NONE,
    ) -> Self:
        """Write at an offset; durability "data" is O_DSYNC, "full" is O_SYNC."""
        inode = self._file(path)
        if isinstance(durability, str):
            if durability not in _DURABILITY:
                self._fail(f"has durability {durability!r}: give {', '.join(_DURABILITY)}")
            durability = _DURABILITY[durability]
        self.sizes[inode] = max(self.sizes[inode], offset + len(data) if data else 0)
        return self.add(op.Write(inode, offset, data, durability, path=self._shown(path)))

    def append(self, path: str | int, data: bytes) -> Self:
        """Write at the end."""
        return self.write(path, self.sizes[self._file(path)], data)

    def truncate(self, path: str | int, size: int) -> Self:
        """Set the size; O_TRUNC is ``truncate(path, 0)``."""
        inode = self._file(path)
        self.sizes[inode] = size
        return self.add(op.Truncate(inode, size, path=self._shown(path)))

    def allocate(self, path: str | int, size: int | None = None) -> Self:
        """Reserve space; ``size`` is the new size where the file grows."""
        inode = self._file(path)
        self.sizes[inode] = max(self.sizes[inode], size or 0)
        return self.add(op.Allocate(inode, size, path=self._shown(path)))

    def zero(self, path: str | int, offset: int, length: int) -> Self:
        """Make a range zeros, without a change of size."""
        return self.add(op.ZeroRange(self._file(path), offset, length, path=self._shown(path)))

    def chmod(self, path: str | int, mode: int) -> Self:
        """Set the mode."""
        return self.add(op.SetAttributes(self.inode(path), mode, path=self._shown(path)))

    # -- syncs --------------------------------------------------------------------------------

    def fsync(self, path: str | int, *, failed: bool = False) -> Self:
        """Sync a file or a directory; ``failed`` if the call reported an error."""
        return self.add(op.Fsync(self.inode(path), failed=failed, path=self._shown(path)))

    def fdatasync(self, path: str | int) -> Self:
        """Sync the data of a file."""
        return self.add(op.Fsync(self.inode(path), data_only=True, path=self._shown(path)))

    def msync(self, path: str | int, offset: int, length: int) -> Self:
        """Sync a range of a mapped file."""
        return self.add(op.SyncRange(self._file(path), offset, length, path=self._shown(path)))

    def sync(self) -> Self:
        """Sync the file system: sync or syncfs."""
        return self.add(op.SyncAll())

    def close(self, path: str | int) -> Self:
        """Close a file that was written to."""
        return self.add(op.Close(self._file(path), path=self._shown(path)))

    def acknowledge(self, text: str = "") -> Self:
        """Say that the program reported "saved" here."""
        self.acknowledgements.append(op.Acknowledgement(len(self.operations), text))
        return self

    # -- helpers ------------------------------------------------------------------------------

    def inode(self, path: str | int) -> int:
        """Return the inode number at a path."""
        if isinstance(path, int):
            return path
        if path in ("", "."):
            return ROOT
        found = self.names.get(self._place(path))
        if found is None:
            self._fail(f"names {path!r}, which is not there")
        return found

    def _file(self, path: str | int) -> int:
        inode = self.inode(path)
        if inode not in self.sizes:
            self._fail(f"needs a regular file, and {path!r} is not one")
        return inode

    def _place(self, path: str) -> tuple[int, str]:
        if path.startswith("/"):
            return OUTSIDE, path
        *parents, name = path.split("/")
        here = ROOT
        for part in parents:
            found = self.names.get((here, part))
            if found not in self.directories:
                self._fail(f"names {path!r}, in which {part!r} is no directory")
            assert found is not None
            here = found
        return here, name

    def _free(self, path: str) -> tuple[int, str]:
        place = self._place(path)
        if place in self.names:
            self._fail(f"makes {path!r}, which is there")
        return place

    def _new(self, path: str) -> tuple[int, int, str]:
        inode = self.next
        parent, name = self._free(path) if path else (OUTSIDE, "")
        self.next += 1
        if path:
            self.names[parent, name] = inode
        return inode, parent, name

    def _shown(self, path: str | int) -> str:
        return path if isinstance(path, str) else ""

    def add(self, operation: op.Operation) -> Self:
        """Add an operation as it is, without looking at it."""
        self.operations.append(operation)
        return self

    def _fail(self, what: str) -> NoReturn:
        raise TraceError(f"operation {len(self.operations)} {what}")
