"""A sweep as a whole: counting the calls, running every case, and the report.

Belongs here: the order of things, and which process runs a case. Rules:

1. Cases run in this process while that can be trusted. Each finding, and a sample of the passes, is
   run again in a process that the subject has not touched; a difference moves every case there.
2. A hang is believed when it comes again, with more time; the machine may have been busy.
3. What was not seen is not covered: native calls, faults that were not met, states beyond a bound.
"""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pytest_statepersist.arguments import user_call, with_acknowledge
from pytest_statepersist.core import operations as op
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.errors import BlindSpot, UserError
from pytest_statepersist.explorer.outcome import (
    Expected,
    Invariant,
    Outcome,
    Raises,
    Unset,
    describe,
    fits,
    same,
)
from pytest_statepersist.explorer.runner import Recovery, call
from pytest_statepersist.fault_sweep.case import Options, Problem, Reference, Result
from pytest_statepersist.fault_sweep.judging import Cases
from pytest_statepersist.fault_sweep.power import PowerLoss
from pytest_statepersist.fault_sweep.stage import PATIENCE, Stage
from pytest_statepersist.faults.calls import SHORT, Call, FaultSite, Operation, fitting
from pytest_statepersist.faults.inject import Counting, Fault, uncounted
from pytest_statepersist.faults.leftovers import Leftover, leftovers
from pytest_statepersist.faults.report import FaultFinding, FaultKind, FaultReport

__all__ = ["SweepRun"]

_STRACE = "strace's own injection cannot make them; where seccomp is allowed they are tried"
_CONFIRMED = 8
_SAMPLED = 3
_HANGING = 8
"""So many calls at which a run hung end a sweep."""


class SweepRun:
    """One sweep: what is counted, what runs where, and what is known so far."""

    def __init__(
        self,
        options: Options,
        workload: Callable[..., Any],
        recover: Recovery,
        invariant: Invariant | None,
        programs: bool = False,
    ) -> None:
        self.options = options
        self.programs = programs
        self.invariant = invariant
        self.stage = Stage(options, recover, programs)
        self.power = PowerLoss(self.stage, invariant)
        self.cases = Cases(self.stage, self.power, with_acknowledge(workload), invariant)
        self.sentinels: tuple[Outcome, ...] = ()
        self.hangs = 0
        """How many hangs came again when they were given more time."""
        self.hung_at: set[tuple[str, int]] = set()
        """Calls where a fault left something hanging: more of them would only take time."""
        self.skipped = 0
        self.warnings: list[str] = []

    def __enter__(self) -> SweepRun:
        self.stage.open(self._serve)
        return self

    def __exit__(self, *_: object) -> None:
        self.stage.close()

    def go(self, setup: Callable[[Path], Any] | None, before: Any, after: Any) -> FaultReport:
        """Run the whole sweep."""
        if setup is not None:
            user_call("setup", call, setup, self.stage.directory)
        base = self.stage.scan()
        sites, blind = self._count(base, before, after)
        self.stage.sites = sites
        faults = list(self._faults(sites))
        not_covered = list(blind)
        if not faults:
            not_covered.append("no call of the workload fits the errors and operations chosen")
        if self.stage.by_strace:
            not_covered += self._not_by_strace()
        left_out = len(faults) - self.options.cases
        if left_out > 0:
            drawn = random.Random(self.options.seed).sample(range(len(faults)), self.options.cases)
            faults = [faults[index] for index in sorted(drawn)]
            not_covered.append(f"{left_out:,} cases beyond the bound of {self.options.cases:,}")
        if self.invariant is None and not self._tells_apart():
            not_covered.append(
                "recovery gives the same before and after the workload, so it cannot tell whether "
                "anything was saved"
            )
        for model, kinds in self.power.unsafe.items():
            if kinds:
                words = " and ".join(sorted(kind.value for kind in kinds))
                not_covered.append(
                    f"power loss after a fault ({model}): without any fault a power failure breaks "
                    f"{words} already, so that alone is blamed on no fault; CrashSimulator.check "
                    "explains it"
                )
        only = [each for each in self.options.models if leftovers([each]) == (Leftover.REVERTED,)]
        if only and any(sites[fault.phase][fault.index].only_keeps for fault in faults):
            not_covered.append(
                f"what reverts after a failed sync ({only[0]}) of an SQLite that writes in ways of "
                "its own"
            )
        results = self._run_all(faults)
        missed = sum(not result.met for result in results) - self.skipped
        if self.skipped:
            not_covered.append(
                f"{self.skipped} faults were not tried: at the same call, or at {_HANGING} others, "
                "a run hung already"
            )
        if missed:
            why = "the workload does not make the same calls each time"
            if self.stage.by_strace:
                why += ", or strace met a call on another file as well, since it counts by process"
            not_covered.append(f"{missed} faults were not met: {why}")
        notes = dict.fromkeys(note for result in results for note in result.notes)
        return FaultReport(
            cases=len(results) - missed - self.skipped,
            sites=tuple(site for phase in sites.values() for site in phase),
            findings=self._findings(sites, faults, results),
            not_covered=(*not_covered, *notes),
            warnings=tuple(self.warnings),
            states=sum(result.states for result in results),
            seed=self.options.seed,
        )

    def _count(
        self, base: Tree, before: Any, after: Any
    ) -> tuple[dict[str, tuple[FaultSite, ...]], list[str]]:
        """Run everything once without a fault; return the calls of each phase and blind spots."""
        first = self.stage.recovered()
        reading = self._sites_of_recovery(base)
        self.stage.show(base)
        counting, blind = Counting(), list[str]()
        acknowledged: list[Any] = []
        recorder = self.stage.recorder(base)
        before_locks = held = self.stage.locks()

        def acknowledge(value: Any = None) -> None:
            acknowledged.append(value)
            recorder.acknowledge(value)

        try:
            with recorder, self.stage.gated(counting, recorder):
                user_call(
                    "the workload", call, self.cases.workload, self.stage.directory, acknowledge
                )
                held = self.stage.locks()  # before the recorder reads the files, which drops some
        except BlindSpot as error:
            blind.append(f"{error}")
        else:
            blind += _uncounted(recorder.trace, counting.sites)
        left = held - before_locks
        if not any(site.function.startswith("sqlite.") for site in counting.sites):
            self.stage.companions = ()
        final = self.stage.scan()
        last = self.stage.recovered()
        self.sentinels = (first, last)
        self.stage.show(final)
        twice = self._twice()
        again = self.stage.recovered()
        self.cases.reference = Reference(
            base=base,
            final=final,
            before=_given(before, first),
            after=_given(after, last),
            acknowledged=tuple(acknowledged),
            again=again,
            again_raises=not twice.ok,
            demands_after=not isinstance(after, Unset),
            left=left,
            uses_sqlite=bool(self.stage.companions),
        )
        reference = self.cases.reference
        for name, found, wanted in (
            ("before", first, reference.before),
            ("after", last, reference.after),
        ):
            if not fits(found, wanted):
                raise UserError(
                    f"without any fault recovery {found} {name} the workload, where "
                    f"{describe(wanted)} was expected; nothing was judged"
                )
        if not blind and self.options.states:
            positions = [each.position for each in recorder.trace.acknowledgements]
            values = list(zip(positions, acknowledged, strict=True))
            self.power.learn(recorder.trace, self.cases.expect(True, recorder.trace, values))
        sites = {"workload": tuple(counting.sites), "recovery before": reading}
        sites["recovery after"] = self._sites_of_recovery(final)
        return sites, blind

    def _twice(self) -> Outcome:
        """Run the workload where it has run already: it may well refuse."""
        self.stage.patience = PATIENCE
        outcome = self.stage.attempt(self.cases.unacknowledged)
        self.stage.patience = 1
        return outcome

    def _sites_of_recovery(self, tree: Tree) -> tuple[FaultSite, ...]:
        if not self.options.recovery:
            return ()
        self.stage.show(tree)
        counting = Counting()
        with self.stage.gated(counting):
            self.stage.recovered()
        return tuple(counting.sites)

    def _tells_apart(self) -> bool:
        before, after = self.cases.reference.before, self.cases.reference.after
        if isinstance(before, Raises):
            return not before.matches(after) if isinstance(after, Outcome) else before != after
        return not fits(before, after)

    def _faults(self, sites: dict[str, tuple[FaultSite, ...]]) -> Iterator[Fault]:
        lefts = leftovers(self.options.models)
        for phase, each in sites.items():
            for site in each:
                if site.operation not in self.options.operations:
                    continue
                for error in site.errors:
                    if error in self.options.errors:
                        for persistent in self.options.persistent:
                            if persistent and self.stage.by_strace:
                                continue
                            # A signal interrupts one call; C code rightly tries again for ever.
                            if persistent and error == "EINTR":
                                continue
                            for left in lefts if site.reverts else (Leftover.KEPT,):
                                yield Fault(site.index, error, persistent, phase, left)

    def _not_by_strace(self) -> Iterator[str]:
        """Say what was asked for and is not tried where strace makes the calls fail."""
        kinds, errors = self.options.operations, self.options.errors
        if SHORT in errors and Operation.WRITE in kinds:
            yield f"writes of a part of the bytes: {_STRACE}"
        if Operation.CLOSE in kinds and set(fitting(Call(Operation.CLOSE, "", ""))) & {*errors}:
            yield f"errors of close: {_STRACE}"
        if True in self.options.persistent:
            yield f"faults that last: {_STRACE}"

    # -- running cases

    def _run_all(self, faults: list[Fault]) -> list[Result]:
        results: list[Result] = []
        for number, fault in enumerate(faults):
            if self.options.progress is not None:
                self.options.progress(number, len(faults))
            if self._hangs_there(fault):
                results.append(Result(False))
                continue
            if self.stage.isolated:
                result = self._elsewhere(fault) or Result(False)
            else:
                result = self.cases.run(fault)
            if result.late and self.hangs < _CONFIRMED:
                result = self._with_patience(fault)
                self.hangs += result.late
            results.append(self._noted(fault, result))
            if result.hung and self._can_isolate():
                self._isolate(fault)
        if self._disagree(faults, results):
            self.stage.isolated = True
            self.hung_at.clear()
            self.skipped = 0
            return [self._in_isolation(fault) for fault in faults]
        return results

    def _in_isolation(self, fault: Fault) -> Result:
        if self._hangs_there(fault):
            return Result(False)
        return self._noted(fault, self._elsewhere(fault) or Result(False))

    def _hangs_there(self, fault: Fault) -> bool:
        """Say whether enough is known: each hang takes its whole limit, and says no more."""
        known = (fault.phase, fault.index) in self.hung_at or len(self.hung_at) >= _HANGING
        self.skipped += known
        return known

    def _noted(self, fault: Fault, result: Result) -> Result:
        if result.hung:
            self.hung_at.add((fault.phase, fault.index))
        return result

    def _can_isolate(self) -> bool:
        available = self.stage.server.available and not self.programs
        return available and not self.stage.isolated

    def _isolate(self, fault: Fault) -> None:
        self.stage.isolated = True
        self.warnings.append(
            f"{fault}: a run did not end and may have left something locked in this "
            "process, so each later case runs in a fresh one"
        )

    def _with_patience(self, fault: Fault) -> Result:
        """Run a case again that did not end in time, in a fresh process and with more time."""
        self.stage.patience = PATIENCE
        try:
            fresh = None if self.programs else self._elsewhere(fault)
            if fresh is None or (not fresh.late and not self.stage.isolated):
                here = self.cases.run(fault)
                if fresh is None:
                    return here
                if here.late or here.kinds != fresh.kinds:
                    self._isolate(fault)  # only the machine was slow, but that broke something
            return fresh
        finally:
            self.stage.patience = 1

    def _disagree(self, faults: list[Fault], results: list[Result]) -> bool:
        """Say whether this process remembers: findings and some passes run in a fresh one too."""
        if self.stage.isolated or self.programs or not self.stage.server.available:
            return False
        why = self.power.suspect or self._remembers()
        broken: dict[Any, int] = {}
        for number, result in enumerate(results):
            if result.kinds - {FaultKind.POWER_LOSS}:  # those were confirmed on their way
                broken.setdefault((faults[number].index, result.kinds), number)
        passes = [n for n, result in enumerate(results) if result.met and not result.problems]
        chosen = list(broken.values())[:_CONFIRMED]
        chosen += random.Random(self.options.seed).sample(passes, min(_SAMPLED, len(passes)))
        for number in chosen if not why else ():
            there = self._elsewhere(faults[number], crashing=False)
            if there is not None and there.kinds != results[number].kinds - {FaultKind.POWER_LOSS}:
                why = (
                    f"{faults[number]} gave {_words(results[number])} in this process and "
                    f"{_words(there)} in a fresh one"
                )
                break
        if why:
            self.warnings.append(f"{why}: each case now runs in a fresh process")
        return bool(why)

    def _remembers(self) -> str:
        """Run recovery once more on the trees before and after: it must say what it said then."""
        trees = (self.cases.reference.base, self.cases.reference.final)
        for tree, expected in zip(trees, self.sentinels, strict=True):
            self.stage.show(tree)
            found = self.stage.recovered()
            if not same(found, expected):
                return f"on an unchanged disk recovery gave first {expected} and later {found}"
        return ""

    def _elsewhere(self, fault: Fault, *, crashing: bool = True) -> Result | None:
        """Run one case in a process that nothing has touched, ``None`` where that cannot be."""
        if not self.stage.server.available:
            return None
        crashing = crashing and self.options.states > 0
        request = (
            fault,
            self.cases.reference,
            bool(self.stage.companions),
            self.power.unsafe,
            crashing,
            self.stage.patience,
        )
        try:
            packed = pickle.dumps(request)
        except Exception:
            words = (
                "findings were not run again in a fresh process: what recovery returns cannot be "
                "handed to one"
            )
            if words not in self.warnings:
                self.warnings.append(words)
            return None
        with open(os.path.join(self.stage.place.aside, "request"), "wb") as file:
            file.write(packed)
        # A fresh process each for many recoveries: the limit of one is no measure for all.
        outcome = self.stage.server.run(60 * self.stage.limit)
        self.stage.forget_shown()
        if isinstance(outcome.value, Result):
            return outcome.value
        return Result(True, (Problem(FaultKind.HANG, str(outcome), "the process to end"),))

    def _serve(self, directory: Path) -> Result:
        with open(os.path.join(self.stage.place.aside, "request"), "rb") as file:
            request = pickle.loads(file.read())
        fault, self.cases.reference, sqlite, self.power.unsafe, *rest = request
        self.power.crashing, self.stage.patience = rest
        self.stage.isolated = True
        if not sqlite:
            self.stage.companions = ()
        return self.cases.run(fault)

    def _findings(
        self,
        sites: dict[str, tuple[FaultSite, ...]],
        faults: list[Fault],
        results: list[Result],
    ) -> tuple[FaultFinding, ...]:
        """Put together what has the same kind at the same line."""
        groups: dict[Any, list[tuple[Fault, Problem]]] = {}
        for fault, result in zip(faults, results, strict=True):
            for problem in result.problems:
                site = sites[fault.phase][fault.index]
                line = (site.through, site.site) if site.site else site.index
                key = (problem.kind, fault.phase, site.operation, line)
                groups.setdefault(key, []).append((fault, problem))
        found = []
        confirmed = True if self.stage.server.available or self.programs else None
        for members in groups.values():
            fault, problem = members[0]
            found.append(
                FaultFinding(
                    kind=problem.kind,
                    site=sites[fault.phase][fault.index],
                    fault=fault,
                    errors=tuple(dict.fromkeys(each.error for each, _ in members)),
                    observed=problem.observed,
                    expected=problem.expected,
                    count=len(members),
                    confirmed=confirmed,
                    details=self.power.details.get(problem.observed, ()),
                )
            )
        return tuple(found)


def _given(value: Any, found: Outcome) -> Expected:
    if isinstance(value, Unset):
        return found
    if isinstance(value, Raises | Outcome):
        return value
    return Outcome.returned(value)


def _uncounted(trace: op.Trace, sites: list[FaultSite]) -> Iterator[str]:
    """Say which recorded operations came by ways that no fault can be put into."""
    for operation, recorded, counted in uncounted(trace, sites):
        yield (
            f"{recorded - counted} of {recorded} recorded calls to {operation.value} came by "
            "ways in which no fault can be put (a memory map, a subclass of FileIO, C code)"
        )


def _words(result: Result) -> str:
    return ", ".join(sorted(kind.value for kind in result.kinds)) or "no finding"
