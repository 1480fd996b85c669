"""What a place for conversations must be able to do.

The law: `ConversationStorage` is all that `Conversations` knows of a backend. Every method that
writes is one atomic step, durable on return: after a crash at any moment either all of its
records are changed or none. Reading never changes what is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.conversation_records import (
    Message,
    SessionInfo,
    SessionRecord,
    SessionStatus,
)
from pytest_statepersist.reference.errors import ConflictError, NotFound
from pytest_statepersist.reference.values import check_page

__all__ = [
    "Change",
    "ConversationStorage",
    "Filter",
    "check_expected",
    "check_unchanged",
    "missing",
    "newest_page",
]


@dataclass(frozen=True, slots=True)
class Change:
    """A record to store, if what is stored now has one of the ``expected`` revision ids.

    None among them stands for "nothing is stored"; None instead of them for "whatever is".
    """

    record: SessionRecord
    expected: frozenset[str | None] | None


@checked
@dataclass(frozen=True, slots=True)
class Filter:
    """Which sessions to list; None is any."""

    user_id: str | None = None
    status: SessionStatus | None = None
    parent_session_id: str | None = None

    def accepts(self, info: SessionInfo) -> bool:
        """Tell whether a session is wanted."""
        return (
            self.user_id in (None, info.user_id)
            and self.status in (None, info.status)
            and self.parent_session_id in (None, info.parent_session_id)
        )


class ConversationStorage(Protocol):
    """A place for session records. All methods raise `StorageError` and `LockTimeout`."""

    def save(self, changes: Sequence[Change]) -> None:
        """Store records, all or none. Raises `ConflictError` if another revision is stored."""

    def load(self, session_id: str) -> SessionRecord:
        """Return one record. Raises `NotFound`, `DamagedData`."""

    def messages(self, session_id: str, limit: int | None, offset: int) -> tuple[Message, ...]:
        """Return a page of messages counted from the newest, in their order."""

    def infos(
        self, wanted: Filter, limit: int | None = None, offset: int = 0
    ) -> tuple[SessionInfo, ...]:
        """Return what is there without its messages, the last changed first."""

    def damaged(self) -> Mapping[str, str]:
        """Return sessions that cannot be read, with the reason; `infos` leaves them out."""

    def delete(
        self, session_ids: Sequence[str], *, expected: Mapping[str, str] | None = None
    ) -> None:
        """Delete sessions, all or none. Raises `NotFound`.

        ``expected`` maps ids to revision ids: `ConflictError` where another one is stored.
        """

    def delete_all(self) -> None:
        """Delete everything that was ever stored here, unreadable sessions too."""

    def close(self) -> None:
        """Let go of files and connections."""


@checked
def check_expected(change: Change, stored: str | None) -> None:
    """Raise `ConflictError` if the stored revision is not one that the change expects."""
    if change.expected is not None and stored not in change.expected:
        what = "nothing" if stored is None else f"revision {stored}"
        raise ConflictError(
            f"session {change.record.id!r}: {what} is stored, which is not what this change "
            "began from: somebody else saved or deleted it. Load it again, or import this "
            "copy's export with merge=True; nothing was changed"
        )


@checked
def check_unchanged(session_id: str, stored: str, expected: Mapping[str, str] | None) -> None:
    """Raise `ConflictError` if a session to delete is not the revision that was looked at."""
    if expected is not None and expected.get(session_id, stored) != stored:
        raise ConflictError(
            f"session {session_id!r}: was saved by somebody else while it was being deleted; "
            "nothing was deleted. Look at it again"
        )


@checked
def missing(session_id: str) -> NotFound:
    """Return the error for a session that is not stored."""
    return NotFound(
        f"session {session_id!r} not found; was it saved? `list_sessions` shows what is there"
    )


@checked
def newest_page(messages: Sequence[Message], limit: int | None, offset: int) -> tuple[Message, ...]:
    """Return ``limit`` messages that end ``offset`` before the newest one, in their order."""
    check_page(limit, offset)
    end = max(0, len(messages) - offset)
    start = 0 if limit is None else max(0, end - limit)
    return tuple(messages[start:end])
