"""A job that may be seen in two queues, and a reader that knows it.

The counterpart of `cross_directory_rename`: a rename across directories may show both names, so
recovery counts a job that is in `done` as done wherever else it appears. The destination is synced
first, then the source.
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
    os.rename(directory / "pending" / "job", directory / "done" / "job")
    sync_directory(directory / "done")
    sync_directory(directory / "pending")


def recover(directory: Path) -> object:
    done = set(os.listdir(directory / "done"))
    pending = set(os.listdir(directory / "pending")) - done
    return {"pending": sorted(pending), "done": sorted(done)}


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"pending": ["job"], "done": []},
    after={"pending": [], "done": ["job"]},
    # Either directory is enough: the removal cannot be durable without the addition, and an
    # addition alone is read as done.
    spare_syncs=(0, 1),
)
