"""RocksDB (C++, by rocksdict): a log-structured tree; a put with `sync=True`.

The write-ahead log is synced before the put returns, and the directory with the first such sync.

Expected: atomic and durable everywhere.

Where the run disagreed the expectation was wrong: the new MANIFEST is synced, but the directory is
synced only after CURRENT was renamed to name it. Where names may reach the disk in any order, it
may name a file that is not there, and the database cannot be opened. File systems with a journal
keep the order.
"""

from pathlib import Path

from rocksdict import Options, Rdict, WriteOptions

from examples.engines import MODELS, expect


def options() -> Options:
    chosen = Options(raw_mode=True)
    chosen.create_if_missing(True)
    return chosen


def put(directory: Path, value: bytes) -> None:
    database = Rdict(str(directory / "db"), options())
    try:
        synced = WriteOptions()
        synced.sync = True
        database.put(b"list", value, write_opt=synced)
    finally:
        database.close()


def setup(directory: Path) -> None:
    put(directory, b"bread")


def workload(directory: Path) -> None:
    put(directory, b"bread and milk")


def recover(directory: Path) -> object:
    database = Rdict(str(directory / "db"), options())
    try:
        return database[b"list"]
    finally:
        database.close()


EXPECTED = expect(atomic=tuple(m for m in MODELS if m != "posix"), durable=MODELS)
SETTINGS = {"budget": 3000}
