"""SQLite with a rollback journal and a transaction that changes several pages.

Broken by one ignored error: SQLite syncs the directory so that the name of its new journal is on
disk before it touches the database, and goes on as if nothing were wrong when that sync fails. A
power failure then finds some pages new, some old, and no journal to put them back.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.zoo.spec import ZooSpec

ROWS = 12


def setup(directory: Path) -> None:
    with closing(sqlite3.connect(directory / "state.db")) as database:
        database.execute("CREATE TABLE state (value, filler)")
        database.executemany("INSERT INTO state VALUES (1, ?)", [("x" * 1000,)] * ROWS)
        database.commit()


def workload(directory: Path) -> None:
    with closing(sqlite3.connect(directory / "state.db")) as database:
        database.execute("PRAGMA synchronous=EXTRA")
        with database:
            database.execute("UPDATE state SET value = 2")


def recover(directory: Path) -> object:
    with closing(sqlite3.connect(f"file:{directory / 'state.db'}?mode=rw", uri=True)) as database:
        return [value for (value,) in database.execute("SELECT DISTINCT value FROM state")]


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, before=[1], after=[2])
