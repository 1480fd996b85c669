"""What was deleted is back.

A message is removed and the caller is told so. A removal is a change of the directory, and nobody
synced it: after a power loss the message is there again. For a mail it is a nuisance, for a consent
or a key it is more. Every model of power loss, at 0 deviations. A killed process loses nothing.
"""

import os
from pathlib import Path

from tests.zoo.spec import POWER_LOSS, ZooSpec
from tests.zoo.steps import replace_durably


def setup(directory: Path) -> None:
    replace_durably(directory / "one.msg", b"hello")
    replace_durably(directory / "two.msg", b"good-bye")


def workload(directory: Path) -> None:
    os.remove(directory / "two.msg")  # BUG


def recover(directory: Path) -> object:
    return sorted(path.stem for path in directory.glob("*.msg"))


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before=["one", "two"],
    after=["one"],
    models=POWER_LOSS,
    kind="durability",
    causes=("missing directory fsync",),
    deviations=0,
)
