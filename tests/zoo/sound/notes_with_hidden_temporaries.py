"""A file for each note; temporaries have a name that no reader takes for a note.

The counterpart of `temporary_mistaken_for_data`, and of `deletion_comes_back`: one note is added,
then one is removed, and both changes of the directory are synced before the save returns.
"""

import os
from collections.abc import Callable
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably, sync_directory

HISTORY = (["monday"], ["monday", "tuesday"], ["tuesday"])


def setup(directory: Path) -> None:
    replace_durably(directory / "monday.json", b'"bread"')


def workload(directory: Path, acknowledge: Callable[[object], None]) -> None:
    replace_durably(directory / "tuesday.json", b'"milk"')
    acknowledge("added")
    os.remove(directory / "monday.json")
    sync_directory(directory)
    acknowledge("removed")


def recover(directory: Path) -> object:
    return sorted(path.stem for path in directory.glob("*.json"))


def as_of_the_last_change_or_the_next(recovered: object, acknowledged: tuple[object, ...]) -> bool:
    return recovered in HISTORY[len(acknowledged) : len(acknowledged) + 2]


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    invariant=as_of_the_last_change_or_the_next,
)
