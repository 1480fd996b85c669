"""The SQLite recorder as a companion of the Python one: one trace, and a self-check that agrees."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from pytest_statepersist.core import operations as op
from pytest_statepersist.errors import BlindSpot, RecorderUnavailable
from pytest_statepersist.recorders import sqlite_library
from pytest_statepersist.recorders.python import PythonRecorder
from pytest_statepersist.recorders.sqlite import SqliteRecorder, is_shared_memory


@pytest.fixture(autouse=True)
def _sqlite_can_be_observed() -> None:
    try:
        sqlite_library.library()
    except RecorderUnavailable as error:
        pytest.skip(str(error))


def recorder(directory: Path, *, sqlite: bool = True) -> PythonRecorder:
    return PythonRecorder(
        directory,
        companions=[SqliteRecorder] if sqlite else [],
        ignore=lambda path: is_shared_memory(os.path.join(directory, path)),
    )


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_database_and_a_side_file_give_one_trace(tmp_path: Path, mode: str) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("CREATE TABLE t (x)")
        with recorder(tmp_path) as recording:
            with connection:
                connection.execute("INSERT INTO t VALUES (1)")
            (tmp_path / "side").write_text("1")
            with connection:
                connection.execute("INSERT INTO t VALUES (2)")
    operations = recording.trace.operations
    side = next(i for i, o in enumerate(operations) if o.path == "side")
    written = [i for i, o in enumerate(operations) if isinstance(o, op.Write) and "a.db" in o.path]
    assert written[0] < side < written[-1]
    assert {o.site.file for o in operations if o.site} == {__file__}
    assert {o.task for o in operations} == {0}


def test_without_it_the_self_check_finds_the_database(tmp_path: Path) -> None:
    opened = contextlib.closing(sqlite3.connect(tmp_path / "a.db"))
    with pytest.raises(BlindSpot) as caught, recorder(tmp_path, sqlite=False), opened as connection:
        connection.execute("CREATE TABLE t (x)")
    assert caught.value.culprit.startswith("a.db")
