"""From system calls, seen from outside, to a trace.

Belongs here: what each Linux system call means for the watched names and files. Rules:

1. Descriptors, working directories and positions are followed from call to call; the paths that
   strace prints beside descriptors only help where a descriptor came from somewhere unseen.
2. What strace does not print (bytes that the kernel moved, changes through memory) becomes an
   `Unknown`, to be found out afterwards; what cannot be found out is a `BlindSpot`.
3. Two calls at the same time have no known order: where it would matter, that is a `BlindSpot`.

Facts: the manual pages of section 2 (Linux man-pages 6).
"""

from __future__ import annotations

import os
import re
from collections import abc, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pytest_statepersist.core.operations import OUTSIDE, Durability, Site
from pytest_statepersist.errors import BlindSpot
from pytest_statepersist.recorders.builder import Moment, Place, TraceBuilder
from pytest_statepersist.recorders.strace_contents import CONTENTS
from pytest_statepersist.recorders.strace_maps import Look, MapEvent, MapKind
from pytest_statepersist.recorders.strace_names import NAMES
from pytest_statepersist.recorders.strace_order import Change, Kind, conflict, kind_of, names_in
from pytest_statepersist.recorders.strace_parser import (
    Call,
    Descriptor,
    Event,
    Exit,
    clone_flags,
    descriptor,
    number,
    text,
)
from pytest_statepersist.recorders.strace_tasks import (
    Descriptors,
    Memory,
    OpenFile,
    Surroundings,
    Task,
)

__all__ = ["SYSTEM_CALLS", "Findings", "Known", "StraceModel", "Unknown", "births_in"]

_PROC_DESCRIPTOR = re.compile(r"/(?:proc/(?:self|thread-self|\d+)|dev)/fd/(\d+)")
_CLONES = frozenset({"clone", "clone3", "fork", "vfork"})
_MARKS = frozenset({"access", "faccessat", "faccessat2"})


@dataclass(frozen=True, slots=True)
class Unknown:
    """Bytes that a call put into a file and that strace did not print.

    ``source`` is the inode and offset they came from, where that file is known to the model.
    """

    line: int
    inode: int
    offset: int
    length: int
    source: tuple[int, int] | None = None


@dataclass(slots=True)
class Findings:
    """What has to be found out after a first pass.

    ``arrivals`` is the line at which a file came from outside to its inode number. ``presumed`` are
    files outside that are taken for new, which only the real file can tell.
    """

    unknowns: list[Unknown] = field(default_factory=list)
    arrivals: dict[int, int] = field(default_factory=dict)
    presumed: set[int] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.unknowns or self.arrivals or self.presumed)


@dataclass(frozen=True, slots=True)
class Known:
    """What was found out.

    ``contents`` are in the order of the unknowns, ``arrivals`` has content and mode for each line.
    """

    contents: Sequence[bytes] = ()
    arrivals: abc.Mapping[int, tuple[bytes, int]] = field(default_factory=dict)


def births_in(events: Iterable[Event]) -> dict[int, list[Call]]:
    """Return the calls that made tasks, by the task's number."""
    births: dict[int, list[Call]] = defaultdict(list)
    for event in events:
        if isinstance(event, Call) and event.name in _CLONES and event.succeeded:
            assert event.result is not None  # it succeeded
            births[event.result].append(event)
    return births


class StraceModel:
    """Feeds a builder with calls.

    ``marks`` handles calls that name a path below ``/.statepersist/``: positions that the
    recording put into the stream. ``is_state`` says of absolute paths what must be recorded.
    """

    def __init__(
        self,
        builder: TraceBuilder,
        *,
        births: abc.Mapping[int, Sequence[Call]],
        known: Known | None = None,
        is_state: Callable[[str], bool] = lambda _: True,
        on_mark: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.builder = builder
        self.tasks: dict[int, Task] = {}
        self.findings = Findings()
        self._births = births
        self.known = known or Known()
        self.is_state = is_state
        self._on_mark = on_mark
        self._numbers = 0
        self._changes: list[Change] = []
        self._real: dict[str, str] = {}
        self._horizon = 0
        self._unseen: set[int] = set()
        """Tasks whose calls are not the subject's for now."""
        self.mapped: set[int] = set()
        """Inodes that some memory can change now."""
        self.map_events: list[MapEvent] = []
        """The lives of mapped files, with positions in the builder's log."""
        self._looked_at: set[int] = set()
        self._syncing: set[int] = set()
        """Tasks that look at what is mapped before and after the sync that they make."""
        self.moment: Moment = (None, None, 0)

    def add_task(self, pid: int, cwd: str, program: str, umask: int = 0o022) -> Task:
        """Make a task known that exists when the recording begins."""
        surroundings = Surroundings(self.directory_of(cwd), umask)
        task = Task(self.next_number(), Descriptors(self._closed), surroundings, Memory(), program)
        self.tasks[pid] = task
        return task

    def add_thread(self, pid: int, of: int) -> None:
        """Make a thread of a known task known."""
        shared = frozenset({"CLONE_FILES", "CLONE_FS", "CLONE_VM"})
        self.tasks[pid] = self.tasks[of].child(self.next_number(), shared)

    def feed(self, event: Event, horizon: int = 0) -> None:
        """Take in one event; see `in_order` for the ``horizon``."""
        self._horizon = horizon
        if self._changes:
            self._changes = [change for change in self._changes if change.end >= horizon]
        if isinstance(event, Exit):
            task = self.tasks.pop(event.task, None)
            if task is not None:
                task.exit()
                self.some_unmapped()
            return
        if event.name in _MARKS:
            self._mark(event)
            return
        if event.task in self._unseen:
            return
        handler = HANDLERS.get(event.name)
        if handler is None:
            return
        task = self.tasks.get(event.task) or self._born(event)
        if event.result is None:
            self._never_returned(event, task)
            return
        if event.error and event.name not in _SYNCS:
            return
        site = Site(task.program, event.end + 1, event.name)
        self.moment = site, event.time, task.number
        handler(self, task, event)

    def next_number(self) -> int:
        """Return the number of a new task in the trace."""
        self._numbers += 1
        return self._numbers - 1

    def _mark(self, call: Call) -> None:
        path = text(call.arguments[0 if call.name == "access" else 1])
        if not path.startswith(b"/.statepersist/"):
            return
        if path.endswith(b"/unseen"):
            self._unseen.add(call.task)
        elif path.endswith(b"/seen"):
            self._unseen.discard(call.task)
        elif path.endswith(b"/syncing"):
            self._syncing.add(call.task)
        elif path.endswith(b"/synced"):
            self._syncing.discard(call.task)
        else:
            self._on_mark(path.decode())

    def _never_returned(self, call: Call, task: Task) -> None:
        if call.name not in _HARMLESS_WHEN_LOST:
            self.not_known(
                f"the call {call.name} of {task.program} was still running when its process or "
                "the recording ended, so whether it took effect is not known",
                task.program,
            )

    def _born(self, event: Call) -> Task:
        """Return the task that a clone made which may not have returned in its parent yet."""
        for birth in reversed(self._births.get(event.task, ())):
            if birth.start < event.start or event.start < 0:
                parent = self.tasks.get(birth.task)
                if parent is not None and birth.task != event.task:
                    task = parent.child(self.next_number(), clone_flags(birth))
                    self.tasks[event.task] = task
                    return task
        self.not_known(
            f"process {event.task} was not there when the recording began and its start was not "
            "seen",
            str(event.task),
        )
        return self.add_task(event.task, "/", "")

    def not_known(self, why: str, culprit: str) -> None:
        """Note that a part of what happened cannot be known."""
        self.builder.doubt(
            BlindSpot(f"what happened on disk is not covered: {why}", culprit=culprit)
        )

    def directory_of(self, path: str) -> int | str:
        """Return a directory's inode number, or its path where it is of no interest."""
        place = self._locate_absolute(path, follow=True)
        return path if place.inode is None else place.inode

    def _locate_absolute(self, path: str, *, follow: bool) -> Place:
        directory = self.builder.directory
        if path == directory or path.startswith(directory + "/"):
            return self.builder.locate(path, follow=follow)
        head, _, tail = path.rpartition("/")
        if tail in ("", ".", ".."):
            head, tail = path, ""
        # Links outside the directory are the real file system's: they are not expected to change.
        real = self._real.get(head)
        if real is None:
            real = self._real[head] = os.path.realpath(head or "/")
        return self.builder.locate(os.path.join(real, tail) if tail else real, follow=follow)

    def _base(self, task: Task, argument: str | None) -> int | str:
        if argument is None:
            return task.surroundings.cwd
        found = descriptor(argument)
        if found.number is None:
            return task.surroundings.cwd
        file = self.file_of(task, found)
        if file is not None:
            return file.inode
        return os.fsdecode(found.path) if found.path is not None else task.surroundings.cwd

    def locate(
        self, task: Task, directory: str | None, path: bytes, *, follow: bool = True
    ) -> Place:
        """Find what a call names: a path, relative to a descriptor or the working directory."""
        name = os.fsdecode(path)
        held = _PROC_DESCRIPTOR.fullmatch(name)
        if held is not None and follow:
            file = task.descriptors.get(int(held[1]))
            if file is not None:
                return Place(OUTSIDE, "", file.inode)
        if name.startswith("/"):
            return self._locate_absolute(name, follow=follow)
        base = self._base(task, directory)
        if not name:
            return Place(OUTSIDE, "", base if isinstance(base, int) else None)
        if isinstance(base, int):
            return self.builder.locate(name, start=base, follow=follow)
        return self._locate_absolute(os.path.join(base, name), follow=follow)

    def file_of(self, task: Task, found: Descriptor) -> OpenFile | None:
        """Return the open file behind a descriptor, one that came from somewhere unseen as well."""
        assert found.number is not None  # AT_FDCWD is no file
        file = task.descriptors.get(found.number)
        if file is not None or found.path is None or not found.path.startswith(b"/"):
            return file
        path = os.fsdecode(found.path)
        if found.deleted or not path.startswith(self.builder.directory + "/"):
            return None
        inode = self.builder.locate(path, follow=False).inode
        if inode is None or not self.is_state(path):
            return None
        file = OpenFile(inode, position=None)
        self.builder.opened(inode)
        task.descriptors.set(found.number, file)
        return file

    def argument_file(self, task: Task, call: Call, index: int = 0) -> OpenFile | None:
        """Return the open file that an argument names."""
        return self.file_of(task, descriptor(call.arguments[index]))

    def _closed(self, file: OpenFile) -> None:
        self.builder.close(file.inode, self.moment, written=file.written)

    def changed(
        self,
        call: Call,
        inode: int,
        *,
        durable: bool = False,
        synced: tuple[int, int] = (0, 1 << 62),
    ) -> None:
        """Note a change or sync of an inode, and doubt its order against calls at the same time."""
        known = self.builder[inode]
        kind = kind_of(call.name, directory=known.entries is not None, durable=durable)
        change = Change(call.start, call.end, call.task, inode, kind, call.name, known.path)
        for other in self._changes:
            both_inside = known.inside and self.builder[other.inode].inside
            if (both_inside or inode == other.inode) and conflict(other, change):
                self.not_known(
                    f"{call.name} of {known.path!r} and {other.name} of {other.path!r} ran at the "
                    "same time in two threads or processes, so their order is not known",
                    known.path,
                )
        if self._horizon <= call.end:
            self._changes.append(change)
        if inode in self.mapped and kind in (Kind.FILE_SYNC, Kind.WIDE_SYNC):
            self.synced_map(call, inode, *synced)

    # -- memory that shows files ---------------------------------------------------------------

    def now_mapped(self, inode: int) -> None:
        """Note that a file can be changed through memory from here on."""
        if inode not in self.mapped:
            self.mapped.add(inode)
            self._map_event(MapKind.OPENED, inode)

    def some_unmapped(self) -> None:
        """Note which files no memory can change any more."""
        if not self.mapped:
            return
        still = {
            mapping.file.inode
            for task in self.tasks.values()
            for mapping in task.memory.maps
            if mapping.writable
        }
        for inode in sorted(self.mapped - still):
            self.mapped.discard(inode)
            self._map_event(MapKind.CLOSED, inode)

    def synced_map(self, call: Call, inode: int, begin: int = 0, end: int = 1 << 62) -> None:
        """Note a sync of a file whose bytes can change without a call."""
        watched = call.task in self._syncing and inode in self._looked_at
        self.map_events.append(
            MapEvent(
                MapKind.SYNC,
                inode,
                len(self.builder),
                name=call.name,
                begin=begin,
                end=end,
                watched=watched,
            )
        )

    def looked(self, path: str, look: Look | None) -> None:
        """Note what the file at an absolute path held when the recorded process looked at it."""
        if not path.startswith(self.builder.directory + "/"):
            return
        inode = self.builder.locate(path, follow=False).inode
        if inode is None:
            return
        if look is None:
            self._looked_at.discard(inode)
            return
        self._looked_at.add(inode)
        self._map_event(MapKind.LOOK, inode, look)

    def saved(self) -> None:
        """Note an acknowledgement, whose place among changes of maps matters."""
        self._map_event(MapKind.SAVED, -1)

    def _map_event(self, kind: MapKind, inode: int, look: Look | None = None) -> None:
        name = self.builder[inode].path if inode >= 0 else ""
        self.map_events.append(MapEvent(kind, inode, len(self.builder), name=name, look=look))

    def shown_path(self, place: Place) -> str:
        """Return the absolute path of a place inside."""
        above = self.builder[place.parent].path
        return os.path.join(self.builder.directory, above, place.name)

    def mode_of(self, task: Task, mode: str) -> int:
        """Return the mode that a new file gets."""
        return number(mode) & 0o7777 & ~task.surroundings.umask

    def position(self, call: Call, file: OpenFile, *, append: bool = False) -> int | None:
        """Return where a call writes that names no offset; ``None`` (and a doubt) if not known."""
        if append:
            return self.builder[file.inode].size
        if file.position is None:
            path = self.builder[file.inode].path
            self.not_known(
                f"{call.name} went to a descriptor of {path!r} that was open before the recording "
                "or came from another process, so where in the file it landed is not known",
                path,
            )
        return file.position

    def put(
        self,
        call: Call,
        file: OpenFile,
        offset: int,
        data: bytes,
        durability: Durability = Durability.NONE,
    ) -> None:
        """Record bytes that reached a file."""
        if not data:
            return
        file.written = True
        self.builder.write(file.inode, offset, data, self.moment, durability)
        self.changed(call, file.inode, durable=durability is not Durability.NONE)

    def unknown(
        self, call: Call, inode: int, offset: int, length: int, source: tuple[int, int] | None
    ) -> bytes:
        """Return bytes that strace did not print, or zeros while they are not found out."""
        index = len(self.findings.unknowns)
        self.findings.unknowns.append(Unknown(call.end + 1, inode, offset, length, source))
        if index < len(self.known.contents):
            return self.known.contents[index]
        return bytes(length)


HANDLERS = {**CONTENTS, **NAMES}
_SYNCS = frozenset({"fsync", "fdatasync", "syncfs"})
_HARMLESS_WHEN_LOST = names_in(
    "read readv lseek close close_range dup dup2 dup3 fcntl fcntl64 fsync fdatasync sync "
    "syncfs msync mmap mmap2 mprotect pkey_mprotect munmap mremap clone clone3 fork vfork "
    "execve execveat unshare chdir fchdir umask ioctl"
)

SYSTEM_CALLS = (*HANDLERS, *sorted(_MARKS))
"""The names of the system calls that must be traced."""
