"""Schema versions of the app database, and the one way from each to the next.

The law: a migration that has been released is never edited; a change of the schema is a new
migration. They only go forwards. Each runs in one transaction together with its version bump,
so whatever interrupts them, the file is at exactly one version and the next open goes on from
there. A file newer than the code is refused before anything is written.

The version is the single row of the table ``schema_version`` (0 where there is no table).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_statepersist.reference.errors import DamagedData, NewerVersion

__all__ = ["APP_MIGRATIONS", "SCHEMA_VERSION", "Migration", "migrate", "stored_version"]


@dataclass(frozen=True, slots=True)
class Migration:
    """The statements that lead from version ``version - 1`` to ``version``."""

    version: int
    name: str
    statements: tuple[str, ...]


def stored_version(connection: sqlite3.Connection) -> int:
    """Return the schema version of a database: 0 if it is empty.

    Raises `DamagedData` for a database that is not empty and has no version of ours.
    """
    tables = {
        str(row[0])
        for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    }
    if not tables:
        return 0
    rows = (
        connection.execute("SELECT version FROM schema_version").fetchall()
        if "schema_version" in tables
        else []
    )
    if len(rows) != 1 or not isinstance(rows[0][0], int) or rows[0][0] < 1:
        raise DamagedData(
            "the database has tables but no schema version of ours: it belongs to another "
            "program, or its table schema_version was damaged; choose another path or restore "
            "a backup"
        )
    return int(rows[0][0])


def migrate(
    connection: sqlite3.Connection,
    migrations: Sequence[Migration],
    *,
    path: str | os.PathLike[str] = "database",
    target: int | None = None,
) -> int:
    """Bring a database to the newest version (or ``target``); return how many steps it took.

    The connection must be in autocommit mode (``isolation_level=None``). Each step is atomic,
    and as durable on return as the connection's own commits. Raises `NewerVersion`,
    `DamagedData`, and `sqlite3.Error` with the step undone.
    """
    newest = migrations[-1].version
    steps = 0
    while True:
        # Looked at inside the write transaction: another process may be migrating right now.
        version = stored_version(connection)
        if version > newest:
            raise NewerVersion(
                f"{os.fspath(path)}: schema version {version}, this code knows versions up to "
                f"{newest}. Nothing was changed. Update the application"
            )
        if version >= (newest if target is None else target):
            return steps
        steps += _step(connection, version, migrations)


def _step(connection: sqlite3.Connection, version: int, migrations: Sequence[Migration]) -> int:
    connection.execute("BEGIN IMMEDIATE")
    try:
        done = stored_version(connection) != version
        if not done:
            following = next(item for item in migrations if item.version == version + 1)
            if version == 0:
                connection.execute(_VERSION_TABLE)
            # One by one: `executescript` would commit first and break the step in two.
            for statement in following.statements:
                connection.execute(statement)
            connection.execute(
                "INSERT OR REPLACE INTO schema_version (id, version) VALUES (1, ?)",
                (following.version,),
            )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return 0 if done else 1


_VERSION_TABLE = (
    "CREATE TABLE schema_version (id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER NOT NULL)"
)

_INITIAL = Migration(
    1,
    "initial",
    (
        """CREATE TABLE sessions (
            id TEXT PRIMARY KEY,
            title TEXT NOT NULL,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL,
            model TEXT NOT NULL,
            provider TEXT NOT NULL DEFAULT 'venice',
            prompt_tokens INTEGER NOT NULL DEFAULT 0,
            completion_tokens INTEGER NOT NULL DEFAULT 0,
            cost REAL NOT NULL DEFAULT 0,
            is_archived INTEGER NOT NULL DEFAULT 0 CHECK (is_archived IN (0, 1)),
            is_imported INTEGER NOT NULL DEFAULT 0 CHECK (is_imported IN (0, 1))
        )""",
        "CREATE INDEX idx_sessions_updated ON sessions (updated_at DESC)",
        "CREATE INDEX idx_sessions_archived ON sessions (is_archived)",
        """CREATE TABLE messages (
            id TEXT PRIMARY KEY,
            session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
            role TEXT NOT NULL,
            content TEXT NOT NULL,
            created_at TEXT NOT NULL,
            prompt_tokens INTEGER,
            completion_tokens INTEGER,
            tool_calls TEXT,
            sequence INTEGER NOT NULL
        )""",
        "CREATE UNIQUE INDEX idx_messages_session ON messages (session_id, sequence)",
        """CREATE TABLE snapshots (
            id TEXT PRIMARY KEY,
            timestamp TEXT NOT NULL,
            type TEXT NOT NULL CHECK (type IN ('auto', 'manual', 'system')),
            trigger TEXT NOT NULL,
            description TEXT,
            size_bytes INTEGER NOT NULL,
            state_json TEXT NOT NULL,
            summary_json TEXT NOT NULL
        )""",
        "CREATE INDEX idx_snapshots_timestamp ON snapshots (timestamp DESC)",
    ),
)

_BRANCHES = Migration(
    2,
    "branches",
    (
        "ALTER TABLE sessions ADD COLUMN branch_name TEXT NOT NULL DEFAULT 'main'",
        # A branch outlives its parent: deleting the parent makes it a session of its own.
        "ALTER TABLE sessions ADD COLUMN parent_session_id TEXT "
        "REFERENCES sessions (id) ON DELETE SET NULL",
        "ALTER TABLE sessions ADD COLUMN branch_point INTEGER",
        "CREATE INDEX idx_sessions_parent ON sessions (parent_session_id)",
    ),
)

_ANALYTICS = Migration(
    3,
    "analytics",
    (
        # No reference to sessions: figures of a deleted session are still figures.
        """CREATE TABLE analytics (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            timestamp TEXT NOT NULL,
            event_type TEXT NOT NULL,
            session_id TEXT,
            model TEXT,
            prompt_tokens INTEGER,
            completion_tokens INTEGER,
            cost REAL,
            duration_ms INTEGER,
            metadata_json TEXT
        )""",
        "CREATE INDEX idx_analytics_timestamp ON analytics (timestamp DESC)",
        "CREATE INDEX idx_analytics_session ON analytics (session_id)",
    ),
)

_RECORDINGS = Migration(
    4,
    "recordings, file changes, proofs, starred snapshots",
    (
        "ALTER TABLE snapshots ADD COLUMN starred INTEGER NOT NULL DEFAULT 0 "
        "CHECK (starred IN (0, 1))",
        "CREATE INDEX idx_snapshots_starred ON snapshots (starred)",
        # No reference either: a recording stays until the user deletes the recording.
        """CREATE TABLE recordings (
            id TEXT PRIMARY KEY,
            session_id TEXT NOT NULL,
            title TEXT NOT NULL,
            created_at TEXT NOT NULL,
            duration INTEGER NOT NULL,
            events_json TEXT NOT NULL,
            snapshots_json TEXT,
            metadata_json TEXT
        )""",
        "CREATE INDEX idx_recordings_session ON recordings (session_id)",
        """CREATE TABLE file_changes (
            id TEXT PRIMARY KEY,
            session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
            path TEXT NOT NULL,
            change TEXT NOT NULL CHECK (change IN ('created', 'modified', 'deleted', 'renamed')),
            diff TEXT NOT NULL,
            created_at TEXT NOT NULL
        )""",
        "CREATE INDEX idx_file_changes_session ON file_changes (session_id, created_at)",
        """CREATE TABLE proofs (
            id TEXT PRIMARY KEY,
            session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
            statement TEXT NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('open', 'proved', 'failed')),
            state_json TEXT NOT NULL,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL
        )""",
        "CREATE INDEX idx_proofs_session ON proofs (session_id, created_at)",
    ),
)

APP_MIGRATIONS = (_INITIAL, _BRANCHES, _ANALYTICS, _RECORDINGS)
SCHEMA_VERSION = APP_MIGRATIONS[-1].version
