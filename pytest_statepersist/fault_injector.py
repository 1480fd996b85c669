"""The fault sweep: every call of a save fails once, with every error that it can meet.

Belongs here: `FaultInjector` and the judgement of one case. How a call is made to fail is in
`faults`. Rules:

1. After a fault the subject has reported an error, or the save is really there; recovery gives
   before or after; no lock is left; doing it again succeeds; and no power failure after the fault
   loses what was saved.
2. Cases run in this process while that can be trusted. Each finding, and a sample of the passes, is
   run again in a process that the subject has not touched; a difference moves every case there.
3. What was not seen is not covered: native calls, faults that were not met, states beyond a bound.
"""

from __future__ import annotations

import heapq
import itertools
import os
import pickle
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pytest_statepersist.arguments import check_callables, user_call, with_acknowledge
from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.models import Model, get_models
from pytest_statepersist.core.states import disk_of, expand, roots, visible_cells
from pytest_statepersist.core.tree import File, Tree
from pytest_statepersist.core.window import Choice
from pytest_statepersist.diagnosing import Diagnoser
from pytest_statepersist.errors import BlindSpot, UserError
from pytest_statepersist.explorer.engine import Engine, Restart
from pytest_statepersist.explorer.fresh import FreshProcess
from pytest_statepersist.explorer.materialise import Materialiser
from pytest_statepersist.explorer.outcome import (
    UNSET,
    Ended,
    Expectation,
    Expected,
    Invariant,
    Judgement,
    Kind,
    Outcome,
    Raises,
    Unset,
    describe,
    fits,
    same,
)
from pytest_statepersist.explorer.runner import Recovery, TimeIsUp, call, run_recovery
from pytest_statepersist.explorer.search import Bounds, search
from pytest_statepersist.explorer.workplace import Workplace, workplace
from pytest_statepersist.faults.calls import (
    ERRORS,
    FaultSite,
    Operation,
    check_errors,
    check_operations,
)
from pytest_statepersist.faults.fake import refuse_while_active
from pytest_statepersist.faults.gate import Handler, gated, installed
from pytest_statepersist.faults.inject import Counting, Fault, Injection
from pytest_statepersist.faults.locks import held_locks
from pytest_statepersist.faults.report import FaultFinding, FaultKind, FaultReport
from pytest_statepersist.faults.supervisor import check_supervision
from pytest_statepersist.findings import Finding
from pytest_statepersist.mixing import is_unordered, without_order
from pytest_statepersist.programs import Answer, ProgramRecorder
from pytest_statepersist.recorders.python import PythonRecorder
from pytest_statepersist.recorders.scan import Keep, scan
from pytest_statepersist.recorders.strace import check_available
from pytest_statepersist.recording import (
    Companions,
    shared_memory_in,
    sqlite_companions,
)

__all__ = ["FaultInjector"]

Recorder = PythonRecorder | ProgramRecorder
_FAR = 1 << 40
_CONFIRMED = 8
_SAMPLED = 3
_DIAGNOSED = 8


@dataclass(frozen=True, slots=True)
class _Problem:
    kind: FaultKind
    observed: str
    expected: str


@dataclass(frozen=True, slots=True)
class _Result:
    """What one case showed. ``met`` is whether the fault happened at all."""

    met: bool
    problems: tuple[_Problem, ...] = ()
    notes: tuple[str, ...] = ()
    states: int = 0
    hung: bool = False

    @property
    def kinds(self) -> frozenset[FaultKind]:
        return frozenset(each.kind for each in self.problems)


@dataclass(slots=True)
class _Reference:
    """What the runs without a fault gave: all that a case is held against."""

    base: Tree
    final: Tree
    before: Expected
    after: Expected
    acknowledged: tuple[Any, ...] = ()
    again: Expected | None = None
    """What recovery gives when the workload ran twice."""
    again_raises: bool = False
    left: frozenset[tuple[str, str]] = field(default_factory=frozenset)
    uses_sqlite: bool = False


class FaultInjector:
    """Makes each call of a save fail, with each error that fits, and judges what is left.

    ``errors`` and ``operations`` choose among `faults.calls.ERRORS` and `Operation`; ``persistent``
    is False, True or both as a tuple. ``deviations`` and ``states`` bound the power-loss states
    after each fault under each ``model``, 0 states for none. ``time_limit`` is in seconds for each
    run, ``cases`` the most that are run; beyond it they are drawn by ``seed``. ``progress`` is told
    before each case how many are done, and of how many.
    """

    def __init__(
        self,
        *,
        errors: Iterable[str] = ERRORS,
        operations: Iterable[str | Operation] | None = None,
        persistent: bool | Sequence[bool] = (False, True),
        recovery: bool = True,
        model: str | Model | Sequence[str | Model] = "posix",
        deviations: int = 1,
        states: int = 100,
        time_limit: float = 5.0,
        cases: int = 5_000,
        seed: int = 0,
        workspace: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.errors = check_errors(errors)
        self.operations = check_operations(operations)
        self.persistent = (persistent,) if isinstance(persistent, bool) else tuple(persistent)
        self.recovery = recovery
        self.models = get_models(model)
        self.deviations, self.states = deviations, states
        self.time_limit, self.cases, self.seed = time_limit, cases, seed
        self.workspace = workspace
        self.progress = progress
        if not self.persistent:
            raise UserError("persistent=() asks for no fault at all; give False, True, or both")
        if time_limit <= 0 or cases < 1 or states < 0 or deviations < 0:
            raise UserError(
                "time_limit= takes seconds above 0, cases= 1 or more, states= and deviations= 0 "
                "or more"
            )
        self.reports: list[FaultReport] = []

    def check(self, **arguments: Any) -> FaultReport:
        """Sweep as `sweep` does and raise `CrashConsistencyError` where there is a finding."""
        __tracebackhide__ = True
        report = self.sweep(**arguments)
        report.raise_for_findings()
        return report

    def sweep(
        self,
        *,
        workload: Callable[..., Any],
        recover: Recovery,
        setup: Callable[[Path], Any] | None = None,
        before: Any = UNSET,
        after: Any = UNSET,
        invariant: Invariant | None = None,
        name: str = "",
        programs: bool = False,
        **options: Any,
    ) -> FaultReport:
        """Run the workload once to count its calls, then once for each call and fitting error.

        Arguments are those of `CrashSimulator.explore`; ``options`` are those of the constructor,
        for this sweep. Raises `UserError` where the workload fails without any fault. ``programs``
        is for callables that only run commands, see `sweep_commands`.
        """
        if options:
            chosen = {key: getattr(self, key) for key in _OPTIONS} | {"model": self.models}
            unknown = sorted(set(options) - chosen.keys())
            if unknown:
                raise UserError(f"there is no option {unknown[0]!r}; there are {sorted(chosen)}")
            injector = FaultInjector(**{**chosen, **options})
            injector.reports = self.reports
            return injector.sweep(
                workload=workload,
                recover=recover,
                setup=setup,
                before=before,
                after=after,
                invariant=invariant,
                name=name,
                programs=programs,
            )
        refuse_while_active("FaultInjector.sweep")
        check_callables(workload, recover, setup, invariant)
        started = time.perf_counter()
        with _Sweep(self, workload, recover, invariant, programs) as sweep:
            report = sweep.go(setup, before, after)
        report = replace(report, name=name, seconds=time.perf_counter() - started)
        self.reports.append(report)
        return report

    def check_commands(self, **arguments: Any) -> FaultReport:
        """Sweep as `sweep_commands` does; raise `CrashConsistencyError` where `check` does."""
        report = self.sweep_commands(**arguments)
        report.raise_for_findings()
        return report

    def sweep_commands(
        self,
        *,
        workload: str,
        recover: str,
        setup: str | None = None,
        template: Path | None = None,
        before: str | None = None,
        after: str | None = None,
        name: str = "",
        **options: Any,
    ) -> FaultReport:
        """Sweep over programs of any language: shell commands with ``{dir}`` for the directory.

        A workload reports an error by another exit code than 0, or by dying of a signal. The answer
        of a recovery is its exit code with what it prints; ``before`` and ``after`` are regular
        expressions for it. ``template`` is a directory that is copied to the start. Needs Linux 5.5
        and strace: raises `RecorderUnavailable`, `UserError` as `sweep` does.
        """
        from pytest_statepersist.programs import Commands, Matches

        commands = Commands(
            workload=workload,
            recover=recover,
            setup=setup,
            template=template,
            before=UNSET if before is None else Matches("before", before),
            after=UNSET if after is None else Matches("after", after),
        )
        commands.rehearse()
        return self.sweep(
            workload=commands.save,
            recover=commands.load,
            setup=commands.set_up,
            before=commands.before,
            after=commands.after,
            name=name,
            programs=True,
            **options,
        )


_OPTIONS = (
    "errors",
    "operations",
    "persistent",
    "recovery",
    "deviations",
    "states",
    "time_limit",
    "cases",
    "seed",
    "workspace",
    "progress",
)


class _Sweep:
    """One sweep: the directory, the processes set aside, and what is known so far."""

    def __init__(
        self,
        options: FaultInjector,
        workload: Callable[..., Any],
        recover: Recovery,
        invariant: Invariant | None,
        programs: bool = False,
    ) -> None:
        self.options = options
        self.programs = programs
        """Whether all is done by other programs: then strace records, and each run is fresh."""
        self.workload = with_acknowledge(workload)
        self.recover = recover
        self.invariant = invariant
        self.stack = ExitStack()
        self.reference: _Reference
        self.sentinels: tuple[Outcome, ...] = ()
        self.outcomes: dict[Any, Outcome] = {}
        self.judged: dict[Any, tuple[tuple[_Problem, ...], int, tuple[str, ...]]] = {}
        self.details: dict[str, tuple[Finding, ...]] = {}
        self.bases: dict[int, Materialiser] = {}
        self.companions: Companions = ()
        self.unsafe: dict[str, frozenset[Kind]] = {}
        """What a power failure breaks without any fault, by model: no fault is to blame for it."""
        self.isolated = False
        self.crashing = options.states > 0
        self.suspect = ""
        """Why answers of this process are not to be trusted, where they are not."""
        self.warnings: list[str] = []

    def __enter__(self) -> _Sweep:
        stack = self.stack
        try:
            self.place: Workplace = stack.enter_context(workplace(self.options.workspace))
            self.directory = Path(self.place.directory)
            if self.programs:
                check_available()
                check_supervision()
            else:
                self._put_gates_in_place()
            # Both are set aside before the subject first runs, so that they inherit nothing of it.
            self.fresh = FreshProcess(self.recover, self.directory)
            stack.callback(self.fresh.close)
            self.server = FreshProcess(self._serve, self.directory)
            stack.callback(self.server.close)
        except BaseException:
            stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def _put_gates_in_place(self) -> None:
        self.stack.enter_context(installed())
        self.companions, _ = sqlite_companions()
        if self.companions:
            from pytest_statepersist.faults.sqlite import sqlite_gate

            self.stack.enter_context(sqlite_gate())

    @contextmanager
    def _gated(self, handler: Handler, recorder: Recorder | None = None) -> Iterator[None]:
        """Let a handler decide about calls, and know where in the recording a fault began."""
        with gated(self.directory, handler) as gate:
            if isinstance(recorder, ProgramRecorder):
                gate.unseen = recorder.unseen
            if isinstance(handler, Injection) and recorder is not None:
                handler.position = _position(recorder)
            yield

    # -- the runs without a fault

    def go(self, setup: Callable[[Path], Any] | None, before: Any, after: Any) -> FaultReport:
        if setup is not None:
            user_call("setup", call, setup, self.directory)
        base = self._scan()
        sites, blind = self._count(base, before, after)
        faults = list(self._faults(sites))
        not_covered = list(blind)
        if not faults:
            not_covered.append("no call of the workload fits the errors and operations chosen")
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
        for model, kinds in self.unsafe.items():
            if kinds:
                words = " and ".join(sorted(kind.value for kind in kinds))
                not_covered.append(
                    f"power loss after a fault ({model}): without any fault a power failure breaks "
                    f"{words} already, so that alone is blamed on no fault; CrashSimulator.check "
                    "explains it"
                )
        results = self._run_all(faults)
        missed = sum(not result.met for result in results)
        if missed:
            not_covered.append(
                f"{missed} faults were not met: the workload does not make the same calls each time"
            )
        notes = dict.fromkeys(note for result in results for note in result.notes)
        return FaultReport(
            cases=len(results) - missed,
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
        first = self._recovered()
        reading = self._sites_of_recovery(base)
        self._show(base)
        counting, blind = Counting(), list[str]()
        acknowledged: list[Any] = []
        recorder = self._recorder(base)
        before_locks = held_locks(self.place.directory)

        def acknowledge(value: Any = None) -> None:
            acknowledged.append(value)
            recorder.acknowledge(value)

        try:
            with recorder, self._gated(counting, recorder):
                user_call("the workload", call, self.workload, self.directory, acknowledge)
        except BlindSpot as error:
            blind.append(f"{error}")
        else:
            blind += _uncounted(recorder.trace, counting.sites)
        left = held_locks(self.place.directory) - before_locks
        if not any(site.function.startswith("sqlite.") for site in counting.sites):
            self.companions = ()
        final = self._scan()
        last = self._recovered()
        self.sentinels = (first, last)
        self._show(final)
        twice = run_recovery(self._unacknowledged, self.directory, self.options.time_limit)
        again = self._recovered()
        self.reference = _Reference(
            base=base,
            final=final,
            before=_given(before, first),
            after=_given(after, last),
            acknowledged=tuple(acknowledged),
            again=again,
            again_raises=not twice.ok,
            left=left,
            uses_sqlite=bool(self.companions),
        )
        if self.invariant is None and not fits(last, self.reference.after):
            raise UserError(
                f"without any fault recovery gives {last} after the workload, where "
                f"{describe(self.reference.after)} was expected; nothing was judged"
            )
        if not blind and self.options.states:
            self._without_fault(recorder.trace)
        sites = {"workload": tuple(counting.sites), "recovery before": reading}
        sites["recovery after"] = self._sites_of_recovery(final)
        return sites, blind

    def _unacknowledged(self, directory: Path) -> Any:
        return call(self.workload, directory, lambda value=None: None)

    def _sites_of_recovery(self, tree: Tree) -> tuple[FaultSite, ...]:
        if not self.options.recovery:
            return ()
        self._show(tree)
        counting = Counting()
        with self._gated(counting):
            self._recovered()
        return tuple(counting.sites)

    def _tells_apart(self) -> bool:
        before, after = self.reference.before, self.reference.after
        if isinstance(before, Raises):
            return not before.matches(after) if isinstance(after, Outcome) else before != after
        return not fits(before, after)

    def _faults(self, sites: dict[str, tuple[FaultSite, ...]]) -> Iterator[Fault]:
        for phase, each in sites.items():
            for site in each:
                if site.operation not in self.options.operations:
                    continue
                for error in site.errors:
                    if error in self.options.errors:
                        for persistent in self.options.persistent:
                            # A signal interrupts one call; C code rightly tries again for ever.
                            if not (persistent and error == "EINTR"):
                                yield Fault(site.index, error, persistent, phase)

    # -- running cases

    def _run_all(self, faults: list[Fault]) -> list[_Result]:
        results: list[_Result] = []
        for number, fault in enumerate(faults):
            if self.options.progress is not None:
                self.options.progress(number, len(faults))
            if self.isolated:
                results.append(self._elsewhere(fault) or _Result(False))
                continue
            result = self._case(fault)
            results.append(result)
            if result.hung and self.server.available and not self.programs:
                self.isolated = True
                self.warnings.append(
                    f"{fault}: a run did not end and may have left something locked in this "
                    "process, so each later case runs in a fresh one"
                )
        if self._disagree(faults, results):
            self.isolated = True
            return [self._elsewhere(fault) or _Result(False) for fault in faults]
        return results

    def _disagree(self, faults: list[Fault], results: list[_Result]) -> bool:
        """Say whether this process remembers: findings and some passes run in a fresh one too."""
        if self.isolated or self.programs or not self.server.available:
            return False
        why = self.suspect or self._remembers()
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
        trees = (self.reference.base, self.reference.final)
        for tree, expected in zip(trees, self.sentinels, strict=True):
            self._show(tree)
            found = self._recovered()
            if not same(found, expected):
                return f"on an unchanged disk recovery gave first {expected} and later {found}"
        return ""

    def _elsewhere(self, fault: Fault, *, crashing: bool = True) -> _Result | None:
        """Run one case in a process that nothing has touched, ``None`` where that cannot be."""
        if not self.server.available:
            return None
        crashing = crashing and self.options.states > 0
        request = (fault, self.reference, bool(self.companions), self.unsafe, crashing)
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
        with open(os.path.join(self.place.aside, "request"), "wb") as file:
            file.write(packed)
        # A fresh process each for many recoveries: the limit of one is no measure for all.
        outcome = self.server.run(60 * self.options.time_limit)
        self.bases.clear()
        if isinstance(outcome.value, _Result):
            return outcome.value
        return _Result(True, (_Problem(FaultKind.HANG, str(outcome), "the process to end"),))

    def _serve(self, directory: Path) -> _Result:
        with open(os.path.join(self.place.aside, "request"), "rb") as file:
            request = pickle.loads(file.read())
        fault, self.reference, sqlite, self.unsafe, self.crashing = request
        self.isolated = True
        if not sqlite:
            self.companions = ()
        return self._case(fault)

    def _case(self, fault: Fault) -> _Result:
        if fault.phase == "workload":
            return self._workload_case(fault)
        return self._recovery_case(fault)

    # -- a fault in the workload

    def _workload_case(self, fault: Fault) -> _Result:
        reference, limit = self.reference, self.options.time_limit
        self._show(reference.base)
        locks = held_locks(self.place.directory)
        values: list[tuple[int, Any]] = []
        notes: list[str] = []
        ended = Outcome(Ended.HUNG, text="ended by its time limit inside of C code")
        injection = Injection(fault)
        recorder = self._recorder(reference.base) if self.crashing else None
        trace: op.Trace | None = None
        began = 0

        def acknowledge(value: Any = None) -> None:
            position = len(values) + 1
            if isinstance(recorder, PythonRecorder):
                position = len(recorder.builder)
            values.append((position, value))

        def run() -> Outcome:
            with self._gated(injection, recorder):
                return run_recovery(lambda d: call(self.workload, d, acknowledge), *where)

        where = (self.directory, limit)
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
                pass
        _forget(ended)
        if not injection.hits:
            return _Result(False, notes=tuple(notes))
        if ended.ended is Ended.HUNG:
            expected = "the workload to end with an error or with success"
            problem = _Problem(FaultKind.HANG, f"the workload: {ended}", expected)
            return _Result(True, (problem,), tuple(notes), hung=True)
        problems = [*self._left_locked(locks)]
        mark = _fingerprint(self.place.directory)
        recovered = self._recovered()
        problems += self._judge(ended, recovered, values)
        wrote = _fingerprint(self.place.directory) != mark
        if not problems and not ended.ok:
            if wrote:  # the retry must also do without the recovery
                self._show(reference.base)
                with self._gated(Injection(fault)):
                    _forget(run_recovery(self._unacknowledged, *where))
            problems += self._retry(recovered, values)
        states = 0
        if trace is not None and recovered.ended is not Ended.HUNG:
            more, states, further = self._power_loss(
                trace, self._expect(ended.ok, trace, values), began
            )
            problems += more if not problems else ()
            notes += further
        hung = any(each.kind in (FaultKind.HANG, FaultKind.LOCKED) for each in problems)
        return _Result(True, tuple(problems), tuple(notes), states, hung)

    def _left_locked(self, locks: frozenset[tuple[str, str]]) -> Iterator[_Problem]:
        for path, kind in sorted(held_locks(self.place.directory) - locks - self.reference.left):
            yield _Problem(
                FaultKind.LOCKED,
                f"a {kind} lock on {path!r} is still held after the workload has ended",
                "the lock to be given back, as it is without the fault",
            )

    def _expect(
        self, reported_success: bool, trace: op.Trace | None, values: list[tuple[int, Any]]
    ) -> Expectation:
        """What may be there: up to what was acknowledged, or further, but nothing in between."""
        reference = self.reference
        rest = reference.acknowledged[len(values) :]
        acknowledged = [*values, *((_FAR + n, value) for n, value in enumerate(rest))]
        end = len(trace) if trace is not None else len(values) + 1
        if reported_success:
            acknowledged = list(values)
        return Expectation(
            length=end if reported_success else 2 * _FAR,
            before=reference.before,
            after=reference.after,
            acknowledged=acknowledged,
            invariant=self.invariant,
        )

    def _judge(
        self, ended: Outcome, recovered: Outcome, values: list[tuple[int, Any]]
    ) -> list[_Problem]:
        numbered = [(n + 1, value) for n, (_, value) in enumerate(values)]
        end = len(values) + 1
        expectation = self._expect(ended.ok, None, numbered)
        for judged in expectation.judge(recovered, [(end, end)], end - 1):
            kind = {Kind.HANG: FaultKind.HANG, Kind.UNRECOVERABLE: FaultKind.UNRECOVERABLE}.get(
                judged.kind, FaultKind.SILENT if ended.ok else FaultKind.MIXTURE
            )
            if judged.kind is Kind.DURABILITY:
                kind = FaultKind.SILENT
            elif kind is FaultKind.MIXTURE and _refused(recovered):
                kind = FaultKind.UNRECOVERABLE
            said = "reported success" if ended.ok else f"raised {ended.text}"
            return [_Problem(kind, f"the workload {said}; recovery: {recovered}", judged.expected)]
        return []

    def _retry(self, recovered: Outcome, values: list[tuple[int, Any]]) -> list[_Problem]:
        """Do it again without the fault: it must end, without an error, and save."""
        reference = self.reference
        again: list[Any] = []
        ended = run_recovery(
            lambda d: call(self.workload, d, again.append), self.directory, self.options.time_limit
        )
        _forget(ended)
        if ended.ended is Ended.HUNG:
            return [
                _Problem(
                    FaultKind.LOCKED,
                    f"with the fault gone, doing it again waits for ever: {ended}",
                    "it to succeed: nothing may be left locked",
                )
            ]
        started_over = fits(recovered, reference.before)
        if not ended.ok:
            if not started_over and reference.again_raises:
                return []
            return [_Problem(FaultKind.RETRY, f"doing it again {ended}", "it to succeed")]
        found = self._recovered()
        if self.invariant is not None:
            known = [value for _, value in values] + again
            numbered = [(n + 1, value) for n, value in enumerate(known)]
            end = len(known) + 1
            judged = self._expect(True, None, numbered).judge(found, [(end, end)], end - 1)
            right, expected = not judged, judged[0].expected if judged else ""
        else:
            allowed = [reference.after] if started_over else [reference.after, reference.again]
            right = any(fits(found, each) for each in allowed if each is not None)
            expected = describe(reference.after)
        if right:
            return []
        return [_Problem(FaultKind.RETRY, f"after doing it again recovery {found}", expected)]

    # -- a fault in a recovery

    def _recovery_case(self, fault: Fault) -> _Result:
        reference, limit = self.reference, self.options.time_limit
        on_final = fault.phase == "recovery after"
        tree = reference.final if on_final else reference.base
        expected = reference.after if on_final else reference.before
        self._show(tree)
        locks = held_locks(self.place.directory)
        injection, notes = Injection(fault), list[str]()
        met = Outcome(Ended.HUNG, text="ended by its time limit inside of C code")
        recorder = self._recorder(tree) if self.crashing else None
        trace = None

        def run() -> Outcome:
            with self._gated(injection, recorder):
                return run_recovery(self.recover, self.directory, limit)

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
            pass
        _forget(met)
        if not injection.hits:
            return _Result(False, notes=tuple(notes))
        problems = [*self._left_locked(locks)]
        if met.ended is Ended.HUNG:
            problems.append(_Problem(FaultKind.HANG, f"the recovery: {met}", "it to end"))
            return _Result(True, tuple(problems), tuple(notes), hung=True)
        if met.ok and not _refused(met) and not self._right(met, expected, on_final):
            problems.append(
                _Problem(
                    FaultKind.WRONG_ANSWER,
                    f"while a call failed recovery {met}",
                    f"{self._right_words(expected)}, or an error",
                )
            )
        later = self._recovered()
        if not self._right(later, expected, on_final):
            problems.append(
                _Problem(
                    FaultKind.DAMAGED,
                    f"recovery met the fault ({met}); the next one without it {later}",
                    self._right_words(expected),
                )
            )
        states = 0
        if trace is not None and trace.operations and not problems and self.invariant is None:
            expectation = Expectation(length=len(trace), before=expected, after=expected)
            more, states, further = self._power_loss(trace, expectation)
            problems += more
            notes += further
        return _Result(True, tuple(problems), tuple(notes), states)

    def _right(self, outcome: Outcome, expected: Expected, on_final: bool) -> bool:
        if self.invariant is None:
            return fits(outcome, expected)
        if not on_final and fits(outcome, self.reference.before):
            return True
        values = self.reference.acknowledged if on_final else ()
        numbered = [(n + 1, value) for n, value in enumerate(values)]
        end = len(numbered) + 1
        expectation = Expectation(
            length=end if on_final else 2 * _FAR,
            before=self.reference.before,
            after=self.reference.after,
            acknowledged=numbered,
            invariant=self.invariant,
        )
        return not expectation.judge(outcome, [(end, end)], end - 1)

    def _right_words(self, expected: Expected) -> str:
        return describe(expected) if self.invariant is None else "what was acknowledged"

    # -- power loss after a fault

    def _power_loss(
        self, trace: op.Trace, expectation: Expectation, since: int = 0
    ) -> tuple[list[_Problem], int, list[str]]:
        """Judge the disks that a power failure may leave, up to a bound; alike traces once.

        Up to ``since`` all went as without a fault, and what a crash leaves there is known.
        """
        if not self.crashing:
            return [], 0, []
        key = (since, _alike(trace, expectation))
        known = self.judged.get(key)
        if known is not None:
            return list(known[0]), 0, []
        problems: list[_Problem] = []
        notes: list[str] = []
        count = 0
        if is_unordered(trace):
            notes.append(
                "power loss after a fault: the order of stores through a memory map was not seen"
            )
        for model in self.options.models:
            if without_order(trace, model) is not None:
                continue  # that it is not covered has been noted
            number, failure, bounded = self._crash(trace, model, expectation, since)
            count += number
            if failure is not None:
                problems.append(self._explain(trace, model, expectation, failure))
                break
            if bounded:
                notes.append(
                    f"power loss after a fault ({model}): only the first {self.options.states} "
                    "states were judged after some faults; raise states="
                )
        self.judged[key] = (tuple(problems), count, tuple(notes))
        self.bases.clear()
        return problems, count, notes

    def _without_fault(self, trace: op.Trace) -> None:
        """Learn what a power failure breaks by itself."""
        positions = [each.position for each in trace.acknowledgements]
        values = list(zip(positions, self.reference.acknowledged, strict=True))
        expectation = self._expect(True, trace, values)
        for model in self.options.models:
            self.unsafe[model.name] = frozenset(
                judged.kind for _, _, judged in self._states(trace, model, expectation) if judged
            )
        self.bases.clear()

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
        aside = os.path.join(self.place.aside, "states")
        os.makedirs(aside, exist_ok=True)
        shown = Materialiser(self.place.directory, aside, trace, present=False)
        deviations, limit = self.options.deviations, self.options.states
        for state in islice(_states_since(disk, since, deviations), limit):
            outcome = self._outcome(disk, state, shown)
            wrong = expectation.judge(outcome, state.points, state.last)
            new = [each for each in wrong if each.kind not in self.unsafe.get(model.name, ())]
            yield state, outcome, (*new, *wrong, None)[0]

    def _outcome(self, disk: Disk, state: CrashState, shown: Materialiser) -> Outcome:
        tree = disk.tree(state)
        key = (tree.key(), _order_of_times(tree))
        known = self.outcomes.get(key)
        if known is None:
            shown.show(disk, state)
            mark = _fingerprint(self.place.directory)
            known = self._recovered()
            if _fingerprint(self.place.directory) != mark:
                shown.rebuild()
            self.outcomes[key] = known
        return known

    def _explain(
        self,
        trace: op.Trace,
        model: Model,
        expectation: Expectation,
        failure: tuple[CrashState, Outcome, str],
    ) -> _Problem:
        _, outcome, words = failure
        details = self._diagnose(trace, model, expectation)
        observed = f"after a power failure recovery {outcome} ({words})"
        if details:
            first = details[0]
            observed = f"{observed}; {first}"
            missing = ", ".join(
                f"{type(each).__name__.lower()} {each.path}" for each in first.missing
            )
            if missing:
                observed += f"; not on disk: {missing}"
        self.details[observed] = details
        return _Problem(FaultKind.POWER_LOSS, observed, "what was saved to survive")

    def _diagnose(
        self, trace: op.Trace, model: Model, expectation: Expectation
    ) -> tuple[Finding, ...]:
        if len(self.details) >= _DIAGNOSED:
            return ()
        engine = Engine(
            trace=trace,
            recover=self.recover,
            argument=self.directory,
            place=self.place,
            fresh=self.fresh,
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

    # -- the directory

    def _recovered(self) -> Outcome:
        if self.isolated:
            return self.fresh.run(self.options.time_limit)
        outcome = run_recovery(self.recover, self.directory, self.options.time_limit)
        _forget(outcome)
        return outcome

    def _scan(self) -> Tree:
        directory = self.place.directory
        return scan(directory, keep=Keep(directory), ignore=shared_memory_in(directory)).tree

    def _show(self, tree: Tree) -> None:
        """Make the directory hold a tree, whatever a run left in it."""
        shown = self.bases.get(id(tree))
        if shown is not None:
            shown.rebuild()
            return
        trace = op.Trace(tree)
        aside = os.path.join(self.place.aside, f"base{len(self.bases)}")
        os.makedirs(aside, exist_ok=True)
        shown = Materialiser(self.place.directory, aside, trace, present=False)
        start = CrashState(-1, frozenset(), points=((0, 0),))
        shown.show(disk_of(trace, self.options.models[0]), start)
        self.bases[id(tree)] = shown

    def _recorder(self, base: Tree) -> Recorder:
        if self.programs:
            return ProgramRecorder(self.directory, ignore=shared_memory_in(self.directory))
        return PythonRecorder(
            self.directory,
            base_tree=base,
            ignore=shared_memory_in(self.directory),
            companions=self.companions,
        )

    # -- findings

    def _findings(
        self,
        sites: dict[str, tuple[FaultSite, ...]],
        faults: list[Fault],
        results: list[_Result],
    ) -> tuple[FaultFinding, ...]:
        """Put together what has the same kind at the same line."""
        groups: dict[Any, list[tuple[Fault, _Problem]]] = {}
        for fault, result in zip(faults, results, strict=True):
            for problem in result.problems:
                site = sites[fault.phase][fault.index]
                key = (problem.kind, fault.phase, site.operation, site.site or site.index)
                groups.setdefault(key, []).append((fault, problem))
        found = []
        confirmed = True if self.server.available or self.programs else None
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
                    details=self.details.get(problem.observed, ()),
                )
            )
        return tuple(found)


def _states_since(disk: Disk, since: int, deviations: int) -> Iterator[CrashState]:
    """Yield the different disks of crash points from ``since`` on, fewest deviations first.

    The fullest state of a choice is legal the longest, so that a choice ends with it.
    """
    queue: list[tuple[int, int, Choice, CrashState]] = []
    order = itertools.count()

    def push(choices: Iterable[Choice]) -> None:
        for choice in choices:
            if choice.deviations > deviations:
                continue
            state = choice.state()
            if state.points and state.points[-1][1] >= since:
                heapq.heappush(queue, (choice.deviations, next(order), choice, state))

    push(roots(disk))
    while queue:
        _, _, choice, state = heapq.heappop(queue)
        alike, others = expand(choice, visible_cells(disk, state))
        push(others)
        yield alike.state()


def _position(recorder: Recorder) -> Callable[[], int]:
    if isinstance(recorder, ProgramRecorder):
        return recorder.note_fault
    return lambda: len(recorder.builder)


def _refused(outcome: Outcome) -> bool:
    """Say whether a program's recovery said by its exit code that it could not load."""
    return isinstance(outcome.value, Answer) and outcome.value.code != 0


def _given(value: Any, found: Outcome) -> Expected:
    if isinstance(value, Unset):
        return found
    if isinstance(value, Raises | Outcome):
        return value
    return Outcome.returned(value)


def _forget(outcome: Outcome) -> None:
    """Let go of the frames that an exception holds, and of the files that are open in them."""
    error: BaseException | None = outcome.error
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _fingerprint(directory: str) -> tuple[tuple[object, ...], ...]:
    """Return what shows whether anything in a directory was changed."""
    rows: list[tuple[object, ...]] = []
    pending = [directory]
    while pending:
        here = pending.pop()
        try:
            status = os.stat(here)
            rows.append((here, status.st_mtime_ns, status.st_ctime_ns))
            with os.scandir(here) as entries:
                for entry in entries:
                    found = entry.stat(follow_symlinks=False)
                    rows.append((entry.path, found.st_ino, found.st_size, found.st_ctime_ns))
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except OSError as error:
            rows.append((here, error.errno))
    return tuple(sorted(rows, key=repr))


def _order_of_times(tree: Tree) -> tuple[int, ...]:
    """Return the order of modification times: a recovery may pick the newest file."""
    times = [node.mtime or 0 for _, _, node in tree.walk() if isinstance(node, File)]
    ranks = {value: rank for rank, value in enumerate(sorted(set(times)))}
    return tuple(ranks[value] for value in times)


_BESIDE = frozenset({"path", "site", "time", "task"})


def _alike(trace: op.Trace, expectation: Expectation) -> Any:
    """Return what makes two traces the same to a judge: operations without lines and times."""
    rows = tuple(
        (
            type(each).__name__,
            *(getattr(each, name) for name in each.__dataclass_fields__ if name not in _BESIDE),
        )
        for each in trace.operations
    )
    stages = tuple((position, repr(value)) for position, value in expectation.acknowledged)
    return (id(trace.base), rows, expectation.length, stages)


_COUNTED: dict[type, Operation] = {
    op.Write: Operation.WRITE,
    op.Fsync: Operation.FSYNC,
    op.Rename: Operation.RENAME,
    op.Unlink: Operation.UNLINK,
    op.Mkdir: Operation.MKDIR,
    op.Link: Operation.LINK,
}


def _uncounted(trace: op.Trace, sites: list[FaultSite]) -> Iterator[str]:
    """Say which recorded operations came by ways that no fault can be put into."""
    for kind, operation in _COUNTED.items():
        recorded = sum(isinstance(each, kind) for each in trace.operations)
        counted = sum(site.operation is operation for site in sites)
        if recorded > counted:
            yield (
                f"{recorded - counted} of {recorded} recorded calls to {operation.value} came by "
                "ways in which no fault can be put (a memory map, a subclass of FileIO, C code)"
            )


def _words(result: _Result) -> str:
    return ", ".join(sorted(kind.value for kind in result.kinds)) or "no finding"
