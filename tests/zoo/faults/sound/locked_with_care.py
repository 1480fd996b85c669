"""Locks are released on every way out, those on files and those on threads."""

import fcntl
import json
import threading
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably

LOCK = threading.Lock()


def workload(directory: Path) -> None:
    with LOCK, open(directory / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        replace_durably(directory / "state.json", b"2")


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b"1")


def recover(directory: Path) -> object:
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, before=1, after=2)
