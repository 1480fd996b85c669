"""Which recorded sync calls could be left out: durability that is paid for and not needed.

Belongs here: taking syncs out of a trace, and asking an oracle whether anything then fails that did
not fail before. Rules:

1. A line is redundant under a model only if the exploration of the trace without it found nothing
   that a sync could remove. Where something is found with all syncs in place, nothing is said.
2. Lines are redundant one at a time: each may be what makes the other so. ``together`` is a set
   that was explored with all of its lines gone; no further line can be added to it.
3. What was not explored to the end is not redundant.
4. A line that is needed may be passed more often than it is: then each of its calls is tried alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pytest_statepersist.core import operations as op

_CALLS = 40
"""Calls of needed lines that are tried alone."""

__all__ = ["RecordedSync", "Redundancy", "find_redundant", "recorded_syncs", "without"]


@dataclass(frozen=True, slots=True)
class RecordedSync:
    """A sync call in the source: the indices at which the trace has it, and the first call."""

    operations: tuple[int, ...]
    call: op.Fsync | op.SyncAll | op.SyncRange

    @property
    def site(self) -> op.Site | None:
        """Where in the source it stands."""
        return self.call.site


@dataclass(frozen=True, slots=True)
class Redundancy:
    """What one model says: lines redundant each by itself, and a largest set of them together.

    ``calls`` has, of lines that are passed several times and needed, the calls that could be left
    out, each by itself. ``reason`` says why nothing is claimed, where that is so.
    """

    model: str
    each: tuple[RecordedSync, ...] = ()
    together: tuple[RecordedSync, ...] = ()
    calls: tuple[tuple[RecordedSync, tuple[int, ...]], ...] = ()
    reason: str = ""


class Oracle(Protocol):
    """Explores altered traces under one model."""

    def explore(self, trace: op.Trace) -> tuple[int, Sequence[object], bool]:
        """Return (states, failures that a sync could remove, whether it came to the end)."""
        ...


def recorded_syncs(trace: op.Trace) -> tuple[RecordedSync, ...]:
    """Return the sync calls that succeeded, one for each line of the source."""
    found: dict[object, list[int]] = defaultdict(list)
    for number, operation in enumerate(trace.operations):
        if isinstance(operation, op.Fsync | op.SyncAll | op.SyncRange) and not getattr(
            operation, "failed", False
        ):
            where = operation.site or (operation.path, number)
            # One helper may sync a file here and its directory there.
            directory = isinstance(operation, op.Fsync) and _is_directory(trace, operation.inode)
            found[type(operation), where, directory].append(number)
    syncs = []
    for numbers in found.values():
        call = trace.operations[numbers[0]]
        assert isinstance(call, op.Fsync | op.SyncAll | op.SyncRange)
        syncs.append(RecordedSync(tuple(numbers), call))
    return tuple(syncs)


def _is_directory(trace: op.Trace, inode: int) -> bool:
    node = trace.base.nodes.get(inode)
    made = any(isinstance(each, op.Mkdir) and each.inode == inode for each in trace.operations)
    return made or hasattr(node, "entries")


def without(trace: op.Trace, syncs: Iterable[RecordedSync]) -> op.Trace:
    """Return the trace without these calls; acknowledgements come as much earlier."""
    gone = {number for sync in syncs for number in sync.operations}
    moved = [0]
    for number in range(len(trace)):
        moved.append(moved[-1] + (number not in gone))
    return replace(
        trace,
        operations=tuple(o for n, o in enumerate(trace.operations) if n not in gone),
        acknowledgements=tuple(
            replace(ack, position=moved[ack.position]) for ack in trace.acknowledgements
        ),
    )


def find_redundant(trace: op.Trace, model: str, oracle: Oracle) -> Redundancy:
    """Try every recorded sync by itself, then as many of them together as can be."""
    syncs = recorded_syncs(trace)
    if not syncs:
        return Redundancy(model, reason="no sync was recorded")
    _, failures, ended = oracle.explore(trace)
    if failures:
        return Redundancy(model, reason="there are findings with every recorded sync in place")
    if not ended:
        return Redundancy(model, reason="the states could not all be explored")
    each = tuple(sync for sync in syncs if _clean(trace, oracle, [sync]))
    together: list[RecordedSync] = []
    for sync in reversed(each):
        if not together or _clean(trace, oracle, [*together, sync]):
            together.append(sync)
    together.sort(key=lambda sync: sync.operations)
    calls, left = [], _CALLS
    for sync in syncs:
        if sync in each or len(sync.operations) == 1 or left < len(sync.operations):
            continue
        left -= len(sync.operations)
        each_call = [replace(sync, operations=(number,)) for number in sync.operations]
        alone = [one.operations[0] for one in each_call if _clean(trace, oracle, [one])]
        if alone:
            calls.append((sync, tuple(alone)))
    return Redundancy(model, each, tuple(together), tuple(calls))


def _clean(trace: op.Trace, oracle: Oracle, gone: Sequence[RecordedSync]) -> bool:
    _, failures, ended = oracle.explore(without(trace, gone))
    return ended and not failures
