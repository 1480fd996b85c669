"""The rows of the app database as typed values.

The law: one frozen model a table, one field a column, and the way between a model and a row;
no SQL. Columns that hold JSON (``tool_calls``, ``*_json``) are values here and text there.
"""

from __future__ import annotations

import sqlite3
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from pytest_statepersist.reference.errors import DamagedData, ValidationError
from pytest_statepersist.reference.timestamps import Moment, text_of_moment
from pytest_statepersist.reference.values import Count, Text, Value, from_json, to_json

__all__ = [
    "AnalyticsEvent",
    "AppMessage",
    "AppSession",
    "ChangeKind",
    "FileChange",
    "Proof",
    "ProofStatus",
    "Recording",
    "Row",
    "Snapshot",
    "SnapshotKind",
]

_AS_JSON = "stored as JSON text"
Json = Annotated[Any, _AS_JSON]


class Row(Value):
    """A model with a table: ``columns`` and `from_row` translate."""

    table: ClassVar[str]

    def columns(self) -> dict[str, Any]:
        """Return column names and what SQLite stores. Raises `ValidationError`."""
        return {
            info.alias or name: _stored(getattr(self, name), _AS_JSON in info.metadata)
            # An absent optional value is NULL; None where any JSON is asked for is `null`.
            if getattr(self, name) is not None or info.is_required()
            else None
            for name, info in type(self).model_fields.items()
        }

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        """Return the model of a row. Raises `DamagedData` that names table, id and field."""
        try:
            return cls.parse(
                {
                    name: _loaded(row[info.alias or name], _AS_JSON in info.metadata)
                    for name, info in cls.model_fields.items()
                }
            )
        except (ValidationError, DamagedData) as error:
            raise DamagedData(f"{cls.table}, row {row['id']!r}: {error}") from error


def _stored(value: Any, as_json: bool) -> Any:
    if as_json:
        return to_json(value)
    if isinstance(value, datetime):
        return text_of_moment(value)
    if isinstance(value, StrEnum):
        return value.value
    return value


def _loaded(value: Any, as_json: bool) -> Any:
    if not as_json or value is None:
        return value
    if not isinstance(value, str):
        raise DamagedData(f"JSON is stored as text, not as {type(value).__name__}")
    return from_json(value)


class SnapshotKind(StrEnum):
    """Why a snapshot was taken."""

    AUTO = "auto"
    MANUAL = "manual"
    SYSTEM = "system"


class ChangeKind(StrEnum):
    """What happened to a file."""

    CREATED = "created"
    MODIFIED = "modified"
    DELETED = "deleted"
    RENAMED = "renamed"


class ProofStatus(StrEnum):
    """How far a proof has come."""

    OPEN = "open"
    PROVED = "proved"
    FAILED = "failed"


class AppSession(Row):
    """A session: its place in the tree of branches and what it has cost so far.

    ``branch_point`` is the sequence number of the last message shared with the parent;
    ``cost`` is in the provider's currency.
    """

    table: ClassVar[str] = "sessions"

    id: Text = Field(min_length=1)
    title: Text
    created_at: Moment
    updated_at: Moment
    model: Text
    provider: Text = "venice"
    branch_name: Text = "main"
    parent_session_id: Text | None = None
    branch_point: Count | None = None
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    cost: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    is_archived: bool = False
    is_imported: bool = False


class AppMessage(Row):
    """A message; ``sequence`` counts from 0 inside its session."""

    table: ClassVar[str] = "messages"

    id: Text = Field(min_length=1)
    session_id: Text
    role: Text
    content: Text
    created_at: Moment
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    tool_calls: Annotated[list[dict[str, Any]] | None, _AS_JSON] = None
    sequence: Count


class Snapshot(Row):
    """A saved app state; ``size_bytes`` is the size of the state's JSON text."""

    table: ClassVar[str] = "snapshots"

    id: Text = Field(min_length=1)
    timestamp: Moment
    kind: SnapshotKind = Field(alias="type")
    trigger: Json
    description: Text | None = None
    starred: bool = False
    size_bytes: Count
    state: Json = Field(alias="state_json")
    summary: Json = Field(alias="summary_json")


class Recording(Row):
    """A recorded session; ``duration`` is in milliseconds. It outlives the session itself."""

    table: ClassVar[str] = "recordings"

    id: Text = Field(min_length=1)
    session_id: Text
    title: Text
    created_at: Moment
    duration: Count
    events: Annotated[list[Any], _AS_JSON] = Field(alias="events_json")
    snapshots: Annotated[list[Any] | None, _AS_JSON] = Field(default=None, alias="snapshots_json")
    metadata: Annotated[dict[str, Any] | None, _AS_JSON] = Field(
        default=None, alias="metadata_json"
    )


class AnalyticsEvent(Row):
    """One usage figure; ``id`` is None until the database has given one."""

    table: ClassVar[str] = "analytics"

    id: Count | None = None
    timestamp: Moment
    event_type: Text
    session_id: Text | None = None
    model: Text | None = None
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    cost: float | None = Field(default=None, allow_inf_nan=False)
    duration_ms: Count | None = None
    metadata: Annotated[dict[str, Any] | None, _AS_JSON] = Field(
        default=None, alias="metadata_json"
    )


class FileChange(Row):
    """A change that a session made to a file, as a diff."""

    table: ClassVar[str] = "file_changes"

    id: Text = Field(min_length=1)
    session_id: Text
    path: Text
    change: ChangeKind
    diff: Text
    created_at: Moment


class Proof(Row):
    """A statement that a session tries to prove, with the prover's state."""

    table: ClassVar[str] = "proofs"

    id: Text = Field(min_length=1)
    session_id: Text
    statement: Text
    status: ProofStatus = ProofStatus.OPEN
    state: Json = Field(alias="state_json")
    created_at: Moment
    updated_at: Moment
