"""SQLite with `journal_mode=MEMORY`: the journal is in memory, the syncs are those of FULL.

A program that dies between two of its writes leaves the first pages new and the others old, and
what would undo them died with it. A commit that returned is safe: the database was synced.

Expected: atomic nowhere, not even where the page cache survives; durable everywhere.
"""

from pathlib import Path

from examples import sqlite
from examples.sqlite import Acknowledge, Promise


def setup(directory: Path) -> None:
    sqlite.create(directory)


def workload(directory: Path, acknowledge: Acknowledge) -> None:
    sqlite.save(directory, acknowledge, "journal_mode=MEMORY")


recover = sqlite.load

PROMISE = Promise(
    setting="journal_mode=MEMORY, synchronous=FULL",
    page="pragma.html#pragma_journal_mode",
    says="a program that dies inside a transaction will very likely leave a corrupt database",
    intact=False,
    lasting=True,
    survives_kill=False,
)
EXPECTED = PROMISE.verdicts()
CITATIONS = ()
SETTINGS = sqlite.SETTINGS
