"""The file is synced, then shrunk.

A stack of jobs, one block each: `pop` reads the last job, syncs "to be safe", cuts the file and
hands the job out. The new length is metadata that nobody synced. After a power loss the job is
there again and is done twice. Every model of power loss, at 0 deviations; the blocks are whole, so
that no half-zeroed tail is part of it. A killed process loses nothing.
"""

import os
from pathlib import Path

from tests.zoo.spec import POWER_LOSS, ZooSpec
from tests.zoo.steps import replace_durably

BLOCK = 4096


def setup(directory: Path) -> None:
    replace_durably(directory / "jobs", b"a" * BLOCK + b"b" * BLOCK + b"c" * BLOCK)


def workload(directory: Path) -> None:
    descriptor = os.open(directory / "jobs", os.O_RDWR)
    os.fsync(descriptor)
    os.ftruncate(descriptor, 2 * BLOCK)  # BUG
    os.close(descriptor)


def recover(directory: Path) -> object:
    content = (directory / "jobs").read_bytes()
    return [chr(content[offset]) for offset in range(0, len(content), BLOCK)]


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before=["a", "b", "c"],
    after=["a", "b"],
    models=POWER_LOSS,
    kind="durability",
    causes=("missing fsync",),
    deviations=0,
)
