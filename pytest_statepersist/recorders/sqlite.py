"""Records what SQLite does to files, from inside the running process.

Belongs here: what each of SQLite's system calls and syncs means for the trace. Rules:

1. Methods are called with the builder's lock held, right after the real call (`sqlite_calls`).
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
from dataclasses import dataclass
from types import FrameType

from pytest_statepersist.core.operations import ROOT, Durability, Write
from pytest_statepersist.errors import BlindSpot
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.builder import (
    NOWHERE,
    Clock,
    Inode,
    Place,
    TraceBuilder,
)
from pytest_statepersist.recorders.callsite import CallSites
from pytest_statepersist.recorders.sqlite_calls import hooks

__all__ = ["SqliteRecorder", "is_shared_memory"]

_PAGE = 512
"""Bytes from which on a write is a page of a database, which its journal may hold as well."""
_RECENT = 8
_DROPPED_WITH_OWNER = stat.S_ISUID | stat.S_ISGID
_SHARED_MEMORY = "-shm"
_BITS = 0o7777
_fstat, _NONE = real.fstat, Durability.NONE
_HEADER = b"SQLite format 3\0"


@dataclass(slots=True, eq=False)
class _File:
    """An open file that matters."""

    number: int
    node: Inode
    written: bool = False


class SqliteRecorder:
    """Feeds a builder with what SQLite does between `start` and `stop`.

    ``moment`` gives call site, time and task of the running call from the frame that called
    SQLite; the Python recorder lends its own, so that both give one trace.
    """

    def __init__(self, builder: TraceBuilder, moment: Clock | None = None) -> None:
        self.builder = builder
        self.acquire, self.release = builder.lock.acquire, builder.lock.release
        self.moment = moment if moment is not None else CallSites().moment
        self.now = real.clock()
        self.files: dict[int, _File | None] = {}
        """Descriptors that SQLite uses, ``None`` for files that do not matter."""
        self.log = builder.log
        self.names = builder.names
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

    # -- descriptors ---------------------------------------------------------------------------

    def file_of(self, descriptor: int) -> _File | None:
        """Return the file behind a descriptor; looks at ones that were open before."""
        try:
            return self.files[descriptor]
        except KeyError:
            pass
        status = _fstat(descriptor)
        return self._register(descriptor, self.builder.find((status.st_dev, status.st_ino)))

    def _register(self, descriptor: int, number: int | None) -> _File | None:
        made = None
        if number is not None:
            self.builder.opened(number)
            made = _File(number, self.builder[number])
        self.files[descriptor] = made
        return made

    def locate(self, path: str) -> Place:
        """Find a path that SQLite uses: absolute, its links followed as far as it wants them."""
        head, _, name = path.rpartition("/")
        if head == self.builder.directory and name not in (".", ".."):
            return Place(ROOT, name, self.builder.entry(ROOT, name))
        return self.builder.locate(path, follow=False)

    def opened(self, descriptor: int, path: str, existed: bool) -> None:
        """Note a file that SQLite opened; ``existed`` says whether it was there before."""
        builder = self.builder
        if path.endswith(_SHARED_MEMORY) and os.path.exists(path[: -len(_SHARED_MEMORY)]):
            self.files[descriptor] = None
            return
        status = _fstat(descriptor)
        identity = (status.st_dev, status.st_ino)
        head, _, name = path.rpartition("/")
        if (
            not existed
            and head == builder.directory
            and name not in self.names
            and identity not in builder.identities
            and stat.S_ISREG(status.st_mode)
        ):
            # A new journal beside its database, as most transactions make one.
            site, time, task = self.moment(self.frame)
            mode = status.st_mode & _BITS
            node = builder.create_here(name, mode, identity, site, time, task)
            self.files[descriptor] = _File(node.number, node)
            return
        if existed and (number := builder.find(identity)) is not None:
            self._register(descriptor, number)
            return
        place = self.locate(path)
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

    def closed(self, descriptor: int) -> None:
        """Note that SQLite closed a file, or a directory, which it had then synced."""
        file = self.files.pop(descriptor, None)
        if file is not None:
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
        if len(data) >= _PAGE:
            # What goes into the journal is what was in the database: kept once, since memory that
            # is touched for the first time costs more than the rest here.
            recent = self.recent
            if data in recent:
                data = recent[recent.index(data)]
            recent.append(data)
        # What `TraceBuilder.write` does for a file inside, of which there are most.
        site, time, task = self.moment(frame)
        node.changed = time
        end = offset + len(data)
        if end > node.size:
            node.size = end
        self.log.append(
            (Write, node.path, site, time, task, file.number, offset, data, _NONE)
        )

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
        if same_owner and not mode & _DROPPED_WITH_OWNER:
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

    def unlinked(self, path: str) -> None:
        """Note that a file's name was removed."""
        head, _, name = path.rpartition("/")
        if head == self.builder.directory and name in self.names:
            self.builder.unlink(ROOT, name, self.moment(self.frame))
            return
        place = self.locate(path)
        if place.inode is not None or not path.endswith(_SHARED_MEMORY):
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
    if not path.endswith(_SHARED_MEMORY):
        return False
    try:
        with real.open(path[: -len(_SHARED_MEMORY)], "rb", buffering=0) as database:
            return database.read(len(_HEADER)) == _HEADER
    except OSError:
        return False
