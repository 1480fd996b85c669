"""The core against a brute-force reading of the same rules, on small random workloads.

Every legal tree at every crash point, with the fewest deviations that show it, must be what
`oracle` lists; closure, forcing, membership and counting are held against it as well.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.apply import apply
from pytest_statepersist.core.counting import list_sets
from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.effects import Cell
from pytest_statepersist.core.models import MODELS, MetadataOrder, Model, SyncCall
from pytest_statepersist.core.states import (
    count_states,
    crash_states,
    disk_of,
    expand,
    roots,
    visible_cells,
)
from pytest_statepersist.core.tree import ROOT, Directory, File, Node, Tree, read_content
from pytest_statepersist.core.window import Choice
from tests.core.oracle import Oracle, TooMany
from tests.core.traces import NAMES, Workload, traces

POSIX = MODELS["posix"]
GHOSTLY = [
    POSIX.with_options(names_return=True),
    POSIX.with_options(reuse_freed_blocks=True),
    POSIX.with_options(reuse_freed_blocks=True, names_return=True),
]
BIG = [*MODELS.values(), POSIX.with_options(sync=SyncCall.EVERYTHING), *GHOSTLY]
TORN = [model.with_options(tear=512) for model in MODELS.values()]
ORDERLY = [model for model in MODELS.values() if not model.waives_order]

SOAK = os.environ.get("STATEPERSIST_PROFILE") == "soak"

Seen = list[dict[Tree, int]]
"""For each crash point: tree → fewest deviations that show it."""


def examples(count: int) -> settings:
    """They are the same in each run, and twice as many in the soak profile."""
    return settings(
        max_examples=count if SOAK else count // 2,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


def expected(trace: op.Trace, model: Model) -> Seen:
    oracle = Oracle(trace, model, limit=1200 if model.reuse_freed_blocks else 3000)
    try:
        return [oracle.trees(point) for point in range(len(trace) + 1)]
    except TooMany:
        assume(False)
        raise


def found(trace: op.Trace, model: Model, deviations: int | None = None) -> Seen:
    disk = disk_of(trace, model)
    seen: Seen = [{} for _ in range(len(trace) + 1)]
    for state in crash_states(trace, model, deviations=deviations):
        tree = disk.tree(state)
        for first, last in state.points:
            for point in range(first, last + 1):
                seen[point][tree] = min(seen[point].get(tree, 99), state.deviations)
    return seen


def fewest(seen: Seen) -> dict[Tree, int]:
    best: dict[Tree, int] = {}
    for trees in seen:
        for tree, deviations in trees.items():
            best[tree] = min(best.get(tree, deviations), deviations)
    return best


def trees_of(seen: Seen) -> list[set[Tree]]:
    return [set(trees) for trees in seen]


def check(trace: op.Trace, model: Model) -> None:
    wanted, got = expected(trace, model), found(trace, model)
    assert trees_of(got) == trees_of(wanted)
    if not model.reuse_freed_blocks and not model.names_return:
        best = fewest(wanted)
        assert fewest(got) == best
        for bound in range(3):
            within = fewest(found(trace, model, bound))
            assert within == {tree: n for tree, n in best.items() if n <= bound}


@pytest.mark.parametrize("model", BIG, ids=str)
def test_the_legal_trees_are_those_of_the_rules(model: Model) -> None:
    @examples(60 if model.reuse_freed_blocks else 150)
    @given(traces(most=4 if model.reuse_freed_blocks else 5))
    def run(trace: op.Trace) -> None:
        check(trace, model)

    run()


@pytest.mark.parametrize("model", [POSIX, MODELS["ext4"], MODELS["btrfs"]], ids=str)
def test_what_ends_before_a_crash_point_is_left_out_and_nothing_else(model: Model) -> None:
    fewer = 0

    @examples(60)
    @given(traces(most=7))
    def run(trace: op.Trace) -> None:
        nonlocal fewer
        disk = disk_of(trace, model)
        for since in range(len(trace) + 1):
            whole, cut = list(roots(disk)), list(roots(disk, since=since))
            assert reaching(cut, since) == reaching(whole, since)
            fewer += len(cut) < len(whole)

    run()
    assert fewer > 10


def reaching(choices: list[Choice], since: int) -> list[tuple[int, int, int, int, object]]:
    found = []
    for each in choices:
        points = each.window.points(each.absent)
        if points and points[-1][1] >= since:
            window = each.window
            found.append((window.last, window.since, each.present, each.absent, each.returned))
    return found


@pytest.mark.parametrize("model", [MODELS["btrfs"], GHOSTLY[0]], ids=str)
def test_names_in_and_out_of_a_log_are_those_of_the_rules(model: Model) -> None:
    """What overtakes, is forgotten or comes back shows in longer workloads only."""

    @examples(500)
    @given(traces(most=7, kinds=NAMES))
    def run(trace: op.Trace) -> None:
        check(trace, model)

    run()


@pytest.mark.parametrize("model", TORN, ids=str)
def test_torn_sectors_are_those_of_the_rules(model: Model) -> None:
    @examples(20)
    @given(traces(scale=8, most=3))
    def run(trace: op.Trace) -> None:
        check(trace, model)

    run()


@pytest.mark.parametrize("model", MODELS.values(), ids=str)
def test_nothing_is_lost_without_a_deviation(model: Model) -> None:
    """In order: what returned is there, and of the call in progress any closed part."""

    @examples(40)
    @given(traces(most=5))
    def run(trace: op.Trace) -> None:
        disk = disk_of(trace, model)
        whole = {apply(trace.with_operations(trace.operations[:n])) for n in range(len(trace) + 1)}
        in_order = set()
        for state in crash_states(trace, model, deviations=0):
            assert not state.ghosts
            assert all(disk.effects.effects[e].operation == state.last for e in state.missing)
            in_order.add(disk.tree(state))
        assert whole <= in_order

    run()


def present(disk: Disk, state: CrashState) -> set[int]:
    return set(range(disk.effects.first_of(state.last + 1))) - state.missing


@pytest.mark.parametrize("model", ORDERLY, ids=str)
def test_states_are_closed_and_hold_what_is_forced(model: Model) -> None:
    @examples(40)
    @given(traces(most=5))
    def run(trace: op.Trace) -> None:
        disk = disk_of(trace, model)
        effects = disk.effects
        journal = model.metadata_order is MetadataOrder.JOURNAL
        for state in crash_states(trace, model, limit=300):
            there = present(disk, state)
            for index in there:
                assert there.issuperset(effects.needs[index])
                if journal and (effects.is_eager(index) or index in effects.after_metadata):
                    assert there.issuperset(i for i in range(index) if effects.is_eager(i))
            assert state.points
            for first, last in state.points:
                assert state.last <= first <= last <= len(trace)
                for point in (first, last):
                    forced = {e for e in range(len(effects)) if disk.forcing.forced_at(e, point)}
                    assert forced <= there

    run()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "posix"])
def test_posix_is_the_weakest(name: str) -> None:
    """With the two ghosts where the model has them; its sync forces nothing anyway."""
    model = MODELS[name]
    weakest = POSIX.with_options(
        reuse_freed_blocks=model.reuse_freed_blocks, names_return=model.names_return
    )

    @examples(20 if model.reuse_freed_blocks else 60)
    @given(traces(most=4 if model.reuse_freed_blocks else 5))
    def run(trace: op.Trace) -> None:
        try:
            Oracle(trace, weakest, limit=400 if model.reuse_freed_blocks else 1500).trees(
                len(trace)
            )
        except TooMany:
            assume(False)
        for strict, weak in zip(found(trace, model), found(trace, weakest), strict=True):
            assert strict.keys() <= weak.keys()

    run()


@pytest.mark.parametrize("model", ORDERLY, ids=str)
def test_one_more_sync_never_adds_a_tree(model: Model) -> None:
    @examples(40)
    @given(traces(most=4), st.data())
    def run(trace: op.Trace, data: st.DataObject) -> None:
        if model.sync is SyncCall.IF_METADATA_PENDING:
            # There a sync of another file can leave the later one without metadata to write.
            assume(not any(isinstance(o, op.SyncAll) for o in trace.operations))
        inodes = [0, *(n for n, node in trace.base.nodes.items() if isinstance(node, File))]
        position = data.draw(st.integers(0, len(trace)))
        for operation in trace.operations[:position]:
            if isinstance(operation, op.Create | op.Mkdir):
                inodes.append(operation.inode)
        sync = data.draw(
            st.one_of(
                st.builds(op.Fsync, st.sampled_from(inodes), data_only=st.booleans()),
                st.just(op.SyncAll()),
            )
        )
        before, after = found(trace, model), found(trace.insert(position, sync), model)
        for point, trees in enumerate(after):
            was = point if point <= position else point - 1
            assert trees.keys() <= before[was].keys()

    run()


def changed(tree: Tree, data: st.DataObject) -> Tree:
    """A tree with one thing about it changed."""
    nodes: dict[int, Node] = dict(tree.nodes)
    files = sorted(n for n, node in nodes.items() if isinstance(node, File))
    root = nodes[ROOT]
    assert isinstance(root, Directory)
    kind = data.draw(st.sampled_from(["byte", "size", "drop", "add"]))
    if kind in ("byte", "size") and files:
        number = data.draw(st.sampled_from(files))
        node = nodes[number]
        assert isinstance(node, File)
        content = bytearray(read_content(node.content))
        if kind == "byte" and content:
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1
        else:
            content += b"\0"
        nodes[number] = File(bytes(content), node.mode)
    elif kind == "drop" and root.entries:
        gone = data.draw(st.sampled_from(sorted(root.entries)))
        nodes[ROOT] = Directory({n: i for n, i in root.entries.items() if n != gone}, root.mode)
    elif files:
        nodes[ROOT] = Directory({**root.entries, "n": files[0]}, root.mode)
    return Tree(nodes)


@pytest.mark.parametrize("model", [*MODELS.values(), GHOSTLY[0]], ids=str)
def test_membership_agrees_with_the_list(model: Model) -> None:
    @examples(25 if model.reuse_freed_blocks else 50)
    @given(traces(most=4), st.data())
    def run(trace: op.Trace, data: st.DataObject) -> None:
        legal = trees_of(expected(trace, model))
        anywhere = set().union(*legal)
        some = sorted(anywhere, key=lambda tree: repr(tree.key()))
        for _ in range(3):
            tree = data.draw(st.sampled_from(some))
            assert model.allows(trace, tree)
            point = data.draw(st.integers(0, len(trace)))
            assert model.allows(trace, tree, at=point) == (tree in legal[point])
            other = changed(tree, data)
            assert model.allows(trace, other) == (other in anywhere)

    run()


@pytest.mark.parametrize("model", MODELS.values(), ids=str)
def test_options_are_disjoint_and_leave_nothing_out(model: Model) -> None:
    @examples(25)
    @given(traces(most=4), st.data())
    def run(trace: op.Trace, data: st.DataObject) -> None:
        disk = disk_of(trace, model)
        choices = [choice for choice in roots(disk) if choice.returned is None]
        choice = data.draw(st.sampled_from(choices))
        cells: Iterator[Cell] = visible_cells(disk, choice.state())
        for cell in list(cells)[:6]:
            options = [o for o in choice.options(cell) if not o.ghosts]
            whole = {*list_all(choice)}
            parts = [set(list_all(option)) for option in options]
            assert set().union(*parts) == whole
            assert sum(map(len, parts)) == len(whole)
            assert options[0].state().missing == choice.state().missing
            choice = data.draw(st.sampled_from(options))
        same, others = expand(choice, cells)
        assert same.state().missing == choice.state().missing
        assert all(other.deviations >= 0 for other in others)

    def list_all(choice: object) -> Iterator[frozenset[int]]:
        for number, missing in enumerate(list_sets(choice)):  # type: ignore[arg-type]
            assume(number < 2000)
            yield missing

    run()


@pytest.mark.parametrize("model", MODELS.values(), ids=str)
def test_what_is_kept_of_one_state_for_others_is_right(model: Model) -> None:
    """A sweep relies on it: looks without trees, cells that move, and what beginnings leave."""

    @examples(20)
    @given(traces(most=5), st.data())
    def run(trace: op.Trace, data: st.DataObject) -> None:
        disk = disk_of(trace, model)
        length = data.draw(st.integers(0, len(trace)))
        shorter = disk_of(op.Trace(trace.base, trace.operations[:length]), model)
        looks: dict[object, object] = {}
        for state in itertools.islice(crash_states(trace, model), 60):
            tree = Disk(disk.effects).tree(state)
            assert disk.tree(state) == tree
            asked = (tree.key(), order_of_times(tree))
            shown = disk.shows(state)
            assert looks.setdefault(shown, asked) == asked
            if state.last < length:
                assert shorter.tree(state) == tree
                assert shorter.shows(state) == shown
        assert len(set(looks.values())) == len(looks)
        for choice in itertools.islice(roots(disk), 20):
            state, window = choice.state(), choice.window
            cells = [*visible_cells(disk, state)]
            moving = cells if window.frees else [c for c in cells if c in window.cells()]
            assert [*visible_cells(disk, state, window)] == moving

    run()


def order_of_times(tree: Tree) -> tuple[int, ...]:
    times = [node.mtime or 0 for _, _, node in tree.walk() if isinstance(node, File)]
    ranks = {value: rank for rank, value in enumerate(sorted(set(times)))}
    return tuple(ranks[value] for value in times)


@pytest.mark.parametrize("model", MODELS.values(), ids=str)
def test_the_count_is_that_of_the_rules(model: Model) -> None:
    @examples(60)
    @given(traces(most=5))
    def run(trace: op.Trace) -> None:
        oracle = Oracle(trace, model, limit=3000)
        try:
            listed = {s for point in range(len(trace) + 1) for s in oracle.legal(point)}
        except TooMany:
            assume(False)
        assert count_states(trace, model) == len(listed)

    run()


N, K = b"N" * 4096, b"K" * 4096
LOST = {
    "new name": lambda: Workload({}).create("t", N).rename("t", "n").create("t", K).fsync("t"),
    "replaced twice": lambda: Workload({"f": K})
    .create("t").rename("t", "f").create("t").rename("t", "a").create("t").fsync("t").fsync("f"),
    "other directory": lambda: Workload({"d/x": K})
    .create("t").rename("t", "d/n").create("u").rename("u", "t").fsync("t").rename("t", "q"),
    "directories": lambda: Workload({})
    .mkdir("x").create("x/f").rename("x", "y").mkdir("x").create("x/f").fsync("x/f"),
    "taken along": lambda: Workload({"s": K, "g": N})
    .unlink("g").rename("s", "t").create("s").rename("s", "n").fsync("t").rename("t", "s")
    .fsync("n"),
}  # fmt: skip
"""Workloads that random ones seldom are: names that are taken over before a sync."""


@pytest.mark.parametrize("model", MODELS.values(), ids=str)
@pytest.mark.parametrize("workload", LOST.values(), ids=list(LOST))
def test_names_that_were_taken_over(workload: Callable[[], Workload], model: Model) -> None:
    check(workload().trace, model)
