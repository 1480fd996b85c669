"""The lock outlives the process that held it.

A save creates a lock file and removes it when done. After a crash nobody removes it, and recovery
refuses to open a store that is "in use": the data is whole and out of reach. Every model, a killed
process included, at 0 deviations. A lock that the kernel holds (`flock`) dies with its owner.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably, sync_directory


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b'{"score": 1}')


def workload(directory: Path) -> None:
    lock = directory / "state.lock"
    os.close(os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL))  # BUG
    replace_durably(directory / "state.json", b'{"score": 2}')
    os.remove(lock)
    sync_directory(directory)


def recover(directory: Path) -> object:
    if (directory / "state.lock").exists():
        raise BlockingIOError("the store is in use by another process")
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2},
    models=ALL_MODELS,
    kind="unrecoverable",
    causes=("leftover blocks recovery",),
    deviations=0,
)
