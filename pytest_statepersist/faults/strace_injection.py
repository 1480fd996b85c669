"""Faults in another program by strace's own injection: where the kernel may not be asked.

Belongs here: running a command under the strace that makes one call of it fail, and reading from
its output what happened. Rules:

1. strace counts each system call for each process by itself. A fault is put at the n-th call of
   its name that the process made in the run without a fault; it meets all that make as many.
2. A run in which it met a call on another file is no case: that is "not met", never a verdict.
3. A call that strace makes fail is not made. So it cannot write a part of the bytes, nor let a
   close fail that releases its descriptor all the same; and a fault that lasts would meet what the
   program writes to its terminal. None of these is tried: that is "not covered".

Facts: strace(1), `-e inject=`: `when=` counts for each tracee and each system call.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from pytest_statepersist.core.operations import Site
from pytest_statepersist.faults.calls import Call, FaultSite, Operation
from pytest_statepersist.faults.gate import Gate, Handler
from pytest_statepersist.faults.inject import Injection
from pytest_statepersist.faults.system_calls import CALLS, Shape, SystemCall
from pytest_statepersist.recorders import strace_parser as parser
from pytest_statepersist.recorders.strace import StraceRecorder

__all__ = ["StraceRun"]

_NEVER = (Operation.CLOSE,)
_LOCKING = ("F_SETLK", "F_SETLKW", "F_OFD_SETLK", "F_OFD_SETLKW")
_MAKES_TASKS = frozenset({"clone", "clone3", "fork", "vfork"})
_MORE = ("chdir", "fchdir", "execve", *_MAKES_TASKS)


class StraceRun:
    """What runs a command while a gate is in place: ``handler`` is told of its calls afterwards.

    ``site`` is where the fault of an `Injection` goes, ``recorder`` what runs the commands.
    """

    def __init__(
        self, gate: Gate, site: FaultSite | None = None, recorder: StraceRecorder | None = None
    ) -> None:
        self._gate, self._site, self._recorder = gate, site, recorder

    def __call__(self, arguments: list[str], variables: dict[str, str]) -> tuple[int, bytes, bytes]:
        """Run a command; returns exit code, output and error output."""
        recorder = self._recorder or StraceRecorder(self._gate.directory)
        before = _names(self._gate.directory)
        ran = recorder.watch(
            arguments, env=variables, inject=self._words(), also=(*CALLS, *_MORE), apart=True
        )
        reading = _Reading(self._gate, before)
        handler: Handler = self._gate.handler
        for made, failed in reading.calls(ran.events):
            if isinstance(handler, Injection):
                handler.told(made, failed=failed)
            else:
                handler(made, lambda: None)
        if reading.elsewhere and isinstance(handler, Injection):
            handler.hits = 0
        return ran.code, ran.output, ran.errors

    def _words(self) -> str | None:
        """Return the fault in strace's words."""
        handler = self._gate.handler
        if self._site is None or not isinstance(handler, Injection):
            return None
        return f"{self._site.function}:error={handler.fault.error}:when={self._site.nth}"


class _Reading:
    """Finds the calls on a directory in what strace saw; ``elsewhere`` if a fault met another."""

    def __init__(self, gate: Gate, before: frozenset[str]) -> None:
        self._gate, self._before = gate, before
        self.elsewhere = False
        self._counts: dict[tuple[int, str], int] = {}
        self._sites: dict[str, int] = {}
        self._cwd: dict[int, str] = {}
        self._program: dict[int, str] = {}

    def calls(self, events: list[parser.Event]) -> Iterator[tuple[Call, bool]]:
        """Yield the calls on the directory in order, and whether each was made to fail."""
        seen = [event for event in events if isinstance(event, parser.Call)]
        for event in sorted(seen, key=lambda call: call.start):
            nth = self._counts[event.task, event.name] = (
                self._counts.get((event.task, event.name), 0) + 1
            )
            self._follow(event)
            known = CALLS.get(event.name)
            made = None if known is None else self._call(known, event)
            if made is None:
                self.elsewhere |= event.injected
                continue
            made.nth = nth
            yield made, event.injected

    def _follow(self, event: parser.Call) -> None:
        """Keep where a process is and which program it runs."""
        if not event.succeeded:
            return
        task, arguments = event.task, event.arguments
        if event.name == "execve":
            self._program[task] = os.path.basename(os.fsdecode(parser.text(arguments[0])))
        elif event.name == "chdir":
            self._cwd[task] = os.path.join(self._here(task), os.fsdecode(parser.text(arguments[0])))
        elif event.name == "fchdir":
            path = parser.descriptor(arguments[0]).path
            self._cwd[task] = self._here(task) if path is None else os.fsdecode(path)
        elif event.name in _MAKES_TASKS and event.result:
            self._cwd[event.result] = self._here(task)
            self._program[event.result] = self._program.get(task, "?")

    def _here(self, task: int) -> str:
        return self._cwd.get(task, os.getcwd())

    def _call(self, known: SystemCall, event: parser.Call) -> Call | None:
        if known.operation in _NEVER or len(event.arguments) <= max(known.names):
            return None
        if event.name == "fcntl" and event.arguments[1] not in _LOCKING:
            return None
        for at in known.names:
            path = self._path(known.shape, at, event)
            place = None if path is None else self._gate.place(path)
            if place is not None:
                break
        else:
            return None
        operation = known.operation
        if operation is Operation.STAT and '""' in event.arguments:
            return None  # of an open file: nothing is looked up
        if event.name == "unlinkat" and "AT_REMOVEDIR" in event.arguments[2]:
            operation = Operation.RMDIR
        made = Call(operation, place, event.name, native=True)
        if operation is Operation.OPEN:
            how = " ".join(event.arguments[known.flags :]) if known.flags >= 0 else "O_CREAT|O_RDWR"
            made.creates = "O_CREAT" in how and place not in self._before
            made.writes = any(word in how for word in ("O_WRONLY", "O_RDWR", "O_CREAT"))
        program = self._program.get(event.task, "?")
        self._sites[program] = self._sites.get(program, 0) + 1
        made.site = Site(program, self._sites[program])
        return made

    def _path(self, shape: Shape, at: int, event: parser.Call) -> str | None:
        arguments = event.arguments
        if shape is Shape.ADDRESS:
            return None
        if shape is Shape.DESCRIPTOR:
            return _decoded(parser.descriptor(arguments[at]).path)
        base: str | None = self._here(event.task)
        name = at
        if shape is Shape.AT:
            found, name = parser.descriptor(arguments[at]), at + 1
            base = _decoded(found.path) if found.number is not None else base
        if base is None or not arguments[name].startswith('"'):
            return base
        path = os.path.join(base, os.fsdecode(parser.text(arguments[name])))
        head, tail = os.path.split(path.rstrip("/") or "/")
        return os.path.join(os.path.realpath(head), tail)


def _decoded(path: bytes | None) -> str | None:
    return None if path is None else os.fsdecode(path)


def _names(directory: str) -> frozenset[str]:
    """Return what is there, by paths relative to the directory."""
    found: set[str] = set()
    with suppress(OSError):
        for here, directories, files in os.walk(directory):
            inside = os.path.relpath(here, directory)
            found.update(os.path.normpath(f"{inside}/{name}") for name in (*directories, *files))
    return frozenset(found)
