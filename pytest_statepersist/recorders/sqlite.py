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
from collections.abc import Callable
from types import FrameType

from pytest_statepersist.core.operations import ROOT, Durability, Write
from pytest_statepersist.errors import BlindSpot
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.builder import NOWHERE, Clock, Moment, Place, TraceBuilder
from pytest_statepersist.recorders.callsite import CallSites
from pytest_statepersist.recorders.sqlite_calls import hooks

__all__ = ["SqliteRecorder", "is_shared_memory"]

_UNKNOWN = -2
_DROPPED_WITH_OWNER = stat.S_ISUID | stat.S_ISGID
_SHARED_MEMORY = "-shm"
_HEADER = b"SQLite format 3\0"


class SqliteRecorder:
    """Feeds a builder with what SQLite does between `start` and `stop`.

    ``moment`` gives call site, time and task of the running call from the frame that called
    SQLite; the Python recorder lends its own, so that both give one trace.
    """

    def __init__(self, builder: TraceBuilder, moment: Clock | None = None) -> None:
        self.builder = builder
        self.acquire, self.release = builder.lock.acquire, builder.lock.release
        self.moment = moment if moment is not None else CallSites().moment
        self.files: dict[int, int | None] = {}
        """Descriptors that SQLite uses: inode number, ``None`` for files that do not matter."""
        self.written: set[int] = set()
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

    def at(self) -> Moment:
        """Return the moment of the callback that runs."""
        return self.moment(self.frame)

    # -- descriptors ---------------------------------------------------------------------------

    def inode_of(self, descriptor: int) -> int | None:
        """Return the inode behind a descriptor; looks at ones that were open before."""
        try:
            return self.files[descriptor]
        except KeyError:
            pass
        status = os.fstat(descriptor)
        number = self.builder.find((status.st_dev, status.st_ino))
        if number is not None:
            self.builder.opened(number)
        self.files[descriptor] = number
        return number

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
        status = os.fstat(descriptor)
        identity = (status.st_dev, status.st_ino)
        place = self.locate(path)
        if existed:
            number = builder.find(identity)
            if number is None:
                number = place.inode
        elif stat.S_ISREG(status.st_mode):
            mode = stat.S_IMODE(status.st_mode)
            number = builder.create(
                place.parent, place.name, self.at(), mode=mode, identity=identity
            )
        else:
            number = None
        if number is not None:
            builder.opened(number)
        self.files[descriptor] = number

    def closed(self, descriptor: int) -> None:
        """Note that SQLite closed a file, or a directory, which it had then synced."""
        number = self.files.pop(descriptor, None)
        if number is not None:
            written = descriptor in self.written
            self.written.discard(descriptor)
            self.builder.close(number, self.at() if written else NOWHERE, written=written)

    # -- what the calls mean -------------------------------------------------------------------

    def wrote(
        self, descriptor: int, offset: int, data: bytes, frame: FrameType | None = None
    ) -> None:
        """Note bytes that reached a file; ``frame`` is that of the call into SQLite, if known."""
        number = self.files.get(descriptor, _UNKNOWN)
        if number == _UNKNOWN:
            number = self.inode_of(descriptor)
        if number is None:
            return
        self.written.add(descriptor)
        inode, at = self.builder[number], self.moment(frame)
        if not inode.inside:
            self.builder.write(number, offset, data, at)
            return
        # What `TraceBuilder.write` does for a file inside, of which there are most.
        site, inode.changed, task = at
        end = offset + len(data)
        if end > inode.size:
            inode.size = end
        self.builder.log.append(
            (Write, inode.path, site, inode.changed, task, number, offset, data, Durability.NONE)
        )

    def truncated(self, descriptor: int, size: int) -> None:
        """Note a size that was set."""
        number = self.inode_of(descriptor)
        if number is not None:
            self.builder.truncate(number, size, self.at())
            self.written.add(descriptor)

    def allocated(self, descriptor: int, end: int) -> None:
        """Note space that was reserved up to ``end``."""
        number = self.inode_of(descriptor)
        if number is not None:
            grown = end if end > self.builder[number].size else None
            self.builder.allocate(number, self.at(), size=grown)
            self.written.add(descriptor)

    def changed_attributes(
        self, descriptor: int, before: os.stat_result, *, same_owner: bool
    ) -> None:
        """Note a mode or owner that differs from ``before``."""
        number = self.inode_of(descriptor)
        if number is None:
            return
        mode = stat.S_IMODE(before.st_mode)
        if same_owner and not mode & _DROPPED_WITH_OWNER:
            # As root SQLite gives every journal the owner that it has: only a time changes.
            self.builder[number].changed = self.at()[1]
            return
        now = os.fstat(descriptor)
        mode_changed = mode != stat.S_IMODE(now.st_mode)
        owner = (now.st_uid, now.st_gid)
        owner_changed = owner != (before.st_uid, before.st_gid)
        if mode_changed or owner_changed:
            self.builder.set_attributes(
                number,
                self.at(),
                mode=stat.S_IMODE(now.st_mode) if mode_changed else None,
                owner=owner if owner_changed else None,
            )
        else:
            self.builder[number].changed = self.at()[1]

    def unlinked(self, path: str) -> None:
        """Note that a file's name was removed."""
        place = self.locate(path)
        if place.inode is not None or not path.endswith(_SHARED_MEMORY):
            self.builder.unlink(place.parent, place.name, self.at())

    def made_directory(self, path: str) -> None:
        """Note a new directory (a lock of 'unix-dotfile')."""
        place, status = self.locate(path), os.stat(path)
        identity = (status.st_dev, status.st_ino)
        self.builder.mkdir(
            place.parent,
            place.name,
            self.at(),
            mode=stat.S_IMODE(status.st_mode),
            identity=identity,
        )

    def removed_directory(self, path: str) -> None:
        """Note that a directory was removed."""
        place = self.locate(path)
        self.builder.rmdir(place.parent, place.name, self.at())

    def synced(self, descriptor: int | None, *, data_only: bool, failed: bool) -> None:
        """Note a sync of a file or directory."""
        number = None if descriptor is None else self.inode_of(descriptor)
        if number is not None:
            self.builder.fsync(number, self.at(), data_only=data_only, failed=failed)

    def cannot_see(self, descriptor: int, what: str) -> None:
        """Note that a watched file changes in a way that calls do not show."""
        number = self.inode_of(descriptor)
        if number is not None and self.builder[number].inside:
            path = self.builder[number].path
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
