"""A temporary that is copied, not renamed, over the target.

The temporary is written and synced with care. Then, because it might be on another file system, it
is copied over the target, and a copy truncates the target and fills it again. The temporary bought
nothing. No sync helps. Every model, a killed process included, at 0 deviations.
"""

import json
import os
import shutil
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably, sync_directory, write_synced


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b'{"score": 1}')


def workload(directory: Path) -> None:
    temporary = directory / "state.json.tmp"
    write_synced(temporary, b'{"score": 2}')
    shutil.copyfile(temporary, directory / "state.json")  # BUG
    descriptor = os.open(directory / "state.json", os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    os.remove(temporary)
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
