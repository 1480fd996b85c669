"""Power loss after a fault: the disks that it may leave, up to a bound, and what is wrong there.

Belongs here: exploring a trace that holds a failed call. Rules:

1. What a power failure breaks without any fault is blamed on no fault.
2. Alike traces, and alike disks, are judged once; so is what alike beginnings of traces leave.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.models import Model
from pytest_statepersist.core.states import disk_of, expand, roots, visible_cells
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.core.window import Choice
from pytest_statepersist.diagnosing import Diagnoser
from pytest_statepersist.errors import BlindSpot
from pytest_statepersist.explorer.engine import Engine, Restart
from pytest_statepersist.explorer.materialise import Materialiser
from pytest_statepersist.explorer.outcome import (
    Expectation,
    Invariant,
    Judgement,
    Kind,
    Outcome,
)
from pytest_statepersist.explorer.search import Bounds, search
from pytest_statepersist.fault_sweep.case import Problem
from pytest_statepersist.fault_sweep.stage import Stage
from pytest_statepersist.faults.leftovers import Leftover
from pytest_statepersist.faults.report import FaultKind
from pytest_statepersist.findings import Finding
from pytest_statepersist.mixing import is_unordered, without_order

__all__ = ["PowerLoss"]

_DIAGNOSED = 8
_LONG = 128


class PowerLoss:
    """Judges what a power failure leaves, for all cases of a sweep."""

    def __init__(self, stage: Stage, invariant: Invariant | None) -> None:
        self.stage = stage
        self.options = stage.options
        self.invariant = invariant
        self.crashing = stage.options.states > 0
        self.suspect = ""
        """Why answers of this process are not to be trusted, where they are not."""
        self.unsafe: dict[str, frozenset[Kind]] = {}
        """What a power failure breaks without any fault, by model: no fault is to blame for it."""
        self.details: dict[str, tuple[Finding, ...]] = {}
        """The findings that explain what was observed."""
        self._outcomes: dict[Any, Outcome] = {}
        self._beginnings: dict[Any, int] = {}
        """Numbers of the first operations of traces: of alike ones the same."""
        self._bases: dict[int, Tree] = {}
        """Keeps the trees alive by whose identity traces are told apart."""
        self._latest: tuple[op.Trace, Any] | None = None
        self._judged: dict[Any, tuple[tuple[Problem, ...], int, tuple[str, ...]]] = {}

    def judge(
        self,
        trace: op.Trace,
        expectation: Expectation,
        since: int = 0,
        *,
        leaves: Leftover = Leftover.KEPT,
        syncs: int = 0,
        told: str = "",
    ) -> tuple[list[Problem], int, list[str]]:
        """Judge the disks that a power failure may leave, up to a bound; alike traces once.

        Up to ``since`` all went as without a fault, and what a crash leaves there is known. Where
        ``syncs`` have failed, only models that leave what these left are asked. ``told`` is said
        first of what is observed.
        """
        if not self.crashing:
            return [], 0, []
        models = [each for each in self.options.models if not syncs or leaves.fits(each)]
        key = (since, told, tuple(models), self.alike(trace), _stages(expectation))
        known = self._judged.get(key)
        if known is not None:
            return list(known[0]), 0, []
        problems: list[Problem] = []
        notes: list[str] = []
        count = 0
        if is_unordered(trace):
            notes.append(
                "power loss after a fault: the order of stores through a memory map was not seen"
            )
        for model in models:
            if without_order(trace, model) is not None:
                continue  # that it is not covered has been noted
            number, failure, bounded = self._crash(trace, model, expectation, since)
            count += number
            if failure is not None:
                problems.append(self._explain(trace, model, expectation, failure, told))
                break
            if bounded:
                notes.append(
                    f"power loss after a fault ({model}): only the first {self.options.states} "
                    "states were judged after some faults; raise states="
                )
        self._judged[key] = (tuple(problems), count, tuple(notes))
        self.stage.forget_shown()
        return problems, count, notes

    def learn(self, trace: op.Trace, expectation: Expectation) -> None:
        """Learn what a power failure breaks by itself, from a run without a fault.

        The bound may be reached before the end, and there is what was saved and can be lost.
        """
        for model in self.options.models:
            self.unsafe[model.name] = frozenset(
                judged.kind
                for since in (0, len(trace))
                for _, _, judged in self._states(trace, model, expectation, since)
                if judged
            )
        self.stage.forget_shown()

    def _crash(
        self, trace: op.Trace, model: Model, expectation: Expectation, since: int
    ) -> tuple[int, tuple[CrashState, Outcome, str] | None, bool]:
        count = 0
        for state, outcome, judged in self._states(trace, model, expectation, since):
            count += 1
            if judged is not None and judged.kind not in self.unsafe.get(model.name, ()):
                words = f"a crash after {judged.point} calls; expected {judged.expected}"
                return count, (state, outcome, words), False
        return count, None, count >= self.options.states

    def _states(
        self, trace: op.Trace, model: Model, expectation: Expectation, since: int = 0
    ) -> Iterator[tuple[CrashState, Outcome, Judgement | None]]:
        """Yield the states up to the bound, what recovery gives, and what is wrong with it."""
        disk = disk_of(trace, model)
        aside = os.path.join(self.stage.place.aside, "states")
        os.makedirs(aside, exist_ok=True)
        shown = Materialiser(self.stage.place.directory, aside, trace, present=False)
        deviations, limit = self.options.deviations, self.options.states
        begins = self._begin(trace, model)
        for state in islice(_states_since(disk, since, deviations), limit):
            # What is on disk tells only of the operations up to its last one.
            key = begins[state.last + 1], state.identity
            outcome = self._outcomes.get(key)
            if outcome is None:
                outcome = self._outcomes[key] = self._outcome(disk, state, shown)
            points = [(max(begin, since), end) for begin, end in state.points if end >= since]
            wrong = expectation.judge(outcome, points, state.last)
            new = [each for each in wrong if each.kind not in self.unsafe.get(model.name, ())]
            yield state, outcome, (*new, *wrong, None)[0]

    def alike(self, trace: op.Trace) -> Any:
        """Return what `alike` does; it is asked again and again of one trace."""
        if self._latest is None or self._latest[0] is not trace:
            self._bases.setdefault(id(trace.base), trace.base)
            self._latest = trace, alike(trace)
        return self._latest[1]

    def _begin(self, trace: op.Trace, model: Model) -> list[int]:
        """Return a number for no operation, the first, the first two …: for alike ones equal."""
        known = self._beginnings
        base, rows = self.alike(trace)
        number = known.setdefault((base, model), len(known))
        numbers = [number]
        for row in rows:
            number = known.setdefault((number, row), len(known))
            numbers.append(number)
        return numbers

    def _outcome(self, disk: Disk, state: CrashState, shown: Materialiser) -> Outcome:
        key = disk.shows(state)
        known = self._outcomes.get(key)
        if known is None:
            shown.show(disk, state)
            self.stage.changes.begin()
            known = self.stage.recovered()
            if self.stage.changes.any():
                shown.rebuild()
            self._outcomes[key] = known
        return known

    def _explain(
        self,
        trace: op.Trace,
        model: Model,
        expectation: Expectation,
        failure: tuple[CrashState, Outcome, str],
        told: str = "",
    ) -> Problem:
        _, outcome, words = failure
        details = self._diagnose(trace, model, expectation)
        observed = f"{told}after a power failure recovery {outcome} ({words})"
        if details:
            first = details[0]
            observed = f"{observed}; {first}"
            missing = ", ".join(
                f"{type(each).__name__.lower()} {each.path}" for each in first.missing
            )
            if missing:
                observed += f"; not on disk: {missing}"
        self.details[observed] = details
        return Problem(FaultKind.POWER_LOSS, observed, "what was saved to survive")

    def _diagnose(
        self, trace: op.Trace, model: Model, expectation: Expectation
    ) -> tuple[Finding, ...]:
        if len(self.details) >= _DIAGNOSED:
            return ()
        engine = Engine(
            trace=trace,
            recover=self.stage.recover,
            argument=self.stage.directory,
            place=self.stage.place,
            fresh=self.stage.fresh,
            record=lambda tree, run: BlindSpot("crashes during recovery were not asked for"),
            time_limit=self.options.time_limit,
            recovery_crashes=0,
            deviations=self.options.deviations,
            present=False,
        )
        bounds = Bounds(10 * self.options.states, None, self.options.deviations, 0, 0)
        try:
            with engine:
                disk = disk_of(trace, model)
                coverage = search(
                    disk,
                    engine.visitor(disk, bounds.deviations),
                    expectation,
                    bounds,
                    lambda: engine.runs,
                )
                return Diagnoser(engine, trace, expectation).findings([coverage])
        except Restart as restart:
            self.suspect = str(restart)
            return ()
        except BlindSpot:
            return ()  # the finding stands; only its explanation is missing


def _states_since(disk: Disk, since: int, deviations: int) -> Iterator[CrashState]:
    """Yield the different disks of crash points from ``since`` on, fewest deviations first.

    The fullest state of a choice is legal the longest, so that a choice ends with it.
    """
    queue: list[tuple[int, int, Choice]] = []
    order = itertools.count()

    def push(choices: Iterable[Choice]) -> None:
        for choice in choices:
            number = choice.deviations_up_to(deviations)
            if number > deviations:
                continue
            points = choice.window.points(choice.absent)
            if points and points[-1][1] >= since:
                heapq.heappush(queue, (number, next(order), choice))

    push(roots(disk, since=since))
    while queue:
        _, _, choice = heapq.heappop(queue)
        state = choice.state()
        _, others = expand(choice, visible_cells(disk, state, choice.window), deviations)
        push(others)
        yield state  # of all that show the same it is the fullest


_BESIDE = frozenset({"path", "site", "time", "task"})


def alike(trace: op.Trace) -> Any:
    """Return what makes two traces the same to a judge: operations without lines and times."""
    rows = tuple([(type(each).__name__, *_telling(each)) for each in trace.operations])
    return (id(trace.base), rows)


def _telling(operation: op.Operation) -> Iterator[Any]:
    """Yield the fields that count, in brief where they are long: a sweep keeps those of all."""
    fields = _FIELDS.get(type(operation))
    if fields is None:
        names = operation.__dataclass_fields__
        fields = _FIELDS[type(operation)] = [name for name in names if name not in _BESIDE]
    for name in fields:
        value = getattr(operation, name)
        if isinstance(value, bytes) and len(value) > _LONG:
            value = len(value), hashlib.blake2b(value).digest()
        yield value


_FIELDS: dict[type, list[str]] = {}


def _stages(expectation: Expectation) -> Any:
    stages = tuple((position, repr(value)) for position, value in expectation.acknowledged)
    return (expectation.length, stages)
