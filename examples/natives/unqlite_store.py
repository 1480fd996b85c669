"""UnQLite (C): a document store in one file, with a rollback journal that is deleted to commit.

Its layer for files has a sync for the journal and the database, as SQLite's has. Whether it syncs
the directory for a new journal its manual does not say; expecting no more than it says: where a
synced file may lack its name, the journal can be gone when it is needed.

Expected: atomic everywhere but on `posix`; durable only where the page cache survives, since the
deletion of the journal is not synced.

Where the run disagreed the expectation was wrong, twice. The directory is synced, for the new
journal and after its deletion: a commit that returned is durable everywhere. But the number of
records is written into the journal's header without a sync between the two, so that a power loss
can leave a header that counts a record which is torn: opening the database then fails with "Page
playback error", although the database itself has not been touched.
"""

from pathlib import Path

from unqlite import UnQLite

from examples.engines import MODELS, expect


def put(directory: Path, value: bytes) -> None:
    database = UnQLite(str(directory / "db"))
    try:
        with database.transaction():
            database["list"] = value
    finally:
        database.close()


def setup(directory: Path) -> None:
    put(directory, b"bread")


def workload(directory: Path) -> None:
    put(directory, b"bread and milk")


def recover(directory: Path) -> object:
    database = UnQLite(str(directory / "db"))
    try:
        return database["list"]
    finally:
        database.close()


EXPECTED = expect(atomic=("kill",), durable=MODELS)
