"""The search grows with the trace and not with its square; and what it must find and must not.

Counts, not times: a slow machine fails none of these.
"""

from __future__ import annotations

import pytest

from pytest_statepersist.core.models import MODELS, Model
from pytest_statepersist.core.states import allows, count_states, crash_states, disk_of, roots
from pytest_statepersist.core.tree import Tree
from tests.core.oracle import Oracle
from tests.core.traces import Workload

EVERY = pytest.mark.parametrize("model", MODELS.values(), ids=str)


def value(number: int) -> bytes:
    return f"{number:04}".encode() * 1200


def saves(count: int, *, sync: bool = True, temporary: str = "t") -> Workload:
    w = Workload({"f": value(0)})
    for number in range(1, count + 1):
        w.save("f", value(number), sync=sync, temporary=temporary.format(number))
    return w


def work(workload: Workload, model: Model) -> tuple[int, int]:
    """Return how many choices the search starts from, and how many effects their windows hold."""
    found = list(roots(disk_of(workload.trace, model), returning=1))
    return len(found), sum(len(choice.window.ids) for choice in found)


@EVERY
@pytest.mark.parametrize("temporary", ["t", "t{}"])
def test_work_grows_with_the_number_of_saves(model: Model, temporary: str) -> None:
    numbers = (10, 50, 250)
    for few, more, most in zip(
        *(work(saves(n, temporary=temporary), model) for n in numbers), strict=True
    ):
        assert more <= 5 * few
        # Equal steps, so that a square hidden behind a small factor shows as well.
        assert most - more <= 5 * (more - few) + few


@EVERY
def test_ten_correct_saves_never_lose_an_acknowledged_value(model: Model) -> None:
    """Each save is four calls that sync, and a write: after the fifth the value is promised."""
    workload = saves(10)
    trace, disk = workload.trace, disk_of(workload.trace, model)
    seen = set()
    for state in crash_states(trace, model):
        tree = disk.tree(state)
        assert "f" in tree
        number = int(tree.read("f")[:4])
        assert tree.read("f") == value(number)
        seen.add(number)
        for first, last in state.points:
            assert first // 5 <= number, "an acknowledged value was lost"
            assert last // 5 <= number, "an acknowledged value was lost"
            assert number <= first // 5 + 1
    assert seen == set(range(11))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "kill"])
def test_two_files_without_a_sync_are_both_lost_after_an_acknowledgement(name: str) -> None:
    w = Workload({"a": b"0" * 4096, "b": b"0" * 4096})
    w.write("a", 0, b"1" * 4096).write("b", 0, b"1" * 4096)
    model, disk = MODELS[name], disk_of(w.trace, MODELS[name])
    lost = [
        state
        for state in crash_states(w.trace, model)
        if disk.tree(state) == w.base and state.points[-1][1] == len(w)
    ]
    assert min(state.deviations for state in lost) == 0
    one = [
        state.deviations
        for state in crash_states(w.trace, model)
        if disk.tree(state).read("a")[:1] == b"0" and disk.tree(state).read("b")[:1] == b"1"
    ]
    assert min(one) == 1


@EVERY
def test_unsynced_files_do_not_make_membership_or_counting_explode(model: Model) -> None:
    w = Workload({f"f{n}": b"0" * 4096 for n in range(40)})
    for n in range(40):
        w.write(f"f{n}", 0, b"1" * 4096)
    states = count_states(w.trace, model)
    assert states == (41 if model.page_cache_survives else 2**40)
    half = Tree.from_mapping({f"f{n}": b"01"[n % 2 : n % 2 + 1] * 4096 for n in range(40)})
    assert allows(w.trace, model, half) is not model.page_cache_survives
    wrong = Tree.from_mapping({f"f{n}": b"2" * 4096 for n in range(40)})
    assert not allows(w.trace, model, wrong)


@pytest.mark.parametrize("model", [m for m in MODELS.values() if not m.reuse_freed_blocks], ids=str)
def test_saves_without_a_sync_leave_few_trees_more_each(model: Model) -> None:
    """What is chained on one name and its blocks adds the same number of trees every time."""

    def trees(count: int) -> set[Tree]:
        trace = saves(count, sync=False).trace
        disk = disk_of(trace, model)
        return {disk.tree(state) for state in crash_states(trace, model)}

    numbers = [len(trees(count)) for count in (6, 7, 8)]
    assert numbers[2] - numbers[1] == numbers[1] - numbers[0] > 0
    oracle = Oracle(saves(2, sync=False).trace, model)
    assert trees(2) == {tree for point in range(7) for tree in oracle.trees(point)}
