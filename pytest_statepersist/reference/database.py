"""The app's history in SQLite: sessions, messages, snapshots, recordings and figures.

The law: each public method that writes is one transaction, and durable when it returns
(`SqliteFile` says why). After a crash at any moment a method's change is there as a whole or
not at all; what had returned is there. What old rows mean for retention is in `retention`,
what old files mean is in `migrations`.

Errors: `NotFound`, `ConflictError` (the id is taken), `ValidationError` (the schema or a foreign
key refuses a value), `DamagedData`, `NewerVersion`, `LockTimeout`, `StorageError`. After each of
them everything that was there before is still there.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypeVar

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.clock import Clock, SystemClock
from pytest_statepersist.reference.database_rows import (
    AnalyticsEvent,
    AppMessage,
    AppSession,
    ChangeKind,
    FileChange,
    Proof,
    ProofStatus,
    Recording,
    Row,
    Snapshot,
    SnapshotKind,
)
from pytest_statepersist.reference.errors import NotFound, ValidationError
from pytest_statepersist.reference.migrations import APP_MIGRATIONS
from pytest_statepersist.reference.sqlite_file import SqliteFile
from pytest_statepersist.reference.timestamps import text_of_moment
from pytest_statepersist.reference.values import check_page, new_id, to_json

__all__ = ["Database", "Usage"]

R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums over analytics events; ``cost`` in the provider's currency."""

    events: int
    prompt_tokens: int
    completion_tokens: int
    cost: float


@checked
class Database:
    """The app database at ``path``, created or migrated when opened.

    ``clock`` gives the times of new rows. Use as a context manager or call `close`. One object
    may be used by many threads, and one file by many processes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock | None = None,
        timeout: float = 10.0,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.file = SqliteFile(path, migrations=APP_MIGRATIONS, timeout=timeout)

    @property
    def path(self) -> Path:
        """Where the database file is."""
        return self.file.path

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make several calls one atomic, durable step; nested blocks are savepoints."""
        with self.file.transaction():
            yield

    def check(self) -> None:
        """Read everything and compare. Raises `DamagedData`."""
        self.file.check()

    def close(self) -> None:
        """Close the file. Everything that was saved is durable already."""
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- sessions ------------------------------------------------------------------------

    def create_session(
        self, title: str, *, model: str, provider: str = "venice", session_id: str | None = None
    ) -> AppSession:
        """Create an empty session and return it."""
        now = self.clock.now()
        session = AppSession.build(
            id=session_id or new_id(),
            title=title,
            model=model,
            provider=provider,
            created_at=now,
            updated_at=now,
        )
        self._insert(session)
        return session

    def session(self, session_id: str) -> AppSession:
        """Return one session. Raises `NotFound`."""
        return self._get(AppSession, session_id)

    def sessions(
        self, *, archived: bool | None = None, limit: int | None = None, offset: int = 0
    ) -> list[AppSession]:
        """Return sessions, the last changed first; ``archived`` None means both kinds."""
        return self._select(
            AppSession,
            "(:archived IS NULL OR is_archived = :archived) ORDER BY updated_at DESC, id",
            {"archived": archived},
            limit,
            offset,
        )

    def last_session(self) -> AppSession | None:
        """Return the session that was changed last and is not archived, if there is one."""
        return next(iter(self.sessions(archived=False, limit=1)), None)

    def update_session(
        self, session_id: str, *, title: str | None = None, archived: bool | None = None
    ) -> AppSession:
        """Rename, archive or unarchive a session. Raises `NotFound`."""
        with self.transaction():
            session = self.session(session_id)
            changes: dict[str, Any] = {"updated_at": self.clock.now()}
            if title is not None:
                changes["title"] = title
            if archived is not None:
                changes["is_archived"] = archived
            session = session.changed(**changes)
            self._update(session)
        return session

    def delete_session(self, session_id: str) -> None:
        """Delete a session with its messages, file changes and proofs. Raises `NotFound`.

        Branches of it stay, as sessions without a parent; recordings and figures stay too.
        """
        self._delete(AppSession, session_id)

    def branch_session(
        self, session_id: str, *, at: int, name: str, title: str | None = None
    ) -> AppSession:
        """Branch off after the message with sequence number ``at``; return the new session.

        The messages up to ``at`` are copied; the branch starts with no cost of its own.
        Raises `NotFound` (no such session or message).
        """
        with self.transaction():
            parent = self.session(session_id)
            shared = [item for item in self.messages(session_id) if item.sequence <= at]
            if at < 0 or not shared or shared[-1].sequence != at:
                raise NotFound(f"session {session_id!r} has no message with sequence {at}")
            now = self.clock.now()
            branch = parent.changed(
                id=new_id(),
                title=parent.title if title is None else title,
                branch_name=name,
                parent_session_id=parent.id,
                branch_point=at,
                created_at=now,
                updated_at=now,
                prompt_tokens=0,
                completion_tokens=0,
                cost=0.0,
                is_archived=False,
            )
            self._insert(branch)
            for message in shared:
                self._insert(message.changed(id=new_id(), session_id=branch.id))
        return branch

    def branches(self, session_id: str) -> list[AppSession]:
        """Return the sessions that branched off this one, oldest first."""
        return self._select(
            AppSession, "parent_session_id = :id ORDER BY created_at, id", {"id": session_id}
        )

    def import_session(self, session: AppSession, messages: Iterable[AppMessage]) -> AppSession:
        """Add a session from elsewhere with its messages; it is marked as imported.

        Raises `ConflictError` if the id is in use, `ValidationError` if its parent is unknown.
        """
        imported = session.changed(is_imported=True)
        with self.transaction():
            self._insert(imported)
            for message in messages:
                self._insert(message.changed(session_id=session.id))
        return imported

    def merge_session(self, session: AppSession, messages: Sequence[AppMessage]) -> int:
        """Store a session and those of its messages that are missing; return how many were.

        Messages are told by their ids; those already stored stay as they are, and so does a
        stored session that changed later. A parent that is gone is forgotten. Doing it twice
        is doing it once, which is what recovery after a crash needs.
        """
        with self.transaction():
            parent = session.parent_session_id
            if parent is not None and not self._select(AppSession, "id = :id", {"id": parent}):
                session = session.changed(parent_session_id=None)
            stored = self._select(AppSession, "id = :id", {"id": session.id})
            if not stored:
                self._insert(session)
            elif stored[0].updated_at <= session.updated_at and stored[0] != session:
                self._update(session)
            known = {item.id for item in self.messages(session.id)}
            missing = [item for item in messages if item.id not in known]
            for message in missing:
                sequence = self._next_sequence(session.id)
                self._insert(message.changed(session_id=session.id, sequence=sequence))
        return len(missing)

    # -- messages ------------------------------------------------------------------------

    def add_message(
        self,
        session_id: str,
        role: str,
        content: str,
        *,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        cost: float = 0.0,
        tool_calls: list[dict[str, Any]] | None = None,
    ) -> AppMessage:
        """Append a message and add its tokens and cost to the session. Raises `NotFound`."""
        with self.transaction():
            session = self.session(session_id)
            now = self.clock.now()
            message = AppMessage.build(
                id=new_id(),
                session_id=session_id,
                role=role,
                content=content,
                created_at=now,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                tool_calls=tool_calls,
                sequence=self._next_sequence(session_id),
            )
            self._insert(message)
            self._update(
                session.changed(
                    updated_at=now,
                    prompt_tokens=session.prompt_tokens + (prompt_tokens or 0),
                    completion_tokens=session.completion_tokens + (completion_tokens or 0),
                    cost=session.cost + cost,
                )
            )
        return message

    def messages(
        self, session_id: str, *, limit: int | None = None, offset: int = 0
    ) -> list[AppMessage]:
        """Return the messages of a session in their order."""
        return self._select(
            AppMessage, "session_id = :id ORDER BY sequence", {"id": session_id}, limit, offset
        )

    def _next_sequence(self, session_id: str) -> int:
        row = self.file.query(
            "SELECT coalesce(max(sequence) + 1, 0) FROM messages WHERE session_id = ?",
            (session_id,),
        )[0]
        return int(row[0])

    # -- snapshots -----------------------------------------------------------------------

    def add_snapshot(
        self,
        state: Any,
        *,
        kind: SnapshotKind,
        trigger: Any,
        summary: Any,
        description: str | None = None,
        starred: bool = False,
    ) -> Snapshot:
        """Store an app state (any JSON value) and return the snapshot."""
        snapshot = Snapshot.build(
            id=new_id(),
            timestamp=self.clock.now(),
            kind=kind,
            trigger=trigger,
            description=description,
            starred=starred,
            size_bytes=len(to_json(state).encode()),
            state=state,
            summary=summary,
        )
        self._insert(snapshot)
        return snapshot

    def snapshot(self, snapshot_id: str) -> Snapshot:
        """Return one snapshot. Raises `NotFound`."""
        return self._get(Snapshot, snapshot_id)

    def snapshots(
        self,
        *,
        kind: SnapshotKind | None = None,
        starred: bool | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Snapshot]:
        """Return snapshots, the newest first."""
        return self._select(
            Snapshot,
            "(:kind IS NULL OR type = :kind) AND (:starred IS NULL OR starred = :starred) "
            "ORDER BY timestamp DESC, id",
            {"kind": kind, "starred": starred},
            limit,
            offset,
        )

    def star_snapshot(self, snapshot_id: str, starred: bool = True) -> Snapshot:
        """Star a snapshot, so that retention never deletes it, or take the star back."""
        with self.transaction():
            snapshot = self.snapshot(snapshot_id).changed(starred=starred)
            self._update(snapshot)
        return snapshot

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete a snapshot, starred or not. Raises `NotFound`."""
        self._delete(Snapshot, snapshot_id)

    # -- recordings ----------------------------------------------------------------------

    def add_recording(
        self,
        session_id: str,
        title: str,
        *,
        duration: int,
        events: list[Any],
        snapshots: list[Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Recording:
        """Store a recording of ``duration`` milliseconds and return it."""
        recording = Recording.build(
            id=new_id(),
            session_id=session_id,
            title=title,
            created_at=self.clock.now(),
            duration=duration,
            events=events,
            snapshots=snapshots,
            metadata=metadata,
        )
        self._insert(recording)
        return recording

    def recording(self, recording_id: str) -> Recording:
        """Return one recording. Raises `NotFound`."""
        return self._get(Recording, recording_id)

    def recordings(
        self, session_id: str | None = None, *, limit: int | None = None, offset: int = 0
    ) -> list[Recording]:
        """Return the recordings of a session, or all, the newest first."""
        return self._select(
            Recording,
            "(:id IS NULL OR session_id = :id) ORDER BY created_at DESC, id",
            {"id": session_id},
            limit,
            offset,
        )

    def delete_recording(self, recording_id: str) -> None:
        """Delete a recording. Raises `NotFound`."""
        self._delete(Recording, recording_id)

    # -- analytics -----------------------------------------------------------------------

    def record_event(self, event_type: str, **values: Any) -> AnalyticsEvent:
        """Store a usage figure: any other field of `AnalyticsEvent` but id and time."""
        event = AnalyticsEvent.build(
            **{**values, "id": None, "timestamp": self.clock.now(), "event_type": event_type}
        )
        columns = event.columns()
        with self.file.transaction() as connection:
            identity = connection.execute(_insert_sql(event.table, columns), columns).lastrowid
        return event.changed(id=identity)

    def events(
        self,
        *,
        event_type: str | None = None,
        session_id: str | None = None,
        since: datetime | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[AnalyticsEvent]:
        """Return usage figures, the newest first; ``since`` is inclusive."""
        return self._select(
            AnalyticsEvent,
            "(:type IS NULL OR event_type = :type) AND (:id IS NULL OR session_id = :id) "
            "AND (:since IS NULL OR timestamp >= :since) ORDER BY timestamp DESC, id DESC",
            {
                "type": event_type,
                "id": session_id,
                "since": None if since is None else text_of_moment(since),
            },
            limit,
            offset,
        )

    def usage(self, *, session_id: str | None = None) -> Usage:
        """Return the sums over all figures that are still kept, or those of one session."""
        row = self.file.query(
            "SELECT count(*), coalesce(sum(prompt_tokens), 0), "
            "coalesce(sum(completion_tokens), 0), coalesce(sum(cost), 0.0) FROM analytics "
            "WHERE :id IS NULL OR session_id = :id",
            {"id": session_id},
        )[0]
        return Usage(*row)

    # -- file changes and proofs ---------------------------------------------------------

    def add_file_change(
        self, session_id: str, path: str, *, change: ChangeKind, diff: str
    ) -> FileChange:
        """Store what a session did to a file. Raises `ValidationError` for no such session."""
        item = FileChange.build(
            id=new_id(),
            session_id=session_id,
            path=path,
            change=change,
            diff=diff,
            created_at=self.clock.now(),
        )
        self._insert(item)
        return item

    def file_changes(
        self, session_id: str, *, limit: int | None = None, offset: int = 0
    ) -> list[FileChange]:
        """Return a session's file changes, oldest first."""
        return self._select(
            FileChange,
            "session_id = :id ORDER BY created_at, rowid",
            {"id": session_id},
            limit,
            offset,
        )

    def add_proof(self, session_id: str, statement: str, *, state: Any = None) -> Proof:
        """Store an open proof. Raises `ValidationError` for no such session."""
        now = self.clock.now()
        proof = Proof.build(
            id=new_id(),
            session_id=session_id,
            statement=statement,
            state={} if state is None else state,
            created_at=now,
            updated_at=now,
        )
        self._insert(proof)
        return proof

    def update_proof(self, proof_id: str, *, status: ProofStatus, state: Any) -> Proof:
        """Store how far a proof has come. Raises `NotFound`."""
        with self.transaction():
            proof = self._get(Proof, proof_id)
            proof = proof.changed(status=status, state=state, updated_at=self.clock.now())
            self._update(proof)
        return proof

    def proofs(self, session_id: str, *, limit: int | None = None, offset: int = 0) -> list[Proof]:
        """Return a session's proofs, oldest first."""
        return self._select(
            Proof, "session_id = :id ORDER BY created_at, rowid", {"id": session_id}, limit, offset
        )

    # -- rows ----------------------------------------------------------------------------
    # Table and column names come from our own models, never from a caller.

    def _insert(self, row: Row) -> None:
        columns = row.columns()
        try:
            self.file.execute(_insert_sql(row.table, columns), columns)
        except ValidationError as error:
            if "FOREIGN KEY" in str(error):
                raise ValidationError(
                    f"{type(row).__name__}.session_id", "refers to a session that is not there"
                ) from error
            raise

    def _update(self, row: Row) -> None:
        columns = row.columns()
        settings = ", ".join(f"{name} = :{name}" for name in columns)
        self.file.execute(f"UPDATE {row.table} SET {settings} WHERE id = :id", columns)

    def _delete(self, kind: type[Row], row_id: str) -> None:
        if not self.file.execute(f"DELETE FROM {kind.table} WHERE id = ?", (row_id,)):
            raise _not_found(kind, row_id)

    def _get(self, kind: type[R], row_id: str) -> R:
        rows = self._select(kind, "id = :id", {"id": row_id})
        if not rows:
            raise _not_found(kind, row_id)
        return rows[0]

    def _select(
        self,
        kind: type[R],
        condition: str,
        values: dict[str, Any],
        limit: int | None = None,
        offset: int = 0,
    ) -> list[R]:
        count, start = check_page(limit, offset)
        rows: list[sqlite3.Row] = self.file.query(
            f"SELECT * FROM {kind.table} WHERE {condition} LIMIT :limit_ OFFSET :offset_",
            {**values, "limit_": count, "offset_": start},
        )
        return [kind.from_row(row) for row in rows]


def _insert_sql(table: str, columns: dict[str, Any]) -> str:
    places = ", ".join(f":{name}" for name in columns)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})"


def _not_found(kind: type[Row], row_id: str) -> NotFound:
    return NotFound(f"{kind.table}: there is no row with id {row_id!r}; it may have been deleted")
