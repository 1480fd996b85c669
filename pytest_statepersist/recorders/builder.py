"""From system calls to a trace, for every recorder.

Belongs here: which operation a successful call is, and what of it concerns the directory. Rules:

1. Nothing here asks the real file system, so a recorder may work after the fact. The model of
   names and inodes is in `namespace`.
2. `TraceBuilder.turn` is a recorder's across the real call and its record, so that the order of
   the trace is the order in which things happened.
3. What cannot be true (a rename of a name that does not exist) means that something was not seen:
   it is kept as a doubt, a `BlindSpot` for the recorder to raise when it stops, and not recorded.
4. Everything outside the directory is one flat directory, `OUTSIDE`, whose names are absolute
   paths. What happens there is kept and given out only if it ends up inside.
"""

from __future__ import annotations

import itertools
import os.path
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any, Protocol, TypeAlias

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
from pytest_statepersist.core.tree import Directory, Tree, read_content
from pytest_statepersist.core.tree import Symlink as SymlinkNode
from pytest_statepersist.errors import BlindSpot
from pytest_statepersist.recorders.namespace import Identity, Inode, Namespace, Place
from pytest_statepersist.recorders.turn import Turn

__all__ = ["FIELDS", "NOWHERE", "Clock", "Identity", "Inode", "Moment", "Place", "TraceBuilder"]

Moment: TypeAlias = tuple[Site | None, int | None, int]
"""Call site, wall time in nanoseconds, task: what every operation carries."""
NOWHERE: Moment = (None, None, 0)

_Entry: TypeAlias = tuple[Any, ...]
FIELDS = 5
"""Where in an entry the operation's own fields begin, the first of them an inode."""
_OUTSIDE_LIMIT = 64 << 20
_new = object.__new__


_NAMING = frozenset({Create, Mkdir, Symlink, Link, Unlink, Rmdir, Rename})


class Clock(Protocol):
    """What gives the moments of calls: a recorder lends its own to its companions.

    Who is quick finds a moment by itself in ``sites``, ``tasks`` and ``now``, as `CallSites` has
    them.
    """

    @property
    def sites(self) -> dict[tuple[int, int], tuple[Site, CodeType]]:
        """Call sites by code and instruction."""

    @property
    def tasks(self) -> dict[int, int]:
        """Tasks by thread."""

    @property
    def now(self) -> Callable[[], int]:
        """The time."""

    def drain(self, pending: int = 0, /) -> None:
        """Be called now and then, at least once in some 200 operations.

        ``pending`` calls are made and not yet recorded.
        """

    def moment(self, frame: FrameType | None = None, /) -> Moment:
        """Return the moment of a call from the frame that made it, if that is at hand."""

    def again(self) -> int | None:
        """Return only the time, for one more call of the same line and thread as the last."""


class Writes(list[Any]):
    """What belongs to the writes that `TraceBuilder.log` has only the bytes of, one after another.

    A write is path, site, time, task, inode, offset. One that goes on where the last one ended,
    from the same line into the same file, is its time alone: ``run`` is that file's description,
    ``path`` its path and ``end`` where it ended. So no write is an object of its own, that the
    garbage collector would look at, and memory is touched for little more than its bytes.
    """

    __slots__ = ("end", "path", "run")

    def __init__(self) -> None:
        self.run: object = None
        self.path = ""
        self.end = 0


class TraceBuilder(Namespace):
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
        super().__init__(directory, base, identities or {})
        self.base = base
        self.recorder = recorder
        self.turn = Turn()
        self._doubts: list[tuple[BlindSpot, int | None]] = []
        self.log: list[_Entry | bytes] = []
        """Operations as (class, path, site, time, task, *fields); one tuple each, since every
        object that is kept costs the garbage collector time. Of a write in ``writes`` only the
        bytes are here. Only the quickest paths append by themselves."""
        self.writes = Writes()
        self._acknowledged: list[tuple[int, str]] = []
        self._next = max(base.nodes) + 1
        here = self[ROOT].entries
        assert here is not None
        self.names = here
        """What is directly in the directory."""

    @property
    def lock(self) -> Any:
        """What is held across a call and its record, where `Turn` does not go the quick way."""
        return self.turn.lock

    def __len__(self) -> int:
        """Return how many operations were kept so far, those outside included."""
        return len(self.log)

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
        site, time, task = at
        path = self.inodes[number].path
        self.log.append((Create, path, site, time, task, number, parent, name, mode))
        return number

    def create_here(
        self,
        name: str,
        mode: int,
        identity: Identity,
        site: Site | None,
        time: int | None,
        task: int,
    ) -> Inode:
        """Record a new file directly in the directory, opened for writing, under a free name.

        It does as `create` and `opened` do, for what most saves begin with.
        """
        number = self._next
        self._next = number + 1
        made = _new(Inode)  # and each of its fields: `Inode` itself would take twice as long
        made.number, made.path, made.identity, made.changed = number, name, identity, time
        made.entries = made.target = None
        made.size = made.kept = 0
        made.links = made.opens = 1
        made.parent, made.inside, made.was_opened, made.lost = ROOT, True, True, False
        self.inodes[number] = made
        self.names[name] = number
        self.identities[identity] = number
        self.log.append((Create, name, site, time, task, number, ROOT, name, mode))
        return made

    def rename_here(
        self,
        number: int,
        name: str,
        replaced: int | None,
        new_name: str,
        site: Site | None,
        time: int | None,
        task: int,
    ) -> None:
        """Record a rename of a file, no directory, within the directory itself; see `rename`.

        The names are those of these inodes, which are not the same.
        """
        here, inodes = self.names, self.inodes
        if replaced is not None:
            del here[new_name]
            old = inodes[replaced]
            old.links -= 1
            old.changed = time
            if old.links <= 0 and old.opens <= 0 and old.identity is not None:
                # What `let_go` does.
                if self.identities.get(old.identity) == replaced:
                    del self.identities[old.identity]
                old.identity = None
        del here[name]
        here[new_name] = number
        inode = inodes[number]
        inode.path, inode.changed = new_name, time
        self.log.append(
            (Rename, new_name, site, time, task, number, ROOT, name, ROOT, new_name, replaced,
             False)
        )  # fmt: skip

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
        self.inodes[number].entries = {}
        self._add(Mkdir, (number, parent, name, mode), self.inodes[number].path, at)
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
        self.inodes[number].target = target
        self._add(Symlink, (number, parent, name, target), self.inodes[number].path, at)
        return number

    def link(self, number: int, parent: int, name: str, at: Moment) -> None:
        """Record one more name for an inode; a link outside is remembered and not recorded."""
        inode = self.inodes[number]
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
        inodes = self.inodes
        above, below = inodes[parent], inodes[new_parent]
        entries, new_entries = above.entries, below.entries
        number = None if entries is None else entries.get(name)
        if number is None or entries is None:
            what = "was renamed although the recording had no such"
            self._doubt(self._path(parent, name), what, about=parent)
            return
        assert new_entries is not None  # only a directory can have taken it
        replaced = new_entries.get(new_name)
        if replaced == number:
            return  # two names of one inode: the kernel does nothing
        site, time, task = at
        inode = inodes[number]
        inode.changed = time
        path = self._path(new_parent, new_name)
        if exchange:
            if replaced is None:
                what = "was exchanged although the recording had no such"
                self._doubt(path, what, about=new_parent)
                return
            self._exchange(number, parent, name, replaced, new_parent, new_name)
        else:
            if replaced is not None:
                self._drop_name(new_parent, new_name, time)
            del entries[name]
            if parent == new_parent and inode.inside and inode.entries is None:
                new_entries[new_name] = number
                inode.path = path
            else:
                self._enter_name(new_parent, new_name, inode)
        if inode.lost or (parent == OUTSIDE == new_parent and not inode.inside):
            return
        shown = replaced if new_parent != OUTSIDE or exchange else None
        self.log.append(
            (Rename, path, site, time, task, number, parent, name, new_parent, new_name, shown,
             exchange)
        )  # fmt: skip

    def write(
        self,
        number: int,
        offset: int,
        data: bytes,
        at: Moment,
        durability: Durability = Durability.NONE,
        *,
        unordered: bool = False,
    ) -> None:
        """Record bytes that reached the file at an offset; no bytes, no operation."""
        inode = self.inodes[number]
        site, time, task = at
        end = offset + len(data)
        if end > inode.size:
            inode.size = end
        inode.changed = time
        if not data or inode.lost:
            return
        if not inode.inside:
            inode.kept += len(data)
            if inode.kept > _OUTSIDE_LIMIT:
                self.forget(number)
                return
        entry = (Write, inode.path, site, time, task, number, offset, data, durability)
        self.log.append((*entry, True) if unordered else entry)

    def truncate(self, number: int, size: int, at: Moment) -> None:
        """Record that the size was set."""
        inode = self.inodes[number]
        inode.size = size
        self._simple(Truncate, number, (number, size), at)

    def allocate(self, number: int, at: Moment, *, size: int | None = None) -> None:
        """Record reserved space; ``size`` where the file grew."""
        if size is not None:
            self.inodes[number].size = size
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
        inode = self.inodes[number]
        self._add(Fsync, (number, data_only, failed), inode.path, at)

    def sync_range(self, number: int, offset: int, length: int, at: Moment) -> None:
        """Record a sync of a range (msync)."""
        inode = self.inodes[number]
        self._add(SyncRange, (number, offset, length), inode.path, at)

    def sync_all(self, at: Moment) -> None:
        """Record sync or syncfs."""
        self.log.append((SyncAll, "", *at))

    def close(self, number: int, at: Moment, *, written: bool) -> None:
        """Record the end of an open description; only one that was ``written`` to shows.

        Every `opened` needs one: an inode without names is forgotten when the last one closes.
        """
        inode = self.inodes[number]
        inode.opens -= 1
        if written and not inode.lost:
            site, time, task = at
            self.log.append((Close, inode.path, site, time, task, number))
        if inode.links <= 0:
            self.let_go(inode)

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
        number = None if identity is None else self.identities.get(identity)
        if number is None or not self.inodes[number].lost:
            number = self.create(OUTSIDE, path, at, mode=mode, identity=identity)
        else:
            inode = self.inodes[number]
            inode.lost, inode.size, inode.links, inode.kept = False, 0, 1, 0
            self._enter_name(OUTSIDE, path, inode)
            self._add(Create, (number, OUTSIDE, path, mode), path, at)
        if content:
            self.inodes[number].size = len(content)
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
        inode = self.inodes[number]
        if inode.inside:
            return
        inode.lost = True
        marks = {at for at, _ in self._acknowledged}
        kept: list[_Entry] = []
        moved = {0: 0}
        for index, entry in enumerate(self.entries()):
            if entry[FIELDS : FIELDS + 1] != (number,):
                kept.append(entry)
            if index + 1 in marks:
                moved[index + 1] = len(kept)
        self.log[:] = kept
        self.writes.clear()
        self.writes.run = None
        self._acknowledged = [(moved[at], text) for at, text in self._acknowledged]
        names = self._outside.entries
        assert names is not None
        for name in [name for name, known in names.items() if known == number]:
            del names[name]

    def acknowledge(self, text: str) -> None:
        """Note that the subject said "saved" here."""
        self._acknowledged.append((len(self.log), text))

    def doubt(self, spot: BlindSpot, *, about: int | None = None) -> None:
        """Note something that was not seen; the recorder raises the first when it stops.

        ``about`` is the directory in which it happened: it does not matter in one that was made
        outside during the recording and never came inside.
        """
        self._doubts.append((spot, about))

    @property
    def doubts(self) -> list[BlindSpot]:
        """What was not seen and concerns the directory, in order."""
        return [
            spot
            for spot, about in self._doubts
            if about is None or about == OUTSIDE or self.inodes[about].inside
        ]

    # -- the trace -----------------------------------------------------------------------------

    def entries(self, start: int = 0) -> list[_Entry]:
        """Return what `log` has from an index on, its writes put together."""
        found: list[_Entry] = []
        rest = iter(self.writes)
        path, site, task, number, offset, length = "", None, 0, 0, 0, 0
        for entry in self.log:
            if isinstance(entry, bytes):
                time = next(rest)
                if isinstance(time, int):
                    offset += length
                else:
                    path, site, time, task, number, offset = time, *itertools.islice(rest, 5)
                length = len(entry)
                entry = (Write, path, site, time, task, number, offset, entry, Durability.NONE)
            found.append(entry)
        return found[start:]

    def positions(self) -> list[int]:
        """Return, for each count of operations kept, how many of them are in the trace."""
        log = self.entries()
        wanted = self._concerned(log)
        found = [0]
        for entry in log:
            found.append(found[-1] + (entry[0] is SyncAll or entry[FIELDS] in wanted))
        return found

    def finish(self) -> Trace:
        """Return the trace of what concerns the directory, in the order in which it happened."""
        with self.lock:
            log, marks = self.entries(), list(self._acknowledged)
        wanted = self._concerned(log)
        operations: list[Operation] = []
        before = [0]
        for cls, path, site, time, task, *fields in log:
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
        """Return the inodes that were ever inside, or in a directory that came inside.

        Directories elsewhere in which one of them ever was are taken along: the trace names them.
        """
        wanted = {number for number, inode in self.inodes.items() if inode.inside}
        wanted.discard(OUTSIDE)
        if len(wanted) == len(self.inodes) - 1:
            return wanted
        size = -1
        while size != len(wanted):
            size = len(wanted)
            for cls, _, _, _, _, *fields in log:
                if cls in (Create, Mkdir, Symlink, Link) and fields[1] in wanted:
                    wanted.add(fields[0])
                elif cls is Rename:
                    if fields[1] in wanted or fields[3] in wanted:
                        wanted.add(fields[0])
                    if fields[0] in wanted and fields[5] is not None:
                        wanted.add(fields[5])
        self._with_directories(log, wanted)
        return wanted

    def _with_directories(self, log: list[_Entry], wanted: set[int]) -> None:
        """Add the directories elsewhere, not what else is in them."""
        size = -1
        while size != len(wanted):
            size = len(wanted)
            for cls, _, _, _, _, *fields in log:
                if cls in _NAMING and fields[0] in wanted:
                    wanted.update(fields[at] for at in ((1, 3) if cls is Rename else (1,)))
        wanted.discard(OUTSIDE)

    # -- helpers -------------------------------------------------------------------------------

    def _add(self, cls: type[Operation], fields: tuple[Any, ...], path: str, at: Moment) -> None:
        if not self.inodes[fields[0]].lost:
            self.log.append((cls, path, *at, *fields))

    def _doubt(self, path: str, what: str, *, about: int) -> None:
        self.doubt(
            BlindSpot(
                f"{path!r} {what} name: something changed it that the {self.recorder} recorder "
                "did not see (native code or another process); record with strace",
                culprit=path,
                recorder="strace",
            ),
            about=about,
        )

    def _free(self, parent: int, name: str, verb: str) -> None:
        if parent != OUTSIDE and self.entry(parent, name) is not None:
            what = f"was {verb} although the recording had that"
            self._doubt(self._path(parent, name), what, about=parent)
            self._drop_name(parent, name, None)

    def _new(self, parent: int, name: str, at: Moment, identity: Identity | None) -> int:
        number = self._next
        self._next += 1
        above = self.inodes[parent]
        path = f"{above.path}/{name}" if parent != OUTSIDE and above.path else name
        inode = Inode(number, path, links=0, inside=False, changed=at[1])
        if name:
            entries = above.entries
            assert entries is not None
            if name in entries:
                self._free(parent, name, "created")
            entries[name] = number
            inode.links = 1
            inode.parent = parent
            inode.inside = parent != OUTSIDE and above.inside
        self.inodes[number] = inode
        if identity is not None:
            self.bind(number, identity)
        return number

    def _remove(self, cls: type[Operation], parent: int, name: str, at: Moment) -> None:
        above = self.inodes[parent]
        number = None if above.entries is None else above.entries.get(name)
        if number is None or above.entries is None:
            if parent != OUTSIDE:
                what = "was removed although the recording had no such"
                self._doubt(self._path(parent, name), what, about=parent)
            return
        inode = self.inodes[number]
        site, time, task = at
        del above.entries[name]
        inode.links -= 1
        inode.changed = time
        if inode.links <= 0 and inode.opens <= 0:
            self.let_go(inode)
        if not inode.lost and (parent != OUTSIDE or inode.inside):
            path = self._path(parent, name)
            self.log.append((cls, path, site, time, task, number, parent, name))

    def _simple(
        self, cls: type[Operation], number: int, fields: tuple[Any, ...], at: Moment
    ) -> None:
        inode = self.inodes[number]
        inode.changed = at[1]
        self._add(cls, fields, inode.path, at)
