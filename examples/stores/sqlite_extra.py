"""SQLite with `synchronous=EXTRA`: the directory is synced after the journal was deleted.

That is the one sync that the default lacks: the commit is on disk when it returns.

Expected: atomic and durable everywhere.
"""

from pathlib import Path

from examples import sqlite
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
)
EXPECTED = PROMISE.verdicts()
CITATIONS = ()
