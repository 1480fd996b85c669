"""SQLite with `synchronous=OFF`: nothing is ever synced.

The journal's deletion may reach the disk before the pages of the database, or only some of them
may: table and index no longer agree, and there is no journal to undo it.

Expected: atomic and durable only where the page cache survives.
"""

from pathlib import Path

from examples import sqlite
from examples.sqlite import Acknowledge, Promise


def setup(directory: Path) -> None:
    sqlite.create(directory, "synchronous=OFF")


def workload(directory: Path, acknowledge: Acknowledge) -> None:
    sqlite.save(directory, acknowledge, "synchronous=OFF")


recover = sqlite.load

PROMISE = Promise(
    setting="journal_mode=DELETE, synchronous=OFF",
    page="pragma.html#pragma_synchronous",
    says="data is safe if the program dies; a power loss may corrupt the database",
    intact=False,
    lasting=False,
)
EXPECTED = PROMISE.verdicts()
CITATIONS = ()
SETTINGS = {**sqlite.SETTINGS, "budget": 60, "recovery_crashes": 0}
"""Enough for both to be a no: more states would only say it again."""
