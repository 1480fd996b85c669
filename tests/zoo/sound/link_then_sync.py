"""Versions published by a hard link, with a directory sync before the old name goes.

The counterpart of `hard_link_switch`: the new number is durable when the previous one is removed.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably, sync_directory, write_synced


def setup(directory: Path) -> None:
    replace_durably(directory / "state-1", b'{"score": 1}')


def workload(directory: Path) -> None:
    temporary = directory / "incoming"
    write_synced(temporary, b'{"score": 2}')
    os.link(temporary, directory / "state-2")
    sync_directory(directory)
    os.unlink(directory / "state-1")
    os.unlink(temporary)


def recover(directory: Path) -> object:
    versions = sorted(directory.glob("state-*"))
    return json.loads(versions[-1].read_text())


SPEC = ZooSpec(
    setup=setup, workload=workload, recover=recover, before={"score": 1}, after={"score": 2}
)
