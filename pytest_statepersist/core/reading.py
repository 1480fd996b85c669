"""Reading a choice cell by cell: what its fullest state shows, and what else it could show.

Belongs here: `Reader`, which answers for one choice of a disk after the other and narrows it on the
way. Rules:

1. To read a cell decides it: the choice becomes all states that show the same there, and every
   other value that the cell can have becomes a choice of its own. What results is what
   `Choice.options` gives, first the fullest state's value, then the others.
2. A value is worked out once for each window, and what holds for a version of a cell once for each
   disk, so that reading a state costs no more than looking up what decides it.
3. Where a ``limit`` of deviations is set, the values of a cell that need more are not listed one by
   one: they are handed over as one `Beyond`, from which a choice can still be drawn.
4. The two ghosts go beyond effects: a unit that shows another write's bytes is decided with its
   choice, and so is a name that came back.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState, Disk, Ghost
from pytest_statepersist.core.effects import Cell, Part
from pytest_statepersist.core.tree import Directory, Symlink
from pytest_statepersist.core.window import Alternative, Choice, Window

__all__ = ["DIRECTORY", "FILE", "LINK", "Beyond", "Reader"]

FILE, DIRECTORY, LINK = range(3)
"""Kinds of inodes; an inode never changes its kind."""

_PARTS = tuple(Part)
# Looking a member up in an enumeration costs more than all that is done with it here.
ENTRY, SIZE, DATA, ATTRIBUTES, TIMES = (
    int(part) for part in (Part.ENTRY, Part.SIZE, Part.DATA, Part.ATTRIBUTES, Part.TIMES)
)


@dataclass(slots=True, eq=False)
class Beyond:
    """Choices that differ from one in the value of a cell, each with more than some deviations."""

    whole: Choice
    present: int
    absent: int
    rest: list[Alternative]
    note: Any = None

    def choices(self) -> list[Choice]:
        """Return all of them."""
        whole, found = self.whole, []
        for more, less, _ in self.rest:
            wanted, unwanted = self.present | more, self.absent | less
            if not wanted & unwanted:
                found.append(
                    Choice(
                        whole.window, wanted, unwanted, whole.ghosts, whole.returned, self.note
                    )
                )
        return found


_UNKNOWN: Any = object()


class Reader:
    """Reads the fullest state of a choice and narrows the choice to what was read.

    ``others`` are the choices that would have shown something else, disjoint; with a ``limit``
    those that surely need more deviations are in ``beyond``.
    """

    def __init__(self, disk: Disk, limit: int | None = None) -> None:
        self.disk = disk
        self.limit = limit
        self.others: list[Choice] = []
        self.beyond: list[Beyond] = []
        self.ghosts: tuple[Ghost, ...] = ()
        self.note: Any = None
        """What the choices that are made now are given along."""
        self._whole: Choice
        self._window: Window
        self._present = self._absent = 0
        self._kinds: dict[int, int] = {}
        self._names: dict[int, list[str]] = {}
        self._units: dict[tuple[int, int], list[int]] = {}
        self._entries: dict[tuple[int, int | str], list[int | None]] = {}
        self._chains: dict[tuple[int, int, int | str], list[int]] = {}

    def open(self, choice: Choice) -> None:
        """Begin to read a choice; what was read of another is forgotten."""
        self.others = []
        self.beyond = []
        self._whole = choice
        self._window = choice.window
        self._present, self._absent = choice.present, choice.absent
        self.ghosts = choice.ghosts

    def choice(self) -> Choice:
        """Return the choice, narrowed to all states that show what was read so far."""
        whole = self._whole
        return Choice(self._window, self._present, self._absent, whole.ghosts, whole.returned)

    def state(self) -> CrashState:
        """Return the fullest state of the choice; reading does not change it."""
        return self._whole.state()

    def narrow(self, cells: Iterable[Cell]) -> None:
        """Decide cells one by one, of any choice."""
        choice = self.choice()
        for cell in cells:
            found = list(choice.options(cell))
            choice = found[0]
            self.others.extend(found[1:])
        self._whole = choice
        self._present, self._absent = choice.present, choice.absent

    def entry(self, directory: int, name: str) -> int | None:
        """Return the inode under a name, ``None`` where there is none, and decide that."""
        returned = self._whole.returned
        if returned is None or returned.cell != (ENTRY, directory, name):
            found: int | None = self.see(ENTRY, directory, name)
            return found
        return self.disk.entry(self.state(), directory, name)

    def data(self, inode: int, unit: int) -> object:
        """Return what tells the bytes of a data unit apart from others, and decide them."""
        for ghost in self.ghosts:
            if ghost.inode == inode and ghost.unit == unit:
                return ghost
        if inode not in self._window.frees:
            return self.see(DATA, inode, unit)
        before = self.choice()
        shown = self.see(DATA, inode, unit)
        self.others.extend(before.reused(Cell(Part.DATA, inode, unit)))
        return shown

    def see(self, part: int, inode: int, key: int | str = 0) -> Any:
        """Return what effects make of a cell, and decide it.

        An inode or ``None`` for an entry, (settings, bytes) for a size, a modification time, and
        for attributes and data the number of effects that are present.
        """
        window = self._window
        held = window.values.get((part, inode, key))
        if held is None:
            held = window.values[part, inode, key] = self._held(window, part, inode, key)
        alternatives, values = held
        if alternatives is None:
            return values[0]
        present, absent = self._present, self._absent
        limit = self.limit
        first = -1
        for at, (more, less, _) in enumerate(alternatives):
            wanted, unwanted = present | more, absent | less
            if wanted & unwanted:
                continue
            if first < 0:
                first = at
                self._present, self._absent = wanted, unwanted
                continue
            returned = self._whole.returned
            other = Choice(window, wanted, unwanted, self.ghosts, returned, self.note)
            if limit is not None and other.deviations_up_to(limit) > limit:
                # What is absent for one value is absent for every value that follows.
                rest = alternatives[at:]
                self.beyond.append(Beyond(self._whole, present, absent, rest, self.note))
                break
            self.others.append(other)
        value = values[first]
        if value is _UNKNOWN:
            cell, decider = Cell(_PARTS[part], inode, key), alternatives[first][2]
            value = values[first] = self._value(window, cell, decider)
        return value

    # -- facts about the disk

    def kind(self, inode: int) -> int:
        """Return whether an inode is a `FILE`, a `DIRECTORY` or a `LINK`."""
        kind = self._kinds.get(inode)
        if kind is None:
            base = self.disk.trace.base.nodes.get(inode)
            made = self.disk.effects.created.get(inode)
            kind = FILE
            if isinstance(base, Directory) or isinstance(made, op.Mkdir):
                kind = DIRECTORY
            elif isinstance(base, Symlink) or isinstance(made, op.Symlink):
                kind = LINK
            self._kinds[inode] = kind
        return kind

    def names(self, directory: int) -> list[str]:
        """Return every name that a directory has at some time, sorted."""
        names = self._names.get(directory)
        if names is None:
            names = self._names[directory] = sorted(self.disk.names(directory))
        return names

    def units(self, inode: int, size: int) -> list[int]:
        """Return the data units that decide the content of a file of this size, sorted."""
        numbers = self._units.get((inode, size))
        if numbers is None:
            numbers = self._units[inode, size] = self.disk.units_below(inode, size)
        return numbers

    # -- values

    def _held(
        self, window: Window, part: int, inode: int, key: int | str
    ) -> tuple[list[Alternative] | None, list[Any]]:
        """Return the alternatives of a cell with room for their values, or its only value."""
        # A tuple finds what is kept under an equal cell, and costs a third of one.
        if (part, inode, key) not in window.cells():
            return None, [self._durable(part, inode, key, window.end)]
        alternatives = window.alternatives(Cell(_PARTS[part], inode, key))
        assert alternatives is not None
        return alternatives, [_UNKNOWN] * len(alternatives)

    def _durable(self, part: int, inode: int, key: int | str, end: int) -> Any:
        """Return what a cell holds where all its effects before ``end`` are durable."""
        chain = self._chains.get((part, inode, key))
        if chain is None:
            chain = self._chains[part, inode, key] = self._chain(part, inode, key)
        version = bisect_left(chain, end)
        if part == SIZE:
            return self._size_after(inode, version, end)
        return self._version_value(part, inode, key, version)

    def _chain(self, part: int, inode: int, key: int | str) -> list[int]:
        effects = self.disk.effects
        if part == DATA:
            return effects.data_chain(inode, int(key))
        if part == SIZE:
            return effects.set_sizes.get(inode, [])
        return effects.chains.get(Cell(_PARTS[part], inode, key), [])

    def _size_after(self, inode: int, version: int, end: int) -> tuple[int, int]:
        """Return the size after so many settings and every raise before ``end``."""
        effects = self.disk.effects
        since = effects.set_sizes[inode][version - 1] if version else -1
        size = effects.effects[since].size if version else self.disk.base_size(inode)
        raises = effects.raises.get(inode, [])
        at = bisect_left(raises, end)
        if at and raises[at - 1] > since:
            size = max(size, effects.effects[raises[at - 1]].size)
        return version, size

    def _version_value(self, part: int, inode: int, key: int | str, version: int) -> Any:
        if part == ENTRY:
            entries = self._entries.get((inode, key))
            if entries is None:
                cell = Cell(Part.ENTRY, inode, key)
                entries = self._entries[inode, key] = self.disk.entry_versions(cell)
            return entries[version]
        return self.disk.mtime_at(inode, version) if part == TIMES else version

    def _value(self, window: Window, cell: Cell, decider: int) -> Any:
        """Return what a cell holds where this is the last effect of the window that changes it."""
        effects = self.disk.effects
        if cell.part is Part.SIZE:
            return self._size(window, cell.inode, decider)
        if cell.part is Part.DATA:
            return _version(window, effects.data_chain(cell.inode, int(cell.key)), decider)
        version = _version(window, effects.chains.get(cell, []), decider)
        return self._version_value(int(cell.part), cell.inode, cell.key, version)

    def _size(self, window: Window, inode: int, decider: int) -> tuple[int, int]:
        effects = self.disk.effects
        settings, raises = effects.set_sizes.get(inode, []), effects.raises.get(inode, [])
        version = _version(window, settings, decider)
        since = settings[version - 1] if version else -1
        size = effects.effects[since].size if version else self.disk.base_size(inode)
        at = bisect_left(raises, window.end)
        while at and raises[at - 1] > since:
            at -= 1
            # A raise that the window does not hold is durable.
            if raises[at] == decider or raises[at] not in window.bit:
                return version, max(size, effects.effects[raises[at]].size)
        return version, size


def _version(window: Window, chain: list[int], decider: int) -> int:
    """Return how many effects of a chain are present where this is the window's last of them."""
    end = window.end
    if decider >= 0:
        at = bisect_left(chain, decider + 1)
    else:
        # What is older than the window is durable.
        at = bisect_left(chain, window.ids[0] if window.ids else end)
    while at < len(chain) and chain[at] < end and chain[at] not in window.bit:
        at += 1
    return at
