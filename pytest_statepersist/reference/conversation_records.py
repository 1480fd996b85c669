"""A saved conversation as a value: its content, its revision, and where that came from.

The law: records are frozen and know nothing of files or tables. ``revision_id`` is a digest of
the content, so it identifies the content and betrays damage; ``revision`` counts the saves, and
``ancestors`` names the last saves before this one, so that two copies can tell which of them is
the newer one, or that both have changed.

The JSON form (one file a session, and the export) has camel-case names:

    {"format": "conversation", "version": 1, "id": …, "title": …, "userId": …, "createdAt": …,
     "updatedAt": …, …, "messageCount": 1,
     "messages": [{"id": …, "role": "user", "content": …, "timestamp": …}]}
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Any, Self

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.errors import (
    DamagedData,
    IntegrityError,
    InvalidId,
    NewerVersion,
    ValidationError,
)
from pytest_statepersist.reference.ids import check_id
from pytest_statepersist.reference.timestamps import Moment, text_of_moment
from pytest_statepersist.reference.values import Count, Text, Value, from_json, to_json

__all__ = [
    "FORMAT_VERSION",
    "KEPT_ANCESTORS",
    "Message",
    "SessionInfo",
    "SessionRecord",
    "SessionStatus",
    "check_session_id",
]

FORMAT_VERSION = 1
KEPT_ANCESTORS = 100
INDEX_ID = "index"
_FORMAT = "conversation"


class SessionStatus(StrEnum):
    """What the user means to do with a session."""

    ACTIVE = "active"
    ARCHIVED = "archived"
    CLOSED = "closed"


class _Camel(Value):
    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, alias_generator=to_camel
    )


class Message(_Camel):
    """One message; its id is unique in its session."""

    id: Text = Field(min_length=1)
    role: Text = Field(min_length=1)
    content: Text
    timestamp: Moment


class SessionInfo(_Camel):
    """What a list shows: everything but the messages. ``size_bytes`` is that of the JSON form."""

    id: Text
    user_id: Text
    title: Text
    created_at: Moment
    updated_at: Moment
    status: SessionStatus
    parent_session_id: Text | None
    revision: Count
    revision_id: Text
    message_count: Count
    size_bytes: Count


@checked
class SessionRecord(_Camel):
    """A session as it is saved. ``metadata_at`` is when anything but the messages changed."""

    id: Text
    user_id: Text
    title: Text
    created_at: Moment
    updated_at: Moment
    metadata_at: Moment
    status: SessionStatus = SessionStatus.ACTIVE
    parent_session_id: Text | None = None
    max_context_messages: Count | None = None
    messages: tuple[Message, ...] = ()
    revision: Count = 0
    revision_id: Text = ""
    ancestors: tuple[tuple[Count, Text], ...] = ()

    def content(self) -> dict[str, Any]:
        """Return what the revision id is the digest of: all but the revision itself."""
        return {
            "id": self.id,
            "userId": self.user_id,
            "title": self.title,
            "createdAt": text_of_moment(self.created_at),
            "updatedAt": text_of_moment(self.updated_at),
            "metadataAt": text_of_moment(self.metadata_at),
            "status": self.status.value,
            "parentSessionId": self.parent_session_id,
            "maxContextMessages": self.max_context_messages,
            "messages": [
                {
                    "id": message.id,
                    "role": message.role,
                    "content": message.content,
                    "timestamp": text_of_moment(message.timestamp),
                }
                for message in self.messages
            ],
        }

    def sealed(self) -> Self:
        """Return the record with the revision id that its content has."""
        return self.model_copy(update={"revision_id": _digest(self.content())})

    def verified(self, where: str) -> Self:
        """Return the record itself. Raises `IntegrityError` if its id does not fit."""
        if self.revision_id != _digest(self.content()):
            raise IntegrityError(
                f"{where}: the content of session {self.id!r} does not fit its revision id; it "
                "was damaged or edited. Restore a backup, or import another copy"
            )
        return self

    def info(self, size_bytes: int) -> SessionInfo:
        """Return what a list shows of this session."""
        return SessionInfo.build(
            id=self.id,
            user_id=self.user_id,
            title=self.title,
            created_at=self.created_at,
            updated_at=self.updated_at,
            status=self.status,
            parent_session_id=self.parent_session_id,
            revision=self.revision,
            revision_id=self.revision_id,
            message_count=len(self.messages),
            size_bytes=size_bytes,
        )

    def to_json(self) -> str:
        """Return the JSON form, equal text for equal records."""
        return to_json(
            {
                "format": _FORMAT,
                "version": FORMAT_VERSION,
                **self.content(),
                "messageCount": len(self.messages),
                "revision": self.revision,
                "revisionId": self.revision_id,
                "ancestors": [list(item) for item in self.ancestors],
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Self:
        """Return the record of a JSON form. ``where`` is named in errors.

        Raises `DamagedData` (no such JSON, or a count that does not fit), `IntegrityError`,
        `NewerVersion`, `ValidationError` (a field is missing or wrong).
        """
        try:
            plain = from_json(text)
        except DamagedData as error:
            raise DamagedData(f"{where}: {error}") from error
        if not isinstance(plain, dict) or plain.pop("format", None) != _FORMAT:
            raise DamagedData(f"{where}: is not the JSON form of a conversation")
        version = plain.pop("version", None)
        if version != FORMAT_VERSION:
            if isinstance(version, int) and version > FORMAT_VERSION:
                raise NewerVersion(
                    f"{where}: format version {version}, this code knows {FORMAT_VERSION}. "
                    "Update the application"
                )
            raise DamagedData(f"{where}: format version {version!r} never existed")
        count = plain.pop("messageCount", None)
        record = cls.parse(plain)
        check_session_id(record.id)
        if count != len(record.messages):
            raise IntegrityError(
                f"{where}: says {count!r} messages and holds {len(record.messages)}"
            )
        if len({message.id for message in record.messages}) != len(record.messages):
            raise ValidationError("SessionRecord.messages", "two messages have the same id")
        return record.verified(where)

    def descends_from(self, other: SessionRecord) -> bool:
        """Tell whether this record was saved after, and with knowledge of, the other one."""
        return any(revision_id == other.revision_id for _, revision_id in self.ancestors)


@checked
def check_session_id(value: object) -> str:
    """Return a session id that can be a file name in each backend. Raises `InvalidId`."""
    checked = check_id(value, "session id")
    if checked.lower() == INDEX_ID:
        raise InvalidId(f"session id {checked!r}: is the name of the directory's own index")
    return checked


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(to_json(content).encode()).hexdigest()[:32]
