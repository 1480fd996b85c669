"""The save succeeds, its lock file cannot be removed, and nobody is told.

Everything is saved. It is the last save of this program for ever.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably

KINDS = {"retry fails"}


def workload(directory: Path) -> None:
    os.close(os.open(directory / "lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    try:
        replace_durably(directory / "state.json", b"2")
    finally:
        with suppress(OSError):
            os.unlink(directory / "lock")  # BUG


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b"1")


def recover(directory: Path) -> object:
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, before=1, after=2)
