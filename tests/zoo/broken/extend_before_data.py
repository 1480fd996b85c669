"""The file grows first and is filled later.

The number of records is the size of the file divided by the size of a record, and a save makes room
with `ftruncate` before it writes. From then until the record is on disk the last record is zeros,
and recovery cannot parse it. No sync helps; writing first does. Every model, a killed process
included, at 0 deviations.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably

BLOCK = 4096


def setup(directory: Path) -> None:
    replace_durably(directory / "table", b'"one"'.ljust(BLOCK))


def workload(directory: Path) -> None:
    descriptor = os.open(directory / "table", os.O_RDWR)
    os.ftruncate(descriptor, 2 * BLOCK)  # BUG
    os.pwrite(descriptor, b'"two"'.ljust(BLOCK), BLOCK)
    os.fsync(descriptor)
    os.close(descriptor)


def recover(directory: Path) -> object:
    content = (directory / "table").read_bytes()
    return [json.loads(content[at : at + BLOCK]) for at in range(0, len(content), BLOCK)]


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before=["one"],
    after=["one", "two"],
    models=ALL_MODELS,
    kind="unrecoverable",
    causes=("not atomic",),
    deviations=0,
)
