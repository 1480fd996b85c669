"""An undo journal with every sync that it needs, and a recovery that may be interrupted.

Journal durable (content and name) before the data changes; data durable before the journal goes;
the journal's removal durable before the save returns. The journal is cut to nothing and synced
before it is removed, so that a name which a log replay brings back (btrfs) finds nothing to undo.
Recovery restores, syncs, and removes last: doing it twice does no harm.
"""

import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import frame, replace_durably, sync_directory, unframe, write_synced

OLD, NEW = b"o" * 8192, b"n" * 8192


def overwrite(path: Path, content: bytes) -> None:
    with open(path, "r+b", buffering=0) as data:
        data.write(content)
        os.fsync(data.fileno())


def retire(journal: Path) -> None:
    descriptor = os.open(journal, os.O_WRONLY)
    os.ftruncate(descriptor, 0)
    os.fsync(descriptor)
    os.close(descriptor)
    os.remove(journal)
    sync_directory(journal.parent)


def setup(directory: Path) -> None:
    replace_durably(directory / "data", OLD)


def workload(directory: Path) -> None:
    write_synced(directory / "undo", frame((directory / "data").read_bytes()))
    sync_directory(directory)
    overwrite(directory / "data", NEW)
    retire(directory / "undo")


def recover(directory: Path) -> object:
    undo = directory / "undo"
    if undo.exists():
        records, _ = unframe(undo.read_bytes())
        if records:
            overwrite(directory / "data", records[0])
        retire(undo)
    content = (directory / "data").read_bytes()
    return [chr(content[0]), chr(content[-1])]


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before=["o", "o"],
    after=["n", "n"],
    # A journal that is back after its removal is empty, and undoes nothing.
    spare_syncs=(4,),
)
