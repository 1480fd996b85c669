"""The steps that a store of the zoo gets right.

Belongs here: correct, durable building blocks. A store spells out in its own file the lines around
its bug, since the call site must be there, and takes the rest from here.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

__all__ = ["frame", "replace_durably", "sync_directory", "unframe", "write_synced"]


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write a whole file and sync its content; its name is the caller's business."""
    with open(path, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Replace a file atomically and durably."""
    temporary = path.with_name(path.name + ".tmp")
    write_synced(temporary, data)
    os.replace(temporary, path)
    sync_directory(path.parent)


def frame(payload: bytes) -> bytes:
    """Return a log record: magic, length, checksum, payload. A run of zeros is no record."""
    return b"R" + len(payload).to_bytes(4, "big") + zlib.crc32(payload).to_bytes(4, "big") + payload


def unframe(log: bytes) -> tuple[list[bytes], int]:
    """Return the records up to the first one that is not whole, and the offset where they end."""
    records: list[bytes] = []
    offset = 0
    while log[offset : offset + 1] == b"R":
        length = int.from_bytes(log[offset + 1 : offset + 5], "big")
        checksum = int.from_bytes(log[offset + 5 : offset + 9], "big")
        payload = log[offset + 9 : offset + 9 + length]
        if len(payload) != length or zlib.crc32(payload) != checksum:
            break
        records.append(payload)
        offset += 9 + length
    return records, offset
