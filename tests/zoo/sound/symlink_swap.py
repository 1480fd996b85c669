"""A version is a directory, and `current` is a symbolic link that is renamed into place.

The counterpart of `symlink_switch`, `new_directory_not_synced` and `unsynced_directory_published`:
file synced, its directory synced, the parent synced; then a new link under another name is renamed
over the old one, and the parent is synced again.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import sync_directory, write_synced


def publish(directory: Path, version: str, content: bytes) -> None:
    (directory / version).mkdir()
    write_synced(directory / version / "data.json", content)
    sync_directory(directory / version)
    sync_directory(directory)
    incoming = directory / "incoming"
    incoming.unlink(missing_ok=True)
    os.symlink(version, incoming)
    os.replace(incoming, directory / "current")
    sync_directory(directory)


def setup(directory: Path) -> None:
    publish(directory, "v1", b'{"score": 1}')


def workload(directory: Path) -> None:
    publish(directory, "v2", b'{"score": 2}')


def recover(directory: Path) -> object:
    return json.loads((directory / "current" / "data.json").read_text())


SPEC = ZooSpec(
    setup=setup, workload=workload, recover=recover, before={"score": 1}, after={"score": 2}
)
