"""From operations to effects: the parts that can reach the disk by themselves, and their order.

Belongs here: splitting an operation into effects, and which effect *needs* which to be on disk
first. What a sync forces is in `forcing`; which sets of effects are legal is in `states`. Rules:

1. An effect changes cells: a data unit, a size, attributes, times, or directory entries. Effects
   on one cell are chained: a later one needs the earlier. Growing writes only *raise* a size and
   are not chained; the size is that of the last raise present.
2. Needs point to effects with a lower index, so closures are computed in one pass. The one
   exception is a rename across directories on a logging file system: `twins`, which maps the first
   half to the second, which it needs until a log has taken it.
3. `needs` holds the edges that nothing waives. The order of metadata is kept apart
   (``ordered``, ``after_metadata``), because a log may waive it.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.models import MetadataOrder, Model
from pytest_statepersist.core.moves import lost_moves
from pytest_statepersist.core.tree import BLOCK, Directory, File, size_of
from pytest_statepersist.errors import TraceError

__all__ = ["CONTENT", "EAGER", "Cell", "Effect", "Effects", "Kind", "Part", "clears", "split"]


class Part(enum.IntEnum):
    """What kind of place a cell is."""

    ENTRY = 0
    SIZE = 1
    DATA = 2
    ATTRIBUTES = 3
    TIMES = 4


class Cell(NamedTuple):
    """A place on disk: an entry (directory, name), or a size, data unit … of an inode."""

    part: Part
    inode: int
    key: int | str = 0


class Kind(enum.Enum):
    """What an effect does to its cells."""

    __hash__ = object.__hash__  # that of `Enum` is Python code, and sets are asked for each effect

    ENTRY = "entry"
    DATA = "data"
    RAISE = "raise"
    SET_SIZE = "set size"
    ZERO_TAIL = "zero tail"
    ATTRIBUTES = "attributes"
    TIMES = "times"


EAGER = frozenset({Kind.ENTRY, Kind.SET_SIZE, Kind.ATTRIBUTES})
"""Effects that a journal writes in the order of the trace; raises follow lazily."""
CONTENT = frozenset({Kind.DATA, Kind.ZERO_TAIL})
"""Effects on a data unit: bytes that were written, zeros behind a new end."""


@dataclass(slots=True, eq=False)
class Effect:
    """One indivisible change. ``size`` is the size set or raised to. Nobody changes one.

    ``entries`` are (cell, inode or ``None``) and ``renamed`` the inodes that gain or lose a name
    by them; ``start`` is where ``data`` begins inside its unit.
    """

    index: int
    operation: int
    kind: Kind
    inode: int
    entries: tuple[tuple[Cell, int | None], ...] = ()
    renamed: frozenset[int] = frozenset()
    size: int = 0
    unit: int = 0
    start: int = 0
    data: bytes = b""
    mtime: int | None = None
    change: op.SetAttributes | None = None


class Effects:
    """All effects of a trace under one model, with the edges between them.

    ``of_operation[i]`` is the range of effect indices of operation ``i``. ``chains`` maps a cell to
    its effects in order; chains of data leave out the set sizes that clear them (`data_chain`).
    """

    def __init__(self, trace: op.Trace, model: Model) -> None:
        self.trace = trace
        self.model = model
        self.effects: list[Effect] = []
        self.needs: list[tuple[int, ...]] = []
        self.of_operation: list[range] = []
        self.after_metadata: set[int] = set()
        self.twins: dict[int, int] = {}
        self.chains: dict[Cell, list[int]] = defaultdict(list)
        self.raises: dict[int, list[int]] = defaultdict(list)
        self.set_sizes: dict[int, list[int]] = defaultdict(list)
        self.names: dict[int, set[str]] = defaultdict(set)
        self.cells_naming: dict[int, set[Cell]] = defaultdict(set)
        self.units: dict[int, set[int]] = defaultdict(set)
        self.frees: dict[int, list[int]] = defaultdict(list)
        self.created: dict[int, op.Create | op.Mkdir | op.Symlink] = {}
        self.many_names: set[int] = set()
        self.times: set[int] = set()
        self._data_chains: dict[tuple[int, int], list[int]] = {}

    def __len__(self) -> int:
        return len(self.effects)

    @cached_property
    def needed_by(self) -> list[list[int]]:
        """The effects that need each effect directly."""
        found: list[list[int]] = [[] for _ in self.needs]
        for index, needs in enumerate(self.needs):
            for needed in needs:
                found[needed].append(index)
        return found

    @cached_property
    def freed_by(self) -> dict[int, list[int]]:
        """The inodes whose data units each effect frees."""
        found: dict[int, list[int]] = {}
        for inode, freeing in self.frees.items():
            for index in freeing:
                found.setdefault(index, []).append(inode)
        return found

    def first_of(self, operation: int) -> int:
        """Return the index of the first effect at or after an operation."""
        if operation >= len(self.of_operation):
            return len(self.effects)
        return self.of_operation[operation].start

    def data_chain(self, inode: int, unit: int) -> list[int]:
        """Return the effects that decide one data unit, in order: writes and what clears it."""
        key = (inode, unit)
        chain = self._data_chains.get(key)
        if chain is None:
            begin = unit * self.model.unit
            chain = sorted(
                self.chains.get(Cell(Part.DATA, inode, unit), [])
                + [i for i in self.set_sizes.get(inode, ()) if clears(self.effects[i], begin)]
            )
            self._data_chains[key] = chain
        return chain

    def is_eager(self, index: int) -> bool:
        """Say whether an effect takes part in the order of metadata."""
        return self.effects[index].kind in EAGER

    def cells_of(self, index: int) -> Iterator[Cell]:
        """Yield the cells of an effect; for a set size the data units that it clears as well."""
        effect = self.effects[index]
        match effect.kind:
            case Kind.ENTRY:
                yield from (cell for cell, _ in effect.entries)
            case Kind.RAISE:
                yield Cell(Part.SIZE, effect.inode)
            case Kind.SET_SIZE:
                yield Cell(Part.SIZE, effect.inode)
                unit = self.model.unit
                for number in self.units[effect.inode]:
                    if clears(effect, number * unit):
                        yield Cell(Part.DATA, effect.inode, number)
            case Kind.DATA | Kind.ZERO_TAIL:
                yield Cell(Part.DATA, effect.inode, effect.unit)
            case Kind.ATTRIBUTES:
                yield Cell(Part.ATTRIBUTES, effect.inode)
            case Kind.TIMES:
                yield Cell(Part.TIMES, effect.inode)


def split(trace: op.Trace, model: Model) -> Effects:
    """Turn a trace into its effects under a model; raises `TraceError` where it is impossible."""
    return _Splitter(trace, model).run()


def clears(set_size: Effect, begin: int) -> bool:
    """Whether a set size zeroes the unit that begins at a byte: whole blocks beyond the size."""
    return begin >= _end_of_block(set_size.size)


def _end_of_block(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


class _Splitter:
    """Walks the trace in order, knowing names and sizes as a running program sees them."""

    def __init__(self, trace: op.Trace, model: Model) -> None:
        self.out = Effects(trace, model)
        self.model = model
        self.sizes: dict[int, int] = {}
        self.links: dict[int, int] = defaultdict(int)
        self.entries: dict[tuple[int, str], int] = {}
        self.directories: set[int] = {op.OUTSIDE}
        self.emptied: set[int] = set()
        self.owed: list[int] = []
        # Where names keep their order a later name brings each earlier rename along.
        journalled = model.metadata_order is MetadataOrder.JOURNAL or model.page_cache_survives
        self.lost_moves = frozenset() if journalled else lost_moves(trace)
        self.made_by: dict[int, int] = {}
        for number, node in trace.base.nodes.items():
            if isinstance(node, File):
                self.sizes[number] = size_of(node.content)
            elif isinstance(node, Directory):
                self.directories.add(number)
                for name, child in node.entries.items():
                    self.entries[number, name] = child
                    self.links[child] += 1
                    self.out.cells_naming[child].add(Cell(Part.ENTRY, number, name))
        self.out.many_names.update(inode for inode, links in self.links.items() if links > 1)

    def run(self) -> Effects:
        for number, operation in enumerate(self.out.trace.operations):
            first = len(self.out.effects)
            self.now = number
            self._apply(operation)
            self.out.of_operation.append(range(first, len(self.out.effects)))
        return self.out

    def _apply(self, operation: op.Operation) -> None:
        match operation:
            case op.Create() | op.Mkdir() | op.Symlink():
                self._new(operation)
            case op.Link():
                self.out.many_names.add(operation.inode)
                self._set_entries([(operation.parent, operation.name, operation.inode)])
            case op.Unlink() | op.Rmdir():
                self._set_entries([(operation.parent, operation.name, None)])
            case op.Rename():
                self._rename(operation)
            case op.Write():
                self._write(operation)
            case op.Truncate():
                self._truncate(operation.inode, operation.size)
                self._times(operation.inode, operation.time)
            case op.Allocate():
                if operation.size is not None and operation.size > self._size(operation.inode):
                    self._truncate(operation.inode, operation.size)
            case op.ZeroRange():
                end = min(operation.offset + operation.length, self._size(operation.inode))
                for unit, start, length in self._pieces(operation.offset, end):
                    self._data(operation.inode, unit, start, bytes(length))
                self._times(operation.inode, operation.time)
            case op.SetAttributes():
                self._attributes(operation)
            case op.Close():
                self._close(operation.inode)
            case op.Fsync() | op.SyncRange() | op.SyncAll():
                pass

    def _emit(self, kind: Kind, inode: int, needs: set[int], **fields: object) -> int:
        index = len(self.out.effects)
        effect = Effect(index, self.now, kind, inode, **fields)  # type: ignore[arg-type]
        if kind in EAGER and self.owed:
            needs.update(self.owed)
            self.owed.clear()
        self.out.effects.append(effect)
        self.out.needs.append(tuple(sorted(needs)))
        return index

    # -- names --------------------------------------------------------------------------------

    def _new(self, operation: op.Create | op.Mkdir | op.Symlink) -> None:
        if operation.inode in self.out.created or operation.inode in self.out.trace.base.nodes:
            raise TraceError(f"operation {self.now} creates inode {operation.inode} a second time")
        self.out.created[operation.inode] = operation
        if isinstance(operation, op.Create):
            self.sizes[operation.inode] = 0
        elif isinstance(operation, op.Mkdir):
            self.directories.add(operation.inode)
        name: tuple[int, str, int | None] = (operation.parent, operation.name, operation.inode)
        made = self._set_entries([name])
        if isinstance(operation, op.Mkdir):
            self.made_by[operation.inode] = made

    def _rename(self, operation: op.Rename) -> None:
        old = (operation.parent, operation.name)
        new = (operation.new_parent, operation.new_name)
        before = self.entries.get(new)
        atomic = self._atomic(operation, before)
        if operation.exchange:
            if atomic:
                self._set_entries([(*new, operation.inode), (*old, before)])
                return
            self.out.many_names.update(i for i in (operation.inode, before) if i is not None)
            there = self._set_entries([(*new, operation.inode)])
            back = self._set_entries([(*old, before)])
        elif before == operation.inode:
            return
        else:
            extra = set()
            if before is not None and self.model.allocate_on_replace:
                extra = self._raises_since_set_size(operation.inode)
            if self.now in self.lost_moves:
                back = self._set_entries([(*old, None)])
                there = self._set_entries([(*new, operation.inode)], needs={back, *extra})
                if self.model.waives_order:
                    self.out.twins[back] = there
                return
            if atomic:
                self._set_entries([(*new, operation.inode), (*old, None)], needs=extra)
                return
            self.out.many_names.add(operation.inode)
            there = self._set_entries([(*new, operation.inode)], needs=extra)
            back = self._set_entries([(*old, None)], needs={there})
        if self.model.waives_order:
            self.out.twins[there] = back

    def _atomic(self, operation: op.Rename, before: int | None) -> bool:
        """Whether both names change at once; directories are never seen under two names."""
        parents = {operation.parent, operation.new_parent}
        if len(parents) == 1 or op.OUTSIDE in parents:
            return True
        if operation.inode in self.directories or before in self.directories:
            return True
        return self.model.atomic_cross_directory_rename and not self.model.waives_order

    def _set_entries(
        self, changes: list[tuple[int, str, int | None]], needs: set[int] | None = None
    ) -> int:
        wanted = set(needs or ())
        cells: list[tuple[Cell, int | None]] = []
        renamed: set[int] = set()
        for parent, name, inode in changes:
            if parent not in self.directories:
                raise TraceError(
                    f"operation {self.now} names {name!r} in inode {parent}, which is no directory"
                )
            before = self.entries.pop((parent, name), None)
            if inode is not None and (name or parent != op.OUTSIDE):
                self.entries[parent, name] = inode
            for changed, step in ((before, -1), (inode, 1)):
                if changed is not None:
                    self.links[changed] += step
                    renamed.add(changed)
            if parent == op.OUTSIDE:
                continue
            cell = Cell(Part.ENTRY, parent, name)
            cells.append((cell, inode))
            wanted.update(self.out.chains[cell][-1:])
            if self.model.waives_order and parent in self.made_by:
                wanted.add(self.made_by[parent])
            self.out.names[parent].add(name)
            for changed in (before, inode):
                if changed is not None:
                    self.out.cells_naming[changed].add(cell)
        freed = []
        if self.model.reuse_freed_blocks:
            freed = [i for i in sorted(renamed) if i in self.sizes and self.links[i] == 0]
        # In memory the blocks are free even if nothing of this call is on disk: an effect says so.
        wanted.update(self._times(inode, None) for inode in freed)
        subject = next((inode for _, _, inode in changes if inode is not None), None)
        index = self._emit(
            Kind.ENTRY,
            min(renamed, default=-2) if subject is None else subject,
            wanted,
            entries=tuple(cells),
            renamed=frozenset(renamed),
        )
        for cell, _ in cells:
            self.out.chains[cell].append(index)
        for inode in freed:
            self.out.frees[inode].append(index)
        return index

    # -- contents -----------------------------------------------------------------------------

    def _size(self, inode: int) -> int:
        try:
            return self.sizes[inode]
        except KeyError:
            raise TraceError(
                f"operation {self.now} changes the content of inode {inode}, which is no file that "
                "the trace or its base tree knows"
            ) from None

    def _pieces(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (unit number, start inside it, length) of a byte range."""
        unit = self.model.unit
        while begin < end:
            number, start = divmod(begin, unit)
            length = min(unit - start, end - begin)
            yield number, start, length
            begin += length

    def _data(
        self,
        inode: int,
        number: int,
        start: int,
        data: bytes,
        kind: Kind = Kind.DATA,
        after: int | None = None,
    ) -> int:
        chain = self.out.chains[Cell(Part.DATA, inode, number)]
        needs = set(chain[-1:])
        if after is not None:
            needs.add(after)
        cleared = self._last_clear(inode, number * self.model.unit)
        if cleared is not None:
            needs.add(cleared)
        self.out.units[inode].add(number)
        index = self._emit(kind, inode, needs, unit=number, start=start, data=data)
        chain.append(index)
        if self.model.data_needs_metadata:
            self.out.after_metadata.add(index)
        return index

    def _last_clear(self, inode: int, begin: int) -> int | None:
        for index in reversed(self.out.set_sizes.get(inode, ())):
            if clears(self.out.effects[index], begin):
                return index
        return None

    def _write(self, operation: op.Write) -> None:
        inode, begin = operation.inode, operation.offset
        size, end = self._size(inode), begin + len(operation.data)
        if begin == end:
            return
        written: dict[int, int] = {}
        at = 0
        for number, start, length in self._pieces(begin, end):
            data = operation.data[at : at + length]
            written[number] = self._data(inode, number, start, data)
            at += length
        journalled = self.model.metadata_order is not MetadataOrder.NONE
        for block in range(begin // BLOCK, (end - 1) // BLOCK + 1):
            reach = min(end, (block + 1) * BLOCK)
            if reach <= size:
                continue
            needs = set(self.out.set_sizes[inode][-1:])
            if self.model.size_needs_data:
                needs.add(written[(reach - 1) // self.model.unit])
            index = self._emit(Kind.RAISE, inode, needs, size=reach)
            self.out.raises[inode].append(index)
            if journalled:
                self.out.after_metadata.add(index)
        self.sizes[inode] = max(size, end)
        self._times(inode, operation.time)

    def _truncate(self, inode: int, size: int) -> None:
        before = self._size(inode)
        if size == before:
            return
        # A process that dies leaves no half of a truncation: behind the new end nobody reads.
        shrinks_first = self.model.data_needs_metadata or self.model.page_cache_survives
        tail = self._zero_tail(inode, size) if size < before and not shrinks_first else []
        needs = set(self.out.set_sizes[inode][-1:])
        if self.model.tail_zeroed_first:
            needs.update(tail)
        beyond = _end_of_block(size)
        for number in self.out.units[inode]:
            if number * self.model.unit >= beyond:
                needs.update(self.out.chains[Cell(Part.DATA, inode, number)][-1:])
        index = self._emit(Kind.SET_SIZE, inode, needs, size=size)
        self.out.set_sizes[inode].append(index)
        self.sizes[inode] = size
        if size < before:
            if shrinks_first:
                self._zero_tail(inode, size, index if self.model.page_cache_survives else None)
            if self.model.reuse_freed_blocks:
                self.out.frees[inode].append(index)
        if size == 0:
            self.emptied.add(inode)

    def _zero_tail(self, inode: int, size: int, after: int | None = None) -> list[int]:
        return [
            self._data(inode, number, start, bytes(length), Kind.ZERO_TAIL, after)
            for number, start, length in self._pieces(size, _end_of_block(size))
        ]

    def _raises_since_set_size(self, inode: int) -> set[int]:
        since = self.out.set_sizes[inode][-1:] or [-1]
        raises = self.out.raises[inode]
        return set(raises[bisect_left(raises, since[0]) :])

    def _times(self, inode: int, mtime: int | None) -> int:
        chain = self.out.chains[Cell(Part.TIMES, inode)]
        index = self._emit(Kind.TIMES, inode, set(chain[-1:]), mtime=mtime)
        chain.append(index)
        self.out.times.add(index)
        return index

    def _attributes(self, operation: op.SetAttributes) -> None:
        if operation.mode is not None or operation.owner is not None or operation.xattrs:
            chain = self.out.chains[Cell(Part.ATTRIBUTES, operation.inode)]
            needs = set(chain[-1:])
            chain.append(self._emit(Kind.ATTRIBUTES, operation.inode, needs, change=operation))
        if operation.mtime is not None:
            self._times(operation.inode, operation.mtime)

    def _close(self, inode: int) -> None:
        """ext4 allocates at the close of a file that was emptied: later metadata needs its size."""
        if inode in self.emptied and self.model.allocate_on_replace:
            self.owed.extend(self._raises_since_set_size(inode))
        self.emptied.discard(inode)
