"""The smallest history: what is left out makes no difference, what is kept does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.causes import Cause, short_lived
from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.diagnosis import (
    Diagnosis,
    diagnose,
    first_absent,
    is_in_order,
    legal_at,
)
from pytest_statepersist.core.models import MODELS, get_model
from pytest_statepersist.core.repairs import candidates, inserted
from pytest_statepersist.core.states import crash_states, disk_of
from pytest_statepersist.core.tree import File, Tree, read_content
from tests.core.traces import Workload, traces

Judge = Callable[[CrashState, int], bool]


def contents(tree: Tree) -> dict[str, bytes | None]:
    """Return what a reader sees under each path; ``None`` for a directory or a link."""
    return {
        path: read_content(node.content) if isinstance(node, File) else None
        for path, _, node in tree.walk()
    }


def judge_of(disk: Disk, wrong: Callable[[dict[str, bytes | None]], bool]) -> Judge:
    def judge(state: CrashState, point: int) -> bool:
        legal = any(begin <= point <= end for begin, end in state.points)
        return legal and wrong(contents(disk.tree(state)))

    return judge


def explain(
    workload: Workload,
    wrong: Callable[[dict[str, bytes | None]], bool],
    model: str = "posix",
    **told: bool,
) -> Diagnosis:
    """Diagnose the failing state that a search would meet last: the one with most missing."""
    disk = disk_of(workload.trace, get_model(model))
    judge = judge_of(disk, wrong)
    failing = [
        (state, begin)
        for state in crash_states(workload.trace, disk.model)
        for begin, _ in state.points
        if judge(state, begin)
    ]
    assert failing, "the workload has no such failure"
    state, point = max(failing, key=lambda each: (each[0].deviations, each[1]))
    return diagnose(disk, state, point, judge, **told)


# -- properties


@st.composite
def failures(draw: st.DrawFn) -> tuple[Disk, CrashState, int, Judge]:
    """A trace, one of its crash states, and a reader to whom a part of it looks wrong."""
    trace = draw(traces(most=4))
    model = get_model(draw(st.sampled_from(["posix", "ext4", "xfs"])))
    disk = disk_of(trace, model)
    states = list(crash_states(trace, model, limit=60))
    state = draw(st.sampled_from(states))
    begin, end = draw(st.sampled_from(state.points))
    seen = contents(disk.tree(state))
    names = sorted({path for each in states for path in contents(disk.tree(each))})
    read = draw(st.lists(st.sampled_from(names), unique=True)) if names else []

    def wrong(tree: dict[str, bytes | None]) -> bool:
        return all(
            (path in tree, tree.get(path)) == (path in seen, seen.get(path)) for path in read
        )

    return disk, state, draw(st.integers(begin, end)), judge_of(disk, wrong)


@settings(max_examples=80, deadline=None)
@given(failures())
def test_a_history_still_fails_and_is_never_larger(
    failure: tuple[Disk, CrashState, int, Judge],
) -> None:
    disk, state, point, judge = failure
    found = diagnose(disk, state, point, judge)
    assert judge(found.state, found.point)
    assert legal_at(disk, found.state, found.point)
    assert found.point <= point
    before = {disk.effects.effects[e].operation for e in state.missing} - {state.last}
    assert found.state.deviations <= len(before)
    assert (found.culprit is None) == (not disk.trace.operations)


@settings(max_examples=80, deadline=None)
@given(failures())
def test_nothing_that_is_missing_can_be_put_back(
    failure: tuple[Disk, CrashState, int, Judge],
) -> None:
    disk, state, point, judge = failure
    found = diagnose(disk, state, point, judge)
    end = disk.effects.first_of(found.state.last + 1)
    stop = disk.effects.first_of(found.point + 1)
    gone = {*found.state.missing, *range(end, stop)}
    for number in found.missing:
        back = {e for e in gone if disk.effects.effects[e].operation == number}
        todo = list(back)
        while todo:
            for needed in disk.effects.needs[todo.pop()]:
                if needed in gone and needed not in back:
                    back.add(needed)
                    todo.append(needed)
        left = frozenset(gone - back)
        last = max(disk.effects.effects[e].operation for e in range(stop) if e not in left)
        candidate = CrashState(
            last, frozenset(e for e in left if e < disk.effects.first_of(last + 1))
        )
        if not legal_at(disk, candidate, found.point):
            continue  # under a journal more has to come back with it
        candidate = CrashState(last, candidate.missing, points=((found.point, found.point),))
        assert not judge(candidate, found.point)


@settings(max_examples=40, deadline=None)
@given(failures(), st.integers(0, 4))
def test_of_all_failing_states_the_smallest_is_found(
    failure: tuple[Disk, CrashState, int, Judge], acknowledged: int
) -> None:
    """Fewest deviations, then the earliest crash point: against every state and every point."""
    disk, _, _, looks_wrong = failure

    def judge(state: CrashState, point: int) -> bool:
        return point >= acknowledged and looks_wrong(state, point)

    failing = [
        (state, point)
        for state in crash_states(disk.trace, disk.model, limit=40)
        for begin, end in state.points
        for point in range(begin, end + 1)
        if judge(state, point)
    ][:30]
    assume(failing)
    found = [diagnose(disk, state, point, judge) for state, point in failing]
    smallest = min((state.deviations, point) for state, point in failing)
    assert min((each.state.deviations, each.point) for each in found) <= smallest
    for each in found:
        # This very disk is no failure any earlier.
        legal = [p for begin, end in each.state.points for p in range(begin, end + 1)]
        assert not any(judge(each.state, p) for p in legal if p < each.point)


@settings(max_examples=60, deadline=None)
@given(traces(most=4), st.sampled_from(sorted(MODELS)), st.data())
def test_what_is_in_order_stays_legal_whatever_is_synced(
    trace: op.Trace, name: str, data: st.DataObject
) -> None:
    model = get_model(name)
    lines = candidates(trace)
    chosen = data.draw(st.lists(st.sampled_from(lines), unique=True)) if lines else []
    more = inserted(trace, chosen)
    disk, other = disk_of(trace, model), disk_of(more, model)
    for state in crash_states(trace, model, deviations=0, limit=20):
        stop = first_absent(disk, state)
        if not is_in_order(disk, state, state.points[0][0]) or stop < state.last:
            continue
        tree = disk.tree(state)
        assert model.allows(more, tree), (state, [line.call for line in chosen])
    assert len(other.effects) == len(disk.effects)


# -- the classes of bug


def old_or_new(tree: dict[str, bytes | None]) -> bool:
    return tree.get("f") not in (b"old", b"new")


def neither_f_nor_g(tree: dict[str, bytes | None]) -> bool:
    return tree.get("f") != b"old" and tree.get("g") != b"new"


CLASSES: list[tuple[Cause, int, Workload, Callable[[dict[str, bytes | None]], bool]]] = [
    (
        Cause.FSYNC_BEFORE_RENAME,
        1,
        Workload({"f": b"old"}).create("t", b"new").rename("t", "f"),
        old_or_new,
    ),
    (
        Cause.NOT_ATOMIC,
        0,
        Workload({"f": b"old"}).truncate("f", 0).write("f", 0, b"new").fsync("f"),
        lambda tree: tree["f"] == b"",
    ),
    (
        Cause.DIRECTORY_FSYNC,
        3,
        Workload({"f": b"old"}).create("t", b"new").fsync("t").link("t", "g").unlink("f"),
        neither_f_nor_g,
    ),
    (
        Cause.TORN_WRITE,
        0,
        Workload({"f": b"o" * 8192}).write("f", 0, b"n" * 8192).fsync("f"),
        lambda tree: len(set(tree["f"] or b"")) > 1,
    ),
    (
        Cause.REORDERED,
        0,
        Workload({"f": b"o" * 8192}).write("f", 4096, b"n" * 4096).write("f", 0, b"n" * 4096),
        lambda tree: tree["f"] == b"n" * 4096 + b"o" * 4096,
    ),
    (
        Cause.FSYNC,
        1,
        Workload({"f": b"old"}).create("g", b"new").fsync("").unlink("f").fsync(""),
        neither_f_nor_g,
    ),
    (
        Cause.NOT_FLUSHED,
        1,
        Workload({"f": b"old"}).create("t").rename("t", "f").write("f", 0, b"new").fsync("f"),
        lambda tree: tree["f"] == b"",
    ),
]


@pytest.mark.parametrize(
    ("cause", "culprit", "workload", "wrong"), CLASSES, ids=[c[0].name for c in CLASSES]
)
def test_each_class_is_named_at_its_operation(
    cause: Cause, culprit: int, workload: Workload, wrong: Callable[[dict[str, bytes | None]], bool]
) -> None:
    found = explain(workload, wrong)
    assert (found.cause, found.culprit) == (cause, culprit)
    assert found.in_order == (cause in (Cause.NOT_ATOMIC, Cause.TORN_WRITE, Cause.NOT_FLUSHED))


def test_an_acknowledgement_is_early_only_if_the_sync_does_come() -> None:
    late = Workload({"f": b"old"}).write("f", 0, b"new").mkdir("x").fsync("f")
    never = Workload({"f": b"old"}).write("f", 0, b"new").mkdir("x")
    for workload, cause in ((late, Cause.ACKNOWLEDGED_EARLY), (never, Cause.FSYNC)):
        disk = disk_of(workload.trace, get_model("posix"))

        def judge(state: CrashState, point: int, disk: Disk = disk) -> bool:
            acknowledged = 1
            legal = any(begin <= point <= end for begin, end in state.points)
            return legal and point > acknowledged and contents(disk.tree(state))["f"] == b"old"

        state = CrashState(-1, frozenset(), points=((0, 2),))
        found = diagnose(disk, state, 2, judge, lost=True)
        assert (found.cause, found.culprit) == (cause, 0)


def test_a_leftover_and_a_temporary_are_files_that_live_for_a_while() -> None:
    lock = Workload({"f": b"old"}).create("lock").save("f", b"new").unlink("lock").fsync("")
    found = explain(lock, lambda tree: "lock" in tree, answered=False)
    assert (found.cause, found.culprit, found.point) == (Cause.LEFTOVER, 0, 0)
    temporary = Workload({"f": b"old"}).create("n", b"new").fsync("n").rename("n", "g").fsync("")
    found = explain(temporary, lambda tree: "n" in tree)
    assert (found.cause, found.culprit) == (Cause.TEMPORARY, 0)
    assert short_lived(lock.trace, 0)
    assert not short_lived(Workload().create("f").trace, 0)


def test_a_history_leaves_out_what_makes_no_difference() -> None:
    workload = Workload({"f": b"old"})
    for number in range(2):
        workload.create(f"x{number}", b"noise")
    workload.create("t", b"new").rename("t", "f").create("y", b"noise")
    found = explain(workload, old_or_new)
    assert found.missing == (5,)  # the content of t
    assert found.on_disk == (4, 6)  # its creation and the rename
    assert found.state.deviations == 1
