"""A shorter value is written over a longer one, and the rest is cut off afterwards.

`json.dump` over the old content and then `truncate`: between the two the file holds the new value
with the end of the old one behind it, which no parser accepts. Both calls reach the kernel from the
`truncate` line, since it is what empties Python's buffer. No sync helps. Every model, a killed
process included, at 0 deviations.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b'{"scores": [1, 2, 3]}')


def workload(directory: Path) -> None:
    with open(directory / "state.json", "r+") as handle:
        json.dump({"scores": []}, handle)
        handle.truncate()  # BUG
        os.fsync(handle.fileno())


def recover(directory: Path) -> object:
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"scores": [1, 2, 3]},
    after={"scores": []},
    models=ALL_MODELS,
    kind="unrecoverable",
    causes=("not atomic",),
    deviations=0,
)
