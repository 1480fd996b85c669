"""A sync that fails is logged away, and the save is reported as done.

Until the power fails nothing shows: the page cache answers every read.
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
        try:
            os.fsync(handle.fileno())  # BUG
        except OSError:
            pass
    os.replace(temporary, directory / "state.json")
    sync_directory(directory)


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b"1")


def recover(directory: Path) -> object:
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, before=1, after=2)
