"""Programs as subject: shell commands that set up, save and recover a directory.

Belongs here: running one command on a directory, and the value that a recovery gives: its exit code
and what it printed. Rules:

1. A command runs in the directory from which the tool was called; it is told the state's directory
   as ``{dir}`` and as the variable STATEPERSIST_DIR.
2. No process of a command outlives it: it has a process group, which is killed at its end.
3. Two answers are equal if exit code, output and error output are.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass

from pytest_statepersist.errors import StatePersistError, UserError

__all__ = [
    "VARIABLE",
    "Answer",
    "Killed",
    "Matches",
    "look_at_times",
    "must_succeed",
    "run_command",
]

VARIABLE = "STATEPERSIST_DIR"
_PLACE = "{dir}"
_SHOWN = 300


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
    process = subprocess.Popen(
        ["/bin/sh", "-c", command.replace(_PLACE, place)],
        env={**os.environ, VARIABLE: place},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
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
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise Killed(f"{command!r} was killed by {name}")
    return Answer(
        process.returncode, output.decode(errors="replace"), errors.decode(errors="replace")
    )


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
