"""Changes with a number, and a balance that knows the last number it contains.

The other cure for `replays_log_twice`, where the log must hold changes: the balance and the number
of the last change applied are one file, replaced together, so a second replay finds nothing to do.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import frame, replace_durably, sync_directory, unframe


def setup(directory: Path) -> None:
    replace_durably(directory / "balance", b"[100, 0]")


def workload(directory: Path) -> None:
    replace_durably(directory / "redo", frame(b"[10, 1]"))


def recover(directory: Path) -> object:
    total, applied = json.loads((directory / "balance").read_bytes())
    redo = directory / "redo"
    if redo.exists():
        records, _ = unframe(redo.read_bytes())
        for amount, number in map(json.loads, records):
            if number > applied:
                total, applied = total + amount, number
        replace_durably(directory / "balance", json.dumps([total, applied]).encode())
        os.remove(redo)
        sync_directory(directory)
    return total


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, before=100, after=110)
