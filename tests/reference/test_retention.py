"""What the database forgets: exactly what is too old, never what has a star."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.reference.clock import ManualClock, ManualScheduler, ThreadScheduler
from pytest_statepersist.reference.database import Database
from pytest_statepersist.reference.database_rows import ChangeKind, SnapshotKind
from pytest_statepersist.reference.errors import StorageError, ValidationError
from pytest_statepersist.reference.retention import NightlyRetention, Retention, RetentionPolicy

START = datetime(2025, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
TINY = timedelta(microseconds=1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def database(tmp_path: Path, clock: ManualClock) -> Iterator[Database]:
    with Database(tmp_path / "app.sqlite", clock=clock) as opened:
        yield opened


def add(database: Database, *, starred: bool = False) -> str:
    return database.add_snapshot(
        {}, kind=SnapshotKind.AUTO, trigger=None, summary=None, starred=starred
    ).id


@pytest.mark.parametrize(
    ("age", "stays"), [(30 * DAY - TINY, True), (30 * DAY, True), (30 * DAY + TINY, False)]
)
def test_a_snapshot_goes_only_when_it_is_older_than_30_days(
    database: Database, clock: ManualClock, age: timedelta, stays: bool
) -> None:
    snapshot, star = add(database), add(database, starred=True)
    clock.set(START + age)
    report = Retention(database).run()
    assert report.snapshots == (() if stays else (snapshot,))
    left = {item.id for item in database.snapshots()}
    assert left == {star} | ({snapshot} if stays else set())


@pytest.mark.parametrize(
    ("age", "stays"), [(90 * DAY - TINY, True), (90 * DAY, True), (90 * DAY + TINY, False)]
)
def test_analytics_go_only_when_they_are_older_than_90_days(
    database: Database, clock: ManualClock, age: timedelta, stays: bool
) -> None:
    event = database.record_event("x")
    clock.set(START + age)
    assert Retention(database).run().analytics == (() if stays else (event.id,))
    assert len(database.events()) == stays


def test_nothing_else_ever_grows_old(database: Database, clock: ManualClock) -> None:
    session = database.create_session("t", model="m")
    database.add_message(session.id, "user", "x")
    database.add_recording(session.id, "r", duration=1, events=[])
    database.add_file_change(session.id, "p", change=ChangeKind.DELETED, diff="")
    database.add_proof(session.id, "x")
    star = add(database, starred=True)
    clock.advance(100 * 365 * 86_400)
    Retention(database).run()
    assert len(database.messages(session.id)) == len(database.recordings()) == 1
    assert len(database.file_changes(session.id)) == len(database.proofs(session.id)) == 1
    assert [item.id for item in database.snapshots()] == [star]


def test_dry_run_says_what_would_go_and_writes_nothing(
    database: Database, clock: ManualClock
) -> None:
    snapshot, event = add(database), database.record_event("x").id
    clock.advance(100 * 86_400)
    retention = Retention(database)
    before = database.file.query("PRAGMA data_version")[0][0], database.path.read_bytes()
    report = retention.run(dry_run=True)
    assert (report.dry_run, report.snapshots, report.analytics) == (True, (snapshot,), (event,))
    assert before == (
        database.file.query("PRAGMA data_version")[0][0],
        database.path.read_bytes(),
    )
    done = retention.run()
    assert (done.snapshots, done.analytics) == (report.snapshots, report.analytics)
    assert retention.run().snapshots == ()


def test_vacuum_gives_the_space_back(database: Database, clock: ManualClock) -> None:
    for _ in range(20):
        database.add_snapshot("x" * 50_000, kind=SnapshotKind.AUTO, trigger=None, summary=None)
    database.file.empty_log()
    large = database.path.stat().st_size
    clock.advance(31 * 86_400)
    Retention(database).run()
    log = database.path.with_name("app.sqlite-wal")
    assert database.path.stat().st_size < large / 5
    assert log.stat().st_size == 0


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ("2025-05-02T12:00:00.000Z", True),  # 30 days to the second, in milliseconds
        ("2025-05-02T11:59:59.999Z", False),
        ("2025-05-02T13:59:59+02:00", False),  # one second too old, said with an offset
        ("2025-05-02T14:00:01+02:00", True),
        ("a long time ago", True),  # unreadable: nobody knows, so nobody deletes
        ("2025-05-01T12:00:00", True),  # without an offset it names no moment
    ],
)
def test_times_are_compared_as_times(database: Database, text: str, stays: bool) -> None:
    snapshot = add(database)
    database.file.execute("UPDATE snapshots SET timestamp = ? WHERE id = ?", (text, snapshot))
    assert Retention(database).run().snapshots == (() if stays else (snapshot,))


@settings(max_examples=15, deadline=None)
@given(
    ages=st.lists(
        st.tuples(
            st.integers(0, 60 * 86_400) | st.integers(-1, 1).map(lambda n: 30 * 86_400 + n),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_retention_agrees_with_its_definition(
    tmp_path_factory: pytest.TempPathFactory, ages: list[tuple[int, bool]]
) -> None:
    clock = ManualClock(START)
    path = tmp_path_factory.mktemp("db") / "app.sqlite"
    with Database(path, clock=clock) as database:
        expected = set()
        for age, starred in ages:
            clock.set(START - timedelta(seconds=age))
            made = add(database, starred=starred)
            if starred or age <= 30 * 86_400:
                expected.add(made)
        clock.set(START)
        Retention(database).run()
        assert {item.id for item in database.snapshots()} == expected


def test_the_nightly_run_in_virtual_time(database: Database, clock: ManualClock) -> None:
    scheduler = ManualScheduler(clock)
    nightly = NightlyRetention(Retention(database), scheduler)
    nightly.start()
    nightly.start()
    add(database)  # at noon on 1 June
    assert nightly.next_run() == datetime(2025, 6, 2, 3, tzinfo=UTC)
    scheduler.run_until(datetime(2025, 7, 1, 11, tzinfo=UTC))
    assert len(database.snapshots()) == 1  # on 1 July at 3:00 it was 29 days and 15 hours old
    runs = scheduler.run_until(datetime(2025, 7, 2, 4, tzinfo=UTC))
    assert runs == 1
    assert database.snapshots() == []
    assert nightly.last_report is not None
    assert nightly.last_report.at == datetime(2025, 7, 2, 3, tzinfo=UTC)
    nightly.stop()
    assert scheduler.advance(3 * 86_400) == 0


def test_a_failing_night_does_not_end_all_nights(
    database: Database, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = ManualScheduler(clock)
    nightly = NightlyRetention(Retention(database), scheduler)
    nightly.start()
    with monkeypatch.context() as patch:

        def fail() -> None:
            raise StorageError("disk", OSError(28, "No space left on device"))

        patch.setattr(nightly.retention, "run", fail)
        with pytest.raises(StorageError):
            scheduler.advance(86_400)
    scheduler.advance(86_400)
    assert nightly.last_report is not None


def test_the_nightly_run_in_real_time(database: Database, clock: ManualClock) -> None:
    """The database's clock says a blink before three; the scheduler waits that blink."""
    clock.set(datetime(2025, 6, 2, 2, 59, 59, 950_000, tzinfo=UTC))
    add(database)
    done = threading.Event()

    class Signalling(Retention):
        def run(self, *, dry_run: bool = False):  # type: ignore[no-untyped-def]
            report = super().run(dry_run=dry_run)
            done.set()
            return report

    with ThreadScheduler() as scheduler:
        nightly = NightlyRetention(Signalling(database), scheduler)
        nightly.start()
        assert done.wait(10)
        nightly.stop()


def test_an_age_beyond_the_calendar_is_that_of_nothing(database: Database) -> None:
    add(database)
    assert Retention(database, RetentionPolicy(timedelta.max, timedelta.max)).run().snapshots == ()


def test_nonsense_is_refused(database: Database) -> None:
    with pytest.raises(ValidationError, match="negative"):
        RetentionPolicy(snapshots=-DAY)
    with pytest.raises(ValidationError, match="hour"):
        NightlyRetention(Retention(database), ManualScheduler(ManualClock()), hour=24)
