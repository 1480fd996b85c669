"""Items for the file store's tests."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pytest_statepersist.reference.cipher import KdfCost
from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.file_store import FileStore, LoadReport
from pytest_statepersist.reference.items import (
    Conversation,
    FocusChain,
    FocusItem,
    Message,
    Role,
    Session,
)

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
CHEAP = KdfCost(memory_kib=8, iterations=1, lanes=1)


def session(name: str = "s1", title: str = "work") -> Session:
    return Session(id=name, title=title, created_at=NOON, updated_at=NOON, state={"n": [1, 2.5]})


def conversation(name: str = "c1", messages: int = 2, word: str = "hello") -> Conversation:
    return Conversation(
        id=name,
        created_at=NOON,
        updated_at=NOON,
        messages=tuple(
            Message(role=Role.USER, content=f"{word} {n}", created_at=NOON) for n in range(messages)
        ),
    )


def chain(name: str = "f1") -> FocusChain:
    item = FocusItem(text="look here")
    return FocusChain(id=name, created_at=NOON, updated_at=NOON, items=(item,))


def open_store(root: Path, **options: object) -> FileStore:
    return FileStore(root, clock=ManualClock(NOON), lock_timeout=5, **options)  # type: ignore[arg-type]


def content(report: LoadReport) -> dict[str, object]:
    items = (*report.sessions, *report.conversations, *report.focus_chains)
    return {f"{item.directory}/{item.id}": item for item in items}
