"""The bytes of an event log: segment headers, batches, and what a scan can say of them.

The law: pure functions over bytes. A *batch* of records is one frame with one checksum, and
is written only after the one before it was synced. So a crash leaves at most one bad frame,
the last of the last segment, and `scan` can tell that **torn tail** from **damage**:

* a valid frame, or any byte, after the bad one: nothing was written there before the bad one
  had been synced, so it was good once: damage;
* the file ends before the frame does, or a stretch of it (one 512-byte sector, or the first or
  last byte, which are never zero in a good frame) is still zero as the file system made it:
  torn;
* a frame of full length without such a hole: a crash leaves no such thing, so damage. (On a
  file system that shows stale foreign bytes after a crash it might; none of the usual ones.)

A segment: a 44-byte header (magic ``SPLOG001``, number u32, first sequence number u64, salt
16, checksum 8), then frames. A frame: ``0xA5``, body length u32, first sequence u64, count
u32, header checksum 4, body checksum 8, body, ``0x5A``. The body: each record after its
length u32. Integers are big-endian; checksums are BLAKE2b keyed with the segment's salt, so
that a frame copied from another segment does not count.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from pytest_statepersist.reference.errors import DamagedData, ValidationError

__all__ = [
    "LARGEST_BODY",
    "SEGMENT_HEADER_SIZE",
    "Batch",
    "Scan",
    "SegmentHeader",
    "Tail",
    "encode_batch",
    "join_records",
    "resume",
    "scan",
    "split_records",
]

LARGEST_BODY = 64 << 20

_MAGIC = b"SPLOG001"
_SEGMENT = struct.Struct(">8sIQ16s")
SEGMENT_HEADER_SIZE = _SEGMENT.size + 8
_FRAME = struct.Struct(">BIQI")
_BEGIN, _END = 0xA5, 0x5A
_FRAME_HEADER_SIZE = _FRAME.size + 4 + 8
_SECTOR = 512  # the smallest unit that a device writes as a whole


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says of itself; ``salt`` is 16 random bytes."""

    number: int
    first_sequence: int
    salt: bytes

    def encode(self) -> bytes:
        """Return the header's `SEGMENT_HEADER_SIZE` bytes."""
        fields = _SEGMENT.pack(_MAGIC, self.number, self.first_sequence, self.salt)
        return fields + _checksum(self.salt, fields, 8)

    @classmethod
    def decode(cls, data: bytes) -> SegmentHeader:
        """Return the header at the start of a segment. Raises `DamagedData`."""
        fields = data[: _SEGMENT.size]
        if len(data) < SEGMENT_HEADER_SIZE or not fields.startswith(_MAGIC):
            raise DamagedData("not a log segment: no header SPLOG001")
        _, number, first, salt = _SEGMENT.unpack(fields)
        if data[_SEGMENT.size : SEGMENT_HEADER_SIZE] != _checksum(salt, fields, 8):
            raise DamagedData("the segment's header has a wrong checksum")
        return cls(number, first, salt)


@dataclass(frozen=True, slots=True)
class Batch:
    """A good frame: ``count`` records from sequence number ``first`` on, in ``body``."""

    first: int
    count: int
    body: bytes


class Tail(Enum):
    """How a segment ends."""

    CLEAN = "clean"
    TORN = "torn"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Scan:
    """The good batches, the offset where they end, and what follows there."""

    batches: tuple[Batch, ...]
    good_end: int
    tail: Tail
    problem: str


def encode_batch(header: SegmentHeader, first: int, count: int, body: bytes) -> bytes:
    """Return a frame. Raises `ValidationError` for a body of more than `LARGEST_BODY` bytes."""
    if len(body) > LARGEST_BODY:
        raise ValidationError("records", f"{len(body)} bytes; a batch holds {LARGEST_BODY}")
    fields = _FRAME.pack(_BEGIN, len(body), first, count)
    fields += _checksum(header.salt, fields, 4)
    return fields + _checksum(header.salt, fields + body, 8) + body + bytes([_END])


def join_records(records: Sequence[bytes]) -> bytes:
    """Return the body that holds these records."""
    return b"".join(len(record).to_bytes(4, "big") + record for record in records)


def split_records(body: bytes, count: int) -> tuple[bytes, ...]:
    """Return the records of a body. Raises `DamagedData` if there are not ``count`` of them."""
    records: list[bytes] = []
    position = 0
    while position < len(body):
        start = position + 4
        position = start + int.from_bytes(body[position:start], "big")
        records.append(body[start:position])
    if position != len(body) or len(records) != count:
        raise DamagedData(f"a batch of {count} records does not divide into them")
    return tuple(records)


def scan(data: bytes, header: SegmentHeader) -> Scan:
    """Read a whole segment (header included) up to the first byte that is not a good frame."""
    batches: list[Batch] = []
    position, expected = SEGMENT_HEADER_SIZE, header.first_sequence
    while position < len(data):
        batch = _frame_at(data, position, header)
        if batch is None or batch.first != expected:
            tail, problem = _judge(data, position, header, expected)
            return Scan(tuple(batches), position, tail, problem)
        batches.append(batch)
        position += _FRAME_HEADER_SIZE + len(batch.body) + 1
        expected += batch.count
    return Scan(tuple(batches), position, Tail.CLEAN, "")


def resume(data: bytes, header: SegmentHeader, stopped: Scan) -> tuple[int, int] | None:
    """Return offset and record number of the next good frame after what stopped a scan."""
    position = stopped.good_end + 1
    while (position := data.find(_BEGIN, position)) >= 0:
        batch = _frame_at(data, position, header)
        if batch is not None:
            return position, batch.first
        position += 1
    return None


def _judge(data: bytes, position: int, header: SegmentHeader, expected: int) -> tuple[Tail, str]:
    where = f"byte {position}, record {expected}"
    follower = resume(data, header, Scan((), position, Tail.DAMAGED, ""))
    if follower is not None:
        return Tail.DAMAGED, f"{where}: unreadable, yet record {follower[1]} follows it"
    announced = _frame_header_at(data, position, header)
    end = len(data)
    if announced is not None:
        length, first, _ = announced
        end = position + _FRAME_HEADER_SIZE + length + 1
        if first != expected:
            return Tail.DAMAGED, f"{where}: record {first} stands there"
        if end < len(data):
            return Tail.DAMAGED, f"{where}: unreadable, yet {len(data) - end} bytes follow it"
    too_short = end > len(data) or end - position <= _FRAME_HEADER_SIZE
    if too_short or _has_hole(data, position, end):
        return Tail.TORN, f"{where}: written in part"
    return Tail.DAMAGED, f"{where}: as long as it was written, but with a wrong checksum"


def _has_hole(data: bytes, start: int, end: int) -> bool:
    if data[start] == 0 or data[end - 1] == 0:
        return True
    sector = start - start % _SECTOR
    while sector < end:
        if not any(data[max(start, sector) : min(end, sector + _SECTOR)]):
            return True
        sector += _SECTOR
    return False


def _frame_header_at(
    data: bytes, position: int, header: SegmentHeader
) -> tuple[int, int, int] | None:
    """Return length, first sequence and count, if they stand there intact."""
    fields = data[position : position + _FRAME.size]
    check = data[position + _FRAME.size : position + _FRAME.size + 4]
    if len(fields) < _FRAME.size or fields[0] != _BEGIN:
        return None
    if check != _checksum(header.salt, fields, 4):
        return None
    _, length, first, count = _FRAME.unpack(fields)
    return length, first, count


def _frame_at(data: bytes, position: int, header: SegmentHeader) -> Batch | None:
    announced = _frame_header_at(data, position, header)
    if announced is None:
        return None
    length, first, count = announced
    start = position + _FRAME_HEADER_SIZE
    body = data[start : start + length]
    if len(body) < length or data[start + length : start + length + 1] != bytes([_END]):
        return None
    fields = data[position : position + _FRAME.size + 4]
    check = data[position + _FRAME.size + 4 : start]
    if check != _checksum(header.salt, fields + body, 8):
        return None
    return Batch(first, count, body)


def _checksum(salt: bytes, data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, key=salt, digest_size=size).digest()
