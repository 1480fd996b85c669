"""What is drawn is what it claims to be, and shrinks to the simplest."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from pytest_statepersist import CrashSimulator, Trace
from pytest_statepersist.clock import StateClock
from pytest_statepersist.core.models import MODELS, Model
from pytest_statepersist.core.states import allows
from pytest_statepersist.reference.items import Conversation, FocusChain, Session
from pytest_statepersist.snapshots import MadeSnapshot
from pytest_statepersist.strategies import (
    Crash,
    Save,
    clock_moves,
    clocks,
    crash_states,
    documents,
    histories,
    hostile_names,
    json_values,
    keys,
    snapshots,
    tamperings,
)
from pytest_statepersist.tamper import Damage, Tampering

QUICK = settings(max_examples=60, deadline=None, database=None)
MANY = settings(max_examples=3000, database=None)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    directory = tmp_path_factory.mktemp("recorded")
    (directory / "old").write_bytes(b"o" * 5000)
    with CrashSimulator(recorder="python").record(directory) as recording:
        with open(directory / "a.tmp", "wb") as file:
            file.write(b"n" * 9000)
        os.rename(directory / "a.tmp", directory / "a")
        with open(directory / "b", "wb") as file:
            file.write(b"b")
            file.flush()
            os.fsync(file.fileno())
        os.unlink(directory / "old")
    return recording.trace


@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_drawn_crash_is_legal(trace: Trace, model: str) -> None:
    @QUICK
    @given(crash_states(trace, model))
    def check(crash: Crash) -> None:
        tree = crash.disk.tree(crash.state)
        assert allows(trace, crash.model, tree, at=crash.point)

    check()


def test_a_crash_shrinks_to_the_end_and_to_the_fewest_losses(trace: Trace) -> None:
    def renamed_and_empty(crash: Crash) -> bool:
        tree = crash.disk.tree(crash.state)
        return "a" in {path for path, _, _ in tree.walk()} and tree.read("a") != b"n" * 9000

    found = find(crash_states(trace), renamed_and_empty, settings=settings(database=None))
    assert found.state.deviations == 1
    assert len(found.lost) == 1
    simplest = find(crash_states(trace), lambda crash: True, settings=settings(database=None))
    assert (simplest.point, simplest.lost) == (len(trace), ())


def test_torn_and_half_done_operations_are_drawn(trace: Trace) -> None:
    def half(crash: Crash) -> bool:
        tree = crash.disk.tree(crash.state)
        names = {path for path, _, _ in tree.walk()}
        name = "a" if "a" in names else "a.tmp"
        return name in names and 0 < tree.read(name).count(b"n") < 9000

    # One draw in 23 is one: to miss all of 1,000 is a matter of 10^-19.
    assert find(crash_states(trace), half, settings=settings(database=None, max_examples=1000))


@QUICK
@given(json_values(), documents())
def test_values_are_json(value: object, document: dict[str, object]) -> None:
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert json.loads(json.dumps(document, allow_nan=False)) == document


@QUICK
@given(histories())
def test_histories_delete_only_what_is_there(history: tuple[Save, ...]) -> None:
    there: set[str] = set()
    for step in history:
        if step.value is None:
            assert step.key in there
            there.remove(step.key)
        else:
            there.add(step.key)


def test_names_are_plain_or_hostile() -> None:
    @QUICK
    @given(keys())
    def plain(key: str) -> None:
        assert key.isascii()
        assert key
        assert not set(key) & set("/\\.\0 ")

    plain()
    for wanted in ("..", "a\0b", "b" * 255):
        assert find(hostile_names(), lambda n, w=wanted: n == w, settings=MANY)


def test_clocks_move_and_misbehave() -> None:
    @QUICK
    @given(clocks(), st.lists(clock_moves(), max_size=4))
    def moves(clock: StateClock, some: list[object]) -> None:
        with clock:
            before, wall = clock.monotonic(), clock.now()
            expected = wall
            for move in some:
                move.apply(clock)  # type: ignore[attr-defined]
                expected += move.passes + move.steps  # type: ignore[attr-defined]
            assert clock.monotonic() >= before
            assert clock.now() == expected

    moves()
    back = find(
        clock_moves(), lambda m: m.steps.total_seconds() < 0, settings=settings(database=None)
    )
    assert not back.passes


FILES = {"one": bytes(range(200)), "two": b"second" * 30}
OLDER = ({"one": b"first" * 20, "two": b"second" * 30},)


@pytest.mark.parametrize("kind", Damage)
def test_every_kind_of_damage_is_drawn_and_changes_something(kind: Damage) -> None:
    @settings(QUICK, max_examples=15)
    @given(tamperings(FILES, older=OLDER, kinds=[kind]))
    def check(done: Tampering) -> None:
        assert done.damage is kind
        assert any(FILES.get(name) != data for name, data in done.files.items())

    check()


def test_snapshots_load_as_what_they_are(tmp_path: Path) -> None:
    @settings(QUICK, max_examples=8)
    @given(snapshots(tmp_path))
    def check(made: MadeSnapshot) -> None:
        assert made.path.exists()
        assert made.load() == made.value

    check()


@settings(QUICK, max_examples=10)
@given(
    st.from_type(Session), st.from_type(Conversation), st.from_type(FocusChain),
    st.from_type(Model),
)  # fmt: skip
def test_types_are_registered(
    session: Session, conversation: Conversation, chain: FocusChain, model: Model
) -> None:
    assert session.id
    assert conversation.id
    assert chain.id
    assert model.name in MODELS
