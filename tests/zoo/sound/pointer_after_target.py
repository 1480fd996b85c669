"""`CURRENT` is switched when its target, content and name, is on disk.

The counterpart of `pointer_before_target` and `index_before_data`. The old target is removed last,
and whether that removal is durable does not matter to anybody.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably, sync_directory, write_synced


def setup(directory: Path) -> None:
    replace_durably(directory / "manifest-1", b'{"tables": 1}')
    replace_durably(directory / "CURRENT", b"manifest-1")


def workload(directory: Path) -> None:
    write_synced(directory / "manifest-2", b'{"tables": 2}')
    sync_directory(directory)
    replace_durably(directory / "CURRENT", b"manifest-2")
    os.remove(directory / "manifest-1")


def recover(directory: Path) -> object:
    name = (directory / "CURRENT").read_text()
    return json.loads((directory / name).read_text())


SPEC = ZooSpec(
    setup=setup, workload=workload, recover=recover, before={"tables": 1}, after={"tables": 2}
)
