"""Starting after a crash, and saving so that a crash costs little."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pytest_statepersist.reference.clock import ManualClock, ManualScheduler, ThreadScheduler
from pytest_statepersist.reference.database import Database
from pytest_statepersist.reference.errors import NewerVersion, QuotaExceeded, StorageError
from pytest_statepersist.reference.local_storage import LocalStorage
from pytest_statepersist.reference.recovery import (
    AutoSave,
    CrashOffer,
    Decision,
    LiveState,
    StateRecovery,
)
from pytest_statepersist.reference.storage_keys import SETTINGS, UI, Settings, UiState

START = datetime(2025, 6, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class App:
    """A running app: what a process holds between its start and its end."""

    def __init__(self, root: Path, clock: ManualClock) -> None:
        self.clock = clock
        self.storage = LocalStorage(root / "local")
        self.database = Database(root / "app.sqlite", clock=clock)
        self.scheduler = ManualScheduler(clock)
        self.live = LiveState()
        self.auto = AutoSave(
            self.storage,
            self.database,
            lambda: self.live,
            scheduler=self.scheduler,
            clock=clock,
        )
        self.recovery = StateRecovery(self.storage, self.database, clock=clock)
        self.offers: list[CrashOffer] = []

    def start(self, decision: Decision = Decision.RESTORE, **changes: object):  # type: ignore[no-untyped-def]
        for name, value in changes.items():
            setattr(self.recovery, name, value)

        def decide(offer: CrashOffer) -> Decision:
            self.offers.append(offer)
            return decision

        return self.recovery.start(decide)

    def talk(self, title: str = "Trains") -> None:
        """Have a session with two messages that only the live state knows."""
        with Database(self.storage.path.parent / "scratch.sqlite", clock=self.clock) as scratch:
            session = scratch.create_session(title, model="m")
            for text in ("When?", "12:04"):
                scratch.add_message(session.id, "user", text)
            self.live = LiveState(
                session=scratch.session(session.id),
                messages=tuple(scratch.messages(session.id)),
                balance=1.5,
                ui=UiState(last_view="chat", sidebar_collapsed=True),
            )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def make_app(tmp_path: Path, clock: ManualClock) -> Iterator[Callable[[], App]]:
    apps: list[App] = []

    def make() -> App:
        for app in apps:
            app.database.close()
        apps.append(App(tmp_path, clock))
        return apps[-1]

    yield make
    for app in apps:
        app.database.close()


def test_a_first_start_has_the_defaults(make_app: Callable[[], App]) -> None:
    app = make_app()
    state = app.start()
    assert state.settings == Settings()
    assert state.live == LiveState()
    assert (state.restored, state.problems, app.offers) == (False, (), [])


def test_a_start_without_a_crash_has_the_last_session_balance_and_ui(
    make_app: Callable[[], App],
) -> None:
    app = make_app()
    app.storage.set(SETTINGS, Settings(default_model="m-large"))
    app.storage.set(UI, UiState(last_view="history"))
    old = app.database.create_session("old", model="m")
    app.clock.advance(1)
    last = app.database.create_session("last", model="m")
    message = app.database.add_message(last.id, "user", "hi")
    app = make_app()
    state = app.start(balance=lambda: 2.25)
    assert state.settings.default_model == "m-large"
    assert state.live.session is not None
    assert state.live.session.id == last.id != old.id
    assert state.live.messages == (message,)
    assert state.live.balance == 2.25
    assert state.live.ui.last_view == "history"
    assert not state.restored


def test_the_steps_come_in_their_order(
    make_app: Callable[[], App], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    steps: list[str] = []
    original = app.storage.get

    def get(key):  # type: ignore[no-untyped-def]
        steps.append(key.name)
        return original(key)

    def last_session() -> None:
        steps.append("last session")

    monkeypatch.setattr(app.storage, "get", get)
    monkeypatch.setattr(app.database, "last_session", last_session)
    app.start(balance=lambda: steps.append("balance") or 0.0)  # type: ignore[func-returns-value]
    assert steps == ["settings", "crash.recovery", "last session", "balance", "ui"]


@pytest.mark.parametrize(
    ("age", "offered"),
    [
        (timedelta(0), True),
        (30 * MINUTE - timedelta(microseconds=1), True),
        (30 * MINUTE, False),
        (timedelta(days=2), False),
        (-timedelta(hours=1), True),  # the clock was set back: nothing is lost
    ],
)
def test_a_crash_record_is_offered_while_younger_than_30_minutes(
    make_app: Callable[[], App], clock: ManualClock, age: timedelta, offered: bool
) -> None:
    app = make_app()
    app.talk()
    app.auto.save()
    clock.set(START + age)
    app = make_app()
    state = app.start()
    assert state.restored == offered
    assert len(app.offers) == offered
    if offered:
        offer = app.offers[0]
        assert (offer.title, offer.message_count, offer.timestamp) == ("Trains", 2, START)
        assert state.live.ui.last_view == "chat"
    assert "crash.recovery" not in app.storage


def test_a_restored_state_is_the_last_session_from_then_on(make_app: Callable[[], App]) -> None:
    app = make_app()
    app.talk()
    app.auto.save()
    live = app.live
    app = make_app()
    assert app.start(Decision.RESTORE).live.messages == live.messages
    app = make_app()  # and crashes again at once: the state is in the database
    state = app.start()
    assert app.offers == []
    assert state.live.session is not None
    assert live.session is not None
    assert state.live.session.id == live.session.id
    assert [item.content for item in state.live.messages] == ["When?", "12:04"]
    assert state.live.ui == live.ui


def test_a_discarded_state_is_gone_and_the_last_session_comes(make_app: Callable[[], App]) -> None:
    app = make_app()
    last = app.database.create_session("last", model="m")
    app.talk()
    app.auto.save()
    app = make_app()
    state = app.start(Decision.DISCARD)
    assert state.live.session is not None
    assert state.live.session.id == last.id
    assert not state.restored
    app = make_app()
    app.start()
    assert app.offers == []


def test_a_crash_while_the_user_is_asked_offers_again(make_app: Callable[[], App]) -> None:
    app = make_app()
    app.talk()
    app.auto.save()

    class Crash(Exception):
        pass

    def crash(offer: CrashOffer) -> Decision:
        raise Crash

    with pytest.raises(Crash):
        make_app().recovery.start(crash)
    app = make_app()
    assert app.start().restored


@pytest.mark.parametrize("step", ["merge_session", "set", "remove"])
def test_a_crash_in_the_middle_of_restoring_changes_nothing_in_the_end(
    make_app: Callable[[], App], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    app = make_app()
    app.talk()
    app.auto.save()
    live = app.live
    app = make_app()

    def fail(*args: object) -> None:
        raise StorageError("disk", OSError(5, "Input/output error"))

    with monkeypatch.context() as patch:
        patch.setattr(app.database if step == "merge_session" else app.storage, step, fail)
        with pytest.raises(StorageError):
            app.start()
    app = make_app()
    state = app.start()
    assert state.restored
    assert live.session is not None
    assert len(app.database.messages(live.session.id)) == 2
    assert len(app.database.sessions()) == 1


def test_restoring_does_not_undo_what_the_database_knows_better(
    make_app: Callable[[], App], clock: ManualClock
) -> None:
    app = make_app()
    session = app.database.create_session("first title", model="m")
    message = app.database.add_message(session.id, "user", "hi")
    app.live = LiveState(session=app.database.session(session.id), messages=(message,))
    app.auto.save()
    clock.advance(1)
    app.database.update_session(session.id, title="later title")
    app.database.add_message(session.id, "user", "later")
    app = make_app()
    app.start()
    assert app.database.session(session.id).title == "later title"
    assert [item.content for item in app.database.messages(session.id)] == ["hi", "later"]


def test_a_branch_whose_parent_is_gone_can_be_restored(make_app: Callable[[], App]) -> None:
    app = make_app()
    app.talk()
    assert app.live.session is not None
    app.live = app.live.changed(session=app.live.session.changed(parent_session_id="gone"))
    app.auto.save()
    app = make_app()
    app.start()
    assert app.database.sessions()[0].parent_session_id is None


def test_a_failing_balance_source_does_not_stop_the_app(make_app: Callable[[], App]) -> None:
    def unreachable() -> float:
        raise ConnectionError("no route to the provider")

    state = make_app().start(balance=unreachable)
    assert state.live.balance is None
    assert state.problems == ("balance: no route to the provider",)


def test_a_record_of_another_shape_is_not_offered_and_told(make_app: Callable[[], App]) -> None:
    app = make_app()
    app.storage.set("crash.recovery", {"what": "is this"})
    state = app.start()
    assert not state.restored
    assert app.offers == []
    (problem,) = state.problems
    assert problem.startswith("crash record: it cannot be read, and is not offered: ")


@pytest.mark.parametrize("cut", [False, True], ids=["changed", "missing"])
def test_a_damaged_record_is_told(make_app: Callable[[], App], cut: bool) -> None:
    """Without an offer and without a word it would look like a start after a clean stop."""
    app = make_app()
    app.talk()
    app.auto.save()
    assert app.start(Decision.DISCARD).problems == ()
    app.auto.changed()
    app.live = app.live.changed(balance=2.5)
    app.auto.save()
    first, *lines = app.storage.path.read_bytes().splitlines(keepends=True)
    (number,) = (n for n, line in enumerate(lines) if b"crash.recovery" in line)
    lines[number] = b"" if cut else lines[number].replace(b"Trains", b"Planes")
    app.storage.path.write_bytes(first + b"".join(lines))
    app.offers.clear()
    state = make_app().start()
    assert not state.restored
    (problem,) = state.problems
    words = "0 lines are damaged and 1 missing" if cut else "1 lines are damaged and 0 missing"
    assert words in problem


def test_settings_of_newer_code_stop_the_start(make_app: Callable[[], App]) -> None:
    app = make_app()
    app.storage.path.write_bytes(_with_settings_version_2())
    with pytest.raises(NewerVersion):
        app.start()


def _with_settings_version_2() -> bytes:
    body = b'["sidepanel.settings",{"version":2}]'
    return b'{"entries":1,"format":"local-storage","version":2}\n%08x %s\n' % (
        zlib.crc32(body),
        body,
    )


# -- AutoSave ----------------------------------------------------------------------------


def test_it_saves_each_30_seconds_and_only_what_changed(
    make_app: Callable[[], App], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    written: list[datetime] = []
    original = app.storage.set

    def counted(key, value):  # type: ignore[no-untyped-def]
        written.append(app.clock.now())
        original(key, value)

    monkeypatch.setattr(app.storage, "set", counted)
    app.auto.start()
    app.auto.start()
    app.talk()
    app.scheduler.advance(29.9)
    assert written == []
    app.scheduler.advance(0.1)
    assert written == [START + timedelta(seconds=30)]
    app.scheduler.advance(300)
    assert len(written) == 1  # nothing changed, nothing written
    app.live = app.live.changed(balance=1.0)
    app.scheduler.advance(30)
    assert len(written) == 2
    assert app.auto.last_save == START + timedelta(seconds=360)


def test_an_app_that_runs_without_a_change_can_still_be_recovered(
    make_app: Callable[[], App],
) -> None:
    app = make_app()
    app.talk()
    app.auto.start()
    app.scheduler.advance(4 * 3600)
    app = make_app()
    assert app.start().restored


def test_a_change_is_saved_once_it_has_been_quiet_for_5_seconds(
    make_app: Callable[[], App],
) -> None:
    app = make_app()
    app.auto.start()
    for _ in range(4):
        app.talk()
        app.auto.changed()
        app.scheduler.advance(4.9)
        assert app.auto.last_save is None
    app.scheduler.advance(0.1)
    assert app.auto.last_save == START + timedelta(seconds=4 * 4.9 + 0.1)


def test_close_saves_and_the_next_start_offers_it(make_app: Callable[[], App]) -> None:
    app = make_app()
    app.auto.start()
    app.talk()
    app.auto.close()
    assert app.scheduler.advance(100) == 0
    app = make_app()
    assert app.start().restored


def test_a_clean_stop_moves_the_state_into_the_database_and_removes_the_record(
    make_app: Callable[[], App],
) -> None:
    app = make_app()
    with app.auto:
        app.talk()
        app.auto.save()
        assert "crash.recovery" in app.storage
    assert "crash.recovery" not in app.storage
    app.auto.close()  # the window goes after the stop: no record comes back
    assert app.scheduler.advance(100) == 0
    live = app.live
    app = make_app()
    state = app.start()
    assert app.offers == []
    assert live.session is not None
    assert state.live.session is not None
    assert state.live.session.id == live.session.id
    assert len(state.live.messages) == 2
    assert state.live.ui == live.ui


def test_leaving_by_an_exception_keeps_the_record(make_app: Callable[[], App]) -> None:
    app = make_app()
    with pytest.raises(RuntimeError), app.auto:
        app.talk()
        raise RuntimeError
    app = make_app()
    assert app.start().restored


def test_a_stop_that_fails_keeps_the_record_and_can_be_repeated(
    make_app: Callable[[], App], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    app.auto.start()
    app.talk()
    app.auto.save()

    def full(*args: object) -> int:
        raise StorageError("app.sqlite", OSError(28, "No space left on device"))

    with monkeypatch.context() as patch:
        patch.setattr(app.database, "merge_session", full)
        with pytest.raises(StorageError):
            app.auto.stop()
    assert "crash.recovery" in app.storage
    app.live = app.live.changed(balance=9.0)
    app.scheduler.advance(30)
    assert app.auto.last_save == app.clock.now()  # it goes on saving
    app.auto.stop()
    assert "crash.recovery" not in app.storage


def test_errors_of_timed_saves_are_reported(tmp_path: Path, clock: ManualClock) -> None:
    storage = LocalStorage(tmp_path / "local", quota=50)
    scheduler = ManualScheduler(clock)
    errors: list[Exception] = []
    with Database(tmp_path / "app.sqlite", clock=clock) as database:
        quiet = AutoSave(
            storage, database, LiveState, scheduler=scheduler, clock=clock, on_error=errors.append
        )
        quiet.start()
        scheduler.advance(30)
        assert isinstance(errors[0], QuotaExceeded)
        with pytest.raises(QuotaExceeded):
            quiet.close()
        assert scheduler.advance(60) == 0
        loud = AutoSave(storage, database, LiveState, scheduler=scheduler, clock=clock)
        loud.start()
        with pytest.raises(QuotaExceeded):
            scheduler.advance(30)


def test_the_real_scheduler_saves_in_the_background(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "local")
    asked = threading.Event()

    def state() -> LiveState:
        asked.set()
        return LiveState(balance=1.0)

    with Database(tmp_path / "app.sqlite") as database, ThreadScheduler() as scheduler:
        auto = AutoSave(storage, database, state, scheduler=scheduler, interval_s=0.01)
        auto.start()
        assert asked.wait(10)
        auto.close()
        assert StateRecovery(storage, database).pending() is not None
