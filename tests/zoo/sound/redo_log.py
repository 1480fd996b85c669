"""A redo log that holds the value, not the change, and a recovery that applies it durably first.

The counterpart of `clears_log_before_durable`, `replays_log_twice` and `fails_on_own_leftovers`:
recovery replaces the data atomically and durably, through a temporary that it may find already
there, and only then empties the log. Applying a value twice gives the same value.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import frame, replace_durably, unframe


def setup(directory: Path) -> None:
    replace_durably(directory / "data", b'{"score": 1}')
    replace_durably(directory / "redo", b"")


def workload(directory: Path) -> None:
    with open(directory / "redo", "ab", buffering=0) as redo:
        redo.write(frame(b'{"score": 2}'))
        os.fsync(redo.fileno())


def recover(directory: Path) -> object:
    records, _ = unframe((directory / "redo").read_bytes())
    if records:
        replace_durably(directory / "data", records[-1])
        replace_durably(directory / "redo", b"")
    return json.loads((directory / "data").read_bytes())


SPEC = ZooSpec(
    setup=setup, workload=workload, recover=recover, before={"score": 1}, after={"score": 2}
)
