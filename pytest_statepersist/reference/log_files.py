"""The files of an event log: which there are, what they hold, which are obsolete.

The law: every file appears by an atomic, durable rename, and is judged as a whole with its
neighbours: record numbers run without a gap from the newest snapshot to the last segment, or
`DamagedLog` says where they do not. When and why something is written is `event_log`'s affair.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_statepersist.reference.atomic import (
    FILE_MODE,
    check_size,
    fsync_directory,
    read_bounded,
    remove_temporaries,
    write_atomic,
)
from pytest_statepersist.reference.envelope import MAGIC as ENVELOPE_MAGIC
from pytest_statepersist.reference.envelope import EnvelopeKey, Purpose
from pytest_statepersist.reference.errors import (
    DamagedData,
    DamagedLog,
    StorageError,
    WrongPassword,
)
from pytest_statepersist.reference.log_frames import (
    LARGEST_BODY,
    Batch,
    SegmentHeader,
    Tail,
    scan,
    split_records,
)
from pytest_statepersist.reference.log_mark import HEAD_SIZE, LogMark
from pytest_statepersist.reference.presence import is_present

__all__ = [
    "LARGEST_SEGMENT",
    "LOG_DIRECTORY",
    "SNAPSHOT_DIRECTORY",
    "Found",
    "LogFiles",
    "Record",
    "Snapshot",
    "render_log",
]

LOG_DIRECTORY = "commit_log"
SNAPSHOT_DIRECTORY = "snapshots"

_SEGMENT_NAME = re.compile(r"([0-9]{6}|[1-9][0-9]{6,11})\.log")
_SNAPSHOT_NAME = re.compile(r"snapshot_(0|[1-9][0-9]{0,19})\.dat")
_SNAPSHOT_HEADER = struct.Struct(">8sQQ16s")  # magic, record number, body length, BLAKE2b
_PLAIN, _ENCRYPTED = b"SPSNAP02", b"SPSNAPE2"
_HEADLESS = (b"SPSNAP01", b"SPSNAPE1")  # the first version: without the head of the chain
_LARGEST_FILE = 1 << 30
_distrusted: set[Path] = set()
LARGEST_SEGMENT = _LARGEST_FILE - 2 * LARGEST_BODY
"""Where the next segment has to begin at the latest: the last batch may go beyond."""


@dataclass(frozen=True, slots=True)
class Record:
    """One event: its number, from 1, and its bytes."""

    sequence: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The application's state after record ``sequence`` (0: before the first).

    ``head`` is what a `LogMark` says of the records that the state was made of.
    """

    sequence: int
    state: bytes
    head: bytes

    @property
    def mark(self) -> LogMark:
        """The mark after the last record that the state was made of."""
        return LogMark(self.sequence, self.head)


@dataclass(frozen=True, slots=True)
class ActiveSegment:
    """The segment that records are appended to: its header, its good part, its length."""

    header: SegmentHeader
    good: bytes
    length: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a log's files hold; ``active`` is None where there is no segment yet.

    ``first_number`` is the first segment that is still needed, ``next`` the number of the
    next record.
    """

    snapshot: Snapshot | None
    records: tuple[Record, ...]
    active: ActiveSegment | None
    first_number: int
    next: int

    @property
    def start(self) -> LogMark:
        """The mark before the first of ``records``."""
        return self.snapshot.mark if self.snapshot else LogMark()


class LogFiles:
    """The files below one root, encrypted with ``key`` where there is one."""

    def __init__(self, root: Path, key: EnvelopeKey | None) -> None:
        self.logs = root / LOG_DIRECTORY
        self.snapshots = root / SNAPSHOT_DIRECTORY
        self._key = key
        self._mark = self.logs.absolute() / ".unsynced"

    def segment(self, number: int) -> Path:
        """Return a segment's path."""
        return self.logs / f"{number:06}.log"

    def snapshot(self, sequence: int) -> Path:
        """Return a snapshot's path."""
        return self.snapshots / f"snapshot_{sequence}.dat"

    def segment_numbers(self) -> list[int]:
        """Return the numbers of all segments, in order. Raises `StorageError`."""
        return _numbers(self.logs, _SEGMENT_NAME)

    def snapshot_numbers(self) -> list[int]:
        """Return the record numbers of all snapshots, in order. Raises `StorageError`."""
        return _numbers(self.snapshots, _SNAPSHOT_NAME)

    def settle(self) -> None:
        """Make the names that are there durable, and clear away temporaries."""
        for directory in (self.logs, self.snapshots):
            fsync_directory(directory)
            remove_temporaries(directory)

    def distrust(self) -> None:
        """Leave a mark that the last segment may look better than what is on the disk.

        A failed sync leaves pages that count as written. Whoever opens the log next, while the
        system that saw the failure runs, must not take a second sync for a proof. Where not even
        an empty file can be made, only this process knows.
        """
        _distrusted.add(self._mark)
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        with suppress(OSError):
            os.close(os.open(self._mark, flags, FILE_MODE))

    @property
    def distrusted(self) -> bool:
        """Whether there is such a mark. Raises `StorageError`."""
        return self._mark in _distrusted or is_present(self._mark)

    def trust(self) -> None:
        """Remove the mark; if it stays, the last segment is only written once more."""
        _distrusted.discard(self._mark)
        with suppress(OSError):
            os.unlink(self._mark)

    def read(self) -> Found:
        """Read everything that counts. Raises `DamagedLog`, `WrongPassword`, `StorageError`."""
        stored = self.snapshot_numbers()
        snapshot = self._newest_snapshot(stored[-1]) if stored else None
        covered = snapshot.sequence if snapshot else 0
        segments = self._needed_segments(covered + 1)
        if not segments:
            if snapshot is not None:
                raise DamagedLog(self.logs, f"no segment goes with snapshot_{covered}.dat")
            return Found(None, (), None, 1, 1)
        records: list[Record] = []
        expected_number, expected = segments[0][0].number, segments[0][0].first_sequence
        for header, data in segments:
            path = self.segment(header.number)
            if header.number != expected_number:
                raise DamagedLog(self.segment(expected_number), "the segment is missing")
            if header.first_sequence != expected:
                raise DamagedLog(
                    path, f"begins with record {header.first_sequence}, not {expected}"
                )
            found = scan(data, header)
            last = header is segments[-1][0]
            if found.tail is Tail.DAMAGED or (found.tail is Tail.TORN and not last):
                raise DamagedLog(path, found.problem)
            for batch in found.batches:
                records += self._open_intact(path, batch)
                expected += batch.count
            expected_number += 1
        if expected <= covered:
            raise DamagedLog(path, f"ends with record {expected - 1}, a snapshot with {covered}")
        active = ActiveSegment(header, data[: found.good_end], len(data))
        after = tuple(record for record in records if record.sequence > covered)
        return Found(snapshot, after, active, segments[0][0].number, expected)

    def _needed_segments(self, first: int) -> list[tuple[SegmentHeader, bytes]]:
        """Return the segments from the one that holds, or will hold, record ``first``."""
        needed: list[tuple[SegmentHeader, bytes]] = []
        for number in reversed(self.segment_numbers()):
            try:
                needed.insert(0, self.read_segment(number))
            except DamagedData as error:
                raise DamagedLog(self.segment(number), str(error)) from error
            if needed[0][0].first_sequence <= first:
                return needed
        if needed:
            oldest = self.segment(needed[0][0].number)
            raise DamagedLog(oldest, f"is the oldest segment; record {first} is before it, gone")
        return []

    def read_segment(self, number: int) -> tuple[SegmentHeader, bytes]:
        """Return a segment's header and all its bytes. Raises `DamagedData`, `StorageError`."""
        data = read_bounded(self.segment(number), _LARGEST_FILE, follow_symlinks=False)
        header = SegmentHeader.decode(data)
        if header.number != number:
            raise DamagedData(f"is segment {header.number} under another name")
        return header, data

    def write_segment(self, header: SegmentHeader) -> None:
        """Create an empty segment, durable on return. Raises `StorageError`."""
        write_atomic(self.segment(header.number), header.encode())

    def seal_batch(self, body: bytes, first: int) -> bytes:
        """Return a batch's body as it is stored."""
        if self._key is None:
            return body
        return self._key.seal(body, purpose=Purpose.LOG_RECORD, context=first.to_bytes(8, "big"))

    def open_batch(self, batch: Batch) -> tuple[Record, ...]:
        """Return the records of a stored batch. Raises `DamagedData`, `WrongPassword`."""
        body = batch.body
        if self._key is None and body.startswith(ENVELOPE_MAGIC):  # as a length: beyond any record
            raise WrongPassword("the log is encrypted; open it with its key")
        if self._key is not None:
            context = batch.first.to_bytes(8, "big")
            body = self._key.open(body, purpose=Purpose.LOG_RECORD, context=context)
        split = split_records(body, batch.count)
        return tuple(Record(batch.first + index, data) for index, data in enumerate(split))

    def _open_intact(self, path: Path, batch: Batch) -> tuple[Record, ...]:
        try:
            return self.open_batch(batch)
        except DamagedData as error:
            raise DamagedLog(path, f"record {batch.first}: {error}") from error

    def encode_snapshot(self, snapshot: Snapshot) -> bytes:
        """Return a snapshot file's bytes."""
        body = snapshot.head + snapshot.state
        if self._key is not None:
            context = snapshot.sequence.to_bytes(8, "big")
            body = self._key.seal(body, purpose=Purpose.LOG_SNAPSHOT, context=context)
        digest = _snapshot_digest(snapshot.sequence, body)
        magic = _PLAIN if self._key is None else _ENCRYPTED
        fields = (magic, snapshot.sequence, len(body), digest)
        return _SNAPSHOT_HEADER.pack(*fields) + body

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Store a snapshot, durable on return. Raises `ValidationError`, `StorageError`."""
        data = self.encode_snapshot(snapshot)
        check_size(data, _LARGEST_FILE, "state")
        write_atomic(self.snapshot(snapshot.sequence), data)

    def read_snapshot(self, sequence: int) -> Snapshot:
        """Return a snapshot. Raises `DamagedData`, `WrongPassword`, `StorageError`."""
        path = self.snapshot(sequence)
        data = read_bounded(path, _LARGEST_FILE, follow_symlinks=False)
        if len(data) < _SNAPSHOT_HEADER.size:
            raise DamagedData(f"{path}: is cut short")
        magic, number, length, digest = _SNAPSHOT_HEADER.unpack_from(data)
        body = data[_SNAPSHOT_HEADER.size :]
        known = magic in (_PLAIN, _ENCRYPTED, *_HEADLESS)
        if not known or number != sequence or length != len(body):
            raise DamagedData(f"{path}: is not the snapshot that its name says")
        if digest != _snapshot_digest(sequence, body):
            raise DamagedData(f"{path}: its checksum is wrong")
        if magic in (_ENCRYPTED, _HEADLESS[1]) and self._key is None:
            raise WrongPassword(f"{path}: is encrypted; open the log with its key")
        if self._key is not None:
            context = sequence.to_bytes(8, "big")
            body = self._key.open(body, purpose=Purpose.LOG_SNAPSHOT, context=context)
        if magic in _HEADLESS:
            return Snapshot(sequence, body, LogMark.of_state(sequence, body).head)
        if len(body) < HEAD_SIZE:
            raise DamagedData(f"{path}: is cut short")
        return Snapshot(sequence, body[HEAD_SIZE:], body[:HEAD_SIZE])

    def _newest_snapshot(self, sequence: int) -> Snapshot:
        try:
            return self.read_snapshot(sequence)
        except DamagedData as error:
            raise DamagedLog(self.snapshot(sequence), str(error)) from error

    def remove_obsolete(self, first_number: int, covered: int) -> None:
        """Remove segments before ``first_number`` and snapshots before record ``covered``.

        Only what durable files have replaced may be named here; durable on return. Raises
        `StorageError`.
        """
        segments = [self.segment(n) for n in self.segment_numbers() if n < first_number]
        snapshots = [self.snapshot(n) for n in self.snapshot_numbers() if n < covered]
        for path in segments + snapshots:
            try:
                os.unlink(path)
            except OSError as error:
                raise StorageError(path, error) from error
        for directory in sorted({path.parent for path in segments + snapshots}):
            fsync_directory(directory)


def render_log(
    state: bytes, *, key: EnvelopeKey | None = None
) -> tuple[dict[str, bytes], LogMark]:
    """Return a new log that holds only a snapshot: its files by path below the root, its mark."""
    mark = LogMark.of_state(0, state)
    snapshot = LogFiles(Path(), key).encode_snapshot(Snapshot(0, state, mark.head))
    files = {
        f"{LOG_DIRECTORY}/000001.log": SegmentHeader(1, 1, os.urandom(16)).encode(),
        f"{SNAPSHOT_DIRECTORY}/snapshot_0.dat": snapshot,
    }
    return files, mark


def _snapshot_digest(sequence: int, body: bytes) -> bytes:
    return hashlib.blake2b(sequence.to_bytes(8, "big") + body, digest_size=16).digest()


def _numbers(directory: Path, shape: re.Pattern[str]) -> list[int]:
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise StorageError(directory, error) from error
    return sorted(int(match[1]) for name in names if (match := shape.fullmatch(name)))
