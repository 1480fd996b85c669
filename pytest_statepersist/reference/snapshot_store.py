"""A storage provider on files: encrypted snapshots under one authenticated index.

The law: each change of a group writes a whole new snapshot beside the old one, durably, and
then replaces the index, durably: **that one rename is the commit**, however many slots and
groups it covers. A crash before it leaves the old index, which knows nothing of the new
snapshots; a crash after it leaves the new one. Snapshots that no durable index names are
rubbish and are cleared away on opening and after each commit; the last ``keep`` of a group
stay for whoever wants to look, but only the newest is ever used.

On disk, in one directory: ``index.mlss``, ``group-HEXID-COMMIT.snapshot`` and
``client-COMMIT.snapshot``, all of them envelopes. One process at a time owns a store.

The index also keeps, with each commit, how far the event log beside the store is durable
(`note_log`): a log that was cut, or exchanged, does not fit it.

What cannot be seen from inside: that the whole directory is an older copy. Whoever knows
better says so by ``known_epochs``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from pytest_statepersist.reference import cbor
from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import (
    check_size,
    checked_path,
    fsync_directory,
    make_directory,
    read_bounded,
    remove_temporaries,
    write_atomic,
)
from pytest_statepersist.reference.clock import Clock, SystemClock
from pytest_statepersist.reference.envelope import EnvelopeKey, Purpose
from pytest_statepersist.reference.errors import (
    ConflictError,
    DamagedData,
    IntegrityError,
    NewerVersion,
    NotFound,
    PersistenceError,
    RolledBack,
    StorageError,
    ValidationError,
)
from pytest_statepersist.reference.locking import StoreLock
from pytest_statepersist.reference.log_mark import LogMark
from pytest_statepersist.reference.slots import CLIENT, Changes, Slot
from pytest_statepersist.reference.snapshot_index import (
    Entry,
    Index,
    parse_snapshot_name,
    snapshot_name,
)
from pytest_statepersist.reference.timestamps import text_of_moment

__all__ = ["INDEX_NAME", "GroupSnapshot", "SlotValues", "SnapshotStore", "render_store"]

INDEX_NAME = "index.mlss"

_logger = logging.getLogger(__name__)
_VERSION = 1
_LARGEST_SNAPSHOT = 64 << 20
T = TypeVar("T", bound=BaseModel)

SlotValues = dict[str, dict[str, object]]
"""All that one owner has: slot name, then key, then the value as plain data."""


@dataclass(frozen=True, slots=True)
class GroupSnapshot:
    """One stored snapshot, for looking at: it is never made current again."""

    owner: bytes
    commit: int
    epoch: int
    saved_at: str
    slots: SlotValues


@checked
class SnapshotStore:
    """The `StorageProvider` on files; use it in ``with``, or `close` it in the opening thread.

    Opening recovers: what it then returns is durable, and opening again gives the same.
    ``known_epochs`` maps group ids to epochs that the caller knows to have been saved (group
    removed since: fine); ``known_commit``, a `commit_number`, is finer: it covers changes
    within an epoch. ``keep`` is how many snapshots of each group are kept.

    Opening raises `RolledBack`, `WrongPassword`, `DamagedData` (the index is missing or
    changed), `NewerVersion`, `LockTimeout`, `StorageError`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        key: EnvelopeKey,
        clock: Clock | None = None,
        keep: int = 2,
        known_epochs: Mapping[bytes, int] | None = None,
        known_commit: int = 0,
        lock_timeout: float = 10.0,
    ) -> None:
        if keep < 1:
            raise ValidationError("keep", f"{keep}: the current snapshot must be kept")
        self.directory = checked_path(directory)
        self._key = key
        self._clock = clock or SystemClock()
        self._keep = keep
        self._mutex = threading.RLock()
        self._cache: dict[bytes, SlotValues] = {}
        self._closed = self._unsure = False
        make_directory(self.directory)
        self._lock = StoreLock(self.directory / ".lock", timeout=lock_timeout)
        self._lock.acquire()
        try:
            self._index = self._recover()
            self._log_mark = self._index.log
            self._check_epochs(known_epochs or {})
            if self._index.commit < known_commit:
                raise RolledBack(
                    f"{self.directory}: ends with commit {self._index.commit}, but commit "
                    f"{known_commit} is known to have been saved; it is an older copy"
                )
        except BaseException:
            self._lock.release()
            raise

    # ---- reading ----------------------------------------------------------------------

    def read(self, slot: Slot[T], owner: bytes, *, key: str = "") -> T:
        """Return a slot's value.

        Raises `NotFound` (no such group, or an empty slot), `RolledBack` (an older snapshot
        was put in the current one's place), `DamagedData`, `StorageError`.
        """
        with self._mutex:
            values = self._values(owner).get(slot.name, {})
            if key not in values:
                raise NotFound(f"slot {slot.name} {key!r} of {_name(owner)} is empty")
            return slot.decode(values[key])

    def keys(self, slot: Slot[T], owner: bytes) -> tuple[str, ...]:
        """Return the keys under which a slot holds something. Raises like `read`."""
        with self._mutex:
            return tuple(sorted(self._values(owner).get(slot.name, {})))

    def groups(self) -> tuple[bytes, ...]:
        """Return the ids of all groups, in order, also of those whose snapshot is damaged."""
        with self._mutex:
            self._settle()
            return tuple(sorted(owner for owner in self._index.owners if owner != CLIENT))

    def was_removed(self, group_id: bytes) -> bool:
        """Tell whether a group was here and was removed."""
        with self._mutex:
            self._settle()
            return group_id in self._index.removed

    def epochs(self) -> dict[bytes, int]:
        """Return the epoch of each group: what to pass as ``known_epochs`` some day."""
        with self._mutex:
            self._settle()
            return {g: e[0].epoch for g, e in self._index.owners.items() if g != CLIENT}

    @property
    def commit_number(self) -> int:
        """How many commits were made: what to pass as ``known_commit`` some day."""
        with self._mutex:
            self._settle()
            return self._index.commit

    @property
    def log_mark(self) -> LogMark | None:
        """How far the event log is known to have been durable; None if nobody ever said so."""
        with self._mutex:
            self._settle()
            return self._index.log

    def history(self, owner: bytes) -> tuple[GroupSnapshot, ...]:
        """Return the kept snapshots of an owner, newest first. Raises like `read`."""
        with self._mutex:
            self._settle()
            entries = self._index.owners.get(owner, ())
            return tuple(self._read_snapshot(owner, entry) for entry in entries)

    def dump(self) -> tuple[dict[bytes, SlotValues], dict[bytes, int]]:
        """Return all slots of all owners, and the tombstones: for a backup. Raises like `read`."""
        with self._mutex:
            self._settle()
            return {o: self._values(o) for o in self._index.owners}, dict(self._index.removed)

    # ---- writing ----------------------------------------------------------------------

    def write(self, slot: Slot[T], owner: bytes, value: T, *, key: str = "") -> None:
        """Store one value: like `commit` with one change."""
        self.commit(Changes().write(slot, owner, value, key=key))

    def delete(self, slot: Slot[T], owner: bytes, *, key: str = "") -> None:
        """Empty one slot: like `commit`, but raises `NotFound` if it is empty already."""
        with self._mutex:
            self.read(slot, owner, key=key)
            self.commit(Changes().delete(slot, owner, key=key))

    def commit(self, changes: Changes) -> None:
        """Make all changes in one step: all or none after a crash, durable on return.

        After a `StorageError` nothing that was saved is lost, and calling again is right; if
        the disk failed in the very last sync the change may turn out to have happened. Raises
        `ConflictError` for a write to a removed group that was not readmitted, and like `read`.
        """
        with self._mutex:
            self._settle()
            contents = self._changed(changes)
            number = self._index.commit + 1
            self._unsure = True  # until the index is durable
            written: dict[bytes, Entry] = {}
            for owner, values in contents.items():
                data, entry = _seal_snapshot(owner, number, values, self._key, self._clock)
                check_size(data, _LARGEST_SNAPSHOT, _name(owner))
                write_atomic(self.directory / snapshot_name(owner, number), data)
                written[owner] = entry
            following = self._index.after(
                written,
                changes.removed,
                changes.readmitted,
                keep=self._keep,
                log=self._log_mark,
            )
            self._write_index(following)
            self._unsure = False
            self._index = following
            self._cache.update(contents)
            for group_id in changes.removed:
                self._cache.pop(group_id, None)
                _logger.info("removed %s", _name(group_id))
            for owner, entry in written.items():
                _logger.info("saved %s", _at_epoch(owner, entry.epoch))
            self._prune(durably=bool(changes.removed))

    def note_log(self, mark: LogMark) -> None:
        """Say how far the event log is durable *now*: kept from the next commit on."""
        with self._mutex:
            self._log_mark = mark

    def close(self) -> None:
        """Give the store back; nothing is pending, so nothing is written. Harmless twice."""
        with self._mutex:
            self._closed = True
            if self._lock.held:
                self._lock.release()

    def __enter__(self) -> SnapshotStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _changed(self, changes: Changes) -> dict[bytes, SlotValues]:
        contents: dict[bytes, SlotValues] = {}
        for owner in changes.owners():
            if owner in changes.removed:
                raise ValidationError("changes", f"both change and remove {_name(owner)}")
            if owner in self._index.removed and owner not in changes.readmitted:
                raise ConflictError(
                    f"{_name(owner)} was removed and stays so; join it again to use it"
                )
            known = owner in self._index.owners and owner not in changes.readmitted
            values = {n: dict(v) for n, v in self._values(owner).items()} if known else {}
            for name, key, value in changes.of(owner):
                if value is None:
                    values.get(name, {}).pop(key, None)
                else:
                    values.setdefault(name, {})[key] = value.model_dump()
            contents[owner] = {name: found for name, found in values.items() if found}
        return contents

    # ---- recovery ---------------------------------------------------------------------

    def _recover(self) -> Index:
        # A killed process may have renamed the index without syncing the directory. What we
        # are about to return, and to clear away rubbish by, must be durable first.
        fsync_directory(self.directory)
        remove_temporaries(self.directory)
        try:
            index = self._read_index()
        except NotFound:
            if self._snapshot_files():
                raise DamagedData(
                    f"{self.directory / INDEX_NAME}: is missing though there are snapshots; it "
                    "is created first and never removed: restore the directory from a backup"
                ) from None
            index = Index()
            self._write_index(index)
        self._sweep(index)
        _logger.info("found %d group(s) in %s", len(index.owners.keys() - {CLIENT}), self.directory)
        return index

    def _settle(self) -> None:
        """After a failure: read what the disk holds, and write it anew to be sure of it."""
        if self._closed:
            raise ValidationError("store", f"{self.directory} was closed; open it again")
        if self._unsure:
            index = self._read_index()
            self._write_index(index)
            self._cache.clear()
            self._index = index
            self._unsure = False

    def _check_epochs(self, known: Mapping[bytes, int]) -> None:
        for group_id, epoch in known.items():
            if group_id in self._index.removed:
                continue
            entries = self._index.owners.get(group_id, ())
            found = entries[0].epoch if entries else None
            if found is None or found < epoch:
                raise RolledBack(
                    f"{self.directory}: {_name(group_id)} is at epoch {found}, but epoch {epoch} "
                    "is known to have been saved; the directory is an older copy"
                )

    def _sweep(self, index: Index) -> None:
        """Remove the snapshots that a durable index does not name."""
        for name in self._snapshot_files() - index.file_names():
            path = self.directory / name
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                raise StorageError(path, error) from error

    def _prune(self, *, durably: bool) -> None:
        try:
            self._sweep(self._index)
            if durably:
                fsync_directory(self.directory)
        except StorageError as error:  # the change itself is safe; the next one prunes again
            _logger.warning("could not remove old snapshots yet: %s", error)

    def _snapshot_files(self) -> set[str]:
        try:
            names = os.listdir(self.directory)
        except OSError as error:
            raise StorageError(self.directory, error) from error
        return {name for name in names if parse_snapshot_name(name) is not None}

    # ---- files ------------------------------------------------------------------------

    def _read_index(self) -> Index:
        path = self.directory / INDEX_NAME
        data = read_bounded(path, _LARGEST_SNAPSHOT, follow_symlinks=False)
        return Index.decode(self._key.open(data, purpose=Purpose.INDEX, context=b""))

    def _write_index(self, index: Index) -> None:
        sealed = self._key.seal(index.encode(), purpose=Purpose.INDEX, context=b"")
        check_size(sealed, _LARGEST_SNAPSHOT, "index")
        write_atomic(self.directory / INDEX_NAME, sealed)

    def _values(self, owner: bytes) -> SlotValues:
        self._settle()
        if owner not in self._cache:
            entries = self._index.owners.get(owner)
            if entries is None:
                if owner == CLIENT:
                    return {}
                gone = " (it was removed)" if owner in self._index.removed else ""
                raise NotFound(f"{_name(owner)} is not here{gone}")
            snapshot = self._read_snapshot(owner, entries[0])
            _logger.info("loaded %s", _at_epoch(owner, snapshot.epoch))
            self._cache[owner] = snapshot.slots
        return self._cache[owner]

    def _read_snapshot(self, owner: bytes, entry: Entry) -> GroupSnapshot:
        path = self.directory / snapshot_name(owner, entry.commit)
        try:
            data = read_bounded(path, _LARGEST_SNAPSHOT, follow_symlinks=False)
        except NotFound:
            raise DamagedData(
                f"{path}: the current snapshot of {_name(owner)} is missing; restore a backup, "
                "or join the group again"
            ) from None
        if hashlib.sha256(data).digest() != entry.sha256:
            raise self._impostor(path, owner, entry, data)
        opened = self._key.open(data, purpose=Purpose.SNAPSHOT, context=owner)
        return _decode_snapshot(opened, owner)

    def _impostor(self, path: Path, owner: bytes, entry: Entry, data: bytes) -> IntegrityError:
        """Say what stands in the current snapshot's place: an older one, or nothing of ours."""
        try:
            opened = self._key.open(data, purpose=Purpose.SNAPSHOT, context=owner)
            found = _decode_snapshot(opened, owner)
        except PersistenceError as error:
            return IntegrityError(
                f"{path}: is not what was saved ({error}); restore a backup, or join the group "
                "again"
            )
        return RolledBack(
            f"{path}: is a snapshot of commit {found.commit} and epoch {found.epoch}, where the "
            f"index knows commit {entry.commit} and epoch {entry.epoch}; it was put in its place"
        )


@checked
def render_store(
    contents: Mapping[bytes, SlotValues],
    removed: Mapping[bytes, int],
    *,
    log: LogMark,
    key: EnvelopeKey,
    clock: Clock,
) -> dict[str, bytes]:
    """Return the files, by name, of a new store with these slots, tombstones and log."""
    files: dict[str, bytes] = {}
    entries: dict[bytes, tuple[Entry, ...]] = {}
    for owner, values in contents.items():
        data, entry = _seal_snapshot(owner, 1, values, key, clock)
        files[snapshot_name(owner, 1)] = data
        entries[owner] = (entry,)
    index = Index(1, entries, dict(removed), log)
    files[INDEX_NAME] = key.seal(index.encode(), purpose=Purpose.INDEX, context=b"")
    return files


def _seal_snapshot(
    owner: bytes, commit: int, values: SlotValues, key: EnvelopeKey, clock: Clock
) -> tuple[bytes, Entry]:
    state = values.get("group_state", {}).get("")
    epoch = state["epoch"] if isinstance(state, dict) else -1
    content = {
        "version": _VERSION,
        "owner": owner,
        "commit": commit,
        "epoch": epoch,
        "saved_at": text_of_moment(clock.now()),
        "slots": values,
    }
    data = key.seal(cbor.encode(content), purpose=Purpose.SNAPSHOT, context=owner)
    return data, Entry(commit, epoch, hashlib.sha256(data).digest())


def _decode_snapshot(opened: bytes, owner: bytes) -> GroupSnapshot:
    content: Any = cbor.decode(opened)
    try:
        if content["version"] > _VERSION:
            raise NewerVersion(f"snapshot version {content['version']} of {_name(owner)}")
        return GroupSnapshot(
            owner, content["commit"], content["epoch"], content["saved_at"], content["slots"]
        )
    except (KeyError, TypeError) as error:
        raise DamagedData(f"the snapshot of {_name(owner)} cannot be read ({error!r})") from error


def _name(owner: bytes) -> str:
    return f"group {owner.hex()}" if owner else "the client's own slots"


def _at_epoch(owner: bytes, epoch: int) -> str:
    return _name(owner) if owner == CLIENT else f"{_name(owner)} at epoch {epoch}"
