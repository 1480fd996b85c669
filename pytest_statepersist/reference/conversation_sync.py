"""Bringing two copies of a conversation store together.

The law: after `sync` both stores hold the same sessions, and no message of either is lost.
Merging two records is commutative, associative and idempotent in what the records say, so any
number of copies converge, whatever the order and repetition of syncs:

* a session that only one side has goes to the other (a deletion is not remembered: a session
  that was deleted on one side only comes back);
* where one side's revision descends from the other's, it replaces it;
* where both changed, that is a conflict. It is resolved (messages: the union, in the order of
  their times; title, status and the like: those that were changed last) and reported, with
  the names of the fields that the two sides disagree about.

Each store is changed in one atomic step, the second one after the first. A crash in between
leaves one store merged and the other as it was; syncing again finishes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.conversation_records import (
    KEPT_ANCESTORS,
    Message,
    SessionInfo,
    SessionRecord,
)
from pytest_statepersist.reference.conversation_storage import Change, ConversationStorage, Filter
from pytest_statepersist.reference.errors import DamagedData
from pytest_statepersist.reference.timestamps import text_of_moment
from pytest_statepersist.reference.values import to_json

__all__ = ["Conflict", "SyncReport", "merge", "sync"]

_METADATA = ("user_id", "title", "status", "parent_session_id", "max_context_messages")


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two revisions of one session that did not know of each other, and what became of them.

    ``fields`` are those that differed; of ``messages`` both sides' are kept, of the others
    those that were changed last.
    """

    session_id: str
    revisions: tuple[str, str]
    merged: str
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a sync did: ids of sessions that were new or changed on each side, and conflicts.

    ``unreadable`` sessions are damaged on one side at least; they were left as they are.
    """

    to_first: tuple[str, ...]
    to_second: tuple[str, ...]
    conflicts: tuple[Conflict, ...]
    unreadable: tuple[str, ...]


@checked
def sync(first: ConversationStorage, second: ConversationStorage) -> SyncReport:
    """Make two stores equal; durable on return.

    Only sessions whose revisions differ are loaded. Raises `ConflictError` if a store was
    changed by somebody else meanwhile (nothing, or the first store only, was changed then: sync
    again), `LockTimeout`, `StorageError`.
    """
    here, there = _by_id(first), _by_id(second)
    unreadable = set(first.damaged()) | set(second.damaged())
    changes_first: list[Change] = []
    changes_second: list[Change] = []
    conflicts: list[Conflict] = []
    for session_id in sorted(here.keys() | there.keys()):
        ours, theirs = here.get(session_id), there.get(session_id)
        same = ours and theirs and ours.revision_id == theirs.revision_id
        if session_id in unreadable or (same and ours == theirs):
            continue
        try:
            ours_record = first.load(session_id) if ours else None
            theirs_record = second.load(session_id) if theirs else None
        except DamagedData:
            unreadable.add(session_id)
            continue
        merged, conflict = _together(ours_record, theirs_record)
        if conflict is not None:
            conflicts.append(conflict)
        for record, changes in ((ours_record, changes_first), (theirs_record, changes_second)):
            if record != merged:
                expected = None if record is None else record.revision_id
                changes.append(Change(merged, frozenset([expected])))
    if changes_first:
        first.save(changes_first)
    if changes_second:
        second.save(changes_second)
    return SyncReport(
        to_first=tuple(change.record.id for change in changes_first),
        to_second=tuple(change.record.id for change in changes_second),
        conflicts=tuple(conflicts),
        unreadable=tuple(sorted(unreadable)),
    )


@checked
def merge(one: SessionRecord, other: SessionRecord) -> tuple[SessionRecord, Conflict | None]:
    """Return the record that holds what both hold, and the conflict if there was one.

    What it says does not depend on the order of the two, nor on how often it is done.
    """
    if one.revision_id == other.revision_id or one.descends_from(other):
        return _with_lineage(one, one, other), None
    if other.descends_from(one):
        return _with_lineage(other, one, other), None
    newer = max(one, other, key=_metadata_rank)
    merged = newer.model_copy(
        update={
            "created_at": min(one.created_at, other.created_at),
            "updated_at": max(one.updated_at, other.updated_at),
            "messages": _union(one.messages, other.messages),
        }
    ).sealed()
    fields = [name for name in _METADATA if getattr(one, name) != getattr(other, name)]
    if not fields and merged.revision_id in (one.revision_id, other.revision_id):
        return _with_lineage(merged, one, other), None  # one side knows all that the other knows
    if one.messages != other.messages:
        fields.append("messages")
    conflict = Conflict(
        session_id=one.id,
        revisions=(one.revision_id, other.revision_id),
        merged=merged.revision_id,
        fields=tuple(fields),
    )
    revision = max(one.revision, other.revision) + 1
    return _with_lineage(merged.model_copy(update={"revision": revision}), one, other), conflict


def _by_id(storage: ConversationStorage) -> Mapping[str, SessionInfo]:
    return {info.id: info for info in storage.infos(Filter())}


def _together(
    ours: SessionRecord | None, theirs: SessionRecord | None
) -> tuple[SessionRecord, Conflict | None]:
    if ours is None or theirs is None:
        present = ours or theirs
        assert present is not None  # the id came from one of the two lists
        return present, None
    return merge(ours, theirs)


def _with_lineage(record: SessionRecord, one: SessionRecord, other: SessionRecord) -> SessionRecord:
    """Return the record as the descendant of everything that either side descends from."""
    known: dict[str, int] = {}
    for revision, revision_id in (
        *one.ancestors,
        *other.ancestors,
        (one.revision, one.revision_id),
        (other.revision, other.revision_id),
    ):
        # Equal content can come about on two ways, and so have two numbers; the larger counts.
        known[revision_id] = max(revision, known.get(revision_id, 0))
    known.pop(record.revision_id, None)
    ancestors = sorted((revision, revision_id) for revision_id, revision in known.items())
    return record.model_copy(
        update={
            "revision": max(record.revision, one.revision, other.revision),
            "ancestors": tuple(ancestors[-KEPT_ANCESTORS:]),
        }
    )


def _metadata_rank(record: SessionRecord) -> tuple[str, str]:
    values = to_json([getattr(record, name) for name in _METADATA])
    return text_of_moment(record.metadata_at), hashlib.sha256(values.encode()).hexdigest()


def _union(one: tuple[Message, ...], other: tuple[Message, ...]) -> tuple[Message, ...]:
    chosen: dict[str, Message] = {}
    for message in (*one, *other):
        present = chosen.get(message.id)
        if present is None or _message_rank(message) > _message_rank(present):
            chosen[message.id] = message
    return tuple(sorted(chosen.values(), key=lambda item: (item.timestamp, item.id)))


def _message_rank(message: Message) -> tuple[str, str, str]:
    return (text_of_moment(message.timestamp), message.role, message.content)
