"""The file with the newest time is not the file with the newest content.

Two slots are written in turn, and recovery takes the one that was modified last. A modification
time is metadata and a block is data: the disk may hold the slot's new time over its old block.
Recovery then returns the value before the last one, which nobody asked for. Syncing does not help,
since the sync is what writes the two. Every model of power loss, at 0 deviations: half of one
write. A write that a signal stops has moved the time before it copies the first byte, so a killed
process shows it as well.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably, sync_directory


def setup(directory: Path) -> None:
    replace_durably(directory / "slot-a", b'{"score": 1}')
    replace_durably(directory / "slot-b", b'{"score": 0}')
    os.utime(directory / "slot-a", (2_000, 2_000))
    os.utime(directory / "slot-b", (1_000, 1_000))
    sync_directory(directory)


def workload(directory: Path) -> None:
    descriptor = os.open(directory / "slot-b", os.O_WRONLY)
    os.pwrite(descriptor, b'{"score": 2}', 0)  # BUG
    os.fsync(descriptor)
    os.close(descriptor)


def recover(directory: Path) -> object:
    newest = max(directory.glob("slot-*"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text())


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2},
    models=ALL_MODELS,
    kind="atomicity",
    causes=("torn write",),
    deviations=0,
)
