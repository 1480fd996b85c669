"""SQLite with a write-ahead log and `synchronous=NORMAL`: only a checkpoint syncs.

A commit writes to the log and returns. The log is synced before its content is copied into the
database, and the database before the log is used again: the order holds, the last commits may go.

Expected: atomic everywhere; durable only where the page cache survives.
"""

from pathlib import Path

from examples import sqlite
from examples.sqlite import Acknowledge, Promise


def setup(directory: Path) -> None:
    sqlite.create(directory, "journal_mode=WAL", "synchronous=NORMAL")


def workload(directory: Path, acknowledge: Acknowledge) -> None:
    sqlite.save(directory, acknowledge, "synchronous=NORMAL")


recover = sqlite.load

PROMISE = Promise(
    setting="journal_mode=WAL, synchronous=NORMAL",
    page="pragma.html#pragma_synchronous",
    says="always consistent, but a power loss may roll back what was committed last",
    intact=True,
    lasting=False,
)
EXPECTED = PROMISE.verdicts()
CITATIONS = ()
SETTINGS = sqlite.SETTINGS
