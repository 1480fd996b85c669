"""Concurrent savers under a scheduler that decides which file-system call is made next.

Belongs here: running two or more savers, one call at a time, in an order that is chosen, not left
to chance; and judging what they leave. Rules:

1. A saver runs from one call on the directory to the next, and waits before each for its turn.
2. A saver that waits for something else (a lock of any kind) is not runnable until it goes on by
   itself; one that sleeps, or tries again what has just failed, is not runnable until another has
   made a call. So is one that computes for long: it may be looking for something in a loop. None
   of them is a hang. Time passes when nobody can make a call, so no time limit is over before.
3. First come all orders with one switch (the first saver is stopped before its n-th call, the
   others run, it goes on), then random ones by seed. Each has a name by which it is replayed.
   Where one of the others then waited with a time limit, or slept, the order is run again with the
   first saver late: the limit is over, and whoever goes on without the lock goes on.
4. What is left must be what the savers leave one after the other, in some order; a saver that
   reported an error counts as one that has not saved.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
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
    BlindSpot,
    CrashConsistencyError,
    NotCovered,
    RecorderUnavailable,
    UserError,
)
from pytest_statepersist.explorer.fresh import FreshProcess
from pytest_statepersist.explorer.materialise import Materialiser
from pytest_statepersist.explorer.outcome import Outcome, same
from pytest_statepersist.explorer.runner import Recovery, call, run_recovery
from pytest_statepersist.explorer.workplace import Workplace
from pytest_statepersist.faults.gate import gated
from pytest_statepersist.faults.inject import Counting, uncounted
from pytest_statepersist.recorders.python import PythonRecorder
from pytest_statepersist.recorders.scan import Keep, scan
from pytest_statepersist.recording import shared_memory_in, sqlite_companions
from pytest_statepersist.saver_time import Moments
from pytest_statepersist.savers import (
    ProcessTask,
    Task,
    ThreadTask,
    Turns,
    hastened,
    interposed,
    sqlite_scheduled,
    uncovered,
)

__all__ = ["ConcurrencyFinding", "ConcurrencyReport", "interleave", "interposed"]



@dataclass(frozen=True, slots=True)
class ConcurrencyFinding:
    """One order of calls that broke something; ``schedule`` replays it.

    ``kind`` is "lost update", "error", "unrecoverable" or "deadlock"; ``steps`` are (saver, call).
    """

    kind: str
    schedule: str
    steps: tuple[tuple[int, str], ...]
    observed: str
    expected: str

    def __str__(self) -> str:
        lines = [f"{self.kind} in schedule {self.schedule!r}"]
        lines += [f"  observed: {self.observed}", f"  expected: {self.expected}"]
        for saver, group in itertools.groupby(self.steps, key=lambda step: step[0]):
            lines.append(f"  saver {saver}: {', '.join(each for _, each in group)}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class ConcurrencyReport:
    """The result: how many orders ran, and the first finding of each kind."""

    schedules: int
    findings: tuple[ConcurrencyFinding, ...]
    not_covered: tuple[str, ...] = ()
    seed: int = 0

    @property
    def ok(self) -> bool | None:
        """False with a finding, ``None`` where something was not covered."""
        if self.findings:
            return False
        return None if self.not_covered else True

    def raise_for_findings(self) -> None:
        """Raise `CrashConsistencyError` with a finding, `NotCovered` where not all was seen."""
        __tracebackhide__ = True  # pytest then shows the test's own line
        if self.findings:
            raise CrashConsistencyError(str(self), self)
        if self.not_covered:
            raise NotCovered(str(self), self)

    def checked(self) -> Checked:
        """Return the result in the shape that every check has."""
        findings = tuple(
            CheckedFinding(
                each.kind,
                f"{each.kind} in schedule {each.schedule!r}: {each.observed}",
                each.observed,
                each.expected,
            )
            for each in self.findings
        )
        return Checked(
            Check.CONCURRENCY,
            self.ok,
            self.schedules,
            f"{self.schedules} orders of calls",
            findings,
            self.not_covered,
            seed=self.seed,
        )

    def __str__(self) -> str:
        head = f"{self.schedules} orders of calls, {len(self.findings)} findings, seed {self.seed}"
        rest = [f"not covered: {each}" for each in self.not_covered]
        return "\n".join([head, *map(str, self.findings), *rest])


def interleave(
    *,
    savers: Sequence[Callable[[Path], Any]],
    recover: Recovery,
    place: Workplace,
    setup: Callable[[Path], Any] | None = None,
    processes: bool = False,
    allow: tuple[type[BaseException], ...] = (),
    runs: int = 30,
    seed: int = 0,
    schedule: str | None = None,
    time_limit: float = 10.0,
) -> ConcurrencyReport:
    """Run the savers against each other; see `CrashSimulator.interleave`."""
    if len(savers) < 2 or not all(callable(each) for each in savers):
        raise UserError("savers= takes two or more functions of the directory")
    if len(savers) > 4:
        raise UserError("savers= takes four at most: every serial order of them has to be run")
    if not hasattr(os, "fork"):
        raise RecorderUnavailable("interleave() needs a platform with fork; this one has none")
    with _Explorer(savers, recover, place, processes, allow, time_limit) as explorer:
        return explorer.go(setup, runs, seed, schedule)


@dataclass(slots=True)
class _Ran:
    """One order as it ran."""

    outcome: Outcome
    errors: dict[int, str]
    steps: list[tuple[int, str]]
    deadlock: bool = False
    late: frozenset[int] = frozenset()
    """Savers for which a time limit was over because another one was late."""
    waits: frozenset[tuple[int, str]] = frozenset()
    """Which savers waited with a time limit or slept, and after which call."""
    impatient: frozenset[tuple[int, str]] = frozenset()
    """Those of ``waits`` that did not end however late the other was."""

    def count(self, saver: int) -> int:
        return sum(each == saver for each, _ in self.steps)


class _Explorer:
    def __init__(
        self,
        savers: Sequence[Callable[[Path], Any]],
        recover: Recovery,
        place: Workplace,
        processes: bool,
        allow: tuple[type[BaseException], ...],
        time_limit: float,
    ) -> None:
        self.savers = list(savers)
        self.place = place
        self.directory = Path(place.directory)
        self.processes = processes
        self.allow = allow
        self.time_limit = time_limit
        self.recover = recover
        self.serial: dict[tuple[int, ...], list[Outcome]] = {}
        self.turns = Turns()
        self.stack = ExitStack()

    def __enter__(self) -> _Explorer:
        try:
            self.stack.enter_context(interposed())
            if sqlite_companions()[0]:
                self.stack.enter_context(sqlite_scheduled())
            self.stack.enter_context(gated(self.directory, self.turns))
            self.fresh = FreshProcess(self.recover, self.directory)
            self.stack.callback(self.fresh.close)
            if self.processes:
                self.rehearsal = FreshProcess(self._rehearse, self.directory)
                self.stack.callback(self.rehearsal.close)
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def go(
        self, setup: Callable[[Path], Any] | None, runs: int, seed: int, schedule: str | None
    ) -> ConcurrencyReport:
        if setup is not None:
            call(setup, self.directory)
        self.base = scan(self.place.directory, keep=Keep(self.place.directory)).tree
        everyone = tuple(range(len(self.savers)))
        if self.processes:
            rehearsed = self.rehearsal.run(self.time_limit)
        else:
            rehearsed = run_recovery(self._rehearse, self.directory, self.time_limit)
        left_out: list[str] = list(rehearsed.value or ())
        alone = self.run(_in_order(everyone), everyone)
        if alone.errors:
            number, error = next(iter(alone.errors.items()))
            raise UserError(
                f"one after the other, saver {number} raised {error}; the savers have to succeed "
                "in turn before they can be run against each other"
            )
        findings: dict[str, ConcurrencyFinding] = {}
        names = [schedule] if schedule is not None else self._names(alone, runs, seed)
        count = 0
        if not alone.steps:
            left_out.append("the savers made no call that can be scheduled: native code?")
        for name in self._with_late(names):
            count += 1
            ran = self.ran = self.run(_policy(name, everyone), everyone, late=_late(name))
            found = self._judge(name, ran)
            if found is not None:
                findings.setdefault(found.kind, found)
            if ran.deadlock and not self.processes:
                left_out.append("the orders after a deadlock: its threads cannot be ended")
                break
        left_out += self.turns.unscheduled
        return ConcurrencyReport(count, tuple(findings.values()), tuple(left_out), seed)

    def _rehearse(self, directory: Path) -> tuple[str, ...]:
        """Run the savers in turn, and say what no order can hold."""
        base = scan(self.place.directory, keep=Keep(self.place.directory)).tree
        try:
            with hastened():
                return self._recorded(directory)
        except Exception:
            self._show(base)
        try:
            return self._recorded(directory)
        except Exception:
            return ()  # the savers have to succeed in turn, which is asked next

    def _recorded(self, directory: Path) -> tuple[str, ...]:
        companions, _ = sqlite_companions()
        recorder = PythonRecorder(
            directory, ignore=shared_memory_in(directory), companions=companions
        )
        counting = Counting()
        try:
            with recorder, gated(directory, counting):
                for saver in self.savers:
                    call(saver, directory)
        except BlindSpot as blind:
            return (f"what came by ways that cannot be scheduled: {blind}",)
        return tuple(
            f"{recorded - counted} of {recorded} calls to {operation.value} came by ways that "
            "cannot be scheduled (a memory map, C code)"
            for operation, recorded, counted in uncounted(recorder.trace, counting.sites)
        )

    def _names(self, alone: _Ran, runs: int, seed: int) -> Iterator[str]:
        for first in range(len(self.savers)):
            for steps in range(1, alone.count(first) + 1):
                yield f"switch:{first}:{steps}"
        for number in range(runs):
            yield f"random:{seed + number}"

    def _with_late(self, names: Iterable[str]) -> Iterator[str]:
        """Yield, after an order in which a saver waited with a limit, the one in which it is over.

        Not where it was seen to wait for ever at the same place.
        """
        forever: set[tuple[int, str]] = set()
        for name in names:
            yield name
            kind, _, rest = name.partition(":")
            if kind == "switch" and self.ran.waits - forever and rest.count(":") == 1:
                if isinstance(names, list):
                    continue  # one order was asked for
                yield f"late:{rest}"
                forever |= self.ran.impatient

    def _judge(self, name: str, ran: _Ran) -> ConcurrencyFinding | None:
        steps = tuple(ran.steps)
        if ran.deadlock:
            return ConcurrencyFinding(
                "deadlock", name, steps, "every saver waits for another", "all of them to end"
            )
        if ran.errors:
            number, error = next(
                ((n, each) for n, each in ran.errors.items() if n not in ran.late),
                next(iter(ran.errors.items())),
            )
            if number not in ran.late and not self._allowed(error):
                observed = f"saver {number} raised {error}"
                return ConcurrencyFinding(
                    "error", name, steps, observed, "both to succeed, or an error in allow="
                )
        saved = tuple(n for n in range(len(self.savers)) if n not in ran.errors)
        allowed = [
            each
            for gave_up in _subsets([n for n in ran.errors if n in ran.late])
            for each in self._in_turn(tuple(sorted({*saved, *gave_up})))
        ]
        if any(same(ran.outcome, each) for each in allowed):
            return None
        kind = "lost update" if ran.outcome.ok else "unrecoverable"
        expected = " or ".join(dict.fromkeys(each.text or str(each) for each in allowed))
        return ConcurrencyFinding(kind, name, steps, f"recovery {ran.outcome}", expected)

    def _allowed(self, error: str) -> bool:
        return error.partition(":")[0] in {each.__name__ for each in self.allow}

    def _in_turn(self, saved: tuple[int, ...]) -> list[Outcome]:
        """Return what these savers leave one after the other, in every order."""
        if saved not in self.serial:
            found = [
                self.run(_in_order(order), order).outcome for order in itertools.permutations(saved)
            ]
            self.serial[saved] = found
        return self.serial[saved]

    # -- one order

    def _show(self, tree: Tree) -> None:
        trace = op.Trace(tree)
        shown = Materialiser(self.place.directory, self.place.aside, trace, present=False)
        start = CrashState(-1, frozenset(), points=((0, 0),))
        shown.show(disk_of(trace, get_model("kill")), start)

    def run(
        self, policy: _Policy, numbers: Sequence[int], late: int | None = None
    ) -> _Ran:
        """Run the savers in an order; where one is ``late``, no other waits for it."""
        self._show(self.base)
        kind = ProcessTask if self.processes else ThreadTask
        tasks: dict[int, Task] = {}
        moments = Moments()
        try:
            for number in numbers:
                if late is not None and number != late:
                    moments.hurry(number)
                tasks[number] = kind(self.savers[number], self.directory, moments, number)
            self.turns.listens = True
            ran = self._schedule(policy, tasks, moments)
            self.turns.unscheduled |= dict.fromkeys(uncovered(tasks.values()))
            waited = [n for n in tasks if late is None or moments.gave_up(n)]
            ran.late = frozenset(waited) if late is not None else ran.late
            ran.waits = frozenset((n, each) for n in waited for each in tasks[n].waits)
            if late is not None:
                ran.impatient = frozenset(
                    each for each in ran.waits if moments.patience(each[0]) <= 0
                )
        finally:
            self.turns.listens = False
            for task in tasks.values():
                task.close()
        ran.outcome = self.fresh.run(self.time_limit)
        return ran

    def _schedule(self, policy: _Policy, tasks: dict[int, Task], moments: Moments) -> _Ran:
        steps: list[tuple[int, str]] = []
        made = dict.fromkeys(tasks, 0)
        deadline = time.monotonic() + self.time_limit
        idle = _Idle(moments, self.time_limit)
        first = 0
        while True:
            # Who had the turn comes first: what it gave back lets others go on.
            for number in sorted(tasks, key=lambda n: (n != first, n)):
                tasks[number].settle()
            alive = {n: task for n, task in tasks.items() if not task.ended}
            if not alive:
                errors = {n: task.error for n, task in tasks.items() if task.error}
                return _Ran(Outcome.returned(None), errors, steps)
            ready = [n for n, task in alive.items() if task.at is not None and not task.asleep]
            if ready:
                idle.ended()
            else:
                ready = idle.pass_time(alive)
            if not ready:
                if idle.waits:
                    continue
                if time.monotonic() > deadline:
                    return _Ran(Outcome.returned(None), {}, steps, deadlock=True)
                time.sleep(0.001)
                if time.monotonic() > deadline - self.time_limit + 1.0 and all(
                    task.stuck for task in alive.values()
                ):
                    return _Ran(Outcome.returned(None), {}, steps, deadlock=True)
                continue
            deadline = time.monotonic() + self.time_limit
            number = first = policy(ready, made)
            task = tasks[number]
            if not task.asleep:
                made[number] += 1
                steps.append((number, str(task.at)))
                for other in tasks.values():
                    other.asleep &= other.deep
            task.go()


class _Idle:
    """What happens while nobody can make a call: time passes, for the first who waits enough."""

    def __init__(self, moments: Moments, time_limit: float) -> None:
        self.moments, self.time_limit = moments, time_limit
        self.waits = False
        """Whether somebody waits with a limit which is not yet over."""
        self._since: float | None = None
        self._times = 0

    def ended(self) -> None:
        """Note that somebody can make a call."""
        self._since, self._times, self.waits = None, 0, False

    def pass_time(self, alive: dict[int, Task]) -> list[int]:
        """Let time pass, and return who has slept long enough."""
        now, moments = self.moments.now, self.moments
        again = now + (_AGAIN << min(self._times, _LONGEST))
        sleeps = {
            n: max(now, again if task.until is None else task.until)
            for n, task in alive.items()
            if task.at is not None
        }
        limits = {n: moments.deadline(n) for n in alive if n not in sleeps and moments.deadline(n)}
        self.waits = bool(sleeps or limits)
        if not self.waits:
            return []
        until = min([*sleeps.values(), *limits.values()])
        real = time.monotonic()
        self._since = self._since or real
        rest = _STILL if limits else 0.0
        if any(task.has_programs() for task in alive.values()):
            rest = max(rest, min((until - now) / 1e9, self.time_limit))
        if real < self._since + rest:
            time.sleep(0.001)
            return []
        self.moments.now = until
        self._since = None
        self._times += 1
        return [n for n, each in sleeps.items() if each == until]


_AGAIN = 1_000_000
"""Nanoseconds that pass for one who tries again at once while nobody else can make a call."""
_LONGEST = 20
"""So many times they double."""
_STILL = 0.03
"""Seconds for which nothing may have moved before a wait with a limit is over."""


def _late(name: str) -> int | None:
    """Return which saver is late in an order of this name."""
    kind, _, rest = name.partition(":")
    first = rest.partition(":")[0]
    return int(first) if kind == "late" and first.isdigit() else None


def _subsets(numbers: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield who may have saved of those that gave up: as after any error, none, some or all."""
    for size in range(len(numbers) + 1):
        yield from itertools.combinations(numbers, size)


_Policy = Callable[[list[int], dict[int, int]], int]


def _in_order(order: Sequence[int]) -> _Policy:
    def pick(ready: list[int], made: dict[int, int]) -> int:
        return next(number for number in order if number in ready)

    return pick


def _policy(name: str, everyone: Sequence[int]) -> _Policy:
    kind, _, rest = name.partition(":")
    try:
        if kind == "random":
            dice = random.Random(int(rest))
            return lambda ready, made: dice.choice(ready)
        if kind in ("switch", "late"):
            first, steps = (int(part) for part in rest.split(":"))
            others = [number for number in everyone if number != first]
            early, late = _in_order([first, *others]), _in_order([*others, first])
            return lambda ready, made: (early if made[first] < steps else late)(ready, made)
    except ValueError:
        pass
    raise UserError(f"schedule={name!r} is none; a finding's schedule looks like 'switch:0:3'")
