"""The identity file: readable, private, signed."""

from __future__ import annotations

import hashlib
import json
import stat
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.errors import (
    DamagedData,
    IntegrityError,
    NewerVersion,
    NotFound,
    PersistenceError,
    ValidationError,
)
from pytest_statepersist.reference.identity import Identity, load_identity, save_identity
from pytest_statepersist.reference.message_protection import new_signature_key
from tests.reference.kill_points import each_kill_point

KEY = new_signature_key()
CLOCK = ManualClock(datetime(2025, 3, 1, 12, tzinfo=UTC))


def test_it_holds_id_name_and_fingerprint_and_comes_back(ram_path: Path) -> None:
    path = ram_path / "identity.json"
    made = Identity.create("Алиса 🐼", KEY, CLOCK)
    save_identity(path, made)
    assert load_identity(path) == made
    content = json.loads(path.read_text())
    assert uuid.UUID(content["user_id"]).version == 4
    assert content["display_name"] == "Алиса 🐼"
    assert content["fingerprint"] == hashlib.sha256(KEY.public_key).hexdigest()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KEY.private_key.hex() not in path.read_text()


def test_a_new_name_keeps_the_rest(ram_path: Path) -> None:
    made = Identity.create("Alice", KEY, CLOCK)
    renamed = made.renamed("Alicia", KEY)
    renamed.check()
    assert (renamed.user_id, renamed.fingerprint) == (made.user_id, made.fingerprint)
    assert renamed.signature != made.signature


@pytest.mark.parametrize("field", ["user_id", "display_name", "created_at", "fingerprint"])
def test_an_edited_file_is_noticed(ram_path: Path, field: str) -> None:
    path = ram_path / "identity.json"
    save_identity(path, Identity.create("Alice", KEY, CLOCK))
    other = Identity.create("Mallory", new_signature_key(), ManualClock())
    content = json.loads(path.read_text())
    content[field] = other.model_dump(mode="json")[field]
    path.write_text(json.dumps(content))
    with pytest.raises(IntegrityError):
        load_identity(path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"version": 1}', b"\xff", b"[" * 9999])
def test_damaged_files_are_damaged(ram_path: Path, data: bytes) -> None:
    path = ram_path / "identity.json"
    path.write_bytes(data)
    with pytest.raises(DamagedData):
        load_identity(path)


def test_absent_and_newer_files_have_errors_of_their_own(ram_path: Path) -> None:
    path = ram_path / "identity.json"
    with pytest.raises(NotFound):
        load_identity(path)
    path.write_text('{"version": 2, "anything": true}')
    with pytest.raises(NewerVersion):
        load_identity(path)


@pytest.mark.parametrize("name", ["", "   ", "x" * 101, "two\nlines", "\ud800"])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        Identity.create(name, KEY, CLOCK)


def test_a_kill_at_any_call_leaves_one_of_both(ram_path: Path) -> None:
    path = ram_path / "identity.json"
    old, new = (Identity.create(name, KEY, CLOCK) for name in ("Old", "New"))

    def make() -> Callable[[], None]:
        save_identity(path, old)
        return lambda: save_identity(path, new)

    def after() -> None:
        assert load_identity(path) in (old, new)

    assert each_kill_point(make, after) >= 6


def test_keys_that_are_not_hexadecimal_are_damage() -> None:
    bad = Identity.create("A", KEY, CLOCK).model_copy(update={"public_key": "zz"})
    with pytest.raises(PersistenceError, match="hexadecimal"):
        bad.check()
