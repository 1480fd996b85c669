"""A stack of jobs that is cut first and synced afterwards.

The counterpart of `shrink_after_sync`: the sync covers the new length, and only then is the job
handed out.
"""

import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably

BLOCK = 4096


def setup(directory: Path) -> None:
    replace_durably(directory / "jobs", b"a" * BLOCK + b"b" * BLOCK + b"c" * BLOCK)


def workload(directory: Path) -> None:
    descriptor = os.open(directory / "jobs", os.O_RDWR)
    os.ftruncate(descriptor, 2 * BLOCK)
    os.fsync(descriptor)
    os.close(descriptor)


def recover(directory: Path) -> object:
    content = (directory / "jobs").read_bytes()
    return [chr(content[offset]) for offset in range(0, len(content), BLOCK)]


SPEC = ZooSpec(
    setup=setup, workload=workload, recover=recover, before=["a", "b", "c"], after=["a", "b"]
)
