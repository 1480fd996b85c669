"""The new name reaches the disk before the new bytes.

The store writes a temporary and renames it over the old file, which looks atomic. The rename is
metadata and is committed by the journal within seconds; the bytes wait in the page cache for up to
half a minute. Power fails in between: the old file is gone, the name points to an empty file (XFS,
btrfs, ext4 without auto_da_alloc) or to one that has the right length and holds only zeros (ext4).
Shows under every model of power loss at 1 deviation: the write is missing, the later rename is
there. A killed process loses nothing.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import POWER_LOSS, ZooSpec
from tests.zoo.steps import replace_durably, sync_directory


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b'{"score": 1}')


def workload(directory: Path) -> None:
    temporary = directory / "state.json.tmp"
    temporary.write_text('{"score": 2}')  # BUG
    os.replace(temporary, directory / "state.json")
    sync_directory(directory)


def recover(directory: Path) -> object:
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2},
    models=POWER_LOSS,
    kind="unrecoverable",
    causes=("missing fsync before rename",),
    deviations=1,
)
