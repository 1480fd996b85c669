"""Changes made through memory maps: found by comparing what was looked at with what calls wrote.

Belongs here: `settle`, which puts those changes into a trace as block writes. Rules:

1. Between two looks at a block only the stores into memory are unknown. A difference is one change,
   as late as it can have been: what a crash may leave then, it may leave whenever it really came.
2. Where a sync of another file came in between, there is a second trace with the change as early as
   it can have been, which allows every state that any other moment allows. A verdict needs both.
   Where a call on the same block or an acknowledgement did, that is a `BlindSpot`; so is a sync of
   a mapped file before and after which nobody looked, since what it forced is not known.
3. A change of which the parts, or the order against other changes, are not known is marked
   ``unordered``, and the verdict takes it into account (`core.mixtures`).
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.apply import Extents
from pytest_statepersist.core.mixtures import changed_words
from pytest_statepersist.core.tree import BLOCK, File
from pytest_statepersist.errors import BlindSpot

__all__ = ["Look", "MapEvent", "MapKind", "blocks_of", "settle"]


class MapKind(enum.Enum):
    """What happened to a file that is mapped for writing."""

    OPENED = "it became writable through memory"
    CLOSED = "it is mapped for writing no more"
    SYNC = "a sync covered it"
    LOOK = "somebody looked at it"
    SAVED = "the subject said that it had saved"


@dataclass(frozen=True, slots=True)
class Look:
    """What a file held at a moment: its size, and blocks by number; not all of them, perhaps.

    ``stored`` is for a look right after one store, before which the same blocks were looked at.
    """

    size: int
    blocks: Mapping[int, bytes]
    site: op.Site | None = None
    stored: bool = False


@dataclass(frozen=True, slots=True)
class MapEvent:
    """Something in the life of a mapped file, in order; ``position`` counts the trace's operations.

    A sync covers bytes from ``begin`` to ``end`` and is ``watched`` where the file was looked at
    right before and right after it.
    """

    kind: MapKind
    inode: int
    position: int
    name: str = ""
    look: Look | None = None
    begin: int = 0
    end: int = 1 << 62
    watched: bool = False


@dataclass(frozen=True, slots=True)
class _Insertion:
    event: int
    """The number of the event after which it comes, for the order against acknowledgements."""
    earliest: int
    position: int
    write: op.Write
    crosses: bool
    """Whether a sync came in between."""


@dataclass(slots=True)
class _File:
    """The events of one file, with their numbers among the events of all files."""

    inode: int
    path: str
    rows: list[tuple[int, MapEvent]] = field(default_factory=list)


def blocks_of(content: bytes) -> dict[int, bytes]:
    """Return the blocks of a content by number."""
    return {at // BLOCK: content[at : at + BLOCK] for at in range(0, len(content), BLOCK)}


def settle(
    trace: op.Trace, events: Sequence[MapEvent], final: Callable[[int], bytes | None]
) -> tuple[op.Trace, op.Trace | None]:
    """Return the trace with the changes made through memory as writes, late ones.

    The second trace has them early; ``None`` where that makes no difference. ``final`` gives the
    content of a file at the end by its inode number, ``None`` where it is gone. Raises `BlindSpot`
    where what was on disk cannot be known.
    """
    files: dict[int, _File] = {}
    for number, event in enumerate(events):
        if event.kind is MapKind.SAVED:
            for each in files.values():
                each.rows.append((number, event))
            continue
        if event.inode not in files and event.kind is not MapKind.OPENED:
            continue
        path = next((o.path for o in trace.operations if _on(o, event.inode)), "")
        known = files.setdefault(event.inode, _File(event.inode, path or event.name))
        known.rows.append((number, event))
    insertions: list[_Insertion] = []
    for each in files.values():
        content = final(each.inode)
        if content is None:
            _must_have_been_looked_at(trace, each)
        else:
            last = Look(len(content), blocks_of(content))
            end = MapEvent(MapKind.LOOK, each.inode, len(trace), look=last)
            each.rows.append((len(events), end))
        insertions += _changes(trace, each)
    if not insertions:
        return trace, None
    early = None
    if any(each.crosses for each in insertions):
        early = _with(
            trace, events, [replace(each, position=each.earliest) for each in insertions]
        )
    return _with(trace, events, insertions), early


def _must_have_been_looked_at(trace: op.Trace, file: _File) -> None:
    """Doubt a file that is gone at the end and that a crash may have left changed."""
    mapped = next(event.position for _, event in file.rows)
    names = [o for o in trace.operations[:mapped] if _on(o, file.inode)]
    visible = file.inode in trace.base.nodes or any(
        isinstance(o, op.Create | op.Link | op.Rename) and _names(o) for o in names
    )
    rows = [event for _, event in file.rows]
    looked = [n for n, event in enumerate(rows) if event.kind is MapKind.LOOK]
    closed = [n for n, event in enumerate(rows) if event.kind is MapKind.CLOSED]
    if visible and not (looked and closed and _next_to(rows, looked[-1], closed[-1])):
        raise _blind(
            file, "was changed through memory, perhaps, and removed before anybody looked at it"
        )


def _names(operation: op.Create | op.Link | op.Rename) -> bool:
    parent = operation.new_parent if isinstance(operation, op.Rename) else operation.parent
    return parent != op.OUTSIDE


def _next_to(rows: Sequence[MapEvent], look: int, end: int) -> bool:
    return rows[look].position == rows[end].position and look < end


def _changes(trace: op.Trace, file: _File) -> list[_Insertion]:
    """Return the writes that explain what the looks at one file saw."""
    node = trace.base.nodes.get(file.inode)
    content = Extents(node.content if isinstance(node, File) else b"")
    done = 0
    seen: dict[int, int] = {}
    found: list[_Insertion] = []
    for row, (_, event) in enumerate(file.rows):
        look = event.look
        if look is None:
            continue
        for operation in trace.operations[done : event.position]:
            _follow(content, operation, file.inode)
        done = event.position
        if look.size != content.size:
            raise _blind(file, f"has {look.size} bytes where calls gave it {content.size}")
        changed = []
        for block, now in look.blocks.items():
            begin = seen.get(block, 0)
            if now == content.read(block * BLOCK, BLOCK):
                _no_unwatched_sync(file, begin, row, block)
            else:
                changed.append(block)
        for block in changed:
            begin = seen.get(block, 0)
            old, now = content.read(block * BLOCK, BLOCK), look.blocks[block]
            insertion = _change(trace, file, (begin, row), block, old, now, len(changed) > 1)
            found.append(insertion)
            content.write(block * BLOCK, now)
        seen.update(dict.fromkeys(look.blocks, row))
    return found


def _no_unwatched_sync(file: _File, begin: int, end: int, block: int) -> None:
    for _, event in file.rows[begin + 1 : end]:
        if event.kind is MapKind.SYNC and not event.watched and _covers(event, block):
            raise _unclear_sync(file, event)


def _change(
    trace: op.Trace,
    file: _File,
    span: tuple[int, int],
    block: int,
    old: bytes,
    now: bytes,
    others: bool,
) -> _Insertion:
    """Return the write for one changed block, with the moments at which it can have been."""
    begin, end = span
    for _, event in file.rows[begin + 1 : end]:
        if event.kind is MapKind.SYNC and _covers(event, block):
            raise _unclear_sync(file, event)
    first, last = _mapped_within(file, begin, end)
    start, (number, stop) = file.rows[first][1], file.rows[last]
    between = trace.operations[start.position : stop.position]
    look = file.rows[end][1]
    for operation in trace.operations[start.position : look.position]:
        if _touches(operation, file.inode, block * BLOCK, (block + 1) * BLOCK):
            raise _blind(
                file,
                "was changed through memory that maps it and by calls as well, and the order of "
                "the two cannot be seen",
            )
    saved = any(event.kind is MapKind.SAVED for _, event in file.rows[first + 1 : last + 1])
    if saved:
        raise _blind(
            file,
            "was changed through memory before or after an acknowledgement, and nobody can tell "
            "which",
        )
    several = others or len(changed_words(old, now)) > 1
    effective = any(not isinstance(o, op.Close) for o in between)
    one_store = look.look is not None and look.look.stored and begin == end - 1
    site, time, task = look.look.site if look.look else None, None, 0
    if stop.position:
        time, task = _moment(trace, stop.position - 1)
    write = op.Write(
        file.inode,
        block * BLOCK,
        now,
        unordered=not one_store and (several or effective),
        path=file.path,
        site=site or op.Site("memory map", 0, "store"),
        time=time,
        task=task,
    )
    crosses = any(_orders(o) for o in between)
    return _Insertion(number, start.position, stop.position, write, crosses)


def _moment(trace: op.Trace, index: int) -> tuple[int | None, int]:
    operation = trace.operations[index]
    return operation.time, operation.task


def _mapped_within(file: _File, begin: int, end: int) -> tuple[int, int]:
    """Return the rows between which the file was mapped for writing, in a span of rows."""
    mapped = False
    for row in range(begin, -1, -1):
        kind = file.rows[row][1].kind
        if kind in (MapKind.OPENED, MapKind.CLOSED):
            mapped = kind is MapKind.OPENED
            break
    first = begin if mapped else None
    last = end
    for row in range(begin + 1, end):
        kind = file.rows[row][1].kind
        if kind is MapKind.OPENED:
            first, last = row if first is None else first, end
        elif kind is MapKind.CLOSED:
            last = row
    if first is None:
        raise _blind(file, "was changed by something that strace did not see")
    return first, last


def _orders(operation: op.Operation) -> bool:
    """Say whether a change before an operation allows other disks than one after it."""
    match operation:
        case op.Fsync(failed=failed):
            return not failed
        case op.SyncRange() | op.SyncAll():
            return True
        case op.Write(durability=durability):
            return durability is not op.Durability.NONE
        case _:
            return False


def _with(
    trace: op.Trace, events: Sequence[MapEvent], insertions: list[_Insertion]
) -> op.Trace:
    insertions.sort(key=lambda each: (each.position, each.event))
    operations: list[op.Operation] = []
    done = 0
    for each in insertions:
        operations += trace.operations[done : each.position]
        done = each.position
        operations.append(each.write)
    operations += trace.operations[done:]
    places = [each.position for each in insertions]
    saved = [n for n, event in enumerate(events) if event.kind is MapKind.SAVED]
    acknowledgements = []
    for ack, number in zip(trace.acknowledgements, saved, strict=True):
        before = bisect_left(places, ack.position)
        before += sum(
            each.position == ack.position and each.event < number for each in insertions[before:]
        )
        acknowledgements.append(replace(ack, position=ack.position + before))
    return replace(
        trace, operations=tuple(operations), acknowledgements=tuple(acknowledgements)
    )


def _follow(content: Extents, operation: op.Operation, inode: int) -> None:
    match operation:
        case op.Write(inode=number, offset=offset, data=data) if number == inode:
            content.write(offset, data)
        case op.Truncate(inode=number, size=size) if number == inode:
            content.truncate(size)
        case op.Allocate(inode=number, size=size) if number == inode and size is not None:
            content.truncate(max(size, content.size))
        case op.ZeroRange(inode=number, offset=offset, length=length) if number == inode:
            content.zero(offset, length)


def _touches(operation: op.Operation, inode: int, begin: int, end: int) -> bool:
    match operation:
        case op.Write(inode=number, offset=offset, data=data):
            return number == inode and offset < end and begin < offset + len(data)
        case op.Truncate(inode=number, size=size):
            return number == inode and size < end
        case op.ZeroRange(inode=number, offset=offset, length=length):
            return number == inode and offset < end and begin < offset + length
        case _:
            return False


def _covers(event: MapEvent, block: int) -> bool:
    return event.begin < (block + 1) * BLOCK and block * BLOCK < event.end


def _on(operation: op.Operation, inode: int) -> bool:
    return getattr(operation, "inode", None) == inode


def _unclear_sync(file: _File, event: MapEvent) -> BlindSpot:
    return _blind(
        file,
        f"was mapped into memory for writing when {event.name} ran on it, and which bytes had been "
        "changed by then cannot be seen",
    )


def _blind(file: _File, what: str) -> BlindSpot:
    return BlindSpot(
        f"what happened on disk is not covered: {file.path!r} {what}", culprit=file.path
    )
