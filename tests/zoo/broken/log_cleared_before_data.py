"""The redo log is thrown away while the data that it carried is still in the page cache.

The new value is logged durably, applied to the data in place, and the log is removed because it
"has been applied". The removal is committed at once, the data's block is not: log gone, data old,
although the caller was told that it is saved. Every model of power loss, at 1 deviation (the write
to the data missing, the removal there). A killed process loses nothing.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import POWER_LOSS, ZooSpec
from tests.zoo.steps import frame, replace_durably, sync_directory, unframe, write_synced


def setup(directory: Path) -> None:
    replace_durably(directory / "data", b'{"score": 1}')


def workload(directory: Path) -> None:
    write_synced(directory / "redo", frame(b'{"score": 2}'))
    sync_directory(directory)
    with open(directory / "data", "r+b", buffering=0) as data:
        data.write(b'{"score": 2}')  # BUG
    os.remove(directory / "redo")
    sync_directory(directory)


def recover(directory: Path) -> object:
    redo = directory / "redo"
    records, _ = unframe(redo.read_bytes() if redo.exists() else b"")
    return json.loads(records[0] if records else (directory / "data").read_bytes())


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2},
    models=POWER_LOSS,
    kind="durability",
    causes=("missing fsync",),
    deviations=1,
)
