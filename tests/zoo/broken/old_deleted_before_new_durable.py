"""The previous generation is deleted while the new one is only in the page cache.

Each save is a file of its own, recovery takes the newest that is whole. The new generation is
written and its name is made durable, but not its bytes; then the old one is removed. The removal is
committed, the bytes are not: nothing whole is left. Every model of power loss, at 1 deviation (the
write missing, the removal there). A killed process loses nothing.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import POWER_LOSS, ZooSpec
from tests.zoo.steps import replace_durably, sync_directory


def setup(directory: Path) -> None:
    replace_durably(directory / "state-1.json", b'{"score": 1}')


def workload(directory: Path) -> None:
    (directory / "state-2.json").write_text('{"score": 2}')  # BUG
    sync_directory(directory)
    os.remove(directory / "state-1.json")
    sync_directory(directory)


def recover(directory: Path) -> object:
    for path in sorted(directory.glob("state-*.json"), reverse=True):
        try:
            return json.loads(path.read_text())
        except ValueError:
            continue
    raise LookupError("no generation is whole")


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2},
    models=POWER_LOSS,
    kind="unrecoverable",
    causes=("missing fsync",),
    deviations=1,
)
