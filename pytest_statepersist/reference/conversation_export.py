"""Conversations as text: JSON that comes back equal, Markdown and plain text to read.

The law: pure functions between records and text; no store, no clock. Only JSON can be imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.conversation_records import Message, SessionRecord
from pytest_statepersist.reference.errors import DamagedData, NewerVersion, ValidationError
from pytest_statepersist.reference.timestamps import text_of_moment
from pytest_statepersist.reference.values import from_json, to_json

__all__ = ["ExportFormat", "export_records", "export_session", "parse_records", "parse_session"]

_COLLECTION = "conversations"
_COLLECTION_VERSION = 1


class ExportFormat(StrEnum):
    """How a session can be written out."""

    JSON = "json"
    MARKDOWN = "markdown"
    TXT = "txt"


@checked
def export_session(record: SessionRecord, form: ExportFormat | str) -> str:
    """Return a session as text. Raises `ValidationError` for an unknown format."""
    try:
        wanted = ExportFormat(form)
    except ValueError:
        known = ", ".join(item.value for item in ExportFormat)
        raise ValidationError("format", f"{form!r} is unknown; there are {known}") from None
    if wanted is ExportFormat.JSON:
        return record.to_json() + "\n"
    return _markdown(record) if wanted is ExportFormat.MARKDOWN else _plain(record)


@checked
def parse_session(text: str | bytes) -> SessionRecord:
    """Return the record of a JSON export.

    Raises `DamagedData`, `IntegrityError`, `NewerVersion`, `ValidationError`, `InvalidId`.
    """
    return SessionRecord.from_json(text, "the export")


@checked
def export_records(records: Iterable[SessionRecord]) -> str:
    """Return many sessions as one JSON document."""
    sessions = [from_json(record.to_json()) for record in records]
    return to_json(
        {"format": _COLLECTION, "version": _COLLECTION_VERSION, "sessions": sessions}
    ) + ("\n")


@checked
def parse_records(text: str | bytes) -> tuple[SessionRecord, ...]:
    """Return the records of `export_records`. Raises what `parse_session` raises."""
    plain = from_json(text)
    if not isinstance(plain, dict) or plain.get("format") != _COLLECTION:
        raise DamagedData("this is not an export of conversations")
    version, sessions = plain.get("version"), plain.get("sessions")
    if isinstance(version, int) and version > _COLLECTION_VERSION:
        raise NewerVersion(f"export version {version}, this code knows {_COLLECTION_VERSION}")
    if version != _COLLECTION_VERSION or not isinstance(sessions, list):
        raise DamagedData("this export of conversations has no version or no sessions")
    records = tuple(parse_session(to_json(item)) for item in sessions)
    if len({record.id for record in records}) != len(records):
        raise ValidationError("sessions", "two sessions of the export have the same id")
    return records


def _markdown(record: SessionRecord) -> str:
    lines = [
        f"# {_one_line(record.title)}",
        "",
        f"- id: {record.id}",
        f"- user: {_one_line(record.user_id)}",
        f"- created: {text_of_moment(record.created_at)}",
        f"- updated: {text_of_moment(record.updated_at)}",
        f"- status: {record.status.value}",
        f"- messages: {len(record.messages)}",
    ]
    for message in record.messages:
        lines += ["", f"## {_heading(message)}", "", message.content]
    return "\n".join(lines) + "\n"


def _plain(record: SessionRecord) -> str:
    lines = [record.title, ""]
    for message in record.messages:
        first, *rest = message.content.split("\n")
        lines.append(f"[{text_of_moment(message.timestamp)}] {message.role}: {first}")
        lines += [f"    {line}" for line in rest]
    return "\n".join(lines) + "\n"


def _heading(message: Message) -> str:
    return f"{_one_line(message.role)}, {text_of_moment(message.timestamp)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
