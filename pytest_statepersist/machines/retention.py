"""Retention: what is too old goes at a clean-up, and only that, whatever the clock does.

Belongs here: snapshots, stars and clean-ups under a clock that runs, jumps and is set back. The
adapter's `keeps` is the policy. A crash may come at any operation, inside a clean-up too.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from pytest_statepersist.adapter import OpenStore
from pytest_statepersist.clock import StateClock
from pytest_statepersist.machines.atomicity import CrashingMachine
from pytest_statepersist.machines.base import Content
from pytest_statepersist.machines.history import Drawing, initialize, rule
from pytest_statepersist.strategies import ClockMove, clock_moves

__all__ = ["RetentionMachine"]

_PLAIN, _STARRED = "plain", "starred"


class RetentionMachine(CrashingMachine):
    """Takes snapshots, stars them, moves the clock and cleans up."""

    needs = ("snapshots", "retention")
    uses = ("stars", "atomic_cleanup", "crash_recovery", "durable")
    weight = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.clock = StateClock()
        self._stack.callback(self.clock.close)
        self.taken: dict[str, datetime] = {}

    @property
    def _stars(self) -> bool:
        """Whether stars can be set, and seen again after a crash."""
        return self.can("stars") and self.adapter.overrides("starred")

    def open_store(self) -> OpenStore:
        """Open the store with the clock."""
        handle = self.adapter.open_with_clock(self.directory, self.clock)
        return OpenStore(self.adapter, handle)

    def read(self, store: OpenStore) -> Content:
        """Return the snapshots, with their stars."""
        listed = list(self.adapter.snapshots(store.handle))
        assert len(listed) == len(set(listed)), f"a snapshot is listed twice: {listed}"
        stars = set(self.adapter.starred(store.handle)) if self._stars else set()
        return {each: _STARRED if each in stars else _PLAIN for each in sorted(listed)}

    @initialize()
    def open(self) -> None:
        """Open a new store."""
        self.begin_life(self.nothing)
        assert self.life is not None
        with self.life.rule("open", lambda: self.nothing, lambda: self.nothing):
            self.opened = self.open_store()

    @rule(data=st.data(), name=st.text("abc", max_size=3))
    def take_snapshot(self, data: Drawing, name: str) -> None:
        """Take a snapshot; its age begins now."""
        self._take(name)
        self.then(data)

    def _take(self, name: str) -> None:
        assert self.life is not None
        before = self.life.expected
        changes: dict[str, str | None] = {}
        with self.life.rule(
            f"snapshot({name!r})",
            lambda: before.under_way(changes),
            lambda: before.changed(changes),
        ):
            made = self.adapter.snapshot(self.now.handle, name)
            changes[made] = _PLAIN
        assert made not in self.taken, f"the id {made!r} was given twice"
        self.taken[made] = self.clock.now()
        self._changed(changes)

    @rule(data=st.data(), number=st.integers(2, 3), beyond=st.sampled_from([1, 0, -1]))
    def clean_up_several(self, data: Drawing, number: int, beyond: int) -> None:
        """Several snapshots grow as old as they may, give or take a microsecond."""
        for _ in range(number):
            self._take("")
        self.clock.advance(self.adapter.max_age + timedelta(microseconds=beyond))
        self._clean_up()
        self.then(data)

    @rule(data=st.data(), beyond=st.sampled_from([1, 0, -1]))
    def clean_up_after_setting_back(self, data: Drawing, beyond: int) -> None:
        """The wall clock is set back by as much as the limit: a snapshot is from the future."""
        self._take("")
        self.clock.step(-self.adapter.max_age - timedelta(microseconds=beyond))
        self._clean_up()
        self.then(data)

    @precondition(lambda self: self.live and self._stars)
    @rule(data=st.data(), starred=st.booleans())
    def star(self, data: Drawing, starred: bool) -> None:
        """Set or take back a star."""
        chosen = data.pick(sorted(self.live, key=self._age), label="snapshot")
        self.do(
            f"star(…, {starred})",
            {chosen: _STARRED if starred else _PLAIN},
            lambda: self.adapter.star(self.now.handle, chosen, starred),
        )
        self.then(data)

    @rule(data=st.data())
    def time(self, data: Drawing) -> None:
        """Let time pass, or set the wall clock forward or back: nothing goes by itself."""
        move: ClockMove = data.draw(clock_moves(limits=[self.adapter.max_age]), label="clock")
        move.apply(self.clock)
        self.look()
        self.happened("clock set back" if move.steps.total_seconds() < 0 else "clock moved")

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def clean_up(self, data: Drawing) -> None:
        """Exactly what the policy does not keep goes."""
        self._clean_up()
        self.then(data)

    def _clean_up(self) -> None:
        due: dict[str, str | None] = {
            each: None
            for each, star in self.live.items()
            if not self.adapter.keeps(self.clock.now() - self.taken[each], star == _STARRED)
        }
        ages = {each: str(self.clock.now() - self.taken[each]) for each in self.live}
        self.tell(f"at this clean-up {len(due)} of {len(self.live)} are due; ages: {ages}")
        self.happened("something due" if due else "nothing due")
        self.do(
            f"clean_up, {len(due)} due",
            due,
            lambda: self.adapter.clean_up(self.now.handle),
            apart=not self.can("atomic_cleanup"),
        )

    def _age(self, snapshot: str) -> Any:
        return (self.taken[snapshot], snapshot)
