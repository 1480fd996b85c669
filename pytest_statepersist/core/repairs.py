"""Which sync calls are missing: the smallest sets that leave no failure, searched and checked.

Belongs here: what can be inserted in a trace, and the search. It is given an `Oracle` to call and
knows nothing of how recovery is run. Rules:

1. What is inserted is a *line*: one sync call after an operation, at each pass through that line of
   the source. Right after an operation that touches a file or a directory is enough: a sync that
   comes later forces the same and leaves more time in which to crash.
2. A set is a repair only if the whole exploration of the trace with it in place found no failure
   that a sync could remove. A quick look at failures that are known only saves explorations.
3. Sets are tried from the cheapest: fewest lines, then fewest calls. Where a model waives order, a
   sync may bring new states: what is found is checked all the same, but may not be the smallest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.tree import Directory, File

__all__ = ["Insertion", "Oracle", "Repair", "RepairSearch", "SyncLine", "candidates", "inserted"]

_ALTERNATIVES = 3
_EXPLORATIONS = 40
_NODES = 20_000

Witness = TypeVar("Witness", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Insertion:
    """One sync call after the operation with this index."""

    after: int
    call: op.Fsync


@dataclass(frozen=True, slots=True)
class SyncLine:
    """One sync call to add to the source: where the trace would have it.

    ``site`` is the line of the operations after which it belongs, ``directory`` whether it syncs
    the directory that holds the name, not the file.
    """

    insertions: tuple[Insertion, ...]
    directory: bool
    usual: bool = True
    """Not so for a file that is synced after a rename, which only some file systems honour."""

    @property
    def site(self) -> op.Site | None:
        """Where in the source the call before it stands."""
        return self.insertions[0].call.site

    @property
    def call(self) -> op.Fsync:
        """The sync at the first pass through the line."""
        return self.insertions[0].call


@dataclass(frozen=True, slots=True)
class Repair:
    """Lines which, all inserted, leave no failure that a sync could remove.

    ``states`` is how many classes of crash states were explored with them in place.
    """

    lines: tuple[SyncLine, ...]
    states: int = 0

    @property
    def syncs(self) -> tuple[Insertion, ...]:
        """Every sync call of the repair in the order of the trace."""
        both = [each for line in self.lines for each in line.insertions]
        return tuple(sorted(both, key=lambda each: each.after))

    def applied_to(self, trace: op.Trace) -> op.Trace:
        """Return the trace with the sync calls in place."""
        return inserted(trace, self.lines)


@dataclass(frozen=True, slots=True)
class RepairSearch:
    """The answer: repairs, cheapest first.

    ``smallest`` says that no smaller set exists; ``hopeless`` that every set leaves failures, a
    sync after every operation included; ``reason`` why the search stopped early. ``models`` are
    those under which the repairs were checked.
    """

    repairs: tuple[Repair, ...] = ()
    smallest: bool = True
    hopeless: bool = False
    reason: str = ""
    explorations: int = 0
    models: tuple[str, ...] = ()


class Oracle(Protocol[Witness]):
    """Explores altered traces."""

    def explore(self, trace: op.Trace) -> tuple[int, Sequence[Witness], bool]:
        """Return (states, failures that a sync could remove, whether it came to the end)."""
        ...

    def survives(self, trace: op.Trace, witness: Witness) -> bool:
        """Say whether a known failure is still legal, and still one, in an altered trace."""
        ...

    def monotone(self, witness: Witness) -> bool:
        """Say whether, under the model of a failure, a sync only ever removes states."""
        ...


# -- what can be inserted


def inserted(trace: op.Trace, lines: Sequence[SyncLine]) -> op.Trace:
    """Return the trace with all sync calls of these lines; acknowledgements wait for them."""
    calls: dict[int, dict[int, op.Fsync]] = defaultdict(dict)
    for line in lines:
        for each in line.insertions:
            calls[each.after].setdefault(each.call.inode, each.call)
    operations: list[op.Operation] = []
    moved = [0]
    for number, operation in enumerate(trace.operations):
        operations.append(operation)
        operations.extend(calls[number].values() if number in calls else ())
        moved.append(len(operations))
    return replace(
        trace,
        operations=tuple(operations),
        acknowledgements=tuple(
            replace(ack, position=moved[ack.position]) for ack in trace.acknowledgements
        ),
    )


def candidates(trace: op.Trace) -> tuple[SyncLine, ...]:
    """Return every line that is worth inserting, in the order of the trace."""
    directories = _directories(trace)
    files = {n for n, node in trace.base.nodes.items() if isinstance(node, File)}
    files |= {each.inode for each in trace.operations if isinstance(each, op.Create)}
    groups: dict[tuple[object, ...], list[Insertion]] = defaultdict(list)
    for number, operation in enumerate(trace.operations):
        where = operation.site or operation.path
        for role, inode in _touched(operation):
            if inode not in files and inode not in directories:
                continue
            path = directories.get(inode, operation.path)
            call = op.Fsync(inode, path=path, site=operation.site)
            groups[where, type(operation), role].append(Insertion(number, call))
        _follow(operation, directories)
    lines: dict[tuple[Insertion, ...], SyncLine] = {}
    for (_, kind, _), insertions in groups.items():
        for chosen in (_last_of_runs(trace, insertions), tuple(insertions)):
            directory = chosen[0].call.inode in directories
            lines.setdefault(chosen, SyncLine(chosen, directory, directory or kind != op.Rename))
    return tuple(sorted(lines.values(), key=lambda line: line.insertions[0].after))


def _directories(trace: op.Trace) -> dict[int, str]:
    found = {op.ROOT: ""}
    for path, number, node in trace.base.walk():
        if isinstance(node, Directory):
            found[number] = path
    for operation in trace.operations:
        if isinstance(operation, op.Mkdir):
            found[operation.inode] = operation.path
    return found


def _follow(operation: op.Operation, directories: dict[int, str]) -> None:
    if isinstance(operation, op.Rename) and operation.inode in directories:
        directories[operation.inode] = operation.path


def _touched(operation: op.Operation) -> Iterator[tuple[str, int]]:
    """Yield what an operation changes that a sync call can name, with its part in it."""
    match operation:
        case op.Create() | op.Mkdir() | op.Symlink() | op.Link() | op.Unlink() | op.Rmdir():
            yield "directory", operation.parent
        case op.Rename():
            yield "directory", operation.new_parent
            if operation.parent != operation.new_parent:
                yield "old directory", operation.parent
            yield "file", operation.inode
        case op.Write() | op.Truncate() | op.Allocate() | op.ZeroRange() | op.SetAttributes():
            yield "file", operation.inode
        case _:
            pass


def _last_of_runs(trace: op.Trace, insertions: list[Insertion]) -> tuple[Insertion, ...]:
    """Keep, of calls that follow each other on one line, the last: one sync does for them all."""
    stops = {ack.position for ack in trace.acknowledgements}
    kept: list[Insertion] = []
    for each in insertions:
        if kept:
            last = kept[-1]
            between = range(last.after + 1, each.after + 1)
            alike = all(trace.operations[n].site == each.call.site for n in between)
            same = last.call.inode == each.call.inode and each.call.site is not None
            if alike and same and not stops.intersection(between):
                kept[-1] = each
                continue
        kept.append(each)
    return tuple(kept)


# -- the search


def find_repairs(trace: op.Trace, oracle: Oracle[Witness]) -> RepairSearch:
    """Search the cheapest sets of lines that leave nothing which a sync could remove."""
    return _Search(trace, oracle).run()


class _Stopped(Exception):
    """A bound of the search was reached."""


class _Search(Generic[Witness]):
    """Hits every known failure with as few lines as can be, then asks for more failures."""

    def __init__(self, trace: op.Trace, oracle: Oracle[Witness]) -> None:
        self.trace = trace
        self.oracle = oracle
        self.lines = candidates(trace)
        self.witnesses: list[Witness] = []
        self.hits: list[frozenset[int]] = []
        self.more: list[frozenset[int]] = []
        """For each set that was too small: the lines of which it needs at least one more."""
        self.found: list[tuple[frozenset[int], Repair]] = []
        self.failed: set[frozenset[int]] = set()
        self.explorations = 0
        self.nodes = 0
        self.traces: dict[frozenset[int], op.Trace] = {}

    def run(self) -> RepairSearch:
        """Search, and say how far it came."""
        reason = ""
        try:
            self._learn(self._explore(frozenset())[1])
            if not self.witnesses:
                return RepairSearch(explorations=self.explorations)
            everything = frozenset(range(len(self.lines)))
            left = self._explore(everything)[1]
            # Where order is waived, more sync calls may be worse than a few.
            if any(self.oracle.monotone(each) for each in left):
                return RepairSearch(hopeless=True, explorations=self.explorations)
            try:
                self._by_size()
            except _Stopped as stopped:
                if not self.found and left:
                    raise
                if not self.found:
                    self._by_leaving_out(everything)
                else:
                    reason = str(stopped)
        except _Stopped as stopped:
            reason = str(stopped)
        if not self.found and not reason:
            return RepairSearch(hopeless=True, explorations=self.explorations)
        repairs = sorted((repair for _, repair in self.found), key=_cost)
        smallest = bool(repairs) and self._none_is_smaller(len(repairs[0].lines))
        return RepairSearch(tuple(repairs), smallest, False, reason, self.explorations)

    def _none_is_smaller(self, size: int) -> bool:
        """Say whether failures that only a hit removes rule out every smaller set."""
        self.nodes = 0
        certain = [
            hits
            for witness, hits in zip(self.witnesses, self.hits, strict=True)
            if self.oracle.monotone(witness)
        ]
        if len(certain) == len(self.witnesses):
            certain += self.more
        try:
            return not self._hitting(frozenset(), size - 1, certain)
        except _Stopped:
            return False

    def _explore(self, chosen: frozenset[int]) -> tuple[int, Sequence[Witness]]:
        self.explorations += 1
        if self.explorations > _EXPLORATIONS:
            raise _Stopped(f"{_EXPLORATIONS} sets of sync calls were explored")
        states, left, ended = self.oracle.explore(self._with(chosen))
        if not ended:
            raise _Stopped("the exploration with more sync calls went beyond its bound")
        return states, left

    def _with(self, chosen: frozenset[int]) -> op.Trace:
        known = self.traces.get(chosen)
        if known is None:
            known = inserted(self.trace, [self.lines[n] for n in sorted(chosen)])
            if len(chosen) == 1:
                self.traces[chosen] = known
        return known

    def _learn(self, witnesses: Sequence[Witness]) -> None:
        for witness in witnesses:
            if witness in self.witnesses:
                continue
            hits = frozenset(
                number
                for number in range(len(self.lines))
                if not self.oracle.survives(self._with(frozenset({number})), witness)
            )
            self.witnesses.append(witness)
            # No line alone removes it: then any may be needed, and the exploration decides.
            self.hits.append(hits or frozenset(range(len(self.lines))))

    def _by_size(self) -> None:
        size, most = 1, len(self.lines)
        while size <= most and len(self.found) < _ALTERNATIVES:
            chosen = self._next(size)
            if chosen is None:
                size += 1
                continue
            if self._try(chosen):
                most = min(most, size + 1)

    def _next(self, size: int) -> frozenset[int] | None:
        """Return the cheapest set of this size that hits all witnesses and was not tried."""
        hitting = self._hitting(frozenset(), size, [*self.hits, *self.more])
        options = [each for each in hitting if len(each) == size]
        fresh = [
            each
            for each in options
            if each not in self.failed and not any(known <= each for known, _ in self.found)
        ]
        return min(fresh, key=lambda each: _cost(self._repair(each, 0)), default=None)

    def _hitting(
        self, chosen: frozenset[int], left: int, clauses: list[frozenset[int]]
    ) -> set[frozenset[int]]:
        """Return the sets of at most so many more lines that hit all clauses."""
        self.nodes += 1
        if self.nodes > _NODES:
            raise _Stopped("there are too many combinations of sync calls")
        open_clauses = [hits for hits in clauses if not hits & chosen]
        if not open_clauses:
            return {chosen}
        if not left:
            return set()
        found: set[frozenset[int]] = set()
        for number in min(open_clauses, key=len):
            found |= self._hitting(chosen | {number}, left - 1, open_clauses)
        return found

    def _try(self, chosen: frozenset[int]) -> bool:
        trace = self._with(chosen)
        if any(self.oracle.survives(trace, witness) for witness in self.witnesses):
            self._too_small(chosen)
            return False
        states, left = self._explore(chosen)
        if left:
            self._too_small(chosen)
            self._learn(left)
            return False
        self.found.append((chosen, self._repair(chosen, states)))
        return True

    def _too_small(self, chosen: frozenset[int]) -> None:
        self.failed.add(chosen)
        self.more.append(frozenset(range(len(self.lines))) - chosen)

    def _by_leaving_out(self, everything: frozenset[int]) -> None:
        """Too many combinations: leave out one line after the other while nothing comes back."""
        order = sorted(everything, key=lambda n: (self.lines[n].usual, -n))
        while True:
            chosen = everything
            for number in order:
                fewer = chosen - {number}
                trace = self._with(fewer)
                if not any(self.oracle.survives(trace, each) for each in self.witnesses):
                    chosen = fewer
            states, left = self._explore(chosen)
            if not left:
                self.found.append((chosen, self._repair(chosen, states)))
                return
            self._learn(left)

    def _repair(self, chosen: frozenset[int], states: int) -> Repair:
        return Repair(tuple(self.lines[n] for n in sorted(chosen)), states)


def _cost(repair: Repair) -> tuple[int, int, int, tuple[int, ...]]:
    """Fewest lines, then fewest calls, then what a programmer would expect, then the earliest."""
    lines = repair.lines
    return (
        len(lines),
        sum(len(line.insertions) for line in lines),
        sum(not line.usual for line in lines),
        tuple(line.insertions[0].after for line in lines),
    )
