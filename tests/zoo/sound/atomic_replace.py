"""The recipe: write a temporary, sync it, rename it, sync the directory. Ten times in a row.

Each step answers one loss of the broken zoo: the temporary keeps the old value readable, its sync
puts the bytes before the name, the rename switches in one step, the directory's sync makes the
switch last. Repeating it shows that a leftover of one save does no harm to the next.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably, sync_directory

SAVES = 10


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b"0")


def workload(directory: Path, acknowledge: Callable[[object], None]) -> None:
    for number in range(1, SAVES + 1):
        temporary = directory / "state.json.tmp"
        with open(temporary, "w") as handle:
            json.dump(number, handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, directory / "state.json")
        sync_directory(directory)
        acknowledge(number)


def recover(directory: Path) -> object:
    return json.loads((directory / "state.json").read_text())


def last_or_next(recovered: object, acknowledged: tuple[object, ...]) -> bool:
    return recovered in (len(acknowledged), len(acknowledged) + 1)


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, invariant=last_or_next)
