"""The SQLite recorder: each test compares with the real directory, or with what the manual says."""

from __future__ import annotations

import _sqlite3
import contextlib
import ctypes
import errno
import gc
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.apply import apply
from pytest_statepersist.core.tree import ROOT, Tree
from pytest_statepersist.errors import RecorderUnavailable, UserError
from pytest_statepersist.recorders import sqlite_library, sqlite_quick
from pytest_statepersist.recorders.builder import Moment, TraceBuilder
from pytest_statepersist.recorders.callsite import CallSites
from pytest_statepersist.recorders.scan import scan
from pytest_statepersist.recorders.sqlite import SqliteRecorder, is_shared_memory
from pytest_statepersist.recorders.sqlite_calls import hooks


def _available() -> str:
    try:
        sqlite_library.library()
    except RecorderUnavailable as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(_available()), reason=_available() or "-")


class Recording:
    """A recorded block on a directory, and what is there afterwards."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.trace = op.Trace(Tree())
        self.builder: TraceBuilder

    def ignore(self, path: str) -> bool:
        return is_shared_memory(str(self.directory / path))

    @contextlib.contextmanager
    def __call__(self) -> Iterator[TraceBuilder]:
        before = scan(self.directory, ignore=self.ignore)
        self.builder = TraceBuilder(
            str(self.directory), before.tree, identities=before.identities, recorder="sqlite"
        )
        with SqliteRecorder(self.builder):
            yield self.builder
        self.trace = self.builder.finish()

    def check(self) -> None:
        """The trace, applied to the base, must be the real directory."""
        assert self.builder.doubts == []
        real = scan(self.directory, ignore=self.ignore).tree
        assert apply(self.trace).differences(real) == []

    def kinds(self, *, without: tuple[type, ...] = ()) -> list[str]:
        return [
            f"{type(o).__name__} {o.path}" for o in self.trace.operations if type(o) not in without
        ]


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    directory = tmp_path / "state"
    directory.mkdir()
    return Recording(directory)


@contextlib.contextmanager
def connect(path: Path, *pragmas: str) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}").fetchall()
        yield connection


def fill(connection: sqlite3.Connection, *, rows: int = 3) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
    for row in range(rows):
        with connection:
            connection.execute("INSERT INTO t VALUES (?)", (f"row {row}" * 100,))
    with contextlib.suppress(ZeroDivisionError), connection:
        connection.execute("DELETE FROM t")
        raise ZeroDivisionError  # rolled back: the journal is played back


MODES = ["delete", "truncate", "persist", "wal", "memory", "off"]
SYNCS = ["OFF", "NORMAL", "FULL", "EXTRA"]


@pytest.mark.parametrize("synchronous", SYNCS)
@pytest.mark.parametrize("mode", MODES)
def test_the_trace_explains_the_directory(
    recording: Recording, mode: str, synchronous: str
) -> None:
    pragmas = f"journal_mode={mode}", f"synchronous={synchronous}"
    with recording(), connect(recording.directory / "app.db", *pragmas) as connection:
        fill(connection)
    recording.check()
    syncs = [o for o in recording.trace.operations if isinstance(o, op.Fsync)]
    # Changing into WAL mode syncs once even when synchronous is OFF.
    assert bool(syncs) == (synchronous != "OFF") or mode == "wal"


@pytest.mark.parametrize("mode", MODES)
def test_a_block_that_begins_with_a_used_database(recording: Recording, mode: str) -> None:
    path = recording.directory / "app.db"
    with connect(path, f"journal_mode={mode}", "synchronous=FULL") as connection:
        fill(connection)
        with recording():
            fill(connection)
            connection.execute("VACUUM")
        recording.check()
        assert any(
            isinstance(o, op.Fsync) and o.path == "app.db" for o in recording.trace.operations
        ) == (mode != "wal")
        if mode == "wal":
            assert "Fsync app.db-wal" in recording.kinds()


def test_one_transaction_call_by_call(recording: Recording) -> None:
    """As https://www.sqlite.org/atomiccommit.html tells it: journal, its directory, header, file.

    The directory is synced after the journal, and with EXTRA once more after its removal.
    """
    path = recording.directory / "app.db"
    with connect(path, "synchronous=EXTRA") as connection:
        connection.execute("CREATE TABLE t (x)")
        with recording(), connection:
            connection.execute("INSERT INTO t VALUES (1)")
    recording.check()
    kinds = recording.kinds(without=(op.SetAttributes,))
    at = kinds.index("Fsync app.db-journal")
    assert kinds[0] == "Create app.db-journal"
    assert set(kinds[1:at]) == {"Write app.db-journal"}
    assert kinds[at:] == [
        "Fsync app.db-journal",
        "Fsync ",
        "Write app.db-journal",
        "Fsync app.db-journal",
        "Write app.db",
        "Write app.db",
        "Fsync app.db",
        "Close app.db-journal",
        "Unlink app.db-journal",
        "Fsync ",
    ]
    assert [o.inode for o in recording.trace.operations if kinds and o.path == ""] == [ROOT, ROOT]


def test_full_does_not_sync_the_removal_of_the_journal(recording: Recording) -> None:
    with connect(recording.directory / "app.db", "synchronous=FULL") as connection:
        connection.execute("CREATE TABLE t (x)")
        with recording(), connection:
            connection.execute("INSERT INTO t VALUES (1)")
    assert recording.kinds()[-1] == "Unlink app.db-journal"


def test_wal_is_synced_at_each_commit_with_full_and_at_a_checkpoint_with_normal(
    recording: Recording,
) -> None:
    path = recording.directory / "app.db"
    found = {}
    for level in ("NORMAL", "FULL"):
        with connect(path, "journal_mode=wal", f"synchronous={level}") as connection:
            fill(connection, rows=1)
            with recording(), connection:
                connection.execute("INSERT INTO t VALUES (1)")
            found[level] = recording.kinds().count("Fsync app.db-wal")
    assert found["NORMAL"] < found["FULL"]


def test_shared_memory_is_not_state(recording: Recording) -> None:
    path = recording.directory / "app.db"
    with recording():
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode=wal")
        fill(connection)
    with contextlib.closing(connection):
        assert (recording.directory / "app.db-shm").exists()
        recording.check()
    assert not any("shm" in kind for kind in recording.kinds())


def test_a_file_that_only_looks_like_shared_memory_is_state(tmp_path: Path) -> None:
    (tmp_path / "notes-shm").write_text("mine")
    assert not is_shared_memory(str(tmp_path / "notes-shm"))
    (tmp_path / "notes").write_text("not a database")
    assert not is_shared_memory(str(tmp_path / "notes-shm"))


def test_attached_databases_commit_with_a_super_journal(recording: Recording) -> None:
    directory = recording.directory
    with recording(), connect(directory / "a.db") as connection:
        connection.execute("ATTACH ? AS b", (str(directory / "b.db"),))
        connection.execute("CREATE TABLE main.t (x)")
        connection.execute("CREATE TABLE b.t (x)")
        with connection:
            connection.execute("INSERT INTO main.t VALUES (1)")
            connection.execute("INSERT INTO b.t VALUES (2)")
    recording.check()
    supers = [o for o in recording.trace.operations if isinstance(o, op.Create) and "-mj" in o.name]
    assert len(supers) == 1
    written = [o.data for o in recording.trace.operations if isinstance(o, op.Write)]
    assert any(str(directory / "a.db-journal").encode() in data for data in written)


def test_vacuum_into_and_backup(recording: Recording) -> None:
    with recording(), connect(recording.directory / "a.db") as connection:
        fill(connection)
        connection.execute("VACUUM INTO ?", (str(recording.directory / "copy.db"),))
        with connect(recording.directory / "backup.db") as target:
            connection.backup(target)
    recording.check()


def test_temporary_databases_outside_leave_nothing(recording: Recording) -> None:
    with recording(), connect(recording.directory / "a.db", "temp_store=FILE") as connection:
        connection.execute("PRAGMA cache_size=1")
        connection.execute("CREATE TEMP TABLE big (x)")
        connection.executemany("INSERT INTO big VALUES (?)", [("y" * 900,) for _ in range(500)])
        connection.execute("SELECT * FROM big ORDER BY x").fetchall()
    recording.check()
    assert all(not o.path.startswith("/") for o in recording.trace.operations)


def test_a_database_made_outside_and_moved_in_brings_its_history(
    recording: Recording, tmp_path: Path
) -> None:
    source = tmp_path / "draft.db"
    with recording() as builder:
        with connect(source, "synchronous=FULL") as connection:
            fill(connection)
        # What the Python recorder would say of this call.
        os.replace(source, recording.directory / "app.db")
        builder.rename(op.OUTSIDE, str(source), ROOT, "app.db", (None, None, 0))
    recording.check()
    inode = next(o.inode for o in recording.trace.operations if isinstance(o, op.Rename))
    assert any(isinstance(o, op.Fsync) and o.inode == inode for o in recording.trace.operations)


def test_mapped_reads_change_nothing_and_writes_are_seen(recording: Recording) -> None:
    with connect(recording.directory / "a.db", "mmap_size=268435456") as connection:
        fill(connection)
        with recording():
            fill(connection)
            connection.execute("SELECT count(*) FROM t").fetchall()
    recording.check()


@pytest.mark.parametrize("vfs", ["unix", "unix-excl", "unix-dotfile", "unix-none"])
def test_every_way_to_lock(recording: Recording, vfs: str) -> None:
    uri = f"{(recording.directory / 'a.db').as_uri()}?vfs={vfs}"
    with recording(), contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        fill(connection)
    recording.check()
    assert "Fsync a.db" in recording.kinds()


def test_call_sites_are_the_lines_that_called_sqlite(recording: Recording) -> None:
    with recording(), connect(recording.directory / "a.db") as connection:
        connection.execute("CREATE TABLE t (x)")
    sites = {o.site for o in recording.trace.operations}
    assert {site.file for site in sites if site} == {__file__}
    created = next(
        o
        for o in recording.trace.operations
        if isinstance(o, op.Create) and o.name == "a.db-journal"
    )
    source = Path(__file__).read_text().splitlines()
    assert created.site is not None
    assert "CREATE TABLE" in source[created.site.line - 1]


def test_the_same_line_of_the_standard_library_called_from_two_lines(recording: Recording) -> None:
    with connect(recording.directory / "a.db") as connection, recording():
        stack = contextlib.ExitStack()
        for number in range(2):
            stack.callback(connection.execute, f"PRAGMA user_version = {number + 1}")
            stack.close()  # one
            stack.callback(connection.execute, f"PRAGMA user_version = {number + 8}")
            stack.close()  # other
    recording.check()
    source = Path(__file__).read_text().splitlines()
    lines = [
        source[o.site.line - 1].rpartition("# ")[2]
        for o in recording.trace.operations
        if o.site and isinstance(o, op.Create) and o.name == "a.db-journal"
    ]
    assert lines == ["one", "other", "one", "other"]


def test_a_journal_that_was_there_unseen_is_not_taken_for_a_new_one(recording: Recording) -> None:
    path = recording.directory / "a.db"
    with recording() as builder, connect(path) as connection:
        fill(connection, rows=1)
        (recording.directory / "a.db-journal").write_bytes(b"\0" * 10)
        count = len(builder)
        with connection:
            connection.execute("INSERT INTO t VALUES (1)")
        assert not any(entry[0] is op.Create for entry in builder.entries(count))
    assert [doubt.culprit for doubt in builder.doubts] == ["a.db-journal"]


def test_a_journal_that_was_replaced_unseen_gives_a_doubt(
    recording: Recording, tmp_path: Path
) -> None:
    path = recording.directory / "a.db"
    with recording() as builder, connect(path, "journal_mode=persist") as connection:
        fill(connection)
        assert builder.doubts == []
        other = tmp_path / "other"
        other.write_bytes(b"\0" * 10)
        os.replace(other, recording.directory / "a.db-journal")
        with connection:
            connection.execute("INSERT INTO t VALUES (1)")
    assert {doubt.culprit for doubt in builder.doubts} == {"a.db-journal"}


def test_threads(recording: Recording) -> None:
    def work(number: int) -> None:
        with connect(recording.directory / f"{number % 2}.db", "busy_timeout=20000") as connection:
            for row in range(10):
                with connection:
                    connection.execute("INSERT INTO t VALUES (?)", (row,))

    for number in range(2):
        with connect(recording.directory / f"{number}.db") as connection:
            connection.execute("CREATE TABLE t (x)")
    with recording():
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    recording.check()
    assert len({o.task for o in recording.trace.operations}) == 4


def _state_of_sqlite() -> tuple[object, ...]:
    library = sqlite_library.library()
    return (
        {name: library.system_call(name) for name in sqlite_library.PROTOTYPES},
        {table: library.sync_method(table) for table in library.method_tables},
        {table: sqlite_library._protection(table) for table in library.method_tables},
    )


def test_sqlite_is_put_back_exactly(recording: Recording) -> None:
    before = _state_of_sqlite()
    with recording():
        assert _state_of_sqlite() != before
    assert _state_of_sqlite() == before


def test_sqlite_is_put_back_when_the_block_raises(recording: Recording) -> None:
    before = _state_of_sqlite()
    with pytest.raises(ZeroDivisionError), recording():
        raise ZeroDivisionError
    assert _state_of_sqlite() == before
    with recording(), connect(recording.directory / "a.db") as connection:
        fill(connection)
    recording.check()


def test_a_connection_may_outlive_many_recordings(recording: Recording) -> None:
    with connect(recording.directory / "a.db") as connection:
        for _ in range(5):
            with recording():
                fill(connection)
            recording.check()
            gc.collect()
        fill(connection)


def test_two_recordings_at_once_are_refused(recording: Recording) -> None:
    other = SqliteRecorder(TraceBuilder(str(recording.directory), Tree()))
    with recording(), pytest.raises(UserError, match="recorded already"):
        other.start()
    before = _state_of_sqlite()
    other.stop()  # never started: nothing to undo
    assert _state_of_sqlite() == before


def test_failures_reach_sqlite_as_they_are(recording: Recording, tmp_path: Path) -> None:
    with recording():
        with pytest.raises(sqlite3.OperationalError, match="unable to open"):
            sqlite3.connect(tmp_path / "missing" / "a.db")
        with connect(recording.directory / "a.db") as connection:
            fill(connection)
            # ENOENT on the journal must stay what it was, or SQLite takes it for an I/O error.
            connection.execute("PRAGMA journal_mode=truncate")
            connection.execute("PRAGMA journal_mode=delete")
            connection.execute("PRAGMA journal_mode=wal")
    recording.check()


@pytest.mark.parametrize("pages", [0, 1], ids=["nothing fits", "half a page fits"])
def test_a_full_disk_reaches_sqlite_as_it_is(
    recording: Recording, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    full = False

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if not full or (pages and len(data) > 2048):
            return os.pwrite(descriptor, data[: 2048 if full else None], offset)
        raise OSError(errno.ENOSPC, "full")

    with connect(recording.directory / "a.db") as connection:
        fill(connection)
        with recording():
            monkeypatch.setattr(sqlite_quick, "_pwrite", pwrite)
            fill(connection)
            full = True
            with pytest.raises(sqlite3.OperationalError, match="database or disk is full"):
                fill(connection)
            full = False
            fill(connection)
    recording.check()


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "wal"])
def test_quick_and_slow_calls_are_recorded_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """What the quick functions leave to the others, these do for every call of another thread."""

    def record(directory: Path) -> list[tuple[object, ...]]:
        directory.mkdir()
        recording = Recording(directory)
        with recording(), connect(directory / "a.db", f"journal_mode={mode}") as connection:
            fill(connection)
            for number in range(4):
                with connection:
                    connection.execute("INSERT INTO t VALUES (?)", (number,))
            connection.execute("VACUUM")
        recording.check()
        # A journal's header holds a random number, so its bytes differ.
        return [
            (type(each), each.path, each.site, each.task, getattr(each, "offset", None),
             getattr(each, "size", None), len(getattr(each, "data", b"")))
            for each in recording.trace.operations
        ]  # fmt: skip

    wrote, asked = SqliteRecorder.wrote, list[int]()

    def counted(self: SqliteRecorder, descriptor: int, *rest: Any) -> None:
        asked.append(descriptor)
        wrote(self, descriptor, *rest)

    monkeypatch.setattr(SqliteRecorder, "wrote", counted)
    quick = record(tmp_path / "quick")
    few = len(asked)
    monkeypatch.setattr(hooks(), "lend", lambda _: None)
    slow = record(tmp_path / "slow")
    writes = sum(each[0] is op.Write for each in slow)
    assert few < writes // 2
    assert len(asked) - few >= writes
    assert quick == slow


def test_an_exception_inside_a_callback_is_raised_at_the_end(recording: Recording) -> None:
    builder = TraceBuilder(str(recording.directory), Tree())

    class Broken(CallSites):
        def moment(self, frame: FrameType | None = None) -> Moment:
            raise RuntimeError("from the callback")

    before = _state_of_sqlite()
    recorder = SqliteRecorder(builder, Broken())
    recorder.start()
    with connect(recording.directory / "a.db") as connection, pytest.raises(sqlite3.Error):
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(RuntimeError, match="from the callback"):
        recorder.stop()
    assert _state_of_sqlite() == before


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
def test_an_endless_workload_can_be_interrupted(recording: Recording) -> None:
    class TooLong(Exception):
        pass

    def ring(*_: object) -> None:
        raise TooLong

    previous = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        path = recording.directory / "a.db"
        with pytest.raises(TooLong), recording(), connect(path, "synchronous=OFF") as connection:
            connection.execute("CREATE TABLE t (x)")
            # Wherever the alarm falls, in Python or in a callback, the loop ends.
            with contextlib.suppress(sqlite3.OperationalError):
                while True:
                    with connection:
                        connection.execute("INSERT INTO t VALUES (1)")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="no signals here")
def test_a_signal_inside_a_callback_is_handled_outside(recording: Recording) -> None:
    inside: list[bool] = []
    active = rung = False

    def ring(_: int, frame: FrameType | None) -> None:
        inside.append(active)
        raise TimeoutError

    class Ringing(CallSites):
        def moment(self, frame: FrameType | None = None) -> Moment:
            nonlocal active, rung
            active = True
            if not rung:
                rung = True
                signal.raise_signal(signal.SIGUSR1)
            active = False
            return super().moment(frame)

    builder = TraceBuilder(str(recording.directory), Tree())
    previous = signal.signal(signal.SIGUSR1, ring)
    try:
        path, recorder = recording.directory / "a.db", SqliteRecorder(builder, Ringing())
        with pytest.raises(TimeoutError), recorder, connect(path) as connection:
            fill(connection)
            time.sleep(5)
        assert signal.getsignal(signal.SIGUSR1) is ring
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert inside == [False]


def test_a_forked_child_is_not_recorded(recording: Recording) -> None:
    code = f"""
import os, sqlite3
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.recorders.builder import TraceBuilder
from pytest_statepersist.recorders.sqlite import SqliteRecorder
builder = TraceBuilder({str(recording.directory)!r}, Tree())
with SqliteRecorder(builder):
    child = os.fork()
    if not child:
        with sqlite3.connect({str(recording.directory / "a.db")!r}) as connection:
            connection.execute("CREATE TABLE t (x)")
        connection.close()
        os._exit(len(builder))
    assert os.waitpid(child, 0)[1] == 0
assert len(builder) == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_hidden_symbols_are_an_error_that_names_strace(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoSymbols:
        def __init__(self, _: object) -> None: ...

    monkeypatch.setattr(ctypes, "CDLL", NoSymbols)
    with pytest.raises(RecorderUnavailable, match="strace"):
        sqlite_library.library.__wrapped__()


def test_another_copy_of_sqlite_is_not_taken_for_the_right_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Cursor:
        def fetchone(self) -> tuple[str]:
            return ("another build",)

    class Connection:
        def execute(self, _: str) -> Cursor:
            return Cursor()

        def close(self) -> None: ...

    monkeypatch.setattr(sqlite3, "connect", lambda _: Connection())
    with pytest.raises(RecorderUnavailable, match="another copy"):
        sqlite_library.library.__wrapped__()


def test_the_kind_of_sync_is_that_of_the_build(recording: Recording) -> None:
    """SQLite built with fdatasync uses it for all syncs: strace shows the same (see benchmarks)."""
    binary = Path(_sqlite3.__file__)
    library = sqlite_library.library()
    with recording(), connect(recording.directory / "a.db") as connection:
        fill(connection)
    flags = {o.data_only for o in recording.trace.operations if isinstance(o, op.Fsync)}
    assert flags == {library.syncs_data_only}
    assert binary.exists()


def test_doubt_about_a_writable_map(recording: Recording) -> None:
    """No stock build maps databases for writing, so the call is made as such a build would."""
    path = recording.directory / "a.db"
    with recording() as builder:
        with connect(path) as connection:
            fill(connection)
        descriptor = os.open(path, os.O_RDWR)
        try:
            thunk = hooks().thunks["mmap"]
            assert thunk(None, 4096, 3, 1, descriptor, 0)
        finally:
            os.close(descriptor)
    (doubt,) = builder.doubts
    assert doubt.culprit == "a.db"
    assert doubt.recorder == "strace"
