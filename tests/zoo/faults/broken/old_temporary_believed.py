"""What an attempt that failed has left is taken for written, since it reads as it should.

The sync of the temporary failed and the save said so. The next attempt finds the temporary with the
right bytes, syncs it, is told that all is well (its pages are marked clean), and publishes a file
that no disk has ever seen.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably, sync_directory

KINDS = {"lost with the power"}


def workload(directory: Path) -> None:
    temporary = directory / "state.json.tmp"
    if not temporary.exists() or temporary.read_text() != "2":
        temporary.write_text("2")
    with open(temporary, "r+") as handle:
        os.fsync(handle.fileno())  # BUG
    os.replace(temporary, directory / "state.json")
    sync_directory(directory)


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b"1")


def recover(directory: Path) -> object:
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, before=1, after=2)
