"""SQLite with `synchronous=EXTRA`: the directory is synced after the journal was deleted.

That is the one sync that the default lacks: the commit is on disk when it returns.

Expected: atomic and durable everywhere.

Where the run disagreed: on btrfs the commit may be lost. The model lets the journal's name come
back although its removal was synced, because the kernel was seen to bring back a synced name, after
a rename; whether it does so after a synced removal was not measured, so the looser reading holds.
SQLite's promise is not refuted by this, and on btrfs it is not shown either.
"""

from pathlib import Path

from examples import sqlite
from examples.example import Expected
from examples.sqlite import Acknowledge, Promise


def setup(directory: Path) -> None:
    sqlite.create(directory, "synchronous=EXTRA")


def workload(directory: Path, acknowledge: Acknowledge) -> None:
    sqlite.save(directory, acknowledge, "synchronous=EXTRA")


recover = sqlite.load

PROMISE = Promise(
    setting="journal_mode=DELETE, synchronous=EXTRA",
    page="pragma.html#pragma_synchronous",
    says="like FULL, and the deletion of the journal is synced too, for durability",
    intact=True,
    lasting=True,
    not_shown=("btrfs",),
)
EXPECTED = {**PROMISE.verdicts(), "btrfs": Expected(atomic=True, durable=False)}
CITATIONS = ()
SETTINGS = sqlite.SETTINGS
