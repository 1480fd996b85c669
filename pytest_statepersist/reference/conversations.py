"""Conversations in three tiers: in memory, saved, and locked away in the vault.

The law: `create_session` and `send` touch memory only, so that talking is instant and a crash
loses what was not saved; `Session.save` makes the whole session durable in one atomic step; the
vault (`Conversations.to_vault`) is for what must not lie around in the clear.

Backends are interchangeable: `SqliteConversations` and `JsonConversations` keep the same
promises (`ConversationStorage`). Two programs that save one session do not overwrite each
other: the second one gets `ConflictError`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.clock import Clock, SystemClock
from pytest_statepersist.reference.conversation_export import (
    ExportFormat,
    export_records,
    export_session,
    parse_records,
    parse_session,
)
from pytest_statepersist.reference.conversation_records import (
    KEPT_ANCESTORS,
    Message,
    SessionInfo,
    SessionRecord,
    SessionStatus,
    check_session_id,
)
from pytest_statepersist.reference.conversation_storage import (
    Change,
    ConversationStorage,
    Filter,
    newest_page,
)
from pytest_statepersist.reference.conversation_sync import Conflict, SyncReport, merge, sync
from pytest_statepersist.reference.errors import ConflictError, NotFound, ValidationError
from pytest_statepersist.reference.timestamps import before
from pytest_statepersist.reference.values import from_json, new_id, to_json
from pytest_statepersist.reference.vault import Category, Vault

__all__ = [
    "RECOMMENDED_BYTES",
    "RECOMMENDED_MESSAGES",
    "Conversations",
    "RecommendedLimitWarning",
    "Session",
    "delete_all_data",
    "export_all_data",
]

RECOMMENDED_MESSAGES = 10_000
RECOMMENDED_BYTES = 10_000_000
_TICK = timedelta(microseconds=1)


class RecommendedLimitWarning(UserWarning):
    """A session has outgrown what loads and saves quickly; it still works."""


@checked
class Session:
    """A conversation in memory. Get one from `Conversations`, not from here."""

    def __init__(self, owner: Conversations, record: SessionRecord, *, saved: bool) -> None:
        self._owner = owner
        self._record = record
        self._messages = list(record.messages)
        self._bytes = sum(len(item.content.encode()) for item in self._messages)
        self._saved = saved
        self._changed_metadata = False
        # Revisions that may be stored now: what we loaded, and what a failed save tried.
        self._bases: set[str | None] = {record.revision_id if saved else None}
        self._tried: list[tuple[int, str]] = []
        self._warned = False

    @property
    def id(self) -> str:
        """The session's id."""
        return self._record.id

    @property
    def info(self) -> SessionInfo:
        """The metadata as of now; the size is that of the texts."""
        return self._record.model_copy(update={"messages": tuple(self._messages)}).info(self._bytes)

    @property
    def title(self) -> str:
        """The title."""
        return self._record.title

    @property
    def user_id(self) -> str:
        """Whose session it is."""
        return self._record.user_id

    @property
    def status(self) -> SessionStatus:
        """What the user means to do with it."""
        return self._record.status

    @property
    def parent_session_id(self) -> str | None:
        """The session that this one continues, if any; it may have been deleted since."""
        return self._record.parent_session_id

    @property
    def revision(self) -> int:
        """How often the session was saved."""
        return self._record.revision

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages, oldest first."""
        return tuple(self._messages)

    @property
    def unsaved(self) -> bool:
        """Whether a crash now would lose something of this session."""
        return (
            not self._saved
            or self._changed_metadata
            or len(self._messages) != len(self._record.messages)
        )

    def send(self, content: str, *, role: str = "user") -> Message:
        """Append a message, in memory only. Raises `ValidationError`."""
        now = self._owner.clock.now()
        if self._messages:
            # Times never run backwards in a session: merging sorts by them.
            now = max(now, self._messages[-1].timestamp + _TICK)
        message = Message.build(id=f"msg_{new_id()}", role=role, content=content, timestamp=now)
        self._messages.append(message)
        self._bytes += len(content.encode())
        self._warn_if_large()
        return message

    def get_messages(self, limit: int | None = None, offset: int = 0) -> tuple[Message, ...]:
        """Return the newest ``limit`` messages, or older ones after skipping ``offset``."""
        return newest_page(self._messages, limit, offset)

    def context(self) -> tuple[Message, ...]:
        """Return the messages that belong into the prompt: the newest `max_context_messages`."""
        return self.get_messages(self._record.max_context_messages)

    def update(self, **changes: Any) -> None:
        """Change title, user_id, status or max_context_messages, in memory only."""
        if unknown := set(changes) - {"title", "user_id", "status", "max_context_messages"}:
            raise ValidationError(sorted(unknown)[0], "cannot be changed")
        self._record = self._record.changed(**changes)
        self._changed_metadata = True

    def save(self, *, overwrite: bool = False) -> str:
        """Make everything durable in one atomic step and return the session's id.

        An unchanged session is not written again. After an error the session is still whole
        in memory: call again. Raises `ConflictError` if another program saved or deleted the
        session since it was loaded (``overwrite`` saves all the same), `StorageError`.
        """
        if not self.unsaved and not overwrite:
            return self.id
        old = self._record
        # Later than the last save even if the clock was set back: `merge` asks who was last.
        tick = _TICK if self._saved or self._tried else timedelta(0)
        now = max(self._owner.clock.now(), old.updated_at + tick)
        lineage = [*old.ancestors, *self._tried]
        if self._saved:
            lineage.append((old.revision, old.revision_id))
        record = old.model_copy(
            update={
                "messages": tuple(self._messages),
                "updated_at": now,
                "metadata_at": now if self._changed_metadata else old.metadata_at,
                "revision": max([old.revision, *(number for number, _ in self._tried)]) + 1,
                "ancestors": tuple(lineage[-KEPT_ANCESTORS:]),
            }
        ).sealed()
        # Until it returns, this revision may be on the disk or not; either is then ours.
        self._bases.add(record.revision_id)
        self._tried.append((record.revision, record.revision_id))
        expected = None if overwrite else frozenset(self._bases)
        try:
            self._owner.storage.save([Change(record, expected)])
        except ConflictError:
            # Nothing was written, so this attempt is no part of the history.
            self._bases.discard(record.revision_id)
            self._tried.pop()
            raise
        self._record = record
        self._saved, self._changed_metadata = True, False
        self._bases, self._tried = {record.revision_id}, []
        self._warn_if_large()
        return self.id

    def export(self, form: ExportFormat | str = ExportFormat.JSON) -> str:
        """Return the last saved state as text. Raises `ValidationError` if it was never saved
        or has changed since: an export must be what another copy can be compared with.
        """
        if self.unsaved:
            raise ValidationError("session", f"{self.id!r} has unsaved changes; save it first")
        return export_session(self._record, form)

    def _warn_if_large(self) -> None:
        count, size = len(self._messages), self._bytes
        if not self._warned and (count > RECOMMENDED_MESSAGES or size > RECOMMENDED_BYTES):
            self._warned = True
            warnings.warn(
                f"session {self.id!r} has {count} messages and {size} bytes; up to "
                f"{RECOMMENDED_MESSAGES} messages and {RECOMMENDED_BYTES} bytes are recommended. "
                "Continue in a new session with this one as its parent",
                RecommendedLimitWarning,
                stacklevel=3,
            )


@checked
class Conversations:
    """All sessions of one storage. ``clock`` gives the times, ``user_id`` the default owner."""

    def __init__(
        self,
        storage: ConversationStorage,
        *,
        clock: Clock | None = None,
        user_id: str = "local",
    ) -> None:
        self.storage = storage
        self.clock: Clock = clock or SystemClock()
        self.user_id = user_id

    # -- sessions ------------------------------------------------------------------------

    def create_session(
        self,
        title: str,
        *,
        parent_session_id: str | None = None,
        user_id: str | None = None,
        max_context_messages: int | None = None,
        session_id: str | None = None,
    ) -> Session:
        """Return a new session, in memory only until it is saved. Raises `InvalidId`."""
        now = self.clock.now()
        if parent_session_id is not None:
            check_session_id(parent_session_id)
        record = SessionRecord.build(
            id=check_session_id(f"session_{new_id()}" if session_id is None else session_id),
            user_id=self.user_id if user_id is None else user_id,
            title=title,
            created_at=now,
            updated_at=now,
            metadata_at=now,
            parent_session_id=parent_session_id,
            max_context_messages=max_context_messages,
        )
        return Session(self, record, saved=False)

    def load_session(self, session_id: str) -> Session:
        """Return a saved session, to read or to go on with. Raises `NotFound`, `DamagedData`."""
        return Session(self, self.storage.load(session_id), saved=True)

    def messages(
        self, session_id: str, limit: int | None = None, offset: int = 0
    ) -> tuple[Message, ...]:
        """Return a page of saved messages without loading the session, newest page first."""
        return self.storage.messages(session_id, limit, offset)

    def list_sessions(
        self,
        *,
        limit: int | None = None,
        offset: int = 0,
        user_id: str | None = None,
        status: SessionStatus | None = None,
        parent_session_id: str | None = None,
    ) -> tuple[SessionInfo, ...]:
        """Return metadata only, the last changed session first."""
        return self.storage.infos(Filter(user_id, status, parent_session_id), limit, offset)

    def delete_session(self, session_id: str) -> None:
        """Delete a saved session; its children stay. Durable on return. Raises `NotFound`."""
        self.storage.delete([session_id])

    def clean_up(self, older_than: timedelta, *, dry_run: bool = False) -> tuple[str, ...]:
        """Delete sessions last changed more than ``older_than`` ago, all or none; return ids.

        A session of exactly that age stays. Raises `ConflictError`, with nothing deleted, if
        one of them was saved meanwhile.
        """
        limit = before(self.clock.now(), older_than)
        old = {
            info.id: info.revision_id
            for info in self.storage.infos(Filter())
            if info.updated_at < limit
        }
        if old and not dry_run:
            self.storage.delete(tuple(old), expected=old)
        return tuple(old)

    def delete_all(self) -> None:
        """Delete everything in one step. What each backend leaves is in its `delete_all`."""
        self.storage.delete_all()

    # -- moving between machines ---------------------------------------------------------

    def import_session(self, text: str | bytes, *, merge_changes: bool = False) -> Session:
        """Store a JSON export, equal to the session it came from; durable on return.

        Where another revision of the session is stored, `ConflictError` is raised, unless one
        descends from the other or ``merge_changes`` is set. Raises also what `parse_session`
        raises; nothing is stored then.
        """
        return Session(self, self._import([parse_session(text)], merge_changes)[0], saved=True)

    def export_all(self) -> str:
        """Return all saved sessions as one JSON document. Raises `DamagedData` if one is
        unreadable: a backup that lacks something must not look like a whole one.
        """
        for session_id in self.storage.damaged():
            self.storage.load(session_id)  # raises, with the reason
        return export_records(
            self.storage.load(info.id)
            for info in sorted(self.list_sessions(), key=lambda info: info.id)
        )

    def import_all(self, text: str | bytes, *, merge_changes: bool = False) -> tuple[str, ...]:
        """Store the sessions of `export_all`, all or none; return their ids."""
        records = self._import(parse_records(text), merge_changes)
        return tuple(record.id for record in records)

    def sync_with(self, other: Conversations) -> SyncReport:
        """Bring this store and another copy of it together; see `conversation_sync`."""
        return sync(self.storage, other.storage)

    def _import(self, records: Iterable[SessionRecord], merge_changes: bool) -> list[SessionRecord]:
        changes: list[Change] = []
        for record in records:
            try:
                stored = self.storage.load(record.id)
            except NotFound:
                changes.append(Change(record, frozenset([None])))
                continue
            merged, conflict = merge(record, stored)
            if conflict is not None and not merge_changes:
                raise _import_conflict(conflict)
            changes.append(Change(merged, frozenset([stored.revision_id])))
        self.storage.save(changes)
        return [change.record for change in changes]

    # -- the vault -----------------------------------------------------------------------

    def to_vault(
        self,
        session_id: str,
        vault: Vault,
        *,
        category: Category = Category.PRIVATE,
        tags: Iterable[str] = (),
    ) -> str:
        """Move a saved session into the vault and return its key there.

        First the vault has it durably, then the clear copy goes: after a crash in between it is
        in both places, and moving it again finishes.
        """
        record = self.storage.load(session_id)
        key = f"session/{session_id}"
        vault.store(key, from_json(record.to_json()), category=category, tags=tags)
        self.storage.delete([session_id], expected={session_id: record.revision_id})
        return key

    def from_vault(self, key: str, vault: Vault) -> Session:
        """Store a session of the vault in the clear again; the vault keeps its copy."""
        return self.import_session(to_json(vault.retrieve(key)))

    def close(self) -> None:
        """Close the storage."""
        self.storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@checked
def export_all_data(conversations: Conversations, vault: Vault) -> dict[str, Any]:
    """Return everything that is known about the user, the vault's entries in the clear."""
    return {
        "conversations": from_json(conversations.export_all()),
        "vault": {info.key: vault.retrieve(info.key) for info in vault.list()},
    }


@checked
def delete_all_data(conversations: Conversations, vault: Vault) -> None:
    """Delete every conversation and every vault entry: two steps, each atomic and durable."""
    conversations.delete_all()
    vault.delete_all()


def _import_conflict(conflict: Conflict) -> ConflictError:
    return ConflictError(
        f"session {conflict.session_id!r}: revision {conflict.revisions[1]} is stored, and it and "
        f"the imported revision {conflict.revisions[0]} do not know of each other; import with "
        "merge_changes=True to keep both sides' messages. Nothing was changed"
    )
