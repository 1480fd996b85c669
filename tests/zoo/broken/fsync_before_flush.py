"""The fsync comes before the flush, so it syncs an empty file.

`write` leaves the bytes in Python's buffer, `os.fsync` syncs what the kernel has (nothing), and
`close` hands the bytes over, unsynced, just before the rename. Every call of the recipe is there,
in the wrong order. Every model of power loss, at 1 deviation: the write that `close` made is
missing, the rename is there. A killed process loses nothing.
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
    handle = open(temporary, "w")  # noqa: SIM115
    handle.write('{"score": 2}')
    os.fsync(handle.fileno())
    handle.close()  # BUG
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
    # Both are true: the bytes were unflushed at the fsync, and unsynced at the rename.
    causes=("buffered data not flushed", "missing fsync before rename"),
    deviations=1,
)
