"""A job is in two queues at once.

A finished job moves from `pending` to `done` by a rename. Within one directory a rename is atomic;
across two it is an addition here and a removal there, and a file system may persist the addition
alone. Recovery sees the job as done and as pending, and does it again. Allowed by POSIX, seen on
btrfs (while its log is written); ext4 and XFS journal both as one. 0 deviations: half of one call.
"""

import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably, sync_directory


def setup(directory: Path) -> None:
    for queue in ("pending", "done"):
        (directory / queue).mkdir()
    replace_durably(directory / "pending" / "job", b"send the invoice")
    sync_directory(directory)


def workload(directory: Path) -> None:
    os.rename(directory / "pending" / "job", directory / "done" / "job")  # BUG
    sync_directory(directory / "done")
    sync_directory(directory / "pending")


def recover(directory: Path) -> object:
    return {queue: sorted(os.listdir(directory / queue)) for queue in ("pending", "done")}


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"pending": ["job"], "done": []},
    after={"pending": [], "done": ["job"]},
    models=("posix", "btrfs"),
    kind="atomicity",
    causes=("not atomic",),
    deviations=0,
)
