"""`CURRENT` is switched by the book to a manifest that is not on disk.

A log-structured store names its newest manifest in a file called `CURRENT`. That file is small and
is treated with every care; the manifest behind it was written without a sync. After a power loss
`CURRENT` names an empty file, and the old manifest, still there, is named by nobody. Every model of
power loss, at 1 deviation. A killed process loses nothing.
"""

import json
from pathlib import Path

from tests.zoo.spec import POWER_LOSS, ZooSpec
from tests.zoo.steps import replace_durably


def setup(directory: Path) -> None:
    replace_durably(directory / "manifest-1", b'{"tables": 1}')
    replace_durably(directory / "CURRENT", b"manifest-1")


def workload(directory: Path) -> None:
    (directory / "manifest-2").write_bytes(b'{"tables": 2}')  # BUG
    replace_durably(directory / "CURRENT", b"manifest-2")


def recover(directory: Path) -> object:
    name = (directory / "CURRENT").read_text()
    return json.loads((directory / name).read_text())


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"tables": 1},
    after={"tables": 2},
    models=POWER_LOSS,
    kind="unrecoverable",
    # The pointer overtook its target, because the target was not synced.
    causes=("reordered writes", "missing fsync"),
    deviations=1,
)
