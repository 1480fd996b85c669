"""There is an fsync, of the wrong file.

The store keeps the current file open and syncs that descriptor before the rename, where the
temporary's was meant. The old file is as durable as before; the new bytes are in the page cache
when the rename reaches the disk. As harmful as no fsync at all, and harder to see in a review.
Every model of power loss, at 1 deviation. A killed process loses nothing.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import POWER_LOSS, ZooSpec
from tests.zoo.steps import replace_durably, sync_directory


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b'{"score": 1}')


def workload(directory: Path) -> None:
    current = os.open(directory / "state.json", os.O_RDWR)
    temporary = directory / "state.json.tmp"
    temporary.write_text('{"score": 2}')  # BUG
    os.fsync(current)
    os.close(current)
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
