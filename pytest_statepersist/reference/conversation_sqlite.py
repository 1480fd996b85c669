"""Conversations in one SQLite file.

The law: a session is a row and its messages are rows; a save writes the messages that changed
and no others. Deleted text does not stay behind: ``secure_delete`` overwrites it in the file,
and the log is emptied before `delete` returns. Blocks that the file system freed, and copies
that a flash device keeps, are out of any program's reach.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.conversation_records import (
    Message,
    SessionInfo,
    SessionRecord,
    check_session_id,
)
from pytest_statepersist.reference.conversation_storage import (
    Change,
    Filter,
    check_expected,
    check_unchanged,
    missing,
)
from pytest_statepersist.reference.errors import DamagedData, ValidationError
from pytest_statepersist.reference.migrations import Migration
from pytest_statepersist.reference.sqlite_file import SqliteFile
from pytest_statepersist.reference.timestamps import text_of_moment
from pytest_statepersist.reference.values import check_page, from_json, to_json

__all__ = ["SqliteConversations"]

_MIGRATIONS = (
    Migration(
        1,
        "initial",
        (
            """CREATE TABLE sessions (
                id TEXT PRIMARY KEY,
                user_id TEXT NOT NULL,
                title TEXT NOT NULL,
                created_at TEXT NOT NULL,
                updated_at TEXT NOT NULL,
                metadata_at TEXT NOT NULL,
                status TEXT NOT NULL CHECK (status IN ('active', 'archived', 'closed')),
                parent_session_id TEXT,
                max_context_messages INTEGER,
                revision INTEGER NOT NULL,
                revision_id TEXT NOT NULL,
                ancestors TEXT NOT NULL,
                message_count INTEGER NOT NULL,
                size_bytes INTEGER NOT NULL
            )""",
            "CREATE INDEX idx_sessions_updated ON sessions (updated_at DESC, id)",
            "CREATE INDEX idx_sessions_user ON sessions (user_id)",
            "CREATE INDEX idx_sessions_parent ON sessions (parent_session_id)",
            """CREATE TABLE messages (
                session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
                position INTEGER NOT NULL,
                id TEXT NOT NULL,
                role TEXT NOT NULL,
                content TEXT NOT NULL,
                timestamp TEXT NOT NULL,
                PRIMARY KEY (session_id, position)
            )""",
        ),
    ),
)
_MESSAGE = "id, role, content, timestamp"


@checked
class SqliteConversations:
    """A `ConversationStorage` in the SQLite file ``path``, created or migrated when opened."""

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 10.0) -> None:
        self.file = SqliteFile(path, migrations=_MIGRATIONS, timeout=timeout, secure_delete=True)

    def save(self, changes: Sequence[Change]) -> None:
        """Store records in one transaction. Raises `ConflictError`, `StorageError`."""
        with self.file.transaction() as connection:
            for change in changes:
                self._save(connection, change)

    def load(self, session_id: str) -> SessionRecord:
        """Return one record. Raises `NotFound`, `IntegrityError`, `DamagedData`."""
        check_session_id(session_id)
        with self.file.transaction():  # one state for both queries
            rows = self.file.query("SELECT * FROM sessions WHERE id = ?", (session_id,))
            messages = self.messages(session_id, None, 0) if rows else ()
        if not rows:
            raise missing(session_id)
        where = f"{self.file.path}, session {session_id!r}"
        try:
            row = dict(rows[0])
            row["ancestors"] = from_json(row["ancestors"])
            del row["message_count"], row["size_bytes"]
            record = SessionRecord.parse({**row, "messages": messages})
        except (ValidationError, AttributeError) as error:
            raise DamagedData(f"{where}: {error}") from error
        return record.verified(where)

    def messages(self, session_id: str, limit: int | None, offset: int) -> tuple[Message, ...]:
        """Return a page counted from the newest message; only that page is read."""
        count, start = check_page(limit, offset)
        if not self.file.query("SELECT 1 FROM sessions WHERE id = ?", (session_id,)):
            raise missing(session_id)
        rows = self.file.query(
            f"SELECT {_MESSAGE} FROM messages WHERE session_id = ? "
            "ORDER BY position DESC LIMIT ? OFFSET ?",
            (session_id, count, start),
        )
        try:
            return tuple(Message.parse(dict(row)) for row in reversed(rows))
        except ValidationError as error:
            raise DamagedData(f"{self.file.path}, session {session_id!r}: {error}") from error

    def infos(
        self, wanted: Filter, limit: int | None = None, offset: int = 0
    ) -> tuple[SessionInfo, ...]:
        """Return sessions without their messages, the last changed first."""
        count, start = check_page(limit, offset)
        rows = self.file.query(
            "SELECT id, user_id, title, created_at, updated_at, status, parent_session_id, "
            "revision, revision_id, message_count, size_bytes FROM sessions "
            "WHERE (:user IS NULL OR user_id = :user) AND (:status IS NULL OR status = :status) "
            "AND (:parent IS NULL OR parent_session_id = :parent) "
            "ORDER BY updated_at DESC, id LIMIT :limit OFFSET :offset",
            {
                "user": wanted.user_id,
                "status": None if wanted.status is None else wanted.status.value,
                "parent": wanted.parent_session_id,
                "limit": count,
                "offset": start,
            },
        )
        try:
            return tuple(SessionInfo.parse(dict(row)) for row in rows)
        except ValidationError as error:
            raise DamagedData(f"{self.file.path}: {error}") from error

    def damaged(self) -> Mapping[str, str]:
        """Return nothing: SQLite notices damage of a row only when the row is loaded."""
        return {}

    def delete(
        self, session_ids: Sequence[str], *, expected: Mapping[str, str] | None = None
    ) -> None:
        """Delete sessions in one transaction and leave none of their text in the file or log.

        Raises `NotFound`, `ConflictError`; `LockTimeout` if another connection still reads the
        old state: the deletion is durable then, but the log holds the text until the next call.
        """
        with self.file.transaction() as connection:
            for session_id in session_ids:
                stored = _stored_revision(connection, session_id)
                if stored is None:
                    raise missing(session_id)
                check_unchanged(session_id, stored, expected)
                connection.execute("DELETE FROM sessions WHERE id = ?", (session_id,))
        self.file.empty_log()

    def delete_all(self) -> None:
        """Delete everything, then rewrite the file and empty the log; the file itself stays."""
        with self.file.transaction() as connection:
            connection.execute("DELETE FROM messages")
            connection.execute("DELETE FROM sessions")
        self.file.vacuum()

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _save(self, connection: sqlite3.Connection, change: Change) -> None:
        record = change.record
        check_expected(change, _stored_revision(connection, record.id))
        columns = _columns(record)
        names = ", ".join(columns)
        places = ", ".join(f":{name}" for name in columns)
        updates = ", ".join(f"{name} = excluded.{name}" for name in columns if name != "id")
        connection.execute(
            f"INSERT INTO sessions ({names}) VALUES ({places}) "
            f"ON CONFLICT (id) DO UPDATE SET {updates}",
            columns,
        )
        self._save_messages(connection, record)

    def _save_messages(self, connection: sqlite3.Connection, record: SessionRecord) -> None:
        wanted = [_message_row(message) for message in record.messages]
        stored = [
            tuple(row)
            for row in connection.execute(
                f"SELECT {_MESSAGE} FROM messages WHERE session_id = ? ORDER BY position",
                (record.id,),
            )
        ]
        same = 0
        while same < min(len(wanted), len(stored)) and wanted[same] == stored[same]:
            same += 1
        if same < len(stored):
            connection.execute(
                "DELETE FROM messages WHERE session_id = ? AND position >= ?", (record.id, same)
            )
        connection.executemany(
            f"INSERT INTO messages (session_id, position, {_MESSAGE}) VALUES (?, ?, ?, ?, ?, ?)",
            [(record.id, same + n, *row) for n, row in enumerate(wanted[same:])],
        )


def _stored_revision(connection: sqlite3.Connection, session_id: str) -> str | None:
    check_session_id(session_id)
    row = connection.execute(
        "SELECT revision_id FROM sessions WHERE id = ?", (session_id,)
    ).fetchone()
    return None if row is None else str(row[0])


def _columns(record: SessionRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "user_id": record.user_id,
        "title": record.title,
        "created_at": text_of_moment(record.created_at),
        "updated_at": text_of_moment(record.updated_at),
        "metadata_at": text_of_moment(record.metadata_at),
        "status": record.status.value,
        "parent_session_id": record.parent_session_id,
        "max_context_messages": record.max_context_messages,
        "revision": record.revision,
        "revision_id": record.revision_id,
        "ancestors": to_json([list(item) for item in record.ancestors]),
        "message_count": len(record.messages),
        "size_bytes": len(record.to_json().encode()),
    }


def _message_row(message: Message) -> tuple[str, str, str, str]:
    return (message.id, message.role, message.content, text_of_moment(message.timestamp))
