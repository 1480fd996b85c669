"""A record of two blocks is overwritten in place.

One `write`, one `fsync`, and still two blocks that reach the disk one after the other: the first
half of the record is new, the second old. No sync helps, since the sync is what writes them. Every
model, a killed process included (a signal may stop a write between two pages), at 0 deviations.
"""

import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably


def setup(directory: Path) -> None:
    replace_durably(directory / "record", b"o" * 8192)


def workload(directory: Path) -> None:
    descriptor = os.open(directory / "record", os.O_WRONLY)
    os.write(descriptor, b"n" * 8192)  # BUG
    os.fsync(descriptor)
    os.close(descriptor)


def recover(directory: Path) -> object:
    return sorted(set((directory / "record").read_text()))


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before=["o"],
    after=["n"],
    models=ALL_MODELS,
    kind="atomicity",
    causes=("torn write",),
    deviations=0,
)
