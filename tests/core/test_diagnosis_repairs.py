"""Repairs and redundant syncs, against an oracle that lists every state of every altered trace."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pytest_statepersist.core import operations as op
from pytest_statepersist.core import redundancy, repairs
from pytest_statepersist.core.crash_state import CrashState
from pytest_statepersist.core.diagnosis import diagnose, first_absent, legal_at
from pytest_statepersist.core.models import get_model
from pytest_statepersist.core.states import crash_states, disk_of
from pytest_statepersist.core.tree import File, Tree, read_content
from tests.core.traces import Workload, traces

Wrong = Callable[[dict[str, bytes], bool], bool]
"""Says of the files on a disk, and of whether the workload had returned, that it is wrong."""


def files(tree: Tree) -> dict[str, bytes]:
    return {path: read_content(n.content) for path, _, n in tree.walk() if isinstance(n, File)}


class EveryState:
    """An oracle that reads the whole disk of every legal state, and remembers nothing."""

    def __init__(self, model: str, wrong: Wrong) -> None:
        self.model = get_model(model)
        self.wrong = wrong
        self.explored: list[op.Trace] = []

    def explore(self, trace: op.Trace) -> tuple[int, Sequence[tuple[object, ...]], bool]:
        self.explored.append(trace)
        found = []
        disk = disk_of(trace, self.model)
        states = 0
        for state in crash_states(trace, self.model):
            states += 1
            seen, end = files(disk.tree(state)), len(trace)
            stop = first_absent(disk, state)
            points = {p for begin, last in state.points for p in range(begin, last + 1)}
            plain = {p for p in points if p <= stop}
            if not plain and legal_at(disk, state, stop):
                plain = {stop}
            bad = {p for p in points - plain if self.wrong(seen, p >= end)}
            excused = any(self.wrong(seen, p >= end) for p in plain)
            if end in bad or (bad and not excused):
                found.append((tuple(sorted(seen.items())), end in bad))
        return states, found, True

    def survives(self, trace: op.Trace, witness: tuple[object, ...]) -> bool:
        return any(each[0] == witness[0] for each in self.explore(trace)[1])

    def monotone(self, witness: tuple[object, ...]) -> bool:
        return True


def search(
    workload: Workload | op.Trace, wrong: Wrong, model: str = "posix"
) -> repairs.RepairSearch:
    trace = workload if isinstance(workload, op.Trace) else workload.trace
    return repairs.find_repairs(trace, EveryState(model, wrong))


def told(repair: repairs.Repair) -> list[tuple[int, str]]:
    return [
        (each.after, "directory" if each.call.inode == op.ROOT else "file") for each in repair.syncs
    ]


def torn(seen: dict[str, bytes], returned: bool) -> bool:
    return seen.get("f") not in (b"old", b"new")


def lost(seen: dict[str, bytes], returned: bool) -> bool:
    return torn(seen, returned) or (returned and seen["f"] != b"new")


UNSYNCED = Workload({"f": b"old"}).create("t", b"new").rename("t", "f")


def test_the_one_missing_sync_is_found() -> None:
    found = search(UNSYNCED, torn)
    assert [told(repair) for repair in found.repairs] == [[(1, "file")]]
    assert found.smallest
    assert not found.hopeless


def test_two_missing_syncs_are_found_together() -> None:
    found = search(UNSYNCED, lost)
    assert [told(repair) for repair in found.repairs] == [[(1, "file"), (2, "directory")]]
    assert not EveryState("posix", lost).explore(found.repairs[0].applied_to(UNSYNCED.trace))[1]


def test_two_syncs_of_which_neither_alone_removes_anything() -> None:
    workload = Workload({"g": b"old"}).mkdir("d").append("g", b"new")
    found = search(workload, lambda seen, _: seen == {"g": b"old"})
    assert [told(repair) for repair in found.repairs] == [[(0, "directory"), (1, "file")]]
    assert found.smallest


def test_a_sound_save_needs_none() -> None:
    sound = Workload({"f": b"old"}).save("f", b"new")
    assert search(sound, lost) == repairs.RepairSearch(explorations=1)


def test_what_no_sync_can_repair_is_left_out_of_the_search() -> None:
    in_place = Workload({"f": b"old"}).truncate("f", 0).write("f", 0, b"new")
    assert search(in_place, lambda seen, returned: not returned and seen["f"] == b"").repairs == ()
    # That it is still torn, or lost, once the save has returned can be repaired all the same.
    for wrong in (torn, lost):
        assert [told(each) for each in search(in_place, wrong).repairs] == [[(1, "file")]]


def test_a_line_that_is_passed_often_is_one_line() -> None:
    workload, site = Workload({"f": b"0"}), op.Site("store.py", 7)
    for number in range(1, 4):
        workload.create("t", str(number).encode()).rename("t", "f")
    trace = workload.trace.with_operations(
        tuple(replace(each, site=site) for each in workload.trace.operations)
    )
    found = search(trace, lambda seen, _: seen.get("f") in (None, b""))
    assert len(found.repairs[0].lines) == 1
    assert [each.after for each in found.repairs[0].syncs] == [1, 4, 7]


def test_writes_that_follow_each_other_are_synced_once() -> None:
    site = op.Site("store.py", 7)
    workload = Workload({"f": b"old"}).create("t").append("t", b"a").append("t", b"b")
    workload.append("t", b"c").rename("t", "f")
    trace = workload.trace.with_operations(
        tuple(replace(each, site=site) for each in workload.trace.operations)
    )
    found = search(trace, lambda seen, _: seen.get("f") not in (b"old", b"abc"))
    assert told(found.repairs[0]) == [(3, "file")]


def test_acknowledgements_wait_for_what_is_inserted() -> None:
    trace = Workload({"f": b"old"}).write("f", 0, b"new").mkdir("d").trace
    trace = op.Trace(trace.base, trace.operations, (op.Acknowledgement(1), op.Acknowledgement(2)))
    more = repairs.inserted(trace, repairs.candidates(trace)[:1])
    assert [type(each).__name__ for each in more.operations] == ["Write", "Fsync", "Mkdir"]
    assert [ack.position for ack in more.acknowledgements] == [2, 3]
    less = redundancy.without(more, redundancy.recorded_syncs(more))
    assert less == trace


@settings(max_examples=25, deadline=None)
@given(traces(most=3), st.sampled_from(["posix", "ext4", "xfs"]), st.data())
def test_no_smaller_set_repairs_it(trace: op.Trace, model: str, data: st.DataObject) -> None:
    disk = disk_of(trace, get_model(model))
    states = list(crash_states(trace, disk.model, limit=80))
    bad = files(disk.tree(data.draw(st.sampled_from(states))))

    def wrong(seen: dict[str, bytes], returned: bool) -> bool:
        return seen == bad and seen != files(disk.tree(disk.in_order(len(trace) - 1)))

    oracle = EveryState(model, wrong)
    found = repairs.find_repairs(trace, oracle)
    left = oracle.explore(trace)[1]
    if not left:
        assert not found.repairs
        return
    lines = repairs.candidates(trace)
    sizes = [
        size
        for size in range(1, 3)
        for chosen in itertools.combinations(lines, size)
        if not oracle.explore(repairs.inserted(trace, chosen))[1]
    ]
    for repair in found.repairs:
        assert not oracle.explore(repair.applied_to(trace))[1]
    if sizes:
        assert found.repairs
        assert len(found.repairs[0].lines) == sizes[0]
    if found.hopeless:
        assert not sizes


@settings(max_examples=60, deadline=None)
@given(traces(most=4), st.sampled_from(["posix", "ext4", "xfs"]), st.data())
def test_no_sync_helps_is_said_where_a_sync_after_every_operation_does_not(
    trace: op.Trace, model: str, data: st.DataObject
) -> None:
    disk = disk_of(trace, get_model(model))
    states = list(crash_states(trace, disk.model, limit=80))
    chosen = data.draw(st.sampled_from(states))
    bad = files(disk.tree(chosen))

    def judge(state: CrashState, point: int) -> bool:
        legal = any(begin <= point <= end for begin, end in state.points)
        return legal and files(disk.tree(state)) == bad

    found = diagnose(disk, chosen, chosen.points[-1][1], judge)
    everywhere = repairs.inserted(trace, repairs.candidates(trace))
    synced = disk_of(everywhere, disk.model)
    stays = any(
        files(synced.tree(state)) == bad for state in crash_states(everywhere, disk.model)
    )
    # A plain stop is always legal; what a plain stop leaves may not be the smallest history.
    assert stays or not found.in_order
    if stays and not found.in_order:
        # Then the exploration meets the plain stop by itself, and it is a finding of its own.
        event("a plain stop leaves it as well")
        assert any(
            files(disk.tree(state)) == bad and first_absent(disk, state) >= state.last
            for state in crash_states(trace, disk.model, deviations=0)
        )


# -- paid for and not needed


def test_a_second_sync_is_redundant_and_so_is_the_first_but_not_both() -> None:
    twice = Workload({"f": b"old"}).create("t", b"new").fsync("t").fsync("t").rename("t", "f")
    found = redundancy.find_redundant(twice.trace, "posix", EveryState("posix", torn))
    assert [sync.operations for sync in found.each] == [(2,), (3,)]
    assert len(found.together) == 1
    assert found.reason == ""


@pytest.mark.parametrize("model", ["posix", "ext4"])
def test_a_sync_that_is_needed_stays(model: str) -> None:
    sound = Workload({"f": b"old"}).save("f", b"new")
    found = redundancy.find_redundant(sound.trace, model, EveryState(model, lost))
    assert (found.each, found.together, found.reason) == ((), (), "")


def test_a_directory_sync_is_needed_by_durability_alone() -> None:
    sound = Workload({"f": b"old"}).save("f", b"new")
    found = redundancy.find_redundant(sound.trace, "posix", EveryState("posix", torn))
    assert [type(sync.call).__name__ for sync in found.each] == ["Fsync"]
    assert found.each[0].call.inode == op.ROOT  # type: ignore[union-attr]


def test_of_a_line_that_is_passed_too_often_the_calls_are_named() -> None:
    """Three writes into one temporary, synced each time: only the last sync is needed."""
    site = op.Site("store.py", 7)
    workload = Workload({"f": b"old"}).create("t")
    for text in (b"n", b"e", b"w"):
        workload.append("t", text).fsync("t")
    trace = workload.rename("t", "f").fsync("").trace
    trace = trace.with_operations(
        tuple(
            replace(each, site=site) if isinstance(each, op.Fsync) and each.inode else each
            for each in trace.operations
        )
    )
    found = redundancy.find_redundant(trace, "posix", EveryState("posix", lost))
    assert found.each == ()
    ((line, calls),) = found.calls
    assert line.operations == (2, 4, 6)
    assert calls == (2, 4)


def test_nothing_is_called_redundant_where_something_fails() -> None:
    broken = UNSYNCED.trace.insert(3, op.Fsync(op.ROOT))
    found = redundancy.find_redundant(broken, "posix", EveryState("posix", lost))
    assert found.each == ()
    assert "findings" in found.reason
