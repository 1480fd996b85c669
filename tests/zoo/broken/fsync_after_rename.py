"""The fsync is there, one line too late.

The temporary is renamed first and synced under its final name. Between the two calls the name may
already be on disk without the bytes. Every model of power loss, at 1 deviation (the write missing,
the rename there); the save that has returned is safe, the one that is running is not. A killed
process loses nothing.
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
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(descriptor, b'{"score": 2}')  # BUG
    os.replace(temporary, directory / "state.json")
    os.fsync(descriptor)
    os.close(descriptor)
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
