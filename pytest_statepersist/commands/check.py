"""Run a program under every legal crash and say what is lost.

The commands may be of any language. Each runs in the current directory, through the shell, with the
directory of the state in place of {dir} and in the variable STATEPERSIST_DIR. What --dir names is a
template: it is copied to a scratch directory and never changed itself. What --setup leaves counts
as on disk; what --workload does is recorded with strace; --recover is then run on every disk that a
crash may leave. Its answer is its exit code with all that it prints. The answer has to be the one
from before the workload, or the one from after it; once the workload has ended, only the latter.

Exit codes: 0 sound, 1 there are findings or something was not covered, 2 could not run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pytest_statepersist.commands.progress import Progress
from pytest_statepersist.core.models import MODELS
from pytest_statepersist.errors import UserError
from pytest_statepersist.explorer.outcome import UNSET
from pytest_statepersist.findings import Report
from pytest_statepersist.programs import Commands, Matches, look_at_times, must_succeed
from pytest_statepersist.report.data import as_json
from pytest_statepersist.settings import Settings
from pytest_statepersist.simulator import CrashSimulator

__all__ = ["add_arguments", "add_commands", "commands_of", "models_of", "run", "workspace_of"]

_SOUND, _UNSOUND = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_commands(parser)
    add = parser.add_argument
    add("--budget", metavar="N|Ns", default="10000", help="recoveries, or seconds such as 30s")
    add("--deviations", metavar="N", type=int, default=2, help="operations overtaken (%(default)s)")
    add("--recovery-crashes", metavar="N", type=int, default=1, help="depth (%(default)s)")
    add("--time-limit", metavar="S", type=float, default=10.0, help="for one recovery, in seconds")
    add("--seed", metavar="N", type=int, default=0, help="of what is drawn by chance")
    add("--no-times", action="store_true", help="recovery looks at no modification time")
    add("--no-repairs", action="store_true", help="do not search for sync calls that repair")
    add("--json", metavar="FILE", type=Path, help="write the report as JSON")
    add("--trace", metavar="FILE", type=Path, help="write the trace, for 'statepersist show'")


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that say what the subject is, and under which models it is judged."""
    add = parser.add_argument
    add("--dir", metavar="STATE", type=Path, help="template of the state; left out: empty")
    add("--setup", metavar="CMD", help="makes the durable start")
    add("--workload", metavar="CMD", required=True, help="the save that is recorded")
    add("--recover", metavar="CMD", required=True, help="loads; prints what it found")
    add("--before", metavar="PATTERN", help="regular expression of the output before the save")
    add("--after", metavar="PATTERN", help="regular expression of the output after the save")
    add("--model", metavar="NAMES", default="posix", help="comma-separated, or all (%(default)s)")
    add("--workspace", metavar="DIR", help="where disks are shown; left out: in memory")


def commands_of(arguments: argparse.Namespace) -> Commands:
    """Return the subject that the arguments of `add_commands` name; raises `UserError`."""
    if arguments.dir is not None and not arguments.dir.is_dir():
        raise UserError(f"--dir {arguments.dir} is not a directory")
    return Commands(
        workload=arguments.workload,
        recover=arguments.recover,
        setup=arguments.setup,
        template=arguments.dir,
        before=UNSET if arguments.before is None else Matches("--before", arguments.before),
        after=UNSET if arguments.after is None else Matches("--after", arguments.after),
    )


def models_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the names of the models asked for."""
    names = arguments.model.split(",")
    return tuple(MODELS) if names == ["all"] else tuple(name.strip() for name in names)


def workspace_of(arguments: argparse.Namespace) -> str | None:
    """Return where disks are to be shown; raises `UserError` for what is no directory."""
    where: str | None = arguments.workspace
    if where is not None and not Path(where).is_dir():
        raise UserError(f"--workspace {where} is not a directory")
    return where


def run(arguments: argparse.Namespace) -> int:
    """Check, print the report and return the exit code."""
    commands = commands_of(arguments)
    settings = _settings(arguments)
    bounds = settings.bounds()
    progress = Progress(sys.stderr, recoveries=bounds.states, seconds=bounds.seconds)
    progress.say("rehearsing")
    commands.rehearse()

    def recover(directory: Path) -> object:
        progress.one_more()
        if not arguments.no_times:
            look_at_times(directory)
        return commands.load(directory)

    progress.say("recording")
    try:
        report = CrashSimulator(settings=settings).explore(
            setup=commands.set_up,
            workload=lambda directory: must_succeed("--workload", arguments.workload, directory),
            recover=recover,
            before=commands.before,
            after=commands.after,
            name=arguments.workload,
        )
    finally:
        progress.end()
    print(report)
    if arguments.json is not None:
        arguments.json.write_text(as_json(report), encoding="utf-8")
    if arguments.trace is not None:
        arguments.trace.write_text(report.trace.to_json(), encoding="utf-8")
    print(_conclusion(report))
    return _SOUND if report.safe else _UNSOUND


def _settings(arguments: argparse.Namespace) -> Settings:
    return Settings(
        model=models_of(arguments),
        budget=arguments.budget,
        deviations=arguments.deviations,
        recovery_crashes=arguments.recovery_crashes,
        time_limit=arguments.time_limit,
        seed=arguments.seed,
        repairs=not arguments.no_repairs,
        recorder="strace",
        workspace=workspace_of(arguments),
    )


def _conclusion(report: Report) -> str:
    if report.findings:
        return f"{len(report.findings)} findings"
    return "sound" if report.safe else "not covered: no finding, and no proof that there is none"
