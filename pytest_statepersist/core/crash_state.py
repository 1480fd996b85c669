"""One crash state: which effects are on disk, and what each cell of the disk then holds.

Belongs here: reading a state cell by cell, and turning it into a tree. Which states are legal is
in `states`. Rules:

1. A state is its last operation and the effects up to it that are missing; nothing is copied.
2. The effects of a cell that are present are a prefix of its chain: its value is one number.
3. Two ghosts go beyond effects: a freed unit that shows another write's bytes, and a name that a
   log brings back.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.effects import CONTENT, Cell, Effects, Kind, Part
from pytest_statepersist.core.forcing import Forcing, force
from pytest_statepersist.core.tree import (
    BLOCK,
    LARGE,
    ROOT,
    Content,
    Directory,
    File,
    Node,
    PatchedData,
    Symlink,
    Tree,
    digest_of,
    read_content,
    size_of,
)

__all__ = ["CrashState", "Disk", "Ghost", "Returned"]

_CACHED_UNITS = 4096
_FEW = 8
_NONE: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Ghost:
    """A freed data unit holds the bytes of another write (reuse_freed_blocks)."""

    inode: int
    unit: int
    source: int


@dataclass(frozen=True, slots=True)
class Returned:
    """A name is back with the inode that it had when it was synced (names_return)."""

    cell: Cell
    inode: int


@dataclass(frozen=True, slots=True)
class CrashState:
    """All effects up to operation ``last``, less ``missing``. ``points`` are inclusive spans.

    ``points`` lists the crash points at which the state is legal; ``deviations`` counts the
    operations before the last one that miss an effect.
    """

    last: int
    missing: frozenset[int]
    ghosts: tuple[Ghost, ...] = ()
    returned: Returned | None = None
    points: tuple[tuple[int, int], ...] = ()
    deviations: int = 0

    @property
    def identity(self) -> tuple[object, ...]:
        """Return what tells two disks apart: everything but the crash points."""
        return (self.last, self.missing, self.ghosts, self.returned)


class Disk:
    """Reads crash states of one trace under one model."""

    def __init__(self, effects: Effects) -> None:
        self.effects = effects
        self.trace = effects.trace
        self.model = effects.model
        self.unit = effects.model.unit
        self._units: dict[tuple[int, int, int], bytes] = {}
        self._contents: dict[tuple[object, ...], bytes] = {}
        self._sorted_names: dict[int, list[str]] = {}
        self._chains: dict[int, list[list[int]] | None] = {}
        self._nodes: dict[tuple[int, ...], Node] = {}
        self._listed: tuple[CrashState, int, dict[str, int]] | None = None
        """The listing that was asked for last, which is often asked for again."""
        self._wholes: dict[int, Node] = {}
        """Small files with all that was ever done to them, which is how most states have most."""
        self._forcing: Forcing | None = None

    @property
    def forcing(self) -> Forcing:
        """What the syncs force, worked out when it is first asked for."""
        if self._forcing is None:
            self._forcing = force(self.effects)
        return self._forcing

    @cached_property
    def untouched(self) -> frozenset[int]:
        """The small files of the base that no effect changes: in every state they are the same."""
        effects = self.effects
        touched = {each.inode for each in effects.effects}
        touched.update(cell.inode for cell in effects.chains)
        for changes in (effects.set_sizes, effects.raises, effects.units, effects.frees):
            touched.update(changes)
        return frozenset(
            inode
            for inode, node in self.trace.base.nodes.items()
            if isinstance(node, File)
            and isinstance(node.content, bytes)
            and node.xattrs == tuple(sorted(node.xattrs))
            and inode not in touched
        )

    @cached_property
    def directories(self) -> frozenset[int]:
        """The inodes that are directories, whenever they are there."""
        base, created = self.trace.base.nodes, self.effects.created
        found = {inode for inode, node in base.items() if isinstance(node, Directory)}
        found.update(inode for inode, made in created.items() if isinstance(made, op.Mkdir))
        return frozenset(found)

    @cached_property
    def _ends(self) -> list[int]:
        """The first effect behind each operation, from the one before the first on."""
        return [self.effects.first_of(number) for number in range(len(self.trace) + 1)]

    @cached_property
    def _own(self) -> dict[int, tuple[int, frozenset[int]]]:
        """For each inode the last effect on it that is not one of names, and all of them."""
        found: dict[int, list[int]] = {}
        for effect in self.effects.effects:
            if effect.kind is not Kind.ENTRY:
                found.setdefault(effect.inode, []).append(effect.index)
        return {inode: (own[-1], frozenset(own)) for inode, own in found.items()}

    @cached_property
    def _changing(self) -> dict[int, list[tuple[str, list[int], list[int | None]]]]:
        """For each directory the names that change: the chain of each, and what it names when."""
        found: dict[int, list[tuple[str, list[int], list[int | None]]]] = {}
        for cell, chain in self.effects.chains.items():
            if cell.part is Part.ENTRY and chain:
                row = (str(cell.key), chain, self.entry_versions(cell))
                found.setdefault(cell.inode, []).append(row)
        return found

    def version(self, chain: list[int], state: CrashState) -> int:
        """Return how many effects of a chain are present."""
        at = bisect_left(chain, self._ends[state.last + 1])
        missing = state.missing
        while at and chain[at - 1] in missing:
            at -= 1
        return at

    def entry_versions(self, cell: Cell) -> list[int | None]:
        """Return the inode under a name after none, one, two … of the effects that change it."""
        node = self.trace.base.nodes.get(cell.inode)
        found = [node.entries.get(str(cell.key)) if isinstance(node, Directory) else None]
        for index in self.effects.chains.get(cell, ()):
            found.append(dict(self.effects.effects[index].entries)[cell])
        return found

    def entry(self, state: CrashState, directory: int, name: str) -> int | None:
        """Return the inode under a name, ``None`` where the name is absent."""
        cell = Cell(Part.ENTRY, directory, name)
        chain = self.effects.chains.get(cell)
        at = self.version(chain, state) if chain else 0
        found: int | None
        if chain and at:
            found = dict(self.effects.effects[chain[at - 1]].entries)[cell]
        else:
            node = self.trace.base.nodes.get(directory)
            found = node.entries.get(name) if isinstance(node, Directory) else None
        if found is None and state.returned is not None and state.returned.cell == cell:
            return state.returned.inode
        return found

    def sorted_names(self, directory: int) -> list[str]:
        """Return `names` in order; nobody changes the list."""
        found = self._sorted_names.get(directory)
        if found is None:
            found = self._sorted_names[directory] = sorted(self.names(directory))
        return found

    def names(self, directory: int) -> set[str]:
        """Return every name that the directory has in the base or gets in the trace."""
        node = self.trace.base.nodes.get(directory)
        base = set(node.entries) if isinstance(node, Directory) else set()
        return base | self.effects.names.get(directory, set())

    def size(self, state: CrashState, inode: int) -> int:
        """Return the size of a file in bytes."""
        set_sizes = self.effects.set_sizes.get(inode)
        at, since = 0, -1
        if set_sizes:
            at = self.version(set_sizes, state)
            since = set_sizes[at - 1] if at else -1
        size = self.effects.effects[since].size if at else self.base_size(inode)
        raises = self.effects.raises.get(inode)
        if not raises:
            return size
        place = bisect_left(raises, self.effects.first_of(state.last + 1))
        while place and raises[place - 1] > since:
            place -= 1
            if raises[place] not in state.missing:
                return max(size, self.effects.effects[raises[place]].size)
        return size

    def base_size(self, inode: int) -> int:
        """Return the size that a file had before the first operation; 0 where it was not there."""
        node = self.trace.base.nodes.get(inode)
        return size_of(node.content) if isinstance(node, File) else 0

    def units_below(self, inode: int, size: int) -> list[int]:
        """Return, sorted, the data units that decide the content of a file of a size."""
        numbers = {n for n in self.effects.units.get(inode, ()) if n * self.unit < size}
        if self.effects.set_sizes.get(inode) or self.effects.frees.get(inode):
            numbers.update(range(-(-min(size, self.base_size(inode)) // self.unit)))
        return sorted(numbers)

    def unit_bytes(self, state: CrashState, inode: int, number: int) -> bytes:
        """Return the whole bytes of one data unit, as if the file reached beyond it."""
        for ghost in state.ghosts:
            if ghost.inode == inode and ghost.unit == number:
                return self.ghost_bytes(ghost.source)
        chain = self.effects.data_chain(inode, number)
        return self._unit(inode, number, chain, self.version(chain, state))

    def ghost_bytes(self, source: int) -> bytes:
        """Return the unit that a data effect leaves in order: what a reused block may show."""
        effect = self.effects.effects[source]
        chain = self.effects.data_chain(effect.inode, effect.unit)
        return self._unit(effect.inode, effect.unit, chain, bisect_left(chain, source) + 1)

    def _unit(self, inode: int, number: int, chain: list[int], version: int) -> bytes:
        key = (inode, number, version)
        found = self._units.get(key)
        if found is not None:
            return found
        begin = version
        buffer: bytearray | None = None
        while begin and buffer is None:
            known = self._units.get((inode, number, begin))
            if known is not None:
                buffer = bytearray(known)
                break
            effect = self.effects.effects[chain[begin - 1]]
            if effect.kind is Kind.SET_SIZE:
                buffer = bytearray(self.unit)
                break
            begin -= 1
        if buffer is None:
            buffer = bytearray(self.unit)
            node = self.trace.base.nodes.get(inode)
            if isinstance(node, File):
                data = read_content(node.content, number * self.unit, self.unit)
                buffer[: len(data)] = data
        for index in chain[begin:version]:
            effect = self.effects.effects[index]
            if effect.kind in CONTENT:
                buffer[effect.start : effect.start + len(effect.data)] = effect.data
        if len(self._units) >= _CACHED_UNITS:
            self._units.clear()
        self._units[key] = made = bytes(buffer)
        return made

    def content(self, state: CrashState, inode: int) -> Content:
        """Return the content of a file; a large one from the base is not read."""
        node = self.trace.base.nodes.get(inode)
        if isinstance(node, File) and inode in self.untouched and not state.ghosts:
            return node.content
        size = self.size(state, inode)
        base: Content = node.content if isinstance(node, File) else b""
        kept = size_of(base)
        set_sizes = self.effects.set_sizes.get(inode, [])
        for index in set_sizes[: self.version(set_sizes, state)]:
            kept = min(kept, -(-self.effects.effects[index].size // BLOCK) * BLOCK)
        kept = min(kept, size)
        units = sorted(n for n in self.effects.units.get(inode, ()) if n * self.unit < size)
        key: tuple[object, ...] | None = None
        if not state.ghosts and size <= LARGE and len(units) <= _FEW:
            versions = [self.version(self.effects.data_chain(inode, n), state) for n in units]
            key = (inode, size, kept, *versions)
            known = self._contents.get(key)
            if known is not None:
                return known
        if not isinstance(base, bytes) and (size > LARGE or kept > LARGE):
            if not units and kept == size == base.size:
                return base
            patches = {
                n * self.unit: self.unit_bytes(state, inode, n)[: size - n * self.unit]
                for n in units
            }
            return PatchedData(base, kept, size, patches)
        buffer = bytearray(read_content(base, 0, kept) if kept else b"")
        buffer.extend(bytes(size - len(buffer)))
        for number in units:
            at = number * self.unit
            buffer[at : at + self.unit] = self.unit_bytes(state, inode, number)
        del buffer[size:]
        for ghost in state.ghosts:
            if ghost.inode == inode and ghost.unit not in units:
                at = ghost.unit * self.unit
                piece = self.ghost_bytes(ghost.source)[: max(0, size - at)]
                buffer[at : at + len(piece)] = piece
        content = bytes(buffer)
        if key is not None and size <= BLOCK:
            if len(self._contents) >= _CACHED_UNITS:
                self._contents.clear()
            self._contents[key] = content
        return content

    def attributes(self, state: CrashState, inode: int) -> tuple[int, dict[str, bytes]]:
        """Return mode and extended attributes of an inode."""
        node = self.trace.base.nodes.get(inode)
        if isinstance(node, File) and inode in self.untouched:
            return node.mode, dict(node.xattrs)
        made = self.effects.created.get(inode)
        mode = made.mode if isinstance(made, op.Create | op.Mkdir) else 0o777
        xattrs: dict[str, bytes] = {}
        if isinstance(node, File | Directory):
            mode = node.mode
        if isinstance(node, File):
            xattrs = dict(node.xattrs)
        chain = self.effects.chains.get(Cell(Part.ATTRIBUTES, inode), [])
        for index in chain[: self.version(chain, state)]:
            change = self.effects.effects[index].change
            assert change is not None
            mode = mode if change.mode is None else change.mode
            for name, value in change.xattrs:
                if value is None:
                    xattrs.pop(name, None)
                else:
                    xattrs[name] = value
        return mode, xattrs

    def mtime(self, state: CrashState, inode: int) -> int | None:
        """Return the modification time in nanoseconds, ``None`` where the trace knows none."""
        node = self.trace.base.nodes.get(inode)
        if isinstance(node, File) and inode in self.untouched:
            return node.mtime
        chain = self.effects.chains.get(Cell(Part.TIMES, inode), [])
        return self.mtime_at(inode, self.version(chain, state))

    def mtime_at(self, inode: int, version: int) -> int | None:
        """Return the modification time after so many of the effects that change it."""
        chain = self.effects.chains.get(Cell(Part.TIMES, inode), [])
        for index in reversed(chain[:version]):
            mtime = self.effects.effects[index].mtime
            if mtime is not None:
                return mtime
        node = self.trace.base.nodes.get(inode)
        if isinstance(node, File | Directory):
            return node.mtime
        made = self.effects.created.get(inode)
        return made.time if made is not None else None

    def node(self, state: CrashState, inode: int, entries: Mapping[str, int] | None = None) -> Node:
        """Return an inode as a node; without ``entries`` a directory's are read from the state."""
        base = self.trace.base.nodes.get(inode)
        if base is not None and inode in self.untouched and not state.ghosts:
            return base
        made = self.effects.created.get(inode)
        if isinstance(base, Symlink):
            return base
        if isinstance(made, op.Symlink):
            return Symlink(made.target)
        mode, xattrs = self.attributes(state, inode)
        mtime = self.mtime(state, inode)
        if isinstance(base, Directory) or isinstance(made, op.Mkdir):
            return Directory(
                self.listing(state, inode) if entries is None else entries, mode, mtime
            )
        return File(self.content(state, inode), mode, mtime, tuple(sorted(xattrs.items())))

    def file(self, state: CrashState, inode: int) -> Node:
        """Return what `node` returns for anything but a directory; of small files it is kept."""
        if inode in self.untouched and not state.ghosts:
            return self.trace.base.nodes[inode]
        last, own = self._own.get(inode, (-1, _NONE))
        whole = last < self._ends[state.last + 1] and own.isdisjoint(state.missing)
        if whole and not state.ghosts and inode in self._wholes:
            return self._wholes[inode]
        chains = self._chains.get(inode)
        if chains is None and inode not in self._chains:
            chains = self._chains[inode] = self._chains_of(inode)
        if chains is None or state.ghosts:
            return self.node(state, inode)
        versions = [self.version(chain, state) for chain in chains]
        key = (inode, self.size(state, inode), *versions)
        found = self._nodes.get(key)
        if found is None:
            if len(self._nodes) >= _CACHED_UNITS:
                self._nodes.clear()
            found = self._nodes[key] = self.node(state, inode)
        if whole:
            self._wholes[inode] = found
        return found

    def _chains_of(self, inode: int) -> list[list[int]] | None:
        """Return the chains that with the size decide a small file; ``None`` for a larger one."""
        effects = self.effects
        units = effects.units.get(inode, ())
        sizes = [effects.effects[index].size for index in effects.raises.get(inode, ())]
        sizes += [effects.effects[index].size for index in effects.set_sizes.get(inode, ())]
        if len(units) > _FEW or max(sizes, default=0) > BLOCK or self.base_size(inode) > BLOCK:
            return None
        chains = [effects.chains.get(Cell(part, inode)) for part in (Part.ATTRIBUTES, Part.TIMES)]
        chains.append(effects.set_sizes.get(inode))
        chains += [effects.data_chain(inode, number) for number in sorted(units)]
        return [chain for chain in chains if chain]

    def shows(self, state: CrashState) -> tuple[object, ...]:
        """Return what tells disks apart for any reader: as `Tree.key`, and which file is newer.

        It is equal for equal ones of other traces too; no tree is made for it.
        """
        rows: list[object] = []
        times: list[int] = []
        links: dict[int, int] = {}
        stack = [("", ROOT)]
        while stack:
            prefix, directory = stack.pop()
            for name, inode in sorted(self.listing(state, directory).items()):
                path, link = f"{prefix}{name}", links.setdefault(inode, len(links))
                if self.is_directory(inode):
                    rows.append((path, link, None, self.attributes(state, inode)[0]))
                    stack.append((f"{path}/", inode))
                    continue
                node = self.file(state, inode)
                if isinstance(node, File):
                    data = node.content
                    value = data if isinstance(data, bytes) else digest_of(data)
                    rows.append((path, link, value, node.mode, node.xattrs))
                    times.append(node.mtime or 0)
                elif isinstance(node, Symlink):
                    rows.append((path, link, node.target))
        ranks = {time: rank for rank, time in enumerate(sorted(set(times)))}
        return (tuple(rows), tuple([ranks[time] for time in times]))

    def is_directory(self, inode: int) -> bool:
        """Say whether an inode is a directory."""
        return inode in self.directories

    def listing(self, state: CrashState, directory: int) -> dict[str, int]:
        """Return the entries of a directory."""
        latest = self._listed
        if latest is not None and latest[0] is state and latest[1] == directory:
            return latest[2].copy()
        node = self.trace.base.nodes.get(directory)
        found = dict(node.entries) if isinstance(node, Directory) else {}
        end, missing = self._ends[state.last + 1], state.missing
        for name, chain, inodes in self._changing.get(directory, ()):
            at = len(chain) if chain[-1] < end else bisect_left(chain, end)  # as `version`
            while at and chain[at - 1] in missing:
                at -= 1
            inode = inodes[at]
            if inode is not None:
                found[name] = inode
            else:
                found.pop(name, None)
        back = state.returned
        if back is not None and back.cell.inode == directory:
            found.setdefault(str(back.cell.key), back.inode)
        self._listed = state, directory, found.copy()
        return found

    def tree(self, state: CrashState) -> Tree:
        """Return the whole disk as a tree."""
        nodes: dict[int, Node] = {}
        stack = [ROOT]
        while stack:
            inode = stack.pop()
            if inode in nodes:
                continue
            node = self.node(state, inode)
            nodes[inode] = node
            if isinstance(node, Directory):
                stack.extend(node.entries.values())
        return Tree(nodes)

    def in_order(self, last: int) -> CrashState:
        """Return the state in which every effect up to an operation is present."""
        return CrashState(last, frozenset())
