"""What the database forgets, and when.

The law: only snapshots without a star and analytics grow old. Sessions and recordings stay
until the user deletes them; messages, file changes and proofs go with their session and never
before. A row goes when it is *older* than its limit: at exactly the limit it stays. A row whose
time cannot be read stays too, since nobody knows how old it is.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.clock import Handle, Scheduler
from pytest_statepersist.reference.database import Database
from pytest_statepersist.reference.errors import ValidationError
from pytest_statepersist.reference.timestamps import before, microseconds, text_of_moment

__all__ = ["NightlyRetention", "Retention", "RetentionPolicy", "RetentionReport"]


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How old rows may become."""

    snapshots: timedelta = timedelta(days=30)
    analytics: timedelta = timedelta(days=90)

    def __post_init__(self) -> None:
        for name in ("snapshots", "analytics"):
            if getattr(self, name) < timedelta(0):
                raise ValidationError(f"RetentionPolicy.{name}", "an age cannot be negative")


@dataclass(frozen=True, slots=True)
class RetentionReport:
    """What went, or with ``dry_run`` what would go: the ids, oldest first."""

    at: datetime
    dry_run: bool
    snapshots: tuple[str, ...]
    analytics: tuple[int, ...]


@checked
class Retention:
    """Deletes what is too old, by the database's own clock."""

    def __init__(self, database: Database, policy: RetentionPolicy | None = None) -> None:
        self.database = database
        self.policy = policy or RetentionPolicy()
        database.file.create_function("microseconds", 1, microseconds)

    def run(self, *, dry_run: bool = False) -> RetentionReport:
        """Delete old rows in one transaction, then give their space back (VACUUM).

        Durable on return. After a crash, or an error in the middle, either all of the old rows
        are gone or none is; running again finishes. ``dry_run`` writes nothing at all.
        Raises `LockTimeout`, `StorageError`.
        """
        now = self.database.clock.now()
        if dry_run:
            return self._report(now, dry_run=True)
        with self.database.transaction():
            report = self._report(now, dry_run=False)
            for table, ids in (("snapshots", report.snapshots), ("analytics", report.analytics)):
                for row_id in ids:
                    self.database.file.execute(f"DELETE FROM {table} WHERE id = ?", (row_id,))
        self.database.file.vacuum()
        return report

    def _report(self, now: datetime, *, dry_run: bool) -> RetentionReport:
        snapshots = self._older("snapshots", "starred = 0", before(now, self.policy.snapshots))
        analytics = self._older("analytics", "1", before(now, self.policy.analytics))
        return RetentionReport(
            at=now,
            dry_run=dry_run,
            snapshots=tuple(str(row_id) for row_id in snapshots),
            analytics=tuple(int(str(row_id)) for row_id in analytics),
        )

    def _older(self, table: str, condition: str, limit: datetime) -> list[object]:
        # Compared as time, not as text: rows of other programs may be written with milliseconds
        # or an offset. NULL, an unreadable time, is never less than anything.
        rows = self.database.file.query(
            f"SELECT id FROM {table} WHERE {condition} AND microseconds(timestamp) < ? "
            "ORDER BY microseconds(timestamp), id",
            (microseconds(text_of_moment(limit)),),
        )
        return [row[0] for row in rows]


@checked
class NightlyRetention:
    """Runs a `Retention` each night at ``hour`` o'clock UTC, on the given scheduler.

    The time of day is worked out anew each night from the database's clock, so a clock that was
    set, or a machine that slept, does not shift it for ever. Errors go to the scheduler.
    """

    def __init__(self, retention: Retention, scheduler: Scheduler, *, hour: int = 3) -> None:
        if not 0 <= hour < 24:
            raise ValidationError("hour", f"{hour} is no hour of the day")
        self.retention = retention
        self.hour = hour
        self.last_report: RetentionReport | None = None
        self._scheduler = scheduler
        self._lock = threading.RLock()  # the job may come before `start` has kept its handle
        self._handle: Handle | None = None

    def start(self) -> None:
        """Arrange the next night's run. Starting twice is starting once."""
        with self._lock:
            if self._handle is None:
                self._arrange()

    def stop(self) -> None:
        """Run no more; a run under way ends by itself."""
        with self._lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                handle.cancel()

    def next_run(self) -> datetime:
        """Return the coming moment at which the hour strikes."""
        now = self.retention.database.clock.now().astimezone(UTC)
        tonight = now.replace(hour=self.hour, minute=0, second=0, microsecond=0)
        return tonight if tonight > now else tonight + timedelta(days=1)

    def _arrange(self) -> None:
        wait = self.next_run() - self.retention.database.clock.now()
        self._handle = self._scheduler.after(wait.total_seconds(), self._run)

    def _run(self) -> None:
        with self._lock:
            if self._handle is None:
                return  # stopped while this call was on its way
            self._arrange()  # first, so that a failing night does not end all nights
        self.last_report = self.retention.run()
