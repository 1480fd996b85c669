"""One exploration, from a recorded trace to a `Report`.

Belongs here: the order of its parts (what recovery gives before and after, the search under each
model, confirmation in fresh processes, diagnosis, repairs) and the verdicts. What each part does is
in the module that it is called from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.models import Model, get_models
from pytest_statepersist.core.redundancy import Redundancy
from pytest_statepersist.core.states import disk_of
from pytest_statepersist.diagnosing import Diagnoser
from pytest_statepersist.errors import UserError
from pytest_statepersist.explorer.engine import Engine, Restart, in_order_states
from pytest_statepersist.explorer.fresh import FreshProcess
from pytest_statepersist.explorer.outcome import (
    DATA,
    Expectation,
    Expected,
    Invariant,
    Kind,
    Outcome,
    Raises,
    Unset,
    describe,
    refuse_what_is_read_later,
    same,
)
from pytest_statepersist.explorer.runner import Recovery
from pytest_statepersist.explorer.search import Bounds, Coverage, search
from pytest_statepersist.explorer.workplace import Workplace
from pytest_statepersist.findings import Report, Verdict
from pytest_statepersist.mixing import (
    judge_earlier,
    judge_mixtures,
    judge_unseen,
    without_order,
)
from pytest_statepersist.recording import Recorded
from pytest_statepersist.repairing import RUNS, AlteredTraces, redundant_syncs, with_repairs
from pytest_statepersist.settings import Settings


def explore_recorded(
    recorded: Recorded,
    recover: Recovery,
    argument: Path,
    place: Workplace,
    fresh: FreshProcess,
    settings: Settings,
    before: Any,
    after: Any,
    invariant: Invariant | None,
    present: bool,
) -> Report:
    """Explore a recorded workload; raises `UserError` for a recovery that is not deterministic."""
    models = get_models(settings.model)
    engine = Engine(
        trace=recorded.trace,
        recover=recover,
        argument=argument,
        place=place,
        fresh=fresh,
        record=recorded.record_recovery(argument),
        time_limit=settings.time_limit,
        recovery_crashes=settings.recovery_crashes,
        deviations=settings.deviations,
        present=present,
    )
    with engine:
        for _ in range(3):
            try:
                return Exploration(
                    engine, recorded, models, settings, before, after, invariant
                ).go()
            except Restart:
                continue
    raise UserError(
        "recovery gives another answer each time it is run on the same disk, even in fresh "
        "processes; make it deterministic (seed it, freeze its clock) to get a verdict"
    )


class Exploration:
    """One attempt; `Restart` says that what it learned cannot be trusted, so begin again."""

    def __init__(
        self,
        engine: Engine,
        recorded: Recorded,
        models: tuple[Model, ...],
        settings: Settings,
        before: Any,
        after: Any,
        invariant: Invariant | None,
    ) -> None:
        self.engine = engine
        self.recorded = recorded
        self.trace = recorded.trace
        self.models = models
        self.settings = settings
        self.bounds = settings.bounds()
        self.given = (before, after)
        self.invariant = invariant
        self.unstable = ""

    def go(self) -> Report:
        """Search under every model, explain what was found, and say how far that went."""
        self.engine.searching = False
        disks = [disk_of(self.trace, model) for model in self.models]
        expectation = self._expectation(disks[0])
        self._same_twice()
        accepts_loss = self._settle(disks[0], expectation)
        self.engine.searching = True
        coverage = []
        for disk in disks:
            coverage.append(self._cover(disk, expectation))
        self.engine.check_sentinels()
        self._confirm_passes(coverage, disks)
        findings = Diagnoser(self.engine, self.trace, expectation).findings(coverage)
        runs = self.engine.runs
        search_for_repairs = None
        if findings and self.settings.repairs:
            models = self._models_to_repair(coverage)
            oracle = AlteredTraces(
                self.engine, models, expectation, self.bounds.deviations, runs + RUNS
            )
            search_for_repairs, findings = with_repairs(self.trace, oracle, findings)
        repair_runs = self.engine.runs - runs
        redundant: tuple[Redundancy, ...] = ()
        if self.settings.redundant_syncs and expectation.tells_apart:
            redundant = redundant_syncs(
                self.trace, self.engine, self.models, expectation, self.bounds.deviations
            )
        verdicts = tuple(
            self._verdict(each, expectation, accepts_loss) for each in coverage
        )
        return Report(
            trace=self.trace,
            findings=findings,
            verdicts=verdicts,
            coverage=tuple(coverage),
            recorder=self.recorded.recorder,
            warnings=(*self.recorded.warnings, *self.engine.warnings),
            runs=runs,
            repair_search=search_for_repairs,
            repair_runs=repair_runs,
            redundant_syncs=redundant,
            before=describe(expectation.before),
            after=describe(expectation.after),
        )

    def _cover(self, disk: Disk, expectation: Expectation) -> Coverage:
        """Search one model; what memory maps changed in an unknown order counts as open."""
        nothing = without_order(self.trace, disk.model)
        if nothing is not None:
            return nothing

        def cover(each: Disk, bounds: Bounds) -> Coverage:
            visit = self.engine.visitor(each, bounds.deviations)
            return search(each, visit, expectation, bounds, lambda: self.engine.runs)

        found = cover(disk, self.bounds)
        judge_earlier(self.recorded.earlier, found, cover, self.bounds)
        judge_mixtures(self.trace, found, cover, self.bounds)
        judge_unseen(self.recorded.stored_unseen, found)
        return found

    def _models_to_repair(self, coverage: list[Coverage]) -> list[Model]:
        """Leave out models that had no failure, and to which a sync can bring none."""
        return [c.model for c in coverage if c.failures or c.model.waives_order]

    def _expectation(self, disk: Disk) -> Expectation:
        """Find out what recovery gives before and after, in a way that no cache can disturb."""
        start, end = in_order_states(self.trace, disk)
        self.engine.check_inode_numbers(disk, end)
        first = self.engine.outcome(disk, start).outcome
        refuse_what_is_read_later(first)
        last = self.engine.outcome(disk, end).outcome
        refuse_what_is_read_later(last)
        self.engine.trust(disk, start, first)
        self.engine.trust(disk, end, last)
        if not self.engine.isolated and self.engine.fresh.available:
            self._not_cached(disk, start, first)
            self._not_cached(disk, end, last)
        before, after = (self._given(value) for value in self.given)
        expected_after: Expected = last if after is None else after
        return Expectation(
            length=len(self.trace),
            before=first if before is None else before,
            after=expected_after,
            acknowledged=self.recorded.acknowledged,
            invariant=self.invariant,
            demands_after=after is not None,
        )

    def _settle(self, disk: Disk, expectation: Expectation) -> bool:
        """Have each value asked while its disk is there; say whether a lost save would pass."""
        start, end = in_order_states(self.trace, disk)
        lazy = any(type(each.value) not in DATA for _, _, each in self.engine.sentinels)
        self.engine.settle_with(
            expectation.settle, forget=lazy or expectation.invariant is not None
        )
        first, last = (self.engine.outcome(disk, state).outcome for state in (start, end))
        expectation.refuse_what_raises(last)
        for state in (start, end):
            self.engine.check_order(disk, state)
        return expectation.accepts_loss(first)

    def _not_cached(self, disk: Disk, state: CrashState, here: Outcome) -> None:
        there = self.engine.confirm(disk, state)
        if there is not None and not same(here, there):
            self.engine.isolate(
                f"on one disk recovery gave {here} in this process and {there} in a fresh one"
            )

    def _given(self, value: Any) -> Expected | None:
        if isinstance(value, Unset):
            return None
        if isinstance(value, Raises | Outcome):
            return value
        return Outcome.returned(value)

    def _same_twice(self) -> None:
        """Nothing can be said of a recovery whose answer changes from run to run."""
        if not self.engine.isolated:
            self.engine.check_sentinels()
            return
        for disk, state, expected in self.engine.sentinels:
            again = self.engine.confirm(disk, state)
            if again is not None and not same(again, expected):
                raise UserError(
                    f"recovery is not deterministic: on one disk it gave {expected}, then {again}, "
                    "each time in a fresh process. Seed it, freeze its clock, or compare less of "
                    "what it returns; without that no verdict would mean anything."
                )

    def _confirm_passes(self, coverage: list[Coverage], disks: list[Disk]) -> None:
        """Run states that passed again in a fresh process; a false pass is worse than none."""
        if self.engine.isolated or not self.engine.fresh.available:
            return
        confirmed: dict[int, Outcome] = {}
        for disk, found in zip(disks, coverage, strict=True):
            for state in found.passes:
                outcome = self.engine.outcome(disk, state).outcome
                if id(outcome) not in confirmed:
                    confirmed[id(outcome)] = outcome
                    self._not_cached(disk, state, outcome)
                    self.engine.check_order(disk, state)

    # -- verdicts

    def _verdict(
        self, coverage: Coverage, expectation: Expectation, accepts_loss: bool
    ) -> Verdict:
        broken = {kind for kind, count in coverage.failing.items() if count}
        atomic: bool | None = not broken - {Kind.DURABILITY}
        durable: bool | None = not (Kind.DURABILITY in broken or coverage.lost_after_return)
        reason = ""
        covered = coverage.complete
        if not covered:
            atomic, durable = _only_no(atomic), _only_no(durable)
            reason = coverage.reason
        if not expectation.tells_apart:
            atomic, durable = _only_no(atomic), _only_no(durable)
            reason = (
                "recovery gives the same answer before and after the workload, so it cannot tell "
                "whether anything was saved"
            )
        if self.engine.doubts:
            atomic, durable = _only_no(atomic), _only_no(durable)
            reason = reason or "; ".join(self.engine.doubts)
        asked = True
        if accepts_loss and durable:
            durable, asked = None, False
            reason = reason or (
                "the invariant takes what was there before for what must be there after; "
                "acknowledge what was saved, or give after="
            )
        name, count = coverage.model.name, coverage.states
        return Verdict(name, atomic, durable, covered, count, str(coverage), reason, asked)


def _only_no(value: bool | None) -> bool | None:
    return value if value is False else None
