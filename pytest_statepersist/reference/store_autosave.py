"""Saving by itself, at an interval that can be changed while it runs.

The law: an auto-save never raises into the scheduler and never stops because one save failed;
what fails is reported, and the next beat tries again. With no scheduler given, a background
thread is started on `enable` and ended on `disable`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.clock import Handle, Scheduler, ThreadScheduler
from pytest_statepersist.reference.errors import ValidationError

__all__ = ["AutoSaver"]


@checked
class AutoSaver:
    """Calls ``save`` at an interval; ``on_error`` gets what it raises."""

    def __init__(
        self,
        save: Callable[[], object],
        on_error: Callable[[Exception], object],
        scheduler: Scheduler | None = None,
    ) -> None:
        self._save = save
        self._on_error = on_error
        self._given = scheduler
        self._own: ThreadScheduler | None = None
        self._handle: Handle | None = None
        self._interval: float | None = None
        self._lock = threading.Lock()

    @property
    def interval(self) -> float | None:
        """Seconds between two saves; None while it is off."""
        return self._interval

    def enable(self, interval_s: float) -> None:
        """Save each ``interval_s`` seconds, first after one interval; replaces an older beat.

        Raises `ValidationError` for an interval that is not positive.
        """
        if not interval_s > 0:
            raise ValidationError("interval", f"{interval_s!r} seconds; it must be positive")
        with self._lock:
            self._cancel()
            if self._given is None and self._own is None:
                self._own = ThreadScheduler()
            scheduler = self._given or self._own
            assert scheduler is not None
            self._handle = scheduler.every(interval_s, self._beat)
            self._interval = interval_s

    def disable(self) -> None:
        """Stop saving; a save that runs in the background is waited for."""
        with self._lock:
            self._cancel()
            own, self._own = self._own, None
        if own is not None:
            own.stop()

    def _cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
        self._interval = None

    def _beat(self) -> None:
        try:
            self._save()
        except Exception as error:
            self._on_error(error)
