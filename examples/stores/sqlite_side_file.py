"""A row in SQLite that names a file beside the database, as apps keep pictures and attachments.

The file is written first and the row is committed, with `synchronous=EXTRA`, when it is there. But
SQLite syncs its own files only: the row is on disk before the content of the file that it names.

Expected: atomic and durable only where the page cache survives.
"""

from contextlib import closing
from pathlib import Path

from examples import sqlite
from examples.example import expect


def attach(directory: Path, name: str, content: str) -> None:
    (directory / name).write_text(content)
    with closing(sqlite.connect(directory, "synchronous=EXTRA")) as connection:
        connection.execute("UPDATE note SET text = ? WHERE id = 1", (name,))


def setup(directory: Path) -> None:
    sqlite.create(directory, "synchronous=EXTRA")
    attach(directory, "one.txt", "first picture")


def workload(directory: Path) -> None:
    attach(directory, "two.txt", "second picture")


def recover(directory: Path) -> object:
    return (directory / str(sqlite.load(directory))).read_text()


EXPECTED = expect(atomic=("kill",), durable=("kill",))
CITATIONS = ()
SETTINGS = {**sqlite.SETTINGS, "recovery_crashes": 0}
