"""Exploring altered traces: with sync calls put in, or taken out, without recording again.

Belongs here: the oracle that `core.repairs` and `core.redundancy` ask, built on an engine. Rules:

1. The states of an altered trace are shown and run like all others. Answers are remembered by what
   was read, so that most of them cost nothing.
2. A failure that a plain stop of the program shows as well is left out: no sync can remove it.
   Everything else counts, crashes during recovery included.
3. A known failure is the effects that are missing. An altered trace has the same effects, so
   whether it is still legal is read off what is forced there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.diagnosis import first_absent, legal_at
from pytest_statepersist.core.models import Model
from pytest_statepersist.core.repairs import RepairSearch, find_repairs, inserted
from pytest_statepersist.core.states import disk_of, expand, roots
from pytest_statepersist.core.window import merge
from pytest_statepersist.explorer.engine import Engine
from pytest_statepersist.explorer.outcome import Expectation, Kind, Outcome
from pytest_statepersist.explorer.questions import cells_read
from pytest_statepersist.explorer.search import RETURNING, Result, Step
from pytest_statepersist.findings import Finding

__all__ = ["AlteredTraces", "Lost", "with_repairs"]

_FAILURES = 60
_RUNS = 450
_CLASSES = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Lost:
    """A failing state by its effects: those before ``end``, less ``missing``, are on disk."""

    model: Model
    state: CrashState
    end: int
    result: Result
    kinds: frozenset[Kind]

    def _key(self) -> tuple[Any, ...]:
        state = self.state
        return (self.model.name, self.end, state.missing, state.ghosts, state.returned, self.kinds)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lost) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


class AlteredTraces:
    """Says what fails in a trace that has other sync calls than the recorded one.

    All altered traces together run recovery at most ``runs`` times.
    """

    def __init__(
        self,
        engine: Engine,
        models: Sequence[Model],
        expectation: Expectation,
        deviations: int,
        *,
        runs: int = _RUNS,
    ) -> None:
        self.engine = engine
        self.models = models
        self.expectation = expectation
        self.deviations = deviations
        self.last_run = engine.runs + runs
        self.in_recovery = False
        self._disks: dict[int, tuple[op.Trace, dict[str, Disk]]] = {}

    def monotone(self, witness: Lost) -> bool:
        """Say whether, under the model of a failure, a sync only ever removes states."""
        return not witness.model.waives_order

    # -- exploring

    def explore(self, trace: op.Trace) -> tuple[int, Sequence[Lost], bool]:
        """Return (classes of states, failures that a sync could remove, whether that is all)."""
        states = 0
        found: list[Lost] = []
        for model in self.models:
            disk = self._disk(trace, model)
            expectation = self._expected(trace)
            for here, (state, result) in enumerate(self._classes(disk)):
                states += 1
                if self.engine.runs > self.last_run or here > _CLASSES:
                    return states, found, False
                kinds = self._kinds(disk, state, result, expectation)
                if kinds:
                    end = disk.effects.first_of(state.last + 1)
                    found.append(Lost(model, state, end, result, kinds))
                    if len(found) >= _FAILURES:
                        # More are not needed to know that this does not repair it.
                        return states, found, True
            if found:
                break
        return states, found, True

    def _classes(self, disk: Disk) -> Iterator[tuple[CrashState, Result]]:
        """Yield every class of states that recovery can tell apart, up to the deviations."""
        pending = list(roots(disk, returning=RETURNING))
        pending.reverse()
        while pending:
            choice = pending.pop()
            if choice.deviations > self.deviations:
                continue
            state = choice.state()
            result = self.engine.answer(disk, state)
            alike, others = expand(choice, cells_read(disk, state, result.asked))
            pending.extend(others)
            yield alike.state(), result

    def survives(self, trace: op.Trace, witness: Lost) -> bool:
        """Say whether a known failure is still legal, and still one, in an altered trace."""
        disk = self._disk(trace, witness.model)
        effects = disk.effects
        last = effects.effects[witness.end - 1].operation if witness.end else -1
        gone = [*witness.state.missing, *range(witness.end, len(effects))]
        points = _free_points(disk, gone, last)
        if not points:
            return False
        state = replace(witness.state, last=last, points=points)
        return bool(self._kinds(disk, state, witness.result, self._expected(trace)))

    def witness(self, disk: Disk, state: CrashState) -> Lost | None:
        """Return a state of the recorded trace as a known failure, ``None`` if no sync helps."""
        result = self.engine.answer(disk, state)
        kinds = self._kinds(disk, state, result, self.expectation)
        if not kinds:
            return None
        return Lost(disk.model, state, disk.effects.first_of(state.last + 1), result, kinds)

    # -- judging

    def _kinds(
        self, disk: Disk, state: CrashState, result: Result, expectation: Expectation
    ) -> frozenset[Kind]:
        """Return what is wrong after a crash for which a sync call could be to blame."""
        stop = first_absent(disk, state)
        plain = [(begin, min(end, stop)) for begin, end in state.points if begin <= stop]
        if not plain and stop >= 0 and legal_at(disk, state, stop):
            plain = [(stop, stop)]
        late = [(max(begin, stop + 1), end) for begin, end in state.points if end > stop]
        if not late:
            return frozenset()
        kinds = _wrong(expectation, result.outcome, late, state.last)
        if plain and kinds:
            kinds -= _wrong(expectation, result.outcome, plain, state.last)
        if kinds or _wrong(expectation, result.outcome, state.points, state.last):
            return kinds
        for step in result.again:
            more = self._of_step(step, late, state, expectation)
            if more and plain:
                more -= self._of_step(step, plain, state, expectation)
            kinds |= more
        self.in_recovery = self.in_recovery or bool(kinds)
        return kinds

    def _of_step(
        self,
        step: Step,
        points: Sequence[tuple[int, int]],
        state: CrashState,
        expectation: Expectation,
    ) -> frozenset[Kind]:
        kinds = _wrong(expectation, step.outcome, points, state.last)
        return kinds | {step.kind} if step.kind is not None else kinds

    def _expected(self, trace: op.Trace) -> Expectation:
        """Return the expectation with its positions in an altered trace."""
        old = self.expectation
        positions = [ack.position for ack in trace.acknowledgements]
        values = [value for _, value in old.acknowledged]
        return Expectation(
            length=len(trace),
            before=old.before,
            after=old.after,
            acknowledged=tuple(zip(positions, values, strict=True)),
            invariant=old.invariant,
        )

    def _disk(self, trace: op.Trace, model: Model) -> Disk:
        known = self._disks.get(id(trace))
        if known is None:
            if len(self._disks) > 400:
                self._disks.clear()
            known = self._disks[id(trace)] = (trace, {})
        disks = known[1]
        if model.name not in disks:
            disks[model.name] = disk_of(trace, model)
        return disks[model.name]


def with_repairs(
    trace: op.Trace, oracle: AlteredTraces, findings: Sequence[Finding]
) -> tuple[RepairSearch, tuple[Finding, ...]]:
    """Search repairs for a whole exploration, and give each finding its part of them."""
    search = find_repairs(trace, oracle)
    return search, tuple(_with_repairs(trace, oracle, search, each) for each in findings)


def _with_repairs(
    trace: op.Trace, oracle: AlteredTraces, search: RepairSearch, finding: Finding
) -> Finding:
    failure, step = finding.failure, finding.failure.step
    if step is None:
        helpless = finding.diagnosis.in_order
    else:
        plain = any(
            begin <= first_absent(failure.disk, failure.state)
            for begin, _ in (failure.state.points)
        )
        helpless = plain and finding.diagnosis.in_order
    if helpless:
        return replace(finding, no_sync_helps=True)
    witness = oracle.witness(failure.disk, failure.state)
    if witness is None:
        return finding
    repairs = []
    for repair in search.repairs:
        lines = tuple(
            line for line in repair.lines if not oracle.survives(inserted(trace, [line]), witness)
        )
        if not oracle.survives(repair.applied_to(trace), witness):
            repairs.append(replace(repair, lines=lines or repair.lines))
    unique = {repair.lines: repair for repair in repairs}
    return replace(
        finding, repairs=tuple(unique.values()), no_sync_helps=False if repairs else None
    )


def _wrong(
    expectation: Expectation, outcome: Outcome, points: Sequence[tuple[int, int]], last: int
) -> frozenset[Kind]:
    return frozenset(each.kind for each in expectation.judge(outcome, points, last))


def _free_points(disk: Disk, gone: Sequence[int], last: int) -> tuple[tuple[int, int], ...]:
    """Return the spans of crash points at which none of these effects is forced."""
    forced = disk.forcing.forced
    spans, at, end = [], max(last, 0), len(disk.trace) + 1
    for begin, stop in merge([span for index in gone for span in forced[index]]):
        if begin > at:
            spans.append((at, min(begin, end) - 1))
        at = max(at, stop)
    if at < end:
        spans.append((at, end - 1))
    return tuple(spans)
