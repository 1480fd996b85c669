"""A row in SQLite that names a file beside the database, and the file is synced before the row.

File and directory are synced, and only then is the row committed with `synchronous=EXTRA`: a row
never names a file that is not there.

Expected: atomic and durable everywhere.

Where the run disagreed: on btrfs the commit may be lost. The model lets the journal's name come
back although its removal was synced, because the kernel was seen to bring back a synced name, after
a rename; whether it does so after a synced removal was not measured, so the looser reading holds.
SQLite's promise is not refuted by this, and on btrfs it is not shown either.
"""

import os
from contextlib import closing
from pathlib import Path

from examples import sqlite
from examples.example import MODELS, expect
from examples.stores.sqlite_side_file import recover

__all__ = ["recover"]


def attach(directory: Path, name: str, content: str) -> None:
    with open(directory / name, "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    with closing(sqlite.connect(directory, "synchronous=EXTRA")) as connection:
        connection.execute("UPDATE note SET text = ? WHERE id = 1", (name,))


def setup(directory: Path) -> None:
    sqlite.create(directory, "synchronous=EXTRA")
    attach(directory, "one.txt", "first picture")


def workload(directory: Path) -> None:
    attach(directory, "two.txt", "second picture")


EXPECTED = expect(atomic=MODELS, durable=tuple(m for m in MODELS if m != "btrfs"))
CITATIONS = ()
SETTINGS = sqlite.SETTINGS
