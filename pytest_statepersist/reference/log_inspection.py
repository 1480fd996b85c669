"""Reading what a damaged event log still holds.

The law: nothing here writes, and nothing unreadable is passed over without a word in
`Inspection.problems`. It is the way out that `DamagedLog` names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import checked_path
from pytest_statepersist.reference.envelope import EnvelopeKey
from pytest_statepersist.reference.errors import DamagedData
from pytest_statepersist.reference.log_files import LogFiles, Record, Snapshot
from pytest_statepersist.reference.log_frames import (
    SEGMENT_HEADER_SIZE,
    Batch,
    SegmentHeader,
    Tail,
    resume,
    scan,
)

__all__ = ["Inspection", "inspect_log"]


@dataclass(frozen=True, slots=True)
class Inspection:
    """All that is readable of a log, and in words what is not."""

    snapshot: Snapshot | None
    records: tuple[Record, ...]
    problems: tuple[str, ...]


@checked
def inspect_log(root: str | os.PathLike[str], *, key: EnvelopeKey | None = None) -> Inspection:
    """Read what a damaged log still holds, on both sides of the damage, changing nothing.

    Numbers missing between the records are lost. Raises `WrongPassword`, `StorageError`.
    """
    files = LogFiles(checked_path(root), key)
    problems: list[str] = []
    snapshot: Snapshot | None = None
    for number in files.snapshot_numbers():
        try:
            snapshot = files.read_snapshot(number)
        except DamagedData as error:
            problems.append(str(error))
    records: dict[int, Record] = {}
    for number in files.segment_numbers():
        try:
            header, data = files.read_segment(number)
        except DamagedData as error:
            problems.append(str(error))
            continue
        for batch in _islands(data, header, files.segment(number), problems):
            try:
                records |= {record.sequence: record for record in files.open_batch(batch)}
            except DamagedData as error:
                problems.append(f"{files.segment(number)}: record {batch.first}: {error}")
    return Inspection(snapshot, tuple(records[n] for n in sorted(records)), tuple(problems))


def _islands(
    data: bytes, header: SegmentHeader, path: Path, problems: list[str]
) -> Iterator[Batch]:
    """Yield every good batch, jumping over what is not one."""
    while True:
        found = scan(data, header)
        yield from found.batches
        if found.tail is Tail.CLEAN:
            return
        problems.append(f"{path}: {found.problem}")
        following = resume(data, header, found)
        if following is None:
            return
        position, first = following
        header = SegmentHeader(header.number, first, header.salt)
        data = data[:SEGMENT_HEADER_SIZE] + data[position:]
