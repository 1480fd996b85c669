"""The directory of a sweep: showing trees in it, running recoveries, and recording.

Belongs here: whatever touches the directory or another process, and no judgement. Rules:

1. Fresh processes are set aside before the subject first runs, so that they inherit nothing of it.
2. What a run left in the directory is put back before the next.
3. A limit of real time runs out on a busy machine too, so a hang is believed when it comes again
   with more time, in a process that nothing was interrupted in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState
from pytest_statepersist.core.states import disk_of
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.errors import RecorderUnavailable
from pytest_statepersist.explorer.fresh import FreshProcess
from pytest_statepersist.explorer.materialise import Materialiser
from pytest_statepersist.explorer.outcome import Ended, Outcome
from pytest_statepersist.explorer.runner import Recovery, run_recovery
from pytest_statepersist.explorer.workplace import Workplace, workplace
from pytest_statepersist.fault_sweep.case import Options, Problem, Result, forget
from pytest_statepersist.fault_sweep.changes import Changes
from pytest_statepersist.faults.calls import FaultSite
from pytest_statepersist.faults.gate import Handler
from pytest_statepersist.faults.gate import gated as gate_of
from pytest_statepersist.faults.inject import Injection
from pytest_statepersist.faults.installing import installed
from pytest_statepersist.faults.locks import held_locks
from pytest_statepersist.faults.report import FaultKind
from pytest_statepersist.faults.strace_injection import StraceRun
from pytest_statepersist.faults.supervisor import check_supervision
from pytest_statepersist.programs import CommandRecorder, ProgramRecorder, run_command
from pytest_statepersist.recorders.python import PythonRecorder
from pytest_statepersist.recorders.scan import Keep, scan
from pytest_statepersist.recorders.strace import check_available
from pytest_statepersist.recording import (
    Companions,
    shared_memory_in,
    sqlite_companions,
)

__all__ = ["PATIENCE", "Recorder", "Stage"]

Recorder = PythonRecorder | ProgramRecorder
PATIENCE = 3
"""How many times the limit of a run is waited before a hang is believed."""


class Stage:
    """Where the runs of a sweep happen."""

    def __init__(self, options: Options, recover: Recovery, programs: bool = False) -> None:
        self.options = options
        self.recover = recover
        self.programs = programs
        """Whether all is done by other programs: then strace records, and each run is fresh."""
        self.by_strace = False
        """Whether faults come by strace's own injection; else the kernel asks about each call."""
        self.sites: dict[str, tuple[FaultSite, ...]] = {}
        """The calls of each phase, once they were counted."""
        self.companions: Companions = ()
        self.isolated = False
        """Whether this process is not to be trusted: then recovery runs in a fresh one."""
        self.patience = 1
        """How many times the limit a run may take."""
        self.late = False
        """Whether a run since this was reset did not end within its limit."""
        self._bases: dict[int, Materialiser] = {}
        self._stack = ExitStack()

    def open(self, serve: Callable[[Path], Result]) -> None:
        """Make the directory, put the gates in place, and set fresh processes aside."""
        stack = self._stack
        try:
            self.place: Workplace = stack.enter_context(workplace(self.options.workspace))
            self.directory = Path(self.place.directory)
            self.changes = Changes(self.place.directory)
            stack.callback(self.changes.close)
            if self.programs:
                check_available()
                self.by_strace = _by_strace(self.options.injection, self.directory)
            else:
                self._put_gates_in_place()
            self.fresh = FreshProcess(self.recover, self.directory)
            stack.callback(self.fresh.close)
            self.server = FreshProcess(serve, self.directory)
            stack.callback(self.server.close)
        except BaseException:
            stack.close()
            raise

    def close(self) -> None:
        """End the processes and take the directory away."""
        self._stack.close()

    def _put_gates_in_place(self) -> None:
        self._stack.enter_context(installed())
        self.companions, _ = sqlite_companions()
        if self.companions:
            from pytest_statepersist.faults.sqlite import sqlite_gate

            self._stack.enter_context(sqlite_gate())

    @contextmanager
    def gated(self, handler: Handler, recorder: Recorder | None = None) -> Iterator[None]:
        """Let a handler decide about calls, and know where in the recording a fault began."""
        with gate_of(self.directory, handler) as gate:
            if self.by_strace:
                fault = handler.fault if isinstance(handler, Injection) else None
                site = None if fault is None else self.sites[fault.phase][fault.index]
                strace = recorder.strace if isinstance(recorder, CommandRecorder) else None
                gate.runner = StraceRun(gate, site, strace)
            if isinstance(recorder, ProgramRecorder):
                gate.unseen = recorder.unseen
            if isinstance(handler, Injection) and recorder is not None:
                handler.position = _position(recorder)
            try:
                yield
            finally:
                if isinstance(handler, Injection):
                    handler.settle()

    @contextmanager
    def recorded(self, recorder: Recorder) -> Iterator[None]:
        """Let a recorder see what runs without a fault, where it sees only what it runs itself."""
        if isinstance(recorder, CommandRecorder):
            with self.gated(lambda call, run: run(), recorder):
                yield
        else:
            yield

    def locks(self) -> frozenset[tuple[str, str]]:
        """Return the locks that this process holds in the directory."""
        return held_locks(self.place.directory)

    def left_locked(self, locks: frozenset[tuple[str, str]]) -> Iterator[Problem]:
        """Yield what is wrong where these locks are left."""
        for path, kind in sorted(locks):
            yield Problem(
                FaultKind.LOCKED,
                f"a {kind} lock on {path!r} is still held after the workload has ended",
                "the lock to be given back, as it is without the fault",
            )

    @property
    def limit(self) -> float:
        """How many seconds a run may take."""
        return self.patience * self.options.time_limit

    def attempt(self, function: Callable[[Path], Any]) -> Outcome:
        """Run something of the user's in this process, as long as it may take."""
        outcome = run_recovery(function, self.directory, self.limit, brief=True)
        forget(outcome)
        self.late |= outcome.ended is Ended.HUNG
        return outcome

    def recovered(self) -> Outcome:
        """Run recovery on what the directory holds."""
        if self.isolated:
            outcome = self.fresh.run(self.limit)
        else:
            outcome = run_recovery(self.recover, self.directory, self.limit, brief=True)
            forget(outcome)
        if outcome.ended is Ended.HUNG and self.patience == 1 and self.fresh.available:
            outcome = self.fresh.run(PATIENCE * self.limit)
        return outcome

    def scan(self) -> Tree:
        """Return what the directory holds."""
        directory = self.place.directory
        return scan(directory, keep=Keep(directory), ignore=shared_memory_in(directory)).tree

    def show(self, tree: Tree) -> None:
        """Make the directory hold a tree, whatever a run left in it."""
        shown = self._bases.get(id(tree))
        if shown is not None:
            shown.rebuild()
            return
        trace = op.Trace(tree)
        aside = os.path.join(self.place.aside, f"base{len(self._bases)}")
        os.makedirs(aside, exist_ok=True)
        shown = Materialiser(self.place.directory, aside, trace, present=False)
        start = CrashState(-1, frozenset(), points=((0, 0),))
        shown.show(disk_of(trace, self.options.models[0]), start)
        self._bases[id(tree)] = shown

    def forget_shown(self) -> None:
        """Forget what the directory holds: something else has shown a state in it."""
        self._bases.clear()

    def recorder(self, base: Tree) -> Recorder:
        """Return a recorder of the directory, which holds ``base``."""
        if self.by_strace:
            return CommandRecorder(self.directory, ignore=shared_memory_in(self.directory))
        if self.programs:
            return ProgramRecorder(self.directory, ignore=shared_memory_in(self.directory))
        return PythonRecorder(
            self.directory,
            base_tree=base,
            ignore=shared_memory_in(self.directory),
            companions=self.companions,
        )


def _by_strace(injection: str, directory: Path) -> bool:
    """Say how faults get into programs; raises `RecorderUnavailable` where the one way asked for
    cannot be gone.
    """
    if injection == "strace":
        return True
    try:
        check_supervision()
        with gate_of(directory, lambda call, run: run()):
            run_command("true", directory)
    except RecorderUnavailable:
        if injection == "seccomp":
            raise
        return True
    return False


def _position(recorder: Recorder) -> Callable[[], int]:
    if isinstance(recorder, ProgramRecorder):
        return recorder.note_fault
    return lambda: len(recorder.builder)
