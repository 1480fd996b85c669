"""A lock that the kernel holds and forgets with its owner.

The counterpart of `lock_file_left_behind`: the lock file stays for ever and means nothing by
itself; what counts is `flock`, which no crash outlives. Recovery takes the lock as a save does.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory / "state.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b'{"score": 1}')


def workload(directory: Path) -> None:
    with locked(directory):
        replace_durably(directory / "state.json", b'{"score": 2}')


def recover(directory: Path) -> object:
    with locked(directory):
        return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(
    setup=setup, workload=workload, recover=recover, before={"score": 1}, after={"score": 2}
)
