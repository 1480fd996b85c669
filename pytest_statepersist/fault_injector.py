"""The fault sweep: every call of a save fails once, with every error that it can meet.

Belongs here: `FaultInjector`, what users call, and checking what they say. What is right after a
fault is in `fault_sweep`; how a call is made to fail is in `faults`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pytest_statepersist.arguments import check_callables
from pytest_statepersist.core.models import Model, get_models
from pytest_statepersist.errors import UserError
from pytest_statepersist.explorer.outcome import (
    UNSET,
    Invariant,
)
from pytest_statepersist.explorer.runner import Recovery
from pytest_statepersist.fault_sweep.case import Options
from pytest_statepersist.fault_sweep.run import SweepRun
from pytest_statepersist.faults.calls import (
    ERRORS,
    Operation,
    check_errors,
    check_operations,
)
from pytest_statepersist.faults.fake import refuse_while_active
from pytest_statepersist.faults.report import FaultReport

__all__ = ["INJECTIONS", "FaultInjector"]

INJECTIONS = ("auto", "seccomp", "strace")


class FaultInjector:
    """Makes each call of a save fail, with each error that fits, and judges what is left.

    ``errors`` and ``operations`` choose among `faults.calls.ERRORS` and `Operation`; ``persistent``
    is False, True or both as a tuple. ``deviations`` and ``states`` bound the power-loss states
    after each fault under each ``model``, 0 states for none. ``time_limit`` is in seconds for each
    run, ``cases`` the most that are run; beyond it they are drawn by ``seed``. ``progress`` is told
    before each case how many are done, and of how many. ``injection`` says how faults get into
    programs: "seccomp", "strace", or "auto", the first of these that the system allows.
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
        injection: str = "auto",
    ) -> None:
        self.options = Options(
            errors=check_errors(errors),
            operations=check_operations(operations),
            persistent=(persistent,) if isinstance(persistent, bool) else tuple(persistent),
            recovery=recovery,
            models=tuple(get_models(model)),
            deviations=deviations,
            states=states,
            time_limit=time_limit,
            cases=cases,
            seed=seed,
            workspace=workspace,
            progress=progress,
            injection=injection,
        )
        if injection not in INJECTIONS:
            raise UserError(f"injection={injection!r} is none of {INJECTIONS}")
        if not self.options.persistent:
            raise UserError("persistent=() asks for no fault at all; give False, True, or both")
        if time_limit <= 0 or cases < 1 or states < 0 or deviations < 0:
            raise UserError(
                "time_limit= takes seconds above 0, cases= 1 or more, states= and deviations= 0 "
                "or more"
            )
        self.reports: list[FaultReport] = []

    def check(self, **arguments: Any) -> FaultReport:
        """Sweep as `sweep` does and raise as `CrashSimulator.check` does."""
        __tracebackhide__ = True
        report = self.sweep(**arguments)
        report.raise_for_findings()
        report.raise_where_not_covered()
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
            chosen = {each.name: getattr(self.options, each.name) for each in fields(Options)}
            chosen["model"] = chosen.pop("models")
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
        with SweepRun(self.options, workload, recover, invariant, programs) as run:
            report = run.go(setup, before, after)
        report = replace(report, name=name, seconds=time.perf_counter() - started)
        self.reports.append(report)
        return report

    def check_commands(self, **arguments: Any) -> FaultReport:
        """Sweep as `sweep_commands` does and raise as `check` does."""
        __tracebackhide__ = True
        report = self.sweep_commands(**arguments)
        report.raise_for_findings()
        report.raise_where_not_covered()
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
