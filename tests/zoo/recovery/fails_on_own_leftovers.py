"""Recovery trips over what an interrupted recovery left.

Recovery folds the log into the data through a temporary that it creates exclusively, which is right
for a save that two processes may run. When it is itself interrupted, the temporary stays, and every
later start fails with `FileExistsError` until somebody removes it by hand. Every model, a killed
process included, at 0 deviations.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import frame, replace_durably, sync_directory, unframe


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
        temporary = directory / "data.tmp"
        with open(temporary, "xb", buffering=0) as handle:  # BUG
            handle.write(records[-1])
            os.fsync(handle.fileno())
        os.replace(temporary, directory / "data")
        sync_directory(directory)
        replace_durably(directory / "redo", b"")
    return json.loads((directory / "data").read_bytes())


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2},
    models=ALL_MODELS,
    kind="unrecoverable",
    causes=("leftover blocks recovery",),
    deviations=0,
)
