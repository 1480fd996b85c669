"""SQLite with a write-ahead log and `synchronous=FULL`: the log is synced at every commit.

The first sync of a new log also syncs the directory. Records in the log have a checksum that goes
on from the one before, so that a torn tail is ignored.

Expected: atomic and durable everywhere.
"""

from pathlib import Path

from examples import sqlite
from examples.sqlite import Acknowledge, Promise


def setup(directory: Path) -> None:
    sqlite.create(directory, "journal_mode=WAL", "synchronous=FULL")


def workload(directory: Path, acknowledge: Acknowledge) -> None:
    sqlite.save(directory, acknowledge, "synchronous=FULL")


recover = sqlite.load

PROMISE = Promise(
    setting="journal_mode=WAL, synchronous=FULL",
    page="wal.html#performance_considerations",
    says="the log is synced after each transaction, so that it survives a power loss",
    intact=True,
    lasting=True,
)
EXPECTED = PROMISE.verdicts()
CITATIONS = ()
SETTINGS = sqlite.SETTINGS
