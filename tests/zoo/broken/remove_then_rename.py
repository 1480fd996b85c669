"""The old file is removed first, because on another system `rename` refused to overwrite.

Between the removal and the rename there is no file of that name. Whoever stops there starts again
with nothing, although two good copies were on disk a moment ago. No sync helps; `os.replace` in one
step does. Every model, a killed process included, at 0 deviations.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably, sync_directory, write_synced


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b'{"score": 1}')


def workload(directory: Path) -> None:
    temporary = directory / "state.json.tmp"
    write_synced(temporary, b'{"score": 2}')
    os.remove(directory / "state.json")  # BUG
    os.rename(temporary, directory / "state.json")
    sync_directory(directory)


def recover(directory: Path) -> object:
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2},
    models=ALL_MODELS,
    kind="unrecoverable",
    causes=("not atomic",),
    deviations=0,
)
