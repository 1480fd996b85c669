"""Records what SQLite does to files, from inside the running process.

Belongs here: what each of SQLite's system calls and syncs means for the trace. Rules:

1. Methods are called in one turn of the builder's, right after the real call (`sqlite_calls`).
2. Files are told apart by their real identity, so that any path to them will do.
3. The ``-shm`` file of WAL mode is shared memory and not state: nothing of it is recorded.

Not seen: whether the disk itself refused the sync of a directory (one that fault injection lets
fail is seen), and other copies of SQLite in the process (the self-check finds what those write).
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable
from threading import get_ident
from types import CodeType, FrameType

from pytest_statepersist.core.operations import ROOT, Site
from pytest_statepersist.errors import BlindSpot
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.builder import (
    NOWHERE,
    Clock,
    Moment,
    Place,
    TraceBuilder,
)
from pytest_statepersist.recorders.callsite import CallSites
from pytest_statepersist.recorders.sqlite_calls import hooks
from pytest_statepersist.recorders.sqlite_quick import DROPPED_WITH_OWNER, PAGE, OpenFile

__all__ = ["SqliteRecorder", "is_shared_memory"]

_RECENT = 8
SHARED_MEMORY = "-shm"
_BITS = 0o7777
_fstat, _get_ident = real.fstat, get_ident
_HEADER = b"SQLite format 3\0"
_DOTS = frozenset({"", ".", ".."})
_PATHS = 256
"""How many paths are remembered."""


class SqliteRecorder:
    """Feeds a builder with what SQLite does between `start` and `stop`.

    ``clock`` gives call site, time and task of the running call from the frame that called
    SQLite; the Python recorder lends its own, so that both give one trace.
    """

    __slots__ = (
        "again",
        "builder",
        "clock",
        "directories",
        "failure",
        "files",
        "frame",
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
        "now",
        "recent",
        "seen",
        "turn",
        "unfinished_sync",
        "writes",
    )

    def __init__(self, builder: TraceBuilder, clock: Clock | None = None) -> None:
        self.builder = builder
        self.turn = builder.turn
        self.clock = clock if clock is not None else CallSites()
        self.again = self.clock.again
        self.now = real.clock()
        self.files: dict[int, OpenFile | None] = {}
        """Descriptors that SQLite uses, ``None`` for files that do not matter."""
        self.log, self.writes = builder.log, builder.writes
        self.names, self.inodes = builder.names, builder.inodes
        self.identities = builder.identities
        self.here: dict[bytes, str] = {}
        """Names directly in the directory by the paths that SQLite opened them with."""
        self.seen: tuple[int, int, os.stat_result] | None = None
        """The descriptor that was opened last, how long the log was then, and its status."""
        self.last_code: CodeType | None = None
        self.last_line = self.last_thread = self.last_task = -1
        self.last_site: Site | None = None
        self.recent: deque[bytes] = deque(maxlen=_RECENT)
        self.directories: set[int] = set()
        self.frame: FrameType | None = None
        """The call into SQLite that is under way, set while a callback runs."""
        self.unfinished_sync: Callable[[], None] | None = None
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begin to observe every connection of this process, open ones included.

        Raises `RecorderUnavailable` where SQLite cannot be observed and `UserError` where another
        recording observes it already.
        """
        hooks().install(self)

    def stop(self) -> None:
        """Put SQLite back as it was; raises what went wrong inside a callback."""
        hooks().remove(self)
        if self.failure is not None:
            raise self.failure

    def __enter__(self) -> SqliteRecorder:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def moment(self, frame: FrameType | None) -> Moment:
        """Return the moment of the running call; one statement makes many calls."""
        if frame is None:
            return self.clock.moment()
        code, line, thread = frame.f_code, frame.f_lasti, _get_ident()
        if code is self.last_code and line == self.last_line and thread == self.last_thread:
            return self.last_site, self.again(), self.last_task
        site, time, task = self.clock.moment(frame)
        # Below code of the standard library the site is further out, and the line says nothing.
        if site is not None and site.file == code.co_filename:
            self.last_code, self.last_line, self.last_site = code, line, site
            self.last_thread, self.last_task = thread, task
        return site, time, task

    # -- descriptors ---------------------------------------------------------------------------

    def file_of(self, descriptor: int) -> OpenFile | None:
        """Return the file behind a descriptor; looks at ones that were open before."""
        try:
            return self.files[descriptor]
        except KeyError:
            pass
        status = _fstat(descriptor)
        return self._register(descriptor, self.builder.find((status.st_dev, status.st_ino)))

    def _register(self, descriptor: int, number: int | None) -> OpenFile | None:
        made = None
        if number is not None:
            self.builder.opened(number)
            made = OpenFile(number, self.builder[number])
        self.files[descriptor] = made
        return made

    def locate(self, path: str) -> Place:
        """Find a path that SQLite uses: absolute, its links followed as far as it wants them."""
        head, _, name = path.rpartition("/")
        if head == self.builder.directory and name not in (".", ".."):
            return Place(ROOT, name, self.builder.entry(ROOT, name))
        return self.builder.locate(path, follow=False)

    def opened(self, descriptor: int, path: bytes, existed: bool) -> None:
        """Note a file that SQLite opened; ``existed`` says whether it was there before."""
        builder, text = self.builder, os.fsdecode(path)
        if text.endswith(SHARED_MEMORY) and os.path.exists(text[: -len(SHARED_MEMORY)]):
            self.files[descriptor] = None
            return
        head, _, name = text.rpartition("/")
        if head == builder.directory and name not in _DOTS and len(self.here) < _PATHS:
            self.here[path] = name
        status = _fstat(descriptor)
        identity = (status.st_dev, status.st_ino)
        if existed and (number := builder.find(identity)) is not None:
            self._register(descriptor, number)
            return
        place = self.locate(text)
        if existed:
            number = place.inode
        elif stat.S_ISREG(status.st_mode):
            mode = stat.S_IMODE(status.st_mode)
            number = builder.create(
                place.parent, place.name, self.moment(self.frame), mode=mode, identity=identity
            )
        else:
            number = None
        self._register(descriptor, number)

    def made_here(self, descriptor: int, path: bytes, name: str) -> None:
        """Note a file that this call has made: a new journal, as most transactions make one."""
        status = _fstat(descriptor)
        identity = (status.st_dev, status.st_ino)
        if identity in self.identities:
            self.opened(descriptor, path, existed=False)  # what had it before went unseen
            return
        site, time, task = self.moment(self.frame)
        mode = status.st_mode & _BITS
        node = self.builder.create_here(name, mode, identity, site, time, task)
        self.files[descriptor] = OpenFile(node.number, node)
        self.seen = descriptor, len(self.log), status

    def opened_instead(self, descriptor: int, path: bytes, known: int) -> None:
        """Note a file that was opened by the name of a known one and is another.

        One that nobody knows counts as made by this call, which gives a doubt, unless a symbolic
        link led there.
        """
        status = _fstat(descriptor)
        existed = (status.st_dev, status.st_ino) in self.identities
        linked = self.inodes[known].target is not None
        self.opened(descriptor, path, existed=existed or linked)

    def status(self, descriptor: int) -> os.stat_result:
        """Return the status of an open file; the one from its opening if nothing came between."""
        seen = self.seen
        if seen is not None and seen[0] == descriptor and seen[1] == len(self.log):
            return seen[2]
        return _fstat(descriptor)

    def closed(self, descriptor: int) -> None:
        """Note that SQLite closed a file, or a directory, which it had then synced."""
        file = self.files.pop(descriptor, None)
        if file is None:
            return
        at = self.moment(self.frame) if file.written else NOWHERE
        self.builder.close(file.number, at, written=file.written)

    # -- what the calls mean -------------------------------------------------------------------

    def wrote(
        self, descriptor: int, offset: int, data: bytes, frame: FrameType | None = None
    ) -> None:
        """Note bytes that reached a file; ``frame`` is that of the call into SQLite, if known."""
        file = self.files.get(descriptor) or self.file_of(descriptor)
        if file is None:
            return
        file.written = True
        node = file.node
        if not node.inside:
            self.builder.write(file.number, offset, data, self.moment(frame))
            return
        if len(data) >= PAGE:
            # What goes into the journal is what was in the database: kept once, since memory that
            # is touched for the first time costs more than the rest here.
            recent = self.recent
            if data in recent:
                data = recent[recent.index(data)]
            else:
                recent.appendleft(data)
        # What `moment` and `TraceBuilder.write` do for a file inside, of which there are most.
        if (
            frame is not None
            and frame.f_code is self.last_code
            and frame.f_lasti == self.last_line
            and _get_ident() == self.last_thread
        ):
            site, time, task = self.last_site, self.again(), self.last_task
        else:
            site, time, task = self.moment(frame)
        node.changed = time
        end = offset + len(data)
        if end > node.size:
            node.size = end
        self.writes.run = None
        self.writes.extend((node.path, site, time, task, file.number, offset))
        self.log.append(data)

    def truncated(self, descriptor: int, size: int) -> None:
        """Note a size that was set."""
        file = self.file_of(descriptor)
        if file is not None:
            self.builder.truncate(file.number, size, self.moment(self.frame))
            file.written = True

    def allocated(self, descriptor: int, end: int) -> None:
        """Note space that was reserved up to ``end``."""
        file = self.file_of(descriptor)
        if file is not None:
            grown = end if end > file.node.size else None
            self.builder.allocate(file.number, self.moment(self.frame), size=grown)
            file.written = True

    def changed_attributes(
        self, descriptor: int, before: os.stat_result, *, same_owner: bool
    ) -> None:
        """Note a mode or owner that differs from ``before``."""
        file = self.file_of(descriptor)
        if file is None:
            return
        mode = stat.S_IMODE(before.st_mode)
        if same_owner and not mode & DROPPED_WITH_OWNER:
            # As root SQLite gives every journal the owner that it has: only a time changes.
            file.node.changed = self.now()
            return
        now = _fstat(descriptor)
        mode_changed = mode != stat.S_IMODE(now.st_mode)
        owner = (now.st_uid, now.st_gid)
        owner_changed = owner != (before.st_uid, before.st_gid)
        if mode_changed or owner_changed:
            self.builder.set_attributes(
                file.number,
                self.moment(self.frame),
                mode=stat.S_IMODE(now.st_mode) if mode_changed else None,
                owner=owner if owner_changed else None,
            )
        else:
            file.node.changed = self.moment(self.frame)[1]

    def unlinked(self, path: bytes) -> None:
        """Note that a file's name was removed."""
        name = self.here.get(path)
        if name is not None and name in self.names:
            self.builder.unlink(ROOT, name, self.moment(self.frame))
            return
        text = os.fsdecode(path)
        place = self.locate(text)
        if place.inode is not None or not text.endswith(SHARED_MEMORY):
            self.builder.unlink(place.parent, place.name, self.moment(self.frame))

    def made_directory(self, path: str) -> None:
        """Note a new directory (a lock of 'unix-dotfile')."""
        place, status = self.locate(path), os.stat(path)
        identity = (status.st_dev, status.st_ino)
        self.builder.mkdir(
            place.parent,
            place.name,
            self.moment(self.frame),
            mode=stat.S_IMODE(status.st_mode),
            identity=identity,
        )

    def removed_directory(self, path: str) -> None:
        """Note that a directory was removed."""
        place = self.locate(path)
        self.builder.rmdir(place.parent, place.name, self.moment(self.frame))

    def synced(self, descriptor: int | None, *, data_only: bool, failed: bool) -> None:
        """Note a sync of a file or directory."""
        file = None if descriptor is None else self.file_of(descriptor)
        if file is not None:
            at = self.moment(self.frame)
            self.builder.fsync(file.number, at, data_only=data_only, failed=failed)

    def cannot_see(self, descriptor: int, what: str) -> None:
        """Note that a watched file changes in a way that calls do not show."""
        file = self.file_of(descriptor)
        if file is not None and file.node.inside:
            path = file.node.path
            self.builder.doubt(
                BlindSpot(
                    f"SQLite changes {path!r} by {what}, which the sqlite recorder cannot see; "
                    "record with strace, or switch it off with PRAGMA mmap_size=0",
                    culprit=path,
                    recorder="strace",
                )
            )


def is_shared_memory(path: str) -> bool:
    """Say whether a file is the shared memory of the SQLite database beside it: no state.

    It reads the database's header. Closing a file drops the locks that this process has on it, so
    this is for before and after a recording.
    """
    if not path.endswith(SHARED_MEMORY):
        return False
    try:
        with real.open(path[: -len(SHARED_MEMORY)], "rb", buffering=0) as database:
            return database.read(len(_HEADER)) == _HEADER
    except OSError:
        return False
