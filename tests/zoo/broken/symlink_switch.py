"""The `current` link is removed and made again.

A symbolic link cannot be changed in place, so the store removes it and makes a new one. Between the
two calls nothing is current, and recovery finds no version although both are on disk. Making the
link under another name and renaming it over is atomic. Every model, a killed process included, at 0
deviations.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably, sync_directory


def setup(directory: Path) -> None:
    replace_durably(directory / "v1.json", b'{"score": 1}')
    replace_durably(directory / "v2.json", b'{"score": 2}')
    os.symlink("v1.json", directory / "current")
    sync_directory(directory)


def workload(directory: Path) -> None:
    os.unlink(directory / "current")  # BUG
    os.symlink("v2.json", directory / "current")
    sync_directory(directory)


def recover(directory: Path) -> object:
    return json.loads((directory / "current").read_text())


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2},
    models=ALL_MODELS,
    kind="unrecoverable",
    causes=("not atomic",),
    deviations=0,
)
