"""An append-only event log in segments, compacted into snapshots.

The law: a record is durable before `append` returns its number, a batch is there whole or not
at all, and after any crash `EventLog` gives back exactly the acknowledged records, perhaps
followed by the one batch that was being appended. Whatever else is wrong raises `DamagedLog`:
no record is ever skipped in silence.

On disk, below the log's root: ``commit_log/000001.log``, ``000002.log`` … (see `log_frames`)
and ``snapshots/snapshot_N.dat``, the application's state after record N. Records are numbered
from 1. One process at a time owns a log: its lock is held from opening to `close`.

Why a crash cannot hurt: a batch is written after the last byte that is known to be good, and
synced; the next waits for that. A new segment and a snapshot appear by rename, synced before
and after. Old segments are removed only once snapshot *and* new segment are durable. When a
sync fails, the page cache and the disk may differ for good: the segment is written anew from
its acknowledged part, never synced a second time; where that fails too, a mark says so to the next
opening.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import checked_path, make_directory, write_atomic
from pytest_statepersist.reference.envelope import EnvelopeKey
from pytest_statepersist.reference.errors import (
    DamagedLog,
    IntegrityError,
    PersistenceError,
    RolledBack,
    StorageError,
    ValidationError,
)
from pytest_statepersist.reference.locking import StoreLock
from pytest_statepersist.reference.log_files import (
    LARGEST_SEGMENT,
    Found,
    LogFiles,
    Record,
    Snapshot,
)
from pytest_statepersist.reference.log_frames import (
    SEGMENT_HEADER_SIZE,
    SegmentHeader,
    Tail,
    encode_batch,
    join_records,
    scan,
)
from pytest_statepersist.reference.log_mark import LogMark

__all__ = ["EventLog", "LogMark", "Record", "Recovered", "Snapshot"]

_logger = logging.getLogger(__name__)
_APPENDING = os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What an opened log held: a snapshot, the records after it, and what was cut off.

    ``torn_bytes`` counts the bytes of an unfinished last batch, which a crash left and nobody
    was told to be saved.
    """

    snapshot: Snapshot | None
    records: tuple[Record, ...]
    torn_bytes: int


@checked
class EventLog:
    """An open event log; use it in ``with``, or `close` it in the thread that opened it.

    Opening recovers, and what it returned in `recovered` is durable by then; opening again,
    also after a crash in the middle of it, gives the same. With a ``key`` each batch and each
    snapshot is encrypted. ``at_least`` is a record number that the caller knows to exist, and
    ``known`` a `mark` of this log that he kept: what was compacted since then does not fit it,
    so keep a newer one before each `compact`. ``must_exist`` says that there was a log, so that
    none is damage and not a new beginning. ``segment_size`` in bytes is where a new segment
    begins.

    Opening raises `DamagedLog`, `RolledBack` (fewer records than are known), `IntegrityError`
    (other records than are known), `WrongPassword`, `LockTimeout`, `StorageError`; then
    nothing was cut off or removed.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        key: EnvelopeKey | None = None,
        segment_size: int = 1 << 20,
        at_least: int = 0,
        known: LogMark | None = None,
        must_exist: bool = False,
        lock_timeout: float = 10.0,
    ) -> None:
        self.root = checked_path(root)
        if not 0 < segment_size <= LARGEST_SEGMENT:
            raise ValidationError("segment_size", f"{segment_size}: 1 to {LARGEST_SEGMENT} bytes")
        self._files = LogFiles(self.root, key)
        self._segment_size = segment_size
        self._mutex = threading.RLock()
        self._descriptor: int | None = None
        self._mark = LogMark()
        make_directory(self._files.logs)
        make_directory(self._files.snapshots)
        self._lock = StoreLock(self._files.logs / ".lock", timeout=lock_timeout)
        self._lock.acquire()
        try:
            self.recovered = self._recover(must_exist, at_least, known)
        except BaseException:
            self._lock.release()
            raise

    @property
    def last_sequence(self) -> int:
        """The number of the last durable record, 0 if there is none."""
        return self._mark.sequence

    @property
    def mark(self) -> LogMark:
        """How far the log is durable, and what is in it: to be kept and passed as ``known``."""
        return self._mark

    def append(self, *records: bytes) -> int:
        """Add records as one batch and return the last one's number: durable by then.

        A crash before the return leaves all of them or none. After an error none of them
        counts, here or after reopening a healthy disk, and calling again is right. Raises
        `StorageError`, `ValidationError` (nothing to append, or more than 64 MiB).
        """
        if not records:
            raise ValidationError("records", "there is none to append")
        with self._mutex:
            self._check_open()
            first = self.last_sequence + 1
            body = self._files.seal_batch(join_records(records), first)
            self._make_ready()
            frame = encode_batch(self._header, first, len(records), body)
            self._write(frame)
            self._good_end += len(frame)
            self._mark = self._mark.after(*records)
            return self.last_sequence

    def compact(self, state: bytes) -> None:
        """Replace all records so far by ``state``, what the application made of them.

        On return the snapshot is durable and old segments and snapshots are gone for good. A
        crash leaves the old records or the snapshot, nothing in between. After a
        `StorageError`, or a `ValidationError` for too large a state, nothing is lost, and the
        log may be appended to or compacted again.
        """
        with self._mutex:
            self._check_open()
            self._files.write_snapshot(Snapshot(self.last_sequence, state, self._mark.head))
            self._must_rotate = True
            self._make_ready()
            self._files.remove_obsolete(self._header.number, self.last_sequence)

    def close(self) -> None:
        """Give the log back; nothing is pending, so nothing is written. Harmless twice."""
        with self._mutex:
            if self._lock.held:
                self._close_descriptor()
                self._closed = True
                self._lock.release()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _recover(self, must_exist: bool, at_least: int, known: LogMark | None) -> Recovered:
        self._closed = False
        # A killed process may have renamed without syncing: what we build on must be durable.
        self._files.settle()
        found = self._files.read()
        torn = 0
        if found.active is None and must_exist:
            raise DamagedLog(self._files.logs, "there is no segment, and there was one")
        self._mark = self._checked(found, at_least, known)
        if found.active is None:  # a new log, or one whose very first file was not durable
            self._header = SegmentHeader(1, 1, os.urandom(16))
            self._files.write_segment(self._header)
            self._good_end = SEGMENT_HEADER_SIZE
        else:
            self._header = found.active.header
            self._good_end = len(found.active.good)
            torn = found.active.length - self._good_end
            path = self._files.segment(self._header.number)
            if torn:
                _logger.warning("%s: cut off %d bytes of an unfinished batch", path, torn)
            if torn or self._files.distrusted:
                write_atomic(path, found.active.good)
                self._files.trust()
            else:
                self._sync(path)  # a killed process may have written without syncing
            covered = found.snapshot.sequence if found.snapshot else 0
            self._files.remove_obsolete(found.first_number, covered)
        # Set after a failure: the tail of the file is unknown, or a new segment may exist.
        self._tail_unknown = self._must_rotate = False
        return Recovered(found.snapshot, found.records, torn)

    def _checked(self, found: Found, at_least: int, known: LogMark | None) -> LogMark:
        """Return the mark of what was found. Raises `RolledBack`, `IntegrityError`."""
        expected = max(at_least, known.sequence if known else 0)
        if found.next - 1 < expected:
            raise RolledBack(
                f"{self.root}: the log ends with record {found.next - 1}, but record {expected} "
                "is known to exist; it was cut, or an older copy was put in its place"
            )
        mark = found.start
        if known is not None and known.sequence < mark.sequence:
            raise RolledBack(
                f"{self.root}: record {known.sequence} is the last that is known, but the log was "
                f"compacted after record {mark.sequence}; what knew it is an older copy"
            )
        fits = known in (None, mark)
        for record in found.records:
            mark = mark.after(record.data)
            fits = fits or mark == known
        if not fits:
            raise IntegrityError(
                f"{self.root}: up to record {expected} the log is not the one that is known; "
                "another one was put in its place"
            )
        return mark

    def _make_ready(self) -> None:
        """Bring the segment's end into a known state, or begin the next one."""
        if self._tail_unknown:
            self._rewrite()
        if self._must_rotate or self._good_end >= self._segment_size:
            # Until it succeeds no record may go to the old segment: the new one may already
            # exist on disk, and its first number says where the old one ends.
            self._must_rotate = True
            following = SegmentHeader(
                self._header.number + 1, self.last_sequence + 1, os.urandom(16)
            )
            self._files.write_segment(following)
            self._close_descriptor()
            self._header = following
            self._good_end = SEGMENT_HEADER_SIZE
            self._must_rotate = False

    def _rewrite(self) -> None:
        path = self._files.segment(self._header.number)
        data = self._files.read_segment(self._header.number)[1][: self._good_end]
        checked = scan(data, self._header)
        if checked.tail is not Tail.CLEAN or checked.good_end != self._good_end:
            raise DamagedLog(path, checked.problem or "acknowledged records have disappeared")
        write_atomic(path, data)
        self._files.trust()
        self._tail_unknown = False

    def _write(self, frame: bytes) -> None:
        path = self._files.segment(self._header.number)
        self._tail_unknown = True
        try:
            if self._descriptor is None:
                self._descriptor = os.open(path, _APPENDING)
            view = memoryview(frame)
            while view:
                view = view[os.write(self._descriptor, view) :]
            os.fsync(self._descriptor)
        except OSError as error:
            self._close_descriptor()
            self._try_rewrite()
            raise StorageError(path, error) from error
        except BaseException:
            self._close_descriptor()
            raise
        self._tail_unknown = False

    def _sync(self, path: Path) -> None:
        try:
            _sync_file(path)
        except StorageError:
            self._files.distrust()
            raise

    def _try_rewrite(self) -> None:
        try:
            self._rewrite()
        except PersistenceError:
            # The error under way matters more; the next append tries again, or the next opening.
            self._files.distrust()

    def _close_descriptor(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            try:
                os.close(descriptor)
            except OSError:
                pass  # what was acknowledged was synced; the rest is written anew

    def _check_open(self) -> None:
        if self._closed:
            raise ValidationError("log", f"{self.root} was closed; open it again")


def _sync_file(path: Path) -> None:
    try:
        descriptor = os.open(path, _APPENDING)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(path, error) from error
