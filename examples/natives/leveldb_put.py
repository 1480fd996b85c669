"""LevelDB (C++, by plyvel): a log-structured tree; `put(sync=True)`.

Opening writes a new log and a new MANIFEST, synced with the directory, and renames CURRENT to point
to it. The put is appended to the log, with a checksum, and the log is synced.

Expected: atomic and durable everywhere.

Where the run disagreed the expectation was wrong: the directory is synced for the new MANIFEST, but
not after CURRENT was renamed, and then the old MANIFEST is removed. Where names may reach the disk
in any order, CURRENT may still name the old one: the database cannot be opened, with all that was
ever in it. File systems with a journal keep the order of the two.
"""

from pathlib import Path

import plyvel

from examples.engines import MODELS, expect


def put(directory: Path, value: bytes) -> None:
    database = plyvel.DB(str(directory / "db"), create_if_missing=True)
    try:
        database.put(b"list", value, sync=True)
    finally:
        database.close()


def setup(directory: Path) -> None:
    put(directory, b"bread")


def workload(directory: Path) -> None:
    put(directory, b"bread and milk")


def recover(directory: Path) -> object:
    database = plyvel.DB(str(directory / "db"))
    try:
        return database.get(b"list")
    finally:
        database.close()


JOURNALS = tuple(m for m in MODELS if m != "posix")
EXPECTED = expect(atomic=JOURNALS, durable=JOURNALS)
