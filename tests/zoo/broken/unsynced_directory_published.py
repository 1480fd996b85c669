"""A directory is built in private and published by a rename, without its entries.

Every file inside was synced, the rename is atomic, the parent is synced. The entries of the new
directory are its own content, and nobody synced them: under POSIX the published directory may be
empty. The named file systems make a file's name durable with its fsync, so only the `posix` model
shows it, at 1 deviation: the file's name missing, the rename of the directory there.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import sync_directory, write_synced


def setup(directory: Path) -> None:
    (directory / "v1").mkdir()
    write_synced(directory / "v1" / "data.json", b'{"score": 1}')
    sync_directory(directory / "v1")
    sync_directory(directory)


def workload(directory: Path) -> None:
    building = directory / "building"
    building.mkdir()
    descriptor = os.open(building / "data.json", os.O_WRONLY | os.O_CREAT, 0o644)  # BUG
    os.write(descriptor, b'{"score": 2}')
    os.fsync(descriptor)
    os.close(descriptor)
    os.rename(building, directory / "v2")
    sync_directory(directory)


def recover(directory: Path) -> object:
    newest = max(path.name for path in directory.glob("v*"))
    return json.loads((directory / newest / "data.json").read_text())


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2},
    models=("posix",),
    kind="unrecoverable",
    causes=("missing directory fsync",),
    deviations=1,
)
