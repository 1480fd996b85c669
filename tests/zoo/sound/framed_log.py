"""A log whose records say where they end and whether they are whole.

Each record is synced before it is acknowledged. A torn tail fails its checksum and ends the log; a
tail of zeros has no magic and ends it too. One record is longer than a block, so tails do tear.
"""

import os
from collections.abc import Callable
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import frame, replace_durably, unframe

RECORDS = ("one", "two" * 2000, "three")


def setup(directory: Path) -> None:
    replace_durably(directory / "log", frame(b"zero"))


def workload(directory: Path, acknowledge: Callable[[object], None]) -> None:
    with open(directory / "log", "ab", buffering=0) as log:
        for record in RECORDS:
            log.write(frame(record.encode()))
            os.fsync(log.fileno())
            acknowledge(record)


def recover(directory: Path) -> object:
    records, _ = unframe((directory / "log").read_bytes())
    return [record.decode() for record in records]


def every_acknowledged_record_is_there(recovered: object, acknowledged: tuple[object, ...]) -> bool:
    everything = ["zero", *RECORDS]
    return (
        isinstance(recovered, list)
        and recovered == everything[: len(recovered)]
        and set(acknowledged) <= set(recovered)
    )


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    invariant=every_acknowledged_record_is_there,
)
