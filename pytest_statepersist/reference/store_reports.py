"""What saving and loading everything came to.

The law: nothing is left out. Whatever an attached manager or the directory held is in one of the
tuples, as done, as not needed, or as failed and why.
"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_statepersist.reference.items import Conversation, FocusChain, Session
from pytest_statepersist.reference.store_events import ErrorInfo

__all__ = ["LoadReport", "SaveReport"]


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What `FileStore.save_all` did: places written, places that had not changed, failures.

    Written and unchanged items are durable. Each failure was also given to ``on_error``.
    """

    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    failed: tuple[ErrorInfo, ...]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What `FileStore.load_all` found: all readable items, and what could not be read."""

    sessions: tuple[Session, ...]
    conversations: tuple[Conversation, ...]
    focus_chains: tuple[FocusChain, ...]
    failed: tuple[ErrorInfo, ...]
