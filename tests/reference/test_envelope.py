"""The envelope: golden files, binding to header and group, nonces that never repeat."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pytest_statepersist.reference.cipher import KdfCost
from pytest_statepersist.reference.envelope import (
    HEADER_SIZE,
    MAGIC,
    OVERHEAD,
    VERSION,
    EnvelopeKey,
    Purpose,
)
from pytest_statepersist.reference.errors import (
    DamagedData,
    IntegrityError,
    NewerVersion,
    PersistenceError,
    ValidationError,
    WrongPassword,
)

GOLDEN = Path(__file__).parents[2] / "fixtures" / "envelope"
CHEAP = KdfCost(8, 1, 1)
KEY = bytes(range(32))


def seal(key: EnvelopeKey, plaintext: bytes = b"plain", context: bytes = b"group") -> bytes:
    return key.seal(plaintext, purpose=Purpose.SNAPSHOT, context=context)


def unseal(key: EnvelopeKey, data: bytes, context: bytes = b"group") -> bytes:
    return key.open(data, purpose=Purpose.SNAPSHOT, context=context)


def golden_cases() -> list[dict[str, str]]:
    cases: list[dict[str, str]] = json.loads((GOLDEN / "golden.json").read_text())["envelopes"]
    return cases


@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: case["file"])
def test_golden_files_open_for_ever(case: dict[str, str]) -> None:
    about = json.loads((GOLDEN / "golden.json").read_text())
    key = (
        EnvelopeKey(bytes.fromhex(about["raw_key_hex"]))
        if case["key_source"] == "raw"
        else EnvelopeKey.from_password(about["password"])
    )
    opened = key.open(
        (GOLDEN / case["file"]).read_bytes(),
        purpose=Purpose(case["purpose"]),
        context=bytes.fromhex(case["context_hex"]),
    )
    assert opened == bytes.fromhex(case["plaintext_hex"])


def test_every_golden_file_is_listed() -> None:
    assert {case["file"] for case in golden_cases()} == {p.name for p in GOLDEN.glob("*.mlss")}


def test_the_header_is_as_documented() -> None:
    data = seal(EnvelopeKey.from_password("pw", cost=CHEAP))
    assert data[:8] == MAGIC == b"MLSS0001"
    assert (data[8], data[9], data[10]) == (VERSION, Purpose.SNAPSHOT, 1)
    assert struct.unpack(">IHB", data[11:18]) == (8, 1, 1)
    assert len(data) == len(b"plain") + OVERHEAD == len(b"plain") + 70
    raw = seal(EnvelopeKey(KEY))
    assert (raw[10], raw[11:18]) == (0, bytes(7))


@given(plaintext=st.binary(max_size=200), context=st.binary(max_size=64))
@settings(max_examples=30, deadline=None)
def test_what_is_sealed_opens_again(plaintext: bytes, context: bytes) -> None:
    for key in (EnvelopeKey(KEY), EnvelopeKey.from_password("pw", cost=CHEAP)):
        sealed = seal(key, plaintext, context)
        assert unseal(key, sealed, context) == plaintext
        assert len(plaintext) < 8 or plaintext not in sealed


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_changed_bit_goes_unnoticed(data: st.DataObject) -> None:
    key = EnvelopeKey(KEY)
    sealed = bytearray(seal(key))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PersistenceError):
        unseal(key, bytes(sealed))


@pytest.mark.parametrize("length", [0, 7, 8, HEADER_SIZE, OVERHEAD - 1])
def test_a_cut_envelope_is_damaged(length: int) -> None:
    key = EnvelopeKey(KEY)
    with pytest.raises(DamagedData):
        unseal(key, seal(key)[:length])


def test_another_group_or_purpose_does_not_open_it() -> None:
    key = EnvelopeKey(KEY)
    sealed = seal(key)
    with pytest.raises(IntegrityError):
        unseal(key, sealed, b"another group")
    with pytest.raises(DamagedData, match="purpose 1"):
        key.open(sealed, purpose=Purpose.INDEX, context=b"group")
    forged = sealed[:9] + bytes([Purpose.INDEX]) + sealed[10:]
    with pytest.raises(IntegrityError):
        key.open(forged, purpose=Purpose.INDEX, context=b"group")


def test_a_wrong_key_is_told_from_damage() -> None:
    sealed = seal(EnvelopeKey.from_password("right", cost=CHEAP))
    with pytest.raises(WrongPassword, match="wrong password"):
        unseal(EnvelopeKey.from_password("wrong", cost=CHEAP), sealed)
    with pytest.raises(WrongPassword, match="sealed with a password"):
        unseal(EnvelopeKey(KEY), sealed)
    with pytest.raises(WrongPassword, match="sealed with a raw key"):
        unseal(EnvelopeKey.from_password("right"), seal(EnvelopeKey(KEY)))
    with pytest.raises(IntegrityError):
        unseal(
            EnvelopeKey.from_password("right", cost=CHEAP), sealed[:-1] + bytes([sealed[-1] ^ 1])
        )


def test_a_newer_version_is_refused_as_such() -> None:
    sealed = bytearray(seal(EnvelopeKey(KEY)))
    sealed[8] = VERSION + 1
    with pytest.raises(NewerVersion):
        unseal(EnvelopeKey(KEY), bytes(sealed))


def test_a_forged_cost_is_refused_before_it_is_paid() -> None:
    sealed = bytearray(seal(EnvelopeKey.from_password("pw", cost=CHEAP)))
    sealed[11:15] = b"\xff\xff\xff\xff"
    with pytest.raises(DamagedData, match="impossible"):
        unseal(EnvelopeKey.from_password("pw"), bytes(sealed))
    sealed[10] = 9
    with pytest.raises(DamagedData, match="key source"):
        unseal(EnvelopeKey.from_password("pw"), bytes(sealed))


def test_bad_keys_are_refused() -> None:
    with pytest.raises(ValidationError):
        EnvelopeKey(b"short")
    with pytest.raises(ValidationError):
        EnvelopeKey.from_password("")


def test_a_store_keeps_one_salt_unless_the_cost_has_changed() -> None:
    old = seal(EnvelopeKey.from_password("pw", cost=CHEAP))
    same = EnvelopeKey.from_password("pw", cost=CHEAP)
    unseal(same, old)
    assert seal(same)[18:34] == old[18:34]
    dearer = EnvelopeKey.from_password("pw", cost=KdfCost(16, 1, 1))
    unseal(dearer, old)
    assert seal(dearer)[11:15] == (16).to_bytes(4, "big")


class NoncesNeverRepeat(RuleBasedStateMachine):
    """Seals with old and new key objects in any order; a (key, nonce) pair appears once."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = [EnvelopeKey(KEY), EnvelopeKey.from_password("pw", cost=CHEAP)]
        self.sealed: list[bytes] = []

    @rule(password=st.booleans())
    def restart(self, password: bool) -> None:
        key = EnvelopeKey.from_password("pw", cost=CHEAP) if password else EnvelopeKey(KEY)
        for data in self.sealed:
            if (data[10] == 1) == password:
                unseal(key, data)
        self.keys.append(key)

    @rule(data=st.data(), plaintext=st.binary(max_size=4))
    def save(self, data: st.DataObject, plaintext: bytes) -> None:
        self.sealed.append(seal(data.draw(st.sampled_from(self.keys)), plaintext))

    @invariant()
    def no_pair_twice(self) -> None:
        pairs = [(data[18:34], data[42:54]) for data in self.sealed]
        assert len(set(pairs)) == len(pairs)
        assert len({nonce for _, nonce in pairs}) == len(pairs)


NoncesNeverRepeat.TestCase.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None
)
TestNoncesNeverRepeat = NoncesNeverRepeat.TestCase
