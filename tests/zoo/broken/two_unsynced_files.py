"""Two mirrors, so that one may fail; both were never synced.

The value is written twice, and a marker, properly synced, says that the save is complete. Recovery
needs only one of the two mirrors. Losing either alone does no harm, so whoever drops one write at a
time sees a sound store. Both are in the page cache, and a power loss takes both. Every model of
power loss, at 2 deviations: two writes missing, the later marker there.
"""

import json
from pathlib import Path

from tests.zoo.spec import POWER_LOSS, ZooSpec
from tests.zoo.steps import replace_durably


def setup(directory: Path) -> None:
    replace_durably(directory / "old.json", b'{"score": 1}')


def workload(directory: Path) -> None:
    for mirror in ("left.json", "right.json"):
        (directory / mirror).write_text('{"score": 2}')  # BUG
    replace_durably(directory / "complete", b"yes")


def recover(directory: Path) -> object:
    if not (directory / "complete").exists():
        return json.loads((directory / "old.json").read_text())
    for mirror in ("left.json", "right.json"):
        try:
            return json.loads((directory / mirror).read_text())
        except (OSError, ValueError):
            continue
    raise LookupError("the save is marked complete and neither mirror is whole")


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2},
    models=POWER_LOSS,
    kind="unrecoverable",
    # The marker overtook the mirrors, because the mirrors were not synced.
    causes=("missing fsync", "reordered writes"),
    deviations=2,
)
