"""Showing crash states in a real directory, touching only what differs from the last one.

Belongs here: the way from cells to files. Rules:

1. `show` brings the directory from the state it holds to the one that is asked for; `heal` first
   puts back what a recovery changed.
2. Small files are written anew, in place where nothing but the explorer changes the directory
   between two states (``sole``); which of two small files a name shows is their content, not which
   inode it is. Large ones are patched where a unit differs and moved aside, not copied, while no
   name shows them.
3. What cannot be shown (a directory under a name inside itself) is unreachable in the state, so it
   is not shown.
4. The directory is ours; the user's own is never passed here.
5. It calls the system past all replacements: no recorder and no gate is to see the explorer.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.effects import Cell, Part
from pytest_statepersist.core.tree import (
    BLOCK,
    LARGE,
    ROOT,
    Directory,
    File,
    Symlink,
    Tree,
    read_content,
    size_of,
)
from pytest_statepersist.errors import UserError
from pytest_statepersist.explorer.held import Held, set_xattrs, xattrs_of
from pytest_statepersist.recorders.real import system

__all__ = ["Materialiser"]

_HELD = 64
"""How many small files are held open at a time."""


class _Shown:
    """What a large file on disk holds: which version of each unit, and how far the base reaches."""

    __slots__ = ("kept", "size", "units")

    def __init__(self, size: int, kept: int, units: dict[int, bytes]) -> None:
        self.size = size
        self.kept = kept
        self.units = units


class Materialiser:
    """Shows the crash states of one trace in ``directory``; ``aside`` is scratch space beside it.

    With ``present`` the directory already holds the trace's final state, else it is filled. With
    ``sole`` the caller says by `heal` whatever else changed the directory, and calls `close`.
    """

    def __init__(
        self, directory: str, aside: str, trace: op.Trace, *, present: bool, sole: bool = False
    ) -> None:
        self.directory = directory
        self.aside = aside
        self.trace = trace
        self.changed_directories = False
        self._attached: dict[str, int] = {}
        self._paths: dict[int, set[str]] = {}
        self._large: dict[int, _Shown] = {}
        self._sole = sole
        self._held: dict[int, Held] = {}
        self._stashed: set[int] = set()
        self._disk: Disk | None = None
        self._state: CrashState | None = None
        self._fill = not present
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._here = _identity(directory)

    def adopt(self, disk: Disk) -> None:
        """Take the directory as holding everything that the trace did, in order."""
        self._disk, self._state = disk, disk.in_order(len(self.trace) - 1)
        for path, inode in self._walk("", ROOT):
            self._attached[path] = inode
            self._paths.setdefault(inode, set()).add(path)
            if self._is_large(inode):
                self._large[inode] = self._signature(inode)

    def close(self) -> None:
        """Let go of the files that are held open; they are opened again where needed."""
        for held in self._held.values():
            held.close()
        self._held.clear()

    def show(self, disk: Disk, state: CrashState) -> None:
        """Make the directory hold a crash state."""
        if self._disk is None or self._state is None:
            if self._fill:
                self._clear()
                self._disk, self._state = disk, state
                self._attach_all()
                self._fill = False
                return
            self.adopt(disk)
        shown_disk, shown = self._now()
        if disk is not shown_disk:
            self._switch(disk, state)
            return
        if state.identity == shown.identity:
            self._state = state
            return
        entries, contents = self._changed(state)
        self._state = state
        self._apply(entries, contents)

    def _now(self) -> tuple[Disk, CrashState]:
        """Return what the directory holds, or is being made to hold."""
        assert self._disk is not None
        assert self._state is not None
        return self._disk, self._state

    def _changed(self, state: CrashState) -> tuple[set[Cell], set[int]]:
        """Return the entries and the inodes in which a state may differ from the shown one."""
        disk, before = self._now()
        effects = disk.effects
        entries: set[Cell] = set()
        inodes: set[int] = set()
        changed: Iterable[int] = before.missing ^ state.missing
        if before.last != state.last:
            low, high = sorted((before.last, state.last))
            begin, end = effects.first_of(low + 1), effects.first_of(high + 1)
            changed = {*range(begin, end), *changed}
        for index in changed:
            effect = effects.effects[index]
            if effect.entries:
                entries.update([cell for cell, _ in effect.entries])
            else:
                inodes.add(effect.inode)
        if before.ghosts != state.ghosts:
            inodes.update([ghost.inode for ghost in {*before.ghosts} ^ {*state.ghosts}])
        for returned in {before.returned, state.returned} - {None}:
            assert returned is not None
            entries.add(returned.cell)
        return entries, inodes

    def _switch(self, disk: Disk, state: CrashState) -> None:
        """Go to another model's view of the same trace: compare all that any effect touches."""
        _, shown = self._now()
        self._disk, self._state = disk, state
        effects = disk.effects
        entries = {cell for cell in effects.chains if cell.part is Part.ENTRY}
        inodes = {*effects.units, *effects.set_sizes, *effects.raises}
        inodes.update(ghost.inode for ghost in (*shown.ghosts, *state.ghosts))
        inodes.update(
            cell.inode for cell in effects.chains if cell.part in (Part.ATTRIBUTES, Part.TIMES)
        )
        self._apply(entries, inodes)

    def _apply(self, entries: Iterable[Cell], inodes: Iterable[int]) -> None:
        entries = [cell for cell in entries if cell.inode >= ROOT]
        written: set[int] = set()
        if entries:
            self._apply_entries(entries, written)
        for inode in inodes:
            if inode in written:
                continue
            paths = self._paths.get(inode)
            if paths:
                self._write(next(iter(paths)), inode, fresh=False)

    def _apply_entries(self, entries: list[Cell], written: set[int]) -> None:
        disk, state = self._now()
        wanted: list[tuple[str, int, int]] = []
        for cell in entries:
            target = disk.entry(state, cell.inode, str(cell.key))
            for parent in self._directory_paths(cell.inode):
                path = f"{parent}{cell.key}"
                if self._attached.get(path) != target and not self._become(path, target, written):
                    self._detach(path)
        for cell in entries:
            target = disk.entry(state, cell.inode, str(cell.key))
            if target is not None:
                wanted.append((str(cell.key), cell.inode, target))
        # A directory that is attached brings all its children, so the order does not matter, but a
        # parent may appear only after its own entry was seen.
        pending = wanted
        while pending:
            later = []
            for name, number, target in pending:
                parents = self._directory_paths(number)
                if not parents:
                    later.append((name, number, target))
                for prefix in parents:
                    if f"{prefix}{name}" not in self._attached:
                        self._attach(f"{prefix}{name}", target, written)
            if len(later) == len(pending):
                return  # unreachable in this state
            pending = later

    def _directory_paths(self, inode: int) -> list[str]:
        """Return the prefixes ("" or "a/b/") under which a directory is shown."""
        if inode == ROOT:
            return [""]
        return [f"{path}/" for path in self._paths.get(inode, ())]

    def _walk(self, prefix: str, inode: int) -> Iterator[tuple[str, int]]:
        disk, state = self._now()
        for name, child in sorted(disk.listing(state, inode).items()):
            path = f"{prefix}{name}"
            yield path, child
            if self._is_directory(child):
                yield from self._walk(f"{path}/", child)

    def _is_directory(self, inode: int) -> bool:
        return isinstance(self.trace.base.nodes.get(inode), Directory) or (
            self._disk is not None and isinstance(self._disk.effects.created.get(inode), op.Mkdir)
        )

    # -- names

    def _real(self, path: str) -> str:
        return f"{self.directory}/{path}"

    def _become(self, path: str, inode: int | None, written: set[int]) -> bool:
        """Let the file that a name shows become another one; say whether that could be done."""
        shown = self._attached.get(path)
        if shown is None or inode is None or shown not in self._held:
            return False
        if len(self._paths[shown]) > 1 or self._paths.get(inode) or not self._is_small(inode):
            return False
        self._held[inode] = self._held.pop(shown)
        self._attached[path] = inode
        self._paths[shown].discard(path)
        self._paths.setdefault(inode, set()).add(path)
        self._write(path, inode, fresh=False)
        written.add(inode)
        return True

    def _detach(self, path: str) -> None:
        inode = self._attached.get(path)
        if inode is None:
            return
        if self._is_directory(inode):
            prefix = path + "/"
            for below in sorted(p for p in self._attached if p.startswith(prefix)):
                if below in self._attached:
                    self._detach(below)
            system.rmdir(self._real(path))
            self.changed_directories = True
        elif inode in self._large and len(self._paths[inode]) == 1:
            system.rename(self._real(path), self._aside(inode))
            self._stashed.add(inode)
        else:
            system.unlink(self._real(path))
            if len(self._paths[inode]) == 1:
                self._let_go(inode)
        del self._attached[path]
        self._paths[inode].discard(path)

    def _aside(self, inode: int) -> str:
        return f"{self.aside}/{inode}"

    def _attach(self, path: str, inode: int, written: set[int]) -> None:
        disk, state = self._now()
        real = self._real(path)
        others = self._paths.setdefault(inode, set())
        if self._is_directory(inode):
            if others:
                return  # a directory has one name
            system.mkdir(real, 0o700)
            self._attached[path] = inode
            others.add(path)
            self.changed_directories = True
            for name, child in disk.listing(state, inode).items():
                self._attach(f"{path}/{name}", child, written)
            mode, _ = disk.attributes(state, inode)
            system.chmod(real, mode)
            written.add(inode)
            return
        if others:
            system.link(self._real(next(iter(others))), real, follow_symlinks=False)
        elif inode in self._stashed:
            system.rename(self._aside(inode), real)
            self._stashed.discard(inode)
            self._write(path, inode, fresh=False)
            written.add(inode)
        else:
            self._write(path, inode, fresh=True)
            written.add(inode)
        self._attached[path] = inode
        others.add(path)

    # -- contents

    def _is_large(self, inode: int) -> bool:
        node = self.trace.base.nodes.get(inode)
        return isinstance(node, File) and not isinstance(node.content, bytes)

    def _is_small(self, inode: int) -> bool:
        """Whether an inode is a regular file whose content is at hand."""
        assert self._disk is not None
        node, made = self.trace.base.nodes.get(inode), self._disk.effects.created.get(inode)
        if node is None:
            return isinstance(made, op.Create)
        return isinstance(node, File) and isinstance(node.content, bytes)

    def _let_go(self, inode: int) -> None:
        held = self._held.pop(inode, None)
        if held is not None:
            held.close()

    def _signature(self, inode: int) -> _Shown:
        disk, state = self._now()
        size = disk.size(state, inode)
        node = self.trace.base.nodes[inode]
        assert isinstance(node, File)
        kept = size_of(node.content)
        set_sizes = disk.effects.set_sizes.get(inode, [])
        for index in set_sizes[: disk.version(set_sizes, state)]:
            kept = min(kept, -(-disk.effects.effects[index].size // BLOCK) * BLOCK)
        numbers = set(disk.effects.units.get(inode, ())) | {
            ghost.unit for ghost in state.ghosts if ghost.inode == inode
        }
        units = {
            number: disk.unit_bytes(state, inode, number)
            for number in numbers
            if number * disk.unit < size
        }
        return _Shown(size, min(kept, size), units)

    def _write(self, path: str, inode: int, *, fresh: bool) -> None:
        disk, state = self._now()
        real = self._real(path)
        node = self.trace.base.nodes.get(inode)
        made = disk.effects.created.get(inode)
        if isinstance(node, Symlink) or isinstance(made, op.Symlink):
            if fresh:
                target = node.target if isinstance(node, Symlink) else made.target  # type: ignore[union-attr]
                system.symlink(target, real)
            return
        if self._is_directory(inode):
            system.chmod(real, disk.attributes(state, inode)[0])
            return
        mode, xattrs = disk.attributes(state, inode)
        mtime = disk.mtime(state, inode)
        if not self._is_large(inode):
            self._write_small(real, inode, mode, xattrs, mtime, fresh=fresh)
            return
        self._write_large(real, inode, xattrs, fresh=fresh)
        system.chmod(real, mode)
        if mtime is not None:
            system.utime(real, ns=(mtime, mtime))

    def _write_small(
        self,
        real: str,
        inode: int,
        mode: int,
        xattrs: dict[str, bytes],
        mtime: int | None,
        *,
        fresh: bool,
    ) -> None:
        disk, state = self._now()
        held = self._held.get(inode)
        if held is None:
            held = Held(real, mode, self._umask, fresh=fresh)
            if self._sole:
                if len(self._held) >= _HELD:
                    self._let_go(next(iter(self._held)))
                self._held[inode] = held
        try:
            held.become(read_content(disk.content(state, inode)), mode, xattrs, mtime)
        finally:
            if not self._sole:
                held.close()

    def _write_large(
        self, real: str, inode: int, xattrs: dict[str, bytes], *, fresh: bool
    ) -> None:
        disk, _ = self._now()
        wanted = self._signature(inode)
        shown = self._large.get(inode)
        flags = os.O_WRONLY | os.O_CREAT
        descriptor = system.open(real, flags, 0o600)
        try:
            if fresh or shown is None:
                system.ftruncate(descriptor, 0)
                shown = _Shown(0, 0, {})
            base = self.trace.base.nodes[inode]
            assert isinstance(base, File)
            if wanted.kept < shown.kept or wanted.size < shown.size:
                system.ftruncate(descriptor, min(wanted.kept, wanted.size))
            restore = [(shown.kept, wanted.kept)]
            unit = disk.unit
            # A unit that is no longer patched shows its base bytes again.
            restore += [
                (n * unit, min((n + 1) * unit, wanted.kept))
                for n in shown.units.keys() - wanted.units
            ]
            for begin, end in restore:
                while begin < end:
                    piece = read_content(base.content, begin, min(LARGE, end - begin))
                    if not piece:
                        break
                    system.pwrite(descriptor, piece, begin)
                    begin += len(piece)
            system.ftruncate(descriptor, wanted.size)
            # A cut that was made above may have taken patched bytes with it.
            for number, data in wanted.units.items():
                system.pwrite(descriptor, data[: wanted.size - number * unit], number * unit)
            set_xattrs(descriptor, xattrs_of(descriptor), xattrs)
        finally:
            system.close(descriptor)
        self._large[inode] = wanted

    # -- after a recovery

    def heal(self, changed: Iterable[str]) -> None:
        """Put back what a recovery changed at these paths, relative to the directory."""
        broken: set[str] = set()
        if _identity(self.directory) is None:
            self.rebuild()
            return
        self.check_here()
        for path in changed:
            if path:
                broken.add(path)
                # Every name of the same inode shows the change.
                broken.update(self._paths.get(self._attached.get(path, -1), ()))
        # All names go before the first comes back: a name that still shows a changed file would
        # hand the change on by its link.
        gone: list[tuple[str, int]] = []
        for path in sorted(broken):
            if not any(path.startswith(f"{other}/") for other in broken):
                inode = self._take_away(path)
                if inode is not None:
                    gone.append((path, inode))
        for path, inode in gone:
            if not os.path.isdir(os.path.dirname(self._real(path))):
                self.rebuild()
                return
            self._attach(path, inode, set())

    def check_here(self) -> None:
        """Raise `UserError` where the directory is not the one that was there at first."""
        if _identity(self.directory) != self._here:
            raise UserError(
                f"{self.directory} itself was removed or renamed, and nobody saw what happened in "
                "what is there now; let a recovery keep the directory and replace what is in it, "
                "or give it a directory below the one that is judged"
            )

    def _take_away(self, path: str) -> int | None:
        """Remove whatever is at a path; return the inode that should be there, if any."""
        inode = self._attached.get(path)
        prefix = path + "/"
        below = [p for p in self._attached if p.startswith(prefix)]
        for gone in [path, *below]:
            number = self._attached.pop(gone, None)
            if number is not None:
                self._paths[number].discard(gone)
                self._large.pop(number, None)
                self._let_go(number)
                if not self._paths[number]:
                    self._stashed.discard(number)
        remove(self._real(path))
        if below or (inode is not None and self._is_directory(inode)):
            self.changed_directories = True
        return inode

    def rebuild(self) -> None:
        """Fill the directory anew with the state that it should hold."""
        self._clear()
        self._attach_all()

    def _clear(self) -> None:
        try:
            mode = system.stat(self.directory).st_mode & 0o7777
        except OSError:
            os.makedirs(self.directory)  # a recovery has removed it
            self._here = _identity(self.directory)
            mode = system.stat(self.directory).st_mode & 0o7777
        if mode & 0o700 != 0o700:
            system.chmod(self.directory, 0o700)
        for name in system.listdir(self.directory):
            remove(f"{self.directory}/{name}")
        root = self.trace.base.nodes[ROOT]
        if isinstance(root, Directory) and root.mode != mode:
            system.chmod(self.directory, root.mode)
        for inode in self._stashed:
            remove(self._aside(inode))
        self.close()
        self._attached.clear()
        self._paths.clear()
        self._large.clear()
        self._stashed.clear()
        self.changed_directories = True

    def _attach_all(self) -> None:
        disk, state = self._now()
        written: set[int] = set()
        for name, inode in disk.listing(state, ROOT).items():
            self._attach(name, inode, written)

    def matches(self) -> bool:
        """Say whether the directory shows the names and sizes of the state; for self-tests."""
        disk, state = self._now()
        tree: Tree = disk.tree(state)
        expected = {path for path, _, _ in tree.walk()}
        found = set()
        for here, directories, files in os.walk(self.directory):
            for name in (*directories, *files):
                found.add(os.path.relpath(f"{here}/{name}", self.directory))
        return expected == found


def remove(path: str) -> None:
    """Remove whatever is at a path, also where the subject left it without permissions."""
    try:
        system.unlink(path)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        # A parent became a file; there is nothing at this path.
        return
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM, errno.EACCES):
            raise
        shutil.rmtree(path, onerror=_force)


def _force(function: object, path: str, _: object) -> None:
    parent = os.path.dirname(path)
    for each in (parent, path):
        with suppress(OSError):
            system.chmod(each, stat.S_IRWXU)
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        system.unlink(path)


def _identity(directory: str) -> tuple[int, int] | None:
    """Say which directory this is, ``None`` where there is none."""
    try:
        status = system.lstat(directory)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None
