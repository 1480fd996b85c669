"""Exploring altered traces: with sync calls put in, or taken out, without recording again.

Belongs here: the oracles that `core.repairs` and `core.redundancy` ask, built on an engine. Rules:

1. The states of an altered trace are shown and run like all others. Answers are remembered by what
   was read, so that most of them cost nothing.
2. A failure that a plain stop of the program shows as well is left out: no sync can remove it.
3. A known failure is the effects that are missing. An altered trace has the same effects, so
   whether it is still legal is read off what is forced there.
4. A crash during recovery is repaired in the trace of that recovery, never in the save's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState, Disk, Ghost
from pytest_statepersist.core.diagnosis import first_absent, legal_at
from pytest_statepersist.core.models import Model, get_model
from pytest_statepersist.core.redundancy import Redundancy, find_redundant, recorded_syncs
from pytest_statepersist.core.repairs import Repair, RepairSearch, find_repairs, inserted
from pytest_statepersist.core.states import disk_of, expand, roots
from pytest_statepersist.core.window import merge
from pytest_statepersist.explorer.engine import Engine
from pytest_statepersist.explorer.outcome import Expectation, Kind, same
from pytest_statepersist.explorer.questions import cells_read
from pytest_statepersist.explorer.search import RETURNING, Failure, Result
from pytest_statepersist.findings import Finding

__all__ = ["AlteredTraces", "Lost", "redundant_syncs", "with_repairs"]

RUNS = 450
"""How many recoveries more than the exploration all searches for repairs may run."""

_FAILURES = 60
_CLASSES = 20_000
_DISKS = 400

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True, eq=False)
class Lost:
    """A failing state by its effects: those before ``end``, less those missing, are on disk."""

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

    ``last_run`` is the number of recoveries at which the engine stops answering.
    """

    def __init__(
        self,
        engine: Engine,
        models: Sequence[Model],
        expectation: Expectation,
        deviations: int,
        last_run: int,
    ) -> None:
        self.engine = engine
        self.models = tuple(models)
        self.expectation = expectation
        self.deviations = deviations
        self.last_run = last_run
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
            disk = self.disk(trace, model)
            for here, (state, result) in enumerate(self._classes(disk)):
                states += 1
                if self.engine.runs > self.last_run or here > _CLASSES:
                    return states, found, False
                lost = self.lost(disk, state, result)
                if lost is not None:
                    found.append(lost)
                    if len(found) >= _FAILURES:
                        break  # enough to know that this does not repair it
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
            result = self.answer(disk, state)
            alike, others = expand(choice, cells_read(disk, state, result.asked))
            pending.extend(others)
            yield alike.state(), result

    def survives(self, trace: op.Trace, witness: Lost) -> bool:
        """Say whether a known failure is still legal, and still one, in an altered trace."""
        disk = self.disk(trace, witness.model)
        effects = disk.effects
        last = effects.effects[witness.end - 1].operation if witness.end else -1
        gone = [*witness.state.missing, *range(witness.end, len(effects))]
        points = _free_points(disk, gone, last)
        if not all(_ghost_is_legal(disk, ghost, gone) for ghost in witness.state.ghosts):
            return False
        state = replace(witness.state, last=last, points=points)
        return bool(points) and self.lost(disk, state, witness.result) is not None

    def lost(self, disk: Disk, state: CrashState, result: Result) -> Lost | None:
        """Return a state as a failure for which a missing sync could be to blame, if it is one."""
        stop = first_absent(disk, state)
        late = [(max(begin, stop + 1), end) for begin, end in state.points if end > stop]
        if not late:
            return None
        saved = self.saved(disk, stop)
        kinds = self.wrong(disk, state, result, _until(late, saved - 1))
        if kinds:
            plain = _until(state.points, stop)
            if not plain and stop >= 0 and legal_at(disk, state, stop):
                plain = [(stop, stop)]
            kinds -= self.wrong(disk, state, result, plain)
        # Once more was acknowledged than a plain stop had, what it leaves is no excuse.
        after = [(max(begin, saved), end) for begin, end in late if end >= saved]
        kinds |= self.wrong(disk, state, result, after)
        end = disk.effects.first_of(state.last + 1)
        return Lost(disk.model, state, end, result, kinds) if kinds else None

    def saved(self, disk: Disk, stop: int) -> int:
        """Return the first crash point after one at which something more had been acknowledged."""
        positions = [ack.position for ack in disk.trace.acknowledgements]
        return min(p for p in (*positions, max(len(disk.trace), stop + 1)) if p > stop)

    def disk(self, trace: op.Trace, model: Model) -> Disk:
        """Return a trace split under a model; kept, since each is asked for many times."""
        known = self._disks.get(id(trace))
        if known is None:
            if len(self._disks) >= _DISKS:
                self._disks.clear()
            # The trace is kept with it, so that its id is not given to another one.
            known = self._disks[id(trace)] = (trace, {})
        disks = known[1]
        if model.name not in disks:
            disks[model.name] = disk_of(trace, model)
        return disks[model.name]

    # -- judging

    def answer(self, disk: Disk, state: CrashState) -> Result:
        """Return what recovery gives on a state."""
        return self.engine.outcome(disk, state)

    def wrong(
        self, disk: Disk, state: CrashState, result: Result, points: Spans
    ) -> frozenset[Kind]:
        """Return what is wrong with an answer after a crash at one of these points."""
        old, trace = self.expectation, disk.trace
        positions = [ack.position for ack in trace.acknowledgements]
        moved = Expectation(
            length=len(trace),
            before=old.before,
            after=old.after,
            acknowledged=tuple(
                zip(positions, (value for _, value in old.acknowledged), strict=True)
            ),
            invariant=old.invariant,
            demands_after=old.demands_after,
        )
        return frozenset(each.kind for each in moved.judge(result.outcome, points, state.last))


class WithRecoveryCrashes(AlteredTraces):
    """The same, with crashes during recovery: for what is taken out of a trace."""

    covered = True

    def explore(self, trace: op.Trace) -> tuple[int, Sequence[Lost], bool]:
        """Explore as above; a crash during recovery that was not covered is no end."""
        self.covered = True
        states, found, ended = super().explore(trace)
        return states, found, ended and self.covered

    def answer(self, disk: Disk, state: CrashState) -> Result:
        """Return what recovery gives on a state, with what came of crashes inside it."""
        result = self.engine.answer(disk, state)
        self.covered = self.covered and result.complete
        return result

    def wrong(
        self, disk: Disk, state: CrashState, result: Result, points: Spans
    ) -> frozenset[Kind]:
        """Return what is wrong after one crash or after two."""
        kinds = super().wrong(disk, state, result, points)
        for step in result.again:
            kinds |= super().wrong(disk, state, replace(result, outcome=step.outcome), points)
            if step.kind is not None:
                kinds |= {step.kind}
        return kinds


class AlteredRecovery(AlteredTraces):
    """The same for what one recovery did on one crash state, and the crashes inside it."""

    def __init__(self, save: AlteredTraces, failure: Failure, models: Sequence[Model]) -> None:
        super().__init__(save.engine, models, save.expectation, save.deviations, save.last_run)
        self.failure = failure

    def answer(self, disk: Disk, state: CrashState) -> Result:
        """Return what recovery gives after the second crash."""
        return self.engine.nested(self.failure.disk, self.failure.state, disk, state)

    def wrong(
        self, disk: Disk, state: CrashState, result: Result, points: Spans
    ) -> frozenset[Kind]:
        """Return what is wrong after the first crash, or different from what it had returned."""
        outer, step = self.failure.state, self.failure.step
        judged = self.expectation.judge(result.outcome, outer.points, outer.last)
        kinds = frozenset(each.kind for each in judged)
        returned = any(end >= len(disk.trace) for _, end in points)
        first = step.first if step is not None else None
        if returned and first is not None and not same(result.outcome, first):
            kinds |= {Kind.UNSTABLE}
        return kinds


# -- what is not needed


def redundant_syncs(
    trace: op.Trace,
    engine: Engine,
    models: Sequence[Model],
    expectation: Expectation,
    deviations: int,
) -> tuple[Redundancy, ...]:
    """Say, model by model, which recorded sync calls could be left out."""
    found = []
    for model in models:
        calls = sum(len(sync.operations) for sync in recorded_syncs(trace))
        bound = engine.runs + RUNS * (2 + calls)
        oracle = WithRecoveryCrashes(engine, (model,), expectation, deviations, bound)
        found.append(find_redundant(trace, model.name, oracle))
    return tuple(found)


# -- findings


def with_repairs(
    trace: op.Trace, oracle: AlteredTraces, findings: Sequence[Finding]
) -> tuple[RepairSearch, tuple[Finding, ...]]:
    """Search repairs for a whole exploration, and give each finding its part of them."""
    search = RepairSearch()
    if any(each.failure.step is None for each in findings):
        search = _search(trace, oracle)
    return search, tuple(
        _of_save(trace, oracle, search, each)
        if each.failure.step is None
        else _of_recovery(oracle, each)
        for each in findings
    )


def _search(trace: op.Trace, oracle: AlteredTraces) -> RepairSearch:
    """Search under all models; where one that waives order rules it out, under the others."""
    search = find_repairs(trace, oracle)
    strict = tuple(model for model in oracle.models if not model.waives_order)
    if search.hopeless and strict and strict != oracle.models:
        oracle.models = strict
        search = find_repairs(trace, oracle)
    return replace(search, models=tuple(model.name for model in oracle.models))


def _of_save(
    trace: op.Trace, oracle: AlteredTraces, search: RepairSearch, finding: Finding
) -> Finding:
    if finding.diagnosis.in_order:
        return replace(finding, no_sync_helps=True)
    failure = finding.failure
    witness = oracle.lost(failure.disk, failure.state, oracle.answer(failure.disk, failure.state))
    if witness is None or failure.model not in oracle.models:
        return finding
    return _part_of(trace, oracle, search, finding, witness)


def _part_of(
    trace: op.Trace,
    oracle: AlteredTraces,
    search: RepairSearch,
    finding: Finding,
    witness: Lost,
) -> Finding:
    """Give a finding, of each set, the lines that bear on it."""
    found: dict[object, Repair] = {}
    for repair in search.repairs:
        if oracle.survives(repair.applied_to(trace), witness):
            continue
        lines = tuple(
            line for line in repair.lines if not oracle.survives(inserted(trace, [line]), witness)
        )
        found.setdefault(lines, replace(repair, lines=lines or repair.lines))
    return replace(
        finding,
        repairs=tuple(found.values()),
        repaired_under=search.models,
        no_sync_helps=False if found else None,
    )


def _of_recovery(oracle: AlteredTraces, finding: Finding) -> Finding:
    """Search in what recovery did; each such finding stands for itself."""
    failure, step = finding.failure, finding.failure.step
    assert step is not None
    stop = first_absent(failure.disk, failure.state)
    if finding.diagnosis.in_order and any(begin <= stop for begin, _ in failure.state.points):
        return replace(finding, no_sync_helps=True)
    if finding.diagnosis.in_order:
        return finding
    inner = AlteredRecovery(oracle, failure, [get_model(name) for name in finding.models])
    search = _search(step.disk.trace, inner)
    return replace(
        finding,
        repairs=search.repairs,
        repaired_under=search.models,
        no_sync_helps=False if search.repairs else None,
    )


def _ghost_is_legal(disk: Disk, ghost: Ghost, gone: Sequence[int]) -> bool:
    """Say whether bytes were still unwritten when a file gave up the block that shows them."""
    effects, forcing = disk.effects, disk.forcing
    return any(
        freeing in gone and not forcing.forced_at(ghost.source, effects.effects[freeing].operation)
        for freeing in effects.frees.get(ghost.inode, ())
    )


def _until(points: Spans, last: int) -> Spans:
    """Return the crash points up to one, inclusive."""
    return [(begin, min(end, last)) for begin, end in points if begin <= last]


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
