"""A lock is given back on the way that goes well, and on no other.

The disk is full once, the save reports it, and every later save waits for a lock that nobody will
ever release.
"""

import json
import threading
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably

KINDS = {"left locked"}
LOCK = threading.Lock()


def workload(directory: Path) -> None:
    LOCK.acquire()
    replace_durably(directory / "state.json", b"2")  # BUG
    LOCK.release()


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b"1")


def recover(directory: Path) -> object:
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, before=1, after=2)
