"""Conversations as a directory of JSON files, one a session, with an index.

The law: the session files are the truth, and the index is a cache of what a list shows. A save
is one atomic replacement of one file; several sessions at once go through a redo journal
(`transaction`), so that they too are one step. The index is never synced and never believed: an
entry counts only while the file beside it has the size, time and inode that the entry names,
and a checksum covers the whole. A lost, torn, stale or forged-by-accident index costs a
rebuild, not a session.

    conversations/
        index.json
        session_6f0c….json
    conversations.lock

A file that cannot be read stays where it is; `damaged` names it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import (
    check_size,
    fsync_directory,
    make_directory,
    read_bounded,
    remove_temporaries,
    resolved_path,
    temporary_name,
)
from pytest_statepersist.reference.conversation_records import (
    INDEX_ID,
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
    newest_page,
)
from pytest_statepersist.reference.errors import (
    DamagedData,
    InvalidId,
    LockTimeout,
    NotFound,
    PersistenceError,
    StorageError,
    ValidationError,
)
from pytest_statepersist.reference.locking import StoreLock
from pytest_statepersist.reference.presence import is_present
from pytest_statepersist.reference.transaction import JOURNAL_NAME, Transaction, recover
from pytest_statepersist.reference.values import check_page, from_json, to_json

__all__ = ["JsonConversations"]

INDEX = f"{INDEX_ID}.json"
_LARGEST_FILE = 1 << 30
_CLOCK_TICK_NS = 20_000_000  # file times move in steps of up to 10 ms
_log = logging.getLogger(__name__)

_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the index knows of one file: its stamp, and what it holds or why it cannot be read."""

    stamp: _Stamp
    info: SessionInfo | None
    problem: str = ""


@checked
class JsonConversations:
    """A `ConversationStorage` in the directory ``path``, created when opened.

    The directory belongs to this store. Opening finishes what a crash interrupted. Raises
    `DamagedData` (the journal was tampered with), `LockTimeout`, `StorageError`.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 10.0) -> None:
        # Resolved, so that all who come by a link take the same lock beside the directory.
        self.path = resolved_path(path)
        make_directory(self.path)
        self._lock = StoreLock(self.path.with_name(self.path.name + ".lock"), timeout=timeout)
        self._said: dict[str, tuple[bytes, str]] = {}  # each session's last bytes, and revision
        with self._lock:
            recover(self.path)

    # -- writing -------------------------------------------------------------------------

    def save(self, changes: Sequence[Change]) -> None:
        """Store records: one by an atomic replacement, several through the journal."""
        with self._changing() as transaction:
            for change in changes:
                if change.expected is not None:
                    check_expected(change, self._stored_revision(change.record.id))
                data = change.record.to_json().encode() + b"\n"
                check_size(data, _LARGEST_FILE, f"session {change.record.id}")
                self._said[change.record.id] = _checksum(data), change.record.revision_id
                transaction.put(_file_name(change.record.id), data)

    def delete(
        self, session_ids: Sequence[str], *, expected: Mapping[str, str] | None = None
    ) -> None:
        """Delete sessions, readable or not, all or none. Raises `NotFound`, `ConflictError`."""
        with self._changing() as transaction:
            index = self._read_index()
            for session_id in session_ids:
                name = _file_name(session_id)
                if not is_present(self.path / name):
                    # An earlier call may have removed it and failed to make that durable.
                    fsync_directory(self.path)
                    raise missing(session_id)
                if expected is not None and session_id in expected:
                    check_unchanged(session_id, self._stored_revision(session_id) or "", expected)
                transaction.delete(name)
                index.pop(name, None)
            if session_ids:  # the titles of what was deleted do not stay in the index either
                transaction.put(INDEX, _encode_index(index))

    def delete_all(self) -> None:
        """Delete every file of this store; the empty directory stays.

        One step: after a crash either all sessions are there, or none will be once the store
        has been opened again. Blocks that the file system freed are out of reach.
        """
        with self._changing() as transaction:
            remove_temporaries(self.path)
            for name in self._stamps():
                transaction.delete(name)
            transaction.delete(INDEX)

    @contextmanager
    def _changing(self) -> Iterator[Transaction]:
        with self._lock:
            self._finish_journal()
            transaction = Transaction(self.path)
            yield transaction
            try:
                transaction.commit()
            except StorageError:
                # Where the journal is durable the change has happened: finish it and say so.
                if not self._finish_journal():
                    raise
            if not len(transaction):
                fsync_directory(self.path)

    def _finish_journal(self) -> bool:
        """Complete what a writer had committed and could not finish, before anything else."""
        return is_present(self.path / JOURNAL_NAME) and recover(self.path)

    def close(self) -> None:
        """Do nothing: no file stays open between calls."""

    # -- reading -------------------------------------------------------------------------

    def load(self, session_id: str) -> SessionRecord:
        """Return one record. Raises `NotFound`, `IntegrityError`, `DamagedData`."""
        self._settle()
        return self._read(session_id)[0]

    def messages(self, session_id: str, limit: int | None, offset: int) -> tuple[Message, ...]:
        """Return a page counted from the newest message; the whole file is read."""
        return newest_page(self.load(session_id).messages, limit, offset)

    def infos(
        self, wanted: Filter, limit: int | None = None, offset: int = 0
    ) -> tuple[SessionInfo, ...]:
        """Return sessions without their messages, from the index where that is current."""
        count, start = check_page(limit, offset)
        found = [
            entry.info
            for entry in self._entries().values()
            if entry.info is not None and wanted.accepts(entry.info)
        ]
        found.sort(key=lambda info: info.id)
        found.sort(key=lambda info: info.updated_at, reverse=True)
        return tuple(found[start:] if count < 0 else found[start : start + count])

    def damaged(self) -> Mapping[str, str]:
        """Return the sessions whose files cannot be read, with the reason."""
        return {
            name.removesuffix(".json"): entry.problem
            for name, entry in sorted(self._entries().items())
            if entry.info is None
        }

    def _settle(self) -> None:
        if is_present(self.path / JOURNAL_NAME):
            with self._lock:
                self._finish_journal()

    def _read(self, session_id: str) -> tuple[SessionRecord, int]:
        path = self.path / _file_name(session_id)
        raw = self._raw(session_id)
        try:
            record = SessionRecord.from_json(raw, str(path))
        except (ValidationError, InvalidId) as error:
            raise DamagedData(f"{path}: {error}. Restore a backup of this file") from error
        if record.id != session_id:
            raise DamagedData(f"{path}: holds session {record.id!r}; was the file renamed?")
        return record, len(raw.removesuffix(b"\n"))

    def _raw(self, session_id: str) -> bytes:
        try:
            return read_bounded(
                self.path / _file_name(session_id), _LARGEST_FILE, follow_symlinks=False
            )
        except NotFound:
            raise missing(session_id) from None

    def _stored_revision(self, session_id: str) -> str | None:
        try:
            raw = self._raw(session_id)
        except NotFound:
            return None
        checksum, said = self._said.get(session_id, (b"", ""))
        if _checksum(raw) == checksum:
            return said  # the same bytes say the same
        plain = from_json(raw)
        revision = plain.get("revisionId") if isinstance(plain, dict) else None
        if not isinstance(revision, str):
            raise DamagedData(f"{self.path / _file_name(session_id)}: has no revision id")
        return revision

    # -- the index -----------------------------------------------------------------------

    def _entries(self) -> dict[str, _Entry]:
        self._settle()
        known = self._read_index()
        stamps = self._stamps()
        if stamps == {name: entry.stamp for name, entry in known.items()}:
            return known
        return self._rebuild(known)

    def _rebuild(self, known: Mapping[str, _Entry]) -> dict[str, _Entry]:
        """Look at each file that the index does not know as it is now; write a new index."""
        temporary = self.path / temporary_name(INDEX)
        entries: dict[str, _Entry] = {}
        try:
            with self._lock, open(temporary, "xb", opener=_private) as file:
                now = os.fstat(file.fileno()).st_mtime_ns  # by the file system's own clock
                entries = self._look_at_all(known)
                # A file that was written within the last ticks could be replaced by another
                # one with the same stamp; it is looked at again next time.
                settled = {
                    name: entry
                    for name, entry in entries.items()
                    if entry.stamp[1] < now - _CLOCK_TICK_NS
                }
                # Not synced: whatever a crash makes of the index is noticed.
                file.write(_encode_index(settled))
                file.flush()
                os.replace(temporary, self.path / INDEX)
        except (OSError, LockTimeout) as error:
            # The list does not depend on the index; the next one tries again.
            _log.warning("%s: the index could not be written: %s", self.path, error)
            _discard(temporary)
            return self._look_at_all(known)
        except BaseException:
            _discard(temporary)
            raise
        return entries

    def _look_at_all(self, known: Mapping[str, _Entry]) -> dict[str, _Entry]:
        entries: dict[str, _Entry] = {}
        for name, stamp in self._stamps().items():
            entry = known.get(name)
            if entry is None or entry.stamp != stamp:
                entry = self._look(name, stamp)
            if entry is not None:
                entries[name] = entry
        return entries

    def _stamps(self) -> dict[str, _Stamp]:
        """Return the session files, each with what changes when the file does."""
        stamps: dict[str, _Stamp] = {}
        try:
            with os.scandir(self.path) as found:
                for item in found:
                    if not _is_session_file(item):
                        continue
                    try:
                        stat = item.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # deleted while we looked
                    stamps[item.name] = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        except OSError as error:
            raise StorageError(self.path, error) from error
        return stamps

    def _look(self, name: str, stamp: _Stamp) -> _Entry | None:
        try:
            record, size = self._read(name.removesuffix(".json"))
            return _Entry(stamp, record.info(size))
        except StorageError:
            raise
        except NotFound:
            return None
        except PersistenceError as error:
            return _Entry(stamp, None, str(error))

    def _read_index(self) -> dict[str, _Entry]:
        try:
            raw = read_bounded(self.path / INDEX, _LARGEST_FILE)
            digest, _, body = raw.partition(b"\n")
            if hashlib.sha256(body).hexdigest().encode() != digest:
                return {}
            return {
                name: _Entry(
                    (stamp[0], stamp[1], stamp[2]),
                    None if info is None else SessionInfo.parse(info),
                    problem,
                )
                for name, (stamp, info, problem) in from_json(body).items()
            }
        except (DamagedData, NotFound, ValidationError):
            return {}
        except (ValueError, LookupError, TypeError, AttributeError):
            return {}  # with a checksum that fits, and yet of another shape


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _encode_index(entries: Mapping[str, _Entry]) -> bytes:
    body = to_json(
        {
            name: [
                list(entry.stamp),
                None if entry.info is None else entry.info.model_dump(mode="json", by_alias=True),
                entry.problem,
            ]
            for name, entry in entries.items()
        }
    ).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _is_session_file(item: os.DirEntry[str]) -> bool:
    stem, dot, extension = item.name.rpartition(".")
    if not dot or extension != "json":
        return False
    try:
        check_session_id(stem)
    except InvalidId:
        return False  # no name of ours
    return not item.is_dir(follow_symlinks=False)


def _file_name(session_id: str) -> str:
    return check_session_id(session_id) + ".json"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _discard(temporary: Path) -> None:
    try:
        os.unlink(temporary)
    except OSError:
        pass  # the next open removes it
