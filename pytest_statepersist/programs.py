"""Programs as subject: shell commands that set up, save and recover a directory.

Belongs here: running one command on a directory, the value that a recovery gives (its exit code and
what it printed), and the commands that make up a subject. Rules:

1. A command runs in the directory from which the tool was called; it is told the state's directory
   as ``{dir}`` and as the variable STATEPERSIST_DIR.
2. No process of a command outlives it: it has a process group, which is killed at its end.
3. Two answers are equal if exit code, output and error output are.
4. Where a gate is in place (`faults.gate`), it is asked about every call of the command.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_statepersist.core.operations import Trace
from pytest_statepersist.errors import BlindSpot, StatePersistError, TraceError, UserError
from pytest_statepersist.explorer.outcome import UNSET, Unset
from pytest_statepersist.faults import gate as gates
from pytest_statepersist.faults.supervisor import Supervisor
from pytest_statepersist.recorders.strace import StraceRecorder

__all__ = [
    "VARIABLE",
    "Answer",
    "CommandRecorder",
    "Commands",
    "Failed",
    "Killed",
    "Matches",
    "ProgramRecorder",
    "look_at_times",
    "must_succeed",
    "run_command",
]

VARIABLE = "STATEPERSIST_DIR"
_PLACE = "{dir}"
_SHOWN = 300
_NOT_FOUND = 127
_FAULT = "fault"
_NO_ORDER = (
    "a file was changed through memory before or after a sync of another one, and nobody saw that "
    "order"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command did: exit code, standard output, standard error."""

    code: int
    output: str
    errors: str

    def __repr__(self) -> str:
        parts = [f"exit code {self.code}"]
        for name, text in (("output", self.output), ("errors", self.errors)):
            if text:
                short = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
                parts.append(f"{name} {short!r}")
        return ", ".join(parts)


class Killed(StatePersistError):
    """A command was killed by a signal: that is a failure, not an answer."""


class Failed(StatePersistError):
    """A command that was to save something exited with another code than 0."""


class Matches:
    """Equal to an answer with exit code 0 in whose output a regular expression is found."""

    def __init__(self, option: str, pattern: str) -> None:
        try:
            self._pattern = re.compile(pattern, re.MULTILINE)
        except re.error as error:
            raise UserError(f"{option} {pattern!r} is not a regular expression: {error}") from None

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Matches):
            return self._pattern == other._pattern
        if isinstance(other, Answer):
            return other.code == 0 and self._pattern.search(other.output) is not None
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._pattern)

    def __repr__(self) -> str:
        return f"exit code 0 and output like {self._pattern.pattern!r}"


def run_command(command: str, directory: str | os.PathLike[str]) -> Answer:
    """Run a command through the shell to its end; raises `Killed` where a signal ended it."""
    place = os.fspath(directory)
    gate, text = gates.current(), command.replace(_PLACE, place)
    if gate is not None and gate.runner is not None:
        variables = {**os.environ, VARIABLE: place}
        code, output, errors = gate.runner(["/bin/sh", "-c", text], variables)
    else:
        with nullcontext() if gate is None else Supervisor(gate, gate.unseen) as supervisor:
            install = None if supervisor is None else supervisor.install
            code, output, errors = _run_to_its_end(text, place, install)
    if code < 0:
        raise Killed(f"{command!r} was killed by {signal.Signals(-code).name}")
    return Answer(code, output.decode(errors="replace"), errors.decode(errors="replace"))


def _run_to_its_end(
    command: str, place: str, install: Callable[[], None] | None
) -> tuple[int, bytes, bytes]:
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        env={**os.environ, VARIABLE: place},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=install,
    )
    try:
        with process:
            try:
                output, errors = process.communicate()
            except BaseException:
                _kill_all(process.pid)
                raise
    finally:
        _kill_all(process.pid)
    return process.returncode, output, errors


def _kill_all(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def must_succeed(option: str, command: str, directory: str | os.PathLike[str]) -> None:
    """Run a command that has to exit with 0; raises `UserError` with what it printed."""
    try:
        answer = run_command(command, directory)
    except Killed as error:
        raise UserError(f"{option}: {error}; nothing was judged") from None
    if answer.code:
        raise UserError(
            f"{option} {command!r} failed with {answer}. Nothing was judged: it has to succeed "
            "once, without a crash"
        )


def look_at_times(directory: str | os.PathLike[str]) -> None:
    """Ask for the modification time of everything: another program may depend on any of them.

    Nothing tells which times a program asks for, so that each counts as read.
    """
    for path, directories, files in os.walk(directory):
        for name in (*directories, *files):
            with suppress(OSError):
                os.stat(os.path.join(path, name), follow_symlinks=False)


class ProgramRecorder:
    """Records with strace what commands do while a gate decides about their calls.

    ``began`` is the length of the trace when `note_fault` was first called.
    """

    def __init__(self, directory: Path, *, ignore: Callable[[str], bool] | None = None) -> None:
        self._strace = StraceRecorder(directory, ignore=ignore, looks=False)
        self.trace: Trace
        self.began = 0

    def __enter__(self) -> ProgramRecorder:
        self._strace.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with suppress(BlindSpot, TraceError):
                self._strace.stop()
            return
        self.trace = self._strace.stop()
        if self._strace.earlier is not None:
            raise BlindSpot(_NO_ORDER)
        # A write stands in the trace where it began, which was before anybody was asked about it.
        self.began = max(self._strace.marks.get(_FAULT, 0) - 1, 0)

    def note_fault(self) -> int:
        """Mark this place of the trace, where a call begins to fail."""
        self._strace.mark(_FAULT)
        return 0

    def unseen(self) -> AbstractContextManager[None]:
        """Leave out of the trace what this thread does."""
        return self._strace.unseen()

    def acknowledge(self, value: object = None) -> None:
        """Note that the subject said "saved" here."""
        self._strace.acknowledge(repr(value))


class CommandRecorder(ProgramRecorder):
    """Records the commands that run meanwhile, each by the strace that puts the fault into it.

    A process has one tracer at a time, so that none can be attached to this one beside that.
    ``strace`` is what has to run them.
    """

    def __init__(self, directory: Path, *, ignore: Callable[[str], bool] | None = None) -> None:
        self.strace = StraceRecorder(directory, ignore=ignore)
        self.trace: Trace
        self.began = 0
        self._acknowledged = False

    def __enter__(self) -> CommandRecorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        if self._acknowledged:
            raise BlindSpot(
                "something was acknowledged, which with strace's own injection has no place in "
                "the trace"
            )
        self.trace = self.strace.watched()
        if self.strace.earlier is not None:
            raise BlindSpot(_NO_ORDER)

    def note_fault(self) -> int:
        """Do nothing: all crash points are judged, those before the fault as well."""
        return 0

    def unseen(self) -> AbstractContextManager[None]:
        """Do nothing: this process is not traced."""
        return nullcontext()

    def acknowledge(self, value: object = None) -> None:
        """Note that something was acknowledged, which has no place in the trace."""
        self._acknowledged = True


@dataclass(frozen=True, slots=True)
class Commands:
    """A subject that is a program: what makes the start, what saves, what loads.

    ``template`` is copied to the start. ``before`` and ``after`` say which output is right, where
    it varies; left out, an answer has to be that of a run without a crash or fault.
    """

    workload: str
    recover: str
    setup: str | None = None
    template: Path | None = None
    before: Matches | Unset = UNSET
    after: Matches | Unset = UNSET

    def set_up(self, directory: Path) -> None:
        """Make the durable start; raises `UserError` where that fails."""
        if self.template is not None:
            if not self.template.is_dir():
                raise UserError(f"--dir {self.template} is not a directory")
            shutil.copytree(self.template, directory, symlinks=True, dirs_exist_ok=True)
        if self.setup is not None:
            must_succeed("--setup", self.setup, directory)

    def save(self, directory: Path) -> None:
        """Run the workload; raises `Failed` or `Killed` where it does not succeed."""
        answer = run_command(self.workload, directory)
        if answer.code:
            raise Failed(f"{answer}")

    def load(self, directory: Path) -> object:
        """Run the recovery; returns its `Answer`, or the pattern that it matches.

        What it matches is right, so that the rest of it may vary.
        """
        answer = run_command(self.recover, directory)
        matched = [each for each in (self.before, self.after) if each == answer]
        if len(matched) == 2:
            return "matches both", answer
        return matched[0] if matched else answer

    def rehearse(self) -> None:
        """Run it all once: what fails now would make every verdict meaningless.

        Raises `UserError`.
        """
        sides = (("--before", self.before, False), ("--after", self.after, True))
        for option, wanted, saved in sides:
            with tempfile.TemporaryDirectory(prefix="statepersist-rehearsal-") as scratch:
                directory = Path(os.path.realpath(scratch), "state")
                directory.mkdir()
                self.set_up(directory)
                if saved:
                    must_succeed("--workload", self.workload, directory)
                answer = run_command(self.recover, directory)
            when = "after" if saved else "before"
            if answer.code == _NOT_FOUND or (saved and wanted is UNSET and answer.code):
                raise UserError(
                    f"--recover {self.recover!r} failed with {answer}, {when} the workload and "
                    "without any crash; nothing was judged"
                )
            if wanted is not UNSET and wanted != answer:
                raise UserError(
                    f"{option} is not what recovery gives {when} the workload, without any crash: "
                    f"expected {wanted}, got {answer}"
                )
            if wanted is not UNSET and saved and self.before == answer:
                raise UserError("--before matches the output after the workload as well")
