"""The proof that a recording is complete.

Belongs here: comparing what a trace says with what is real. A recording is complete if

1. no call met a name, a size or a change time that the trace does not explain (the builder's
   doubts, collected while it ran),
2. the trace, applied to its base, is the real directory, byte for byte,
3. no file has a change time later than its last recorded operation, and
4. every notification of the kernel is explained by the trace, in order.

What it cannot see: a sync made by native code leaves no mark of any kind. Native bytes that are
equal to those already there leave only a notification and a change time, and both are hidden by a
recorded write to the same file at almost the same moment.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from pytest_statepersist.core.apply import apply
from pytest_statepersist.core.operations import Trace
from pytest_statepersist.core.tree import (
    Content,
    Directory,
    File,
    Node,
    Tree,
    read_content,
    size_of,
)
from pytest_statepersist.errors import BlindSpot, TraceError, UserError
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.builder import Identity, TraceBuilder
from pytest_statepersist.recorders.notify import Notifications, explain
from pytest_statepersist.recorders.scan import Scan, Seen, scan

__all__ = ["blind_spot", "same_content", "verify"]

_CHUNK = 1 << 20
_SQLITE = b"SQLite format 3\0"
_SQLITE_COMPANIONS = ("-journal", "-wal", "-shm")


def verify(
    builder: TraceBuilder,
    trace: Trace,
    base: Scan,
    notifications: Notifications,
    *,
    ignore: Callable[[str], bool] | None = None,
) -> str | None:
    """Raise `BlindSpot` where the recording is not complete.

    Returns ``None``, or why the kernel's notifications could not be used for the proof. Raises
    `UserError` where the directory itself is gone.
    """
    if not os.path.isdir(builder.directory):
        raise UserError(
            f"{builder.directory} itself was removed or renamed while it was recorded, and no "
            "crash state could be shown in its place; record the directory above it"
        )
    if builder.doubts:
        raise _with_database(builder.doubts[0], builder.directory)
    try:
        expected = apply(trace)
    except TraceError as error:
        raise BlindSpot(
            f"the recorded calls contradict each other, so something was not seen: {error}; record "
            "with strace",
            recorder="strace",
        ) from error
    known = _known(builder, base, notifications)
    found = scan(builder.directory, ignore=ignore, known=known)
    difference = first_difference(expected, found.tree)
    if difference is not None:
        raise blind_spot(builder.directory, *difference)
    _change_times(builder, found)
    unexplained = explain(
        trace,
        notifications,
        opened=lambda number: builder[number].was_opened,
        ignored=ignore,
        positions=builder.positions(),
    )
    if unexplained is not None:
        what = f"was {unexplained.verb} in a way that left no trace in its content"
        raise blind_spot(builder.directory, unexplained.path, what)
    return notifications.unproved


def _known(
    builder: TraceBuilder, base: Scan, notifications: Notifications
) -> dict[Identity, tuple[Seen, Content]]:
    """Return the large files that need not be read again if they look as they did at the start.

    Times alone prove nothing: they stand still for a tick, and on tmpfs a store into a mapping need
    not change them (mm/memory.c, fault_dirty_shared_page). Whatever had a file open for writing
    and let go of it shows as a notification; what still has it mapped is listed.
    """
    large = {
        number: node.content
        for number, node in base.tree.nodes.items()
        if isinstance(node, File) and not isinstance(node.content, bytes)
    }
    if not large or notifications.unproved is not None:
        return {}
    mapped = _mapped_for_writing()
    if mapped is None:
        return {}
    found: dict[Identity, tuple[Seen, Content]] = {}
    for number, content in large.items():
        seen = base.seen[number]
        if not builder[number].was_opened and seen.identity not in mapped:
            found[seen.identity] = (seen, content)
    return found


def _mapped_for_writing() -> set[Identity] | None:
    """Return the files that this process has mapped shared and writable; ``None`` if unknown."""
    try:
        with real.open("/proc/self/maps", "rb", buffering=0) as file:
            lines = bytes(file.readall()).splitlines()
    except OSError:
        return None
    found: set[Identity] = set()
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[1].startswith(b"rw") and fields[1].endswith(b"s"):
            try:
                status = real.stat(fields[5])
            except OSError:
                continue  # unlinked: nothing in a directory is that file under this name
            found.add((status.st_dev, status.st_ino))
    return found


def _change_times(builder: TraceBuilder, found: Scan) -> None:
    for path, number, node in found.tree.walk():
        known = builder.find(found.seen[number].identity)
        if known is None or isinstance(node, Directory):
            continue
        changed = builder[known].changed
        if changed is not None and found.seen[number].ctime > changed:
            what = "was changed after its last recorded operation"
            raise blind_spot(builder.directory, path, what)


def blind_spot(directory: str, path: str, what: str) -> BlindSpot:
    """Return the error for a path that changed unseen; it names the recorder that would see it."""
    recorder = "sqlite" if _is_sqlite(directory, path) else "strace"
    return BlindSpot(
        f"{path!r} {what}: nothing that the python recorder saw explains it, usually because "
        f"native code, a mapping or another process did it; record with {recorder}",
        culprit=path,
        recorder=recorder,
    )


def _with_database(doubt: BlindSpot, directory: str) -> BlindSpot:
    if doubt.recorder == "strace" and _is_sqlite(directory, doubt.culprit):
        doubt.recorder = "sqlite"
        doubt.args = (str(doubt).replace("record with strace", "record with sqlite"),)
    return doubt


def _is_sqlite(directory: str, path: str) -> bool:
    for ending in _SQLITE_COMPANIONS:
        path = path.removesuffix(ending)
    try:
        with real.open(f"{directory}/{path}", "rb", buffering=0) as file:
            return bool(file.read(len(_SQLITE)) == _SQLITE)
    except OSError:
        return False


def first_difference(expected: Tree, found: Tree) -> tuple[str, str] | None:
    """Return (path, what is different) of the first path that differs, ``None`` if none does.

    Unlike the equality of trees it compares large contents piece by piece, and not at all where
    both are the same object.
    """
    mine = {path: (number, node) for path, number, node in expected.walk()}
    theirs = {path: (number, node) for path, number, node in found.walk()}
    links: dict[int, int] = {}
    for path in sorted(mine.keys() | theirs.keys()):
        if path not in theirs:
            return path, "is missing"
        if path not in mine:
            return path, "appeared"
        what = _node_difference(mine[path][1], theirs[path][1])
        if what is not None:
            return path, what
        if links.setdefault(mine[path][0], theirs[path][0]) != theirs[path][0]:
            return path, "is not linked as recorded"
    if len(set(links.values())) != len(links):
        return "", "has hard links that were not recorded"
    root = _node_difference(expected.nodes[0], found.nodes[0])
    return None if root is None else (".", root)


def _node_difference(mine: Node, theirs: Node) -> str | None:
    if type(mine) is not type(theirs):
        return f"became a {type(theirs).__name__.lower()}"
    if isinstance(mine, File) and isinstance(theirs, File):
        if size_of(mine.content) != size_of(theirs.content):
            return f"has {size_of(theirs.content)} bytes instead of {size_of(mine.content)}"
        if not same_content(mine.content, theirs.content):
            return "has other bytes"
        if mine.mode != theirs.mode:
            return f"has mode {theirs.mode:o} instead of {mine.mode:o}"
        return None if mine.xattrs == theirs.xattrs else "has other extended attributes"
    if isinstance(mine, Directory) and isinstance(theirs, Directory):
        if mine.mode != theirs.mode:
            return f"has mode {theirs.mode:o} instead of {mine.mode:o}"
        return None
    return None if mine == theirs else "points elsewhere"


def same_content(mine: Content, theirs: Content) -> bool:
    """Compare two contents a piece at a time."""
    if mine is theirs or (isinstance(mine, bytes) and isinstance(theirs, bytes)):
        return mine == theirs
    return size_of(mine) == size_of(theirs) and all(
        read_content(mine, at, _CHUNK) == read_content(theirs, at, _CHUNK)
        for at in range(0, size_of(mine), _CHUNK)
    )
