"""What the sync calls of a trace make durable, and what they let overtake the order.

Belongs here: from `Effects` to two facts about each effect. Rules:

1. ``forced[e]`` are the crash points at which effect e must be on disk, as half-open spans. A sync
   at index i forces from crash point i + 1: one that is still running forces nothing.
2. ``exempt[e]`` is the first crash point at which the order of metadata no longer binds e: a log
   may write it with the sync that was called there.
3. A forced set is closed under what its members need, except under an order that is waived.
4. A sync never forces data of another file, nor the data of a directory's children.
5. A sync that failed marks the dirty pages of its file clean without writing them (ext4, XFS), or
   drops them (btrfs): no later sync forces that data, unless the same page is written once more,
   which takes a size along that ends in this page.
   Facts: Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.effects import CONTENT, Cell, Effects, Kind, Part
from pytest_statepersist.core.models import FsyncDirectory, FsyncFile, MetadataOrder, SyncCall
from pytest_statepersist.core.tree import Directory

__all__ = ["NEVER", "Forcing", "force"]

NEVER = 1 << 60
"""A crash point after every trace."""

_OWN = CONTENT | {Kind.RAISE, Kind.SET_SIZE}
_DIRTY = CONTENT | {Kind.RAISE, Kind.TIMES}
"""What goes out with a file's dirty pages: their bytes, the sizes that they raise, the time."""


class Forcing:
    """The result: ``forced[e]`` and ``exempt[e]`` for each effect, and where either changes."""

    def __init__(self, effects: Effects) -> None:
        self.forced: list[list[tuple[int, int]]] = [[] for _ in range(len(effects))]
        self.exempt: dict[int, int] = {}
        self.loosened: dict[int, set[int]] = defaultdict(set)
        """Crash point → effects that are bound less from there on than one point earlier."""
        self.synced_names: dict[int, list[tuple[Cell, int]]] = {}
        """Index of a sync → names that its inode had then and the base does not have."""

    def forced_at(self, effect: int, point: int) -> bool:
        """Say whether an effect must be on disk at a crash point."""
        return any(begin <= point < end for begin, end in self.forced[effect])


def force(effects: Effects) -> Forcing:
    """Work out what the syncs of a trace force; time is linear in the number of effects."""
    return _Forcer(effects).run()


class _Forcer:
    def __init__(self, effects: Effects) -> None:
        self.effects = effects
        self.model = effects.model
        self.out = Forcing(effects)
        self.for_good: list[bool] = [False] * len(effects)
        self.eager: list[int] = []
        self.eager_done = 0
        self.own: dict[int, list[int]] = defaultdict(list)
        self.soft: dict[int, list[int]] = defaultdict(list)
        self.entries_of: dict[int, list[int]] = defaultdict(list)
        self.names_of: dict[int, list[int]] = defaultdict(list)
        self.last_change: dict[int, int] = {}
        self.synced: set[int] = set()
        self.logged: set[int] = set()
        self.log_closed: set[int] = set()
        self.in_log: list[int] = []
        self.everything_done = 0
        self.taken_along: dict[int, int] = defaultdict(int)
        """Directory → the first effect that no log took along with a file that lost a name."""
        self.directories = {op.ROOT}
        self.names_now: dict[int, set[Cell]] = defaultdict(set)
        self.holder: dict[Cell, int] = {}
        self.base_names: set[Cell] = set()
        self.given_up: set[int] = set()
        """Effects that were dirty at a sync that failed: marked clean, no sync looks for them."""
        self.sizes_given_up: dict[int, list[int]] = defaultdict(list)
        self.sizes_back: list[int] = []
        """Sizes that were given up and that go out with their page, which was written again."""

    def run(self) -> Forcing:
        trace = self.effects.trace
        for number, node in trace.base.nodes.items():
            if isinstance(node, Directory):
                self.directories.add(number)
                for name, inode in node.entries.items():
                    cell = Cell(Part.ENTRY, number, name)
                    self.base_names.add(cell)
                    self._hold(cell, inode)
        for index, operation in enumerate(trace.operations):
            if isinstance(operation, op.Mkdir):
                self.directories.add(operation.inode)
            self._note(index)
            if self.model.page_cache_survives:
                self._force(self.effects.of_operation[index], index)
                continue
            match operation:
                case op.Fsync():
                    self._fsync(index, operation)
                    if operation.failed:
                        self._give_up(operation.inode)
                    self._remember(index, operation.inode, synced=not operation.failed)
                case op.Write() if operation.durability is not op.Durability.NONE:
                    self._durable_write(index, operation)
                    self._remember(index, operation.inode, synced=True)
                case op.SyncRange():
                    self._range(index, operation)
                    self._remember(index, operation.inode, synced=False)
                case op.SyncAll():
                    self._sync_all(index)
                case _:
                    pass
        return self.out

    # -- what a later sync may force ------------------------------------------------------------

    def _note(self, operation: int) -> None:
        for index in self.effects.of_operation[operation]:
            effect = self.effects.effects[index]
            if self.effects.is_eager(index):
                self.eager.append(index)
            if effect.kind in _OWN:
                self.own[effect.inode].append(index)
                if effect.kind in CONTENT and self.sizes_given_up:
                    self._take_back(effect.inode, effect.unit, operation)
            elif effect.kind is not Kind.ENTRY:
                self.soft[effect.inode].append(index)
            if effect.kind in (Kind.RAISE, Kind.SET_SIZE, Kind.ATTRIBUTES):
                self.last_change[effect.inode] = index
            if effect.kind is Kind.ENTRY:
                self._note_entry(index, operation)

    def _hold(self, cell: Cell, inode: int | None) -> None:
        before = self.holder.pop(cell, None)
        if before is not None:
            self.names_now[before].discard(cell)
        if inode is not None:
            self.holder[cell] = inode
            self.names_now[inode].add(cell)

    def _note_entry(self, index: int, operation: int) -> None:
        effect = self.effects.effects[index]
        parents = {cell.inode for cell, _ in effect.entries}
        for cell, inode in effect.entries:
            self._hold(cell, inode)
        for parent in parents:
            self.entries_of[parent].append(index)
            self.last_change[parent] = index
        for inode in effect.renamed:
            self.names_of[inode].append(index)
            self.last_change[inode] = index
        if not self.model.waives_order:
            return
        if (effect.renamed | parents) & self.logged:
            self.in_log.append(index)
        call = self.effects.trace.operations[operation]
        moved_synced = isinstance(call, op.Rename) and call.inode in self.synced
        if self.model.log_forgets and not moved_synced:
            self._forget(index, operation)

    def _forget(self, index: int, operation: int) -> None:
        """An entry that a sync forced is forced no longer once a later operation changed the name.

        Never seen where the file that takes the name over had been synced before.
        """
        for cell, _ in self.effects.effects[index].entries:
            chain = self.effects.chains[cell]
            earlier_ones = chain[: bisect_left(chain, index)]
            if not earlier_ones or self._names(earlier_ones[-1], cell) is None:
                continue
            for earlier in earlier_ones:
                spans = self.out.forced[earlier]
                if spans and spans[-1][1] == NEVER and not self.for_good[earlier]:
                    begin = spans.pop()[0]
                    if begin < operation:
                        spans.append((begin, operation))
                        self.out.loosened[operation].add(earlier)

    def _names(self, index: int, cell: Cell) -> int | None:
        return dict(self.effects.effects[index].entries)[cell]

    def _newest(self, entries: list[int]) -> list[int]:
        """Leave out what others of these need anyway, so that long traces stay linear."""
        inside = set(entries)

        def superseded(index: int, cell: Cell) -> bool:
            chain = self.effects.chains[cell]
            after = bisect_left(chain, index) + 1
            return after < len(chain) and chain[after] in inside

        kept = []
        for index in entries:
            cells = [cell for cell, _ in self.effects.effects[index].entries]
            if not cells or not all(superseded(index, cell) for cell in cells):
                kept.append(index)
        return kept

    # -- forcing --------------------------------------------------------------------------------

    def _force(self, wanted: Iterable[int], sync: int, *, for_good: bool = True) -> None:
        """Force effects, and what they need, from the return of the sync at an index."""
        stack = list(wanted)
        while stack:
            index = stack.pop()
            spans = self.out.forced[index]
            if self.for_good[index] or (not for_good and spans and spans[-1][1] == NEVER):
                continue
            if not spans or spans[-1][1] != NEVER:
                spans.append((sync + 1, NEVER))
            self.for_good[index] = for_good
            stack.extend(self.effects.needs[index])
            if self.model.metadata_order is MetadataOrder.JOURNAL and (
                index in self.effects.after_metadata or self.effects.is_eager(index)
            ):
                stack.extend(self._eager_up_to(index))

    def _eager_up_to(self, index: int) -> list[int]:
        begin = self.eager_done
        while self.eager_done < len(self.eager) and self.eager[self.eager_done] <= index:
            self.eager_done += 1
        return self.eager[begin : self.eager_done]

    def _fsync(self, sync: int, call: op.Fsync) -> None:
        if self.model.waives_order:
            inside = self.entries_of[call.inode] = self._newest(self.entries_of[call.inode])
            names = self._names_of(call.inode)
            self._log(sync, call.inode, self._contents(call), names, inside, call.failed)
        elif call.failed:
            return
        elif call.inode in self.directories:
            self._fsync_directory(sync, call.inode)
        else:
            wanted = self.own.pop(call.inode, [])
            if not call.data_only:
                wanted += self.soft.pop(call.inode, [])
                if self.model.fsync_file is FsyncFile.EARLIER_METADATA:
                    wanted += self._eager_up_to(self.last_change.get(call.inode, -1))
            self._force(wanted, sync)

    def _give_up(self, inode: int) -> None:
        """Leave out of all later syncs what was dirty; a page written again brings it back.

        A later write to the page is chained after it and needs it, since the whole page goes out.
        """
        kinds = self.effects.effects
        for waiting in (self.own, self.soft):
            lost = [
                index
                for index in waiting[inode]
                if kinds[index].kind in _DIRTY and not self.for_good[index]
            ]
            self.given_up.update(lost)
            self.sizes_given_up[inode] += [i for i in lost if kinds[i].kind is Kind.RAISE]
            waiting[inode] = [index for index in waiting[inode] if index not in self.given_up]

    def _take_back(self, inode: int, unit: int, operation: int) -> None:
        """Wait again for the sizes that end in a page which is written once more.

        Writing a page out raises the size on disk to its end, or the file's (XFS does so then only;
        ext4's has been in its journal all the time).
        """
        if not isinstance(self.effects.trace.operations[operation], op.Write):
            return
        sizes = self.sizes_given_up.get(inode, [])
        back = [
            index
            for index in sizes
            if (self.effects.effects[index].size - 1) // self.model.unit == unit
        ]
        for index in back:
            sizes.remove(index)
            self.given_up.discard(index)
        self.own[inode] += back
        self.sizes_back += back

    def _fsync_directory(self, sync: int, inode: int) -> None:
        wanted = self.soft.pop(inode, [])
        match self.model.fsync_directory:
            case FsyncDirectory.EVERYTHING:
                wanted += self._eager_up_to(NEVER)
            case FsyncDirectory.EARLIER_METADATA:
                wanted += self._eager_up_to(self.last_change.get(inode, -1))
            case FsyncDirectory.ENTRIES | FsyncDirectory.ENTRIES_AND_NAME:
                wanted += self.entries_of.pop(inode, [])
        self._force(wanted, sync)

    def _durable_write(self, sync: int, call: op.Write) -> None:
        """Force the write's own range, and of the file's metadata what a sync of it would."""
        full = call.durability is op.Durability.FULL or self.model.fdatasync_is_fsync
        effects = self.effects.effects
        pending = self._pending(call.inode)
        wanted = [i for i in self.effects.of_operation[sync] if effects[i].kind is not Kind.TIMES]
        wanted += [i for i in pending if effects[i].kind is Kind.SET_SIZE]
        if full:
            wanted += [i for i in self.soft[call.inode] if effects[i].kind is Kind.ATTRIBUTES]
        if self.model.waives_order:
            self._log(sync, call.inode, wanted, self._names_of(call.inode))
            return
        if full and self.model.fsync_file is FsyncFile.EARLIER_METADATA:
            wanted += self._eager_up_to(self.last_change.get(call.inode, -1))
        self._force(wanted, sync)

    def _range(self, sync: int, call: op.SyncRange) -> None:
        unit = self.model.unit
        touched = range(call.offset // unit, -(-(call.offset + call.length) // unit))
        wanted = [
            index
            for index in self._pending(call.inode)
            if self.effects.effects[index].kind in CONTENT
            and self.effects.effects[index].unit in touched
        ]
        if self.model.waives_order:
            self._log(sync, call.inode, wanted)
        else:
            self._force(wanted, sync)

    def _pending(self, inode: int) -> list[int]:
        """Return a file's data and sizes that no sync has forced so far."""
        self.own[inode] = [index for index in self.own[inode] if not self.for_good[index]]
        return self.own[inode]

    def _remember(self, sync: int, inode: int, *, synced: bool) -> None:
        """Note that a log may know an inode, with its names; ``synced`` if wholly, with success."""
        self.logged.add(inode)
        if synced:
            self.synced.add(inode)
        if self.model.names_return:
            names = [(cell, inode) for cell in self.names_now[inode] - self.base_names]
            if names:
                self.out.synced_names[sync] = names

    # -- a log of what was synced -----------------------------------------------------------------

    def _contents(self, call: op.Fsync) -> list[int]:
        """Return the data, sizes and attributes that a log takes up with a file or directory."""
        contents = self._pending(call.inode) + self.soft[call.inode]
        if not call.failed:
            del self.own[call.inode], self.soft[call.inode]
        return contents

    def _names_of(self, inode: int) -> list[int]:
        self.names_of[inode] = self._newest(self.names_of[inode])
        return self.names_of[inode]

    def _beside(self, sync: int, inode: int) -> set[int]:
        """Return what a log takes along with a file, though nobody relies on that.

        All of a file may go along where only a range of it is synced. With one that lost a name go
        its directories, with all that happened in them; with each, what later calls did with names
        that it had, since no name may belong to two files.
        """
        found = {*self._pending(inode), *self.soft[inode], *self._directories_of(sync, inode)}
        end = self.effects.of_operation[sync].stop
        inodes, seen = [inode], {inode}
        while inodes:
            for later in self._took_over(inodes.pop(), end):
                found.add(later)
                new = self.effects.effects[later].renamed - seen
                seen |= new
                inodes += sorted(new)
        return found

    def _took_over(self, inode: int, end: int) -> Iterator[int]:
        for index in self.names_of[inode]:
            for cell, _ in self.effects.effects[index].entries:
                chain = self.effects.chains[cell]
                yield from chain[bisect_left(chain, index) + 1 : bisect_left(chain, end)]

    def _directories_of(self, sync: int, inode: int) -> Iterator[int]:
        entries = [each for i in self.names_of[inode] for each in self.effects.effects[i].entries]
        if all(named == inode for _, named in entries):
            return  # it lost no name
        for parent in {cell.inode for cell, _ in entries}:
            begin = self.taken_along[parent]
            self.taken_along[parent] = self.effects.of_operation[sync].stop
            for index in reversed(self.entries_of[parent]):
                if index < begin:
                    break
                yield index

    def _log(
        self,
        sync: int,
        inode: int,
        contents: list[int],
        names: Iterable[int] = (),
        inside: Iterable[int] = (),
        failed: bool = False,
    ) -> None:
        """Write a file or directory to the log: forced out of order, its names until they change.

        Entries inside a directory stay: no log was seen to forget one that it took up with it.
        """
        beside = self._beside(sync, inode)
        names = [index for index in names if not self.for_good[index]]
        inside = [index for index in inside if not self.for_good[index]]
        for index in (*self._needed_by([*contents, *names, *inside, *beside]), *self.in_log):
            if self.out.exempt.setdefault(index, sync) == sync:
                self.out.loosened[sync].add(index)
        self.in_log.clear()
        if not failed:
            self._force([*contents, *inside], sync)
            self._force(names, sync, for_good=False)

    def _needed_by(self, wanted: list[int]) -> list[int]:
        """Return these effects and all that they need and no log has taken up so far."""
        found, stack = [], wanted
        while stack:
            index = stack.pop()
            if index not in self.log_closed and not self.for_good[index]:
                self.log_closed.add(index)
                found.append(index)
                stack.extend(self.effects.needs[index])
        return found

    def _sync_all(self, sync: int) -> None:
        if self.model.sync is SyncCall.NOTHING:
            return
        end = self.effects.of_operation[sync].stop
        begin, self.everything_done = self.everything_done, end
        waiting = [
            i
            for i in (*self.sizes_back, *range(begin, end))
            if not self.for_good[i] and i not in self.given_up
        ]
        metadata = [
            i
            for i in waiting
            if self.effects.is_eager(i) or self.effects.effects[i].kind is Kind.RAISE
        ]
        if self.model.sync is SyncCall.IF_METADATA_PENDING and not metadata:
            # xfs writes the data but flushes the device only along with its log.
            self.everything_done = begin
            return
        self.own.clear()
        self.soft.clear()
        self.entries_of.clear()
        self._force(waiting, sync)
