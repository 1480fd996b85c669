"""Recovery reads the undo journal, removes it, and only then restores.

Two fields of one file are changed in place, under an undo journal that is written with every sync
it needs. Recovery takes the journal into memory, removes the file "so that it is not applied
twice", and restores the data. A second crash in between leaves half-changed data and no journal.
Every model, a killed process included: the first crash comes between the two fields, the second
after the removal, both at 0 deviations.
"""

import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import frame, replace_durably, sync_directory, unframe


def setup(directory: Path) -> None:
    replace_durably(directory / "data", b"100 100")


def workload(directory: Path) -> None:
    replace_durably(directory / "undo", frame((directory / "data").read_bytes()))
    descriptor = os.open(directory / "data", os.O_RDWR)
    os.pwrite(descriptor, b"090", 0)
    os.pwrite(descriptor, b"110", 4)
    os.fsync(descriptor)
    os.close(descriptor)
    os.remove(directory / "undo")
    sync_directory(directory)


def recover(directory: Path) -> object:
    undo = directory / "undo"
    if undo.exists():
        records, _ = unframe(undo.read_bytes())
        os.remove(undo)  # BUG
        sync_directory(directory)
        with open(directory / "data", "r+b", buffering=0) as data:
            data.write(records[0])
            os.fsync(data.fileno())
    return [int(field) for field in (directory / "data").read_bytes().split()]


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before=[100, 100],
    after=[90, 110],
    models=ALL_MODELS,
    kind="atomicity",
    causes=("recovery not idempotent",),
    deviations=0,
)
