"""The file store: an app's sessions, conversations and focus chains, one file each.

The law: what a method says was saved is durable when it returns, and what several files must
agree on (``save_all``, ``clear``, ``restore``, ``rekey``, ``migrate``) changes in one atomic
step. A crash at any moment leaves the state before or after the call; opening the store, or
the next call on it, finishes or undoes what was cut short.

One bad file never hides the others: it is reported through ``on_error`` and, if its bytes are
beyond doubt damaged, renamed aside. A file that *we* merely cannot read (a newer version,
another key, larger than our limit, an I/O error) stays where it is and is never overwritten.

The store may be used by several threads and processes at once. Events are delivered after
the lock was released, so a listener may use the store.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import checked_path
from pytest_statepersist.reference.cipher import Cipher
from pytest_statepersist.reference.clock import Clock, Scheduler, SystemClock
from pytest_statepersist.reference.errors import (
    DamagedData,
    NewerVersion,
    NotFound,
    PersistenceError,
    StorageError,
    TooLarge,
    ValidationError,
    WrongPassword,
)
from pytest_statepersist.reference.ids import check_id
from pytest_statepersist.reference.items import (
    ITEM_TYPES,
    Conversation,
    FocusChain,
    Item,
    Session,
)
from pytest_statepersist.reference.locking import StoreLock
from pytest_statepersist.reference.managers import Manager
from pytest_statepersist.reference.serializers import (
    DEFAULT_LIMIT,
    AdaptiveSerializer,
    Format,
    Serializer,
)
from pytest_statepersist.reference.store_autosave import AutoSaver
from pytest_statepersist.reference.store_backup import (
    BackupContent,
    create_backup,
    make_content,
    outside,
    read_backup,
)
from pytest_statepersist.reference.store_codec import (
    Decoded,
    Encoded,
    ItemCodec,
    NotEncrypted,
    item_of,
    place_of,
)
from pytest_statepersist.reference.store_events import (
    ErrorInfo,
    Event,
    EventHub,
    LoadInfo,
    SaveInfo,
)
from pytest_statepersist.reference.store_files import Known, StoreFiles
from pytest_statepersist.reference.store_reports import LoadReport, SaveReport
from pytest_statepersist.reference.store_schema import SCHEMA, Schema
from pytest_statepersist.reference.transaction import Transaction

__all__ = ["FileStore", "LoadReport", "SaveReport"]

T = TypeVar("T", bound=Item)


@checked
class FileStore:
    """Opens, or creates, the store in a directory; recovery is done on return.

    ``serializer`` may be changed at any time (files of all formats stay readable);
    ``cipher`` encrypts all files at rest; ``scheduler`` drives the auto-save (a background
    thread unless given); ``lock_timeout`` is in seconds, ``limit`` in bytes per item.

    Raises `StorageError`, `LockTimeout`, `DamagedData` (a forged journal).
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        serializer: Serializer | None = None,
        cipher: Cipher | None = None,
        schema: Schema = SCHEMA,
        readers: tuple[Serializer, ...] = (),
        clock: Clock | None = None,
        scheduler: Scheduler | None = None,
        lock_timeout: float = 10.0,
        limit: int = DEFAULT_LIMIT,
    ) -> None:
        self._files = StoreFiles(root, limit=limit)
        self._codec = ItemCodec(serializer or AdaptiveSerializer(), schema, cipher, limit, readers)
        self._clock = clock or SystemClock()
        self._events = EventHub()
        self._managers: dict[type[Item], Manager[Any]] = {}
        self._known: dict[str, Known] = {}
        self._unsettled: set[str] = set()  # directories that another process may not have synced
        self._pending: list[Event] = []
        self._interrupted = True  # until the directory was recovered
        self._depth = 0  # of nested calls that hold the lock; only touched while holding it
        self._last_save_time: datetime | None = None
        self._autosave = AutoSaver(self.save_all, self._autosave_failed, scheduler)
        self.on_save: Callable[[Callable[[SaveInfo], object]], None] = self._events.on_save
        self.on_load: Callable[[Callable[[LoadInfo], object]], None] = self._events.on_load
        self.on_error: Callable[[Callable[[ErrorInfo], object]], None] = self._events.on_error
        self._files.create()
        self._lock = StoreLock(self._files.root / ".lock", timeout=lock_timeout)
        with self._exclusive():
            pass

    @property
    def root(self) -> Path:
        """The store's directory, links resolved."""
        return self._files.root

    @property
    def serializer(self) -> Serializer:
        """How items are written from now on; set it at any time."""
        return self._codec.serializer

    @serializer.setter
    def serializer(self, serializer: Serializer) -> None:
        readers = self._codec.readers
        if not isinstance(self._codec.serializer.format, Format):
            readers = (*readers, self._codec.serializer)  # its files are still there
        self._codec = replace(self._codec, serializer=serializer, readers=readers)

    def attach(
        self,
        *,
        sessions: Manager[Session] | None = None,
        memory: Manager[Conversation] | None = None,
        focus: Manager[FocusChain] | None = None,
    ) -> None:
        """Attach managers, whose items `save_all` saves and `load_all` fills in."""
        for model, manager in ((Session, sessions), (Conversation, memory), (FocusChain, focus)):
            if manager is not None:
                self._managers[model] = manager

    # One item

    def save(self, item: Item) -> bool:
        """Save one item: atomic, and durable on return. Returns False if nothing had changed.

        Raises `ValidationError` (larger than the limit, too), `StorageError`, `LockTimeout`; and
        `NewerVersion`, `WrongPassword`, `TooLarge` or `NotEncrypted` rather than overwrite a file
        that it cannot read.
        """
        place = place_of(type(item), check_id(item.id))
        with self._exclusive(place):
            encoded = self._encode_if_changed(item, place)
            if encoded is None:
                self._settle()
                return False
            self._commit({place: encoded}, ())
            path, size, now = self._files.path(place), len(encoded.data), self._clock.now()
            self._pending.append(SaveInfo(path, encoded.format, size, now, 1))
            return True

    def load(self, model: type[T], item_id: str) -> T:
        """Return one item, upgraded to the current schema.

        Raises `NotFound`; `DamagedData` or `ValidationError` (the file is set aside then);
        `TooLarge`, `NewerVersion`, `WrongPassword`, `NotEncrypted`, `StorageError` (it stays).
        """
        place = place_of(model, check_id(item_id))
        with self._exclusive(place):
            decoded, raw = self._read(model, item_id)
            path, now = self._files.path(place), self._clock.now()
            self._pending.append(LoadInfo(path, decoded.format, len(raw), now, 1))
        assert isinstance(decoded.item, model)
        return decoded.item

    def delete(self, model: type[Item], item_id: str) -> None:
        """Remove one item; durable on return. Raises `NotFound`, `StorageError`."""
        place = place_of(model, check_id(item_id))
        with self._exclusive(place):
            if not self._files.has(place):
                self._files.sync((model.directory,))
                raise NotFound(f"{self._files.path(place)}: nothing is stored there")
            self._commit({}, (place,))

    def ids(self, model: type[Item]) -> tuple[str, ...]:
        """Return the ids of all stored items of one type, sorted."""
        with self._exclusive():
            return self._files.ids(model)

    # All items

    def save_all(self, *, or_nothing: bool = False) -> SaveReport:
        """Save what changed in the attached managers: one atomic step, durable on return.

        A crash leaves all of these changes or none. An item that cannot be saved is reported
        and does not stop the others; with ``or_nothing`` it does: its error is raised, and nothing
        is saved. Items that a manager no longer has stay on disk until `delete`. Raises
        `StorageError` or `LockTimeout` when nothing could be saved.
        """
        with self._exclusive():
            changed: dict[str, Encoded] = {}
            unchanged: list[str] = []
            failed: list[ErrorInfo] = []
            for model in self._managers:
                for item in self._managers[model].snapshot():
                    place = f"{model.directory}/{item.id}.json"
                    try:
                        check_id(item.id)
                        encoded = self._encode_if_changed(item, place)
                    except PersistenceError as error:
                        failed.append(self._reported(place, error))
                        if or_nothing:
                            raise
                        continue
                    if encoded is None:
                        unchanged.append(place)
                    else:
                        changed[place] = encoded
            self._commit(changed, ())
            self._settle()
            now = self._clock.now()
            if not failed:
                self._last_save_time = now
            if changed:
                size = sum(len(encoded.data) for encoded in changed.values())
                form = self._codec.serializer.format
                self._pending.append(SaveInfo(self.root, form, size, now, len(changed)))
            return SaveReport(tuple(changed), tuple(unchanged), tuple(failed))

    def load_all(self) -> LoadReport:
        """Load everything, as of one moment; attached managers then hold exactly that.

        Items that cannot be read are reported, the damaged ones set aside, and the rest is
        loaded. Raises `StorageError` or `LockTimeout` when the store itself cannot be read.
        """
        found: dict[type[Item], list[Any]] = {model: [] for model in ITEM_TYPES}
        failed: list[ErrorInfo] = []
        size = 0
        with self._exclusive():
            for model in ITEM_TYPES:
                for path, bad_id in self._files.misnamed(model):
                    place = str(path.relative_to(self.root))
                    failed.append(self._reported(place, bad_id))
                for item_id in self._files.ids(model):
                    try:
                        decoded, raw = self._read(model, item_id)
                    except PersistenceError as error:
                        failed.append(self._reported(place_of(model, item_id), error))
                        continue
                    found[model].append(decoded.item)
                    size += len(raw)
            count = sum(map(len, found.values()))
            form = self._codec.serializer.format
            self._pending.append(LoadInfo(self.root, form, size, self._clock.now(), count))
        for model, manager in self._managers.items():
            manager.adopt(tuple(found[model]))
        return LoadReport(
            tuple(found[Session]), tuple(found[Conversation]), tuple(found[FocusChain]),
            tuple(failed),
        )  # fmt: skip

    def clear(self) -> int:
        """Remove all items in one atomic, durable step; return how many there were.

        Files that were set aside as damaged stay.
        """
        with self._exclusive():
            self._files.sync()  # what others removed does not come back either
            places = self._places()
            self._commit({}, places)
            return len(places)

    def migrate(self) -> int:
        """Rewrite all items of older schema versions, in one atomic durable step.

        Not needed for reading: `load` upgrades. Items that cannot be read for what they are
        were reported and stay as they are. Returns how many were rewritten. Raises
        `StorageError`, having changed nothing that `load` would notice.
        """
        with self._exclusive():
            changed = {
                place_of(type(old.item), old.item.id): self._codec.encode(old.item)
                for old in self._readable()
                if old.version < self._codec.schema.version
            }
            self._commit(changed, ())
            return len(changed)

    def rekey(self, cipher: Cipher | None) -> int:
        """Encrypt all items with another key, or (None) with none; return how many.

        One atomic durable step: after a crash either the old key opens every item or the new
        one does. Refuses, having changed nothing, if one item cannot be read. Files that were
        set aside earlier are not rewritten, and blocks that the old files used are freed, not
        wiped.
        """
        with self._exclusive():
            new = replace(self._codec, cipher=cipher)
            changed: dict[str, Encoded] = {}
            for model in ITEM_TYPES:
                for item_id in self._files.ids(model):
                    decoded, _ = self._read(model, item_id)
                    changed[place_of(model, item_id)] = new.encode(decoded.item)
            self._known.clear()
            self._commit(changed, ())
            self._codec = new
            return len(changed)

    # Auto-save

    @property
    def last_save_time(self) -> datetime | None:
        """When `save_all` last saved everything in this process, by the store's clock."""
        return self._last_save_time

    @property
    def autosave_interval(self) -> float | None:
        """Seconds between two auto-saves; None while they are off."""
        return self._autosave.interval

    def enable_autosave(self, interval_s: float = 300.0) -> None:
        """Call `save_all` each ``interval_s`` seconds; call again to change the interval."""
        self._autosave.enable(interval_s)

    def disable_autosave(self) -> None:
        """Stop the auto-save, waiting for one that runs in the background."""
        self._autosave.disable()

    def close(self) -> None:
        """Stop the auto-save. Nothing is saved here: call `save_all` first."""
        self._autosave.disable()

    def __enter__(self) -> FileStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Backup

    def backup(
        self, dest: str | os.PathLike[str], *, base: str | os.PathLike[str] | None = None
    ) -> Path:
        """Copy the store, as of one moment, to the new directory ``dest``.

        Durable on return, and atomic: after a crash ``dest`` is there completely or not at
        all. With ``base`` (an earlier full backup) only what changed since then is copied: a
        differential backup, which needs its base to be restored. Encrypted items stay
        encrypted. Damaged items and links are reported, set aside and not copied.

        Raises `BackupError` (``dest`` exists or is in the store, ``base`` is no full backup),
        `StorageError`.
        """
        with self._exclusive():
            return create_backup(
                outside(self.root, dest),
                self.backup_content(),
                base=None if base is None else checked_path(base),
            )

    def backup_content(self) -> BackupContent:
        """Return a full backup in memory, as of one moment; nothing is written.

        Damaged items and links are reported, set aside and left out. Raises `TooLarge`,
        `StorageError`.
        """
        with self._exclusive():
            files: dict[str, bytes] = {}
            for model in ITEM_TYPES:
                for item_id in self._files.ids(model):
                    place = place_of(model, item_id)
                    try:
                        files[place] = self._look(model, item_id)
                    except TooLarge:
                        raise  # neither read nor set aside: a backup must not lack it
                    except (DamagedData, ValidationError):
                        pass  # reported and set aside
                    except (NewerVersion, WrongPassword, NotEncrypted):
                        files[place] = self._files.read(place)  # whole, though not for us
            return make_content(
                files,
                created_at=self._clock.now(),
                schema_version=self._codec.schema.version,
            )

    def restore(
        self, src: str | os.PathLike[str], *, base: str | os.PathLike[str] | None = None
    ) -> int:
        """Make the store what it was when the backup ``src`` was made; return how many items.

        One atomic durable step: after a crash, during recovery too, the store holds the old
        state or the restored one, never a mixture. All checksums, and that each item can be
        read with this store's key and schema, are verified before anything is touched.
        ``base`` says where the base of a differential backup is now, if it was moved.
        Attached managers are not changed: call `load_all`.

        Raises `BackupError` (missing, incomplete), `IntegrityError` (damaged), `WrongPassword`,
        `NewerVersion`; the store is as before then.
        """
        with self._exclusive():
            content = read_backup(
                checked_path(src), None if base is None else checked_path(base)
            )
            return self.restore_content(content)

    def restore_content(self, content: BackupContent) -> int:
        """As `restore`, from a backup that was already read and verified."""
        with self._exclusive():
            for place, data in content.files.items():
                model, item_id = item_of(place)
                self._codec.decode(model, item_id, data)
            self._files.sync()
            transaction = Transaction(self.root)
            for place in set(self._places()) - content.files.keys():
                transaction.delete(place)
            for place, data in content.files.items():
                transaction.put(place, data)
            self._known.clear()
            self._run(transaction)
            return len(content.files)

    # Private: everything below runs under the lock

    @contextmanager
    def _exclusive(self, place: str = "") -> Iterator[None]:
        """Hold the lock on a recovered directory; the outermost one then delivers the events."""
        try:
            self._lock.acquire()
        except PersistenceError as error:
            self._events.emit(ErrorInfo(self._files.path(place), error, self._clock.now()))
            raise
        self._depth += 1
        events: list[Event] = []
        try:
            if self._interrupted or self._files.has_journal():
                self._known.clear()
                self._files.prepare()
                self._interrupted = False
            yield
        except PersistenceError as error:
            self._reported(place, error)
            raise
        finally:
            self._depth -= 1
            if self._depth == 0:
                events, self._pending = self._pending, []
            self._lock.release()
            for event in events:
                self._events.emit(event)

    def _commit(self, puts: Mapping[str, Encoded], deletes: Iterable[str]) -> None:
        transaction = Transaction(self.root)
        for place, encoded in puts.items():
            transaction.put(place, encoded.data)
        for place in deletes:
            transaction.delete(place)
            self._known.pop(place, None)
        self._run(transaction)
        for place, encoded in puts.items():
            self._remember(place, encoded.digest, encoded.data)

    def _run(self, transaction: Transaction) -> None:
        self._interrupted = True  # after an error the next call recovers first
        transaction.commit()
        self._interrupted = False

    def _remember(self, place: str, digest: bytes, data: bytes) -> None:
        self._known[place] = Known(digest, hashlib.sha256(data).digest())

    def _read(self, model: type[Item], item_id: str) -> tuple[Decoded, bytes]:
        """Read one item; report what fails, and set aside what is damaged."""
        place = place_of(model, item_id)
        with self._reporting(place):
            raw = self._files.read(place)
            decoded = self._codec.decode(model, item_id, raw)
        self._remember(place, decoded.digest, raw)
        return decoded, raw

    def _look(self, model: type[Item], item_id: str) -> bytes:
        """Return the file of an item that can be read: bytes that are known need no proof."""
        place = place_of(model, item_id)
        known = self._known.get(place)
        if known is None:
            return self._read(model, item_id)[1]
        with self._reporting(place):
            raw = self._files.read(place)
            if hashlib.sha256(raw).digest() != known.stored:
                self._remember(place, self._codec.decode(model, item_id, raw).digest, raw)
        return raw

    @contextmanager
    def _reporting(self, place: str) -> Iterator[None]:
        """Report what fails while an item is read, and set aside what is damaged."""
        try:
            yield
        except TooLarge as error:
            self._reported(place, error)  # with a larger limit it may well be readable
            raise
        except (DamagedData, ValidationError) as error:
            self._set_aside(place, error)
            raise
        except NotFound:
            raise
        except PersistenceError as error:
            self._reported(place, error)
            raise

    def _set_aside(self, place: str, error: PersistenceError) -> None:
        self._known.pop(place, None)
        try:
            quarantined = self._files.quarantine(place)
        except PersistenceError as second:
            self._reported(place, error)
            self._reported(place, second)
        else:
            self._reported(place, error, quarantined)

    def _encode_if_changed(self, item: Item, place: str) -> Encoded | None:
        """Return what is to be written; None if exactly that is on disk already."""
        encoded = self._codec.encode(item)
        if not self._files.has(place):
            return encoded
        before = self._known.get(place)
        try:
            self._look(type(item), item.id)  # another process may have written it
        except TooLarge:
            raise
        except (DamagedData, ValidationError):
            return encoded  # what was there is reported and set aside
        found = self._known[place]
        if found.digest != encoded.digest:
            return encoded
        if found != before:
            self._unsettled.add(item.directory)
        return None

    def _settle(self) -> None:
        """Make durable what another process wrote."""
        self._files.sync(sorted(self._unsettled))
        self._unsettled.clear()

    def _places(self) -> tuple[str, ...]:
        return tuple(
            place_of(model, item_id) for model in ITEM_TYPES for item_id in self._files.ids(model)
        )

    def _readable(self) -> Iterator[Decoded]:
        for model in ITEM_TYPES:
            for item_id in self._files.ids(model):
                try:
                    yield self._read(model, item_id)[0]
                except StorageError:
                    raise  # it may well be readable the next time
                except PersistenceError:
                    pass  # `_read` has reported it

    def _reported(
        self, place: str, error: PersistenceError, quarantined: Path | None = None
    ) -> ErrorInfo:
        """Queue one report for each error, however often it passes by."""
        for event in self._pending:
            if isinstance(event, ErrorInfo) and event.error is error:
                return event
        info = ErrorInfo(self._files.path(place), error, self._clock.now(), quarantined)
        self._pending.append(info)
        return info

    def _autosave_failed(self, error: Exception) -> None:
        if not isinstance(error, PersistenceError):  # those were reported already
            self._events.emit(ErrorInfo(self.root, error, self._clock.now()))
