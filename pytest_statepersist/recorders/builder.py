"""From system calls to a trace: the model of the watched names that every recorder feeds.

Belongs here: what a sequence of successful calls means for names and inodes, in memory. Rules:

1. Nothing here asks the real file system; a recorder that works after the fact uses it as well.
2. `TraceBuilder.lock` is held by the recorder across the real call and its record, so that the
   order of the trace is the order in which things happened.
3. What cannot be true (a rename of a name that does not exist) means that something was not seen:
   it is kept as a doubt, a `BlindSpot` for the recorder to raise when it stops, and not recorded.
4. Everything outside the directory is one flat directory, `OUTSIDE`, whose names are absolute
   paths. What happens there is kept and given out only if it ends up inside.
"""

from __future__ import annotations

import os.path
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from pytest_statepersist.core.operations import (
    OUTSIDE,
    ROOT,
    Acknowledgement,
    Allocate,
    Close,
    Create,
    Durability,
    Fsync,
    Link,
    Mkdir,
    Operation,
    Rename,
    Rmdir,
    SetAttributes,
    Site,
    Symlink,
    SyncAll,
    SyncRange,
    Trace,
    Truncate,
    Unlink,
    Write,
    ZeroRange,
)
from pytest_statepersist.core.tree import Directory, File, Tree, read_content, size_of
from pytest_statepersist.core.tree import Symlink as SymlinkNode
from pytest_statepersist.errors import BlindSpot

__all__ = ["NOWHERE", "Identity", "Inode", "Moment", "Place", "TraceBuilder"]

Identity: TypeAlias = tuple[int, int]
"""Device and inode number of a real file."""
Moment: TypeAlias = tuple[Site | None, int | None, int]
"""Call site, wall time in nanoseconds, task: what every operation carries."""
NOWHERE: Moment = (None, None, 0)

_Entry: TypeAlias = tuple[type[Operation], tuple[Any, ...], str, Moment]
_OUTSIDE_LIMIT = 64 << 20
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


class TraceBuilder:
    """Collects operations on a model of the watched directory and gives out the trace.

    ``identities`` are the real files of the base, for recorders that know them. Methods are named
    after what happened; each takes the `Moment` at which it did.
    """

    def __init__(
        self,
        directory: str,
        base: Tree,
        *,
        recorder: str = "python",
        identities: Mapping[Identity, int] | None = None,
    ) -> None:
        self.directory = os.path.normpath(directory)
        self.base = base
        self.recorder = recorder
        self.lock = threading.RLock()
        self.doubts: list[BlindSpot] = []
        self.log: list[_Entry] = []
        """Operations as (class, fields, path, moment); only the quickest path appends by itself."""
        self._acknowledged: list[tuple[int, str]] = []
        self._outside = Inode(OUTSIDE, "", {}, inside=False)
        self._inodes: dict[int, Inode] = {OUTSIDE: self._outside, ROOT: Inode(ROOT, "", {})}
        self._identities: dict[Identity, int] = {}
        self._next = max(base.nodes) + 1
        self._load(base)
        for identity, number in (identities or {}).items():
            self.bind(number, identity)

    def _load(self, base: Tree) -> None:
        for number, node in base.nodes.items():
            inode = self._inodes.setdefault(number, Inode(number, "", links=0))
            if isinstance(node, Directory):
                inode.entries = dict(node.entries)
            elif isinstance(node, File):
                inode.size = size_of(node.content)
            else:
                inode.target = node.target
        for path, number, node in base.walk():
            inode = self._inodes[number]
            inode.path = inode.path or path
            inode.links = 1 if isinstance(node, Directory) else inode.links + 1
        for number, node in base.nodes.items():
            if isinstance(node, Directory):
                for child in node.entries.values():
                    self._inodes[child].parent = number

    # -- what the model holds ------------------------------------------------------------------

    def __len__(self) -> int:
        """Return how many operations were kept so far, those outside included."""
        return len(self.log)

    def __getitem__(self, number: int) -> Inode:
        """Return the model's inode; raises `KeyError` for an unknown number."""
        return self._inodes[number]

    def entry(self, parent: int, name: str) -> int | None:
        """Return the inode number of a name; for OUTSIDE the name is an absolute path."""
        entries = self._inodes[parent].entries
        return None if entries is None else entries.get(name)

    def find(self, identity: Identity) -> int | None:
        """Return the inode number of a real file, ``None`` if it is not known."""
        number = self._identities.get(identity)
        return None if number is None or self._inodes[number].lost else number

    def bind(self, number: int, identity: Identity) -> None:
        """Say which real file an inode is; an older inode with that identity is forgotten."""
        self._inodes[number].identity = identity
        self._identities[identity] = number

    def opened(self, number: int) -> None:
        """Count one more open description: the kernel keeps the inode while one is open."""
        inode = self._inodes[number]
        inode.opens += 1
        inode.was_opened = True

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
            target = None if place.inode is None else self._inodes[place.inode].target
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
        inode = self._inodes[here]
        if here == ROOT or inode.parent == OUTSIDE:
            return Place(OUTSIDE, inode.path if here != ROOT else self.directory, here)
        return Place(inode.parent, os.path.basename(inode.path), here)

    def _enter(self, path: str) -> int | str:
        """Turn an absolute path into an inode where it is one that the model knows."""
        if path == self.directory:
            return ROOT
        known = self.entry(OUTSIDE, path)
        return path if known is None or self._inodes[known].entries is None else known

    def _up(self, here: int | str) -> int | str:
        if isinstance(here, str):
            return self._enter(os.path.dirname(here))
        if here == ROOT:
            return os.path.dirname(self.directory)
        parent = self._inodes[here].parent
        return self._enter(os.path.dirname(self._inodes[here].path)) if parent < 0 else parent

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
        return os.path.join(self.directory, self._inodes[place.parent].path, place.name)

    # -- what happened -------------------------------------------------------------------------

    def create(
        self,
        parent: int,
        name: str,
        at: Moment,
        *,
        mode: int = 0o644,
        identity: Identity | None = None,
    ) -> int:
        """Record a new regular file and return its inode number.

        ``name`` is an absolute path for OUTSIDE; an empty one stands for a file without a name.
        """
        number = self._new(parent, name, at, identity)
        self._add(Create, (number, parent, name, mode), self._inodes[number].path, at)
        return number

    def mkdir(
        self,
        parent: int,
        name: str,
        at: Moment,
        *,
        mode: int = 0o755,
        identity: Identity | None = None,
    ) -> int:
        """Record a new directory and return its inode number."""
        number = self._new(parent, name, at, identity)
        self._inodes[number].entries = {}
        self._add(Mkdir, (number, parent, name, mode), self._inodes[number].path, at)
        return number

    def symlink(
        self,
        parent: int,
        name: str,
        target: str,
        at: Moment,
        *,
        identity: Identity | None = None,
    ) -> int:
        """Record a new symbolic link and return its inode number."""
        number = self._new(parent, name, at, identity)
        self._inodes[number].target = target
        self._add(Symlink, (number, parent, name, target), self._inodes[number].path, at)
        return number

    def link(self, number: int, parent: int, name: str, at: Moment) -> None:
        """Record one more name for an inode; a link outside is remembered and not recorded."""
        inode = self._inodes[number]
        self._free(parent, name, "linked")
        self._enter_name(parent, name, inode)
        inode.links += 1
        inode.changed = at[1]
        if parent != OUTSIDE or inode.inside:
            self._add(Link, (number, parent, name), self._path(parent, name), at)

    def unlink(self, parent: int, name: str, at: Moment) -> None:
        """Record the removal of a file's or symbolic link's name."""
        self._remove(Unlink, parent, name, at)

    def rmdir(self, parent: int, name: str, at: Moment) -> None:
        """Record the removal of an empty directory."""
        self._remove(Rmdir, parent, name, at)

    def rename(
        self,
        parent: int,
        name: str,
        new_parent: int,
        new_name: str,
        at: Moment,
        *,
        exchange: bool = False,
    ) -> None:
        """Record a rename; what the new name had before is taken from the model.

        From OUTSIDE the file must be known there: see `adopt`.
        """
        path = self._path(new_parent, new_name)
        number = self.entry(parent, name)
        if number is None:
            self._doubt(self._path(parent, name), "was renamed although the recording had no such")
            return
        replaced = self.entry(new_parent, new_name)
        if replaced == number:
            return  # two names of one inode: the kernel does nothing
        inode = self._inodes[number]
        inode.changed = at[1]
        if exchange:
            if replaced is None:
                self._doubt(path, "was exchanged although the recording had no such")
                return
            self._exchange(number, parent, name, replaced, new_parent, new_name)
        else:
            if replaced is not None:
                self._drop_name(new_parent, new_name, at)
            entries = self._inodes[parent].entries
            assert entries is not None
            del entries[name]
            self._enter_name(new_parent, new_name, inode)
        if parent == OUTSIDE == new_parent and not inode.inside:
            return
        shown = replaced if new_parent != OUTSIDE or exchange else None
        fields = (number, parent, name, new_parent, new_name, shown, exchange)
        self._add(Rename, fields, path, at)

    def write(
        self,
        number: int,
        offset: int,
        data: bytes,
        at: Moment,
        durability: Durability = Durability.NONE,
    ) -> None:
        """Record bytes that reached the file at an offset; no bytes, no operation."""
        inode = self._inodes[number]
        end = offset + len(data)
        if end > inode.size:
            inode.size = end
        inode.changed = at[1]
        if not data or inode.lost:
            return
        if not inode.inside:
            inode.kept += len(data)
            if inode.kept > _OUTSIDE_LIMIT:
                self.forget(number)
                return
        self.log.append((Write, (number, offset, data, durability), inode.path, at))

    def truncate(self, number: int, size: int, at: Moment) -> None:
        """Record that the size was set."""
        inode = self._inodes[number]
        inode.size = size
        self._simple(Truncate, number, (number, size), at)

    def allocate(self, number: int, at: Moment, *, size: int | None = None) -> None:
        """Record reserved space; ``size`` where the file grew."""
        if size is not None:
            self._inodes[number].size = size
        self._simple(Allocate, number, (number, size), at)

    def zero_range(self, number: int, offset: int, length: int, at: Moment) -> None:
        """Record a range that became zeros."""
        self._simple(ZeroRange, number, (number, offset, length), at)

    def set_attributes(
        self,
        number: int,
        at: Moment,
        *,
        mode: int | None = None,
        mtime: int | None = None,
        owner: tuple[int, int] | None = None,
        xattrs: tuple[tuple[str, bytes | None], ...] = (),
    ) -> None:
        """Record a change of mode, modification time, owner or extended attributes."""
        self._simple(SetAttributes, number, (number, mode, mtime, owner, xattrs), at)

    def fsync(
        self, number: int, at: Moment, *, data_only: bool = False, failed: bool = False
    ) -> None:
        """Record a sync of a file or directory; one that failed too, since it forces nothing."""
        inode = self._inodes[number]
        self._add(Fsync, (number, data_only, failed), inode.path, at)

    def sync_range(self, number: int, offset: int, length: int, at: Moment) -> None:
        """Record a sync of a range (msync)."""
        inode = self._inodes[number]
        self._add(SyncRange, (number, offset, length), inode.path, at)

    def sync_all(self, at: Moment) -> None:
        """Record sync or syncfs."""
        self.log.append((SyncAll, (), "", at))

    def close(self, number: int, at: Moment, *, written: bool) -> None:
        """Record the end of an open description; only one that was ``written`` to shows.

        Every `opened` needs one: an inode without names is forgotten when the last one closes.
        """
        inode = self._inodes[number]
        inode.opens -= 1
        if written:
            self._add(Close, (number,), inode.path, at)
        self._release(inode)

    def adopt(
        self,
        path: str,
        content: bytes,
        at: Moment,
        *,
        mode: int = 0o644,
        identity: Identity | None = None,
    ) -> int:
        """Make a file outside known that the recording did not see being made.

        It counts as created and written now, and as synced only by what follows.
        """
        number = None if identity is None else self._identities.get(identity)
        if number is None or not self._inodes[number].lost:
            number = self.create(OUTSIDE, path, at, mode=mode, identity=identity)
        else:
            inode = self._inodes[number]
            inode.lost, inode.size, inode.links, inode.kept = False, 0, 1, 0
            self._enter_name(OUTSIDE, path, inode)
            self._add(Create, (number, OUTSIDE, path, mode), path, at)
        if content:
            self._inodes[number].size = len(content)
            self._add(Write, (number, 0, content, Durability.NONE), path, at)
        return number

    def adopt_tree(
        self,
        path: str,
        tree: Tree,
        at: Moment,
        *,
        identities: Mapping[Identity, int] | None = None,
    ) -> int:
        """Make a directory outside known with all that is in it; returns its inode number.

        ``identities`` maps real files to the tree's numbers. Files that were recorded outside
        before keep what was recorded of them, their syncs included.
        """
        real = {number: identity for identity, number in (identities or {}).items()}
        root = tree.nodes[ROOT]
        assert isinstance(root, Directory)
        top = self.mkdir(OUTSIDE, path, at, mode=root.mode, identity=real.get(ROOT))
        numbers = {ROOT: top}
        for below, old, node in tree.walk():
            head, _, name = below.rpartition("/")
            above = tree.resolve(head)
            assert above is not None
            parent, identity = numbers[above], real.get(old)
            if old in numbers:
                self.link(numbers[old], parent, name, at)
                continue
            known = None if identity is None else self.find(identity)
            full = os.path.join(path, below)
            if known is not None and self.entry(parent, name) == known:
                numbers[old] = known  # came along with a directory that was known
            elif known is not None and self.entry(OUTSIDE, full) == known:
                self.rename(OUTSIDE, full, parent, name, at)
                numbers[old] = known
            elif isinstance(node, Directory):
                numbers[old] = self.mkdir(parent, name, at, mode=node.mode, identity=identity)
            elif isinstance(node, SymlinkNode):
                numbers[old] = self.symlink(parent, name, node.target, at, identity=identity)
            else:
                numbers[old] = self.create(parent, name, at, mode=node.mode, identity=identity)
                self.write(numbers[old], 0, read_content(node.content), at)
        return top

    def forget(self, number: int) -> None:
        """Drop what was recorded of a file outside, as if it had never been seen."""
        inode = self._inodes[number]
        if inode.inside:
            return
        inode.lost = True
        marks = {at for at, _ in self._acknowledged}
        kept: list[_Entry] = []
        moved = {0: 0}
        for index, entry in enumerate(self.log):
            if entry[1][:1] != (number,):
                kept.append(entry)
            if index + 1 in marks:
                moved[index + 1] = len(kept)
        self.log[:] = kept
        self._acknowledged = [(moved[at], text) for at, text in self._acknowledged]
        names = self._outside.entries
        assert names is not None
        for name in [name for name, known in names.items() if known == number]:
            del names[name]

    def acknowledge(self, text: str) -> None:
        """Note that the subject said "saved" here."""
        self._acknowledged.append((len(self.log), text))

    def doubt(self, spot: BlindSpot) -> None:
        """Note something that was not seen; the recorder raises the first when it stops."""
        self.doubts.append(spot)

    # -- the trace -----------------------------------------------------------------------------

    def positions(self) -> list[int]:
        """Return, for each count of operations kept, how many of them are in the trace."""
        wanted = self._concerned(self.log)
        found = [0]
        for cls, fields, _, _ in self.log:
            found.append(found[-1] + (cls is SyncAll or fields[0] in wanted))
        return found

    def finish(self) -> Trace:
        """Return the trace of what concerns the directory, in the order in which it happened."""
        with self.lock:
            log, marks = list(self.log), list(self._acknowledged)
        wanted = self._concerned(log)
        operations: list[Operation] = []
        before = [0]
        for cls, fields, path, (site, time, task) in log:
            if cls is SyncAll or fields[0] in wanted:
                operations.append(cls(*fields, path=path, site=site, time=time, task=task))
            before.append(len(operations))
        return Trace(
            base=self.base,
            operations=tuple(operations),
            acknowledgements=tuple(Acknowledgement(before[at], text) for at, text in marks),
            directory=self.directory,
            recorder=self.recorder,
        )

    def _concerned(self, log: list[_Entry]) -> set[int]:
        """Return the inodes that were ever inside, or in a directory that came inside."""
        wanted = {number for number, inode in self._inodes.items() if inode.inside}
        wanted.discard(OUTSIDE)
        if len(wanted) == len(self._inodes) - 1:
            return wanted
        size = -1
        while size != len(wanted):
            size = len(wanted)
            for cls, fields, _, _ in log:
                if cls in (Create, Mkdir, Symlink, Link) and fields[1] in wanted:
                    wanted.add(fields[0])
                elif cls is Rename:
                    if fields[1] in wanted or fields[3] in wanted:
                        wanted.add(fields[0])
                    if fields[0] in wanted and fields[5] is not None:
                        wanted.add(fields[5])
        return wanted

    def inside(self) -> Iterator[Inode]:
        """Yield the inodes that are, or were, inside the directory."""
        return (inode for number, inode in self._inodes.items() if inode.inside and number >= 0)

    # -- helpers -------------------------------------------------------------------------------

    def _add(self, cls: type[Operation], fields: tuple[Any, ...], path: str, at: Moment) -> None:
        if not self._inodes[fields[0]].lost:
            self.log.append((cls, fields, path, at))

    def _path(self, parent: int, name: str) -> str:
        if parent == OUTSIDE:
            return name
        above = self._inodes[parent].path
        return f"{above}/{name}" if above else name

    def _doubt(self, path: str, what: str) -> None:
        self.doubt(
            BlindSpot(
                f"{path!r} {what} name: something changed it that the {self.recorder} recorder "
                "did not see (native code or another process); record with strace",
                culprit=path,
                recorder="strace",
            )
        )

    def _free(self, parent: int, name: str, verb: str) -> None:
        if parent != OUTSIDE and self.entry(parent, name) is not None:
            self._doubt(self._path(parent, name), f"was {verb} although the recording had that")
            self._drop_name(parent, name, NOWHERE)

    def _new(self, parent: int, name: str, at: Moment, identity: Identity | None) -> int:
        if name:
            self._free(parent, name, "created")
        number = self._next
        self._next += 1
        inode = Inode(number, self._path(parent, name), links=0, inside=False, changed=at[1])
        self._inodes[number] = inode
        if identity is not None:
            self.bind(number, identity)
        if name:
            inode.links = 1
            self._enter_name(parent, name, inode)
        return number

    def _enter_name(self, parent: int, name: str, inode: Inode) -> None:
        above = self._inodes[parent]
        assert above.entries is not None
        above.entries[name] = inode.number
        inode.parent = parent
        inode.path = self._path(parent, name)
        if parent != OUTSIDE and above.inside and not inode.inside:
            self._bring_in(inode)
        if inode.entries:
            for child, number in inode.entries.items():
                self._enter_name(inode.number, child, self._inodes[number])

    def _bring_in(self, inode: Inode) -> None:
        inode.inside = True
        for number in (inode.entries or {}).values():
            self._bring_in(self._inodes[number])

    def _drop_name(self, parent: int, name: str, at: Moment) -> None:
        entries = self._inodes[parent].entries
        assert entries is not None
        inode = self._inodes[entries.pop(name)]
        inode.links -= 1
        inode.changed = at[1]
        self._release(inode)

    def _release(self, inode: Inode) -> None:
        """Forget a real inode that the kernel frees: it will give the number to another file."""
        if inode.links <= 0 and inode.opens <= 0 and inode.identity is not None:
            if self._identities.get(inode.identity) == inode.number:
                del self._identities[inode.identity]
            inode.identity = None

    def _remove(self, cls: type[Operation], parent: int, name: str, at: Moment) -> None:
        number = self.entry(parent, name)
        if number is None:
            if parent != OUTSIDE:
                what = "was removed although the recording had no such"
                self._doubt(self._path(parent, name), what)
            return
        inode = self._inodes[number]
        self._drop_name(parent, name, at)
        if parent != OUTSIDE or inode.inside:
            self._add(cls, (number, parent, name), self._path(parent, name), at)

    def _exchange(
        self, number: int, parent: int, name: str, other: int, new_parent: int, new_name: str
    ) -> None:
        for where, what, who in ((parent, name, other), (new_parent, new_name, number)):
            entries = self._inodes[where].entries
            assert entries is not None
            del entries[what]
            self._enter_name(where, what, self._inodes[who])

    def _simple(
        self, cls: type[Operation], number: int, fields: tuple[Any, ...], at: Moment
    ) -> None:
        inode = self._inodes[number]
        inode.changed = at[1]
        self._add(cls, fields, inode.path, at)
