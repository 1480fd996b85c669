"""Which crash states are worth a run: all that a recovery could tell apart, simplest first.

Belongs here: the search over choices, its bounds, and what it found. Rules:

1. A choice is run on its fullest state. What the run read splits the choice: the states that show
   the same share its outcome, the others come back as choices of their own, disjoint.
2. Choices are taken in order of deviations. "Complete up to k" means that no choice with at most k
   deviations was left; "all" that none was left at all.
3. The search never says what is legal nor what is right: it asks `core` and an `Expectation`.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.models import Model
from pytest_statepersist.core.reading import Beyond
from pytest_statepersist.core.states import roots
from pytest_statepersist.core.window import Choice
from pytest_statepersist.explorer.outcome import Expectation, Judgement, Kind, Outcome
from pytest_statepersist.explorer.questions import Questions

__all__ = ["Bounds", "Coverage", "Failure", "Result", "Step", "Visit", "search"]

_KEPT_FAILURES = 200
_KEPT_SKIPPED = 2000
_KEPT_PASSES = 24
_SHARED_PER_RUN = 50
RETURNING = 3
"""How many inodes may come back under one name in a search; see `core.states.roots`."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far a search goes: recoveries run, seconds, deviations, samples beyond them."""

    states: int = 10_000
    seconds: float | None = None
    deviations: int = 2
    samples: int = 200
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """A crash during a recovery: at which point of it, what was lost, what then came out."""

    outcome: Outcome
    state: CrashState
    disk: Disk
    kind: Kind | None = None
    first: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What running a recovery on a state told: its outcome, what it asked, crashes inside it."""

    outcome: Outcome
    asked: Questions
    wrote: bool = False
    again: tuple[Step, ...] = ()
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Failure:
    """One crash state on which something is wrong, as the search met it."""

    model: Model
    disk: Disk
    state: CrashState
    outcome: Outcome
    judgement: Judgement
    step: Step | None = None


@dataclass(slots=True)
class Coverage:
    """How far a search came, and what it found."""

    model: Model
    states: int = 0
    runs: int = 0
    sampled: int = 0
    skipped: int = 0
    deviations: int = 0
    all_states: bool = True
    complete: bool = True
    reason: str = ""
    seed: int = 0
    failures: list[Failure] = field(default_factory=list)
    failing: dict[Kind, int] = field(default_factory=lambda: defaultdict(int))
    lost_after_return: bool = False
    seconds: float = 0.0
    passes: list[CrashState] = field(default_factory=list)
    """A few states on which nothing was wrong, drawn by chance, to be run again elsewhere."""

    def __str__(self) -> str:
        if self.all_states:
            return f"all {self.states:,} states"
        if self.complete:
            text = f"complete up to {self.deviations} deviations ({self.states:,} states)"
        else:
            text = f"incomplete: {self.states:,} states, {self.reason}"
        if self.sampled:
            text += f", then {self.sampled:,} sampled, seed {self.seed}"
        return text


Visit = Callable[[Choice], tuple[Result, Choice, list[Choice], list[Beyond]]]
"""From a choice to what recovery gives on its fullest state, and to the choice split by what that
depends on: all states that share the result, and the others, disjoint. Others that surely need
more deviations than the visitor was told of may be left together."""


def search(
    disk: Disk,
    visit: Visit,
    expectation: Expectation,
    bounds: Bounds,
    runs_so_far: Callable[[], int],
) -> Coverage:
    """Visit the crash states of a disk and judge what ``visit`` says of each class of them."""
    return _Search(disk, visit, expectation, bounds, runs_so_far).go()


class _Search:
    def __init__(
        self,
        disk: Disk,
        visit: Visit,
        expectation: Expectation,
        bounds: Bounds,
        runs_so_far: Callable[[], int],
    ) -> None:
        self.disk = disk
        self.ask = visit
        self.expectation = expectation
        self.bounds = bounds
        self.counter = runs_so_far
        self.start_runs = runs_so_far()
        self.out = Coverage(disk.model, deviations=bounds.deviations, seed=bounds.seed)
        self.pending: dict[int, deque[Choice]] = defaultdict(deque)
        self.beyond: list[Choice | Beyond] = []
        self.passes: list[Choice] = []
        self.drawn: dict[int, Result] = {}
        """The runs that passed, by identity, so that each is drawn once."""
        self.random = random.Random(bounds.seed)
        self.deadline = None if bounds.seconds is None else time.monotonic() + bounds.seconds

    def go(self) -> Coverage:
        started = time.perf_counter()
        stopped = self._visit_all()
        out = self.out
        if stopped:
            out.complete = out.all_states = False
            out.reason = stopped
        elif out.skipped:
            out.all_states = False
        if not stopped and self.beyond:
            self._sample()
        out.passes = [choice.state() for choice in self.passes]
        out.runs = self.counter() - self.start_runs
        out.seconds = time.perf_counter() - started
        return out

    def _visit_all(self) -> str:
        for choice in roots(self.disk, returning=RETURNING):
            if choice.deviations_up_to(0):
                self._later(choice)
                continue
            self.pending[0].append(choice)
            stopped = self._drain(0)
            if stopped:
                return stopped
        for bound in range(1, self.bounds.deviations + 1):
            stopped = self._drain(bound)
            if stopped:
                return stopped
        return ""

    def _drain(self, bound: int) -> str:
        queue = self.pending[bound]
        while queue:
            if self._spent():
                return self._why()
            for other in self._visit(queue.popleft()):
                self._later(other)
        return ""

    def _later(self, choice: Choice) -> None:
        deviations = choice.deviations_up_to(self.bounds.deviations)
        if deviations <= self.bounds.deviations:
            self.pending[deviations].append(choice)
            return
        self._skip(choice)

    def _skip(self, choice: Choice | Beyond) -> None:
        self.out.skipped += 1
        if len(self.beyond) < _KEPT_SKIPPED:
            self.beyond.append(choice)
        else:
            place = int(self.random.random() * self.out.skipped)
            if place < _KEPT_SKIPPED:
                self.beyond[place] = choice

    def _spent(self) -> bool:
        if self.deadline is not None and time.monotonic() > self.deadline:
            return True
        if self.out.states >= self.bounds.states * _SHARED_PER_RUN:
            return True
        return self.counter() - self.start_runs >= self.bounds.states

    def _why(self) -> str:
        if self.deadline is not None and time.monotonic() > self.deadline:
            return f"the budget of {self.bounds.seconds:g} s ended"
        return f"the budget of {self.bounds.states:,} recoveries ended"

    def _visit(self, choice: Choice) -> list[Choice]:
        result, alike, others, beyond = self.ask(choice)
        self._judge(alike, result)
        for each in beyond:
            self._skip(each)
        return others

    def _judge(self, choice: Choice, result: Result) -> None:
        self.out.states += 1
        if not result.complete:
            self.out.complete = False
            self.out.all_states = False
            self.out.reason = "a crash during recovery could not be explored in full"
        points, last = choice.window.points(choice.absent), choice.window.last
        judgements = self.expectation.judge(result.outcome, points, last)
        if not judgements:
            self._draw(choice, result)
            if not result.again:
                return
        state = choice.state()
        for judgement in judgements:
            self._fail(state, result.outcome, judgement, None)
        # What one crash breaks is not also blamed on a second one.
        for step in () if judgements else result.again:
            for judgement in self.expectation.judge(step.outcome, points, last):
                self._fail(state, step.outcome, judgement, step)
            if step.kind is not None:
                point = points[0][0] if points else 0
                expected = f"{step.first}, which it had returned before the second crash"
                self._fail(state, step.outcome, Judgement(step.kind, point, 0, expected), step)

    def _draw(self, choice: Choice, result: Result) -> None:
        """Keep one state of each run that passed, or a sample of them where there are many."""
        if id(result) in self.drawn:
            return
        self.drawn[id(result)] = result
        if len(self.passes) < _KEPT_PASSES:
            self.passes.append(choice)
        else:
            place = int(self.random.random() * len(self.drawn))
            if place < _KEPT_PASSES:
                self.passes[place] = choice

    def _fail(
        self, state: CrashState, outcome: Outcome, judgement: Judgement, step: Step | None
    ) -> None:
        self.out.failing[judgement.kind] += 1
        end = len(self.disk.trace)
        if any(begin <= end <= last for begin, last in state.points):
            self.out.lost_after_return = True
        if sum(f.judgement.kind is judgement.kind for f in self.out.failures) < _KEPT_FAILURES:
            self.out.failures.append(
                Failure(self.disk.model, self.disk, state, outcome, judgement, step)
            )

    def _sample(self) -> None:
        """Beyond the bound: a few states drawn by chance, so that more than nothing is known."""
        for _ in range(self.bounds.samples):
            if not self.beyond or self._spent():
                return
            place = self.random.randrange(len(self.beyond))
            choice = self.beyond[place]
            if isinstance(choice, Beyond):
                choice = self.random.choice(choice.choices())
            result, alike, others, beyond = self.ask(choice)
            self._judge(alike, result)
            self.out.sampled += 1
            self.out.states -= 1
            further: list[Choice | Beyond] = [*others, *beyond]
            if further:
                self.beyond[place] = self.random.choice(further)
            else:
                self.beyond.pop(place)
