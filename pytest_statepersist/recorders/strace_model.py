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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_statepersist.core.operations import OUTSIDE, Durability, Site
from pytest_statepersist.errors import BlindSpot
from pytest_statepersist.recorders.builder import Moment, Place, TraceBuilder
from pytest_statepersist.recorders.strace_parser import (
    Call,
    Descriptor,
    Event,
    Exit,
    descriptor,
    flags,
    members,
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
from pytest_statepersist.recorders.strace_tasks import Mapping as MemoryMap

__all__ = ["SYSTEM_CALLS", "Findings", "Known", "StraceModel", "Unknown"]

_PROC_DESCRIPTOR = re.compile(r"/(?:proc/(?:self|thread-self|\d+)|dev)/fd/(\d+)")
_POINTED = re.compile(r"\[(-?\d+)\]")
_TIME = re.compile(r"\{tv_sec=(-?\d+), tv_n?u?sec=(\d+)\}")
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

    ``mapped`` is inode number to the line at which it became writable through memory, ``arrivals``
    the line at which a file came from outside to its inode number.
    """

    unknowns: list[Unknown] = field(default_factory=list)
    mapped: dict[int, int] = field(default_factory=dict)
    arrivals: dict[int, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.unknowns or self.mapped or self.arrivals)


@dataclass(frozen=True, slots=True)
class Known:
    """What was found out.

    ``contents`` are in the order of the unknowns; ``mapped`` has pieces (offset, bytes) for each
    inode, ``arrivals`` content and mode for each line.
    """

    contents: Sequence[bytes] = ()
    mapped: Mapping[int, tuple[tuple[int, bytes], ...]] = field(default_factory=dict)
    arrivals: Mapping[int, tuple[bytes, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Change:
    """A call that changed or synced something: for the order of calls at the same time."""

    start: int
    end: int
    task: int
    inode: int
    plain: bool
    name: str
    path: str


class StraceModel:
    """Feeds a builder with calls.

    ``marks`` handles calls that name a path below ``/.statepersist/``: positions that the
    recording put into the stream. ``is_state`` says of absolute paths what must be recorded.
    """

    def __init__(
        self,
        builder: TraceBuilder,
        *,
        births: Mapping[int, Sequence[Call]],
        known: Known | None = None,
        is_state: Callable[[str], bool] = lambda _: True,
        on_mark: Callable[[str], None] = lambda _: None,
        lines: range | None = None,
    ) -> None:
        self.builder = builder
        self.tasks: dict[int, Task] = {}
        self.findings = Findings()
        self._births = births
        self._known = known or Known()
        self._is_state = is_state
        self._on_mark = on_mark
        self._lines = lines
        self._numbers = 0
        self._changes: list[_Change] = []
        self._real: dict[str, str] = {}
        self._mapped: dict[int, MemoryMap] = {}
        self._inherited: dict[tuple[int, int], OpenFile] = {}
        self._moment: Moment = (None, None, 0)

    def add_task(self, pid: int, cwd: str, program: str, umask: int = 0o022) -> Task:
        """Make a task known that exists when the recording begins."""
        surroundings = Surroundings(self._directory_of(cwd), umask)
        task = Task(self._number(), Descriptors(self._closed), surroundings, Memory(), program)
        self.tasks[pid] = task
        return task

    def add_thread(self, pid: int, of: int) -> None:
        """Make a thread of a known task known."""
        shared = frozenset({"CLONE_FILES", "CLONE_FS", "CLONE_VM"})
        self.tasks[pid] = self.tasks[of].child(self._number(), shared)

    def feed(self, event: Event) -> None:
        """Take in one event."""
        if isinstance(event, Exit):
            task = self.tasks.pop(event.task, None)
            if task is not None:
                task.exit()
            return
        if event.name in _MARKS:
            self._mark(event)
            return
        handler = _HANDLERS.get(event.name)
        if handler is None:
            return
        task = self.tasks.get(event.task) or self._born(event)
        if event.result is None:
            self._never_returned(event, task)
            return
        if event.error and event.name not in _SYNCS:
            return
        site = Site(task.program, event.end + 1, event.name)
        self._moment = site, event.time, task.number
        handler(self, task, event)

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers - 1

    def _mark(self, call: Call) -> None:
        path = text(call.arguments[0 if call.name == "access" else 1])
        if path.startswith(b"/.statepersist/"):
            self._on_mark(path.decode())

    def _never_returned(self, call: Call, task: Task) -> None:
        if call.name not in _HARMLESS_WHEN_LOST:
            self._not_known(
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
                    task = parent.child(self._number(), _clone_flags(birth))
                    self.tasks[event.task] = task
                    return task
        self._not_known(
            f"process {event.task} was not there when the recording began and its start was not "
            "seen",
            str(event.task),
        )
        return self.add_task(event.task, "/", "")

    def _not_known(self, why: str, culprit: str) -> None:
        self.builder.doubt(
            BlindSpot(f"what happened on disk is not covered: {why}", culprit=culprit)
        )

    # -- paths and descriptors -----------------------------------------------------------------

    def _directory_of(self, path: str) -> int | str:
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
        file = self._file(task, found)
        if file is not None:
            return file.inode
        return os.fsdecode(found.path) if found.path is not None else task.surroundings.cwd

    def _locate(
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

    def _file(self, task: Task, found: Descriptor) -> OpenFile | None:
        """Return the open file behind a descriptor, one that came from somewhere unseen as well."""
        assert found.number is not None  # AT_FDCWD is no file
        file = task.descriptors.get(found.number)
        if file is not None or found.path is None or not found.path.startswith(b"/"):
            return file
        path = os.fsdecode(found.path)
        if found.deleted or not path.startswith(self.builder.directory + "/"):
            return None
        inode = self.builder.locate(path, follow=False).inode
        if inode is None or not self._is_state(path):
            return None
        file = OpenFile(inode, position=None)
        self.builder.opened(inode)
        task.descriptors.set(found.number, file)
        return file

    def _argument_file(self, task: Task, call: Call, index: int = 0) -> OpenFile | None:
        return self._file(task, descriptor(call.arguments[index]))

    def _closed(self, file: OpenFile) -> None:
        self.builder.close(file.inode, self._moment, written=file.written)

    # -- order ---------------------------------------------------------------------------------

    def _changed(self, call: Call, inode: int, *, plain: bool = False) -> None:
        """Note a change or sync of an inode; calls at the same time must not depend on each other.

        ``plain`` are writes: two to different files may come in either order.
        """
        known = self.builder[inode]
        change = _Change(call.start, call.end, call.task, inode, plain, call.name, known.path)
        for other in reversed(self._changes):
            if other.end < call.start:
                break
            if other.task == call.task or (plain and other.plain and inode != other.inode):
                continue
            if inode == other.inode or (known.inside and self.builder[other.inode].inside):
                self._not_known(
                    f"{call.name} of {known.path!r} and {other.name} of {other.path!r} ran at the "
                    "same time in two threads or processes, so their order is not known",
                    known.path,
                )
        self._changes.append(change)
        if inode in self._mapped:
            mapping = self._mapped[inode]
            if mapping.file.inode == inode and inode in self.findings.mapped:
                self._unclear_map(inode, call.name)

    def _unclear_map(self, inode: int, name: str) -> None:
        path = self.builder[inode].path
        self._not_known(
            f"{path!r} was mapped into memory for writing when {name} ran on it, and which bytes "
            "had been changed by then cannot be seen",
            path,
        )

    # -- files: open and close -----------------------------------------------------------------

    def _open(self, task: Task, call: Call) -> None:
        arguments = call.arguments
        if call.name == "creat":
            self._opened(task, call, None, arguments[0], "O_WRONLY|O_CREAT|O_TRUNC", arguments[1])
        elif call.name == "open":
            mode = arguments[2] if len(arguments) > 2 else "0"
            self._opened(task, call, None, arguments[0], arguments[1], mode)
        elif call.name == "openat2":
            how = dict(part.partition("=")[::2] for part in members(arguments[2]))
            self._opened(task, call, arguments[0], arguments[1], how["flags"], how.get("mode", "0"))
        else:
            mode = arguments[3] if len(arguments) > 3 else "0"
            self._opened(task, call, arguments[0], arguments[1], arguments[2], mode)

    def _opened(
        self, task: Task, call: Call, directory: str | None, path: str, how: str, mode: str
    ) -> None:
        wanted = flags(how)
        result = call.result
        assert result is not None  # it succeeded
        if "O_TMPFILE" in wanted:
            inode: int | None = self.builder.create(
                OUTSIDE, "", self._moment, mode=self._mode(task, mode)
            )
        else:
            inode = self._opened_inode(task, call, directory, text(path), wanted, mode)
        if inode is None or "O_PATH" in wanted:
            task.descriptors.set(result, None)
            return
        self.builder.opened(inode)
        file = OpenFile(inode, append="O_APPEND" in wanted, durability=_durability(wanted))
        task.descriptors.set(result, file, close_on_exec="O_CLOEXEC" in wanted)

    def _opened_inode(
        self,
        task: Task,
        call: Call,
        directory: str | None,
        path: bytes,
        wanted: frozenset[str],
        mode: str,
    ) -> int | None:
        follow = "O_NOFOLLOW" not in wanted and not {"O_CREAT", "O_EXCL"} <= wanted
        place = self._locate(task, directory, path, follow=follow)
        inode = place.inode
        shown = place.name if place.parent == OUTSIDE else self._below(place)
        if not self._is_state(shown):
            return None
        if inode is None:
            fresh = "O_EXCL" in wanted or "O_TRUNC" in wanted
            if "O_CREAT" not in wanted or (place.parent == OUTSIDE and not fresh):
                return None
            if place.parent == OUTSIDE and not _is_regular(shown):
                return None
            inode = self.builder.create(
                place.parent, place.name, self._moment, mode=self._mode(task, mode)
            )
            self._changed(call, inode)
        elif "O_TRUNC" in wanted and self.builder[inode].entries is None:
            self.builder.truncate(inode, 0, self._moment)
            self._changed(call, inode)
        return inode

    def _below(self, place: Place) -> str:
        above = self.builder[place.parent].path
        return os.path.join(self.builder.directory, above, place.name)

    def _mode(self, task: Task, mode: str) -> int:
        return number(mode) & 0o7777 & ~task.surroundings.umask

    def _close(self, task: Task, call: Call) -> None:
        task.descriptors.close(_plain_descriptor(call.arguments[0]))

    def _close_range(self, task: Task, call: Call) -> None:
        how = flags(call.arguments[2])
        if "CLOSE_RANGE_UNSHARE" in how:
            task.unshare(frozenset({"CLONE_FILES"}))
        first, last = (_plain_descriptor(argument) for argument in call.arguments[:2])
        for held in task.descriptors.within(first, last):
            if "CLOSE_RANGE_CLOEXEC" in how:
                task.descriptors.mark(held, close_on_exec=True)
            else:
                task.descriptors.close(held)

    def _dup(self, task: Task, call: Call) -> None:
        result = call.result
        assert result is not None  # it succeeded
        source = descriptor(call.arguments[0])
        if source.number == result:
            return
        close_on_exec = len(call.arguments) > 2 and "O_CLOEXEC" in flags(call.arguments[2])
        file = self._file(task, source)
        task.descriptors.set(result, file, close_on_exec=close_on_exec)

    def _fcntl(self, task: Task, call: Call) -> None:
        command, result = call.arguments[1], call.result
        assert result is not None  # it succeeded
        source = descriptor(call.arguments[0])
        if command in ("F_DUPFD", "F_DUPFD_CLOEXEC"):
            file = self._file(task, source)
            task.descriptors.set(result, file, close_on_exec=command.endswith("CLOEXEC"))
        elif command == "F_SETFD" and source.number is not None:
            marked = "FD_CLOEXEC" in flags(call.arguments[2])
            task.descriptors.mark(source.number, close_on_exec=marked)
        elif command == "F_SETFL":
            changed = self._file(task, source)
            if changed is not None:
                changed.append = "O_APPEND" in flags(call.arguments[2])

    # -- files: contents -----------------------------------------------------------------------

    def _read(self, task: Task, call: Call) -> None:
        file = task.descriptors.get(_plain_descriptor(call.arguments[0]))
        if file is not None and file.position is not None and call.result is not None:
            file.position += call.result

    def _lseek(self, task: Task, call: Call) -> None:
        file = self._argument_file(task, call)
        if file is not None:
            file.position = call.result

    def _write(self, task: Task, call: Call) -> None:
        file = self._argument_file(task, call)
        if file is None:
            return
        vector = call.name in ("writev", "pwritev", "pwritev2")
        length = call.result
        assert length is not None  # it succeeded
        data = None
        if not call.arguments[1].endswith("..."):
            data = (_vector if vector else text)(call.arguments[1])[:length]
        how = flags(call.arguments[4]) if call.name == "pwritev2" else frozenset()
        durability = file.durability
        if "RWF_SYNC" in how:
            durability = Durability.FULL
        elif "RWF_DSYNC" in how and durability is Durability.NONE:
            durability = Durability.DATA
        given = number(call.arguments[3]) if call.name.startswith("p") else -1
        append = file.append or "RWF_APPEND" in how
        if given >= 0:
            offset = self.builder[file.inode].size if append else given
        else:
            found = self._position(call, file, append=append)
            if found is None:
                return
            offset = found
            file.position = offset + length
        if data is None:
            data = self._unknown(call, file.inode, offset, length, None)
        self._put(call, file, offset, data, durability)

    def _position(self, call: Call, file: OpenFile, *, append: bool = False) -> int | None:
        if append:
            return self.builder[file.inode].size
        if file.position is None:
            path = self.builder[file.inode].path
            self._not_known(
                f"{call.name} went to a descriptor of {path!r} that was open before the recording "
                "or came from another process, so where in the file it landed is not known",
                path,
            )
        return file.position

    def _put(
        self,
        call: Call,
        file: OpenFile,
        offset: int,
        data: bytes,
        durability: Durability = Durability.NONE,
    ) -> None:
        if not data:
            return
        file.written = True
        self.builder.write(file.inode, offset, data, self._moment, durability)
        self._changed(call, file.inode, plain=durability is Durability.NONE)

    def _move(
        self,
        call: Call,
        target: OpenFile | None,
        offset: int | None,
        source: OpenFile | None,
        source_offset: int | None,
    ) -> None:
        """Record bytes that went from file to file inside the kernel."""
        length = call.result
        if target is None or not length:
            return
        if offset is None:
            offset = self._position(call, target, append=target.append)
            if offset is None:
                return
            target.position = offset + length
        origin = None
        if source is not None and source_offset is not None:
            origin = source.inode, source_offset
        self._put(call, target, offset, self._unknown(call, target.inode, offset, length, origin))

    def _unknown(
        self, call: Call, inode: int, offset: int, length: int, source: tuple[int, int] | None
    ) -> bytes:
        index = len(self.findings.unknowns)
        self.findings.unknowns.append(Unknown(call.end + 1, inode, offset, length, source))
        if index < len(self._known.contents):
            return self._known.contents[index]
        return bytes(length)

    def _taken(self, call: Call, source: OpenFile | None, argument: str) -> int | None:
        """Return where bytes were taken from, and move the position of the source."""
        given = _pointed(argument)
        if source is None:
            return given
        if given is not None:
            return given
        begin = source.position
        if begin is not None and call.result is not None:
            source.position = begin + call.result
        return begin

    def _sendfile(self, task: Task, call: Call) -> None:
        target, source = (self._argument_file(task, call, index) for index in (0, 1))
        taken = self._taken(call, source, call.arguments[2])
        self._move(call, target, None, source, taken)

    def _copy_file_range(self, task: Task, call: Call) -> None:
        source, target = (self._argument_file(task, call, index) for index in (0, 2))
        taken = self._taken(call, source, call.arguments[1])
        self._move(call, target, _pointed(call.arguments[3]), source, taken)

    def _ftruncate(self, task: Task, call: Call) -> None:
        file = self._argument_file(task, call)
        if file is not None:
            file.written = True
            self._resize(call, file.inode, number(call.arguments[1]))

    def _truncate(self, task: Task, call: Call) -> None:
        inode = self._locate(task, None, text(call.arguments[0])).inode
        if inode is not None:
            self._resize(call, inode, number(call.arguments[1]))

    def _resize(self, call: Call, inode: int, size: int) -> None:
        self.builder.truncate(inode, size, self._moment)
        self._changed(call, inode)

    def _fallocate(self, task: Task, call: Call) -> None:
        file = self._argument_file(task, call)
        if file is None:
            return
        how = flags(call.arguments[1])
        offset, length = number(call.arguments[2]), number(call.arguments[3])
        size = self.builder[file.inode].size
        end = offset + length
        file.written = True
        if how & {"FALLOC_FL_COLLAPSE_RANGE", "FALLOC_FL_INSERT_RANGE"}:
            path = self.builder[file.inode].path
            self._not_known(f"fallocate moved a part of {path!r}, which no model knows", path)
            return
        if how & {"FALLOC_FL_PUNCH_HOLE", "FALLOC_FL_ZERO_RANGE"} and offset < size:
            zeroed = min(end, size) - offset
            self.builder.zero_range(file.inode, offset, zeroed, self._moment)
        if not how & {"FALLOC_FL_PUNCH_HOLE"}:
            grown = end if end > size and "FALLOC_FL_KEEP_SIZE" not in how else None
            self.builder.allocate(file.inode, self._moment, size=grown)
        self._changed(call, file.inode)

    def _clone_file(self, task: Task, call: Call) -> None:
        file = self._argument_file(task, call)
        if file is not None and call.arguments[1] in ("FICLONE", "FICLONERANGE"):
            path = self.builder[file.inode].path
            self._not_known(f"{path!r} was made a clone of another file", path)
        elif file is not None and "ATOMIC_WRITE" in call.arguments[1]:
            path = self.builder[file.inode].path
            self._not_known(f"{path!r} was written atomically by F2FS", path)

    # -- syncs ---------------------------------------------------------------------------------

    def _fsync(self, task: Task, call: Call) -> None:
        file = self._argument_file(task, call)
        if file is not None:
            only_data = call.name == "fdatasync"
            failed = bool(call.error)
            self.builder.fsync(file.inode, self._moment, data_only=only_data, failed=failed)
            self._changed(call, file.inode)

    def _sync(self, task: Task, call: Call) -> None:
        if call.error or (call.name == "syncfs" and self._argument_file(task, call) is None):
            return
        self.builder.sync_all(self._moment)
        self._changed(call, 0)
        for inode in list(self.findings.mapped):
            self._unclear_map(inode, call.name)

    def _msync(self, task: Task, call: Call) -> None:
        if call.error or "MS_SYNC" not in flags(call.arguments[2]):
            return
        address, length = number(call.arguments[0]), number(call.arguments[1])
        for mapping in task.memory.maps:
            begin = max(address, mapping.address)
            end = min(address + length, mapping.address + mapping.length)
            if mapping.shared and begin < end:
                offset = mapping.offset + begin - mapping.address
                inode = mapping.file.inode
                self.builder.sync_range(inode, offset, end - begin, self._moment)
                self._changed(call, inode)

    # -- memory --------------------------------------------------------------------------------

    def _mmap(self, task: Task, call: Call) -> None:
        how = flags(call.arguments[3])
        assert call.result is not None  # it succeeded
        length = number(call.arguments[1])
        if "MAP_FIXED" in how:
            self._forget_maps(task, call.result, length)
        if not task.descriptors.within(0, 1 << 31) or "MAP_ANONYMOUS" in how:
            return
        file = self._argument_file(task, call, 4)
        if file is None:
            return
        shared = bool(how & {"MAP_SHARED", "MAP_SHARED_VALIDATE"})
        writable = shared and "PROT_WRITE" in flags(call.arguments[2])
        offset = number(call.arguments[5])
        mapping = MemoryMap(call.result, length, offset, file, shared, writable)
        file.references += 1
        task.memory.maps.append(mapping)
        if writable:
            self._now_writable(call, mapping)

    def _now_writable(self, call: Call, mapping: MemoryMap) -> None:
        mapping.writable = True
        inode = mapping.file.inode
        mapping.file.written = True
        self._mapped[inode] = mapping
        if inode not in self.findings.mapped:
            self.findings.mapped[inode] = call.end + 1
            for offset, data in self._known.mapped.get(inode, ()):
                self.builder.write(inode, offset, data, self._moment)

    def _mprotect(self, task: Task, call: Call) -> None:
        if "PROT_WRITE" not in flags(call.arguments[2]):
            return
        address, length = number(call.arguments[0]), number(call.arguments[1])
        for mapping in task.memory.maps:
            overlaps = address < mapping.address + mapping.length
            if mapping.shared and overlaps and mapping.address < address + length:
                self._now_writable(call, mapping)

    def _munmap(self, task: Task, call: Call) -> None:
        self._forget_maps(task, number(call.arguments[0]), number(call.arguments[1]))

    def _mremap(self, task: Task, call: Call) -> None:
        address = number(call.arguments[0])
        for mapping in task.memory.maps:
            if mapping.address == address and call.result is not None:
                mapping.address, mapping.length = call.result, number(call.arguments[2])

    def _forget_maps(self, task: Task, address: int, length: int) -> None:
        """Drop the maps of a range; one that is cut in two is kept whole, which only adds doubt."""
        for mapping in list(task.memory.maps):
            inside = address <= mapping.address
            if inside and mapping.address + mapping.length <= address + _pages(length):
                task.memory.maps.remove(mapping)
                if self._mapped.get(mapping.file.inode) is mapping:
                    del self._mapped[mapping.file.inode]
                task.descriptors.release(mapping.file)

    # -- names ---------------------------------------------------------------------------------

    def _rename(self, task: Task, call: Call) -> None:
        old, new = self._two_places(task, call, "rename")
        how = flags(call.arguments[4]) if call.name == "renameat2" else frozenset()
        if "RENAME_WHITEOUT" in how:
            self._not_known(f"{old.name!r} was renamed with a whiteout", old.name)
            return
        if old.inode is None and old.parent == OUTSIDE:
            if new.parent == OUTSIDE or not old.name:
                return
            old = old._replace(inode=self._came_from_outside(call, old))
        self.builder.rename(
            old.parent,
            old.name,
            new.parent,
            new.name,
            self._moment,
            exchange="RENAME_EXCHANGE" in how,
        )
        if old.inode is not None:
            self._changed(call, old.inode)

    def _came_from_outside(self, call: Call, old: Place) -> int:
        """Make a file known that the recording did not see being made: it counts as written now."""
        content, mode = self._known.arrivals.get(call.end + 1, (b"", 0o644))
        inode = self.builder.adopt(old.name, content, self._moment, mode=mode)
        self.findings.arrivals[call.end + 1] = inode
        return inode

    def _two_places(self, task: Task, call: Call, plain: str) -> tuple[Place, Place]:
        a = call.arguments
        if call.name == plain:
            old = self._locate(task, None, text(a[0]), follow=False)
            return old, self._locate(task, None, text(a[1]), follow=False)
        follow = call.name == "linkat" and "AT_SYMLINK_FOLLOW" in flags(a[4])
        old = self._locate(task, a[0], text(a[1]), follow=follow)
        return old, self._locate(task, a[2], text(a[3]), follow=False)

    def _link(self, task: Task, call: Call) -> None:
        old, new = self._two_places(task, call, "link")
        inode = old.inode
        if inode is None:
            if old.parent != OUTSIDE or new.parent == OUTSIDE or not old.name:
                return
            inode = self._came_from_outside(call, old)
        self.builder.link(inode, new.parent, new.name, self._moment)
        self._changed(call, inode)

    def _unlink(self, task: Task, call: Call) -> None:
        place, directory = self._named(task, call), call.name == "rmdir"
        if call.name == "unlinkat":
            directory = "AT_REMOVEDIR" in flags(call.arguments[2])
        if place.inode is None:
            shown = place.name if place.parent == OUTSIDE else self._below(place)
            if place.parent == OUTSIDE or not self._is_state(shown):
                return
        else:
            self._changed(call, place.inode)
        if directory:
            self.builder.rmdir(place.parent, place.name, self._moment)
        else:
            self.builder.unlink(place.parent, place.name, self._moment)

    def _named(self, task: Task, call: Call) -> Place:
        """Return the last component that a call names, whether or not the call has a directory."""
        if call.name.endswith("at"):
            return self._locate(task, call.arguments[0], text(call.arguments[1]), follow=False)
        return self._locate(task, None, text(call.arguments[0]), follow=False)

    def _mkdir(self, task: Task, call: Call) -> None:
        place = self._named(task, call)
        mode = self._mode(task, call.arguments[-1])
        self._changed(call, self.builder.mkdir(place.parent, place.name, self._moment, mode=mode))

    def _mknod(self, task: Task, call: Call) -> None:
        at = 1 if call.name == "mknod" else 2
        kind, _, mode = call.arguments[at].rpartition("|")
        place = self._named(task, call)
        if kind in ("", "S_IFREG"):
            made = self._mode(task, mode)
            inode = self.builder.create(place.parent, place.name, self._moment, mode=made)
            self._changed(call, inode)
        elif place.parent != OUTSIDE:
            self._not_known(f"{place.name!r} is a {kind}, not a file", place.name)

    def _symlink(self, task: Task, call: Call) -> None:
        target = os.fsdecode(text(call.arguments[0]))
        directory = call.arguments[1] if call.name == "symlinkat" else None
        place = self._locate(task, directory, text(call.arguments[-1]), follow=False)
        inode = self.builder.symlink(place.parent, place.name, target, self._moment)
        self._changed(call, inode)

    # -- attributes ----------------------------------------------------------------------------

    def _attribute_inode(self, task: Task, call: Call) -> int | None:
        """Return the inode of chmod and its family, by descriptor, by path, or by both."""
        a, name = call.arguments, call.name
        if name in ("fchmod", "fchown", "fsetxattr", "fremovexattr"):
            file = self._argument_file(task, call)
            return None if file is None else file.inode
        follow = not name.startswith("l") and not any("NOFOLLOW" in part for part in a[2:])
        if name in ("fchmodat", "fchmodat2", "fchownat", "utimensat", "futimesat"):
            path = b"" if a[1] == "NULL" else text(a[1])
            return self._locate(task, a[0], path, follow=follow).inode
        return self._locate(task, None, text(a[0]), follow=follow).inode

    def _chmod(self, task: Task, call: Call) -> None:
        inode = self._attribute_inode(task, call)
        if inode is not None:
            at = 2 if call.name.startswith("fchmodat") else 1
            mode = number(call.arguments[at]) & 0o7777
            self.builder.set_attributes(inode, self._moment, mode=mode)
            self._changed(call, inode)

    def _chown(self, task: Task, call: Call) -> None:
        inode = self._attribute_inode(task, call)
        at = 2 if call.name == "fchownat" else 1
        owner = number(call.arguments[at]), number(call.arguments[at + 1])
        if inode is not None and min(owner) >= 0:
            self.builder.set_attributes(inode, self._moment, owner=owner)
            self._changed(call, inode)

    def _utime(self, task: Task, call: Call) -> None:
        inode = self._attribute_inode(task, call)
        if inode is None:
            return
        times = call.arguments[2 if call.name in ("utimensat", "futimesat") else 1]
        mtime = self._moment[1]
        if times != "NULL":
            if call.name == "utime":
                found = re.search(r"modtime=(-?\d+)", times)
                mtime = int(found[1]) * 10**9 if found else None
            else:
                second = members(times)[1]
                if "UTIME_OMIT" in second:
                    return
                given = _TIME.match(second)
                if given is not None:
                    unit = 1 if "nsec" in second else 1000
                    mtime = int(given[1]) * 10**9 + int(given[2]) * unit
        self.builder.set_attributes(inode, self._moment, mtime=mtime)
        self._changed(call, inode)

    def _xattr(self, task: Task, call: Call) -> None:
        inode = self._attribute_inode(task, call)
        if inode is not None:
            name = os.fsdecode(text(call.arguments[1]))
            removed = "remove" in call.name
            value = None if removed else text(call.arguments[2])
            self.builder.set_attributes(inode, self._moment, xattrs=((name, value),))
            self._changed(call, inode)

    # -- processes -----------------------------------------------------------------------------

    def _clone(self, task: Task, call: Call) -> None:
        child = call.result
        if child and child not in self.tasks:
            self.tasks[child] = task.child(self._number(), _clone_flags(call))

    def _execve(self, task: Task, call: Call) -> None:
        program = task.program
        at = 1 if call.name == "execveat" else 0
        if len(call.arguments) > at:
            program = os.path.basename(os.fsdecode(text(call.arguments[at]))) or program
        task.exec(program)

    def _unshare(self, task: Task, call: Call) -> None:
        task.unshare(flags(call.arguments[0]))

    def _chdir(self, task: Task, call: Call) -> None:
        if call.name == "fchdir":
            found = descriptor(call.arguments[0])
            file = self._file(task, found)
            if file is not None:
                task.surroundings.cwd = file.inode
            elif found.path is not None:
                task.surroundings.cwd = self._directory_of(os.fsdecode(found.path))
            return
        path = text(call.arguments[0])
        place = self._locate(task, None, path)
        if place.inode is not None:
            task.surroundings.cwd = place.inode
        elif place.parent == OUTSIDE:
            task.surroundings.cwd = place.name

    def _umask(self, task: Task, call: Call) -> None:
        task.surroundings.umask = number(call.arguments[0])

    def _refuse(self, task: Task, call: Call) -> None:
        if call.name == "io_submit" and self.builder.directory.encode().hex() not in (
            "".join(call.arguments).replace("\\x", "")
        ):
            return
        what = {
            "io_uring_setup": "io_uring, whose operations are no system calls",
            "io_uring_enter": "io_uring, whose operations are no system calls",
            "io_submit": "asynchronous I/O (io_submit), whose end is not seen",
            "chroot": "another root directory, so that its paths mean something else",
            "pivot_root": "another root directory, so that its paths mean something else",
        }[call.name]
        self._not_known(
            f"{task.program} uses {what}; switch it off for this test (most libraries have a "
            "setting or an environment variable)",
            task.program,
        )


def _plain_descriptor(argument: str) -> int:
    return int(argument.partition("<")[0], 0)


def _pages(length: int) -> int:
    return -(-length // 4096) * 4096


def _pointed(argument: str) -> int | None:
    """Decode ``[10]`` or ``[10] => [15]``: an offset that the kernel was given by address."""
    found = _POINTED.match(argument)
    return None if found is None else int(found[1])


def _vector(argument: str) -> bytes:
    pieces = []
    for part in members(argument):
        base = members(part)[0].partition("=")[2]
        pieces.append(b"" if base == "NULL" else text(base))
    return b"".join(pieces)


def _durability(wanted: frozenset[str]) -> Durability:
    if wanted & {"O_SYNC", "__O_SYNC"}:
        return Durability.FULL
    return Durability.DATA if "O_DSYNC" in wanted else Durability.NONE


def _is_regular(path: str) -> bool:
    """Say whether a path outside may be a file: device nodes and pipes are left alone."""
    return not path.startswith(("/dev/", "/proc/", "/sys/")) or path.startswith("/dev/shm/")


def _clone_flags(call: Call) -> frozenset[str]:
    found = re.search(r"flags=([A-Z_|0-9a-fx]+)", " ".join(call.arguments))
    if call.name == "vfork":
        return frozenset({"CLONE_VM"})
    return frozenset() if found is None else flags(found[1])


_Handler = Callable[[StraceModel, Task, Call], None]

_HANDLERS: dict[str, _Handler] = {
    name: handler
    for names, handler in (
        ("open openat openat2 creat", StraceModel._open),
        ("close", StraceModel._close),
        ("close_range", StraceModel._close_range),
        ("dup dup2 dup3", StraceModel._dup),
        ("fcntl fcntl64", StraceModel._fcntl),
        ("read readv", StraceModel._read),
        ("lseek", StraceModel._lseek),
        ("write writev pwrite64 pwritev pwritev2", StraceModel._write),
        ("sendfile sendfile64", StraceModel._sendfile),
        ("copy_file_range splice", StraceModel._copy_file_range),
        ("ftruncate ftruncate64", StraceModel._ftruncate),
        ("truncate truncate64", StraceModel._truncate),
        ("fallocate", StraceModel._fallocate),
        ("ioctl", StraceModel._clone_file),
        ("fsync fdatasync", StraceModel._fsync),
        ("sync syncfs", StraceModel._sync),
        ("msync", StraceModel._msync),
        ("mmap mmap2", StraceModel._mmap),
        ("mprotect pkey_mprotect", StraceModel._mprotect),
        ("munmap", StraceModel._munmap),
        ("mremap", StraceModel._mremap),
        ("rename renameat renameat2", StraceModel._rename),
        ("link linkat", StraceModel._link),
        ("unlink unlinkat rmdir", StraceModel._unlink),
        ("mkdir mkdirat", StraceModel._mkdir),
        ("mknod mknodat", StraceModel._mknod),
        ("symlink symlinkat", StraceModel._symlink),
        ("chmod fchmod fchmodat fchmodat2", StraceModel._chmod),
        ("chown lchown fchown fchownat", StraceModel._chown),
        ("utimensat utimes futimesat utime", StraceModel._utime),
        ("setxattr lsetxattr fsetxattr", StraceModel._xattr),
        ("removexattr lremovexattr fremovexattr", StraceModel._xattr),
        ("clone clone3 fork vfork", StraceModel._clone),
        ("execve execveat", StraceModel._execve),
        ("unshare", StraceModel._unshare),
        ("chdir fchdir", StraceModel._chdir),
        ("umask", StraceModel._umask),
        ("io_uring_setup io_uring_enter io_submit chroot pivot_root", StraceModel._refuse),
    )
    for name in names.split()
}

_SYNCS = frozenset({"fsync", "fdatasync"})
_HARMLESS_WHEN_LOST = frozenset(
    [
        "read",
        "readv",
        "lseek",
        "close",
        "close_range",
        "dup",
        "dup2",
        "dup3",
        "fcntl",
        "fcntl64",
        "fsync",
        "fdatasync",
        "sync",
        "syncfs",
        "msync",
        "mmap",
        "mmap2",
        "mprotect",
        "pkey_mprotect",
        "munmap",
        "mremap",
        "clone",
        "clone3",
        "fork",
        "vfork",
        "execve",
        "execveat",
        "unshare",
        "chdir",
        "fchdir",
        "umask",
        "ioctl",
    ]
)

SYSTEM_CALLS = (*_HANDLERS, *sorted(_MARKS))
"""The names of the system calls that must be traced."""
