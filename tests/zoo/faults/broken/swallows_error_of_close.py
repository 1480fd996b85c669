"""A save that overlooks the error of close, where a buffered file is written.

On a full disk the file keeps what fitted into it. The sync that follows has nothing to complain
of: what is there is on disk, and it takes the place of the whole one.
"""

import os
from contextlib import suppress
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably, sync_directory

KINDS = {"silent loss"}


def setup(directory: Path) -> None:
    replace_durably(directory / "state", b"1" * 40)


def workload(directory: Path) -> None:
    file = open(directory / "state.tmp", "w")  # noqa: SIM115  its close is what matters
    file.write("2" * 40)
    with suppress(OSError):
        file.close()  # BUG
    descriptor = os.open(directory / "state.tmp", os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    os.replace(directory / "state.tmp", directory / "state")
    sync_directory(directory)


def recover(directory: Path) -> object:
    return (directory / "state").read_bytes()


SPEC = ZooSpec(
    setup=setup, workload=workload, recover=recover, before=b"1" * 40, after=b"2" * 40
)
