"""Answers and narrowing by an `Asker` are those of the plain way, for every model and question."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.models import MODELS, Model
from pytest_statepersist.core.states import disk_of, expand, roots
from pytest_statepersist.core.window import Choice
from pytest_statepersist.explorer.observe import Read
from pytest_statepersist.explorer.questions import Asker, Memory, answer, cells_read
from tests.core.traces import traces

POSIX = MODELS["posix"]
EVERY = [*MODELS.values(), POSIX.with_options(tear=512), POSIX.with_options(names_return=True)]
PATHS = ("", "f", "g", "t", "n", "e", "d", "d/g", "d/f", "e/f", "missing", "f/below")
QUESTION = st.one_of(
    st.tuples(st.sampled_from(list(Read)), st.sampled_from(PATHS)),
    st.sampled_from(
        [
            ("whole disk", ""),
            ("names, sizes and attributes", ""),
            ("modification times of all files", ""),
        ]
    ),
)


def told(choice: Choice) -> tuple[Any, ...]:
    return (choice.window, choice.present, choice.absent, choice.ghosts, choice.returned)


@pytest.mark.parametrize("model", EVERY, ids=str)
def test_an_asker_answers_and_narrows_as_the_plain_way_does(model: Model) -> None:
    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(traces(most=6), st.lists(QUESTION, min_size=1, max_size=4, unique=True), st.randoms())
    def run(trace: op.Trace, asked: list[tuple[Any, str]], random: Any) -> None:
        disk = disk_of(trace, model)
        asker, bounded = Asker(disk), Asker(disk, 1)
        pending = list(roots(disk, returning=2))
        for _ in range(40):
            if not pending:
                break
            choice = pending.pop(random.randrange(len(pending)))
            state = choice.state()
            alike, others = expand(choice, cells_read(disk, state, tuple(asked)))
            asker.open(choice)
            for question in asked:
                assert asker.ask(question) == answer(disk, state, question)
            assert asker.ask_all(choice, tuple(asked)) == [asker.ask(q) for q in asked]
            assert told(asker.choice()) == told(alike)
            assert [*map(told, asker.others)] == [*map(told, others)]
            assert asker.choice().state().missing == state.missing
            bounded.open(choice)
            assert [bounded.ask(q) for q in asked] == [answer(disk, state, q) for q in asked]
            left = [each for group in bounded.beyond for each in group.choices()]
            assert all(each.deviations > 1 for each in left)
            assert {*map(told, bounded.others), *map(told, left)} == {*map(told, others)}
            assert len(bounded.others) + len(left) == len(others)
            # These know what was answered before they were split off.
            pending.extend(random.choice([asker.others, bounded.others]))

    run()


def test_what_is_remembered_is_found_by_equal_answers_only() -> None:
    memory = Memory()
    memory.remember(((Read.LIST, ""), (Read.CONTENT, "a")), ("names", b"1"), "one")
    memory.remember(((Read.LIST, ""), (Read.CONTENT, "a")), ("names", b"2"), "two")
    answers = {(Read.LIST, ""): "names", (Read.CONTENT, "a"): b"2"}
    assert memory.find(answers.__getitem__) == "two"
    assert memory.find({**answers, (Read.CONTENT, "a"): b"3"}.__getitem__) is None
    # After equal answers another question: such a run is not remembered.
    memory.remember(((Read.LIST, ""), (Read.CONTENT, "b")), ("names", b"2"), "three")
    assert memory.find(answers.__getitem__) == "two"
