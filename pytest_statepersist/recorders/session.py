"""One recording while it runs: which descriptor is which file, and what calls did to it.

Belongs here: turning paths and descriptors into inodes of the builder's model, and checking on the
way that what a call touches is what the trace expects. Which Python functions lead here is said in
`calls`, `streams` and `maps`, and what comes in from outside in `adopting`. Rules:

1. Each call is made and recorded in one turn of the builder.
2. A path is resolved by the kernel: its directory's real identity says where it is. Only the last
   component is a matter of the model.
3. Calls on what is no regular file (pipes, terminals) hold no lock: they may block.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PosixPath
from threading import get_ident
from types import CodeType, FrameType
from typing import Any, TypeAlias

from pytest_statepersist.core.operations import OUTSIDE, ROOT, Close, Durability, Site
from pytest_statepersist.errors import BlindSpot
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.builder import Identity, Inode, Moment, TraceBuilder
from pytest_statepersist.recorders.callsite import CallSites
from pytest_statepersist.recorders.notify import Notifications

__all__ = [
    "DOTS",
    "DRAIN",
    "Description",
    "Path",
    "Session",
    "Slot",
    "descriptor_path",
    "durability_of",
]

Path: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
DRAIN = 64
"""After how many operations the kernel's notifications are read."""
_lseek, _getframe, _get_ident = real.lseek, sys._getframe, get_ident
_lstat, _fstat, _new = real.lstat, real.fstat, object.__new__
DOTS = frozenset({"", ".", ".."})
"""Last components of paths that are no names."""
_FORMAT, _REGULAR, _BITS = 0o170000, stat.S_IFREG, 0o7777
_PATHS = 256
"""How many paths are remembered."""
_DSYNC = getattr(os, "O_DSYNC", 0)
_SYNC = getattr(os, "O_SYNC", 0)


@dataclass(slots=True, eq=False)
class Description:
    """An open file description: several descriptors may share it."""

    inode: int
    node: Inode
    durability: Durability = Durability.NONE
    written: bool = False
    references: int = 1
    position: int = -1
    """Where the next write goes, -1 where only the kernel knows; see `rawfile`."""
    quick: bool = False
    """Whether what is written is in the directory and promises nothing: most files."""


@dataclass(slots=True)
class Slot:
    """Where the replacements find the recording that runs, if one does."""

    session: Session | None = None


def durability_of(flags: int) -> Durability:
    """Return what writes through a descriptor with these flags of open(2) promise."""
    if _SYNC and flags & _SYNC == _SYNC:
        return Durability.FULL
    return Durability.DATA if flags & _DSYNC else Durability.NONE


class Session:
    """The state of one running recording."""

    __slots__ = (
        "_outside_heads",
        "attached",
        "before_moment",
        "builder",
        "callsites",
        "directory",
        "files",
        "here",
        "identities",
        "inodes",
        "last_code",
        "last_line",
        "last_site",
        "last_task",
        "last_thread",
        "log",
        "names",
        "notifications",
        "now",
        "outside",
        "own_task",
        "previous",
        "since_drain",
        "sites",
        "tasks",
        "turn",
        "writes",
    )

    def __init__(self, directory: str, builder: TraceBuilder, notifications: Notifications) -> None:
        self.directory = directory
        self.builder = builder
        self.turn = builder.turn
        self.log, self.writes = builder.log, builder.writes
        self.identities, self.names = builder.identities, builder.names
        self.inodes = builder.inodes
        self.last_code: CodeType | None = None
        self.last_line = -1
        self.last_site: Site | None = None
        self.last_thread = -1
        self.last_task = 0
        self.notifications = notifications
        self.callsites = CallSites()
        self.sites, self.tasks = self.callsites.sites, self.callsites.tasks
        self.now = self.callsites.now
        self.files: dict[int, Description] = {}
        self.attached: dict[int, Callable[[], Any]] = {}
        """Weak references to the raw files that are recorded, by descriptor."""
        self.before_moment: Callable[[], None] | None = None
        self.since_drain = 0
        self.previous = b""
        """The bytes that were written last: where the same come again they are kept once."""
        self.here: dict[str, str | None] = {}
        """Paths that were asked for, and their names where they are directly in the directory."""
        self.own_task = self.tasks.setdefault(get_ident(), len(self.tasks))
        """The task of the owner of the turn, which begins the recording."""
        self.outside: set[str] = set()
        """Paths elsewhere that a call was about to change."""
        self._outside_heads: dict[Identity, str] = {}

    @property
    def lock(self) -> Any:
        """What is held across a call and its record, where `Turn` does not go the quick way."""
        return self.turn.lock

    def moment(self, frame: FrameType | None = None) -> Moment:
        """Return the moment of a call that has just been made and is about to be recorded.

        ``frame`` is that of the caller of the replacement, where it is at hand.
        """
        # As `again`, without the call.
        if self.before_moment is not None:
            self.before_moment()
        since = self.since_drain + 1
        self.since_drain = since
        if since >= DRAIN:
            self.drain(1)
        if frame is not None:
            known = self.sites.get((id(frame.f_code), frame.f_lasti))
            task = self.tasks.get(_get_ident())
            if known is not None and task is not None:
                now = self.now
                return known[0], now(), task
        return self.callsites.moment(frame)

    def name_here(self, path: str) -> str | None:
        """Return the name of a path that is one directly in the directory, and remember it."""
        head, _, name = path.rpartition("/")
        found = name if head == self.directory and name not in DOTS else None
        if len(self.here) < _PATHS:
            self.here[path] = found
        return found

    def again(self) -> int:
        """Return the time of a call, as `moment` does, where its line and thread are known."""
        if self.before_moment is not None:
            self.before_moment()
        since = self.since_drain + 1
        self.since_drain = since
        if since >= DRAIN:
            self.drain(1)
        return self.now()

    def site_of(self, frame: FrameType) -> Site | None:
        """Return where this frame is, if it has called before; its thread is then `last_task`.

        Loops that write call from one line: it is compared with the last one first.
        """
        code, line, thread = frame.f_code, frame.f_lasti, _get_ident()
        if code is self.last_code and line == self.last_line and thread == self.last_thread:
            return self.last_site
        known, task = self.sites.get((id(code), line)), self.tasks.get(thread)
        if known is None or task is None:
            return None
        self.last_code, self.last_line, self.last_site = code, line, known[0]
        self.last_thread, self.last_task = thread, task
        return known[0]

    def drain(self, pending: int = 0) -> None:
        """Read the kernel's notifications; ``pending`` calls are made and not yet recorded."""
        self.since_drain = 0
        self.notifications.drain(len(self.log) + pending)

    # -- paths ---------------------------------------------------------------------------------

    def place(self, path: Path, directory: int | None = None) -> tuple[int, str]:
        """Return (inode of the parent, name) of a path; OUTSIDE names are absolute paths."""
        text = path if type(path) is str else os.fsdecode(path)
        head, slash, name = text.rpartition("/")
        if head == self.directory and directory is None and name not in DOTS:
            return ROOT, name
        if name in ("", ".", ".."):
            return self._odd_place(text, directory)
        head = head or slash or "."
        try:
            status = real.stat(head, dir_fd=directory)
        except OSError:
            return OUTSIDE, os.path.abspath(text)  # the call itself will fail
        number = self.builder.find((status.st_dev, status.st_ino))
        if number is not None:
            return number, name
        return OUTSIDE, self._outside_name(head, name, directory, status)

    def _odd_place(self, text: str, directory: int | None) -> tuple[int, str]:
        """A path that ends in a slash or dots names a directory: find it from above."""
        try:
            status = real.stat(text, dir_fd=directory)
        except OSError:
            stripped = text.rstrip("/")
            if stripped and stripped != text:
                return self.place(stripped, directory)
            return OUTSIDE, os.path.abspath(text)
        number = self.builder.find((status.st_dev, status.st_ino))
        if number is not None and number != ROOT:
            inode = self.builder[number]
            return inode.parent, os.path.basename(inode.path)
        stripped = text.rstrip("/")
        return OUTSIDE, os.path.realpath(stripped or "/")

    def _outside_name(
        self, head: str, name: str, directory: int | None, status: os.stat_result
    ) -> str:
        identity = (status.st_dev, status.st_ino)
        known = self._outside_heads.get(identity)
        if known is None:
            if directory is not None and not head.startswith("/"):
                head = os.path.join(descriptor_path(directory), head)
            known = self._outside_heads[identity] = os.path.realpath(head)
        path = os.path.join(known, name)
        self.outside.add(path)
        return path

    def outside_files(self) -> frozenset[str]:
        """Return the files elsewhere that a program could find something in, now or before.

        Empty ones (locks) and what Python compiles are left out, and so is what has gone again
        but for its name.
        """
        found = set()
        for path in self.outside:
            try:
                status = real.stat(path)
            except OSError:
                found.add(path)  # removed or moved: looking for it may find it after a crash
                continue
            if stat.S_ISREG(status.st_mode) and status.st_size and not path.endswith(".pyc"):
                found.add(path)
        return frozenset(found)

    def check(self, parent: int, name: str, path: Path, directory: int | None = None) -> None:
        """Doubt the recording if a name inside is not what the model says."""
        if parent == OUTSIDE:
            return
        number = self.builder.entry(parent, name)
        try:
            status = _lstat(path) if directory is None else _lstat(path, dir_fd=directory)
        except OSError:
            if number is not None:
                self.unseen(self.builder[number].path, "was removed or renamed", about=parent)
            return
        if number is None:
            self.unseen(self.full(parent, name), "was created", about=parent)
        else:
            self.compare(self.builder[number], status)

    def compare(self, inode: Inode, status: os.stat_result) -> None:
        """Doubt the recording if a real file is not the one, or not as long, as the model says."""
        what = _difference(inode, status)
        if what is not None and inode.number != OUTSIDE and inode.inside:
            self.unseen(inode.path, what)

    def full(self, parent: int, name: str) -> str:
        """Return a place as a path: relative to the directory inside it, elsewhere absolute."""
        above = "" if parent == OUTSIDE else self.builder[parent].path
        return f"{above}/{name}" if above else name

    def unseen(
        self,
        path: str,
        what: str,
        recorder: str | None = "strace",
        *,
        about: int | None = None,
    ) -> None:
        """Keep a doubt: something happened to this path, in this directory, unrecorded."""
        self.builder.doubt(
            BlindSpot(
                f"{path!r} {what} by something that the python recorder does not see, usually "
                f"native code or another process{_way_out(recorder)}",
                culprit=path,
                recorder=recorder,
            ),
            about=about,
        )

    def inode_at(self, path: Path | int, directory: int | None, follow: bool) -> int | None:
        """Return the model's inode for a path or descriptor; ``None`` if it is not known."""
        if isinstance(path, int):
            status = real.fstat(path)
        else:
            status = real.stat(path, dir_fd=directory, follow_symlinks=follow)
        return self.builder.find((status.st_dev, status.st_ino))

    # -- descriptors ---------------------------------------------------------------------------

    def description(self, fd: int) -> Description | None:
        """Return the description behind a descriptor that may be written to.

        One that was opened before, or natively, is looked at; ``None`` if it does not matter.
        """
        found = self.files.get(fd)
        if found is not None:
            return found
        try:
            status = real.fstat(fd)
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        number = self.builder.find((status.st_dev, status.st_ino))
        if number is None:
            return None
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        return self.register(fd, number, durability_of(flags))

    def register(self, fd: int, number: int, durability: Durability) -> Description:
        """Note that a descriptor is open on an inode; what it was before was closed unseen."""
        self.builder.opened(number)
        node = self.builder[number]
        made = self.files[fd] = Description(number, node, durability)
        made.quick = node.inside and durability is Durability.NONE
        return made

    def opened(
        self,
        fd: int,
        path: Path,
        *,
        place: tuple[int, str],
        truncated: bool,
        durability: Durability = Durability.NONE,
        frame: FrameType | None = None,
    ) -> Description | None:
        """Record what an open for writing did to names and sizes, and register the descriptor."""
        self.files.pop(fd, None)
        status = _fstat(fd)
        mode = status.st_mode
        if mode & _FORMAT != _REGULAR:
            return None
        identity = (status.st_dev, status.st_ino)
        builder = self.builder
        parent, name = place
        known = builder.entry(parent, name)
        if known is not None and builder[known].target is not None:
            parent, name = self.place(os.path.realpath(os.fsdecode(path)))
            known = builder.entry(parent, name)
        real_one = builder.find(identity)
        if known is None and real_one is not None and builder[real_one].links <= 0:
            if parent == OUTSIDE and builder[real_one].opens > 0:
                known = real_one  # by way of /proc/self/fd
        elif known is None and real_one is not None:
            if parent != OUTSIDE:
                self.unseen(self.full(parent, name), "was linked", about=parent)
            known = real_one
        if known is None and parent == OUTSIDE:
            # A link outside may have led inside.
            parent, name = self.place(os.path.realpath(os.fsdecode(path)))
        if known is None:
            if status.st_size > 0:
                if not builder[parent].inside:
                    return None  # an older file elsewhere: adopted if it ever matters
                self.unseen(self.full(parent, name), "was created", about=parent)
            at = self.moment(frame)
            known = builder.create(parent, name, at, mode=mode & _BITS, identity=identity)
            builder[known].size = status.st_size
        elif truncated:
            if real_one != known:
                self.compare(builder[known], status)
            builder.truncate(known, 0, self.moment(frame))
        else:
            self.compare(builder[known], status)
        return self.register(fd, known, durability)

    def opened_here(
        self, fd: int, path: str, name: str, truncated: bool, frame: FrameType
    ) -> Description | None:
        """Do as `opened` for a name directly in the directory.

        A new file, or a known one that was cut, is recorded here; all others there.
        """
        status = _fstat(fd)
        mode = status.st_mode
        if mode & _FORMAT == _REGULAR:
            identity = (status.st_dev, status.st_ino)
            known, real_one = self.names.get(name), self.identities.get(identity)
            if known is None:
                if real_one is None and not status.st_size:
                    # As `moment`, for the owner.
                    since = self.since_drain = self.since_drain + 1
                    line = self.sites.get((id(frame.f_code), frame.f_lasti))
                    if line is None or since >= DRAIN:
                        site, time, task = self.moment(frame)
                    else:
                        now = self.now
                        site, time, task = line[0], now(), self.own_task
                    bits = mode & _BITS
                    node = self.builder.create_here(name, bits, identity, site, time, task)
                    made = self.files[fd] = _new(Description)
                    made.inode, made.node, made.durability = node.number, node, Durability.NONE
                    made.written, made.references, made.position = False, 1, -1
                    made.quick = True
                    return made
            elif truncated and known == real_one:
                self.builder.truncate(known, 0, self.moment(frame))
                return self.register(fd, known, Durability.NONE)
        return self.opened(fd, path, place=(ROOT, name), truncated=truncated, frame=frame)

    def renamed_here(
        self, call: Callable[[Any, Any], None], src: Path, dst: Path, frame: FrameType
    ) -> bool:
        """Rename a known file directly in the directory, and record it.

        Returns false, with nothing done, for any other, and where something is not as expected:
        then the caller finds out what it is.
        """
        here = src.__str__() if type(src) is PosixPath else src
        there = dst.__str__() if type(dst) is PosixPath else dst
        turn = self.turn
        if type(here) is not str or type(there) is not str or _get_ident() != turn.owner:
            return False
        known = self.here
        name = known[here] if here in known else self.name_here(here)
        new_name = known[there] if there in known else self.name_here(there)
        if name is None or new_name is None:
            return False
        outer = turn.inside
        turn.inside = True
        try:
            if turn.owner is None:
                return False
            names, inodes = self.names, self.inodes
            number, replaced = names.get(name), names.get(new_name)
            if number is None or number == replaced:
                return False
            inode = inodes[number]
            try:
                # What `_difference` asks; that it is a file, and one that had an operation.
                status, changed = _lstat(here), inode.changed
                if (
                    inode.entries is not None
                    or inode.identity != (status.st_dev, status.st_ino)
                    or inode.size != status.st_size
                    or changed is None
                    or status.st_ctime_ns > changed
                ):
                    return False
                if replaced is not None:
                    inode = inodes[replaced]
                    status, changed = _lstat(there), inode.changed
                    if (
                        inode.entries is not None
                        or inode.identity != (status.st_dev, status.st_ino)
                        or inode.size != status.st_size
                        or changed is None
                        or status.st_ctime_ns > changed
                    ):
                        return False
                elif _exists(there):
                    return False
            except OSError:
                return False
            call(here, there)  # the text that the system would ask the paths for again
            # As `moment`, for the owner.
            since = self.since_drain = self.since_drain + 1
            line = self.sites.get((id(frame.f_code), frame.f_lasti))
            if line is None or since >= DRAIN:
                site, time, task = self.moment(frame)
            else:
                now = self.now
                site, time, task = line[0], now(), self.own_task
            self.builder.rename_here(number, name, replaced, new_name, site, time, task)
            return True
        finally:
            turn.inside = outer

    def opened_nameless(self, fd: int, durability: Durability) -> Description:
        """Record a file that O_TMPFILE made."""
        status = real.fstat(fd)
        mode, identity = stat.S_IMODE(status.st_mode), (status.st_dev, status.st_ino)
        number = self.builder.create(OUTSIDE, "", self.moment(), mode=mode, identity=identity)
        return self.register(fd, number, durability)

    def closed(self, fd: int, frame: FrameType | None = None) -> None:
        """Record that a descriptor was closed."""
        found = self.files.pop(fd, None)
        if found is None:
            return
        left = found.references - 1
        found.references = left
        if left == 0:
            at = self.moment(frame)
            node = found.node
            if not found.written or node.lost:
                self.builder.close(found.inode, at, written=False)
                return
            # What `TraceBuilder.close` does for a file that was written and is kept.
            site, time, task = at
            node.opens -= 1
            self.log.append((Close, node.path, site, time, task, found.inode))
            if node.links <= 0:
                self.builder.let_go(node)
            self.since_drain = 0
            self.notifications.drain(len(self.log))

    def duplicated(self, fd: int, copy: int) -> None:
        """Note one more descriptor of the same description."""
        found = self.files.get(fd)
        if found is not None:
            found.references += 1
            self.files[copy] = found

    # -- contents ------------------------------------------------------------------------------

    def wrote(
        self, fd: int, found: Description, data: Any, count: int, frame: FrameType
    ) -> None:
        """Record a write at the file position: the position now says where it was.

        ``frame`` is that of the caller of the replacement.
        """
        end = _lseek(fd, 0, 1)
        if found.position >= 0:
            if found.position != end - count:
                self.moved(found)
            found.position = end
        self.went(found, end - count, data, count, frame)

    def went(
        self, found: Description, offset: int, data: Any, count: int, frame: FrameType
    ) -> None:
        """Record a write at a known offset; one that goes on behind it is a row of `Writes`."""
        if type(data) is not bytes or count != len(data):
            data = self.kept(data, count)
        node, site = found.node, self.site_of(frame)
        found.written = True
        if not count or self.before_moment is not None or site is None or not found.quick:
            found.quick = node.inside and found.durability is Durability.NONE
            self.builder.write(found.inode, offset, data, self.moment(frame), found.durability)
            return
        time = node.changed = self.now()
        end = offset + count
        if end > node.size:
            node.size = end
        log, writes, path = self.log, self.writes, node.path
        writes.extend((path, site, time, self.last_task, found.inode, offset))
        writes.run, writes.path, writes.end = found, path, end
        log.append(data)
        if not len(log) % DRAIN:
            self.drain()

    def kept(self, data: Any, count: int) -> bytes:
        """Return the first bytes of anything that a write takes.

        Where the same come again they are kept once: memory that is touched for the first time
        costs more than all the rest of a record.
        """
        previous = self.previous
        if len(previous) == count and previous.startswith(data):
            return previous
        self.previous = made = _bytes_of(data, count)
        return made

    def moved(self, found: Description) -> None:
        """Doubt what was recorded of a file whose counted position is not the kernel's."""
        self.unseen(found.node.path, "was written, or its position moved,")

    def wrote_at(
        self,
        found: Description,
        offset: int,
        data: bytes,
        durability: Durability | None = None,
    ) -> None:
        """Record a write at a known offset."""
        how = found.durability if durability is None else durability
        self.builder.write(found.inode, offset, data, self.moment(), how)
        found.written = True

    def read_back(self, fd: int, offset: int, count: int) -> bytes:
        """Return what a descriptor's file has there, also if it was opened for writing only."""
        found = bytearray()
        own = True
        source = fd
        try:
            real.pread(fd, 0, 0)
        except OSError:
            source, own = real.os_open(descriptor_path(fd), os.O_RDONLY), False
        try:
            while len(found) < count:
                piece = real.pread(source, count - len(found), offset + len(found))
                if not piece:
                    break
                found += piece
        finally:
            if not own:
                real.close(source)
        return bytes(found)

    # -- notifications -------------------------------------------------------------------------

    def watch(self, number: int, path: str) -> None:
        """Watch a directory from now on."""
        self.notifications.watch(number, path, since=len(self.builder))

    def watch_below(self, number: int, path: str) -> None:
        """Watch a directory that is new inside, and all directories in it."""
        self.watch(number, path)
        for name, child in (self.builder[number].entries or {}).items():
            if self.builder[child].entries is not None:
                self.watch_below(child, f"{path}/{name}")


def _difference(inode: Inode, status: os.stat_result) -> str | None:
    """Return what happened to a file since its last recorded operation, ``None`` for nothing."""
    if inode.identity is not None and inode.identity != (status.st_dev, status.st_ino):
        return "was replaced"
    if inode.size != status.st_size and status.st_mode & _FORMAT == _REGULAR:
        return "was written or cut"
    # Every entry that comes or goes changes its directory.
    if inode.entries is None and inode.changed is not None and status.st_ctime_ns > inode.changed:
        return "was changed"
    return None


def _exists(path: str) -> bool:
    try:
        _lstat(path)
    except OSError:
        return False
    return True


def _bytes_of(data: Any, count: int) -> bytes:
    if type(data) is bytes:
        return data[:count]
    if type(data) is memoryview and data.nbytes == count:
        return data.tobytes()
    return memoryview(data).cast("B")[:count].tobytes()


def descriptor_path(fd: int) -> str:
    """Return a path by which the kernel leads to an open file of this process."""
    return f"/proc/self/fd/{fd}" if os.path.isdir("/proc/self/fd") else f"/dev/fd/{fd}"


def _way_out(recorder: str | None) -> str:
    return "" if recorder is None else f"; record with {recorder}"
