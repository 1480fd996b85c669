"""RocksDB (C++, by rocksdict): a log-structured tree; a put with `sync=True`.

The write-ahead log is synced before the put returns, and the directory with the first such sync.

Expected: atomic and durable everywhere.
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


EXPECTED = expect(atomic=MODELS, durable=MODELS)
SETTINGS = {"budget": 3000}
