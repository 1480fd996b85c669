"""The caller hears "saved" before the sync that makes it true.

To be fast, the log is synced once for each batch; the records are framed and checksummed, so a torn
tail does no harm. But each record is acknowledged as soon as it is written, before the batch's
fsync. A power loss in between takes records that the caller believes in. Every model of power loss,
at 0 deviations. A killed process loses nothing.
"""

import os
from collections.abc import Callable
from pathlib import Path

from tests.zoo.spec import POWER_LOSS, ZooSpec
from tests.zoo.steps import frame, replace_durably, unframe

RECORDS = ("one", "two", "three")


def setup(directory: Path) -> None:
    replace_durably(directory / "log", frame(b"zero"))


def workload(directory: Path, acknowledge: Callable[[object], None]) -> None:
    with open(directory / "log", "ab", buffering=0) as log:
        for record in RECORDS:
            log.write(frame(record.encode()))  # BUG
            acknowledge(record)
        os.fsync(log.fileno())


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
    models=POWER_LOSS,
    kind="durability",
    causes=("acknowledged before durable",),
    deviations=0,
)
