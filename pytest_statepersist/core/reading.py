"""Reading a choice cell by cell: what its fullest state shows, and what else it could show.

Belongs here: `Reader`, which answers for one choice of a disk after the other and narrows it on the
way. Rules:

1. To read a cell decides it: the choice becomes all states that show the same there, and every
   other value that the cell can have becomes a choice of its own. What results is what
   `Choice.options` gives, first the fullest state's value, then the others.
2. A value is worked out once for each window, and what holds for a version of a cell once for each
   disk, so that reading a state costs no more than looking up what decides it.
3. The two ghosts go beyond effects: a unit that shows another write's bytes is decided with its
   choice, and so is a name that came back.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState, Disk, Ghost
from pytest_statepersist.core.effects import Cell, Part
from pytest_statepersist.core.tree import Directory, Symlink
from pytest_statepersist.core.window import Choice, Window

__all__ = ["DIRECTORY", "FILE", "LINK", "Reader"]

FILE, DIRECTORY, LINK = range(3)
"""Kinds of inodes; an inode never changes its kind."""

# Looking a member up in an enumeration costs more than all that is done with it here.
ENTRY, SIZE, DATA, ATTRIBUTES, TIMES = (
    int(part) for part in (Part.ENTRY, Part.SIZE, Part.DATA, Part.ATTRIBUTES, Part.TIMES)
)


class Reader:
    """Reads the fullest state of a choice and narrows the choice to what was read.

    ``others`` are the choices that would have shown something else, disjoint.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.others: list[Choice] = []
        self.ghosts: tuple[Ghost, ...] = ()
        self._whole: Choice
        self._window: Window
        self._present = self._absent = 0
        self._kinds: dict[int, int] = {}
        self._names: dict[int, list[str]] = {}
        self._units: dict[tuple[int, int], list[int]] = {}
        self._entries: dict[Cell, list[int | None]] = {}

    def open(self, choice: Choice) -> None:
        """Begin to read a choice; what was read of another is forgotten."""
        self.others = []
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
        found = window.values.get((part, inode, key))
        if found is None:
            cell = Cell(Part(part), inode, key)
            found = window.values[part, inode, key] = self._values(window, cell)
        if len(found) == 1:
            more, less, value = found[0]
            if not (more or less):
                return value
        present, absent = self._present, self._absent
        others: list[Choice] | None = None
        shown: Any = None
        for more, less, value in found:
            if present & less or absent & more:
                continue
            if others is None:
                others, ghosts, returned = self.others, self.ghosts, self._whole.returned
                shown = value
                self._present, self._absent = present | more, absent | less
            else:
                others.append(Choice(window, present | more, absent | less, ghosts, returned))
        return shown

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

    def _values(self, window: Window, cell: Cell) -> list[tuple[int, int, Any]]:
        alternatives = window.alternatives(cell)
        if alternatives is None:
            return [(0, 0, self._value(window, cell, -1))]
        return [
            (present, absent, self._value(window, cell, decider))
            for present, absent, decider in alternatives
            if not present & absent
        ]

    def _value(self, window: Window, cell: Cell, decider: int) -> Any:
        """Return what a cell holds where this is the last effect of the window that changes it."""
        effects = self.disk.effects
        if cell.part is Part.SIZE:
            return self._size(window, cell.inode, decider)
        if cell.part is Part.DATA:
            return _version(window, effects.data_chain(cell.inode, int(cell.key)), decider)
        version = _version(window, effects.chains.get(cell, []), decider)
        if cell.part is Part.ENTRY:
            entries = self._entries.get(cell)
            if entries is None:
                entries = self._entries[cell] = self.disk.entry_versions(cell)
            return entries[version]
        if cell.part is Part.TIMES:
            return self.disk.mtime_at(cell.inode, version)
        return version

    def _size(self, window: Window, inode: int, decider: int) -> tuple[int, int]:
        effects = self.disk.effects
        settings, raises = effects.set_sizes.get(inode, []), effects.raises.get(inode, [])
        version = _version(window, settings, decider)
        since = settings[version - 1] if version else -1
        size = effects.effects[since].size if version else self.disk.base_size(inode)
        at = bisect_left(raises, effects.first_of(window.last + 1))
        while at and raises[at - 1] > since:
            at -= 1
            # A raise that the window does not hold is durable.
            if raises[at] == decider or raises[at] not in window.bit:
                return version, max(size, effects.effects[raises[at]].size)
        return version, size


def _version(window: Window, chain: list[int], decider: int) -> int:
    """Return how many effects of a chain are present where this is the window's last of them."""
    end = window.disk.effects.first_of(window.last + 1)
    at = bisect_left(chain, decider + 1)
    while at < len(chain) and chain[at] < end and chain[at] not in window.bit:
        at += 1
    return at
