"""What an app does when it starts after a crash, and while it runs so that it can.

The law: while the app runs, `AutoSave` keeps a crash record of the live state in the local
storage; a clean stop first moves that state into the database and then removes the record. So a
record that is found at start means that the last run did not end well, and whatever happens
in between, the state is in the record, in the database, or in both.

A record is offered while it is *younger* than 30 minutes; at 30 minutes it is too old. An
app that runs without a change rewrites its record before it gets that old.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from types import TracebackType
from typing import Self

from pydantic import Field

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.clock import Clock, Handle, Scheduler, SystemClock
from pytest_statepersist.reference.database import Database
from pytest_statepersist.reference.database_rows import AppMessage, AppSession
from pytest_statepersist.reference.errors import PersistenceError, ValidationError
from pytest_statepersist.reference.local_storage import LocalStorage
from pytest_statepersist.reference.storage_keys import CRASH_RECORD, SETTINGS, UI, Settings, UiState
from pytest_statepersist.reference.timestamps import Moment
from pytest_statepersist.reference.values import Value, to_json

__all__ = [
    "CRASH_RECORD_MAX_AGE",
    "AutoSave",
    "CrashOffer",
    "Decision",
    "LiveState",
    "StartState",
    "StateRecovery",
]

CRASH_RECORD_MAX_AGE = timedelta(minutes=30)
SAVE_INTERVAL_S = 30.0
DEBOUNCE_S = 5.0


class LiveState(Value):
    """What the running app would lose: the open session, the balance, the look of the window."""

    session: AppSession | None = None
    messages: tuple[AppMessage, ...] = ()
    balance: float | None = Field(default=None, allow_inf_nan=False)
    ui: UiState = UiState()


class _CrashRecord(Value):
    timestamp: Moment
    state: LiveState


class Decision(Enum):
    """What the user wants to happen to the state of a crashed run."""

    RESTORE = "restore"
    DISCARD = "discard"


@dataclass(frozen=True, slots=True)
class CrashOffer:
    """What the user is asked about: enough to decide, and the state itself."""

    title: str | None
    message_count: int
    timestamp: datetime
    state: LiveState


@dataclass(frozen=True, slots=True)
class StartState:
    """What the app starts with. ``problems`` says what could not be had, and why."""

    settings: Settings
    live: LiveState
    restored: bool
    problems: tuple[str, ...]


@checked
class StateRecovery:
    """Puts together the state to start with, from storage, database and balance source.

    ``balance`` may fail or be slow to exist: the app then starts without a balance.
    """

    def __init__(
        self,
        storage: LocalStorage,
        database: Database,
        *,
        balance: Callable[[], float] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.storage = storage
        self.database = database
        self.balance = balance
        self.clock: Clock = clock or SystemClock()

    def start(self, decide: Callable[[CrashOffer], Decision]) -> StartState:
        """Return the state to start with; ``decide`` is called if a crash record is offered.

        In this order: settings; the crash record, if it is young enough; else the last
        session; the balance; the state of the user interface. If ``decide`` raises, or the
        process dies while it asks, the record is offered again next time. A record that cannot
        be read, and what else of the local storage cannot, is told in ``problems``: nobody
        should take a start without an offer for one after a clean stop.
        """
        settings = self.storage.get(SETTINGS)
        problems: list[str] = []
        live = self._offered(decide, problems)
        restored = live is not None
        if live is None:
            live = self._last_session()
        if self.balance is not None:
            try:
                live = live.changed(balance=self.balance())
            except Exception as error:  # a plug-in: whatever it raises must not stop the app
                problems.append(f"balance: {error}")
        if not restored:
            live = live.changed(ui=self.storage.get(UI))
        return StartState(settings, live, restored, tuple(problems))

    def pending(self) -> CrashOffer | None:
        """Return what a crashed run left, if it is young enough; an old record is removed."""
        return self._pending([])

    def _pending(self, problems: list[str]) -> CrashOffer | None:
        record = self._record(problems)
        if record is None:
            return None
        # A clock that was set back makes the record look younger, never lost.
        if self.clock.now() - record.timestamp >= CRASH_RECORD_MAX_AGE:
            self.storage.remove(CRASH_RECORD)
            return None
        session = record.state.session
        return CrashOffer(
            title=None if session is None else session.title,
            message_count=len(record.state.messages),
            timestamp=record.timestamp,
            state=record.state,
        )

    def restore(self, offer: CrashOffer) -> LiveState:
        """Make the offered state the last session, durably, and then drop the record.

        A crash in the middle leaves the record, and restoring again changes nothing more. Where
        the database has more of the session than the record (the app died while it stopped),
        the result has it too.
        """
        _keep(offer.state, self.database, self.storage)
        self.storage.remove(CRASH_RECORD)
        session = offer.state.session
        if session is None:
            return offer.state
        return offer.state.changed(
            session=self.database.session(session.id),
            messages=tuple(self.database.messages(session.id)),
        )

    def discard(self) -> None:
        """Drop the record; durable on return."""
        self.storage.remove(CRASH_RECORD)

    def _offered(
        self, decide: Callable[[CrashOffer], Decision], problems: list[str]
    ) -> LiveState | None:
        offer = self._pending(problems)
        if offer is None:
            return None
        if decide(offer) is Decision.RESTORE:
            return self.restore(offer)
        self.discard()
        return None

    def _last_session(self) -> LiveState:
        session = self.database.last_session()
        if session is None:
            return LiveState()
        return LiveState(session=session, messages=tuple(self.database.messages(session.id)))

    def _record(self, problems: list[str]) -> _CrashRecord | None:
        plain = self.storage.get(CRASH_RECORD)
        damage = self.storage.damage
        if damage.lines or damage.missing:
            problems.append(
                f"local storage: {damage.lines} lines are damaged and {damage.missing} missing; "
                "a crash record may have been among them"
            )
        if plain is None:
            return None
        try:
            return _CrashRecord.parse(plain)
        except ValidationError as error:
            # Not ours to interpret; the next save replaces it.
            problems.append(f"crash record: it cannot be read, and is not offered: {error}")
            return None


@checked
class AutoSave:
    """Keeps the crash record fresh: each 30 s, 5 s after the last change, and at `close`.

    ``state`` returns the live state and must be safe to call from the scheduler's thread.
    Nothing is written while the state is the same. Errors of timed saves go to ``on_error``,
    or to the scheduler where none is given. Use as a context manager: a clean exit is `stop`,
    an exception is `close`, so that the next start offers what there was.
    """

    def __init__(
        self,
        storage: LocalStorage,
        database: Database,
        state: Callable[[], LiveState],
        *,
        scheduler: Scheduler,
        clock: Clock | None = None,
        interval_s: float = SAVE_INTERVAL_S,
        debounce_s: float = DEBOUNCE_S,
        on_error: Callable[[PersistenceError], object] | None = None,
    ) -> None:
        self.storage = storage
        self.database = database
        self.clock: Clock = clock or SystemClock()
        self._state = state
        self._scheduler = scheduler
        self._interval_s = interval_s
        self._debounce_s = debounce_s
        self._on_error = on_error
        self._lock = threading.RLock()
        self._running = False
        self._beat: Handle | None = None
        self._pending: Handle | None = None
        self._written: tuple[str, datetime] | None = None
        self.last_save: datetime | None = None

    def start(self) -> None:
        """Begin to save. Starting twice is starting once."""
        with self._lock:
            if not self._running:
                self._running = True
                self._beat = self._scheduler.every(self._interval_s, self._timed_save)

    def changed(self) -> None:
        """Tell that the state changed: it is saved once it has been quiet for 5 s."""
        with self._lock:
            if self._running:
                if self._pending is not None:
                    self._pending.cancel()
                self._pending = self._scheduler.after(self._debounce_s, self._timed_save)

    def save(self) -> bool:
        """Write the crash record now if the state changed; durable on return.

        Returns whether it was written. An unchanged state is written again only when its
        record is half as old as it may become. Raises `QuotaExceeded`, `StorageError`.
        """
        with self._lock:
            state = self._current()
            text = to_json(state.model_dump(mode="json", by_alias=True))
            now = self.clock.now()
            if self._written is not None:
                same, since = self._written[0] == text, now - self._written[1]
                if same and timedelta(0) <= since < CRASH_RECORD_MAX_AGE / 2:
                    return False
            record = _CrashRecord(timestamp=now, state=state)
            self.storage.set(CRASH_RECORD, record.model_dump(mode="json", by_alias=True))
            self._written = (text, now)
            self.last_save = now
            return True

    def close(self) -> None:
        """End without a clean stop, as when the window goes: a last save, the record stays.

        Does nothing after `stop`, which has left nothing to recover.
        """
        with self._lock:
            if self._running:
                try:
                    self.save()
                finally:
                    self._end()

    def stop(self) -> None:
        """End cleanly: the state goes into the database, and then the crash record goes.

        Durable on return. After an error the record is still there and saving goes on; call
        again.
        """
        with self._lock:
            _keep(self._current(), self.database, self.storage)
            self.storage.remove(CRASH_RECORD)
            self._end()

    def _current(self) -> LiveState:
        state: object = self._state()  # a plug-in: what it gives is not ours
        if not isinstance(state, LiveState):
            raise ValidationError("state", f"gave a {type(state).__name__}, not a LiveState")
        return state

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.stop()
        else:
            self.close()

    def _end(self) -> None:
        self._running = False
        self._written = None
        for handle in (self._beat, self._pending):
            if handle is not None:
                handle.cancel()
        self._beat = self._pending = None

    def _timed_save(self) -> None:
        with self._lock:
            if not self._running:
                return  # ended while this call was on its way
            try:
                self.save()
            except PersistenceError as error:
                if self._on_error is None:
                    raise
                self._on_error(error)


def _keep(state: LiveState, database: Database, storage: LocalStorage) -> None:
    """Store a live state where the next start finds it. Doing it twice is doing it once."""
    if state.session is not None:
        database.merge_session(state.session, state.messages)
    storage.set(UI, state.ui)
