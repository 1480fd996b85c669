"""The index points at a record that never arrived.

Records are appended to one file, an index in another says where the newest begins and ends. The
index is replaced by the book: synced, renamed, directory synced. The record's own file was not
synced, and no sync of another file does it: the index is new, the bytes behind it are missing or
zeros. Every model of power loss, at 1 deviation. A killed process loses nothing.
"""

import json
import zlib
from pathlib import Path

from tests.zoo.spec import POWER_LOSS, ZooSpec
from tests.zoo.steps import replace_durably

FIRST, SECOND = b"the first record", b"the second record"


def entry(offset: int, record: bytes) -> bytes:
    return json.dumps([offset, len(record), zlib.crc32(record)]).encode()


def setup(directory: Path) -> None:
    replace_durably(directory / "records", FIRST)
    replace_durably(directory / "index", entry(0, FIRST))


def workload(directory: Path) -> None:
    with open(directory / "records", "ab", buffering=0) as records:
        records.write(SECOND)  # BUG
    replace_durably(directory / "index", entry(len(FIRST), SECOND))


def recover(directory: Path) -> object:
    offset, length, checksum = json.loads((directory / "index").read_bytes())
    record = (directory / "records").read_bytes()[offset : offset + length]
    if zlib.crc32(record) != checksum:
        raise ValueError("the index points at a damaged record")
    return record.decode()


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before=FIRST.decode(),
    after=SECOND.decode(),
    models=POWER_LOSS,
    kind="unrecoverable",
    # The index overtook the record, because the record was not synced. With data=writeback there is
    # a second way: the unsynced record may land in the block that the old index just gave up.
    causes=("reordered writes", "missing fsync"),
    deviations=1,
)
