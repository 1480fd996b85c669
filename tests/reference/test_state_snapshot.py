"""The snapshot document: stable bytes, validation that names the field, checksums, signing."""

from __future__ import annotations

import base64
import gzip
import json
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.reference.errors import (
    DamagedData,
    DecompressionBomb,
    IntegrityError,
    NewerVersion,
    NotFound,
    PersistenceError,
    StorageError,
    ValidationError,
    WrongPassword,
)
from pytest_statepersist.reference.packing import Packing, packing_of
from pytest_statepersist.reference.snapshot_secrets import SecretsSealer
from pytest_statepersist.reference.snapshot_signing import sign, verify_signature
from pytest_statepersist.reference.state_snapshot import StateSnapshot
from tests.reference.kill_points import each_kill_point, without_syncing
from tests.reference.snapshot_helpers import CANARY, component, snapshot
from tests.reference.store_helpers import CHEAP


@pytest.fixture(scope="module", autouse=True)
def _no_power_loss() -> Iterator[None]:
    with without_syncing():
        yield


FIXTURE = Path(__file__).parents[2] / "fixtures/reference/state_snapshot_v1.json"


def test_round_trips() -> None:
    made = snapshot()
    assert StateSnapshot.from_json(made.to_json()) == made
    assert made.component("time") == component("time")
    assert made.component("nobody") is None


def test_the_document_is_the_documented_one() -> None:
    document = json.loads(snapshot("fetch").to_json())
    assert sorted(document) == ["components", "created_at", "metadata", "sha256", "version"]
    assert document["version"] == 1
    assert document["metadata"] == {
        "description": "before the release",
        "app_version": "1.2",
        "source": "ci",
        "tags": {"env": "dev"},
    }
    assert sorted(document["components"][0]) == [
        "binary", "binary_sha256", "component_id", "metadata", "policy", "source_uri",
    ]  # fmt: skip
    assert document["components"][0]["metadata"]["limits"]["note"] is None


def test_a_file_of_version_1_opens_for_ever() -> None:
    loaded = StateSnapshot.load(FIXTURE)
    assert loaded == snapshot("fetch", "time")
    assert loaded.to_json().encode() == FIXTURE.read_bytes()


def test_output_is_byte_stable_and_diffs_by_the_line() -> None:
    one = snapshot("a", "b")
    other = snapshot("b", "a")
    assert one.to_json() == other.to_json() == StateSnapshot.from_json(one.to_json()).to_json()
    changed = one.model_copy(
        update={"components": (component("a", source_uri="x://1"), component("b"))}
    )
    lines = [
        (a, b)
        for a, b in zip(one.to_json().splitlines(), changed.to_json().splitlines(), strict=True)
        if a != b
    ]
    assert len(lines) == 2  # the URI and the checksum


def test_a_component_is_about_a_kilobyte() -> None:
    bare = [component(name, binary=None) for name in ("one", "two")]
    size = len(snapshot(components=tuple(bare)).to_json()) - len(
        snapshot(components=(bare[0],)).to_json()
    )
    assert size < 1100


@pytest.mark.parametrize("packing", list(Packing))
def test_saves_and_loads_however_packed(tmp_path: Path, packing: Packing) -> None:
    path = tmp_path / "snapshot.json"
    snapshot().save(path, packing=packing)
    assert packing_of(path.read_bytes()) is packing
    assert StateSnapshot.load(path) == snapshot()
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(NotFound):
        StateSnapshot.load(tmp_path / "absent")
    with pytest.raises(StorageError):
        snapshot().save(tmp_path / "absent" / "x")


def test_a_kill_during_save_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    old, new = snapshot("a"), snapshot("a", "b")
    seen = []

    def make():  # type: ignore[no-untyped-def]
        old.save(path)
        return lambda: new.save(path)

    each_kill_point(make, lambda: seen.append(StateSnapshot.load(path)))
    assert all(state in (old, new) for state in seen)
    assert seen[-1] == new


def change(path: str, value: object) -> str:
    """Return a valid document with one field set (or, for `...`, removed)."""
    document = json.loads(snapshot().to_json())
    target: Any = document
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        target = target[part]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("version", ..., "version"),
        ("version", 0, "version"),
        ("version", "1", "version"),
        ("version", None, "version"),
        ("created_at", ..., "created_at"),
        ("created_at", -1, "created_at"),
        ("created_at", "now", "created_at"),
        ("created_at", 1.5, "created_at"),
        ("metadata", ..., "metadata"),
        ("components", ..., "components"),
        ("metadata", [], "metadata"),
        ("metadata.tags", {"a": 1}, "metadata.tags.a"),
        ("metadata.unknown", 1, "metadata.unknown"),
        ("unknown", 1, "unknown"),
        ("components", {}, "components"),
        ("components.1.component_id", ..., "components[1].component_id"),
        ("components.1.component_id", "fetch", "components[1].component_id"),
        ("components.1.component_id", "../x", "components[1].component_id"),
        ("components.1.component_id", "", "components[1].component_id"),
        ("components.1.component_id", 7, "components[1].component_id"),
        ("components.1.source_uri", ..., "components[1].source_uri"),
        ("components.1.source_uri", "", "components[1].source_uri"),
        ("components.0.policy.content", ..., "components[0].policy.content"),
        ("components.0.policy.created_at", "x", "components[0].policy.created_at"),
        ("components.0.binary", "not base64!", "components[0].binary"),
        ("components.0.binary_sha256", ..., "components[0].binary_sha256"),
        ("components.0.binary_sha256", "xyz", "components[0].binary_sha256"),
        ("components.0.secrets", "not base64!", "components[0].secrets"),
        ("sha256", ..., "sha256"),
    ],
)
def test_what_is_wrong_is_named(path: str, value: object, field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StateSnapshot.from_json(change(path, value))
    assert caught.value.field == field


def test_other_refusals() -> None:
    with pytest.raises(NewerVersion, match="version: 2"):
        StateSnapshot.from_json(change("version", 2))
    with pytest.raises(IntegrityError, match=r"components\[0\]\.binary"):
        StateSnapshot.from_json(change("components.0.binary", "AAAA"))
    with pytest.raises(IntegrityError, match="sha256"):
        StateSnapshot.from_json(change("components.0.source_uri", "oci://evil"))
    with pytest.raises(IntegrityError, match="sha256"):
        StateSnapshot.from_json(change("sha256", "0" * 64))
    for text in ("", "{", "\ud800", b"\xff", '{"version":1,"version":1}'):
        with pytest.raises(DamagedData):
            StateSnapshot.from_json(text)
    with pytest.raises(ValidationError, match="object"):
        StateSnapshot.from_json("[]")


def test_an_edit_by_hand_can_be_accepted_on_purpose() -> None:
    edited = change("components.0.source_uri", "oci://mirror")
    loaded = StateSnapshot.from_json(edited, verify=False)
    assert loaded.components[0].source_uri == "oci://mirror"
    assert StateSnapshot.from_json(loaded.to_json()) == loaded
    with pytest.raises(ValidationError):  # everything else is checked all the same
        StateSnapshot.from_json(change("components.0.binary_sha256", ...), verify=False)


def test_what_is_not_valid_is_not_saved(tmp_path: Path) -> None:
    for bad in (
        snapshot("a", "a"),
        snapshot(components=(component("../x"),)),
        snapshot().model_copy(update={"created_at": -5}),
        snapshot(components=(component("a", metadata={"x": float("nan")}),)),
    ):
        with pytest.raises(ValidationError):
            bad.save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_an_error_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    path.write_bytes(b"{")
    with pytest.raises(DamagedData, match=r"snapshot\.json"):
        StateSnapshot.load(path)
    path.write_text(change("version", 2))
    with pytest.raises(NewerVersion, match=r"snapshot\.json"):
        StateSnapshot.load(path)
    path.write_text(change("created_at", ...))
    with pytest.raises(ValidationError, match=r"snapshot\.json") as caught:
        StateSnapshot.load(path)
    assert caught.value.field == "created_at"


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(b" " * (32 << 20)))
    with pytest.raises(DecompressionBomb):
        StateSnapshot.load(path, limit=1 << 20)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=80)
def test_no_damage_goes_unnoticed(seed: int) -> None:
    source = random.Random(seed)
    original = snapshot().to_bytes(source.choice(list(Packing)))
    data = bytearray(original)
    for _ in range(source.randint(1, 3)):
        data[source.randrange(len(data))] = source.randrange(256)
    if bytes(data) == original:
        return
    try:
        loaded = StateSnapshot.from_bytes(bytes(data))
    except PersistenceError:
        return
    assert loaded == snapshot()  # white space, or the packing's own slack


# Secrets


def test_sealed_secrets_open_only_for_their_component_and_passphrase() -> None:
    sealer = SecretsSealer("pass", cost=CHEAP)
    sealed = sealer.seal("fetch", {"KEY": CANARY})
    assert CANARY not in sealed
    assert CANARY.encode() not in base64.b64decode(sealed)
    assert SecretsSealer("pass").open("fetch", sealed) == {"KEY": CANARY}
    with pytest.raises(WrongPassword):
        SecretsSealer("other").open("fetch", sealed)
    with pytest.raises(IntegrityError):
        sealer.open("time", sealed)
    with pytest.raises(DamagedData):
        sealer.open("fetch", "%%%")
    with pytest.raises(DamagedData):
        sealer.open("fetch", "")
    with pytest.raises(ValidationError):
        SecretsSealer("")


# Signatures


def test_a_signature_proves_who_and_what() -> None:
    key, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    signed = StateSnapshot.from_json(sign(snapshot(), key).to_json())
    trusted = [stranger.public_key(), key.public_key()]
    assert verify_signature(signed, trusted) == key.public_key()
    with pytest.raises(IntegrityError, match="trusted"):
        verify_signature(signed, [stranger.public_key()])
    with pytest.raises(ValidationError, match="not signed"):
        verify_signature(snapshot(), trusted)
    for update in (
        {"created_at": 1},
        {"components": ()},
        {"metadata": snapshot().metadata.model_copy(update={"source": "evil"})},
    ):
        with pytest.raises(IntegrityError, match="changed"):
            verify_signature(signed.model_copy(update=update), trusted)
    assert signed.signature is not None
    for update in ({"signature": "AAAA"}, {"public_key": "%"}):
        bad = signed.model_copy(update={"signature": signed.signature.model_copy(update=update)})
        with pytest.raises(ValidationError, match="signature"):
            verify_signature(bad, trusted)


def test_signing_again_replaces_and_signing_the_invalid_is_refused() -> None:
    first, second = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    twice = sign(sign(snapshot(), first), second)
    assert verify_signature(twice, [second.public_key()]) == second.public_key()
    with pytest.raises(IntegrityError):
        verify_signature(twice, [first.public_key()])
    with pytest.raises(ValidationError):
        sign(snapshot("a", "a"), first)
