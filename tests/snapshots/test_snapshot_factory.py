"""What the factory makes loads and depends on the seed alone; what it breaks never loads."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.errors import UserError
from pytest_statepersist.reference.errors import PersistenceError
from pytest_statepersist.snapshots import SnapshotDamage, SnapshotFactory, SnapshotKind
from pytest_statepersist.snapshots.making import ENCRYPTED, NOW

CHOICES = [(kind, encrypted) for kind, choices in ENCRYPTED.items() for encrypted in choices]


@pytest.mark.parametrize(("kind", "encrypted"), CHOICES)
def test_loads_what_it_made_and_the_seed_decides(
    factory: SnapshotFactory, kind: SnapshotKind, encrypted: bool
) -> None:
    one, same, other = (
        factory(kind, encrypted=encrypted, seed=seed, age=timedelta(days=3)) for seed in (1, 1, 2)
    )
    assert one.load() == one.value
    if kind is SnapshotKind.DATABASE:  # its id is drawn by the store
        assert one.value.state == same.value.state != other.value.state
    else:
        assert one.value == same.value != other.value
    assert one.created_at == NOW - timedelta(days=3)
    assert one.path.is_file()
    assert one.directory != same.directory


@pytest.mark.parametrize("size", [0, 1, 20_000])
@pytest.mark.parametrize("kind", list(SnapshotKind))
def test_the_size_is_that_of_the_payload(
    factory: SnapshotFactory, kind: SnapshotKind, size: int
) -> None:
    made = factory(kind, size=size)
    assert made.load() == made.value
    assert made.path.stat().st_size >= size


@pytest.mark.parametrize("damage", list(SnapshotDamage))
@pytest.mark.parametrize("kind", list(SnapshotKind))
def test_a_broken_one_never_loads(
    factory: SnapshotFactory, kind: SnapshotKind, damage: SnapshotDamage
) -> None:
    if (kind, damage) == (SnapshotKind.DATABASE, SnapshotDamage.APPENDED):
        with pytest.raises(UserError, match="as many pages"):
            factory(kind, damage=damage)
        return
    for seed in range(3):
        broken = factory(kind, damage=damage, seed=seed)
        with pytest.raises(PersistenceError):
            broken.load()


def test_an_encrypted_one_hides_its_payload(factory: SnapshotFactory) -> None:
    plain = factory("session", encrypted=False, seed=5)
    sealed = factory("session", encrypted=True, seed=5)
    assert plain.value == sealed.value
    payload = str(plain.value.state["notes"])[:20].encode()
    assert payload in plain.path.read_bytes()
    assert payload not in sealed.path.read_bytes()


def test_the_age_is_told_by_the_snapshot_itself(factory: SnapshotFactory) -> None:
    assert factory("database", age=timedelta(days=31)).value.timestamp == NOW - timedelta(days=31)
    assert factory("session", age=timedelta(days=31)).value.created_at == NOW - timedelta(days=31)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "nonsense"}, "choose from 'state', "),
        ({"damage": "nonsense"}, "choose from 'missing', "),
        ({"size": -1}, "0 bytes or more"),
        ({"kind": "vault", "encrypted": False}, "never plain"),
        ({"kind": "database", "encrypted": True}, "never encrypted"),
    ],
)
def test_what_cannot_be_is_refused(
    factory: SnapshotFactory, arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        factory(**arguments)  # type: ignore[arg-type]


def test_works_under_given(factory: SnapshotFactory) -> None:
    @settings(max_examples=10, deadline=None)
    @given(st.sampled_from(["session", "state", "envelope"]), st.integers(0, 300))
    def check(kind: str, size: int) -> None:
        made = factory(kind, size=size)
        assert made.load() == made.value

    check()


def test_the_fixture_gives_a_factory(snapshot_factory: SnapshotFactory) -> None:
    made = snapshot_factory("session", damage="flipped")
    with pytest.raises(PersistenceError):
        made.load()
