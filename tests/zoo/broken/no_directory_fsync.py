"""Saved, said so, and the old value is back.

The content is synced before the rename, so the file is always whole. But the rename itself is a
change of the directory, and nobody synced the directory: the caller is told "saved" while the name
still leads to the old file. Shows under every model of power loss at 0 deviations, since simply
stopping before the rename reached the disk is enough. A killed process loses nothing.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import POWER_LOSS, ZooSpec
from tests.zoo.steps import replace_durably, write_synced


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b'{"score": 1}')


def workload(directory: Path) -> None:
    temporary = directory / "state.json.tmp"
    write_synced(temporary, b'{"score": 2}')
    os.replace(temporary, directory / "state.json")  # BUG


def recover(directory: Path) -> object:
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2},
    models=POWER_LOSS,
    kind="durability",
    causes=("missing directory fsync",),
    deviations=0,
)
