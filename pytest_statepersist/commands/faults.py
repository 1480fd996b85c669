"""Let each call of a program fail, with each error that it can meet, and say what is lost.

The commands are those of 'statepersist check'. The workload runs once to count its calls on files
of the directory, its children's included; then once for each call and each fitting error (full
disk, I/O error, too many open files, a write of half the bytes, …), once and from there on. After
each fault the workload has to exit with another code than 0, or the save has to be there;
--recover has to give the answer from before or the one from after; running the workload again has
to succeed; and no power failure after the fault may lose what was saved. The same faults are put
into --recover, which has to answer rightly or to exit with another code than 0.

Exit codes: 0 sound, 1 there are findings or something was not covered, 2 could not run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pytest_statepersist.commands.check import (
    add_commands,
    commands_of,
    models_of,
    workspace_of,
)
from pytest_statepersist.commands.progress import Progress
from pytest_statepersist.fault_injector import INJECTIONS, FaultInjector
from pytest_statepersist.faults.calls import ERRORS, Operation
from pytest_statepersist.faults.report import FaultReport
from pytest_statepersist.report.data import check_as_json

__all__ = ["add_arguments", "run"]

_SOUND, _UNSOUND = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_commands(parser)
    add = parser.add_argument
    add("--errors", metavar="NAMES", help=f"comma-separated; all of {', '.join(ERRORS)}")
    names = ", ".join(each.value for each in Operation)
    add("--operations", metavar="NAMES", help=f"comma-separated; all of {names}")
    add("--once", action="store_true", help="no fault that lasts from there on")
    add("--no-recovery", action="store_true", help="no faults in recovery")
    add("--states", metavar="N", type=int, default=100, help="disks after each (%(default)s)")
    add("--deviations", metavar="N", type=int, default=1, help="operations overtaken (%(default)s)")
    add("--cases", metavar="N", type=int, default=5_000, help="faults at most (%(default)s)")
    add("--time-limit", metavar="S", type=float, default=10.0, help="for one run, in seconds")
    add("--seed", metavar="N", type=int, default=0, help="of what is drawn by chance")
    add("--injection", metavar="HOW", default="auto", help=f"one of {', '.join(INJECTIONS)}")
    add("--json", metavar="FILE", type=Path, help="write the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Sweep, print the report and return the exit code."""
    commands = commands_of(arguments)
    progress = Progress(sys.stderr, recoveries=arguments.cases, seconds=None, unit="faults")
    injector = FaultInjector(
        errors=ERRORS if arguments.errors is None else _names(arguments.errors),
        operations=None if arguments.operations is None else _names(arguments.operations),
        persistent=False if arguments.once else (False, True),
        recovery=not arguments.no_recovery,
        model=models_of(arguments),
        deviations=arguments.deviations,
        states=arguments.states,
        time_limit=arguments.time_limit,
        cases=arguments.cases,
        seed=arguments.seed,
        workspace=workspace_of(arguments),
        progress=progress.of,
        injection=arguments.injection,
    )
    progress.say("rehearsing")
    commands.rehearse()
    progress.say("counting calls")
    try:
        report = injector.sweep(
            setup=commands.set_up,
            workload=commands.save,
            recover=commands.load,
            before=commands.before,
            after=commands.after,
            name=arguments.workload,
            programs=True,
        )
    finally:
        progress.end()
    print(report)
    if arguments.json is not None:
        arguments.json.write_text(check_as_json(report.checked()), encoding="utf-8")
    print(_conclusion(report))
    return _SOUND if report.ok else _UNSOUND


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _conclusion(report: FaultReport) -> str:
    if report.findings:
        return f"{len(report.findings)} findings"
    return "sound" if report.ok else "not covered: no finding, and no proof that there is none"
