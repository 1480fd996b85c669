"""The current file is renamed to be the backup, and for a moment there is no current file.

Two renames: the current file becomes `.bak`, the temporary becomes current. Between them recovery,
which looks only at the current name, starts with nothing, and the next save overwrites the backup.
No sync helps; a hard link for the backup, or a recovery that looks at it, does. Every model, a
killed process included, at 0 deviations.
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
    os.replace(directory / "state.json", directory / "state.json.bak")  # BUG
    os.replace(temporary, directory / "state.json")
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
