"""SQLite as it comes: a rollback journal that is deleted to commit, `synchronous=FULL`.

The journal is synced with its name before the database is touched, and the database before the
journal is deleted; so the database is whole whatever happens. But the deletion *is* the commit,
and nothing syncs it: after a power loss the journal may be back, and it undoes the transaction.

Expected: atomic everywhere; durable only where the page cache survives.
"""

from pathlib import Path

from examples import sqlite
from examples.sqlite import Acknowledge, Promise


def setup(directory: Path) -> None:
    sqlite.create(directory)


def workload(directory: Path, acknowledge: Acknowledge) -> None:
    sqlite.save(directory, acknowledge)


recover = sqlite.load

PROMISE = Promise(
    setting="journal_mode=DELETE, synchronous=FULL (default)",
    page="pragma.html#pragma_synchronous",
    says=(
        "FULL waits for the disk at every step, so that a power failure cannot corrupt; that EXTRA "
        "'adds durability' if the power fails soon after a commit says that FULL may lose it"
    ),
    intact=True,
    lasting=False,
)
EXPECTED = PROMISE.verdicts()
CITATIONS = ()
SETTINGS = sqlite.SETTINGS
