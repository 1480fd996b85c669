"""The sync fails, is tried again, succeeds, and is believed.

The first sync told of the error and marked the pages clean; the second has nothing to write and so
nothing to complain of. The new bytes are in memory only, and the rename publishes a file without
them. This is the loss that PostgreSQL had for twenty years.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably, sync_directory

KINDS = {"lost with the power", "unrecoverable"}


def workload(directory: Path) -> None:
    temporary = directory / "state.json.tmp"
    with open(temporary, "w") as handle:
        handle.write("2")
        handle.flush()
        for attempt in range(3):
            try:
                os.fsync(handle.fileno())  # BUG
                break
            except OSError:
                if attempt == 2:
                    raise
    os.replace(temporary, directory / "state.json")
    sync_directory(directory)


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b"1")


def recover(directory: Path) -> object:
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, before=1, after=2)
