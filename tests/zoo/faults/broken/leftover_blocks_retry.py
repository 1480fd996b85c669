"""The temporary of a save that failed is in the way of every later save.

It is made exclusively, so that two writers cannot meet; after an error nobody removes it, and each
new attempt ends at the file that is there already.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably, sync_directory

KINDS = {"retry fails"}


def workload(directory: Path) -> None:
    temporary = directory / "state.json.tmp"
    with open(temporary, "x") as handle:  # BUG
        handle.write("2")
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, directory / "state.json")
    sync_directory(directory)


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b"1")


def recover(directory: Path) -> object:
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, before=1, after=2)
