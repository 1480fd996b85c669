"""TinyDB: remove one document, which makes the file shorter.

The same three steps as an insertion (write from the beginning, sync, cut), and now the cut matters.
It comes after the sync and nothing follows it. Between the two, the file is the new JSON with the
end of the old behind it, which no parser accepts; and after the removal has returned, a power loss
may take the cut back and leave exactly that. The database cannot be opened any more.

Expected: atomic nowhere; durable only where the page cache survives.
"""

from pathlib import Path

from tinydb import TinyDB

from examples.example import Citation, expect


def setup(directory: Path) -> None:
    with TinyDB(directory / "db.json") as db:
        db.insert_multiple([{"title": "bread"}, {"title": "milk"}])


def workload(directory: Path) -> None:
    with TinyDB(directory / "db.json") as db:
        db.remove(doc_ids=[2])


def recover(directory: Path) -> object:
    with TinyDB(directory / "db.json") as db:
        return [dict(document) for document in db]


EXPECTED = expect(atomic=(), durable=("kill",))
CITATIONS = (
    Citation("tinydb", "4.9.0", "tinydb.storages", 157, "os.fsync(self._handle.fileno())"),
    Citation("tinydb", "4.9.0", "tinydb.storages", 161, "self._handle.truncate()"),
)
