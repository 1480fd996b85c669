"""The undo log reaches the disk after the data that it is there to restore.

Before it overwrites two blocks in place, the store copies them to an undo log, which is the right
idea. But the log is not synced before the overwriting starts, and nothing orders two files: the
disk may hold half of the new data and an empty log. Recovery finds no valid log and returns a
mixture. Every model of power loss, at 1 deviation (the log's write missing, a block of the data
there). A killed process loses nothing.
"""

import os
import zlib
from pathlib import Path

from tests.zoo.spec import POWER_LOSS, ZooSpec
from tests.zoo.steps import replace_durably, sync_directory

OLD, NEW = b"o" * 8192, b"n" * 8192


def setup(directory: Path) -> None:
    replace_durably(directory / "data", OLD)


def workload(directory: Path) -> None:
    old = (directory / "data").read_bytes()
    (directory / "undo").write_bytes(zlib.crc32(old).to_bytes(4, "big") + old)  # BUG
    sync_directory(directory)
    with open(directory / "data", "r+b", buffering=0) as data:
        data.write(NEW)
        os.fsync(data.fileno())
    os.remove(directory / "undo")
    sync_directory(directory)


def recover(directory: Path) -> object:
    undo = directory / "undo"
    if undo.exists():
        saved = undo.read_bytes()
        if len(saved) > 4 and zlib.crc32(saved[4:]) == int.from_bytes(saved[:4], "big"):
            with open(directory / "data", "r+b", buffering=0) as data:
                data.write(saved[4:])
                os.fsync(data.fileno())
        os.remove(undo)
        sync_directory(directory)
    content = (directory / "data").read_bytes()
    return [chr(content[0]), chr(content[-1])]


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before=["o", "o"],
    after=["n", "n"],
    models=POWER_LOSS,
    kind="atomicity",
    causes=("reordered writes",),
    deviations=1,
)
