"""A temporary that looks like a record.

Every note is a file; recovery lists the directory. The temporary of an interrupted save ends in
`.json` like the notes do, so after a crash there is a note that nobody wrote, under a name that
nobody chose. Every model, a killed process included, at 0 deviations.
"""

import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably, sync_directory


def setup(directory: Path) -> None:
    replace_durably(directory / "monday.json", b'"bread"')


def workload(directory: Path) -> None:
    temporary = directory / "new-tuesday.json"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)  # BUG
    os.write(descriptor, b'"milk"')
    os.fsync(descriptor)
    os.close(descriptor)
    os.replace(temporary, directory / "tuesday.json")
    sync_directory(directory)


def recover(directory: Path) -> object:
    return sorted(path.stem for path in directory.glob("*.json"))


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before=["monday"],
    after=["monday", "tuesday"],
    models=ALL_MODELS,
    kind="atomicity",
    causes=("temporary mistaken for data",),
    deviations=0,
)
