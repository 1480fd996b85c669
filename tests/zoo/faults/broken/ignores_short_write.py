"""A write that took half of the bytes is taken for a whole one.

write(2) may write less than it was given, on a disk that is nearly full for one; the rest is the
caller's business. Here nobody looks, and half a document is renamed over the good one.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably, sync_directory

KINDS = {"unrecoverable", "mixture"}


def workload(directory: Path) -> None:
    temporary = directory / "state.json.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, b"        2")  # BUG
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, directory / "state.json")
    sync_directory(directory)


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b"1")


def recover(directory: Path) -> object:
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, before=1, after=2)
