"""Several files in one step: all or none after a kill at any call, in recovery too."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_statepersist.reference.atomic import create_temporary
from pytest_statepersist.reference.errors import (
    DamagedData,
    IntegrityError,
    NewerVersion,
    StorageError,
    ValidationError,
)
from pytest_statepersist.reference.transaction import JOURNAL_NAME, Transaction, recover
from tests.reference.kill_points import Killed, counting, each_kill_point, tree, without_syncing


@pytest.fixture(scope="module", autouse=True)
def _no_power_loss() -> Iterator[None]:
    with without_syncing():
        yield


DIRECTORIES = (".", "a", "b")
OLD = {"a/1": b"old 1", "a/2": b"old 2", "b/gone": b"old"}
NEW = {"a/1": b"new 1", "a/2": b"new 2", "b/3": b"new 3"}


@pytest.fixture
def start(tmp_path: Path) -> Callable[[], Path]:
    root = tmp_path / "store"

    def make() -> Path:
        shutil.rmtree(root, ignore_errors=True)
        for path, data in OLD.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
        return root

    return make


def change(root: Path) -> None:
    transaction = Transaction(root)
    for path, data in NEW.items():
        transaction.put(path, data)
    transaction.delete("b/gone")
    assert len(transaction) == 4
    transaction.commit()


def test_makes_all_changes_and_leaves_nothing_else(start: Callable[[], Path]) -> None:
    root = start()
    change(root)
    assert tree(root) == NEW
    assert recover(root, DIRECTORIES) is False


def test_the_last_word_about_a_path_counts(start: Callable[[], Path]) -> None:
    root = start()
    transaction = Transaction(root)
    transaction.put("a/1", b"x")
    transaction.delete("a/1")
    transaction.delete("a/2")
    transaction.put("a/2", b"back")
    transaction.commit()
    assert tree(root) == {"a/2": b"back", "b/gone": b"old"}


def test_a_kill_at_any_call_leaves_all_or_nothing(
    start: Callable[[], Path], tmp_path: Path
) -> None:
    root = tmp_path / "store"
    seen: list[dict[str, bytes]] = []

    def make() -> Callable[[], None]:
        start()
        return lambda: change(root)

    def after() -> None:
        recover(root, DIRECTORIES)
        seen.append(tree(root))

    points = each_kill_point(make, after)
    assert points > 20
    assert all(state in (OLD, NEW) for state in seen)
    assert seen[0] == OLD
    assert seen[-1] == NEW


def test_recovery_may_be_killed_at_any_call_too(start: Callable[[], Path]) -> None:
    root = start()
    with counting() as counter:
        change(root)
    for first in range(counter.made):
        second = 0
        while True:
            root = start()
            with counting(first), pytest.raises(Killed):
                change(root)
            with counting(second) as inner:
                try:
                    recover(root, DIRECTORIES)
                except Killed:
                    pass
            recover(root, DIRECTORIES)
            assert tree(root) in (OLD, NEW)
            if inner.made <= second:
                break
            second += 1


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace", "unlink"])
def test_an_error_at_any_call_is_all_or_nothing_after_recovery(
    start: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    number = 0
    while True:
        root = start()
        made = 0
        really = getattr(os, call)

        def failing(*args: object, _n: int = number, _really: object = really, **kw: object):  # type: ignore[no-untyped-def]
            nonlocal made
            made += 1
            if made == _n + 1:
                raise OSError(errno.EIO, "injected")
            return _really(*args, **kw)  # type: ignore[operator]

        failed = False
        with monkeypatch.context() as patched:
            patched.setattr(os, call, failing)
            try:
                change(root)
            except StorageError:
                failed = True
        recover(root, DIRECTORIES)
        assert tree(root) in (OLD, NEW)
        assert failed or tree(root) == NEW
        if made <= number:
            break
        number += 1
    assert number >= 1


def test_an_uncommitted_change_is_cleared_away(start: Callable[[], Path]) -> None:
    root = start()
    create_temporary(root / "a" / "1", b"half")
    assert recover(root, DIRECTORIES) is False
    assert tree(root) == OLD


@pytest.mark.parametrize(
    "path", ["../x", "/x", "a//b", "a/../b", "", ".", "a\0b", "a\\b", JOURNAL_NAME]
)
def test_paths_out_of_the_store_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValidationError, match="path"):
        Transaction(tmp_path).put(path, b"")
    with pytest.raises(ValidationError, match="path"):
        Transaction(tmp_path).delete(path)


def _journal(root: Path, content: object) -> None:
    body = json.dumps(content).encode()
    (root / JOURNAL_NAME).write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def test_a_tampered_journal_is_refused_and_nothing_is_touched(start: Callable[[], Path]) -> None:
    root = start()
    body = {"version": 1, "put": [], "delete": ["a/1"]}
    _journal(root, body)
    raw = bytearray((root / JOURNAL_NAME).read_bytes())
    raw[-5] ^= 1
    (root / JOURNAL_NAME).write_bytes(raw)
    before = tree(root)
    with pytest.raises(IntegrityError, match="journal"):
        recover(root, DIRECTORIES)
    assert tree(root) == before


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({"version": 2}, NewerVersion),
        ({}, DamagedData),
        ([], DamagedData),
        ({"version": 1, "put": [], "delete": ["../../etc/passwd"]}, DamagedData),
        ({"version": 1, "put": [["../evil", "a/1", ""]], "delete": []}, DamagedData),
        ({"version": 1, "put": [[1, 2]], "delete": []}, DamagedData),
    ],
)
def test_a_forged_journal_is_refused(
    start: Callable[[], Path], content: object, error: type[Exception]
) -> None:
    root = start()
    _journal(root, content)
    with pytest.raises(error):
        recover(root, DIRECTORIES)
    assert {k: v for k, v in tree(root).items() if k != JOURNAL_NAME} == OLD


def test_a_changed_or_missing_prepared_file_is_noticed(start: Callable[[], Path]) -> None:
    root = start()
    temporary = create_temporary(root / "a" / "new", b"tampered")
    digest = hashlib.sha256(b"original").hexdigest()
    _journal(root, {"version": 1, "put": [[temporary.name, "a/new", digest]], "delete": []})
    with pytest.raises(IntegrityError, match="a/new"):
        recover(root, DIRECTORIES)
    temporary.unlink()
    with pytest.raises(DamagedData, match="a/new"):
        recover(root, DIRECTORIES)
