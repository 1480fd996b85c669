"""A damaged file is moved to a name of its own, after the good value is back in place.

The counterpart of `quarantine_over_only_copy` and `backup_over_only_good_copy`: the backup is made
from the file only if the file is whole, and recovery keeps the damaged bytes by a copy under a
third name, then replaces the main file in one step.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably


def load(path: Path) -> object:
    return json.loads(path.read_bytes())


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b'{"score": 1}')
    replace_durably(directory / "state.bak", b'{"score": 0}')


def workload(directory: Path) -> None:
    main = directory / "state.json"
    load(main)
    replace_durably(directory / "state.bak", main.read_bytes())
    with open(main, "wb", buffering=0) as handle:
        handle.write(b'{"score": 2}')
        os.fsync(handle.fileno())


def recover(directory: Path) -> object:
    main, backup = directory / "state.json", directory / "state.bak"
    try:
        return load(main)
    except (FileNotFoundError, ValueError):
        value = load(backup)
    if main.exists():
        replace_durably(directory / "state.damaged", main.read_bytes())
    replace_durably(main, backup.read_bytes())
    return value


SPEC = ZooSpec(
    setup=setup, workload=workload, recover=recover, before={"score": 1}, after={"score": 2}
)
