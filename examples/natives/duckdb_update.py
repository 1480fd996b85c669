"""DuckDB (C++): an analytical database in one file, with a write-ahead log beside it.

A commit appends to the log and syncs it; closing the database writes a checkpoint, two headers in
turn, and removes the log. Nothing syncs the directory: where a synced file may lack its name, the
commit is lost with the log, until the checkpoint of the close has brought it into the main file.

Expected: atomic everywhere; durable, counted from the commit, everywhere but on `posix`.
"""

from pathlib import Path

import duckdb

from examples.engines import MODELS, Acknowledge, expect


def connect(directory: Path) -> duckdb.DuckDBPyConnection:
    # The smallest blocks that it takes: a write of many pages has very many torn forms.
    return duckdb.connect(directory / "db", config={"default_block_size": "16384"})


def setup(directory: Path) -> None:
    with connect(directory) as connection:
        connection.execute("CREATE TABLE note AS SELECT 'bread' AS text")


def workload(directory: Path, acknowledge: Acknowledge) -> None:
    with connect(directory) as connection:
        connection.execute("INSERT INTO note VALUES ('milk')")
        acknowledge(["bread", "milk"])


def recover(directory: Path) -> object:
    with connect(directory) as connection:
        return [text for (text,) in connection.execute("SELECT text FROM note").fetchall()]


EXPECTED = expect(atomic=MODELS, durable=tuple(m for m in MODELS if m != "posix"))
