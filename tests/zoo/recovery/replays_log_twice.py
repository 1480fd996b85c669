"""Recovery replays its log a second time.

The log holds a change ("add 10"), not a value. Recovery adds it, replaces the balance atomically
and durably, and then removes the log. A crash between the two leaves a balance that has the change
and a log that still asks for it: the next recovery adds it again. No sync helps; a number in both
that says what was applied does. Every model, a killed process included, at 0 deviations.
"""

import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import frame, replace_durably, sync_directory, unframe, write_synced


def setup(directory: Path) -> None:
    replace_durably(directory / "balance", b"100")


def workload(directory: Path) -> None:
    replace_durably(directory / "redo", frame(b"10"))


def recover(directory: Path) -> object:
    balance = directory / "balance"
    redo = directory / "redo"
    if redo.exists():
        records, _ = unframe(redo.read_bytes())
        total = int(balance.read_bytes()) + sum(int(record) for record in records)
        temporary = directory / "balance.tmp"
        write_synced(temporary, str(total).encode())
        os.replace(temporary, balance)  # BUG
        sync_directory(directory)
        os.remove(redo)
        sync_directory(directory)
    return int(balance.read_bytes())


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before=100,
    after=110,
    models=ALL_MODELS,
    kind="atomicity",
    causes=("recovery not idempotent",),
    deviations=0,
)
