"""One order for calls of which some ran at the same time.

Belongs here: the place of each call in the trace, and which pairs have no order that could be
trusted. Rules:

1. A call that returned before another began comes before it.
2. Among calls that overlap, writes come first, then changes of names and sizes, then syncs: so a
   sync is believed to have come as late, and a write to need as little, as can be. Every state
   that any other order allows is then allowed by this one.
3. Where that does not hold (two changes of metadata, two calls on one file, a sync that covers
   more than its own file), `conflict` says so, and the verdict is "not covered".
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_statepersist.recorders.strace_parser import Call, Event

__all__ = ["Change", "Kind", "conflict", "in_order", "kind_of", "names_in"]


class Kind(enum.Enum):
    """What a call is for the order of the trace."""

    WRITE = "write"
    DURABLE_WRITE = "durable write"
    METADATA = "metadata"
    FILE_SYNC = "sync of a file"
    WIDE_SYNC = "sync of a directory or of everything"


@dataclass(frozen=True, slots=True)
class Change:
    """A call that changed or synced something of the directory."""

    start: int
    end: int
    task: int
    inode: int
    kind: Kind
    name: str
    path: str


def names_in(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


_WRITES = names_in(
    "write writev pwrite64 pwritev pwritev2 sendfile sendfile64 copy_file_range splice"
)
_SYNCS = frozenset(["fsync", "fdatasync", "sync", "syncfs", "msync"])
_METADATA = names_in(
    "open openat openat2 open_by_handle_at creat ftruncate ftruncate64 truncate truncate64 "
    "fallocate rename renameat renameat2 link linkat unlink unlinkat rmdir mkdir mkdirat mknod "
    "mknodat symlink symlinkat chmod fchmod fchmodat fchmodat2 chown lchown fchown fchownat "
    "utimensat utimes futimesat utime setxattr lsetxattr fsetxattr removexattr lremovexattr "
    "fremovexattr"
)
_SYNC_KINDS = frozenset({Kind.FILE_SYNC, Kind.WIDE_SYNC})


def kind_of(name: str, *, directory: bool = False, durable: bool = False) -> Kind:
    """Return the kind of a call by its name; ``durable`` for a write that promises durability."""
    if name in _WRITES:
        return Kind.DURABLE_WRITE if durable else Kind.WRITE
    if name in _SYNCS:
        wide = directory or name in ("sync", "syncfs")
        return Kind.WIDE_SYNC if wide else Kind.FILE_SYNC
    return Kind.METADATA


def in_order(events: Sequence[Event]) -> list[tuple[Event, int]]:
    """Return the events as the trace has them, each with the earliest line that is still to come.

    What ended before that line cannot overlap with anything that follows.
    """
    syncs = [e for e in events if isinstance(e, Call) and e.name in _SYNCS and e.start != e.end]
    placed = sorted(
        ((_place(event, syncs), index, event) for index, event in enumerate(events)),
        key=lambda row: row[:2],
    )
    result: list[tuple[Event, int]] = []
    horizon = 1 << 62
    for _, _, event in reversed(placed):
        horizon = min(horizon, event.start if isinstance(event, Call) else event.line)
        result.append((event, horizon))
    result.reverse()
    return result


def _place(event: Event, syncs: Sequence[Call]) -> float:
    if not isinstance(event, Call):
        return event.line
    if event.start == event.end:
        return event.end
    if event.name in _WRITES:
        return event.start
    if event.name in _METADATA:
        crossing = [s.end for s in syncs if event.start < s.end < event.end]
        return min(crossing, default=event.end + 0.5) - 0.5
    return event.end


def conflict(first: Change, second: Change) -> bool:
    """Say whether the order of two changes that ran at the same time matters and is not known.

    ``first`` is the one that the trace has first.
    """
    if first.task == second.task or first.end < second.start or second.end < first.start:
        return False
    kinds = {first.kind, second.kind}
    if kinds <= _SYNC_KINDS:
        return False
    if first.inode == second.inode or (
        Kind.WIDE_SYNC in kinds
        and kinds
        != {
            Kind.WIDE_SYNC,
            Kind.WRITE,
        }
    ):
        return True
    if Kind.WIDE_SYNC in kinds:
        return second.name in ("sync", "syncfs")
    if Kind.WRITE in kinds:
        # A write comes first unless the other was drawn before a sync that it crosses.
        return first.kind is Kind.METADATA
    if Kind.FILE_SYNC in kinds:
        return first.kind is not Kind.METADATA
    return True
