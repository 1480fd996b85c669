"""A second reading of the model rules, in the plainest code, for the core to be held against.

Belongs here: effects, forced sets and legal sets by listing every subset. It shares the flags and
the operations with the core and nothing else: no windows, no masks, no incremental forcing. Rules
are quoted where they are applied (docs/explanation/models.md). Good for a few operations only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.models import (
    FsyncDirectory,
    FsyncFile,
    MetadataOrder,
    Model,
    SyncCall,
)
from pytest_statepersist.core.moves import lost_moves
from pytest_statepersist.core.operations import SetAttributes
from pytest_statepersist.core.tree import (
    BLOCK,
    OUTSIDE,
    ROOT,
    Directory,
    File,
    Node,
    Symlink,
    Tree,
    read_content,
)

Name = tuple[int, str]
SYNCS = (op.Fsync, op.SyncRange, op.SyncAll)


@dataclass
class E:
    """One effect. ``hard`` needs are never waived, ``order`` needs are for exempt effects."""

    id: int
    op: int
    kind: str  # entry, size, raise, data, attributes
    inode: int = -2
    cells: dict[Name, int | None] = field(default_factory=dict)
    touched: set[int] = field(default_factory=set)  # inodes that gain or lose a name
    parents: set[int] = field(default_factory=set)
    size: int = 0
    unit: int = 0
    start: int = 0
    data: bytes = b""
    change: SetAttributes | None = None
    written: bool = False  # data of a write, as against a zeroed tail
    hard: set[int] = field(default_factory=set)
    order: set[int] = field(default_factory=set)
    frees: dict[int, int] = field(default_factory=dict)  # inode -> first byte freed

    @property
    def eager(self) -> bool:
        return self.kind in ("entry", "size", "attributes")


class TooMany(Exception):
    """The workload has more legal sets than the oracle is willing to list."""


class Oracle:
    def __init__(self, trace: op.Trace, model: Model, *, limit: int = 6000) -> None:
        self.trace = trace
        self.model = model
        self.limit = limit
        self.effects: list[E] = []
        self.directories = {ROOT}
        self.names: dict[Name, int] = {}
        self.sizes: dict[int, int] = {}
        self.base_names: set[Name] = set()
        for number, node in trace.base.nodes.items():
            if isinstance(node, Directory):
                self.directories.add(number)
                for name, child in node.entries.items():
                    self.names[number, name] = child
                    self.base_names.add((number, name))
            elif isinstance(node, File):
                self.sizes[number] = len(read_content(node.content))
        self.made: dict[int, op.Create | op.Mkdir | op.Symlink] = {}
        self.mkdir_effect: dict[int, int] = {}
        self.emptied: set[int] = set()
        self.owed: set[int] = set()
        self.names_at_sync: list[tuple[int, Name, int]] = []
        ordered = model.metadata_order is MetadataOrder.JOURNAL or model.page_cache_survives
        # Taken as given here: `test_model_rules` has a workload for each side of the rule.
        self.lost_moves = frozenset() if ordered else lost_moves(trace)
        for number, operation in enumerate(trace.operations):
            self._split(number, operation)
            if _logs(operation):
                for place, inode in self.names.items():
                    if inode == operation.inode:  # type: ignore[union-attr]
                        self.names_at_sync.append((number, place, inode))
        self._trees: dict[frozenset[int], Tree] = {}

    # -- effects ------------------------------------------------------------------------------

    @property
    def journalled(self) -> bool:
        return self.model.metadata_order is not MetadataOrder.NONE

    def _add(self, kind: str, number: int, **fields: object) -> E:
        e = E(len(self.effects), number, kind, **fields)  # type: ignore[arg-type]
        self.effects.append(e)
        if e.eager:
            if self.journalled:  # "eager effects are chained in trace order, whole operations"
                e.order |= {x.id for x in self.effects if x.eager and x.op < number}
            e.hard |= self.owed
        if kind == "raise" and self.journalled:
            e.order |= {x.id for x in self.effects if x.eager and x.op < number}
        if kind == "data" and self.model.data_needs_metadata:
            e.order |= {x.id for x in self.effects if x.eager and x.op <= number}
        return e

    def _split(self, number: int, operation: op.Operation) -> None:
        match operation:
            case op.Create() | op.Mkdir() | op.Symlink():
                self.made[operation.inode] = operation
                if isinstance(operation, op.Create):
                    self.sizes[operation.inode] = 0
                e = self._entry(number, {(operation.parent, operation.name): operation.inode})
                if isinstance(operation, op.Mkdir):
                    self.directories.add(operation.inode)
                    self.mkdir_effect[operation.inode] = e.id
            case op.Link():
                self._entry(number, {(operation.parent, operation.name): operation.inode})
            case op.Unlink() | op.Rmdir():
                self._entry(number, {(operation.parent, operation.name): None})
            case op.Rename():
                self._rename(number, operation)
            case op.Write():
                self._write(number, operation)
            case op.Truncate():
                self._truncate(number, operation.inode, operation.size)
            case op.Allocate():
                if operation.size is not None and operation.size > self.sizes[operation.inode]:
                    self._truncate(number, operation.inode, operation.size)
            case op.ZeroRange():
                end = min(operation.offset + operation.length, self.sizes[operation.inode])
                for unit, start, length in self._pieces(operation.offset, end):
                    self._data(number, operation.inode, unit, start, bytes(length), written=True)
            case op.SetAttributes():
                if operation.mode is not None or operation.owner is not None or operation.xattrs:
                    e = self._add("attributes", number, inode=operation.inode, change=operation)
                    e.hard |= {
                        x.id
                        for x in self.effects[:-1]
                        if x.kind == "attributes" and x.inode == operation.inode
                    }
            case op.Close():
                if operation.inode in self.emptied and self.model.allocate_on_replace:
                    self.owed |= self._raises(operation.inode)
                self.emptied.discard(operation.inode)
            case _:
                pass

    def _raises(self, inode: int) -> set[int]:
        return {x.id for x in self.effects if x.kind == "raise" and x.inode == inode}

    def _entry(self, number: int, cells: dict[Name, int | None]) -> E:
        cells = {cell: inode for cell, inode in cells.items() if cell[0] != OUTSIDE or cell[1]}
        e = self._add("entry", number)
        e.cells = {cell: inode for cell, inode in cells.items() if cell[0] != OUTSIDE}
        e.touched = {inode for inode in cells.values() if inode is not None}
        for cell in cells:
            before = self.names.pop(cell, None)
            if before is not None:
                e.touched.add(before)
        if not cells:  # a file without a name
            e.touched = {self.trace.operations[number].inode}  # type: ignore[union-attr]
        for cell, inode in cells.items():
            if inode is not None:
                self.names[cell] = inode
        e.parents = {parent for parent, _ in e.cells}
        for x in self.effects[:-1]:
            if x.cells.keys() & e.cells.keys():  # "effects on one cell are chained"
                e.hard.add(x.id)
        if self.model.waives_order:  # "an entry needs the creation of its directory"
            e.hard |= {self.mkdir_effect[p] for p in e.parents if p in self.mkdir_effect}
        for inode in e.touched:
            if inode in self.sizes and inode not in self.names.values():
                e.frees[inode] = 0
        return e

    def _rename(self, number: int, operation: op.Rename) -> None:
        old, new = (operation.parent, operation.name), (operation.new_parent, operation.new_name)
        before = self.names.get(new)
        across = (
            old[0] != new[0]
            and OUTSIDE not in (old[0], new[0])
            and (self.model.waives_order or not self.model.atomic_cross_directory_rename)
            and not {operation.inode, before} & self.directories
        )
        if operation.exchange:
            if not across:
                self._entry(number, {new: operation.inode, old: before})
                return
            there = self._entry(number, {new: operation.inode})
            back = self._entry(number, {old: before})
            if self.model.waives_order:
                there.order.add(back.id)
                back.order.add(there.id)
            return
        if before == operation.inode:
            return
        extra: set[int] = set()
        if before is not None and self.model.allocate_on_replace:
            # "a rename over an existing name needs the raises of the source"
            extra = self._raises(operation.inode)
        if number in self.lost_moves:
            back = self._entry(number, {old: None})
            there = self._entry(number, {new: operation.inode})
            there.hard |= {back.id, *extra}
            if self.model.waives_order:
                back.order.add(there.id)
            return
        if not across:
            e = self._entry(number, {new: operation.inode, old: None})
            e.hard |= extra
            return
        add = self._entry(number, {new: operation.inode})
        add.hard |= extra
        remove = self._entry(number, {old: None})
        remove.hard.add(add.id)  # "remove needs add"
        if self.model.waives_order:
            add.order.add(remove.id)  # "where atomic: add also needs remove"

    def _pieces(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        size = self.model.unit
        for unit in range(begin // size, -(-end // size) if end > begin else 0):
            low, high = max(begin, unit * size), min(end, (unit + 1) * size)
            yield unit, low - unit * size, high - low

    def _clears(self, e: E, unit: int) -> bool:
        return e.kind == "size" and unit * self.model.unit >= -(-e.size // BLOCK) * BLOCK

    def _data(
        self, number: int, inode: int, unit: int, start: int, data: bytes, *, written: bool
    ) -> E:
        e = self._add(
            "data", number, inode=inode, unit=unit, start=start, data=data, written=written
        )
        for x in self.effects[:-1]:
            if x.inode == inode and (
                (x.kind == "data" and x.unit == unit) or self._clears(x, unit)
            ):
                e.hard.add(x.id)
        return e

    def _write(self, number: int, operation: op.Write) -> None:
        inode, begin, end = (
            operation.inode,
            operation.offset,
            operation.offset + len(operation.data),
        )
        if begin == end:
            return
        last_unit: dict[int, int] = {}
        for unit, start, length in self._pieces(begin, end):
            at = unit * self.model.unit + start - begin
            e = self._data(
                number, inode, unit, start, operation.data[at : at + length], written=True
            )
            last_unit[unit * self.model.unit // BLOCK] = e.id
        for block in range(begin // BLOCK, (end - 1) // BLOCK + 1):
            size = min(end, (block + 1) * BLOCK)
            if size > self.sizes[inode]:
                e = self._add("raise", number, inode=inode, size=size)
                e.hard |= {x.id for x in self.effects if x.kind == "size" and x.inode == inode}
                if self.model.size_needs_data:
                    e.hard.add(last_unit[block])
        self.sizes[inode] = max(self.sizes[inode], end)

    def _truncate(self, number: int, inode: int, size: int) -> None:
        before = self.sizes[inode]
        if size == before:
            return
        self.sizes[inode] = size
        tail = []
        if size < before and size % BLOCK:
            tail = list(self._pieces(size, -(-size // BLOCK) * BLOCK))
        zeroed: list[E] = []

        def zero_tail() -> None:
            for unit, start, length in tail:
                zeroed.append(self._data(number, inode, unit, start, bytes(length), written=False))

        # "a process that dies leaves no half of a truncation"
        size_first = self.model.data_needs_metadata or self.model.page_cache_survives
        if not size_first:
            zero_tail()
        e = self._add("size", number, inode=inode, size=size)
        for x in self.effects[:-1]:
            if x.inode == inode and (
                x.kind == "size" or (x.kind == "data" and self._clears(e, x.unit))
            ):
                e.hard.add(x.id)
        if self.model.tail_zeroed_first:
            e.hard |= {x.id for x in zeroed}
        if size_first:
            zero_tail()
            if self.model.page_cache_survives:
                for tail_effect in zeroed:
                    tail_effect.hard.add(e.id)
        if size < before:
            e.frees[inode] = -(-size // BLOCK) * BLOCK
        if size == 0:
            self.emptied.add(inode)

    # -- syncs --------------------------------------------------------------------------------

    def _closure(self, wanted: set[int]) -> set[int]:
        closed: set[int] = set()
        stack = list(wanted)
        while stack:
            index = stack.pop()
            if index not in closed:
                closed.add(index)
                stack.extend(self.effects[index].hard)
                if not self.model.waives_order:
                    stack.extend(self.effects[index].order)
        return closed

    def forced_by(self, sync: int) -> set[int]:
        """What the operation at an index forces once it has returned with success."""
        operation, model = self.trace.operations[sync], self.model
        before = [e for e in self.effects if e.op < sync]
        done = [e for e in self.effects if e.op <= sync]

        def last_change(inode: int, among: list[E]) -> int:
            changes = [
                e.id
                for e in among
                if (e.inode == inode and e.kind in ("raise", "size", "attributes"))
                or inode in e.touched
                or inode in e.parents
            ]
            return max(changes, default=-1)

        def eager_up_to(last: int) -> set[int]:
            return {e.id for e in self.effects if e.eager and e.id <= last}

        def own(inode: int, among: list[E], *kinds: str) -> set[int]:
            return {e.id for e in among if e.inode == inode and e.kind in kinds}

        def naming(inode: int, among: list[E]) -> set[int]:
            return {e.id for e in among if inode in e.touched}

        if model.page_cache_survives:
            return {e.id for e in done}
        given_up = self.given_up(sync)
        match operation:
            case op.Fsync(inode=inode) if inode in self.directories:
                wanted = own(inode, before, "attributes")
                inside = {e.id for e in before if inode in e.parents}
                match model.fsync_directory:
                    case FsyncDirectory.ENTRIES:
                        wanted |= inside
                    case FsyncDirectory.EVERYTHING:
                        wanted |= {e.id for e in before if e.eager}
                    case FsyncDirectory.EARLIER_METADATA:
                        wanted |= eager_up_to(last_change(inode, before))
                    case FsyncDirectory.ENTRIES_AND_NAME:
                        wanted |= inside | naming(inode, before)
                return self._closure(wanted)
            case op.Fsync(inode=inode):
                wanted = own(inode, before, "data", "raise", "size") - given_up
                if not operation.data_only or model.fdatasync_is_fsync:
                    wanted |= own(inode, before, "attributes")
                    if model.fsync_file is FsyncFile.EARLIER_METADATA:
                        wanted |= eager_up_to(last_change(inode, before))
                    elif model.fsync_file is FsyncFile.NAMES:
                        wanted |= naming(inode, before)
                return self._closure(wanted)
            case op.Write(inode=inode) if operation.durability is not op.Durability.NONE:
                wanted = {e.id for e in done if e.op == sync} | own(inode, before, "size")
                if operation.durability is op.Durability.FULL or model.fdatasync_is_fsync:
                    wanted |= own(inode, before, "attributes")
                    if model.fsync_file is FsyncFile.EARLIER_METADATA:
                        wanted |= eager_up_to(last_change(inode, done))
                    elif model.fsync_file is FsyncFile.NAMES:
                        wanted |= naming(inode, before)
                return self._closure(wanted)
            case op.SyncRange():
                end = operation.offset + operation.length
                touched = {unit for unit, _, _ in self._pieces(operation.offset, end)}
                return self._closure(
                    {
                        e.id
                        for e in before
                        if e.kind == "data" and e.inode == operation.inode and e.unit in touched
                    }
                    - given_up
                )
            case op.SyncAll() if model.sync is SyncCall.NOTHING:
                return set()
            case op.SyncAll():
                everything = {e.id for e in before} - given_up
                if model.sync is SyncCall.IF_METADATA_PENDING:
                    metadata = {e.id for e in before if e.eager or e.kind == "raise"} - given_up
                    if metadata <= self.forced(sync):
                        return set()
                return self._closure(everything)
            case _:
                return set()

    def given_up(self, point: int) -> set[int]:
        """Data that was dirty when a sync of its file failed: marked clean, never looked at again.

        "After EIO the dirty pages are marked clean, and later syncs succeed without writing them."
        A size goes out with the page in which it ends, once that is written again.
        """
        found: set[int] = set()
        unit = self.model.unit
        for sync in range(point):
            operation = self.trace.operations[sync]
            if isinstance(operation, op.Write) and operation.data:
                end = operation.offset + len(operation.data)
                units = range(operation.offset // unit, (end - 1) // unit + 1)
                found -= {
                    e.id
                    for e in self.effects
                    if e.kind == "raise" and e.inode == operation.inode and e.op < sync
                    and (e.size - 1) // unit in units
                }  # fmt: skip
            if isinstance(operation, op.Fsync) and operation.failed:
                dirty = {
                    e.id
                    for e in self.effects
                    if e.op < sync and e.inode == operation.inode and e.kind in ("data", "raise")
                }
                found |= dirty - self.forced(sync)
        return found

    def logged_before(self, number: int) -> set[int]:
        return {
            operation.inode  # type: ignore[union-attr]
            for operation in self.trace.operations[:number]
            if _logs(operation)
        }

    def _changes_name(self, operation: int) -> set[Name]:
        """Names whose entry in the log an operation deletes."""
        names: dict[Name, int] = {}
        for number, node in self.trace.base.nodes.items():
            if isinstance(node, Directory):
                names.update({(number, name): child for name, child in node.entries.items()})
        for e in self.effects:
            if e.op < operation:
                for cell, inode in e.cells.items():
                    names.pop(cell, None)
                    if inode is not None:
                        names[cell] = inode
        changed = {
            cell for e in self.effects if e.op == operation for cell in e.cells if cell in names
        }
        what = self.trace.operations[operation]
        synced = {
            earlier.inode  # type: ignore[union-attr]
            for earlier in self.trace.operations[:operation]
            if _logs(earlier) and not _failed(earlier) and not isinstance(earlier, op.SyncRange)
        }
        if isinstance(what, op.Rename) and what.inode in synced:
            return set()  # "With t fsynced before the rename it never happened"
        return changed

    def forced(self, point: int) -> set[int]:
        """What must be on disk at a crash point."""
        forced: set[int] = set()
        for sync in range(point):
            if _failed(self.trace.operations[sync]):
                continue
            by_this = self.forced_by(sync)
            operation = self.trace.operations[sync]
            if isinstance(operation, op.Fsync):  # a directory's entries are forced for good
                inside = {e.id for e in self.effects if operation.inode in e.parents}
                forced |= self._closure(by_this & inside)
            if self.model.log_forgets and not isinstance(operation, op.SyncAll):
                for later in range(sync + 1, min(point + 1, len(self.trace))):
                    gone = self._changes_name(later)
                    by_this = {i for i in by_this if not self.effects[i].cells.keys() & gone}
            forced |= by_this
        return forced

    def exempt(self, point: int) -> set[int]:
        """Effects that the order of metadata does not bind at a crash point."""
        if not self.model.waives_order:
            return set()
        found: set[int] = set()
        for sync, operation in enumerate(self.trace.operations[: point + 1]):
            if not _logs(operation):
                continue
            found |= self._closure(self.forced_by(sync) | self._taken_along(sync, operation.inode))
            for e in self.effects:
                known = (e.touched | e.parents) & self.logged_before(e.op)
                if known and e.kind == "entry" and e.op < sync:
                    found.add(e.id)
        return found

    def _taken_along(self, sync: int, inode: int) -> set[int]:
        """What a log takes up with a file: who took its names over, and the directories it left."""
        before = [e for e in self.effects if e.op < sync and e.kind == "entry"]
        # A sync of a range may take all of the file.
        found = {e.id for e in self.effects if e.op < sync and e.inode == inode and e not in before}
        files, more = {inode}, {inode}
        while more:
            had = [(e.id, cell) for e in before if e.touched & more for cell in e.cells]
            over = [e for e in before if any(e.id > i and cell in e.cells for i, cell in had)]
            found |= {e.id for e in over}
            more = {i for e in over for i in e.touched} - files
            files |= more
        own = [e for e in before if inode in e.touched]
        if any(named != inode for e in own for named in e.cells.values()):
            left = {parent for e in own for parent in e.parents}
            found |= {e.id for e in before if e.parents & left}
        return found

    # -- states -------------------------------------------------------------------------------

    def legal(self, point: int) -> Iterator[frozenset[int]]:
        """Every legal set of effects at a crash point."""
        universe = [e for e in self.effects if e.op <= point]
        forced, exempt = self.forced(point), self.exempt(point)
        needs = {e.id: e.hard | (set() if e.id in exempt else e.order) for e in universe}
        found: list[set[int]] = [set()]
        for e in universe:
            lower = {n for n in needs[e.id] if n < e.id}
            more = [s | {e.id} for s in found if lower <= s]
            found = more if e.id in forced and not self.model.log_forgets else found + more
            if len(found) > self.limit:
                raise TooMany
        for chosen in found:
            if forced <= chosen and all(needs[i] <= chosen for i in chosen):
                yield frozenset(chosen)

    def trees(self, point: int) -> dict[Tree, int]:
        """Every legal tree at a crash point, with the fewest deviations that show it."""
        found: dict[Tree, int] = {}
        made = 0
        for chosen in self.legal(point):
            deviations = self.deviations(chosen)
            for tree in self._with_ghosts(chosen, point):
                found[tree] = min(found.get(tree, deviations), deviations)
                made += 1
                if made > self.limit:
                    raise TooMany
        return found

    def deviations(self, chosen: frozenset[int]) -> int:
        last = max((self.effects[i].op for i in chosen), default=-1)
        return len({e.op for e in self.effects if e.op < last and e.id not in chosen})

    def _with_ghosts(self, chosen: frozenset[int], point: int) -> Iterator[Tree]:
        if not (self.model.names_return or self.model.reuse_freed_blocks):
            if chosen not in self._trees:
                self._trees[chosen] = self.tree(chosen)
            yield self._trees[chosen]
            return
        returned: list[tuple[Name, int] | None] = [None]
        if self.model.names_return:
            names = self._names_of(chosen)
            for sync, name, inode in self.names_at_sync:
                if (
                    sync < point
                    and name not in names
                    and name not in self.base_names
                    and inode not in names.values()
                ):
                    returned.append((name, inode))
        places: dict[tuple[int, int], set[bytes]] = {}
        if self.model.reuse_freed_blocks:
            for e in self.effects:
                if e.op > point or e.id in chosen or not e.frees:
                    continue
                on_disk = self.forced(e.op)
                blocks = {
                    self._block(x)
                    for x in self.effects
                    if x.kind == "data" and x.written and x.op <= point and x.id not in on_disk
                }
                for inode, begin in e.frees.items():
                    reach = self._size(chosen, inode)
                    for unit in range(begin // self.model.unit, -(-reach // self.model.unit)):
                        places.setdefault((inode, unit), set()).update(blocks)
        wheres = list(places)
        choices = itertools.product(*([None, *places[w]] for w in wheres))
        for pick in choices:
            ghosts = {w: b for w, b in zip(wheres, pick, strict=True) if b is not None}
            for back in returned:
                yield self.tree(chosen, ghosts, back)

    def _block(self, e: E) -> bytes:
        """The unit as a data effect leaves it when everything before is there."""
        return self._unit({x.id for x in self.effects if x.id <= e.id}, e.inode, e.unit)

    # -- reading ------------------------------------------------------------------------------

    def _names_of(self, chosen: frozenset[int]) -> dict[Name, int]:
        names: dict[Name, int] = {}
        for number, node in self.trace.base.nodes.items():
            if isinstance(node, Directory):
                names.update({(number, name): child for name, child in node.entries.items()})
        for e in self.effects:
            if e.id in chosen:
                for cell, inode in e.cells.items():
                    if inode is None:
                        names.pop(cell, None)
                    else:
                        names[cell] = inode
        return names

    def _base(self, inode: int) -> bytes:
        node = self.trace.base.nodes.get(inode)
        return read_content(node.content) if isinstance(node, File) else b""

    def _size(self, chosen: frozenset[int] | set[int], inode: int) -> int:
        size = len(self._base(inode))
        for e in self.effects:
            if e.id in chosen and e.inode == inode:
                if e.kind == "size":
                    size = e.size
                elif e.kind == "raise":
                    size = max(size, e.size)
        return size

    def _unit(self, chosen: frozenset[int] | set[int], inode: int, unit: int) -> bytes:
        width = self.model.unit
        held = bytearray(self._base(inode)[unit * width : (unit + 1) * width].ljust(width, b"\0"))
        for e in self.effects:
            if e.id in chosen and e.inode == inode:
                if self._clears(e, unit):
                    held = bytearray(width)
                elif e.kind == "data" and e.unit == unit:
                    held[e.start : e.start + len(e.data)] = e.data
        return bytes(held)

    def tree(
        self,
        chosen: frozenset[int],
        ghosts: dict[tuple[int, int], bytes] | None = None,
        returned: tuple[Name, int] | None = None,
    ) -> Tree:
        names = self._names_of(chosen)
        if returned is not None:
            names[returned[0]] = returned[1]
        nodes: dict[int, Node] = {}
        waiting = [ROOT]
        while waiting:
            inode = waiting.pop()
            if inode in nodes:
                continue
            base, made = self.trace.base.nodes.get(inode), self.made.get(inode)
            mode = getattr(base or made, "mode", 0)
            xattrs = dict(base.xattrs) if isinstance(base, File) else {}
            for e in self.effects:
                if e.id in chosen and e.kind == "attributes" and e.inode == inode:
                    assert e.change is not None
                    mode = mode if e.change.mode is None else e.change.mode
                    for key, value in e.change.xattrs:
                        xattrs.pop(key, None)
                        if value is not None:
                            xattrs[key] = value
            if isinstance(base, Symlink):
                nodes[inode] = base
            elif isinstance(made, op.Symlink):
                nodes[inode] = Symlink(made.target)
            elif inode in self.directories:
                entries = {name: child for (d, name), child in names.items() if d == inode}
                nodes[inode] = Directory(entries, mode)
                waiting.extend(entries.values())
            else:
                size, width = self._size(chosen, inode), self.model.unit
                content = b"".join(
                    (ghosts or {}).get((inode, unit), self._unit(chosen, inode, unit))
                    for unit in range(-(-size // width))
                )
                nodes[inode] = File(content[:size], mode, None, tuple(sorted(xattrs.items())))
        return Tree(nodes)


def _logs(operation: op.Operation) -> bool:
    """Whether an operation syncs one file or directory."""
    if isinstance(operation, op.Write):
        return operation.durability is not op.Durability.NONE
    return isinstance(operation, op.Fsync | op.SyncRange)


def _failed(operation: op.Operation) -> bool:
    return isinstance(operation, op.Fsync) and operation.failed
