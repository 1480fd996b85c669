"""One file for each generation; the previous one goes only when the new one is durable.

The counterpart of `old_deleted_before_new_durable`: content synced, name synced, then the removal.
Recovery takes the newest generation that is whole.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably, sync_directory, write_synced


def setup(directory: Path) -> None:
    replace_durably(directory / "state-1.json", b'{"score": 1}')


def workload(directory: Path) -> None:
    write_synced(directory / "state-2.json", b'{"score": 2}')
    sync_directory(directory)
    os.remove(directory / "state-1.json")


def recover(directory: Path) -> object:
    for path in sorted(directory.glob("state-*.json"), reverse=True):
        try:
            return json.loads(path.read_text())
        except ValueError:
            continue
    raise LookupError("no generation is whole")


SPEC = ZooSpec(
    setup=setup, workload=workload, recover=recover, before={"score": 1}, after={"score": 2}
)
