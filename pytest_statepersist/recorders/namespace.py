"""The model of the watched names and inodes while a recording goes on.

Belongs here: what is where, as far as the recorded calls say, and finding a path in it. Rules:

1. Nothing here asks the real file system; real identities are known only if a recorder gives them.
2. A real inode is forgotten when it has no name and is not open: the kernel gives its number away.
3. Everything outside the directory is one flat directory, `OUTSIDE`, whose names are absolute
   paths.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from pytest_statepersist.core.operations import OUTSIDE, ROOT
from pytest_statepersist.core.tree import Directory, File, Tree, size_of

__all__ = ["Identity", "Inode", "Namespace", "Place"]

Identity: TypeAlias = tuple[int, int]
"""Device and inode number of a real file."""
_LINKS_FOLLOWED = 40


@dataclass(slots=True, eq=False)
class Inode:
    """What the model knows of one inode; ``entries`` is ``None`` for all but directories."""

    number: int
    path: str
    entries: dict[str, int] | None = None
    target: str | None = None
    size: int = 0
    links: int = 1
    opens: int = 0
    parent: int = OUTSIDE
    inside: bool = True
    identity: Identity | None = None
    changed: int | None = None
    """Wall time of the last operation on it, nanoseconds; ``None`` where none was recorded."""
    kept: int = field(default=0, repr=False)
    was_opened: bool = False
    """Whether a recorder ever saw it being opened for writing."""
    lost: bool = False
    """Outside, and too large to keep: nothing of it is recorded until it is adopted."""


class Place(NamedTuple):
    """A name in a directory and what the model has there; ``parent`` OUTSIDE for other places."""

    parent: int
    name: str
    inode: int | None


class Namespace:
    """Inodes by number, their names, and the real files that they are."""

    def __init__(self, directory: str, base: Tree, identities: Mapping[Identity, int]) -> None:
        self.directory = os.path.normpath(directory)
        self._outside = Inode(OUTSIDE, "", {}, inside=False)
        self.inodes: dict[int, Inode] = {OUTSIDE: self._outside, ROOT: Inode(ROOT, "", {})}
        self.identities: dict[Identity, int] = {}
        """By real file; `find` leaves out those of which nothing is recorded."""
        self._load(base)
        for identity, number in identities.items():
            self.bind(number, identity)

    def _load(self, base: Tree) -> None:
        for number, node in base.nodes.items():
            inode = self.inodes.setdefault(number, Inode(number, "", links=0))
            if isinstance(node, Directory):
                inode.entries = dict(node.entries)
            elif isinstance(node, File):
                inode.size = size_of(node.content)
            else:
                inode.target = node.target
        for path, number, node in base.walk():
            inode = self.inodes[number]
            inode.path = inode.path or path
            inode.links = 1 if isinstance(node, Directory) else inode.links + 1
        for number, node in base.nodes.items():
            if isinstance(node, Directory):
                for child in node.entries.values():
                    self.inodes[child].parent = number

    def __getitem__(self, number: int) -> Inode:
        """Return the model's inode; raises `KeyError` for an unknown number."""
        return self.inodes[number]

    def entry(self, parent: int, name: str) -> int | None:
        """Return the inode number of a name; for OUTSIDE the name is an absolute path."""
        entries = self.inodes[parent].entries
        return None if entries is None else entries.get(name)

    def find(self, identity: Identity) -> int | None:
        """Return the inode number of a real file, ``None`` if it is not known."""
        number = self.identities.get(identity)
        return None if number is None or self.inodes[number].lost else number

    def bind(self, number: int, identity: Identity) -> None:
        """Say which real file an inode is; an older inode with that identity is forgotten."""
        self.inodes[number].identity = identity
        self.identities[identity] = number

    def opened(self, number: int) -> None:
        """Count one more open description: the kernel keeps the inode while one is open."""
        inode = self.inodes[number]
        inode.opens += 1
        inode.was_opened = True

    def inside(self) -> Iterator[Inode]:
        """Yield the inodes that are, or were, inside the directory."""
        return (inode for number, inode in self.inodes.items() if inode.inside and number >= 0)

    def locate(self, path: str, *, start: int | None = None, follow: bool = True) -> Place:
        """Find a path by the model alone, symbolic links inside the directory included.

        ``path`` is absolute, or relative to directory inode ``start``. With ``follow`` a link in
        the last place is followed. Links outside the directory must have been resolved before.
        """
        return self._locate(path, start, follow, _LINKS_FOLLOWED)

    def _locate(self, path: str, start: int | None, follow: bool, budget: int) -> Place:
        here: int | str = "/" if start is None or path.startswith("/") else start
        here = self._enter(here) if isinstance(here, str) else here
        parts = [part for part in path.split("/") if part not in ("", ".")]
        place = self._self_place(here)
        for index, part in enumerate(parts):
            if part == "..":
                here = self._up(here)
                place = self._self_place(here)
                continue
            place = self._step(here, part)
            target = None if place.inode is None else self.inodes[place.inode].target
            last = index == len(parts) - 1
            if target is not None and (follow or not last) and budget > 0:
                place = self._locate_from(here, target, budget - 1)
            if not last:
                here = self._descend(place)
        return place

    def _locate_from(self, here: int | str, target: str, budget: int) -> Place:
        if isinstance(here, int):
            return self._locate(target, here, True, budget)
        return self._locate(os.path.join(here, target), None, True, budget)

    def _self_place(self, here: int | str) -> Place:
        if isinstance(here, str):
            return Place(OUTSIDE, here, self.entry(OUTSIDE, here))
        inode = self.inodes[here]
        if here == ROOT or inode.parent == OUTSIDE:
            return Place(OUTSIDE, inode.path if here != ROOT else self.directory, here)
        return Place(inode.parent, os.path.basename(inode.path), here)

    def _enter(self, path: str) -> int | str:
        """Turn an absolute path into an inode where it is one that the model knows."""
        if path == self.directory:
            return ROOT
        known = self.entry(OUTSIDE, path)
        return path if known is None or self.inodes[known].entries is None else known

    def _up(self, here: int | str) -> int | str:
        if isinstance(here, str):
            return self._enter(os.path.dirname(here))
        if here == ROOT:
            return os.path.dirname(self.directory)
        parent = self.inodes[here].parent
        return self._enter(os.path.dirname(self.inodes[here].path)) if parent < 0 else parent

    def _step(self, here: int | str, part: str) -> Place:
        if isinstance(here, int):
            return Place(here, part, self.entry(here, part))
        path = os.path.join(here, part)
        if path == self.directory:
            return Place(OUTSIDE, path, ROOT)
        return Place(OUTSIDE, path, self.entry(OUTSIDE, path))

    def _descend(self, place: Place) -> int | str:
        if place.inode is not None:
            return place.inode
        if place.parent == OUTSIDE:
            return place.name
        # A missing directory: no name below it can be known, and the real call cannot succeed.
        return os.path.join(self.directory, self.inodes[place.parent].path, place.name)

    def _path(self, parent: int, name: str) -> str:
        if parent == OUTSIDE:
            return name
        above = self.inodes[parent].path
        return f"{above}/{name}" if above else name

    def _enter_name(self, parent: int, name: str, inode: Inode) -> None:
        above = self.inodes[parent]
        assert above.entries is not None
        above.entries[name] = inode.number
        inode.parent = parent
        inode.path = self._path(parent, name)
        if parent != OUTSIDE and above.inside and not inode.inside:
            self._bring_in(inode)
        if inode.entries:
            for child, number in inode.entries.items():
                self._enter_name(inode.number, child, self.inodes[number])

    def _bring_in(self, inode: Inode) -> None:
        inode.inside = True
        for number in (inode.entries or {}).values():
            self._bring_in(self.inodes[number])

    def _drop_name(self, parent: int, name: str, changed: int | None) -> None:
        entries = self.inodes[parent].entries
        assert entries is not None
        inode = self.inodes[entries.pop(name)]
        inode.links -= 1
        inode.changed = changed
        self.let_go(inode)

    def _exchange(
        self, number: int, parent: int, name: str, other: int, new_parent: int, new_name: str
    ) -> None:
        for where, what, who in ((parent, name, other), (new_parent, new_name, number)):
            entries = self.inodes[where].entries
            assert entries is not None
            del entries[what]
            self._enter_name(where, what, self.inodes[who])

    def let_go(self, inode: Inode) -> None:
        """Forget a real inode that the kernel frees: it will give the number to another file."""
        if inode.links <= 0 and inode.opens <= 0 and inode.identity is not None:
            if self.identities.get(inode.identity) == inode.number:
                del self.identities[inode.identity]
            inode.identity = None
