"""LevelDB (C++, by plyvel): a log-structured tree; `put(sync=True)`.

Opening writes a new log and a new MANIFEST, synced with the directory, and renames CURRENT to point
to it. The put is appended to the log, with a checksum, and the log is synced.

Expected: atomic and durable everywhere.
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


EXPECTED = expect(atomic=MODELS, durable=MODELS)
