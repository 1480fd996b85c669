"""From operations to effects: the parts that can reach the disk by themselves, and their order.

Belongs here: splitting an operation into effects, and which effect *needs* which to be on disk
first. What a sync forces is in `forcing`; which sets of effects are legal is in `states`. Rules:

1. An effect changes cells: a data unit, a size, attributes, times, or directory entries. Effects
   on one cell are chained: a later one needs the earlier. Growing writes only *raise* a size and
   are not chained; the size is that of the last raise present.
2. Needs point to effects with a lower index, so closures are computed in one pass. The one
   exception is a rename across directories on a logging file system: `twins`.
3. `needs` holds the edges that nothing waives. The order of metadata is kept apart
   (``ordered``, ``after_metadata``), because a log may waive it.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.models import MetadataOrder, Model
from pytest_statepersist.core.tree import BLOCK, Directory, File, size_of
from pytest_statepersist.errors import TraceError

__all__ = ["EAGER", "Cell", "Effect", "Effects", "Kind", "Part", "split"]


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

    ENTRY = "entry"
    DATA = "data"
    RAISE = "raise"
    SET_SIZE = "set size"
    ZERO_TAIL = "zero tail"
    ATTRIBUTES = "attributes"
    TIMES = "times"


EAGER = frozenset({Kind.ENTRY, Kind.SET_SIZE, Kind.ATTRIBUTES})
"""Effects that a journal writes in the order of the trace; raises follow lazily."""


@dataclass(frozen=True, slots=True)
class Effect:
    """One indivisible change. ``size`` is the size set or raised to, or where a tail begins.

    ``entries`` are (cell, inode or ``None``); ``start`` is where ``data`` begins inside its unit.
    """

    index: int
    operation: int
    kind: Kind
    inode: int
    entries: tuple[tuple[Cell, int | None], ...] = ()
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
        self._data_chains: dict[tuple[int, int], list[int]] = {}

    def __len__(self) -> int:
        return len(self.effects)

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
                + [i for i in self.set_sizes.get(inode, ()) if _clears(self.effects[i], begin)]
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
                    if _clears(effect, number * unit):
                        yield Cell(Part.DATA, effect.inode, number)
            case Kind.DATA:
                yield Cell(Part.DATA, effect.inode, effect.unit)
            case Kind.ZERO_TAIL:
                for number in _tail_units(effect.size, self.model.unit):
                    yield Cell(Part.DATA, effect.inode, number)
            case Kind.ATTRIBUTES:
                yield Cell(Part.ATTRIBUTES, effect.inode)
            case Kind.TIMES:
                yield Cell(Part.TIMES, effect.inode)


def split(trace: op.Trace, model: Model) -> Effects:
    """Turn a trace into its effects under a model; raises `TraceError` where it is impossible."""
    return _Splitter(trace, model).run()


def _clears(set_size: Effect, begin: int) -> bool:
    """Whether a set size zeroes the unit that begins at a byte: whole blocks beyond the size."""
    return begin >= -(-set_size.size // BLOCK) * BLOCK


def _tail_units(size: int, unit: int) -> range:
    """Return the units between a size and the end of its block."""
    return range(size // unit, -(-size // BLOCK) * BLOCK // unit)


class _Splitter:
    """Walks the trace in order, knowing names and sizes as a running program sees them."""

    def __init__(self, trace: op.Trace, model: Model) -> None:
        self.out = Effects(trace, model)
        self.model = model
        self.sizes: dict[int, int] = {}
        self.links: dict[int, int] = defaultdict(int)
        self.entries: dict[tuple[int, str], int] = {}
        self.directories: set[int] = {op.OUTSIDE}
        self.emptied: dict[int, int] = {}
        self.owed: list[int] = []
        self.made_by: dict[int, int] = {}
        for number, node in trace.base.nodes.items():
            if isinstance(node, File):
                self.sizes[number] = size_of(node.content)
            elif isinstance(node, Directory):
                self.directories.add(number)
                for name, child in node.entries.items():
                    self.entries[number, name] = child
                    self.links[child] += 1

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
        made = self._set_entries([(operation.parent, operation.name, operation.inode)])
        if isinstance(operation, op.Mkdir):
            self.made_by[operation.inode] = made

    def _rename(self, operation: op.Rename) -> None:
        old = (operation.parent, operation.name)
        new = (operation.new_parent, operation.new_name)
        before = self.entries.get(new)
        if operation.exchange:
            back = [(*old, before)]
            there = [(*new, operation.inode)]
            if operation.parent == operation.new_parent or self._atomic(operation.inode, before):
                self._set_entries(there + back)
            else:
                self.out.many_names.update({operation.inode, before or operation.inode})
                self._set_entries(there)
                self._set_entries(back)
            return
        if before == operation.inode:
            return
        extra = set()
        if before is not None and self.model.allocate_on_replace:
            extra = self._raises_since_set_size(operation.inode)
        if operation.parent == operation.new_parent or self._atomic(operation.inode, before):
            self._set_entries([(*new, operation.inode), (*old, None)], needs=extra)
            return
        self.out.many_names.add(operation.inode)
        add = self._set_entries([(*new, operation.inode)], needs=extra)
        remove = self._set_entries([(*old, None)], needs={add})
        if self.model.waives_order:
            self.out.twins[add] = remove

    def _atomic(self, *inodes: int | None) -> bool:
        """A rename across directories: directories are never seen under two names."""
        if any(inode in self.directories for inode in inodes if inode is not None):
            return True
        return self.model.atomic_cross_directory_rename and not self.model.waives_order

    def _set_entries(
        self, changes: list[tuple[int, str, int | None]], needs: set[int] | None = None
    ) -> int:
        wanted = set(needs or ())
        index = len(self.out.effects)
        cells: list[tuple[Cell, int | None]] = []
        subject = next((inode for _, _, inode in changes if inode is not None), None)
        gone: set[int] = set()
        for parent, name, inode in changes:
            if parent not in self.directories:
                raise TraceError(
                    f"operation {self.now} names {name!r} in inode {parent}, which is no directory"
                )
            cell = Cell(Part.ENTRY, parent, name)
            chain = self.out.chains[cell]
            if chain:
                wanted.add(chain[-1])
            chain.append(index)
            if self.model.waives_order and parent in self.made_by:
                wanted.add(self.made_by[parent])
            self.out.names[parent].add(name)
            cells.append((cell, inode))
            before = self.entries.pop((parent, name), None)
            subject = before if subject is None else subject
            if before is not None:
                gone.add(before)
            for changed, step in ((before, -1), (inode, 1)):
                if changed is not None:
                    self.links[changed] += step
                    self.out.cells_naming[changed].add(cell)
            if inode is not None:
                self.entries[parent, name] = inode
        wanted.discard(index)
        if self.model.reuse_freed_blocks:
            for inode in gone:
                if inode in self.sizes and self.links[inode] == 0:
                    self.out.frees[inode].append(index)
        return self._emit(
            Kind.ENTRY, -2 if subject is None else subject, wanted, entries=tuple(cells)
        )

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

    def _data(self, inode: int, number: int, start: int, data: bytes) -> int:
        cell = Cell(Part.DATA, inode, number)
        needs = set()
        chain = self.out.chains[cell]
        if chain:
            needs.add(chain[-1])
        cleared = self._last_clear(inode, number * self.model.unit)
        if cleared is not None:
            needs.add(cleared)
        self.out.units[inode].add(number)
        index = self._emit(Kind.DATA, inode, needs, unit=number, start=start, data=data)
        chain.append(index)
        if self.model.data_needs_metadata:
            self.out.after_metadata.add(index)
        return index

    def _last_clear(self, inode: int, begin: int) -> int | None:
        for index in reversed(self.out.set_sizes.get(inode, ())):
            if _clears(self.out.effects[index], begin):
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
            if size == 0:
                self.emptied.setdefault(inode, len(self.out.effects))
            return
        tail: int | None = None
        if size < before and size % BLOCK and not self.model.data_needs_metadata:
            tail = self._zero_tail(inode, size)
        needs = set(self.out.set_sizes[inode][-1:])
        if tail is not None and self.model.tail_zeroed_first:
            needs.add(tail)
        if not self.model.size_needs_data:
            needs.update(self._raises_since_set_size(inode))
        unit = self.model.unit
        for number in self.out.units[inode]:
            if number * unit >= -(-size // BLOCK) * BLOCK:
                needs.update(self.out.chains[Cell(Part.DATA, inode, number)][-1:])
        index = self._emit(Kind.SET_SIZE, inode, needs, size=size)
        self.out.set_sizes[inode].append(index)
        self.sizes[inode] = size
        if size < before:
            if self.model.reuse_freed_blocks:
                self.out.frees[inode].append(index)
            if size % BLOCK and self.model.data_needs_metadata:
                self._zero_tail(inode, size, {index})
        if size == 0:
            self.emptied[inode] = index

    def _zero_tail(self, inode: int, size: int, needs: set[int] | None = None) -> int:
        wanted = set(needs or ())
        index = len(self.out.effects)
        for number in _tail_units(size, self.model.unit):
            chain = self.out.chains[Cell(Part.DATA, inode, number)]
            wanted.update(chain[-1:])
            cleared = self._last_clear(inode, number * self.model.unit)
            if cleared is not None:
                wanted.add(cleared)
            chain.append(index)
            self.out.units[inode].add(number)
        return self._emit(Kind.ZERO_TAIL, inode, wanted, size=size)

    def _raises_since_set_size(self, inode: int) -> set[int]:
        since = self.out.set_sizes[inode][-1:] or [-1]
        raises = self.out.raises[inode]
        return set(raises[bisect_left(raises, since[0]) :])

    def _times(self, inode: int, mtime: int | None) -> None:
        chain = self.out.chains[Cell(Part.TIMES, inode)]
        chain.append(self._emit(Kind.TIMES, inode, set(chain[-1:]), mtime=mtime))

    def _attributes(self, operation: op.SetAttributes) -> None:
        if operation.mode is not None or operation.owner is not None or operation.xattrs:
            chain = self.out.chains[Cell(Part.ATTRIBUTES, operation.inode)]
            needs = set(chain[-1:])
            chain.append(self._emit(Kind.ATTRIBUTES, operation.inode, needs, change=operation))
        if operation.mtime is not None:
            self._times(operation.inode, operation.mtime)

    def _close(self, inode: int) -> None:
        """ext4 allocates at the close of a file that was emptied: later metadata needs its size."""
        emptied = self.emptied.pop(inode, None)
        if emptied is not None and self.model.allocate_on_replace:
            self.owed.extend(self._raises_since_set_size(inode))
