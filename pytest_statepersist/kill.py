"""Real kills: the workload runs in a child process, which dies by SIGKILL in the middle of it.

Belongs here: running, killing, and judging what is really there. Rules:

1. A kill at n happens when n changing calls have been made and the next is about to be: the page
   cache survives, so each of the n is there, and nothing else.
2. A kill at a random time also stops native code, and may come in the middle of a call.
3. Recovery runs in a fresh process, as after a restart. What the child acknowledged counts.
"""

from __future__ import annotations

import os
import pickle
import random
import select
import signal
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_statepersist.checked import Check, Checked, CheckedFinding
from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState
from pytest_statepersist.core.models import get_model
from pytest_statepersist.core.states import disk_of
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.errors import (
    CrashConsistencyError,
    NotCovered,
    RecorderUnavailable,
    UserError,
)
from pytest_statepersist.explorer.fresh import FreshProcess, fork
from pytest_statepersist.explorer.materialise import Materialiser
from pytest_statepersist.explorer.outcome import (
    Expectation,
    Expected,
    Invariant,
    Judgement,
    Outcome,
    Raises,
    Unset,
    describe,
    fits,
)
from pytest_statepersist.explorer.runner import Recovery, call
from pytest_statepersist.explorer.workplace import Workplace
from pytest_statepersist.faults.calls import Call, Operation
from pytest_statepersist.faults.gate import gated
from pytest_statepersist.faults.installing import installed
from pytest_statepersist.recorders.scan import Keep, scan
from pytest_statepersist.recording import Companions, sqlite_companions

__all__ = ["Kill", "KillReport", "kill"]

_FAR = 1 << 40
_HEADER = struct.Struct("<Q")
_LIMIT = 60.0
_SOONEST = 1e-4


@dataclass(frozen=True, slots=True)
class Kill:
    """One killed run: when, what was acknowledged before, what was there, what recovery gave.

    ``at`` counts changing calls, ``None`` for a random time of ``after_seconds``. ``ended`` is
    whether the workload had ended before the kill came. ``problem`` is ``None`` where all is well.
    """

    at: int | None
    after_seconds: float | None
    acknowledged: tuple[Any, ...]
    ended: bool
    tree: Tree
    recovered: Outcome
    problem: Judgement | None

    def __str__(self) -> str:
        when = f"call {self.at}" if self.at is not None else f"{self.after_seconds:.6f} s"
        text = f"killed before {when}: recovery {self.recovered}"
        if self.problem is not None:
            text += f"; {self.problem.kind.value}: expected {self.problem.expected}"
        return text


@dataclass(frozen=True, slots=True)
class KillReport:
    """All killed runs. ``operations`` is how many changing calls the whole workload makes."""

    kills: tuple[Kill, ...]
    operations: int
    seed: int | None = None
    tells_apart: bool = True
    """Whether recovery gives something else after the whole workload than before it."""

    @property
    def findings(self) -> tuple[Kill, ...]:
        """The runs after which something was wrong."""
        return tuple(each for each in self.kills if each.problem is not None)

    @property
    def ok(self) -> bool | None:
        """False with a finding; ``None`` where the kills could not show anything."""
        if self.findings:
            return False
        return None if self.not_covered else True

    @property
    def not_covered(self) -> tuple[str, ...]:
        """Why the kills could not show anything, if so."""
        why = []
        if all(each.ended for each in self.kills):
            why.append(
                "no kill came before the end of the workload, which makes "
                f"{self.operations} calls that are seen here"
            )
        if not self.tells_apart:
            why.append(
                "recovery gives the same answer before and after the workload, so it cannot tell "
                "whether anything was saved"
            )
        return tuple(why)

    def raise_for_findings(self) -> None:
        """Raise `CrashConsistencyError` with a finding, `NotCovered` where none could be."""
        __tracebackhide__ = True  # pytest then shows the test's own line
        if self.findings:
            raise CrashConsistencyError(str(self), self)
        if self.not_covered:
            raise NotCovered(f"{self}\nnot covered: {'; '.join(self.not_covered)}", self)

    def checked(self) -> Checked:
        """Return the result in the shape that every check has."""
        findings = tuple(
            CheckedFinding(
                each.problem.kind.value,
                str(each).splitlines()[0],
                str(each.recovered),
                each.problem.expected,
            )
            for each in self.findings
            if each.problem is not None
        )
        early = sum(not each.ended for each in self.kills)
        coverage = f"{len(self.kills)} kills, {early} of them before the workload had ended"
        missed = self.not_covered
        return Checked(
            Check.KILL, self.ok, len(self.kills), coverage, findings, missed, seed=self.seed
        )

    def __str__(self) -> str:
        head = f"{len(self.kills)} kills, {len(self.findings)} findings"
        head += f", seed {self.seed}" if self.seed is not None else ""
        return "\n".join([head, *map(str, self.findings)])


def kill(
    *,
    workload: Callable[[Path, Callable[[Any], None]], Any],
    recover: Recovery,
    setup: Callable[[Path], Any] | None,
    before: Any,
    after: Any,
    invariant: Invariant | None,
    at: int | Iterable[int] | str | None,
    seed: int | None,
    runs: int,
    place: Workplace,
    time_limit: float | None,
) -> KillReport:
    """Run and kill; see `CrashSimulator.kill`, which prepares the arguments."""
    if not hasattr(os, "fork"):
        raise RecorderUnavailable("kill() needs a platform with fork; this one has none")
    if (at is None) == (seed is None):
        raise UserError("kill() takes at= (calls made, or 'every') or seed= (random times), one")
    if runs < 1:
        raise UserError(f"runs={runs!r} cannot be: give 1 or more")
    with _Killer(workload, recover, invariant, place, time_limit) as killer:
        return killer.go(setup, before, after, at, seed, runs)


class _Killer:
    def __init__(
        self,
        workload: Callable[[Path, Callable[[Any], None]], Any],
        recover: Recovery,
        invariant: Invariant | None,
        place: Workplace,
        time_limit: float | None,
    ) -> None:
        self.workload = workload
        self.recover = recover
        self.invariant = invariant
        self.place = place
        self.directory = Path(place.directory)
        self.time_limit = time_limit
        self.stack = ExitStack()

    def __enter__(self) -> _Killer:
        try:
            self.stack.enter_context(installed())
            companions: Companions
            companions, _ = sqlite_companions()
            if companions:
                from pytest_statepersist.faults.sqlite import sqlite_gate

                self.stack.enter_context(sqlite_gate())
            self.fresh = FreshProcess(self.recover, self.directory)
            self.stack.callback(self.fresh.close)
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def go(
        self,
        setup: Callable[[Path], Any] | None,
        before: Any,
        after: Any,
        at: int | Iterable[int] | str | None,
        seed: int | None,
        runs: int,
    ) -> KillReport:
        if setup is not None:
            call(setup, self.directory)
        base = self._scan()
        first = self.fresh.run(self.time_limit)
        self._show(base)
        whole = self._run(None, None)
        if not whole.ended or whole.error:
            raise UserError(
                f"without a kill the workload did not end well ({whole.error or 'no answer'}); it "
                "has to succeed once before it can be killed"
            )
        last = self.fresh.run(self.time_limit)
        self.expected = (_given(before, first), _given(after, last))
        self.demands_after = not isinstance(after, Unset)
        names = ("before", "after")
        for name, found, wanted in zip(names, (first, last), self.expected, strict=True):
            if not fits(found, wanted):
                raise UserError(
                    f"without a kill recovery {found} {name} the workload, where {name}= says "
                    f"{describe(wanted)}; nothing was judged"
                )
        self.values = whole.acknowledged
        kills = []
        for number, seconds in _moments(at, seed, runs, whole):
            self._show(base)
            run = self._run(number, seconds)
            while run.ended and seconds is not None and seconds > _SOONEST:
                seconds /= 2  # it was faster this time
                self._show(base)
                run = self._run(number, seconds)
            tree = self._scan()
            recovered = self.fresh.run(self.time_limit)
            problem = self._judge(run, recovered)
            kills.append(
                Kill(number, seconds, run.acknowledged, run.ended, tree, recovered, problem)
            )
        old, new = self.expected
        told = Expectation(length=0, before=old, after=new, invariant=self.invariant)
        return KillReport(tuple(kills), whole.count, seed, told.tells_apart)

    def _judge(self, run: _Run, recovered: Outcome) -> Judgement | None:
        done = [(n + 1, value) for n, value in enumerate(run.acknowledged)]
        rest = self.values[len(done) :] if not run.ended else ()
        end = len(done) + 1
        expectation = Expectation(
            length=end if run.ended else 2 * _FAR,
            before=self.expected[0],
            after=self.expected[1],
            acknowledged=[*done, *((_FAR + n, value) for n, value in enumerate(rest))],
            invariant=self.invariant,
            demands_after=self.demands_after,
        )
        found = expectation.judge(recovered, [(end, end)], end - 1)
        return found[0] if found else None

    def _run(self, at: int | None, seconds: float | None) -> _Run:
        """Run the workload in a child; kill it at a call, or after a time, or not at all."""
        read, write = os.pipe()
        child = fork()
        if child == 0:
            try:
                os.setpgid(0, 0)
                os.close(read)
                self._child(write, at)
            finally:
                os._exit(0)
        os.close(write)
        started = time.perf_counter()
        try:
            data, ended_in_time = _drain(read, seconds if seconds is not None else _LIMIT)
        finally:
            os.close(read)
            took = time.perf_counter() - started
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        values, count, error, ended = [], 0, "", False
        for kind, value in _messages(data):
            if kind == "value":
                values.append(value)
            else:
                count, error, ended = value[0], value[1], True
        if seconds is None and at is None and not ended_in_time:
            error = f"it did not end within {_LIMIT:g} s"
        return _Run(tuple(values), count, error, ended, took)

    def _child(self, write: int, at: int | None) -> None:
        counter = _KillAt(at)
        error = ""

        def acknowledge(value: Any = None) -> None:
            _send(write, "value", value)

        with gated(self.directory, counter):
            try:
                call(self.workload, self.directory, acknowledge)
            except BaseException as raised:
                error = f"{type(raised).__name__}: {raised}"
        _send(write, "end", (counter.count, error))

    def _scan(self) -> Tree:
        directory = self.place.directory
        return scan(directory, keep=Keep(directory)).tree

    def _show(self, tree: Tree) -> None:
        trace = op.Trace(tree)
        shown = Materialiser(self.place.directory, self.place.aside, trace, present=False)
        start = CrashState(-1, frozenset(), points=((0, 0),))
        shown.show(disk_of(trace, get_model("kill")), start)


@dataclass(frozen=True, slots=True)
class _Run:
    acknowledged: tuple[Any, ...]
    count: int
    error: str
    ended: bool
    seconds: float


class _KillAt:
    """Counts changing calls, and ends the process at one of them."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.count = 0

    def __call__(self, call: Call, run: Callable[[], Any]) -> Any:
        opens = call.operation is Operation.OPEN
        if not call.operation.changes or (opens and not call.writes):
            return run()
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1
        return run()


def _moments(
    at: int | Iterable[int] | str | None, seed: int | None, runs: int, whole: _Run
) -> Iterator[tuple[int | None, float | None]]:
    if seed is not None:
        dice = random.Random(seed)
        for _ in range(runs):
            yield None, dice.uniform(0, whole.seconds)
        return
    if at == "every":
        points: Iterable[Any] = range(whole.count)
    elif isinstance(at, int):
        points = (at,)
    elif isinstance(at, Iterable) and not isinstance(at, str):
        points = at
    else:
        raise UserError(f"at={at!r} is neither a number of calls, nor several, nor 'every'")
    for point in points:
        if type(point) is not int or not 0 <= point < max(whole.count, 1):
            raise UserError(
                f"at={point!r} is no call of this workload, which makes {whole.count} calls that "
                "change the directory; they are counted from 0"
            )
        yield point, None


def _given(value: Any, found: Outcome) -> Expected:
    if isinstance(value, Unset):
        return found
    return value if isinstance(value, Raises | Outcome) else Outcome.returned(value)


def _send(write: int, kind: str, value: Any) -> None:
    data = pickle.dumps((kind, value))
    left = memoryview(_HEADER.pack(len(data)) + data)
    while left:
        left = left[os.write(write, left) :]


def _drain(read: int, seconds: float) -> tuple[bytes, bool]:
    """Read until the other end is closed or the time is over."""
    deadline = time.monotonic() + seconds
    data = b""
    while True:
        ready, _, _ = select.select([read], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return data, False
        part = os.read(read, 1 << 16)
        if not part:
            return data, True
        data += part


def _messages(data: bytes) -> Iterator[tuple[str, Any]]:
    """Yield what the child said as a whole; a message that the kill cut off was never said."""
    while len(data) >= _HEADER.size:
        length = _HEADER.unpack(data[: _HEADER.size])[0]
        if len(data) < _HEADER.size + length:
            return
        yield pickle.loads(data[_HEADER.size : _HEADER.size + length])
        data = data[_HEADER.size + length :]
