"""One save by the recipe, judged by its value before and after; the new value is the longer one."""

import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably, sync_directory


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b'{"score": 1}')


def workload(directory: Path) -> None:
    temporary = directory / "state.json.tmp"
    with open(temporary, "w") as handle:
        handle.write('{"score": 2, "level": "three"}')
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, directory / "state.json")
    sync_directory(directory)


def recover(directory: Path) -> object:
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2, "level": "three"},
)
