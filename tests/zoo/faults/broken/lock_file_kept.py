"""The lock on a file stays held because its descriptor is kept after an error.

Until the process ends, no other one can save.
"""

import fcntl
import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably

KINDS = {"left locked"}
OPENED: list[int] = []


def workload(directory: Path) -> None:
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    OPENED.append(descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    replace_durably(directory / "state.json", b"2")  # BUG
    OPENED.remove(descriptor)
    os.close(descriptor)


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b"1")


def recover(directory: Path) -> object:
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, before=1, after=2)
