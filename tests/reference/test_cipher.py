"""Encryption at rest: bound to its place, wrong key and damage told apart, no plaintext left."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.reference.cipher import MAGIC, Cipher, KdfCost
from pytest_statepersist.reference.errors import (
    DamagedData,
    IntegrityError,
    PersistenceError,
    ValidationError,
    WrongPassword,
)
from pytest_statepersist.reference.file_store import FileStore
from pytest_statepersist.reference.items import Session
from pytest_statepersist.reference.store_codec import NotEncrypted
from tests.reference.kill_points import each_kill_point, tree, without_syncing
from tests.reference.store_helpers import CHEAP, content, conversation, open_store, session


@pytest.fixture(scope="module", autouse=True)
def _no_power_loss() -> Iterator[None]:
    with without_syncing():
        yield


KEY = b"k" * 32
CANARY = "canary-4f1c"


def test_round_trips_and_hides(tmp_path: Path) -> None:
    for cipher in (Cipher(KEY), Cipher.from_passphrase("pass", cost=CHEAP)):
        sealed = cipher.encrypt(CANARY.encode(), "place")
        assert cipher.decrypt(sealed, "place") == CANARY.encode()
        assert CANARY.encode() not in sealed
        assert len(sealed) == len(CANARY) + 68
        assert sealed != cipher.encrypt(CANARY.encode(), "place")  # a fresh nonce


def test_a_passphrase_opens_what_another_object_wrote() -> None:
    sealed = Cipher.from_passphrase("pass", cost=CHEAP).encrypt(b"x", "place")
    dearer = KdfCost(memory_kib=16, iterations=2, lanes=1)
    assert Cipher.from_passphrase("pass", cost=dearer).decrypt(sealed, "place") == b"x"


def test_nonces_never_repeat() -> None:
    cipher = Cipher(KEY)
    assert len({cipher.encrypt(b"", "p")[40:52] for _ in range(1000)}) == 1000


def test_the_errors_tell_wrong_key_from_damage() -> None:
    sealed = Cipher(KEY).encrypt(b"text", "place")
    with pytest.raises(WrongPassword):
        Cipher(b"x" * 32).decrypt(sealed, "place")
    with pytest.raises(WrongPassword, match="raw key"):
        Cipher.from_passphrase("pass", cost=CHEAP).decrypt(sealed, "place")
    with pytest.raises(WrongPassword, match="passphrase"):
        Cipher(KEY).decrypt(Cipher.from_passphrase("p", cost=CHEAP).encrypt(b"", "p"), "p")
    with pytest.raises(IntegrityError, match="another place"):
        Cipher(KEY).decrypt(sealed, "other place")
    for data in (b"", b"plain", MAGIC, sealed[:60]):
        with pytest.raises(DamagedData):
            Cipher(KEY).decrypt(data, "place")


@given(position=st.integers(0, 71), bit=st.integers(0, 7))
@settings(max_examples=100)
def test_every_flipped_bit_is_noticed(position: int, bit: int) -> None:
    sealed = bytearray(Cipher(KEY).encrypt(b"text", "place"))
    sealed[position] ^= 1 << bit
    with pytest.raises((DamagedData, WrongPassword)):
        Cipher(KEY).decrypt(bytes(sealed), "place")


def test_a_header_cannot_ask_for_all_memory() -> None:
    cipher = Cipher.from_passphrase("pass", cost=CHEAP)
    sealed = bytearray(cipher.encrypt(b"text", "place"))
    sealed[9:13] = struct.pack(">I", 0xFFFFFFFF)
    with pytest.raises(DamagedData, match="impossible"):
        cipher.decrypt(bytes(sealed), "place")


def test_bad_keys_and_costs_are_refused() -> None:
    with pytest.raises(ValidationError, match="32"):
        Cipher(b"short")
    with pytest.raises(ValidationError, match="empty"):
        Cipher.from_passphrase("")
    for cost in ((1, 1, 1), (8, 0, 1), (8, 1, 0), (1 << 30, 1, 1)):
        with pytest.raises(ValidationError):
            KdfCost(*cost)


# In the file store


def encrypted(root: Path, key: bytes = KEY) -> FileStore:
    return open_store(root, cipher=Cipher(key))


def test_an_encrypted_store_works_and_shows_nothing(tmp_path: Path) -> None:
    store = encrypted(tmp_path / "store")
    store.save(session("a", CANARY))
    store.save(conversation("c", 500, CANARY))
    assert store.save(session("a", CANARY)) is False  # incremental all the same
    assert encrypted(tmp_path / "store").load(Session, "a").title == CANARY
    store.backup(tmp_path / "backup")
    encrypted(tmp_path / "other").restore(tmp_path / "backup")
    assert not any(CANARY.encode() in data for data in tree(tmp_path).values())


def test_wrong_or_missing_key_is_an_error_that_harms_nothing(tmp_path: Path) -> None:
    encrypted(tmp_path).save(session())
    before = tree(tmp_path)
    for store in (encrypted(tmp_path, b"x" * 32), open_store(tmp_path)):
        with pytest.raises(WrongPassword):
            store.load(Session, "s1")
        with pytest.raises(WrongPassword):
            store.save(session())
        assert len(store.load_all().failed) == 1
        with pytest.raises(WrongPassword):
            store.rekey(Cipher(KEY))
    assert tree(tmp_path) == before


def test_files_exchanged_between_places_are_noticed(tmp_path: Path) -> None:
    store = encrypted(tmp_path)
    store.save(session("a"))
    store.save(session("b"))
    (tmp_path / "sessions/a.json").write_bytes((tmp_path / "sessions/b.json").read_bytes())
    with pytest.raises(IntegrityError):
        store.load(Session, "a")


def test_a_planted_plain_file_is_not_believed_nor_touched(tmp_path: Path) -> None:
    open_store(tmp_path).save(session())
    before = tree(tmp_path)
    with pytest.raises(NotEncrypted):
        encrypted(tmp_path).load(Session, "s1")
    with pytest.raises(NotEncrypted):
        encrypted(tmp_path).save(session())
    assert tree(tmp_path) == before


def test_rekey_encrypts_changes_and_removes_keys_in_one_step(tmp_path: Path) -> None:
    root = tmp_path / "store"
    ciphers = {"none": None, "first": Cipher(KEY), "second": Cipher(b"2" * 32)}
    items = {f"sessions/{name}": session(name, CANARY) for name in "abc"}

    def opened_by() -> set[str]:
        opening = set()
        for name, cipher in ciphers.items():
            report = open_store(root, cipher=cipher).load_all()
            if not report.failed:
                assert content(report) == items
                opening.add(name)
        return opening

    for old, new in (("none", "first"), ("first", "second"), ("second", "none")):
        seen = []

        def make(old: str = old, new: str = new):  # type: ignore[no-untyped-def]
            for leftover in root.glob("*/*.json"):
                leftover.unlink()
            store = open_store(root, cipher=ciphers[old])
            for item in items.values():
                store.save(item)
            return lambda: store.rekey(ciphers[new])

        def after(seen: list[set[str]] = seen) -> None:
            seen.append(opened_by())

        each_kill_point(make, after)
        assert all(state in ({old}, {new}) for state in seen)
        assert seen[-1] == {new}


def test_after_rekey_the_store_goes_on_with_the_new_key(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.save(session("a", CANARY))
    assert store.rekey(Cipher(KEY)) == 1
    store.save(session("b", CANARY))
    assert not any(CANARY.encode() in data for data in tree(tmp_path).values())
    assert encrypted(tmp_path).load(Session, "b").title == CANARY


@given(raw=st.binary(max_size=120))
@settings(max_examples=60)
def test_hostile_bytes_give_one_of_our_errors(raw: bytes) -> None:
    for data in (raw, MAGIC + raw):
        with pytest.raises(PersistenceError):
            Cipher(KEY).decrypt(data, "place")
