"""What a program did to a directory: operations on inodes, and the trace that holds them.

Belongs here: one frozen class for each kind of recorded call, and `Trace`. Rules:

1. An operation names inodes, never paths; ``path`` is only what a reader is shown.
2. Inode numbers are the trace's own: 0 is the watched directory, -1 (`OUTSIDE`) stands for any
   directory outside it, and a number is never used again for another file.
3. Only calls that succeeded are recorded, with what they really did (a short write has the bytes
   that were written). A sync that failed is recorded as such, since it forces nothing.
4. The JSON form lives in `trace_json`, what operations do to a disk in `effects`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from pytest_statepersist.core.tree import OUTSIDE, ROOT, Tree

__all__ = [
    "OUTSIDE",
    "ROOT",
    "Acknowledgement",
    "Allocate",
    "Close",
    "Create",
    "Durability",
    "Fsync",
    "Link",
    "Mkdir",
    "Operation",
    "Rename",
    "Rmdir",
    "SetAttributes",
    "Site",
    "Symlink",
    "SyncAll",
    "SyncRange",
    "Trace",
    "Truncate",
    "Unlink",
    "Write",
    "ZeroRange",
]


@dataclass(frozen=True, slots=True)
class Site:
    """Where in the subject's source a call came from."""

    file: str
    line: int
    function: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Durability(enum.Enum):
    """What a write promises when it returns: nothing, O_DSYNC or O_SYNC."""

    NONE = "none"
    DATA = "data"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    path: str = ""
    """The path by which the call named its file, relative to the directory; for readers only."""
    site: Site | None = None
    time: int | None = None
    """Wall time in nanoseconds when the call returned; what a modification time would show."""
    task: int = 0
    """A small number for the thread or process that made the call."""


@dataclass(frozen=True, slots=True)
class Create(_Operation):
    """A new empty regular file got its first name; ``parent`` OUTSIDE for one without a name."""

    inode: int
    parent: int
    name: str
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Mkdir(_Operation):
    """A new directory."""

    inode: int
    parent: int
    name: str
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class Symlink(_Operation):
    """A new symbolic link."""

    inode: int
    parent: int
    name: str
    target: str


@dataclass(frozen=True, slots=True)
class Link(_Operation):
    """One more name for an existing inode."""

    inode: int
    parent: int
    name: str


@dataclass(frozen=True, slots=True)
class Unlink(_Operation):
    """A name of a file or symbolic link was removed."""

    inode: int
    parent: int
    name: str


@dataclass(frozen=True, slots=True)
class Rmdir(_Operation):
    """An empty directory was removed."""

    inode: int
    parent: int
    name: str


@dataclass(frozen=True, slots=True)
class Rename(_Operation):
    """A name moved. ``replaced`` is the inode that the new name had before, if any.

    With ``exchange`` the two names swapped their inodes and both stay.
    """

    inode: int
    parent: int
    name: str
    new_parent: int
    new_name: str
    replaced: int | None = None
    exchange: bool = False


@dataclass(frozen=True, slots=True)
class Write(_Operation):
    """Bytes were written at an offset; the file grows where they end beyond its size.

    An ``unordered`` one was found by looking at a file that memory maps: it came by then, in parts
    or as a whole, and in an order against its neighbours that nobody saw.
    """

    inode: int
    offset: int
    data: bytes = field(repr=False)
    durability: Durability = Durability.NONE
    unordered: bool = False


@dataclass(frozen=True, slots=True)
class Truncate(_Operation):
    """The size was set (truncate, ftruncate, O_TRUNC); shrinks or extends with zeros."""

    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class Allocate(_Operation):
    """Space was reserved (fallocate); ``size`` is the new size where the file grew."""

    inode: int
    size: int | None = None


@dataclass(frozen=True, slots=True)
class ZeroRange(_Operation):
    """A range became zeros without a change of size (PUNCH_HOLE, ZERO_RANGE)."""

    inode: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class SetAttributes(_Operation):
    """Mode, modification time (nanoseconds) or extended attributes were set.

    ``owner`` is (uid, gid). A value of ``None`` in ``xattrs`` means that the attribute was removed.
    """

    inode: int
    mode: int | None = None
    mtime: int | None = None
    owner: tuple[int, int] | None = None
    xattrs: tuple[tuple[str, bytes | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Fsync(_Operation):
    """A file or a directory was synced; ``data_only`` for fdatasync."""

    inode: int
    data_only: bool = False
    failed: bool = False


@dataclass(frozen=True, slots=True)
class SyncRange(_Operation):
    """A range of a file was synced (msync with MS_SYNC): its data, nothing else."""

    inode: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class SyncAll(_Operation):
    """sync or syncfs: the whole file system, as far as the model believes it."""


@dataclass(frozen=True, slots=True)
class Close(_Operation):
    """The last descriptor of one open of a file was closed after it had been written to."""

    inode: int


Operation: TypeAlias = (
    Create
    | Mkdir
    | Symlink
    | Link
    | Unlink
    | Rmdir
    | Rename
    | Write
    | Truncate
    | Allocate
    | ZeroRange
    | SetAttributes
    | Fsync
    | SyncRange
    | SyncAll
    | Close
)


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The subject said "saved" after ``position`` operations had returned; ``text`` is its repr."""

    position: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """A recorded workload: the tree that it started from, and what it did, in order.

    ``directory`` is where it ran, ``recorder`` says who saw it. Crash points count operations that
    had returned: 0 is before the first, ``len(trace)`` after the last.
    """

    base: Tree
    operations: tuple[Operation, ...] = ()
    acknowledgements: tuple[Acknowledgement, ...] = ()
    directory: str = ""
    recorder: str = "python"

    def __len__(self) -> int:
        return len(self.operations)

    def with_operations(self, operations: tuple[Operation, ...]) -> Trace:
        """Return the same trace with other operations; acknowledgements keep their positions."""
        return replace(self, operations=operations)

    def insert(self, position: int, operation: Operation) -> Trace:
        """Return the trace with one more operation before index ``position``.

        Acknowledgements at or after that position move behind the new operation.
        """
        operations = (
            *self.operations[:position],
            operation,
            *self.operations[position:],
        )
        return self._moved(operations, lambda at: at + 1 if at >= position else at)

    def remove(self, position: int) -> Trace:
        """Return the trace without the operation at index ``position``."""
        operations = (*self.operations[:position], *self.operations[position + 1 :])
        return self._moved(operations, lambda at: at - 1 if at > position else at)

    def _moved(self, operations: tuple[Operation, ...], shift: Callable[[int], int]) -> Trace:
        acknowledgements = tuple(
            replace(ack, position=shift(ack.position)) for ack in self.acknowledgements
        )
        return replace(self, operations=operations, acknowledgements=acknowledgements)

    def to_json(self) -> str:
        """Return the trace as versioned JSON text; see `trace_json` for its form."""
        from pytest_statepersist.core import trace_json

        return trace_json.dump(self)

    @staticmethod
    def from_json(text: str) -> Trace:
        """Read a trace from its JSON text; raises `TraceError` where it is not valid."""
        from pytest_statepersist.core import trace_json

        return trace_json.load(text)
