"""One SQLite file, opened so that "committed" means "survives power loss".

The law: nothing but SQLite changes the file's bytes, and every choice that durability rests on
is made here, once:

* ``journal_mode=WAL`` with ``synchronous=FULL``. In WAL mode FULL syncs the log at each commit,
  so a returned commit is durable; NORMAL would only keep the file consistent and may lose the
  last commits. (In DELETE mode FULL may lose the last commit too, because the removal of the
  journal is not synced; there EXTRA would be needed.)
* A commit is worth nothing while the *names* of database and log are not durable. SQLite syncs
  the directory itself when it first syncs a new log, but ignores an error there, and never does
  it for the database. So `SqliteFile` syncs the directory, with errors reported, each time it
  has opened the file and before it lets anybody write.
* A process killed in a commit leaves a log that the page cache shows and the disk may not have.
  A checkpoint at open makes what we are about to show durable before it is shown.
* After a sync of the log that failed, its bytes are written anew and synced before SQLite goes
  on: the page cache may show some that the disk never gets.
* ``foreign_keys``, ``cell_size_check``, ``trusted_schema=OFF``, ``temp_store=MEMORY`` (no
  temporary file ever holds a copy of the data) and, when asked for, ``secure_delete``.

SQLite itself says "corrupt" where the system reports an I/O error on a read (in `unixRead`, EIO
becomes SQLITE_IOERR_CORRUPTFS, and that SQLITE_CORRUPT): so `DamagedData` may be a disk that failed
once. The connection is thrown away after it as well, and calling again tells the two apart.

The file is created 0600 at once; SQLite gives its log the same mode. After an error of the disk
the connection is thrown away and the next call opens a new one: no lock stays behind.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import (
    FILE_MODE,
    fsync_directory,
    make_directory,
    resolved_path,
)
from pytest_statepersist.reference.errors import (
    ConflictError,
    DamagedData,
    LockTimeout,
    NewerVersion,
    PersistenceError,
    StorageError,
    ValidationError,
)
from pytest_statepersist.reference.locking import StoreLock
from pytest_statepersist.reference.migrations import Migration, migrate, stored_version

__all__ = ["SqliteFile"]

Parameters = Sequence[Any] | dict[str, Any]
SqlValue = str | bytes | int | float | None

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_DUPLICATE = {sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_UNIQUE}
# The connection has seen the disk fail and may hold half-known state.
_SUSPECT = {
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,  # opening for writing failed once, and SQLite quietly reads only
}
_distrusted: set[Path] = set()
"""Databases whose log a failed sync may have left other than it looks."""


@checked
class SqliteFile:
    """A migrated database file with durable transactions; safe between threads and processes.

    Opening creates the file and its directory, migrates an older schema, and refuses a newer
    one without touching it (`NewerVersion`). ``timeout`` is how long, in seconds, to wait for
    another writer. Raises `DamagedData`, `LockTimeout`, `StorageError`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        migrations: Sequence[Migration],
        timeout: float = 10.0,
        secure_delete: bool = False,
    ) -> None:
        # Resolved as SQLite does, so that the directory that we sync is the one that has the file.
        self.path = resolved_path(path)
        if not migrations:
            raise ValidationError("migrations", "there is none, so that no schema is known")
        self._migrations = tuple(migrations)
        self._timeout = timeout
        self._secure_delete = secure_delete
        self._threads = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._depth = 0
        self._closed = False
        self._suspect = self._unsynced = False
        self._functions: list[tuple[str, int, Callable[..., SqlValue]]] = []
        with self._threads:
            self._open()

    # -- reading and writing -------------------------------------------------------------

    def query(self, sql: str, parameters: Parameters = ()) -> list[sqlite3.Row]:
        """Return all rows of one statement."""
        with self._threads, self._errors(), _binding():
            rows: list[sqlite3.Row] = self._open().execute(sql, parameters).fetchall()
            return rows

    def execute(self, sql: str, parameters: Parameters = ()) -> int:
        """Run one statement in a transaction of its own (or the current one); return its rows.

        The number is that of the rows changed. Durable on return outside a `transaction`.
        """
        with self.transaction() as connection, _binding():
            return connection.execute(sql, parameters).rowcount

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing of it; durable once the outermost block has ended.

        Nested blocks are savepoints: an error that is caught around an inner block undoes the
        inner block only. After an error nothing of the block is seen, and nothing is locked.
        One exception: where the disk fails in the commit itself, a crash right then may still
        show the block as a whole.
        """
        with self._threads, self._errors():
            connection = self._open()
            self._depth += 1
            name = f"level{self._depth}"
            outermost = self._depth == 1
            try:
                connection.execute("BEGIN IMMEDIATE" if outermost else f"SAVEPOINT {name}")
                yield connection
                connection.execute("COMMIT" if outermost else f"RELEASE {name}")
            except BaseException:
                self._undo(connection, None if outermost else name)
                raise
            finally:
                self._depth -= 1

    def create_function(self, name: str, arguments: int, function: Callable[..., SqlValue]) -> None:
        """Make a pure Python function available to SQL, on later connections too."""
        with self._threads, self._errors():
            try:
                self._open().create_function(name, arguments, function, deterministic=True)
            except (ValueError, OverflowError) as error:
                raise ValidationError("name", f"SQL can have no such function: {error}") from error
            self._functions.append((name, arguments, function))

    # -- housekeeping --------------------------------------------------------------------

    def vacuum(self) -> None:
        """Rewrite the file without its free pages, and empty the log. Not inside a transaction."""
        with self._threads, self._errors():
            self._open().execute("VACUUM")
            self.empty_log()

    def empty_log(self) -> None:
        """Move the log into the database and cut it to nothing, so that it holds no old rows.

        Raises `LockTimeout` while another connection still reads an old state.
        """
        with self._threads, self._errors():
            busy = self._checkpoint()
            if busy:
                # Perhaps by ourselves: a lock that the system refused to release once.
                self._drop()
                busy = self._checkpoint()
        if busy:
            raise LockTimeout(
                f"{self.path}: another connection still reads an older state, so the log could "
                "not be emptied; the change itself is durable. Close the reader and call again"
            )

    def _checkpoint(self) -> bool:
        row = self._open().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return bool(row[0])

    def check(self) -> None:
        """Read every page and every reference. Raises `DamagedData` with the first problems."""
        problems = [str(row[0]) for row in self.query("PRAGMA integrity_check(5)")]
        if problems != ["ok"]:
            raise DamagedData(f"{self.path}: {'; '.join(problems)}. Restore a backup")
        broken = self.query("PRAGMA foreign_key_check")
        if broken:
            raise DamagedData(
                f"{self.path}: row {broken[0][1]} of table {broken[0][0]} refers to a row of "
                f"{broken[0][2]} that is not there ({len(broken)} such rows)"
            )

    def close(self) -> None:
        """Close the file; later calls raise `ValidationError`. Calling it twice is harmless.

        Everything committed is durable already; closing only tidies the log away.
        """
        with self._threads:
            self._closed = True
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- the connection ------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        if self._closed:
            raise ValidationError("database", f"{self.path} was closed; open it again")
        if self._connection is not None:
            return self._connection
        make_directory(self.path.parent)
        lock = StoreLock(self.path.with_name(self.path.name + ".lock"), timeout=self._timeout)
        with lock, self._errors():
            try:
                self._refuse_newer()
                self._create()
            except OSError as error:
                raise StorageError(self.path, error) from error
            connection = self._connect("mode=rw")
            try:
                self._prepare(connection)
            except BaseException as error:
                self._connection = connection
                self._give_up(_failed_to_sync(error))
                raise
            self._connection = connection
        return connection

    def _connect(self, options: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?{options}",
            uri=True,
            timeout=self._timeout,
            isolation_level=None,  # we say BEGIN ourselves; sqlite3 would commit before DDL
            check_same_thread=False,  # `_threads` sees to it
        )

    def _refuse_newer(self) -> None:
        """Look at the version without leaving a trace; a writing connection would tidy the log."""
        try:
            if self.path.stat().st_size == 0:
                return
        except FileNotFoundError:
            return
        log = self.path.with_name(self.path.name + "-wal")
        logged = log.exists() and log.stat().st_size > 0
        try:
            with closing(self._connect("mode=ro" if logged else "immutable=1")) as connection:
                version = stored_version(connection)
        except (sqlite3.Error, PersistenceError):
            return  # whatever is wrong, `_prepare` meets it again and can say so reliably
        if version > self._migrations[-1].version:
            raise NewerVersion(
                f"{self.path}: schema version {version} was written by newer code; this code "
                f"knows versions up to {self._migrations[-1].version}. Nothing was changed. "
                "Update the application"
            )

    def _create(self) -> None:
        # O_EXCL, and never an open of an existing file: closing any descriptor of it would
        # drop the POSIX locks that another connection of this process holds.
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE))
        except FileExistsError:
            pass

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA cell_size_check=ON")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA secure_delete={'ON' if self._secure_delete else 'OFF'}")
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise StorageError(
                self.path,
                OSError(
                    f"SQLite gave journal mode {mode!r} instead of WAL; is this a network "
                    "file system? Put the database on a local disk"
                ),
            )
        connection.execute("PRAGMA synchronous=FULL")
        for name, arguments, function in self._functions:
            connection.create_function(name, arguments, function, deterministic=True)
        if self.path in _distrusted:
            self._write_log_anew(connection)
        migrate(connection, self._migrations, path=self.path)
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        fsync_directory(self.path.parent)

    def _undo(self, connection: sqlite3.Connection, savepoint: str | None) -> None:
        try:
            if connection.in_transaction:  # SQLite has rolled back by itself after some errors
                if savepoint is None:
                    connection.execute("ROLLBACK")
                else:
                    connection.execute(f"ROLLBACK TO {savepoint}")
                    connection.execute(f"RELEASE {savepoint}")
        except sqlite3.Error:
            self._drop()

    def _give_up(self, unsynced: bool) -> None:
        """Drop the connection; where a sync failed, first let the log be what it looks like."""
        if unsynced and self._connection is not None:
            _distrusted.add(self.path)
            with suppress(sqlite3.Error, StorageError):  # else the next opening does it
                self._write_log_anew(self._connection)
        self._drop()

    def _write_log_anew(self, connection: sqlite3.Connection) -> None:
        """Write the log's bytes once more, and sync them: none of them may be on the disk.

        After a failed sync the system shows pages that it will never write, and SQLite believes
        what it reads: it would go on behind them, or copy them into the database, and a power loss
        then leaves the beginning of an old log over a newer database.
        """
        log = self.path.with_name(self.path.name + "-wal")
        connection.execute("BEGIN IMMEDIATE")  # nobody else writes meanwhile
        try:
            with open(log, "r+b", buffering=0) as file:
                left = memoryview(file.readall())
                file.seek(0)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(log, error) from error
        finally:
            connection.execute("ROLLBACK")
        _distrusted.discard(self.path)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error:
                pass  # the descriptors are gone all the same; what was committed is on the disk

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            self._suspect |= code is not None and code & 0xFF in _SUSPECT
            self._unsynced |= _failed_to_sync(error)
            raise self._translated(error, code) from error
        finally:
            if self._suspect and self._depth == 0:
                unsynced, self._unsynced, self._suspect = self._unsynced, False, False
                self._give_up(unsynced)

    def _translated(self, error: sqlite3.Error, code: int | None) -> PersistenceError:
        if code is None:
            return ValidationError("sql", str(error))  # our own misuse: sqlite3 gives no code
        if code & 0xFF in _BUSY:
            return LockTimeout(
                f"{self.path}: another connection kept the database locked for more than "
                f"{self._timeout:g} s ({error}); wait for it to finish"
            )
        if code & 0xFF in _DAMAGED:
            return DamagedData(f"{self.path}: {error}. Restore a backup of the database")
        if code in _DUPLICATE:
            return ConflictError(f"{self.path}: {error}: that id is already in use")
        if code & 0xFF == sqlite3.SQLITE_CONSTRAINT:
            return ValidationError("row", f"{error} (the schema refuses it; nothing was written)")
        if code & 0xFF in {sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH}:
            return ValidationError("row", str(error))
        return StorageError(self.path, error)


def _failed_to_sync(error: BaseException) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_IOERR_FSYNC


@contextmanager
def _binding() -> Iterator[None]:
    try:
        yield
    except (OverflowError, UnicodeEncodeError) as error:
        raise ValidationError("row", f"SQLite cannot store it: {error}") from error
