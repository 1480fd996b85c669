"""One case of a sweep: a run that meets a fault, what is left, and whether that is right.

Belongs here: the judgement of a workload and of a recovery that met a fault. Rules:

1. After a fault the subject has reported an error, or the save is really there; recovery gives
   before or after; no lock is left; doing it again succeeds; and no power failure after the fault
   loses what was saved.
2. A recovery that meets a fault says so or gives what is right, and damages nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_statepersist.core import operations as op
from pytest_statepersist.errors import BlindSpot
from pytest_statepersist.explorer.outcome import (
    Ended,
    Expectation,
    Expected,
    Invariant,
    Kind,
    Outcome,
    describe,
    fits,
)
from pytest_statepersist.explorer.runner import TimeIsUp, call
from pytest_statepersist.fault_sweep.case import FAR, Problem, Reference, Result, refused
from pytest_statepersist.fault_sweep.power import PowerLoss
from pytest_statepersist.fault_sweep.stage import Recorder, Stage
from pytest_statepersist.faults.calls import SHORT
from pytest_statepersist.faults.inject import FAILED, NATIVE, Fault, Injection
from pytest_statepersist.faults.report import FaultKind
from pytest_statepersist.mixing import is_unordered
from pytest_statepersist.programs import ProgramRecorder
from pytest_statepersist.recorders.python import PythonRecorder

__all__ = ["Cases"]


class Cases:
    """Runs and judges single cases; ``reference`` is what they are held against."""

    def __init__(
        self,
        stage: Stage,
        power: PowerLoss,
        workload: Callable[..., Any],
        invariant: Invariant | None,
    ) -> None:
        self.stage, self.power = stage, power
        self.workload = workload
        self.invariant = invariant
        self.reference: Reference
        self._runs: dict[Any, list[_Run]] = {}
        """Recorded runs by where a fault was put: other errors there, and those that last, mostly
        lead to the same."""
        self._retried: dict[Any, tuple[list[Problem], int, list[str]]] = {}

    def unacknowledged(self, directory: Path) -> Any:
        """Run the workload without listening to what it acknowledges."""
        return call(self.workload, directory, lambda value=None: None)

    def run(self, fault: Fault) -> Result:
        """Run one case and judge it."""
        self.stage.late = False
        run = self._workload_case if fault.phase == "workload" else self._recovery_case
        result = run(fault)
        return replace(result, late=True) if self.stage.late else result

    # -- a fault in the workload

    def _workload_case(self, fault: Fault) -> Result:
        reference = self.reference
        locks = self.stage.locks()
        notes: list[str] = []
        run = self._run_workload(fault, notes)
        ended, injection, values, trace = run.ended, run.injection, run.values, run.trace
        if not injection.hits:
            return Result(False, notes=tuple(notes))
        if ended.ended is Ended.HUNG:
            expected = "the workload to end with an error or with success"
            problem = Problem(FaultKind.HANG, f"the workload: {ended}", expected)
            return Result(True, (problem,), tuple(notes), hung=True)
        if injection.reverted > 1:
            notes.append(
                "what reverts after a failed sync of everything: all files, not some of them alone"
            )
        problems = [*self.stage.left_locked(run.locks - locks - reference.left)]
        self.stage.changes.begin()
        recovered = self.stage.recovered()
        wrote = self.stage.changes.any()
        problems += self._judge(ended, recovered, values)
        if not problems:
            if wrote and not ended.ok:  # the retry must also do without the recovery
                self.stage.show(reference.base)
                with self.stage.gated(Injection(fault)):
                    self.stage.attempt(self.unacknowledged)
            problems += self._retry(recovered, values)
        states = 0
        if trace is not None and recovered.ended is not Ended.HUNG:
            more, states, further = self.power.judge(
                trace,
                self.expect(self._told(ended, values), trace, values),
                run.began,
                leaves=fault.leaves,
                syncs=injection.failed_syncs,
            )
            problems += more if not problems else ()
            notes += further
            if not problems and not ended.ok and trace.operations:
                more, count, further = self._power_loss_after_retry(fault, trace)
                problems, notes, states = [*problems, *more], [*notes, *further], states + count
        hung = any(each.kind in (FaultKind.HANG, FaultKind.LOCKED) for each in problems)
        return Result(True, tuple(problems), tuple(notes), states, hung)

    def _run_workload(self, fault: Fault, notes: list[str]) -> _Run:
        """Run the workload with a fault, recorded unless another error there led to the same run.

        Most programs do the same whatever the error is, and recording takes longer than running.
        """
        site = (fault.index, fault.leaves)
        known = self._runs.get(site, [])
        if known and self.power.crashing and not _will_differ(fault, known):
            run = self._run_once(fault, None, notes)
            for other in known:
                if run.calls == other.calls and run.ended.ok == other.ended.ok:
                    if self.stage.scan().key() != other.left:
                        continue
                    pairs = zip(other.values, run.values, strict=True)
                    values = [(position, value) for (position, _), (_, value) in pairs]
                    return replace(run, values=values, trace=other.trace, began=other.began)
            if run.ended.ended is Ended.HUNG or not run.injection.hits:
                return run
        recorder = self.stage.recorder(self.reference.base) if self.power.crashing else None
        run = self._run_once(fault, recorder, notes)
        if run.trace is not None and run.is_plain:
            run = replace(run, left=self.stage.scan().key())
            self._runs.setdefault(site, []).append(run)
        return run

    def _run_once(self, fault: Fault, recorder: Recorder | None, notes: list[str]) -> _Run:
        self.stage.show(self.reference.base)
        injection = Injection(fault)
        calls = injection.calls = []
        values: list[tuple[int, Any]] = []
        ended = Outcome(Ended.HUNG, text="ended by its time limit inside of C code")
        trace: op.Trace | None = None
        began = 0
        locks: frozenset[tuple[str, str]] = frozenset()

        def acknowledge(value: Any = None) -> None:
            calls.append(("acknowledged", repr(value)))
            values.append((_position(recorder, len(values)), value))

        def run() -> Outcome:
            nonlocal locks
            with self.stage.gated(injection, recorder):
                outcome = self.stage.attempt(lambda d: call(self.workload, d, acknowledge))
            locks = self.stage.locks()  # before the files are read: that drops locks of fcntl
            return outcome

        if recorder is None:
            ended = run()
        else:
            try:
                with recorder:
                    ended = run()
                trace = recorder.trace
                began = recorder.began if isinstance(recorder, ProgramRecorder) else injection.began
            except BlindSpot as blind:
                notes.append(f"power loss after a fault: {blind}")
            except TimeIsUp:
                self.stage.late = True
        return _Run(ended, injection, values, trace, began, calls, locks)

    def _power_loss_after_retry(
        self, fault: Fault, trace: op.Trace
    ) -> tuple[list[Problem], int, list[str]]:
        """Judge what a power failure leaves of a retry that may rest on what is not on disk.

        A sync that failed has marked its pages clean: a second one that succeeds proves nothing.
        One that was never reached is not made up for by who finds everything in place already.
        What was done after the error decides what a retry finds, so alike traces are tried once.
        """
        key = (fault.leaves, self.power.alike(trace))
        known = self._retried.get(key)
        if known is None:
            known = self._retried[key] = self._retry_recorded(fault)
            return known
        return known[0], 0, known[2]

    def _retry_recorded(self, fault: Fault) -> tuple[list[Problem], int, list[str]]:
        self.stage.show(self.reference.base)
        recorder = self.stage.recorder(self.reference.base)
        injection = Injection(fault)
        values: list[Any] = []

        def run(directory: Path) -> Any:
            return call(self.workload, directory, lambda value=None: values.append(value))

        try:
            with recorder:
                with self.stage.gated(injection, recorder):
                    first = self.stage.attempt(run)
                with self.stage.recorded(recorder):
                    again = self.stage.attempt(run)
            trace = recorder.trace
        except BlindSpot as blind:
            return [], 0, [f"power loss after a retry: {blind}"]
        except TimeIsUp:
            self.stage.late = True
            return [], 0, []
        if first.ok or not again.ok or not injection.hits:
            return [], 0, []
        found = self.stage.recovered()
        twice = self.reference.again
        if twice is not None and fits(found, twice) and not values and self.invariant is None:
            # What the first of the two saved is an older value, not one that never was.
            once = self.reference.after
            values = [once.value] if isinstance(once, Outcome) and once.ok else []
        expectation = Expectation(
            length=0,  # only what is left in the end is asked about: all of it was saved
            before=self.reference.before,
            after=twice if twice is not None and fits(found, twice) else self.reference.after,
            acknowledged=[(0, value) for value in values],
            invariant=self.invariant,
        )
        return self.power.judge(
            trace,
            expectation,
            len(trace),
            leaves=fault.leaves,
            syncs=injection.failed_syncs,
            told="a call failed, doing it again succeeded; ",
        )

    def expect(
        self,
        reported_success: bool,
        trace: op.Trace | None,
        values: list[tuple[int, Any]],
        after: Expected | None = None,
    ) -> Expectation:
        """What may be there: up to what was acknowledged, or further, but nothing in between."""
        reference = self.reference
        rest = reference.acknowledged[len(values) :]
        acknowledged = [*values, *((FAR + n, value) for n, value in enumerate(rest))]
        end = len(trace) if trace is not None else len(values) + 1
        if reported_success:
            acknowledged = list(values)
        return Expectation(
            length=end if reported_success else 2 * FAR,
            before=reference.before,
            after=reference.after if after is None else after,
            acknowledged=acknowledged,
            invariant=self.invariant,
            demands_after=reference.demands_after,
        )

    def _told(self, ended: Outcome, values: list[tuple[int, Any]]) -> bool:
        """Say whether success was reported: one that acknowledges does so by that, each time."""
        return ended.ok and len(values) >= len(self.reference.acknowledged)

    def _judge(
        self, ended: Outcome, recovered: Outcome, values: list[tuple[int, Any]]
    ) -> list[Problem]:
        numbered = [(n + 1, value) for n, (_, value) in enumerate(values)]
        end = len(values) + 1
        told = self._told(ended, values)
        expectation = self.expect(told, None, numbered)
        for judged in expectation.judge(recovered, [(end, end)], end - 1):
            kind = {Kind.HANG: FaultKind.HANG, Kind.UNRECOVERABLE: FaultKind.UNRECOVERABLE}.get(
                judged.kind, FaultKind.SILENT if told else FaultKind.MIXTURE
            )
            if judged.kind is Kind.DURABILITY:
                kind = FaultKind.SILENT
            elif kind is FaultKind.MIXTURE and refused(recovered):
                kind = FaultKind.UNRECOVERABLE
            said = "reported success" if told else f"raised {ended.text}"
            if ended.ok and not told:
                said = f"acknowledged {len(values)} values, without a fault it is more"
            return [Problem(kind, f"the workload {said}; recovery: {recovered}", judged.expected)]
        return []

    def _retry(self, recovered: Outcome, values: list[tuple[int, Any]]) -> list[Problem]:
        """Do it again without the fault: it must end, without an error, and save."""
        reference = self.reference
        again: list[Any] = []
        ended = self.stage.attempt(lambda d: call(self.workload, d, again.append))
        if ended.ended is Ended.HUNG:
            return [
                Problem(
                    FaultKind.LOCKED,
                    f"with the fault gone, doing it again waits for ever: {ended}",
                    "it to succeed: nothing may be left locked",
                )
            ]
        started_over = fits(recovered, reference.before)
        if not ended.ok:
            if not started_over and reference.again_raises:
                return []
            return [Problem(FaultKind.RETRY, f"doing it again {ended}", "it to succeed")]
        found = self.stage.recovered()
        if self.invariant is not None:
            known = [value for _, value in values] + again
            numbered = [(n + 1, value) for n, value in enumerate(known)]
            end = len(known) + 1
            twice = None if started_over else reference.again  # it may have been saved already
            for after in (reference.after, twice):
                if after is not None:
                    expectation = self.expect(True, None, numbered, after)
                    judged = expectation.judge(found, [(end, end)], end - 1)
                    if not judged:
                        break
            right, expected = not judged, judged[0].expected if judged else ""
        else:
            allowed = [reference.after] if started_over else [reference.after, reference.again]
            right = any(fits(found, each) for each in allowed if each is not None)
            expected = describe(reference.after)
        if right:
            return []
        return [Problem(FaultKind.RETRY, f"after doing it again recovery {found}", expected)]

    # -- a fault in a recovery

    def _recovery_case(self, fault: Fault) -> Result:
        reference = self.reference
        on_final = fault.phase == "recovery after"
        tree = reference.final if on_final else reference.base
        expected = reference.after if on_final else reference.before
        self.stage.show(tree)
        locks = self.stage.locks()
        injection, notes = Injection(fault), list[str]()
        met = Outcome(Ended.HUNG, text="ended by its time limit inside of C code")
        recorder = self.stage.recorder(tree) if self.power.crashing else None
        trace = None
        held: frozenset[tuple[str, str]] = frozenset()

        def run() -> Outcome:
            nonlocal held
            with self.stage.gated(injection, recorder):
                outcome = self.stage.attempt(self.stage.recover)
            held = self.stage.locks()
            return outcome

        try:
            if recorder is None:
                met = run()
            else:
                with recorder:
                    met = run()
                trace = recorder.trace
        except BlindSpot as blind:
            notes.append(f"power loss after a fault in recovery: {blind}")
        except TimeIsUp:
            self.stage.late = True
        if not injection.hits:
            return Result(False, notes=tuple(notes))
        problems = [*self.stage.left_locked(held - locks - reference.left)]
        if met.ended is Ended.HUNG:
            problems.append(Problem(FaultKind.HANG, f"the recovery: {met}", "it to end"))
            return Result(True, tuple(problems), tuple(notes), hung=True)
        if met.ok and not refused(met) and not self._right(met, expected, on_final):
            problems.append(
                Problem(
                    FaultKind.WRONG_ANSWER,
                    f"while a call failed recovery {met}",
                    f"{self._right_words(expected)}, or an error",
                )
            )
        later = self.stage.recovered()
        if not self._right(later, expected, on_final):
            problems.append(
                Problem(
                    FaultKind.DAMAGED,
                    f"recovery met the fault ({met}); the next one without it {later}",
                    self._right_words(expected),
                )
            )
        states = 0
        if trace is not None and trace.operations and not problems and self.invariant is None:
            expectation = Expectation(length=len(trace), before=expected, after=expected)
            more, states, further = self.power.judge(
                trace, expectation, leaves=fault.leaves, syncs=injection.failed_syncs
            )
            problems += more
            notes += further
        return Result(True, tuple(problems), tuple(notes), states)

    def _right(self, outcome: Outcome, expected: Expected, on_final: bool) -> bool:
        if self.invariant is None:
            return fits(outcome, expected)
        if not on_final and fits(outcome, self.reference.before):
            return True
        values = self.reference.acknowledged if on_final else ()
        numbered = [(n + 1, value) for n, value in enumerate(values)]
        end = len(numbered) + 1
        expectation = Expectation(
            length=end if on_final else 2 * FAR,
            before=self.reference.before,
            after=self.reference.after,
            acknowledged=numbered,
            invariant=self.invariant,
            demands_after=self.reference.demands_after,
        )
        return not expectation.judge(outcome, [(end, end)], end - 1)

    def _right_words(self, expected: Expected) -> str:
        return describe(expected) if self.invariant is None else "what was acknowledged"


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of the workload that met a fault; ``left`` is what the directory held afterwards."""

    ended: Outcome
    injection: Injection
    values: list[tuple[int, Any]]
    trace: op.Trace | None
    began: int
    calls: list[Any]
    locks: frozenset[tuple[str, str]]
    left: Any = None

    @property
    def is_plain(self) -> bool:
        """Whether its calls tell all that it did: neither C code nor stores into a map."""
        native = any(each[0] is NATIVE for each in self.calls)
        unordered = self.trace is not None and is_unordered(self.trace)
        return self.ended.ended is not Ended.HUNG and not native and not unordered


def _will_differ(fault: Fault, known: list[_Run]) -> bool:
    """Say whether a run most likely goes another way than those known, so that to look is lost."""
    tried = {(run.injection.fault.error == SHORT, run.injection.fault.persistent) for run in known}
    if fault.error == SHORT:
        return (True, fault.persistent) not in tried
    goes_on = any(run.calls[-1] is not FAILED for run in known)
    return fault.persistent and goes_on and (False, True) not in tried


def _position(recorder: Recorder | None, done: int) -> int:
    """Return where in the recording something is acknowledged that comes after so many others."""
    return len(recorder.builder) if isinstance(recorder, PythonRecorder) else done + 1
