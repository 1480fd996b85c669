"""Concurrent savers under a scheduler that decides which file-system call is made next.

Belongs here: running two or more savers, one call at a time, in an order that is chosen, not left
to chance; and judging what they leave. Rules:

1. A saver runs from one call on the directory to the next, and waits before each for its turn.
2. A saver that waits for something else (a lock of any kind) is not runnable until it goes on by
   itself; one that sleeps, or tries again what has just failed, is not runnable until another has
   made a call. So is one that computes for long: it may be looking for something in a loop. None
   of them is a hang.
3. First come all orders with one switch (the first saver is stopped before its n-th call, the
   others run, it goes on), then random ones by seed. Each has a name by which it is replayed.
4. What is left must be what the savers leave one after the other, in some order; a saver that
   reported an error counts as one that has not saved.
"""

from __future__ import annotations

import itertools
import os
import random
import select
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_statepersist.checked import Check, Checked, CheckedFinding
from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState
from pytest_statepersist.core.models import get_model
from pytest_statepersist.core.states import disk_of
from pytest_statepersist.errors import CrashConsistencyError, RecorderUnavailable, UserError
from pytest_statepersist.explorer.fresh import FreshProcess, fork
from pytest_statepersist.explorer.materialise import Materialiser
from pytest_statepersist.explorer.outcome import Outcome, same
from pytest_statepersist.explorer.runner import Recovery, call
from pytest_statepersist.explorer.workplace import Workplace
from pytest_statepersist.faults.calls import Call, Operation
from pytest_statepersist.faults.gate import gated, installed
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.interpose import Interposition
from pytest_statepersist.recorders.scan import Keep, scan
from pytest_statepersist.recording import sqlite_companions

__all__ = ["ConcurrencyFinding", "ConcurrencyReport", "interleave", "interposed"]

_HEADER = struct.Struct("<cI")
_SETTLED = 4
"""So many looks at a sleeping saver, a millisecond apart and nothing moved: it waits for a lock."""
_GRACE = 0.1
"""Seconds after which a saver counts as waiting where the system does not show what it does."""
_BUSY = 500_000_000
"""Nanoseconds of processor time after which one counts as waiting that makes no call."""


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
        """Raise `CrashConsistencyError` where there is a finding."""
        __tracebackhide__ = True  # pytest then shows the test's own line
        if self.findings:
            raise CrashConsistencyError(str(self), self)

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
        self.stack = ExitStack()

    def __enter__(self) -> _Explorer:
        try:
            self.stack.enter_context(interposed())
            if sqlite_companions()[0]:
                from pytest_statepersist.faults.sqlite import sqlite_gate

                self.stack.enter_context(sqlite_gate())
            self.stack.enter_context(gated(self.directory, _park))
            self.fresh = FreshProcess(self.recover, self.directory)
            self.stack.callback(self.fresh.close)
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
        left_out: tuple[str, ...] = ()
        if not alone.steps:
            left_out = ("the savers made no call that can be scheduled: native code?",)
        for name in names:
            count += 1
            ran = self.run(_policy(name, everyone), everyone)
            found = self._judge(name, ran)
            if found is not None:
                findings.setdefault(found.kind, found)
            if ran.deadlock and not self.processes:
                left_out = ("the orders after a deadlock: its threads cannot be ended",)
                break
        return ConcurrencyReport(count, tuple(findings.values()), left_out, seed)

    def _names(self, alone: _Ran, runs: int, seed: int) -> Iterator[str]:
        for first in range(len(self.savers)):
            for steps in range(1, alone.count(first) + 1):
                yield f"switch:{first}:{steps}"
        for number in range(runs):
            yield f"random:{seed + number}"

    def _judge(self, name: str, ran: _Ran) -> ConcurrencyFinding | None:
        steps = tuple(ran.steps)
        if ran.deadlock:
            return ConcurrencyFinding(
                "deadlock", name, steps, "every saver waits for another", "all of them to end"
            )
        if ran.errors:
            number, error = next(iter(ran.errors.items()))
            if not self._allowed(error):
                observed = f"saver {number} raised {error}"
                return ConcurrencyFinding(
                    "error", name, steps, observed, "both to succeed, or an error in allow="
                )
        saved = tuple(n for n in range(len(self.savers)) if n not in ran.errors)
        allowed = self._in_turn(saved)
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

    def run(self, policy: _Policy, numbers: Sequence[int]) -> _Ran:
        trace = op.Trace(self.base)
        shown = Materialiser(self.place.directory, self.place.aside, trace, present=False)
        start = CrashState(-1, frozenset(), points=((0, 0),))
        shown.show(disk_of(trace, get_model("kill")), start)
        kind = _ProcessTask if self.processes else _ThreadTask
        tasks: dict[int, _Task] = {}
        try:
            for number in numbers:
                tasks[number] = kind(self.savers[number], self.directory)
            ran = self._schedule(policy, tasks)
        finally:
            for task in tasks.values():
                task.close()
        ran.outcome = self.fresh.run(self.time_limit)
        return ran

    def _schedule(self, policy: _Policy, tasks: dict[int, _Task]) -> _Ran:
        steps: list[tuple[int, str]] = []
        made = dict.fromkeys(tasks, 0)
        deadline = time.monotonic() + self.time_limit
        while True:
            for task in tasks.values():
                task.settle()
            alive = [n for n, task in tasks.items() if not task.ended]
            if not alive:
                errors = {n: task.error for n, task in tasks.items() if task.error}
                return _Ran(Outcome.returned(None), errors, steps)
            ready = [n for n in alive if tasks[n].at is not None and not tasks[n].asleep]
            if not ready:  # nobody can make a call: whoever sleeps wakes up
                ready = [n for n in alive if tasks[n].at is not None]
            if not ready:
                if time.monotonic() > deadline:
                    return _Ran(Outcome.returned(None), {}, steps, deadlock=True)
                time.sleep(0.001)
                if time.monotonic() > deadline - self.time_limit + 1.0 and all(
                    tasks[n].stuck for n in alive
                ):
                    return _Ran(Outcome.returned(None), {}, steps, deadlock=True)
                continue
            deadline = time.monotonic() + self.time_limit
            number = policy(ready, made)
            task = tasks[number]
            if not task.asleep:
                made[number] += 1
                steps.append((number, str(task.at)))
                for other in tasks.values():
                    other.asleep = False
            task.go()


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
        if kind == "switch":
            first, steps = (int(part) for part in rest.split(":"))
            others = [number for number in everyone if number != first]
            early, late = _in_order([first, *others]), _in_order([*others, first])
            return lambda ready, made: (early if made[first] < steps else late)(ready, made)
    except ValueError:
        pass
    raise UserError(f"schedule={name!r} is none; a finding's schedule looks like 'switch:0:3'")


# -- savers


class _Aborted(BaseException):
    """Raised in a saver whose order is given up."""


class _Station(threading.local):
    task: _Task | None = None


_station = _Station()


def _park(call: Call, run: Callable[[], Any]) -> Any:
    """Wait for the turn before each call; calls of everyone else pass."""
    task = _station.task
    if task is None or call.operation is Operation.CLOSE:
        return run()
    what = f"{call.operation.value} {call.path}".strip()
    task.wait(b"r" if what in task.failed else b"p", what)
    try:
        result = run()
    except OSError:
        task.failed.add(what)
        raise
    task.failed.discard(what)
    return result


def _sleep(original: Any) -> Any:
    def sleep(seconds: float) -> None:
        task = _station.task
        if task is None:
            original(seconds)
        else:
            task.wait(b"s", "sleep")

    return sleep


_sleeping = Interposition({(time, "sleep"): _sleep}, layer=3, rebind=True)


@contextmanager
def interposed() -> Iterator[None]:
    """Put the replacements in place that `interleave` needs; around many calls they cost once."""
    with installed(), _sleeping:
        yield


class _Task:
    """A saver that runs elsewhere: where it waits, and whether it moves."""

    def __init__(self) -> None:
        self._arrive, self._tell = os.pipe()
        self._turn, self._give = os.pipe()
        self.at: str | None = None
        self.asleep = False
        self.ended = False
        self.stuck = False
        self.busy = False
        self.error = ""
        self.failed: set[str] = set()
        """In the saver: calls that failed when they were made last."""

    def wait(self, kind: bytes, what: str) -> None:
        """In the saver: say where it is, and wait for the turn."""
        text = what.encode()
        real.write(self._tell, _HEADER.pack(kind, len(text)) + text)
        if real.read(self._turn, 1) != b"g":
            raise _Aborted

    def finish(self, error: BaseException | None) -> None:
        """In the saver: say how it ended."""
        text = f"{type(error).__name__}: {error}".encode() if error is not None else b""
        real.write(self._tell, _HEADER.pack(b"e", len(text)) + text)

    def go(self) -> None:
        """Give the turn."""
        self.at = None
        os.write(self._give, b"g")

    def settle(self) -> None:
        """Wait until the saver has arrived somewhere, ended, or waits for something else."""
        if self.at is not None or self.ended:
            return
        still, last, begun, worked = 0, None, time.monotonic(), self.worked()
        while True:
            ready, _, _ = select.select([self._arrive], [], [], 0.001)
            if ready:
                self._hear()
                return
            moved = self.motion()
            if moved is None:
                self.stuck = time.monotonic() - begun > _GRACE
            else:
                still = still + 1 if moved == last and moved[0] == "S" else 0
                self.stuck = still >= _SETTLED
            last = moved
            # Once known to be in a loop it is given only a moment to have found what it looks for.
            self.busy |= self.worked() - worked > _BUSY
            self.stuck |= self.busy
            if self.stuck:
                return

    def _hear(self) -> None:
        self.stuck = self.busy = False
        kind, length = _HEADER.unpack(_exactly(self._arrive, _HEADER.size))
        text = _exactly(self._arrive, length).decode(errors="replace")
        if kind == b"e":
            self.ended, self.error = True, text
        else:
            self.at, self.asleep = text, kind in (b"s", b"r")

    def motion(self) -> tuple[str, ...] | None:
        """Return what changes as long as the saver runs, ``None`` where nothing shows it."""
        return _seen(self.place())

    def worked(self) -> int:
        """Return the nanoseconds of processor time that the saver has had, 0 where none shows."""
        try:
            with real.open(f"{self.place()}/schedstat", encoding="ascii") as file:
                return int(file.read().split()[0])
        except (OSError, IndexError):
            return 0

    def place(self) -> str:
        """Return where the system shows what the saver does."""
        raise NotImplementedError

    def close(self) -> None:
        """End the saver as far as that is possible."""
        for end in (self._arrive, self._tell, self._turn, self._give):
            os.close(end)


def _exactly(fd: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = os.read(fd, length - len(data))
        if not part:
            raise EOFError("a saver's process ended without a word")
        data += part
    return data


def _seen(path: str) -> tuple[str, ...] | None:
    """Return state and context switches of a thread: a thread at rest makes none."""
    try:
        with real.open(f"{path}/status", encoding="ascii", errors="replace") as status:
            lines = status.read().splitlines()
    except OSError:
        return None
    state = next(line.split()[1] for line in lines if line.startswith("State:"))
    return (state, *(line for line in lines if "ctxt_switches" in line))


class _ThreadTask(_Task):
    def __init__(self, saver: Callable[[Path], Any], directory: Path) -> None:
        super().__init__()
        self._thread = threading.Thread(target=self._run, args=(saver, directory), daemon=True)
        self._thread.start()

    def _run(self, saver: Callable[[Path], Any], directory: Path) -> None:
        _station.task = self
        error: BaseException | None = None
        try:
            self.wait(b"p", "start")
            call(saver, directory)
        except _Aborted:
            return
        except BaseException as raised:
            error = raised
        finally:
            _station.task = None
        with suppress(OSError):
            self.finish(error)

    def place(self) -> str:
        return f"/proc/self/task/{self._thread.native_id}"

    def close(self) -> None:
        if not self.ended and self.at is not None:
            os.write(self._give, b"x")
        self._thread.join(0.2)
        if not self._thread.is_alive():
            super().close()  # else the pipes stay open for the thread that cannot be ended


class _ProcessTask(_Task):
    def __init__(self, saver: Callable[[Path], Any], directory: Path) -> None:
        super().__init__()
        self._pid = fork()
        if self._pid == 0:
            try:
                os.setpgid(0, 0)
                self._run(saver, directory)
            finally:
                os._exit(0)

    def _run(self, saver: Callable[[Path], Any], directory: Path) -> None:
        _station.task = self
        error: BaseException | None = None
        try:
            self.wait(b"p", "start")
            call(saver, directory)
        except BaseException as raised:
            error = raised
        _station.task = None
        self.finish(error)

    def place(self) -> str:
        return f"/proc/{self._pid}"

    def close(self) -> None:
        for kill, target in ((os.killpg, self._pid), (os.kill, self._pid)):
            with suppress(ProcessLookupError, PermissionError):
                kill(target, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        super().close()
