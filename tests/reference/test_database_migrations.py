"""Old databases come in, whatever interrupts them; newer ones are left alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pytest_statepersist.reference.database import Database
from pytest_statepersist.reference.errors import DamagedData, NewerVersion, StorageError
from pytest_statepersist.reference.migrations import (
    APP_MIGRATIONS,
    SCHEMA_VERSION,
    Migration,
    migrate,
    stored_version,
)
from pytest_statepersist.reference.sqlite_file import SqliteFile

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "database"
VERSIONS = range(1, SCHEMA_VERSION + 1)


def schema_of(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    rows = connection.execute(
        "SELECT m.name, p.name || ' ' || p.type || ' ' || p.\"notnull\" || ' ' || p.pk "
        "FROM sqlite_master m JOIN pragma_table_info(m.name) p WHERE m.type = 'table' "
        "UNION SELECT name, coalesce(tbl_name, '') FROM sqlite_master WHERE type = 'index'"
    )
    return {(str(name), str(column)) for name, column in rows}


@pytest.fixture
def old(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    copy = tmp_path / "app.sqlite"
    shutil.copy(FIXTURES / f"v{request.param}.sqlite", copy)
    return copy


def test_every_old_version_has_a_fixture_that_is_of_that_version() -> None:
    for version in VERSIONS:
        with closing(sqlite3.connect(FIXTURES / f"v{version}.sqlite")) as connection:
            assert stored_version(connection) == version
            tables = {
                row[0] for row in connection.execute("SELECT name FROM sqlite_master").fetchall()
            }
        assert ("analytics" in tables) == (version >= 3)
        assert ("recordings" in tables) == (version >= 4)


@pytest.mark.parametrize("old", VERSIONS, indirect=True)
def test_a_database_of_any_version_migrates_with_all_its_rows(old: Path) -> None:
    before = _version(old)
    with Database(old) as database:
        database.check()
        session = database.session("s1")
        assert (session.title, session.prompt_tokens, session.cost) == ("Züge nach Bern", 12, 0.25)
        assert (session.branch_name, session.parent_session_id) == ("main", None)
        assert database.session("s2").is_archived
        first, second = database.messages("s1")
        assert first.content == "When is the next train?"
        assert second.tool_calls == [{"name": "timetable", "to": "Bern"}]
        snapshot = database.snapshot("n1")
        assert snapshot.state == {"view": "chat"}
        assert snapshot.starred == (before >= 4)
        assert len(database.branches("s1")) == (before >= 2)
        assert database.usage().events == (before >= 3)
        assert len(database.recordings()) == (before >= 4)
        # and the new tables work
        database.add_proof("s1", "2 + 2 = 4")
        database.star_snapshot("n1")
    assert _version(old) == SCHEMA_VERSION


@pytest.mark.parametrize("old", VERSIONS, indirect=True)
def test_a_migrated_schema_is_a_fresh_schema(old: Path, tmp_path: Path) -> None:
    Database(old).close()
    Database(tmp_path / "fresh.sqlite").close()
    with (
        closing(sqlite3.connect(old)) as migrated,
        closing(sqlite3.connect(tmp_path / "fresh.sqlite")) as fresh,
    ):
        assert schema_of(migrated) == schema_of(fresh)


@pytest.mark.parametrize("old", VERSIONS[:-1], indirect=True)
def test_a_migration_interrupted_at_any_statement_resumes(old: Path) -> None:
    original = old.read_bytes()
    statements = 0
    while True:
        old.write_bytes(original)
        with closing(sqlite3.connect(old, isolation_level=None)) as connection:
            before = stored_version(connection)
            try:
                migrate(_Interrupted(connection, after=statements), APP_MIGRATIONS)  # type: ignore[arg-type]
            except _PowerCut:
                at = stored_version(connection)
                assert before <= at < SCHEMA_VERSION
                # whole versions only: the schema is exactly that of the version
                assert schema_of(connection) == _schema_at(at)
            else:
                assert statements > 3  # the loop has really been cut in between
                break
        with Database(old) as database:
            assert database.session("s1").prompt_tokens == 12
            database.check()
        statements += 1


class _PowerCut(BaseException):
    pass


class _Interrupted:
    """A connection whose n-th statement never comes; rollback is what the next open would do."""

    def __init__(self, connection: sqlite3.Connection, after: int) -> None:
        self._connection = connection
        self._left = after

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, sql: str, parameters: tuple[object, ...] = ()) -> sqlite3.Cursor:
        if not sql.startswith(("SELECT", "ROLLBACK")):
            if self._left == 0:
                raise _PowerCut
            self._left -= 1
        return self._connection.execute(sql, parameters)


def _schema_at(version: int) -> set[tuple[str, str]]:
    with closing(sqlite3.connect(FIXTURES / f"v{version}.sqlite")) as connection:
        return schema_of(connection)


def _version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return stored_version(connection)


@pytest.fixture(params=["clean", "with a log"])
def newer(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "app.sqlite"
    shutil.copy(FIXTURES / "v4.sqlite", path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        if request.param == "with a log":
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("UPDATE schema_version SET version = 5")
        if request.param == "with a log":
            shutil.copy(path, tmp_path / "copy")
            shutil.copy(f"{path}-wal", tmp_path / "copy-wal")
    if request.param == "with a log":
        path = tmp_path / "copy"  # as a killed process leaves it: the version is in the log only
    return path


def test_a_newer_database_is_refused_and_not_a_byte_changes(newer: Path) -> None:
    def digests() -> dict[str, str]:
        return {
            entry.name: hashlib.sha256(entry.read_bytes()).hexdigest()
            for entry in newer.parent.iterdir()
            if entry.name.startswith(newer.name) and not entry.name.endswith((".lock", "-shm"))
        }

    before = digests()
    with pytest.raises(NewerVersion, match="version 5"):
        Database(newer)
    assert digests() == before


def test_a_foreign_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    with pytest.raises(DamagedData, match="another"):
        Database(path)
    with closing(sqlite3.connect(path)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master")]
    assert names == ["theirs"]


def test_what_is_no_database_at_all_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "app.sqlite"
    path.write_bytes(b"not a database, but long enough to have a header" * 20)
    before = path.read_bytes()
    with pytest.raises(DamagedData, match="not a database"):
        Database(path)
    assert path.read_bytes() == before


def test_a_failing_migration_leaves_the_version_and_the_file_is_usable(tmp_path: Path) -> None:
    path = tmp_path / "app.sqlite"
    broken = Migration(2, "broken", ("CREATE TABLE b (x)", "INSERT INTO nowhere VALUES (1)"))
    first = Migration(1, "first", ("CREATE TABLE a (x)",))
    with pytest.raises(StorageError, match="nowhere"):
        SqliteFile(path, migrations=(first, broken))
    with closing(sqlite3.connect(path)) as connection:
        assert stored_version(connection) == 1
    with SqliteFile(path, migrations=(first,)) as file:
        assert file.query("SELECT name FROM sqlite_master WHERE name = 'b'") == []


def test_the_database_and_its_log_are_private_from_the_start(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        with Database(tmp_path / "new" / "app.sqlite") as database:
            database.create_session("t", model="m")
            modes = {
                entry.name: entry.stat().st_mode & 0o777 for entry in database.path.parent.iterdir()
            }
    finally:
        os.umask(mask)
    assert modes == {
        "app.sqlite": 0o600,
        "app.sqlite-wal": 0o600,
        "app.sqlite-shm": 0o600,
        "app.sqlite.lock": 0o600,
    }
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
