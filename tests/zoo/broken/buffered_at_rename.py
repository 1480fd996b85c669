"""The bytes are still in the program when the file gets its final name.

`write` on a Python file fills a buffer of the process. The store syncs the descriptor (an empty
file at that moment), renames, and only then closes the file, which is when the bytes leave the
process. A crash between rename and close leaves an empty file under the final name. No cache of the
kernel is involved, so even a killed process shows it: every model, 0 deviations.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably, sync_directory


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b'{"score": 1}')


def workload(directory: Path) -> None:
    temporary = directory / "state.json.tmp"
    handle = open(temporary, "w")  # noqa: SIM115
    handle.write('{"score": 2}')
    os.fsync(handle.fileno())
    os.replace(temporary, directory / "state.json")  # BUG
    handle.close()
    descriptor = os.open(directory / "state.json", os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    sync_directory(directory)


def recover(directory: Path) -> object:
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2},
    models=ALL_MODELS,
    kind="unrecoverable",
    causes=("buffered data not flushed",),
    deviations=0,
)
