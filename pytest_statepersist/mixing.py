"""Memory maps: what nobody saw the order of, and whether a verdict depends on it.

Belongs here: judging the mixtures of `core.mixtures`, and changes at another moment, after a search
that found nothing; and the models under which unordered changes have no verdict. Rules:

1. A recovery that a mixture breaks is no finding, because nobody saw that mixture: the verdict is
   "not covered". One that no mixture breaks does not depend on the order. The same holds for a
   change that may have come before a sync or after it.
   Nor does anybody see a value that a store through a buffer left there and another took away: no
   crash state has it.
2. Where a model orders what is unordered here (a kill, in which everything completed is there; copy
   on write, where data needs earlier metadata), there is no verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import Disk
from pytest_statepersist.core.mixtures import mixtures_of
from pytest_statepersist.core.models import Model
from pytest_statepersist.core.states import disk_of
from pytest_statepersist.explorer.search import Bounds, Coverage

__all__ = ["is_unordered", "judge_earlier", "judge_mixtures", "judge_unseen", "without_order"]

Cover = Callable[[Disk, Bounds], Coverage]
"""Searches one disk."""


def is_unordered(trace: op.Trace) -> bool:
    """Say whether a trace has changes whose order nobody saw."""
    return any(isinstance(each, op.Write) and each.unordered for each in trace.operations)


def without_order(trace: op.Trace, model: Model) -> Coverage | None:
    """Return the coverage of a model that such a trace tells nothing about, ``None`` elsewhere."""
    if not (model.page_cache_survives or model.data_needs_metadata) or not is_unordered(trace):
        return None
    paths = {o.path for o in trace.operations if isinstance(o, op.Write) and o.unordered}
    reason = (
        f"{min(paths)!r} was changed through memory in an order that nobody saw, and under "
        f"{model.name} that order decides what a crash leaves"
    )
    return Coverage(model, all_states=False, complete=False, reason=reason)


def judge_mixtures(
    trace: op.Trace,
    found: Coverage,
    cover: Cover,
    bounds: Bounds,
) -> None:
    """Take back a verdict that depends on the order of stores into one block."""
    if found.failures or not found.complete:
        return
    bounds = replace(bounds, samples=0)
    for mixed in mixtures_of(trace):
        more = cover(disk_of(mixed, found.model), bounds)
        found.states += more.states
        found.runs += more.runs
        if not more.failures and more.complete:
            continue
        paths = {o.path for o in mixed.operations if isinstance(o, op.Write) and o.unordered}
        found.complete = found.all_states = False
        found.reason = more.reason or (
            f"what recovery gives depends on the order of stores into one block of {min(paths)!r}, "
            "which memory maps, and nobody saw that order"
        )
        return


def judge_earlier(
    earlier: op.Trace | None,
    found: Coverage,
    cover: Cover,
    bounds: Bounds,
) -> None:
    """Take back a verdict that depends on when, by a sync, a map was changed."""
    if earlier is None or found.failures or not found.complete:
        return
    bounds = replace(bounds, samples=0)
    more = cover(disk_of(earlier, found.model), bounds)
    found.states += more.states
    found.runs += more.runs
    if more.failures or not more.complete:
        found.complete = found.all_states = False
        found.reason = more.reason or (
            "what recovery gives depends on whether a file was changed through memory before or "
            "after a sync of another one, and nobody saw that order"
        )


def judge_unseen(paths: tuple[str, ...], found: Coverage) -> None:
    """Take back a verdict on files with stores that were found by looking at memory at times."""
    if paths and not found.failures and found.complete:
        found.complete = found.all_states = False
        found.reason = (
            f"{paths[0]!r} was changed through a buffer of a memory map (memoryview, NumPy): a "
            "value that came and went between two looks is in no crash state; what the map's own "
            "methods store (`memory[0:4] = ...`) is seen each time"
        )
