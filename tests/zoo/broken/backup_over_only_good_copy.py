"""The backup is taken from the damaged file and overwrites the only good copy.

An earlier crash tore the main file; recovery falls back to the backup, so nobody noticed. The next
save begins, as always, by copying the main file over the backup, without asking whether it is
whole. From then until the new value is on disk both copies are rubbish. Every model, a killed
process included, at 0 deviations.
"""

import json
import os
import shutil
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b'{"sco')
    replace_durably(directory / "state.bak", b'{"score": 1}')


def workload(directory: Path) -> None:
    shutil.copyfile(directory / "state.json", directory / "state.bak")  # BUG
    with open(directory / "state.json", "wb", buffering=0) as handle:
        handle.write(b'{"score": 2}')
        os.fsync(handle.fileno())


def recover(directory: Path) -> object:
    try:
        return json.loads((directory / "state.json").read_text())
    except ValueError:
        return json.loads((directory / "state.bak").read_text())


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
