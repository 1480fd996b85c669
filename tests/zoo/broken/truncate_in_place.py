"""Opening for writing throws the old value away before there is a new one.

`open(path, "w")` truncates at once. From then until the new bytes are on disk there is neither the
old nor the new value, and no sync can close the gap, since the order itself is wrong. Every model,
a killed process included, at 0 deviations: stop after the truncation.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b'{"score": 1}')


def workload(directory: Path) -> None:
    handle = open(directory / "state.json", "w")  # noqa: SIM115  # BUG
    handle.write('{"score": 2}')
    handle.flush()
    os.fsync(handle.fileno())
    handle.close()


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
    causes=("not atomic",),
    deviations=0,
)
