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
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from pytest_statepersist.commands.programs import (
    Answer,
    Matches,
    look_at_times,
    must_succeed,
    run_command,
)
from pytest_statepersist.commands.progress import Progress
from pytest_statepersist.core.models import MODELS
from pytest_statepersist.errors import UserError
from pytest_statepersist.explorer.outcome import UNSET
from pytest_statepersist.findings import Report
from pytest_statepersist.report.data import as_json
from pytest_statepersist.simulator import CrashSimulator, Settings

__all__ = ["add_arguments", "run"]

_SOUND, _UNSOUND = 0, 1
_NOT_FOUND = 127


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--dir", metavar="STATE", type=Path, help="template of the state; left out: empty")
    add("--setup", metavar="CMD", help="makes the durable start")
    add("--workload", metavar="CMD", required=True, help="the save that is recorded")
    add("--recover", metavar="CMD", required=True, help="loads; prints what it found")
    add("--before", metavar="PATTERN", help="regular expression of the output before the save")
    add("--after", metavar="PATTERN", help="regular expression of the output after the save")
    add("--model", metavar="NAMES", default="posix", help="comma-separated, or all (%(default)s)")
    add("--budget", metavar="N|Ns", default="10000", help="recoveries, or seconds such as 30s")
    add("--deviations", metavar="N", type=int, default=2, help="operations overtaken (%(default)s)")
    add("--recovery-crashes", metavar="N", type=int, default=1, help="depth (%(default)s)")
    add("--time-limit", metavar="S", type=float, default=10.0, help="for one recovery, in seconds")
    add("--seed", metavar="N", type=int, default=0, help="of what is drawn by chance")
    add("--no-times", action="store_true", help="recovery looks at no modification time")
    add("--no-repairs", action="store_true", help="do not search for sync calls that repair")
    add("--json", metavar="FILE", type=Path, help="write the report as JSON")
    add("--trace", metavar="FILE", type=Path, help="write the trace, for 'statepersist show'")


def run(arguments: argparse.Namespace) -> int:
    """Check, print the report and return the exit code."""
    if arguments.dir is not None and not arguments.dir.is_dir():
        raise UserError(f"--dir {arguments.dir} is not a directory")
    settings = _settings(arguments)
    bounds = settings.bounds()
    progress = Progress(sys.stderr, recoveries=bounds.states, seconds=bounds.seconds)
    before = UNSET if arguments.before is None else Matches("--before", arguments.before)
    after = UNSET if arguments.after is None else Matches("--after", arguments.after)
    progress.say("rehearsing")
    _rehearse(arguments, before, after)

    def recover(directory: Path) -> object:
        progress.one_more()
        if not arguments.no_times:
            look_at_times(directory)
        return _classified(run_command(arguments.recover, directory), before, after)

    progress.say("recording")
    try:
        report = CrashSimulator(settings=settings).explore(
            setup=lambda directory: _set_up(arguments, directory),
            workload=lambda directory: must_succeed("--workload", arguments.workload, directory),
            recover=recover,
            before=before,
            after=after,
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
    names = arguments.model.split(",")
    model = tuple(MODELS) if names == ["all"] else tuple(name.strip() for name in names)
    return Settings(
        model=model,
        budget=arguments.budget,
        deviations=arguments.deviations,
        recovery_crashes=arguments.recovery_crashes,
        time_limit=arguments.time_limit,
        seed=arguments.seed,
        repairs=not arguments.no_repairs,
        recorder="strace",
    )


def _set_up(arguments: argparse.Namespace, directory: Path) -> None:
    if arguments.dir is not None:
        shutil.copytree(arguments.dir, directory, symlinks=True, dirs_exist_ok=True)
    if arguments.setup is not None:
        must_succeed("--setup", arguments.setup, directory)


def _rehearse(arguments: argparse.Namespace, before: Any, after: Any) -> None:
    """Run it all once without a crash: what fails now would make every verdict meaningless."""
    for option, wanted, saved in (("--before", before, False), ("--after", after, True)):
        with tempfile.TemporaryDirectory(prefix="statepersist-rehearsal-") as scratch:
            directory = Path(os.path.realpath(scratch), "state")
            directory.mkdir()
            _set_up(arguments, directory)
            if saved:
                must_succeed("--workload", arguments.workload, directory)
            answer = run_command(arguments.recover, directory)
        when = "after" if saved else "before"
        if answer.code == _NOT_FOUND or (saved and wanted is UNSET and answer.code):
            raise UserError(
                f"--recover {arguments.recover!r} failed with {answer}, {when} the workload and "
                "without any crash; nothing was judged"
            )
        if wanted is not UNSET and wanted != answer:
            raise UserError(
                f"{option} is not what recovery gives {when} the workload, without any crash: "
                f"expected {wanted}, got {answer}"
            )
        if wanted is not UNSET and saved and before == answer and before is not UNSET:
            raise UserError("--before matches the output after the workload as well")


def _classified(answer: Answer, before: object, after: object) -> object:
    """Return the pattern that an answer matches in its place: the rest of it may vary."""
    matched = [pattern for pattern in (before, after) if pattern == answer]
    if len(matched) == 2:
        return "matches both", answer
    return matched[0] if matched else answer


def _conclusion(report: Report) -> str:
    if report.findings:
        return f"{len(report.findings)} findings"
    return "sound" if report.safe else "not covered: no finding, and no proof that there is none"
