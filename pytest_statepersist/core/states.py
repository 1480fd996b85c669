"""Crash states: all of them, by deviations, counted, or one by one on request.

Belongs here: where the search for legal states begins (`roots`), walking it in full
(`crash_states`), membership (`allows`) and counting. Rules:

1. Every legal state has a last operation with an effect on disk; there is one window for each, at
   the crash point where that operation runs. A log adds windows where it loosens the order later.
2. Within a window the choices for the last operation's own effects partition the states.
3. A state's cells are decided one after the other; a choice whose cells are all decided is a disk.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.counting import Counter, list_sets
from pytest_statepersist.core.crash_state import CrashState, Disk, Returned
from pytest_statepersist.core.effects import Cell, Part, split
from pytest_statepersist.core.forcing import NEVER
from pytest_statepersist.core.models import Model
from pytest_statepersist.core.tree import (
    ROOT,
    Directory,
    File,
    Symlink,
    Tree,
    digest_of,
    read_content,
    size_of,
)
from pytest_statepersist.core.window import Choice, Spans, Window, merge
from pytest_statepersist.errors import UserError

__all__ = [
    "allows",
    "count_states",
    "crash_states",
    "disk_of",
    "expand",
    "roots",
    "visible_cells",
    "window_at",
]


def disk_of(trace: op.Trace, model: Model) -> Disk:
    """Split a trace under a model; the start of everything else here."""
    return Disk(split(trace, model))


def roots(disk: Disk, *, returning: int | None = None, since: int = 0) -> Iterator[Choice]:
    """Yield disjoint choices which together hold every legal state, in order of crash point.

    Those may be left out of which no state is legal at crash point ``since`` or later.

    ``returning`` bounds how many inodes may come back under one name (names_return), newest first,
    and leaves out names whose removal is durable; without it a trace of n replacements has n of
    them at each crash point. Where a log loosened the order, choices may overlap.
    """
    effects, forcing, trace = disk.effects, disk.forcing, disk.trace
    beyond = _forced_beyond(disk)
    waiting: list[int] = []
    held: _Held = defaultdict(dict)
    window: Window | None = None
    if not _is_over(beyond[-1], since):
        yield from _last_operation_present(Window(disk, -1, 0, [], beyond[-1]), None)
    for point in range(len(trace) + 1):
        loosened = forcing.loosened.get(point, set())
        reopened = {
            e
            for e in loosened
            if not forcing.forced_at(e, point) and forcing.forced_at(e, point - 1)
        }
        waiting = sorted(reopened.union(waiting)) if reopened else waiting
        if point and _may_force(trace.operations[point - 1], disk.model):
            waiting = [e for e in waiting if not forcing.forced_at(e, point)]
        fresh: _Held = {}
        for name, inode in forcing.synced_names.get(point - 1, ()):
            held[name].pop(inode, None)
            held[name][inode] = None
            fresh.setdefault(name, {})[inode] = None
        earlier = _ending_earlier(disk, point, waiting, beyond) if loosened or fresh else ()
        for ending, last_own in earlier:
            loose = _is_loosened(disk, ending, loosened)
            if not loose and not fresh:
                break
            for choice in _last_operation_present(ending, last_own):
                if loose:
                    yield choice
                yield from _returning_names(choice, held if loose else fresh, returning)
        if point == len(trace):
            break
        own = effects.of_operation[point]
        waiting.extend(own)
        if own and not _is_over(beyond[point], since):
            window = Window(disk, point, point, list(waiting), beyond[point], window)
            for choice in _last_operation_present(window, own):
                yield choice
                yield from _returning_names(choice, held, returning)


_Held = dict[Cell, dict[int, None]]
"""Names not in the base → the inodes that had them when they were synced, newest last."""


def _may_force(operation: op.Operation, model: Model) -> bool:
    if model.page_cache_survives:
        return True
    if isinstance(operation, op.Write):
        return operation.durability is not op.Durability.NONE
    return isinstance(operation, op.Fsync | op.SyncAll | op.SyncRange)


def _forced_beyond(disk: Disk) -> dict[int, Spans]:
    """For each operation: the crash points at which an effect of a later one is forced."""
    beyond: dict[int, Spans] = {}
    spans: Spans = []
    for number in range(len(disk.trace) - 1, -1, -1):
        beyond[number] = spans
        more = [s for e in disk.effects.of_operation[number] for s in disk.forcing.forced[e]]
        if more and not (len(spans) == 1 and spans[0][1] == NEVER and _within(more, spans[0])):
            spans = merge([*spans, *more])
    beyond[-1] = spans
    return beyond


def _is_over(beyond: Spans, since: int) -> bool:
    """Whether an effect of a later operation is forced from a crash point on, for ever."""
    return bool(beyond) and beyond[-1][0] <= since and beyond[-1][1] == NEVER


def _within(spans: Iterable[tuple[int, int]], outer: tuple[int, int]) -> bool:
    return all(outer[0] <= begin and end <= outer[1] for begin, end in spans)


def _ending_earlier(
    disk: Disk, point: int, waiting: list[int], beyond: dict[int, Spans]
) -> Iterator[tuple[Window, range | None]]:
    """Windows at a crash point that end with an earlier operation, as long as one can be last."""
    for last in range(point - 1, -2, -1):
        if any(begin <= point < end for begin, end in beyond[last]):
            return
        own = disk.effects.of_operation[last] if last >= 0 else None
        if own is None or own:
            end = disk.effects.first_of(last + 1)
            yield Window(disk, last, point, [e for e in waiting if e < end], beyond[last]), own


def _is_loosened(disk: Disk, window: Window, loosened: set[int]) -> bool:
    """Whether a log made more states legal that end with the window's last operation."""
    point, forced = window.since, disk.forcing.forced_at
    return any(
        disk.effects.effects[e].operation <= window.last
        or (forced(e, point - 1) and not forced(e, point))
        for e in loosened
    )


def _last_operation_present(window: Window, own: range | None) -> Iterator[Choice]:
    """Split by which effect of the last operation is the first that is present."""
    free = [window.bit[e] for e in own if e in window.bit] if own is not None else []
    if own is None or len(free) < len(own):
        choice = window.root()
        if choice is not None:
            yield choice
        return
    absent = 0
    for bit in free:
        choice = window.root(1 << bit, absent)
        if choice is not None:
            yield choice
        absent |= 1 << bit


def _returning_names(choice: Choice, held: _Held, newest: int | None) -> Iterator[Choice]:
    """A name that an inode had when it was synced may be back, where both would be absent."""
    disk, window = choice.window.disk, choice.window
    names = held if newest is None else [cell for cell in window.cells() if cell in held]
    for name in names:
        for inode in islice(reversed(held[name]), newest):
            found = [choice]
            for cell in sorted(disk.effects.cells_naming[inode] | {name}):
                narrowed = []
                for each in found:
                    for option in each.options(cell):
                        there = disk.entry(option.state(), cell.inode, str(cell.key))
                        if there != inode and (cell != name or there is None):
                            narrowed.append(option)
                found = narrowed
            for each in found:
                back = Returned(name, inode)
                yield Choice(each.window, each.present, each.absent, each.ghosts, back)


def window_at(disk: Disk, point: int) -> Window:
    """Return the window of everything that a crash at one point may lose.

    It holds the effects of all operations that had begun; raises `UserError` for no crash point.
    """
    if not 0 <= point <= len(disk.trace):
        raise UserError(f"{point} is not a crash point: the trace has 0 to {len(disk.trace)}")
    last = min(point, len(disk.trace) - 1)
    end = disk.effects.first_of(last + 1)
    ids = [e for e in range(end) if not disk.forcing.forced_at(e, point)]
    return Window(disk, last, point, ids, _forced_beyond(disk)[last])


def visible_cells(
    disk: Disk, state: CrashState, window: Window | None = None
) -> Iterator[Cell]:
    """Yield every cell that a reader of the whole disk sees, but times, in a fixed order.

    Those of files that no effect touches are left out: they have one value. With a window, those
    are that do not move in it.
    """
    if window is not None and not window.frees:
        return iter(_moving_cells(disk, state, window))
    return _all_cells(disk, state)


def _all_cells(disk: Disk, state: CrashState) -> Iterator[Cell]:
    stack, seen = [ROOT], set(disk.untouched)
    while stack:
        directory = stack.pop()
        if directory in seen:
            continue
        seen.add(directory)
        for name in disk.sorted_names(directory):
            yield Cell(Part.ENTRY, directory, name)
        for _, inode in sorted(disk.listing(state, directory).items()):
            if inode in seen:
                continue
            yield Cell(Part.ATTRIBUTES, inode)
            if disk.effects.names.get(inode) or disk.is_directory(inode):
                stack.append(inode)
                continue
            seen.add(inode)
            yield from content_cells(disk, state, inode)


def _moving_cells(disk: Disk, state: CrashState, window: Window) -> list[Cell]:
    """Return what `visible_cells` yields, as far as it moves in a window where nothing is freed."""
    moving, unit, directories = window.moving, disk.unit, disk.directories
    found: list[Cell] = []
    stack, seen = [ROOT], set[int]()
    while stack:
        directory = stack.pop()
        if directory in seen:
            continue
        seen.add(directory)
        found += [cell for cell in moving.get(directory, ()) if cell.part is Part.ENTRY]
        listing = disk.listing(state, directory)
        names = [name for name, i in listing.items() if i in moving or i in directories]
        for name in sorted(names):
            inode = listing[name]
            if inode in seen:
                continue
            cells = moving.get(inode, ())
            found += [cell for cell in cells if cell.part is Part.ATTRIBUTES]
            if inode in directories:
                stack.append(inode)
                continue
            seen.add(inode)
            size = disk.size(state, inode)
            for cell in cells:
                if cell.part is Part.SIZE or (
                    cell.part is Part.DATA and int(cell.key) * unit < size
                ):
                    found.append(cell)
    return found


def content_cells(disk: Disk, state: CrashState, inode: int) -> Iterator[Cell]:
    """Yield the cells that decide what a reader of a file's content sees."""
    yield Cell(Part.SIZE, inode)
    for number in disk.units_below(inode, disk.size(state, inode)):
        yield Cell(Part.DATA, inode, number)


def expand(
    choice: Choice, cells: Iterable[Cell], limit: int | None = None
) -> tuple[Choice, list[Choice]]:
    """Split a choice by what a reader saw: (all that show the same, the others, disjoint).

    ``cells`` are what was read in the choice's fullest state; every state of the first choice
    gives a reader the same answers. Of the others those may be left out that have more deviations
    than a limit: what they are narrowed to never has fewer.
    """
    others: list[Choice] = []
    window, back = choice.window, choice.returned
    if window.frees or choice.ghosts:
        for cell in cells:
            found = list(choice.options(cell, limit))
            choice = found[0]
            others.extend(found[1:])
        return choice, others
    # The same without a choice for each cell, which is most of what a search does.
    moving, alternatives, exceeds = window.cells(), window.alternatives, window.exceeds
    present, absent = choice.present, choice.absent
    for cell in cells:
        if cell not in moving or (back is not None and back.cell == cell):
            continue  # as it is in every state of the choice: most are
        first: tuple[int, int] | None = None
        for more, less, _ in alternatives(cell) or ():
            wanted, unwanted = present | more, absent | less
            if wanted & unwanted:
                continue
            if first is None:
                first = wanted, unwanted
            elif limit is None or not exceeds(unwanted, limit):
                others.append(Choice(window, wanted, unwanted, (), back))
        assert first is not None  # what the fullest state shows can be
        present, absent = first
    return Choice(window, present, absent, (), back), others


def crash_states(
    trace: op.Trace, model: Model, *, deviations: int | None = None, limit: int | None = None
) -> Iterator[CrashState]:
    """Yield every legal state with a different disk, fewest deviations first.

    Two states that differ only in what no reader can see are one. Times do not count.
    Raises `UserError` for a negative bound.
    """
    if deviations is not None and deviations < 0:
        raise UserError(f"deviations={deviations} cannot be: give 0 or more, or None for all")
    disk = disk_of(trace, model)
    queue: list[tuple[int, int, Choice]] = []
    order = 0
    for choice in roots(disk):
        if model.reuse_freed_blocks or not _only_times(choice):
            order += 1
            heapq.heappush(queue, (choice.deviations, order, choice))
    shown = 0
    while queue:
        bound, _, choice = heapq.heappop(queue)
        if deviations is not None and bound > deviations:
            return
        cells = visible_cells(disk, choice.state(), choice.window)
        same, others = expand(choice, cells, deviations)
        for other in others:
            order += 1
            heapq.heappush(queue, (other.deviations, order, other))
        yield same.state()
        shown += 1
        if limit is not None and shown >= limit:
            return


def _has_more_than_times(choice: Choice) -> bool:
    """Whether an effect of the last operation other than on times is present."""
    window = choice.window
    return any(
        e not in window.bit or not choice.absent >> window.bit[e] & 1
        for e in window.disk.effects.of_operation[window.last]
        if e not in window.disk.effects.times
    )


def _only_times(choice: Choice) -> bool:
    """Whether times are all that is there of a call that did more: the disk is an earlier one."""
    effects, last = choice.window.disk.effects, choice.window.last
    more = last >= 0 and not effects.times.issuperset(effects.of_operation[last])
    return more and not _has_more_than_times(choice)


def count_states(trace: op.Trace, model: Model, *, limit: int = 100_000) -> int | None:
    """Return how many legal states a trace has, exactly: sets of effects, times aside.

    It is at least the number of different disks, since not every difference can be read; names
    that return and blocks that are reused are not counted. ``None`` where counting would take more
    than about ``limit`` steps. Independent effects cost nothing: 10^30 states are as quick as ten.
    """
    disk = disk_of(trace, replace(model, names_return=False, reuse_freed_blocks=False))
    counter, total = Counter(limit), 0
    listed: set[frozenset[int]] | None = set() if disk.forcing.loosened else None
    for choice in roots(disk):
        last = choice.window.last
        if last >= 0 and not _has_more_than_times(choice):
            continue
        if listed is None:
            count = counter.count(choice)
            if count is None:
                return None
            total += count
            continue
        # A log makes windows overlap, so that only a list of what is present tells sets apart.
        upto = range(disk.effects.first_of(last + 1))
        for missing in list_sets(choice):
            listed.add(frozenset(upto) - missing - disk.effects.times)
            if len(listed) > limit:
                return None
    return total if listed is None else len(listed)


# -- membership ------------------------------------------------------------------------------------


def allows(trace: op.Trace, model: Model, tree: Tree, *, at: int | None = None) -> bool:
    """Say whether a crash (at one crash point, or at any) may leave a tree.

    Names that are one file in the tree must be one file in the state. The other way round they
    need not: a tree that was written by hand, or copied, does not say which of its files are links.
    Raises `UserError` where ``at`` is not a crash point of the trace.
    """
    if at is not None and not 0 <= at <= len(trace):
        raise UserError(f"at={at} is not a crash point: the trace has 0 to {len(trace)}")
    disk = disk_of(trace, model)
    for choice in roots(disk):
        if at is not None and choice.window.since > at:
            continue
        for state in _matching(disk, choice, tree):
            if at is None or any(begin <= at <= end for begin, end in state.points):
                return True
    return False


_Known = dict[int, int]
"""Inode of the tree that is looked for → the inode that it is in the state."""


def _matching(disk: Disk, choice: Choice, tree: Tree) -> Iterator[CrashState]:
    """Yield the states of a choice that show a tree, deciding names first, then contents."""
    pending: list[tuple[Choice, _Known, tuple[int, ...]]] = [(choice, {ROOT: ROOT}, (ROOT,))]
    while pending:
        current, known, todo = pending.pop()
        if not todo:
            yield from _matching_contents(disk, current, known, tree)
            continue
        directory, rest = todo[0], todo[1:]
        for found, names, more in _matching_entries(disk, current, known, directory, tree):
            pending.append((found, names, (*rest, *more)))


def _matching_entries(
    disk: Disk, choice: Choice, known: _Known, directory: int, tree: Tree
) -> Iterator[tuple[Choice, _Known, list[int]]]:
    """Decide the names in one directory, given as an inode of the tree."""
    here, wanted = known[directory], tree.nodes[directory]
    assert isinstance(wanted, Directory)
    possible = disk.names(here)
    if not wanted.entries.keys() <= possible:
        return
    # Names that are wanted first: they decide most.
    names = sorted(possible, key=lambda name: (name not in wanted.entries, name))
    stack: list[tuple[int, Choice, _Known, list[int]]] = [(0, choice, known, [])]
    while stack:
        at, current, inodes, more = stack.pop()
        if at == len(names):
            yield current, inodes, more
            continue
        name = names[at]
        target = wanted.entries.get(name)
        for option in current.options(Cell(Part.ENTRY, here, name)):
            inode = disk.entry(option.state(), here, name)
            if (inode is None) != (target is None):
                continue
            if inode is None or target is None:
                stack.append((at + 1, option, inodes, more))
                continue
            if target in inodes:
                if inodes[target] == inode:
                    stack.append((at + 1, option, inodes, more))
                continue
            below = isinstance(tree.nodes[target], Directory)
            if not _same_kind(disk, inode, tree, target) or (below and inode in inodes.values()):
                continue
            deeper = [*more, target] if below else more
            stack.append((at + 1, option, {**inodes, target: inode}, deeper))


def _same_kind(disk: Disk, inode: int, tree: Tree, target: int) -> bool:
    node = tree.nodes[target]
    if isinstance(node, Directory):
        return disk.is_directory(inode)
    made, base = disk.effects.created.get(inode), disk.trace.base.nodes.get(inode)
    if isinstance(node, Symlink):
        held = made.target if isinstance(made, op.Symlink) else None
        return node.target == (base.target if isinstance(base, Symlink) else held)
    return not disk.is_directory(inode) and not isinstance(base or made, Symlink | op.Symlink)


def _matching_contents(
    disk: Disk, choice: Choice, known: _Known, tree: Tree
) -> Iterator[CrashState]:
    cells: list[tuple[Cell, File | Directory]] = []
    files: list[tuple[int, File]] = []
    for number, inode in known.items():
        node = tree.nodes[number]
        if isinstance(node, Symlink):
            continue
        # The root's mode is no part of a tree: trees are equal whatever it is.
        if inode != ROOT and disk.effects.chains.get(Cell(Part.ATTRIBUTES, inode)):
            cells.append((Cell(Part.ATTRIBUTES, inode), node))
        if isinstance(node, Directory):
            continue
        files.append((inode, node))
        cells.append((Cell(Part.SIZE, inode), node))
        reach = size_of(node.content)
        numbers = set(disk.effects.units.get(inode, ()))
        if disk.effects.set_sizes.get(inode) or disk.effects.frees.get(inode):
            numbers.update(range(-(-reach // disk.unit)))
        cells.extend(
            (Cell(Part.DATA, inode, n), node) for n in sorted(numbers) if n * disk.unit < reach
        )
    stack = [(0, choice)]
    while stack:
        at, current = stack.pop()
        if at < len(cells):
            cell, node = cells[at]
            for option in current.options(cell):
                if _shows(disk, option.state(), cell, node):
                    stack.append((at + 1, option))
            continue
        state = current.state()
        if all(_untouched_alike(disk, state, inode, file) for inode, file in files):
            yield state


def _shows(disk: Disk, state: CrashState, cell: Cell, node: File | Directory) -> bool:
    if cell.part is Part.ATTRIBUTES or isinstance(node, Directory):
        return disk.attributes(state, cell.inode)[0] == node.mode
    if cell.part is Part.SIZE:
        return disk.size(state, cell.inode) == size_of(node.content)
    begin = int(cell.key) * disk.unit
    wanted = read_content(node.content, begin, disk.unit)
    return disk.unit_bytes(state, cell.inode, int(cell.key))[: len(wanted)] == wanted


def _untouched_alike(disk: Disk, state: CrashState, inode: int, node: File) -> bool:
    held = disk.content(state, inode)
    if isinstance(held, bytes) and isinstance(node.content, bytes):
        return held == node.content
    return size_of(held) == size_of(node.content) and digest_of(held) == digest_of(node.content)
