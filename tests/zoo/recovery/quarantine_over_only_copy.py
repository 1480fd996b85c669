"""Recovery moves the damaged file away, onto the only good copy.

The save keeps a backup and then writes in place, so the backup is what a torn save falls back to.
Recovery loads the backup, renames the damaged file to `.bak` to keep it for the experts (the
backup's own name), and writes the main file anew. A second crash after that rename: the damaged
file is the backup, and there is no main file. Every model, a killed process included, both crashes
at 0 deviations.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b'{"score": 1}')
    replace_durably(directory / "state.bak", b'{"score": 0}')


def workload(directory: Path) -> None:
    replace_durably(directory / "state.bak", (directory / "state.json").read_bytes())
    with open(directory / "state.json", "wb", buffering=0) as handle:
        handle.write(b'{"score": 2}')
        os.fsync(handle.fileno())


def recover(directory: Path) -> object:
    main, backup = directory / "state.json", directory / "state.bak"
    try:
        return json.loads(main.read_bytes())
    except (FileNotFoundError, ValueError):
        good = backup.read_bytes()
        value = json.loads(good)
    if main.exists():
        os.replace(main, backup)  # BUG
    replace_durably(main, good)
    return value


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2},
    models=ALL_MODELS,
    kind="unrecoverable",
    causes=("recovery not idempotent",),
    deviations=0,
)
