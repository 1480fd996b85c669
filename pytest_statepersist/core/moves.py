"""Renames that may be lost although their old name is in use again.

Belongs here: `lost_moves`, which finds them in a trace. The rule: a file that was made in the
trace, renamed, and never synced is known to no log. When another file takes over its old name and
is synced, the log holds that name and nothing of the first file, so that the rename is lost while
the name is new. Where the first file was there at the start, or was synced, it is taken along.

Measured on btrfs, Linux 6.18: create t, rename t→n, create t, fsync(t): ``n`` is gone, ``t`` is the
second file; the same with directories, of which the second is only the parent of what is synced;
after another rename instead of the second create; and over an existing ``n``. ext4 and XFS keep the
order of names, and never showed it.
"""

from __future__ import annotations

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.tree import Directory

__all__ = ["lost_moves"]

_Place = tuple[int, str]


def lost_moves(trace: op.Trace) -> frozenset[int]:
    """Return the indices of the renames that a sync of what took the old name over leaves behind.

    Time is linear in the length of the trace.
    """
    return _Finder(trace).run()


class _Finder:
    def __init__(self, trace: op.Trace) -> None:
        self.trace = trace
        self.entries: dict[_Place, int] = {}
        self.unsynced: set[int] = set()
        """What was made in the trace, and no sync has reached since."""
        self.made_in: dict[int, list[int]] = {}
        """Directory → what may be in ``unsynced`` and was named in it."""
        self.above: dict[int, int] = {}
        """What was made in the trace → the directory of its latest name."""
        self.left: dict[_Place, tuple[int, int]] = {}
        """A name → the last rename that took an unsynced file away from it, and that file."""
        self.after: dict[int, tuple[int, int]] = {}
        """A file → such a rename and file, of the name that it took over."""
        self.found: set[int] = set()

    def run(self) -> frozenset[int]:
        for number, node in self.trace.base.nodes.items():
            if isinstance(node, Directory):
                for name, inode in node.entries.items():
                    self.entries[number, name] = inode
        for index, operation in enumerate(self.trace.operations):
            self._see(index, operation)
        return frozenset(self.found)

    def _see(self, index: int, operation: op.Operation) -> None:
        match operation:
            case op.Create() | op.Mkdir() | op.Symlink():
                self.unsynced.add(operation.inode)
                self._take((operation.parent, operation.name), operation.inode)
            case op.Link():
                self._take((operation.parent, operation.name), operation.inode)
            case op.Unlink() | op.Rmdir():
                self._drop((operation.parent, operation.name))
            case op.Rename():
                self._rename(index, operation)
            case op.Fsync():
                self._sync(operation.inode, failed=operation.failed)
            case op.SyncRange():
                self._sync(operation.inode, failed=True)
            case op.Write() if operation.durability is not op.Durability.NONE:
                self._sync(operation.inode)
            case op.SyncAll():
                self.unsynced.clear()
                self.made_in.clear()
            case _:
                pass

    def _take(self, place: _Place, inode: int) -> None:
        self.entries[place] = inode
        if inode in self.unsynced:
            self.made_in.setdefault(place[0], []).append(inode)
        if inode in self.unsynced or inode in self.above:
            self.above[inode] = place[0]
        before = self.left.pop(place, None)
        if before is not None and before[1] != inode:
            self.after[inode] = before

    def _drop(self, place: _Place) -> None:
        self.entries.pop(place, None)
        self.left.pop(place, None)

    def _rename(self, index: int, operation: op.Rename) -> None:
        old = (operation.parent, operation.name)
        new = (operation.new_parent, operation.new_name)
        before = self.entries.get(new)
        if before == operation.inode:
            return
        self._take(new, operation.inode)
        if operation.exchange:
            if before is not None:
                self._take(old, before)
            return
        self.entries.pop(old, None)
        if operation.inode in self.unsynced and op.OUTSIDE not in (old[0], new[0]):
            self.left[old] = index, operation.inode

    def _sync(self, inode: int, *, failed: bool = False) -> None:
        """A log takes up a file and new directories above it, and nothing that had their names."""
        above: int | None = inode
        while above is not None:
            self._leave_behind(above)
            above = self.above.get(above)
        if failed:
            return
        self.unsynced.discard(inode)
        for each in self.made_in.pop(inode, ()):
            self.unsynced.discard(each)

    def _leave_behind(self, inode: int) -> None:
        step = self.after.pop(inode, None)
        while step is not None and step[1] in self.unsynced and step[0] not in self.found:
            self.found.add(step[0])
            step = self.after.get(step[1])
