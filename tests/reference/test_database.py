"""The app database: every table, its rules, durability and what goes wrong."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pytest_statepersist.reference import sqlite_file
from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.database import Database, Usage
from pytest_statepersist.reference.database_rows import (
    AppMessage,
    AppSession,
    ChangeKind,
    ProofStatus,
    SnapshotKind,
)
from pytest_statepersist.reference.errors import (
    ConflictError,
    DamagedData,
    LockTimeout,
    NotFound,
    StorageError,
    ValidationError,
)

START = datetime(2025, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def database(tmp_path: Path, clock: ManualClock) -> Iterator[Database]:
    with Database(tmp_path / "app.sqlite", clock=clock) as opened:
        yield opened


def reopened(database: Database) -> Database:
    database.close()
    return Database(database.path, clock=database.clock)


# -- sessions and messages ---------------------------------------------------------------


def test_sessions_and_messages_come_back(database: Database, clock: ManualClock) -> None:
    session = database.create_session("Trains", model="m-large")
    clock.advance(5)
    calls = [{"name": "timetable", "to": "Bern"}]
    first = database.add_message(session.id, "user", "When?", prompt_tokens=7)
    second = database.add_message(
        session.id, "assistant", "12:04 🚆", completion_tokens=9, cost=0.5, tool_calls=calls
    )
    with reopened(database) as again:
        assert again.messages(session.id) == [first, second]
        assert [item.sequence for item in (first, second)] == [0, 1]
        assert again.messages(session.id, limit=1, offset=1)[0].tool_calls == calls
        stored = again.session(session.id)
        assert (stored.prompt_tokens, stored.completion_tokens, stored.cost) == (7, 9, 0.5)
        assert stored.updated_at == START + timedelta(seconds=5)


def test_sessions_are_listed_by_last_change_and_filtered(
    database: Database, clock: ManualClock
) -> None:
    ids = []
    for title in "abc":
        ids.append(database.create_session(title, model="m").id)
        clock.advance(1)
    database.add_message(ids[0], "user", "now the newest")
    clock.advance(1)
    database.update_session(ids[2], archived=True)
    assert [item.title for item in database.sessions()] == ["c", "a", "b"]
    assert [item.title for item in database.sessions(archived=False)] == ["a", "b"]
    assert [item.title for item in database.sessions(archived=True)] == ["c"]
    assert [item.title for item in database.sessions(limit=1, offset=1)] == ["a"]
    last = database.last_session()
    assert last is not None
    assert last.title == "a"  # archived ones are not resumed
    assert database.update_session(ids[0], title="A").title == "A"


def test_a_branch_shares_the_messages_up_to_its_point(database: Database) -> None:
    parent = database.create_session("main", model="m")
    for text in ("one", "two", "three"):
        database.add_message(parent.id, "user", text, cost=1)
    branch = database.branch_session(parent.id, at=1, name="bus")
    assert (branch.branch_name, branch.parent_session_id, branch.branch_point) == (
        "bus",
        parent.id,
        1,
    )
    assert [item.content for item in database.messages(branch.id)] == ["one", "two"]
    assert branch.cost == 0
    database.add_message(branch.id, "user", "by bus")
    assert [item.content for item in database.messages(parent.id)] == ["one", "two", "three"]
    assert [item.id for item in database.branches(parent.id)] == [branch.id]
    with pytest.raises(NotFound, match="sequence 9"):
        database.branch_session(parent.id, at=9, name="x")


def test_deleting_a_session_takes_what_lives_with_it_and_nothing_else(database: Database) -> None:
    gone = database.create_session("gone", model="m")
    stays = database.create_session("stays", model="m")
    for session in (gone, stays):
        database.add_message(session.id, "user", "hello")
        database.add_file_change(session.id, "a.txt", change=ChangeKind.CREATED, diff="+1")
        database.add_proof(session.id, "1 = 1")
    database.add_recording(gone.id, "demo", duration=10, events=[])
    database.record_event("completion", session_id=gone.id)
    branch = database.branch_session(gone.id, at=0, name="b")
    database.delete_session(gone.id)
    assert database.messages(gone.id) == []
    assert database.file_changes(gone.id) == []
    assert database.proofs(gone.id) == []
    assert len(database.messages(stays.id)) == len(database.proofs(stays.id)) == 1
    assert len(database.file_changes(stays.id)) == 1
    assert database.session(branch.id).parent_session_id is None
    assert len(database.recordings()) == 1  # until the user deletes it
    assert database.usage().events == 1
    with pytest.raises(NotFound, match=gone.id):
        database.delete_session(gone.id)


def test_an_imported_session_is_marked_and_whole(database: Database, tmp_path: Path) -> None:
    session = database.create_session("elsewhere", model="m")
    message = database.add_message(session.id, "user", "hi")
    with Database(tmp_path / "other.sqlite", clock=database.clock) as other:
        imported = other.import_session(session, [message])
        assert imported.is_imported
        assert other.messages(session.id) == [message]
        with pytest.raises(ConflictError):
            other.import_session(session, [message])
        clash = [message.changed(id="x"), message.changed(id="x", sequence=1)]
        with pytest.raises(ConflictError):
            other.import_session(session.changed(id="new"), clash)
        with pytest.raises(NotFound):
            other.session("new")  # all or nothing


def test_merging_twice_is_merging_once(database: Database) -> None:
    session = database.create_session("t", model="m")
    one = database.add_message(session.id, "user", "one")
    two = one.changed(id="two", content="two", sequence=99)
    renamed = session.changed(title="renamed")
    assert database.merge_session(renamed, [one, two]) == 1
    assert database.merge_session(renamed, [one, two]) == 0
    assert [(item.content, item.sequence) for item in database.messages(session.id)] == [
        ("one", 0),
        ("two", 1),
    ]
    assert database.session(session.id).title == "renamed"


# -- the other tables --------------------------------------------------------------------


def test_snapshots_of_every_kind_come_back(database: Database, clock: ManualClock) -> None:
    for kind in SnapshotKind:
        database.add_snapshot(
            {"kind": kind.value, "ü": [1, None]},
            kind=kind,
            trigger={"by": "test"},
            summary={"messages": 0},
            description=None if kind is SnapshotKind.AUTO else "why",
        )
        clock.advance(1)
    newest = database.snapshots()[0]
    assert newest.state == {"kind": "system", "ü": [1, None]}
    assert newest.size_bytes == len('{"kind":"system","ü":[1,null]}'.encode())
    assert [item.kind for item in database.snapshots(kind=SnapshotKind.MANUAL)] == ["manual"]
    starred = database.star_snapshot(newest.id)
    assert starred.starred
    assert database.snapshots(starred=True) == [starred]
    assert len(database.snapshots(starred=False)) == 2
    assert not database.star_snapshot(newest.id, False).starred
    database.delete_snapshot(newest.id)
    with pytest.raises(NotFound):
        database.snapshot(newest.id)


def test_recordings_come_back(database: Database) -> None:
    made = database.add_recording(
        "any", "demo", duration=1500, events=[{"t": 0}], snapshots=["a"], metadata={"fps": 30}
    )
    assert database.recording(made.id) == made
    assert database.recordings("any") == [made]
    assert database.recordings("other") == []
    database.delete_recording(made.id)
    assert database.recordings() == []


def test_analytics_are_stored_and_summed(database: Database, clock: ManualClock) -> None:
    database.record_event("completion", session_id="a", prompt_tokens=3, cost=0.5)
    clock.advance(60)
    second = database.record_event(
        "completion", session_id="b", completion_tokens=4, duration_ms=12, metadata={"x": 1}
    )
    database.record_event("error")
    assert second.id == 2
    assert database.events(event_type="completion")[0] == second
    assert len(database.events(session_id="a")) == 1
    assert len(database.events(since=clock.now())) == 2
    assert database.usage() == Usage(3, 3, 4, 0.5)
    assert database.usage(session_id="b") == Usage(1, 0, 4, 0.0)


def test_file_changes_and_proofs_come_back_in_order(database: Database) -> None:
    session = database.create_session("t", model="m")
    changes = [
        database.add_file_change(session.id, f"{n}.txt", change=kind, diff="-a +b")
        for n, kind in enumerate(ChangeKind)
    ]
    assert database.file_changes(session.id) == changes
    assert database.file_changes(session.id, limit=1, offset=2) == [changes[2]]
    proof = database.add_proof(session.id, "1 + 1 = 2", state={"goals": 1})
    assert proof.status is ProofStatus.OPEN
    proved = database.update_proof(proof.id, status=ProofStatus.PROVED, state={"goals": 0})
    assert database.proofs(session.id) == [proved]


# -- rules -------------------------------------------------------------------------------


def test_foreign_keys_are_enforced(database: Database) -> None:
    for add in (
        lambda: database.add_proof("nobody", "x"),
        lambda: database.add_file_change("nobody", "p", change=ChangeKind.CREATED, diff=""),
        lambda: database.import_session(_session("a", parent="nobody"), []),
    ):
        with pytest.raises(ValidationError, match="refers to a session that is not there"):
            add()
    with pytest.raises(NotFound):
        database.add_message("nobody", "user", "x")


def _session(session_id: str, parent: str | None = None) -> AppSession:
    return AppSession.build(
        id=session_id,
        title="t",
        model="m",
        created_at=START,
        updated_at=START,
        parent_session_id=parent,
    )


def test_the_settings_that_durability_rests_on(database: Database) -> None:
    def pragma(name: str) -> object:
        return database.file.query(f"PRAGMA {name}")[0][0]

    assert pragma("journal_mode") == "wal"
    assert pragma("synchronous") == 2  # FULL
    assert pragma("foreign_keys") == 1


def test_every_index_of_the_schema_is_there(database: Database) -> None:
    names = {row[0] for row in database.file.query("SELECT name FROM sqlite_master")}
    assert names >= {
        "idx_sessions_updated",
        "idx_sessions_archived",
        "idx_messages_session",
        "idx_snapshots_timestamp",
        "idx_snapshots_starred",
        "idx_recordings_session",
        "idx_analytics_timestamp",
        "idx_analytics_session",
        "idx_file_changes_session",
        "idx_proofs_session",
    }


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("title", {"title": "\ud800"}),
        ("prompt_tokens", {"prompt_tokens": 2**63}),
        ("prompt_tokens", {"prompt_tokens": -1}),
        ("cost", {"cost": float("nan")}),
        ("created_at", {"created_at": datetime(2025, 1, 1)}),
        ("id", {"id": ""}),
    ],
)
def test_a_bad_value_is_refused_with_its_field(field: str, values: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        _session("a").changed(**values)
    assert caught.value.field == f"AppSession.{field}"


def test_bad_arguments_are_refused_and_nothing_is_written(database: Database) -> None:
    session = database.create_session("t", model="m")
    with pytest.raises(ValidationError, match="surrogate"):
        database.add_message(session.id, "user", "x\udfff")
    with pytest.raises(ValidationError, match="not a string"):
        database.add_snapshot({1: 2}, kind=SnapshotKind.AUTO, trigger=None, summary=None)
    with pytest.raises(ValidationError, match="negative"):
        database.messages(session.id, limit=-1)
    with pytest.raises(ValidationError, match="negative"):
        database.sessions(offset=-1)
    with pytest.raises(ValidationError):
        database.session("\ud800")
    assert database.messages(session.id) == []
    assert database.snapshots() == []


def test_a_row_that_someone_damaged_is_named(database: Database) -> None:
    made = database.add_snapshot({}, kind=SnapshotKind.AUTO, trigger=None, summary=None)
    good = database.add_snapshot({"a": 1}, kind=SnapshotKind.AUTO, trigger=None, summary=None)
    database.file.execute("UPDATE snapshots SET state_json = '{' WHERE id = ?", (made.id,))
    with pytest.raises(DamagedData, match=rf"snapshots, row '{made.id}'"):
        database.snapshot(made.id)
    assert database.snapshot(good.id) == good


def test_a_torn_database_file_is_damaged_data(database: Database) -> None:
    session = database.create_session("t", model="m")
    for _ in range(50):
        database.add_message(session.id, "user", "x" * 500)
    database.close()
    raw = bytearray(database.path.read_bytes())
    for page in range(1, len(raw) // 4096):
        raw[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    database.path.write_bytes(raw)
    with pytest.raises(DamagedData), Database(database.path) as damaged:
        damaged.check()


# -- transactions, threads, processes ----------------------------------------------------


def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    class Stop(Exception):
        pass

    with pytest.raises(Stop), database.transaction():
        session = database.create_session("t", model="m")
        database.add_message(session.id, "user", "x")
        raise Stop
    assert database.sessions() == []
    with database.transaction():
        kept = database.create_session("kept", model="m")
        with pytest.raises(Stop), database.transaction():
            database.create_session("undone", model="m")
            raise Stop
    assert [item.id for item in database.sessions()] == [kept.id]


def test_threads_share_one_object(database: Database) -> None:
    session = database.create_session("t", model="m")

    def add() -> None:
        for _ in range(10):
            database.add_message(session.id, "user", "x", prompt_tokens=1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [item.sequence for item in database.messages(session.id)] == list(range(40))
    assert database.session(session.id).prompt_tokens == 40


def test_another_process_waits_and_both_writes_are_kept(database: Database) -> None:
    session = database.create_session("t", model="m")
    program = textwrap.dedent("""
        import sys
        from pytest_statepersist.reference.database import Database
        with Database(sys.argv[1]) as database:
            for _ in range(5):
                database.add_message(sys.argv[2], "user", "theirs")
    """)
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(database.path), session.id],
        cwd=Path(__file__).resolve().parents[2],
    )
    for _ in range(5):
        database.add_message(session.id, "user", "ours")
    assert child.wait(30) == 0
    assert [item.sequence for item in database.messages(session.id)] == list(range(10))


def test_a_writer_that_never_ends_gives_a_timeout_and_nothing_stays_locked(
    tmp_path: Path,
) -> None:
    path = tmp_path / "app.sqlite"
    with Database(path, timeout=0.05) as database:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LockTimeout, match="locked"):
                database.create_session("t", model="m")
            other.execute("ROLLBACK")
        assert database.create_session("t", model="m").title == "t"


def test_a_closed_database_says_so(database: Database) -> None:
    database.close()
    database.close()
    with pytest.raises(ValidationError, match="closed"):
        database.sessions()


def test_a_disk_that_fails_once_costs_only_that_call(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk error throws the connection away; the retry opens a new one and sees all."""
    session = database.create_session("t", model="m")
    database.add_message(session.id, "user", "kept")
    # SQLite has no room for one more page: the real SQLITE_FULL, from inside SQLite.
    pages = database.file.query("PRAGMA page_count")[0][0]
    database.file.query(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StorageError, match="full"):
        database.add_message(session.id, "user", "x" * 100_000)
    assert [item.content for item in database.messages(session.id)] == ["kept"]
    database.add_message(session.id, "user", "y" * 100_000)
    assert len(database.messages(session.id)) == 2


def test_an_error_of_the_directory_sync_is_not_swallowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: object) -> None:
        raise StorageError("dir", OSError(5, "Input/output error"))

    path = tmp_path / "app.sqlite"
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_file, "fsync_directory", failing)
        with pytest.raises(StorageError, match="Input/output"):
            Database(path)
    with Database(path) as database:
        database.create_session("t", model="m")


def test_a_file_that_sqlite_could_open_for_reading_only_once_is_not_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a descriptor to spare SQLite falls back to reading, without a word."""
    path = tmp_path / "app.sqlite"
    Database(path).close()
    connect = sqlite_file.SqliteFile._connect
    with monkeypatch.context() as patch:
        patch.setattr(
            sqlite_file.SqliteFile, "_connect", lambda self, options: connect(self, "mode=ro")
        )
        database = Database(path)
    with database:
        with pytest.raises(StorageError, match="readonly"):
            database.create_session("t", model="m")
        assert database.create_session("t", model="m")


def test_a_reader_that_never_ends_is_named_when_the_log_must_be_emptied(
    tmp_path: Path,
) -> None:
    path = tmp_path / "app.sqlite"
    with (
        Database(path, timeout=0.05) as database,
        closing(sqlite3.connect(path, isolation_level=None)) as reader,
    ):
        session = database.create_session("t", model="m")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM sessions").fetchall()
        database.delete_session(session.id)
        with pytest.raises(LockTimeout, match="reads an older state"):
            database.file.empty_log()
        reader.execute("ROLLBACK")
        database.file.empty_log()
        assert database.sessions() == []


def test_a_process_killed_after_its_commit_has_lost_nothing(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import os, sys
        from pytest_statepersist.reference.database import Database
        database = Database(sys.argv[1])
        session = database.create_session("t", model="m", session_id="s")
        database.add_message("s", "user", "saved")
        with database.transaction():
            database.add_message("s", "user", "not committed")
            os._exit(9)
    """)
    path = tmp_path / "app.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        cwd=Path(__file__).resolve().parents[2],
        check=False,
        timeout=30,
    )
    assert done.returncode == 9
    with Database(path) as database:
        assert [item.content for item in database.messages("s")] == ["saved"]
        # What is shown has been moved out of the log into the database: durable, not only cached.
        with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as raw:
            assert raw.execute("SELECT count(*) FROM messages").fetchone() == (1,)


def test_a_message_is_a_value() -> None:
    message = AppMessage.build(
        id="a", session_id="s", role="user", content="x", created_at=START, sequence=0
    )
    assert AppMessage.parse(message.model_dump()) == message
