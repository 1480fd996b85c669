"""The old version's name is removed before the new version's name is durable.

Versions are published by a hard link: the synced temporary is linked under its number, then the
previous number is unlinked. Two names in one directory are two entries, and without a sync between
the two calls the removal may be on disk alone: no version is left. Journalled metadata keeps the
order on ext4 and XFS; POSIX does not, and neither does the log that btrfs writes for the directory.
1 deviation: the link missing, the removal there.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably, sync_directory, write_synced


def setup(directory: Path) -> None:
    replace_durably(directory / "state-1", b'{"score": 1}')


def workload(directory: Path) -> None:
    temporary = directory / "incoming"
    write_synced(temporary, b'{"score": 2}')
    os.link(temporary, directory / "state-2")  # BUG
    os.unlink(directory / "state-1")
    os.unlink(temporary)
    sync_directory(directory)


def recover(directory: Path) -> object:
    versions = sorted(directory.glob("state-*"))
    return json.loads(versions[-1].read_text())


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2},
    models=("posix", "btrfs"),
    kind="unrecoverable",
    causes=("missing directory fsync",),
    deviations=1,
)
