"""The headline figures of file stores and state snapshots, measured.

Run: ``pytest benchmarks/bench_reference_abc.py --benchmark-only``. Every figure is taken
twice: ``durable`` with all syncs, as the code is, and ``no-fsync`` with `os.fsync` replaced by
nothing, because figures published elsewhere usually leave them out. Both stand side by side;
the durable one is what a user pays.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.reference.component_registry import ComponentRecord, DirectoryRegistry
from pytest_statepersist.reference.file_store import FileStore
from pytest_statepersist.reference.items import (
    Conversation,
    FocusChain,
    FocusItem,
    Item,
    Message,
    Role,
    Session,
)
from pytest_statepersist.reference.snapshot_transfer import export_state, import_state
from pytest_statepersist.reference.state_snapshot import Policy

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)

# What the figures were elsewhere, in seconds, for the comparison in the report.
CLAIMED = {
    "session": 0.001,
    "conversation": 0.002,
    "focus": 0.001,
    "backup": 0.010,
    "restore": 0.010,
}


@pytest.fixture(params=["durable", "no-fsync"])
def syncing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no-fsync":
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    mode: str = request.param
    return mode


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    with FileStore(tmp_path / "store") as opened:
        yield opened


def session(number: int = 0) -> Session:
    state = {f"setting {n}": ["value", n] for n in range(20)}
    return Session(id="s", title=str(number), created_at=NOON, updated_at=NOON, state=state)


def conversation(number: int = 0) -> Conversation:
    messages = tuple(
        Message(role=Role.USER, content=f"message {n} of some words", created_at=NOON)
        for n in range(100)
    )
    return Conversation(
        id="c", title=str(number), created_at=NOON, updated_at=NOON, messages=messages
    )


def focus(number: int = 0) -> FocusChain:
    items = tuple(FocusItem(text=f"thing {n} to look at") for n in range(10))
    return FocusChain(id="f", name=str(number), created_at=NOON, updated_at=NOON, items=items)


MAKERS: dict[str, Callable[[int], Item]] = {
    "session": session,
    "conversation": conversation,
    "focus": focus,
}


@pytest.mark.parametrize("kind", list(MAKERS))
def test_save(benchmark: Any, store: FileStore, syncing: str, kind: str) -> None:
    numbers = itertools.count()

    def fresh() -> tuple[tuple[Item], dict[str, object]]:
        return (MAKERS[kind](next(numbers)),), {}  # another value each time: never skipped

    benchmark.extra_info |= {"claimed_s": CLAIMED[kind], "syncing": syncing}
    benchmark.pedantic(store.save, setup=fresh, rounds=200, warmup_rounds=5)
    size = next(store.root.glob(f"*/{kind[0]}.json")).stat().st_size
    benchmark.extra_info["bytes"] = size


@pytest.mark.parametrize("kind", list(MAKERS))
def test_load(benchmark: Any, store: FileStore, kind: str) -> None:
    item = MAKERS[kind](0)
    store.save(item)
    benchmark.extra_info["claimed_s"] = CLAIMED[kind]
    loaded = benchmark(store.load, type(item), item.id)
    assert loaded == item


def hundred(store: FileStore) -> FileStore:
    for number in range(100):
        store.save(session(number).model_copy(update={"id": f"s{number}"}))
    return store


def test_backup_of_100_files(
    benchmark: Any, store: FileStore, syncing: str, tmp_path: Path
) -> None:
    hundred(store)
    numbers = itertools.count()
    benchmark.extra_info |= {"claimed_s": CLAIMED["backup"], "syncing": syncing}
    benchmark.pedantic(
        store.backup, setup=lambda: ((tmp_path / f"b{next(numbers)}",), {}), rounds=10
    )


def test_a_plain_copy_of_100_files_for_comparison(
    benchmark: Any, store: FileStore, tmp_path: Path
) -> None:
    """What the claimed figure did: copy, no checksum, no sync, not atomic."""
    hundred(store)
    numbers = itertools.count()
    benchmark.extra_info["claimed_s"] = CLAIMED["backup"]
    benchmark.pedantic(
        shutil.copytree,
        setup=lambda: ((store.root, tmp_path / f"c{next(numbers)}"), {}),
        rounds=10,
    )


def test_restore_of_100_files(
    benchmark: Any, store: FileStore, syncing: str, tmp_path: Path
) -> None:
    hundred(store).backup(tmp_path / "backup")
    benchmark.extra_info |= {"claimed_s": CLAIMED["restore"], "syncing": syncing}
    benchmark.pedantic(store.restore, args=(tmp_path / "backup",), rounds=10)


def test_save_all_with_nothing_changed(benchmark: Any, store: FileStore) -> None:
    """The usual auto-save: 100 items looked at, none written."""
    from pytest_statepersist.reference.managers import SessionManager

    manager = SessionManager()
    for number in range(100):
        manager.put(session(number).model_copy(update={"id": f"s{number}"}))
    store.attach(sessions=manager)
    store.save_all()
    report = benchmark(store.save_all)
    assert report.written == ()


def registry(root: Path, count: int) -> DirectoryRegistry:
    made = DirectoryRegistry(root)
    made.apply(
        ComponentRecord(
            component_id=f"component-{n}",
            source_uri=f"oci://registry.example.org/component-{n}:latest",
            metadata={
                "tools": [
                    {"name": f"tool-{t}", "description": "does one thing and does it well"}
                    for t in range(4)
                ]
            },
            policy=Policy(
                content="network:\n  allow:\n    - host: api.example.org\n", created_at=1
            ),
            binary=b"\0asm" + bytes(1000),
        )
        for n in range(count)
    )
    return made


def test_export_of_100_components(benchmark: Any, tmp_path: Path) -> None:
    made = registry(tmp_path, 100)
    snapshot = benchmark(export_state, made)
    size = len(snapshot.to_json()) / 100
    benchmark.extra_info |= {"bytes_per_component": size, "claimed_bytes": 1024}
    assert size < 1200


def test_import_of_100_components(benchmark: Any, syncing: str, tmp_path: Path) -> None:
    snapshot = export_state(registry(tmp_path / "a", 100))
    target = DirectoryRegistry(tmp_path / "b")
    benchmark.extra_info["syncing"] = syncing
    assert benchmark.pedantic(import_state, args=(target, snapshot), rounds=5) == 100
