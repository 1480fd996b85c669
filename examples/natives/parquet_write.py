"""Parquet (C++, by pyarrow): a table is written again to its file.

The file is truncated and written from the start; its footer comes last. Nothing is synced.

Expected: atomic nowhere; durable only where the page cache survives.
"""

from pathlib import Path

import pyarrow
import pyarrow.parquet

from examples.engines import expect


def write(directory: Path, values: list[int]) -> None:
    table = pyarrow.table({"value": values})
    pyarrow.parquet.write_table(table, directory / "table.parquet")


def setup(directory: Path) -> None:
    write(directory, [1, 2, 3])


def workload(directory: Path) -> None:
    write(directory, [4, 5, 6, 7])


def recover(directory: Path) -> object:
    table = pyarrow.parquet.read_table(directory / "table.parquet", use_threads=False)
    return table["value"].to_pylist()


EXPECTED = expect(atomic=(), durable=("kill",))
