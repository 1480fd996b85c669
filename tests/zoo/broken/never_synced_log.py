"""A log that is framed, checksummed, and never synced.

Recovery copes with every torn tail. The record itself is in the page cache when the caller is told
that it is saved, and a power loss takes it. Every model of power loss, at 0 deviations. A killed
process loses nothing, which is why nobody noticed in testing.
"""

from pathlib import Path

from tests.zoo.spec import POWER_LOSS, ZooSpec
from tests.zoo.steps import frame, replace_durably, unframe


def setup(directory: Path) -> None:
    replace_durably(directory / "log", frame(b"zero"))


def workload(directory: Path) -> None:
    with open(directory / "log", "ab", buffering=0) as log:
        log.write(frame(b"one"))  # BUG


def recover(directory: Path) -> object:
    records, _ = unframe((directory / "log").read_bytes())
    return [record.decode() for record in records]


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before=["zero"],
    after=["zero", "one"],
    models=POWER_LOSS,
    kind="durability",
    causes=("missing fsync",),
    deviations=0,
)
