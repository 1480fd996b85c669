"""After a sync that failed, everything is written again, to a new file.

Nothing that the failed sync may have marked clean is ever believed.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably, sync_directory


def workload(directory: Path) -> None:
    temporary = directory / "state.json.tmp"
    for attempt in range(3):
        try:
            with open(temporary, "w") as handle:
                handle.write("2")
                handle.flush()
                os.fsync(handle.fileno())
            break
        except OSError:
            if attempt == 2:
                raise
    os.replace(temporary, directory / "state.json")
    sync_directory(directory)


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b"1")


def recover(directory: Path) -> object:
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, before=1, after=2)
