"""SQLite with a rollback journal and synchronous=EXTRA, which syncs the directory as well.

Sound, but for one thing: where SQLite cannot open the directory (too many open files, an I/O error)
it goes on without syncing it, and says nothing; and it ignores that the sync of the directory
failed after it made a journal, though not after it removed one. The removal of the journal may then
be lost, and with it the transaction; or the journal itself, and with it the old state.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.zoo.spec import ZooSpec


def setup(directory: Path) -> None:
    with closing(sqlite3.connect(directory / "state.db")) as database:
        database.execute("CREATE TABLE state (value)")
        database.execute("INSERT INTO state VALUES (1)")
        database.commit()


def workload(directory: Path) -> None:
    with closing(sqlite3.connect(directory / "state.db")) as database:
        database.execute("PRAGMA synchronous=EXTRA")
        with database:
            database.execute("UPDATE state SET value = 2")


def recover(directory: Path) -> object:
    with closing(sqlite3.connect(f"file:{directory / 'state.db'}?mode=rw", uri=True)) as database:
        return database.execute("SELECT value FROM state").fetchone()[0]


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, before=1, after=2)
