"""Recovery throws the log away before what it took from it is durable.

Saving is done well: one record in a redo log, synced. Recovery writes the record into the data in
place and empties the log, without a sync in between or after. It returns the new value; power fails
again; the log is empty on disk and the data is old. The user saw the value after the first crash
and not after the second. Every model of power loss: the crash of the save may be the plainest, in
the recovery the write is missing and the later truncation there (1 deviation). A killed process
loses nothing.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import POWER_LOSS, ZooSpec
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
        with open(directory / "data", "r+b", buffering=0) as data:
            data.write(records[-1])  # BUG
        os.truncate(directory / "redo", 0)
    return json.loads((directory / "data").read_bytes())


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2},
    models=POWER_LOSS,
    kind="unstable",
    # The truncation overtook the write, because the write was not synced.
    causes=("reordered writes", "missing fsync"),
    deviations=0,
)
