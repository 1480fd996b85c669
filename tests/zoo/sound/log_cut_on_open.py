"""A log that cuts its torn tail when it is opened, then goes on.

The counterpart of `append_after_torn_tail` and of `compacts_in_place`: recovery truncates at the
end of the last whole record, syncs, and only then appends. A crash in it leaves the torn tail, or a
shorter one, which the next recovery cuts again.
"""

import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import frame, replace_durably, unframe

OPENED = b"opened"


def append(directory: Path, record: bytes) -> None:
    with open(directory / "log", "ab", buffering=0) as log:
        log.write(frame(record))
        os.fsync(log.fileno())


def setup(directory: Path) -> None:
    replace_durably(directory / "log", frame(b"first"))


def workload(directory: Path) -> None:
    append(directory, b"x" * 6000)


def recover(directory: Path) -> object:
    content = (directory / "log").read_bytes()
    records, end = unframe(content)
    if end < len(content):
        with open(directory / "log", "r+b", buffering=0) as log:
            log.truncate(end)
            os.fsync(log.fileno())
    append(directory, OPENED)
    again, _ = unframe((directory / "log").read_bytes())
    if len(again) != len(records) + 1:
        raise LookupError("a record that was just appended cannot be read")
    return [len(record) for record in again if record != OPENED]


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, before=[5], after=[5, 6000])
