"""The effects that a crash is still free to lose, and the choices between them.

Belongs here: a `Window` (effects not yet durable at one crash point) and a `Choice` (some of them
decided). Rules:

1. A window holds the effects up to operation ``last`` that are not forced at crash point ``since``,
   as bits; ``down`` and ``up`` are their closures under what is needed at that point.
2. A choice is a pair of masks: what must be present (down-closed), what must be absent (up-closed).
   It can be met if and only if they do not meet; its fullest state lacks only what must be absent.
3. A choice is narrowed a cell at a time (`options`): the first option is what its fullest state
   shows, all options together are disjoint and leave nothing out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pytest_statepersist.core.crash_state import CrashState, Disk, Ghost, Returned
from pytest_statepersist.core.effects import Cell, Kind, Part, clears
from pytest_statepersist.core.forcing import NEVER
from pytest_statepersist.core.models import MetadataOrder

__all__ = ["Alternative", "Choice", "Spans", "Window", "bits", "merge"]

Spans = list[tuple[int, int]]
"""Half-open spans of crash points, sorted and apart."""

Alternative = tuple[int, int, int]
"""What must be present and absent for a value, and the effect that decides it (-1: none here)."""

_UNEVEN = -1
"""Stands where an effect that is forced does not stay so to the end."""


def bits(mask: int) -> Iterator[int]:
    """Yield the positions of the bits that are set, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def merge(spans: Spans) -> Spans:
    """Return spans sorted, with those that touch joined."""
    merged: Spans = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


@dataclass(slots=True, eq=False)
class Choice:
    """Effects of a window decided: present, absent, the rest free. Nobody changes one.

    It is not frozen, because a search makes many and freezing would treble what each costs.
    """

    window: Window
    present: int
    absent: int
    ghosts: tuple[Ghost, ...] = ()
    returned: Returned | None = None
    note: Any = None
    """What the reader that made it knows of all its states; no part of the choice."""

    @property
    def deviations(self) -> int:
        """Operations before the last one that miss an effect in the fullest state."""
        return self.deviations_up_to(len(self.window.ids))

    def deviations_up_to(self, limit: int) -> int:
        """Count deviations, but no further than one beyond a limit."""
        window = self.window
        peers, found = window.peers, 0
        left = self.absent & window.before
        while left and found <= limit:
            left &= ~peers[(left & -left).bit_length() - 1]
            found += 1
        return found

    def state(self) -> CrashState:
        """Return the fullest state of this choice."""
        window = self.window
        return CrashState(
            window.last,
            frozenset([window.ids[bit] for bit in bits(self.absent)]),
            self.ghosts,
            self.returned,
            window.points(self.absent),
            self.deviations,
        )

    def options(self, cell: Cell, limit: int | None = None) -> Iterator[Choice]:
        """Yield this choice narrowed to each value that the cell can have; fullest first.

        Of all but the first those are left out that have more deviations than the limit.
        """
        if self.returned is not None and self.returned.cell == cell:
            yield self
            return
        if self.ghosts and any(
            g.inode == cell.inode and g.unit == cell.key and cell.part is Part.DATA
            for g in self.ghosts
        ):
            yield self
            return
        window, present, absent = self.window, self.present, self.absent
        alternatives = window.alternatives(cell)
        if alternatives is None:
            yield self
        else:
            first = True
            for more, less, _ in alternatives:
                wanted, unwanted = present | more, absent | less
                if wanted & unwanted:
                    continue
                if first or limit is None or not window.exceeds(unwanted, limit):
                    first = False
                    yield Choice(window, wanted, unwanted, self.ghosts, self.returned)
        if window.frees and cell.part is Part.DATA and cell.inode in window.frees:
            yield from self.reused(cell)

    def reused(self, cell: Cell) -> Iterator[Choice]:
        """Yield this choice narrowed to each write's bytes that a freed data unit may show."""
        window = self.window
        for freeing in window.frees[cell.inode]:
            absent = self.absent | window.up[freeing]
            if absent & self.present or not window.shows(freeing, cell):
                continue
            for source in window.sources(freeing):
                ghost = Ghost(cell.inode, int(cell.key), source)
                yield Choice(window, self.present, absent, (*self.ghosts, ghost), self.returned)


class Window:
    """Effects up to operation ``last`` that are not forced at crash point ``since``.

    A window that only adds effects to an earlier one takes over what was worked out for that.
    """

    def __init__(
        self,
        disk: Disk,
        last: int,
        since: int,
        ids: list[int],
        beyond: Spans,
        earlier: Window | None = None,
    ) -> None:
        self.disk = disk
        self.last = last
        self.since = since
        self.ids = ids
        self.end = disk.effects.first_of(last + 1)
        """The first effect that is later than all of this."""
        self._beyond = beyond
        self._alternatives: dict[Cell, list[Alternative]] = {}
        self._moving: dict[int, list[Cell]] | None = None
        self._ending: list[tuple[int, int]] | None = None
        self._sources: dict[int, list[int]] = {}
        self.values: dict[
            tuple[int, int, int | str], tuple[list[Alternative] | None, list[Any]]
        ] = {}
        """What each cell can hold here, kept for `core.reading`."""
        if earlier is None or not self._continues(earlier):
            self.operation: list[int] = []
            self.bit: dict[int, int] = {}
            self.of_operation: dict[int, int] = {}
            self.peers: list[int] = []
            """For each bit all bits of its operation."""
            self.down: list[int] = []
            self.up: list[int] = []
            self._metadata = 0
            self._ends: list[int] = []
            self._cells: dict[Cell, list[int]] = {}
            self._celled = 0
            self._enter(0)
            self._close()
        else:
            known = len(earlier.ids)
            self.operation = earlier.operation.copy()
            self.bit = earlier.bit.copy()
            self.of_operation = earlier.of_operation.copy()
            self.peers = earlier.peers.copy()
            self.down = earlier.down.copy()
            self.up = earlier.up.copy()
            self._metadata = earlier._metadata
            self._ends = earlier._ends.copy()
            self._cells = earlier._cells.copy()
            self._celled = earlier._celled
            self._enter(known)
            self._extend(known)
        self.before = ~self.of_operation.get(last, 0)
        """All bits but those of the last operation."""
        self.frees: dict[int, list[int]] = self._freeing()
        self.must = self._must()

    def _continues(self, earlier: Window) -> bool:
        """Whether all that is in an earlier window is here too, first and under the same order."""
        known = len(earlier.ids)
        exempt = self.disk.forcing.exempt or self.disk.effects.twins
        return not exempt and self.ids[:known] == earlier.ids

    def _enter(self, known: int) -> None:
        """Give every effect from bit ``known`` on its place and what forces it."""
        effects, forced = self.disk.effects.effects, self.disk.forcing.forced
        for bit in range(known, len(self.ids)):
            index = self.ids[bit]
            number = effects[index].operation
            self.bit[index] = bit
            self.operation.append(number)
            self.of_operation[number] = self.of_operation.get(number, 0) | 1 << bit
            spans = forced[index]
            if not spans:
                self._ends.append(NEVER)
            else:
                self._ends.append(spans[0][0] if spans[0][1] == NEVER else _UNEVEN)
        for bit in range(known, len(self.ids)):
            self.peers.append(self.of_operation[self.operation[bit]])

    def _extend(self, known: int) -> None:
        """Close what was added from bit ``known`` on, where no log waives the order."""
        effects, model = self.disk.effects, self.disk.model
        ordered = model.metadata_order is not MetadataOrder.NONE
        for bit in range(known, len(self.ids)):
            index, own = self.ids[bit], 1 << bit
            mask = own
            for needed in effects.needs[index]:
                there = self.bit.get(needed)
                if there is not None:
                    mask |= self.down[there]
            eager = effects.is_eager(index)
            if ordered and (eager or index in effects.after_metadata):
                mask |= self._metadata
            if eager:
                self._metadata |= mask
            self.down.append(mask)
            self.up.append(0)
            for there in bits(mask):
                self.up[there] |= own

    def _close(self) -> None:
        effects, model = self.disk.effects, self.disk.model
        ordered = model.metadata_order is not MetadataOrder.NONE
        exempt = self.disk.forcing.exempt
        self.up = [0] * len(self.ids)
        metadata = 0
        needed_by: list[list[int]] = [[] for _ in self.ids]
        # Metadata effects whose closures together hold all metadata so far.
        newest: list[int] = []
        twins: dict[int, int] = {}
        for bit, index in enumerate(self.ids):
            mask = 1 << bit
            for needed in effects.needs[index]:
                there = self.bit.get(needed)
                if there is not None:
                    mask |= self.down[there]
                    needed_by[there].append(bit)
            eager = effects.is_eager(index)
            bound = ordered and exempt.get(index, NEVER) > self.since
            if bound and (eager or index in effects.after_metadata):
                mask |= metadata
                for there in newest:
                    needed_by[there].append(bit)
            self.down.append(mask)
            if effects.twins.get(index - 1) == index:
                # The two halves of a rename across directories, as yet in one transaction.
                twin = self.bit.get(index - 1)
                if twin is not None and exempt.get(index - 1, NEVER) > self.since:
                    self.down[twin] |= mask
                    twins[twin] = bit
            if eager:
                metadata |= mask
                newest = [bit] if bound else [*newest, bit]
        self._metadata = metadata
        for bit in range(len(self.ids) - 1, -1, -1):
            mask = 1 << bit
            for later in needed_by[bit]:
                mask |= self.up[later]
            self.up[bit] = mask
            if bit in twins:
                self.up[twins[bit]] = mask

    def root(self, present: int = 0, absent: int = 0) -> Choice | None:
        """Return a choice with these bits decided, closed; ``None`` where they contradict."""
        wanted, unwanted = self.must, 0
        for bit in bits(present):
            wanted |= self.down[bit]
        for bit in bits(absent):
            unwanted |= self.up[bit]
        return None if wanted & unwanted else Choice(self, wanted, unwanted)

    def _must(self) -> int:
        """Bits that something already durable needs, though a log forgot to force them itself."""
        if not self.disk.model.log_forgets:
            return 0
        forcing, effects = self.disk.forcing, self.disk.effects
        mask, end = 0, effects.first_of(self.last + 1)
        for bit, index in enumerate(self.ids):
            for later in effects.needed_by[index]:
                if later < end and later not in self.bit and forcing.forced_at(later, self.since):
                    mask |= self.down[bit]
        return mask

    def points(self, absent: int) -> tuple[tuple[int, int], ...]:
        """Return the inclusive spans of crash points at which nothing absent is forced."""
        stop = len(self.disk.trace) + 1
        beyond = self._beyond
        if beyond:
            if len(beyond) > 1 or beyond[0][1] != NEVER:
                return self._uneven_points(absent)
            stop = min(stop, beyond[0][0])
        if self._ending is None:
            self._ending = self._by_end()
        for end, ending in self._ending:
            if absent & ending:
                if end == _UNEVEN:
                    return self._uneven_points(absent)
                stop = min(stop, end)
                break
        return ((self.since, stop - 1),) if stop > self.since else ()

    def _by_end(self) -> list[tuple[int, int]]:
        """Return (crash point, all bits that are forced from there on), the earliest first."""
        found: dict[int, int] = {}
        for bit, end in enumerate(self._ends):
            if end != NEVER:
                found[end] = found.get(end, 0) | 1 << bit
        return sorted(found.items())

    def _uneven_points(self, absent: int) -> tuple[tuple[int, int], ...]:
        """The same where what is forced may be free again later."""
        closed = list(self._beyond)
        forced = self.disk.forcing.forced
        for bit in bits(absent):
            closed.extend(forced[self.ids[bit]])
        end = len(self.disk.trace) + 1
        at, spans = self.since, []
        for begin, stop in merge(closed):
            if begin > at:
                spans.append((at, min(begin, end) - 1))
            at = max(at, stop)
            if at >= end:
                break
        if at < end:
            spans.append((at, end - 1))
        return tuple(spans)

    def exceeds(self, absent: int, limit: int) -> bool:
        """Say whether more operations before the last one miss an effect than a limit."""
        left, peers = absent & self.before, self.peers
        while left:
            if limit == 0:
                return True
            limit -= 1
            left &= ~peers[(left & -left).bit_length() - 1]
        return False

    def cells(self) -> dict[Cell, list[int]]:
        """Return the cells that the window's effects change, each with its bits in order."""
        if self._celled < len(self.ids):
            shared = self._celled
            for bit in range(shared, len(self.ids)):
                for cell in self.disk.effects.cells_of(self.ids[bit]):
                    chain = self._cells.get(cell)
                    if chain is None:
                        self._cells[cell] = [bit]
                    elif chain[-1] < shared:
                        self._cells[cell] = [*chain, bit]  # an earlier window has this list too
                    else:
                        chain.append(bit)
            self._celled = len(self.ids)
        return self._cells

    @property
    def moving(self) -> dict[int, list[Cell]]:
        """The cells of `cells` by inode, in the order of `Part`, then of names or numbers."""
        if self._moving is None:
            found: dict[int, list[Cell]] = {}
            for cell in self.cells():
                found.setdefault(cell.inode, []).append(cell)
            for row in found.values():
                row.sort()
            self._moving = found
        return self._moving

    def alternatives(self, cell: Cell) -> list[Alternative] | None:
        """Return what each value of a cell takes, fullest first; ``None`` if it is fixed."""
        known = self._alternatives.get(cell)
        if known is None:
            chain = self.cells().get(cell)
            if chain is None:
                return None
            known = self._sizes(chain) if cell.part is Part.SIZE else self._versions(chain)
            self._alternatives[cell] = known
        return known

    def _versions(self, chain: list[int]) -> list[Alternative]:
        found = []
        for version in range(len(chain), -1, -1):
            present = self.down[chain[version - 1]] if version else 0
            absent = self.up[chain[version]] if version < len(chain) else 0
            found.append((present, absent, self.ids[chain[version - 1]] if version else -1))
        return found

    def _sizes(self, chain: list[int]) -> list[Alternative]:
        """Sizes are set in a chain; between two settings the last raise present decides."""
        effects = self.disk.effects.effects
        settings = [bit for bit in chain if effects[self.ids[bit]].kind is Kind.SET_SIZE]
        found = []
        for version in range(len(settings), -1, -1):
            present = self.down[settings[version - 1]] if version else 0
            absent = self.up[settings[version]] if version < len(settings) else 0
            begin = settings[version - 1] if version else -1
            end = settings[version] if version < len(settings) else len(self.ids)
            raises = [
                bit
                for bit in chain
                if begin < bit < end and effects[self.ids[bit]].kind is Kind.RAISE
            ]
            later = absent
            for bit in reversed(raises):
                found.append((present | self.down[bit], later, self.ids[bit]))
                later |= self.up[bit]
            found.append((present, later, self.ids[begin] if version else -1))
        return found

    # -- reused blocks ---------------------------------------------------------------------------

    def _freeing(self) -> dict[int, list[int]]:
        if not self.disk.model.reuse_freed_blocks:
            return {}
        found: dict[int, list[int]] = {}
        freed_by = self.disk.effects.freed_by
        for bit, index in enumerate(self.ids):
            for inode in freed_by.get(index, ()):
                found.setdefault(inode, []).append(bit)
        return found

    def shows(self, freeing: int, cell: Cell) -> bool:
        """Say whether a unit is freed by an effect: all of a file's, or those beyond a new size."""
        effect = self.disk.effects.effects[self.ids[freeing]]
        return effect.kind is not Kind.SET_SIZE or clears(effect, int(cell.key) * self.disk.unit)

    def sources(self, freeing: int) -> list[int]:
        """Return the data effects that a freed unit may show: not durable when it was freed."""
        known = self._sources.get(freeing)
        if known is not None:
            return known
        effects, forcing = self.disk.effects, self.disk.forcing
        freed = effects.effects[self.ids[freeing]].operation
        found: dict[bytes, int] = {}
        for index in range(effects.first_of(self.last + 1)):
            if effects.effects[index].kind is Kind.DATA and not forcing.forced_at(index, freed):
                found.setdefault(self.disk.ghost_bytes(index), index)
        return self._sources.setdefault(freeing, list(found.values()))
