"""Recovery publishes a prepared save and removes the decision, in no order that a disk must keep.

A save is prepared in a file of its own and decided by a marker; recovery renames the prepared file
into place and removes the marker. Both are changes of one directory, and no sync stands between
them. Under POSIX the removal may be on disk alone: the save was decided, returned by recovery once,
and is now an undecided file that everybody ignores. Journalled metadata keeps the order, so only
the `posix` model shows it, at 1 deviation.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b'{"score": 1}')


def workload(directory: Path) -> None:
    replace_durably(directory / "prepared", b'{"score": 2}')
    replace_durably(directory / "decided", b"")


def recover(directory: Path) -> object:
    decided, prepared = directory / "decided", directory / "prepared"
    if decided.exists():
        if prepared.exists():
            os.replace(prepared, directory / "state.json")  # BUG
        os.remove(decided)
    return json.loads((directory / "state.json").read_bytes())


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2},
    models=("posix",),
    kind="unstable",
    causes=("missing directory fsync",),
    deviations=0,
)
