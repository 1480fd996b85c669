"""What a store tells whoever listens: saved, loaded, went wrong.

The law: a listener can watch but not interfere. Events are delivered after the store's lock
was released, in order; a listener that raises is logged, and neither the others nor the
operation that caused the event notice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.serializers import Format

__all__ = ["ErrorInfo", "EventHub", "LoadInfo", "SaveInfo"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SaveInfo:
    """A durable save: of one item (its file) or of many (the store's root).

    ``bytes`` and ``items`` count what was written; what had not changed was not.
    """

    path: Path
    format: Format | str
    bytes: int
    time: datetime
    items: int


@dataclass(frozen=True, slots=True)
class LoadInfo:
    """A load: of one item (its file) or of many (the store's root)."""

    path: Path
    format: Format | str
    bytes: int
    time: datetime
    items: int


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """Something that went wrong with ``path``; ``quarantined`` is where a damaged file is now."""

    path: Path
    error: Exception
    time: datetime
    quarantined: Path | None = None


Event = SaveInfo | LoadInfo | ErrorInfo


@checked
class EventHub:
    """The listeners of one store."""

    def __init__(self) -> None:
        self._save: list[Callable[[SaveInfo], object]] = []
        self._load: list[Callable[[LoadInfo], object]] = []
        self._error: list[Callable[[ErrorInfo], object]] = []

    def on_save(self, listener: Callable[[SaveInfo], object]) -> None:
        """Call ``listener`` after each save."""
        self._save.append(listener)

    def on_load(self, listener: Callable[[LoadInfo], object]) -> None:
        """Call ``listener`` after each load."""
        self._load.append(listener)

    def on_error(self, listener: Callable[[ErrorInfo], object]) -> None:
        """Call ``listener`` for each thing that went wrong."""
        self._error.append(listener)

    def emit(self, event: Event) -> None:
        """Deliver one event."""
        match event:
            case SaveInfo():
                self._deliver([(listener, event) for listener in self._save])
            case LoadInfo():
                self._deliver([(listener, event) for listener in self._load])
            case ErrorInfo():
                self._deliver([(listener, event) for listener in self._error])

    def _deliver(self, calls: Sequence[tuple[Callable[..., object], Event]]) -> None:
        for listener, event in calls:
            try:
                listener(event)
            except Exception:
                _log.exception("a listener failed on %r", event)
