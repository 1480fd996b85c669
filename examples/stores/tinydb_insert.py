"""TinyDB: insert one document into its JSON file.

The whole database is written again from the beginning of the file, flushed and synced, then cut at
the end. An insertion makes the file longer, so the cut changes nothing and the sync covers all:
durable. While it runs, the file is rewritten in place: its blocks reach the disk one by one, and
the new beginning may be there without the end. The document is longer than a page, so that even a
killed process can stop in the middle of the write.

Expected: durable everywhere; atomic nowhere.
"""

from pathlib import Path

from tinydb import TinyDB

from examples.example import MODELS, Citation, expect


def setup(directory: Path) -> None:
    with TinyDB(directory / "db.json") as db:
        db.insert({"title": "bread"})


def workload(directory: Path) -> None:
    with TinyDB(directory / "db.json") as db:
        db.insert({"title": "milk", "text": "two litres " * 600})


def recover(directory: Path) -> object:
    with TinyDB(directory / "db.json") as db:
        return [dict(document) for document in db]


EXPECTED = expect(atomic=(), durable=MODELS)
CITATIONS = (
    Citation("tinydb", "4.9.0", "tinydb.storages", 151, "self._handle.write(serialized)"),
    Citation("tinydb", "4.9.0", "tinydb.storages", 157, "os.fsync(self._handle.fileno())"),
    Citation("tinydb", "4.9.0", "tinydb.storages", 161, "self._handle.truncate()"),
)
