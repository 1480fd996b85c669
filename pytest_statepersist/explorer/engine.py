"""Running recoveries on crash states: shown, observed, remembered, and crashed again.

Belongs here: `Engine`, which answers "what does recovery give on this state" and owns the directory
meanwhile. Which states are asked about is the business of `search`. Rules:

1. A recovery runs in this process while that can be trusted. The base and the final tree are run
   again between states (sentinels); an answer that changed means that something in the process
   remembers, and from there on each run is a fresh process.
2. A recovery that wrote is recorded on its crash state, crashed at every point, and run again.
3. Whatever a recovery changed is put back before the next state is shown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.models import Model
from pytest_statepersist.core.reading import Beyond
from pytest_statepersist.core.states import disk_of, roots
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.core.window import Choice
from pytest_statepersist.errors import BlindSpot, UserError
from pytest_statepersist.explorer.code_uses import uses_of
from pytest_statepersist.explorer.fresh import FreshProcess
from pytest_statepersist.explorer.materialise import Materialiser
from pytest_statepersist.explorer.observe import Observation, Observer, Read
from pytest_statepersist.explorer.outcome import Ended, Kind, Outcome, same, same_items
from pytest_statepersist.explorer.questions import (
    WHOLE,
    Asker,
    Memory,
    Questions,
    answer,
    extend,
    questions,
)
from pytest_statepersist.explorer.runner import Recovery, run_recovery
from pytest_statepersist.explorer.search import RETURNING, Result, Step, Visit
from pytest_statepersist.explorer.workplace import Workplace
from pytest_statepersist.recorders.interpose import Interposition
from pytest_statepersist.recorders.python import interposition

__all__ = ["Engine", "Recorded", "Workplace"]

_SENTINEL_EVERY = 64
_LISTS = (Read.LIST, Read.TREE, WHOLE)
_STEPS_KEPT = 50
_NESTED_STATES = 2_000
_STEP = 1_000_000  # ns
_YEARS = 10 * 365 * 24 * 3600 * 1_000_000_000  # ns

Recorded: TypeAlias = "tuple[op.Trace, Outcome] | BlindSpot"
Settle = Callable[[Outcome, Callable[[], int]], Outcome]
Record = Callable[[Tree, Callable[[], Outcome]], Recorded]
"""Record a recovery that runs on a directory holding this tree; `BlindSpot` where it cannot."""


class Engine:
    """Runs one recovery on crash states of one trace. Use as a context manager."""

    def __init__(
        self,
        *,
        trace: op.Trace,
        recover: Recovery,
        argument: object,
        place: Workplace,
        fresh: FreshProcess,
        record: Record,
        time_limit: float | None,
        recovery_crashes: int,
        deviations: int,
        present: bool,
    ) -> None:
        self.trace = trace
        self.recover = recover
        self.argument = argument
        self.place = place
        self.fresh = fresh
        self.time_limit = time_limit
        self.recovery_crashes = recovery_crashes
        self.deviations = deviations
        self.runs = 0
        self.isolated = False
        uses = uses_of(recover)
        self._numbers = uses.inode_numbers and present
        self.native = uses.native
        """Whether every run counts as having asked for every name, size and attribute."""
        self.searching = False
        """Set once states are being judged by what earlier runs asked."""
        self.warnings: list[str] = []
        self.doubts: list[str] = []
        """What recovery looked at that no crash state is made to show: then there is no yes."""
        self._settle: Settle | None = None
        self._dated: int | None = None
        """When the newest directory was changed, in ns, once recovery was seen to ask."""
        self._other_times = False
        self._record = record
        self._observer = Observer(place.directory, place.original, place.outside)
        self._shown = Materialiser(
            place.directory, place.aside, trace, present=present, sole=True
        )
        self._outcomes = Memory()
        self._results: dict[tuple[str, int], Memory] = {}
        self.sentinels: list[tuple[Disk, CrashState, Outcome]] = []
        self._next_check = _SENTINEL_EVERY
        self._checking = False
        self._recorder: Interposition | None = None

    def __enter__(self) -> Engine:
        self._observer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._observer.stop()
        self._shown.close()
        if self._recorder is not None:
            self._recorder.uninstall()
            self._recorder = None

    # -- one answer

    def visitor(self, disk: Disk, deviations: int) -> Visit:
        """Return what answers for the choices of a disk, one after the other, for a search.

        Choices with more than so many deviations may be left together.
        """
        asker = Asker(disk, deviations)

        def visit(choice: Choice) -> tuple[Result, Choice, list[Choice], list[Beyond]]:
            result = self._visit(asker, choice, self._shown, self.recovery_crashes)
            return result, asker.choice(), asker.others, asker.beyond

        return visit

    def answer(self, disk: Disk, state: CrashState) -> Result:
        """Return what recovery gives on a state, with what came of crashes inside it."""
        depth, ask = self.recovery_crashes, partial(answer, disk, state)
        known: Result | None = self._memory(disk, depth).find(ask)
        if known is not None:
            return known
        result = self.outcome(disk, state)
        if result.wrote and depth > 0 and result.outcome.ok:
            result = self._crash_again(disk, state, self._shown, depth, result)
        self._memory(disk, depth).remember(result.asked, [*map(ask, result.asked)], result)
        return result

    def outcome(self, disk: Disk, state: CrashState, shown: Materialiser | None = None) -> Result:
        """Return what recovery gives on a state, without crashing it again."""
        ask = partial(answer, disk, state)
        known: Result | None = self._outcomes.find(ask)
        if known is not None:
            return known
        result = self._run(disk, state, self._shown if shown is None else shown)
        self._outcomes.remember(result.asked, [*map(ask, result.asked)], result)
        return result

    def _visit(self, asker: Asker, choice: Choice, shown: Materialiser, depth: int) -> Result:
        """Return the answer on a choice's fullest state; the asker has read what decides it."""
        asker.open(choice)
        first: Result | None = self._outcomes.find(asker.ask)
        state: CrashState | None = None
        if first is None:
            state = choice.state()
            first = self._run(asker.disk, state, shown)
            answers = asker.ask_all(choice, first.asked)
            self._outcomes.remember(first.asked, answers, first)
        if not first.wrote or depth <= 0 or not first.outcome.ok:
            return first
        # What came of crashes inside it depends on the model too.
        again: Result | None = self._memory(asker.disk, depth).find(asker.ask)
        if again is None:
            state = choice.state() if state is None else state
            again = self._crash_again(asker.disk, state, shown, depth, first)
            answers = asker.ask_all(choice, again.asked)
            self._memory(asker.disk, depth).remember(again.asked, answers, again)
        return again

    def _memory(self, disk: Disk, depth: int) -> Memory:
        key = (disk.model.name, depth)
        memory = self._results.get(key)
        if memory is None:
            memory = self._results[key] = Memory()
        return memory

    def _run(self, disk: Disk, state: CrashState, shown: Materialiser) -> Result:
        self._check_sentinels(shown)
        self._show(disk, state, shown)
        self._observer.begin()
        try:
            outcome = self._call()
            if self._settle is not None:
                outcome = self._settle(outcome, self._observer.reads)
        finally:
            seen = self._observer.end()
        self._heal(seen, shown)
        if seen.directory_times and not self._other_times and not self.isolated:
            if self._dated is None:
                # Until now they were those of this moment, which are never the same again.
                self._dated = time.time_ns()
                return self._run(disk, state, shown)
            self._check_directory_times(disk, state, shown, outcome)
        return Result(outcome, questions(seen), wrote=seen.wrote)

    def _check_directory_times(
        self, disk: Disk, state: CrashState, shown: Materialiser, outcome: Outcome
    ) -> None:
        """Doubt a recovery whose answer changes with modification times of directories."""
        self._other_times = True
        try:
            again = self._run(disk, state, shown).outcome
        finally:
            self._other_times = False
        if not same(again, outcome):
            self._doubt(
                "recovery gives another answer with other modification times of directories, "
                "which no crash state is made to show"
            )

    def _call(self) -> Outcome:
        self.runs += 1
        if self.isolated:
            return self.fresh.run(self.time_limit)
        return run_recovery(self.recover, self.argument, self.time_limit)

    def settle_with(self, settle: Settle, *, forget: bool) -> None:
        """Ask each outcome at once what will be asked of it, see `Expectation.settle`.

        What it reads then counts as read by the recovery; ``forget`` the runs of before.
        """
        self._settle = settle
        if forget:
            self._outcomes = Memory()
            self._results.clear()

    def _show(self, disk: Disk, state: CrashState, shown: Materialiser) -> None:
        try:
            shown.show(disk, state)
        except OSError as error:
            shown.check_here()
            raise UserError(
                f"a crash state could not be shown in {self.place.directory}: {error}. Usually a "
                "thread or process that the workload or recovery started goes on writing there; "
                "wait for it to end, or give a workspace= with more room."
            ) from error
        if shown.changed_directories:
            self._observer.directories(True)
            shown.changed_directories = False
        if self._dated is not None:
            _date_directories(self.place.directory, self._dated, turned=self._other_times)

    def _heal(self, seen: Observation, shown: Materialiser, *, here: bool = True) -> None:
        if self.isolated or self.native:
            # What another process or native code looked up and did not find was not logged.
            seen.native = True
            seen.times = self.isolated
        elif not seen.asked:
            seen.everything = True
        if seen.unmodelled:
            self._doubt(f"recovery looked at {seen.unmodelled}; no crash state shows it as a disk")
        if self.isolated and self.place.outside:
            self._doubt(
                "the workload wrote files outside the directory, and it cannot be seen whether a "
                "recovery in a fresh process reads them"
            )
        if self._observer.strayed is not None:
            path, self._observer.strayed = self._observer.strayed, None
            raise BlindSpot(
                f"the recovery read {path}, which is in the directory that was recorded, not in "
                "the copy that holds the crash state. Usually it keeps an absolute path. Use "
                "check(setup=…, workload=…, recover=…): there each state appears at the path at "
                "which the workload ran.",
                culprit=path,
            )
        if not self._observer.notified:
            seen.wrote = True
            shown.rebuild()
        elif seen.changed:
            shown.heal(seen.changed)
        if shown.changed_directories:
            self._observer.directories(True)
            shown.changed_directories = False
        if here and seen.native and not self.native and not self.isolated:
            self._turn_native()

    # -- trust

    def check_inode_numbers(self, disk: Disk, end: CrashState) -> None:
        """Raise `BlindSpot` for a recovery that finds files again by numbers that were saved.

        While the directory holds what the workload left, its files have their numbers still; those
        of crash states are made anew. Comparing two looks at one disk is another matter.
        """
        if not self._numbers:
            return
        self._numbers = False
        here = self._run(disk, end, self._shown).outcome
        self._shown.rebuild()
        self._observer.directories(True)
        again = self._run(disk, end, self._shown).outcome
        if not same(here, again):
            raise BlindSpot(
                f"recovery gave {here} where the workload had ended, and {again} where the same "
                "files had other inode numbers, as in each crash state: it compares numbers "
                "(st_ino) with some that were saved, so no crash is covered. Leave that comparison "
                "out of this test.",
                culprit="st_ino",
            )

    def trust(self, disk: Disk, state: CrashState, outcome: Outcome) -> None:
        """Take the outcome on a state as a sentinel: it must not change while others are run."""
        self.sentinels.append((disk, state, outcome))

    def _check_sentinels(self, shown: Materialiser) -> None:
        if self._checking or self.isolated or self.runs < self._next_check:
            return
        if shown is not self._shown:
            return
        # Going to the ends of a long trace and back is dear, so ever less often.
        self._next_check = max(self.runs + _SENTINEL_EVERY, 2 * self.runs)
        self.check_sentinels()

    def check_sentinels(self) -> None:
        """Run the base and the final tree again; an answer that changed isolates every run."""
        self._checking = True
        try:
            for disk, state, expected in self.sentinels:
                outcome = self._run(disk, state, self._shown).outcome
                if not same(outcome, expected):
                    self.isolate(
                        f"on an unchanged disk recovery gave first {expected} and later {outcome}"
                    )
                    return
        finally:
            self._checking = False

    def isolate(self, why: str) -> None:
        """Run every recovery in a fresh process from here on; forget what was learned before."""
        if self.isolated:
            return
        if not self.fresh.available:
            self.warnings.append(f"{why}; this platform has no fork, so it runs in this process")
            return
        self.isolated = True
        self.warnings.append(f"{why}: each recovery now runs in a fresh process")
        self._outcomes = Memory()
        self._results.clear()
        self.sentinels.clear()
        raise Restart(why)

    def _turn_native(self) -> None:
        """Native code read here: from now on every run counts as having read every name.

        Native code that looks for a file and finds none leaves no event, so a run of a recovery
        that is native elsewhere may have asked more than what is seen of it.
        """
        self.native = True
        self._outcomes = Memory()
        self._results.clear()
        if self.searching:
            self.sentinels.clear()
            raise Restart("native code read the directory")

    def confirm(self, disk: Disk, state: CrashState) -> Outcome | None:
        """Return what recovery gives in a fresh process, ``None`` where there is none."""
        if not self.fresh.available:
            return None
        self._show(disk, state, self._shown)
        self._observer.begin()
        try:
            outcome = self.fresh.run(self.time_limit)
        finally:
            seen = self._observer.end()
        self._heal(seen, self._shown, here=False)
        return outcome

    def check_order(self, disk: Disk, state: CrashState) -> None:
        """Doubt a recovery whose answer depends on the order in which a directory is listed.

        No file system promises one, and the one that shows the states has only one to show.
        """
        known = self.outcome(disk, state)
        if self.isolated or not any(read in _LISTS for read, _ in known.asked):
            return
        self._observer.backwards = True
        try:
            outcome = self._run(disk, state, self._shown).outcome
        finally:
            self._observer.backwards = False
        if not same(outcome, known.outcome) and not same_items(outcome, known.outcome):
            self._doubt(
                "recovery gives another answer when a directory is listed in another order, which "
                "no file system promises: sort what is listed"
            )

    # -- crash during recovery

    def _crash_again(
        self, disk: Disk, state: CrashState, shown: Materialiser, depth: int, first: Result
    ) -> Result:
        if self._recorder is None:
            # Searching the process for bound names once is enough for all recordings to come.
            self._recorder = interposition()
            self._recorder.install()
        self._show(disk, state, shown)
        shown.close()  # what is recorded next must not find files open that it did not open
        recorded = self._record(
            disk.tree(state), lambda: run_recovery(self.recover, self.argument, self.time_limit)
        )
        if isinstance(recorded, BlindSpot):
            self._note(f"a crash during recovery is not covered: {recorded}")
            shown.rebuild()
            self._observer.directories(True)
            return Result(first.outcome, first.asked, first.wrote, (), complete=False)
        trace, outcome = recorded
        # The recovery may have made directories while nobody watched.
        self._observer.directories(True)
        try:
            if not trace.operations:
                return first
            return self._explore_again(disk.model, trace, depth, first, outcome)
        finally:
            shown.rebuild()
            self._observer.directories(True)

    def nested(self, disk: Disk, state: CrashState, inner: Disk, inner_state: CrashState) -> Result:
        """Return what recovery gives after a first crash left one state and a second another."""
        known: Result | None = self._outcomes.find(partial(answer, inner, inner_state))
        if known is not None:
            return known
        aside = os.path.join(self.place.aside, "again")
        os.makedirs(aside, exist_ok=True)
        self._shown.close()
        shown = Materialiser(self.place.directory, aside, inner.trace, present=False)
        try:
            return self.outcome(inner, inner_state, shown)
        finally:
            self._shown.rebuild()
            self._observer.directories(True)

    def _explore_again(
        self, model: Model, trace: op.Trace, depth: int, first: Result, outcome: Outcome
    ) -> Result:
        aside = os.path.join(self.place.aside, f"again{depth}")
        os.makedirs(aside, exist_ok=True)
        shown = Materialiser(self.place.directory, aside, trace, present=True, sole=True)
        inner = disk_of(trace, model)
        shown.adopt(inner)
        try:
            return self._explore_inner(inner, shown, depth, first, outcome)
        finally:
            shown.close()

    def _explore_inner(
        self, inner: Disk, shown: Materialiser, depth: int, first: Result, outcome: Outcome
    ) -> Result:
        asked = first.asked
        steps: list[Step] = []
        complete = same(outcome, first.outcome)
        if not complete:
            self._note(
                f"recovery is not deterministic: on one disk it gave {first.outcome}, "
                f"then {outcome}"
            )
        asker = Asker(inner, self.deviations)
        pending = list(roots(inner, returning=RETURNING))
        visited = 0
        while pending:
            choice = pending.pop()
            if choice.deviations > self.deviations:
                continue
            if visited >= _NESTED_STATES:
                complete = False
                break
            visited += 1
            result = self._visit(asker, choice, shown, depth - 1)
            asked = extend(asked, result.asked)
            complete = complete and result.complete
            pending.extend(asker.others)
            reached = asker.choice().state()
            after = any(end >= len(inner.trace) for _, end in reached.points)
            unstable = after and not same(result.outcome, first.outcome)
            kind = Kind.UNSTABLE if unstable and result.outcome.ended is not Ended.HUNG else None
            if len(steps) < _STEPS_KEPT or kind is not None or not result.outcome.ok:
                steps.append(Step(result.outcome, reached, inner, kind, first.outcome))
            steps.extend(result.again)
        return Result(first.outcome, asked, True, tuple(_distinct(steps)), complete)

    def _doubt(self, text: str) -> None:
        if text not in self.doubts:
            self.doubts.append(text)

    def _note(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


def _date_directories(directory: str, newest: int, *, turned: bool) -> None:
    """Give directories modification times; ``turned`` makes them years old, in another order."""
    found = sorted(path for path, _, _ in os.walk(directory))
    for number, path in enumerate(found):
        ago = _YEARS + number * _STEP if turned else (len(found) - number) * _STEP
        when = newest - ago
        os.utime(path, ns=(when, when))


class Restart(Exception):
    """Raised by `Engine.isolate`: what was found so far cannot be trusted, so begin again."""


def _distinct(steps: list[Step]) -> list[Step]:
    """Keep one step for each different outcome and kind: more would say the same again."""
    kept: list[Step] = []
    for step in steps:
        if not any(same(step.outcome, other.outcome) and step.kind is other.kind for other in kept):
            kept.append(step)
    return kept


def in_order_states(trace: op.Trace, disk: Disk) -> tuple[CrashState, CrashState]:
    """Return the state before the first operation and the one after the last."""
    end = len(trace)
    before = CrashState(-1, frozenset(), points=((0, 0),))
    after = CrashState(end - 1, frozenset(), points=((end, end),))
    return before, after


def asked_nothing(asked: Questions) -> bool:
    """Say whether a run looked at nothing in the directory."""
    return not asked
