"""Atomicity: power losses and kills at any operation, several times in one history.

Belongs here: saves and deletions between crashes. The model is what may be on disk (`expected`):
acknowledged values survive, unacknowledged ones are whole or absent, and recovery, which a crash
may cut short too, gives the same answer ever after. A kill ends like a power loss that loses
nothing: what was not synced then counts as on disk for the lives that follow.

Most changes are followed by a crash at once (`then`), and what comes without a change before it may
come twice at most: Hypothesis leaves rules out of whole examples, and would fill many with crashes
of a store that does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from pytest_statepersist.adapter import OpenStore
from pytest_statepersist.core.crash_state import CrashState
from pytest_statepersist.explorer.outcome import Kind, Outcome
from pytest_statepersist.explorer.runner import run_recovery
from pytest_statepersist.machines.base import Content, Lazy, StoreMachine, as_text, content_of
from pytest_statepersist.machines.expected import Changes, Expected, Fading, Worlds, changed
from pytest_statepersist.machines.exploring import explored, told
from pytest_statepersist.machines.history import Drawing, initialize, rule
from pytest_statepersist.machines.lives import Life, Past, put_on_disk
from pytest_statepersist.machines.timeline import explanation, timeline
from pytest_statepersist.recorders.python import interposition
from pytest_statepersist.strategies import Crash, documents, keys

__all__ = ["AtomicityMachine", "CrashingMachine"]

_GO_ON, _POWER_LOSS, _KILL = "go on", "power loss", "kill"
_THEN = (_GO_ON, _POWER_LOSS, _GO_ON, _POWER_LOSS, _KILL)


class CrashingMachine(StoreMachine):
    """A store whose process dies again and again; what it does in between is for subclasses."""

    model: ClassVar[str] = "posix"
    """The persistence model of the power losses."""
    time_limit: ClassVar[float | None] = 10.0
    """Seconds that opening and loading may take after a crash."""

    @classmethod
    def begin(cls) -> None:
        """Put the recorder's replacements in place once for all examples."""
        interposition().install()

    @classmethod
    def end(cls) -> None:
        """Undo it."""
        interposition().uninstall()

    def __init__(self) -> None:
        super().__init__()
        durable = self.adapter.has("durable")
        self.watched = self.directory
        """What is recorded and crashes: the store's directory, or one above it."""
        self.life: Life | None = None
        self.opened: OpenStore | None = None
        self.live: Content = {}
        self.nothing: Expected = Worlds() if durable else Fading({})
        self.touched: set[str] = set()
        self._failed: tuple[Past, Crash, Outcome, Kind] | None = None
        self.idle = 2
        """How often the store was only opened, since the last change.

        The first step of all is a change: what Hypothesis draws there belongs to the whole history,
        and a step that does nothing could not be shrunk away.
        """

    # -- rules of all of them

    @precondition(lambda self: self.can("crash_recovery") and self.idle < 2)
    @rule(data=st.data())
    def power_loss(self, data: Drawing) -> None:
        """Lose power at any operation of this life."""
        self.crash(data, self.model)

    @precondition(lambda self: self.can("crash_recovery") and self.idle < 2)
    @rule(data=st.data())
    def kill(self, data: Drawing) -> None:
        """Kill the process at any operation of this life; the page cache survives."""
        self.crash(data, "kill")

    @precondition(lambda self: self.idle < 1)
    @rule()
    def reopen(self) -> None:
        """Close and open."""
        self.reopen_cleanly()

    # -- for subclasses

    @property
    def now(self) -> OpenStore:
        """The open store."""
        assert self.opened is not None
        return self.opened

    def make_scratch(self) -> Path:
        """Move the store one directory down and return a place beside it that is recorded too."""
        self.directory = self.watched / "store"
        scratch = self.watched / "scratch"
        for each in (self.directory, scratch):
            each.mkdir(mode=0o700)
        return scratch

    def begin_life(self, before: Expected) -> None:
        """Start to record."""
        self.life = Life(self.watched, before)

    def open_store(self) -> OpenStore:
        """Open the store as this machine wants it."""
        return OpenStore(self.adapter, self.adapter.open(self.directory))

    def open_and_read(self) -> Outcome:
        """Open the store and read everything, as a new process would; the store stays open."""
        opened: list[OpenStore] = []

        def recover(directory: Any) -> Content:
            opened.append(self.open_store())
            return self.read(opened[0])

        outcome = run_recovery(recover, self.directory, self.time_limit)
        self.opened = opened[0] if opened else None
        return outcome

    def read(self, store: OpenStore) -> Content:
        """Return everything that is stored."""
        return content_of(store, tuple(self.touched))

    def do(
        self, label: str, changes: Changes, act: Callable[[], object], *, apart: bool = False
    ) -> None:
        """Run a change that has to be whole or absent; with ``apart`` each key by itself.

        A rule ends with `then`, which looks at what the change made.
        """
        assert self.life is not None
        before = self.life.expected
        self.touched.update(changes)
        during = before.apart if apart else before.under_way
        with self.life.rule(label, lambda: during(changes), lambda: before.changed(changes)):
            act()
        self._changed(changes)

    def _changed(self, changes: Changes) -> None:
        self.live = changed(self.live, changes)
        self.idle = 0

    def then(self, data: Drawing) -> None:
        """Go on after a change, or crash in it or right after it."""
        __tracebackhide__ = True
        what = _GO_ON
        if self.can("crash_recovery"):
            what = data.draw(st.sampled_from(_THEN), label="then")
        if what == _GO_ON:
            self.look()
        else:
            self.crash(data, self.model if what == _POWER_LOSS else _KILL, late=True)

    def look(self) -> None:
        """Read everything without a crash before it."""
        found = self.read(self.now)
        assert found == self.live, f"without a crash the store holds {found}, not {self.live}"

    def reopen_cleanly(self) -> None:
        """Close the store, and open it again in the same life."""
        assert self.life is not None
        self.idle += 1
        before = self.life.expected
        closed = before.settled(dict(self.live)) if self.adapter.has("durable_on_close") else before
        with self.life.rule("close", lambda: before, lambda: closed):
            self.now.close()
        with self.life.rule("open and load", lambda: closed, lambda: closed):
            outcome = self.open_and_read()
        if not outcome.ok:
            raise AssertionError(f"the store cannot be opened again: {outcome}") from outcome.error
        assert outcome.value == self.live, f"reopened, it holds {outcome.value}, not {self.live}"

    def crash(self, data: Drawing, model: str, *, late: bool = False) -> None:
        """End this life by a crash that is drawn, and begin the next one by recovery.

        A ``late`` one comes in the last rule that wrote, or after it.
        """
        __tracebackhide__ = True
        assert self.life is not None
        self.idle += 1
        past = self.life.end()
        wrote = [mark.begin for mark in past.marks if mark.end > mark.begin]
        since = wrote[-1] if late and wrote else 0
        told = len(self.told)
        for crash in data.crashes(past.trace, model, since):
            # Where every crash is tried, only the one that fails is worth telling.
            del self.told[told:]
            self.life.give_up()
            self.recover_from(past, crash)

    def recover_from(self, past: Past, crash: Crash) -> None:
        """Put a crash of a life on disk and begin the next one by recovery."""
        __tracebackhide__ = True
        lost = "something" if crash.lost else "nothing"
        self.happened(f"crash under {crash.model.name}, {lost} lost")
        if past.mark_at(crash.point) is not None:
            self.happened("crash inside a call")
        self._abandon()
        put_on_disk(self.watched, self.aside, crash.disk, crash.state)
        expected = past.expected_at(crash.point)
        self.begin_life(expected)
        assert self.life is not None
        outcome: Outcome = Outcome.returned({})

        def after() -> Expected:
            return expected.settled(dict(outcome.value)) if outcome.ok else expected

        with self.life.rule("open and load", lambda: expected, after):
            outcome = self.open_and_read()
        if not outcome.ok or not expected.allows(outcome.value):
            self._fail(past, crash, outcome)
        self.tell(Lazy(lambda: timeline(past, crash)))
        self.live = dict(outcome.value)

    # -- what goes wrong

    def _fail(self, past: Past, crash: Crash, outcome: Outcome) -> None:
        __tracebackhide__ = True
        assert self.life is not None
        self.life.give_up()
        self._abandon()
        kind = self._kind(past, outcome, crash.point)
        assert kind is not None
        self._failed = (past, crash, outcome, kind)
        what = "recovery" if outcome.ok else "opening after the crash"
        raise AssertionError(
            f"{kind.value}: {what} {outcome}; expected {past.expected_at(crash.point)}"
        ) from outcome.error

    def pause(self) -> None:
        """Stop recording."""
        if self.life is not None:
            self.life.give_up()

    def own_words(self, error: Exception) -> Iterator[str]:
        """Yield what happened on disk, the finding, and how to replay it."""
        if self._failed is None:
            yield from super().own_words(error)
            return
        past, crash, outcome, kind = self._failed

        def recover(directory: Any) -> Content:
            store = self.open_store()
            try:
                return self.read(store)
            finally:
                store.abandon()

        report = explored(
            past, crash.model, name=f"{self._machine_name()} of {self.adapter.name}, {self.digest}",
            recover=recover, directory=self.watched, aside=self.aside, time_limit=self.time_limit,
        )  # fmt: skip
        finding, words = told(past, report, kind)
        if finding is None:
            # A crash with more deviations than are explored, or one that needs this very history.
            lines = [*timeline(past, crash), *self._diagnosed(past, crash, outcome, kind)]
        else:
            lines = list(words)
        yield from lines
        cause = str(finding) if finding is not None else f"{kind.value} after a crash"
        yield from self.keep(kind=kind.value, cause=cause, text="\n".join(lines),
                             report=report if finding is not None else None)  # fmt: skip

    def _diagnosed(
        self, past: Past, crash: Crash, outcome: Outcome, kind: Kind
    ) -> Iterator[str]:
        def judge(state: CrashState, point: int) -> bool:
            if not any(begin <= point <= end for begin, end in state.points):
                return False
            put_on_disk(self.watched, self.aside, crash.disk, state)
            found = self.open_and_read()
            self._abandon()
            return self._kind(past, found, point) is kind

        yield from explanation(past, crash, judge, outcome, kind)

    def _kind(self, past: Past, outcome: Outcome, point: int) -> Kind | None:
        if outcome.ok and past.expected_at(point).allows(outcome.value):
            return None
        if not outcome.ok:
            return Kind.HANG if outcome.ended.value == "hung" else Kind.UNRECOVERABLE
        return Kind.ATOMICITY if past.mark_at(point) is not None else Kind.DURABILITY

    def _abandon(self) -> None:
        """Drop the dead process's store; whatever it still does is overwritten by the crash."""
        if self.opened is not None:
            try:
                self.opened.abandon()
            except Exception as error:
                self.tell(f"giving up the dead store raised {error!r}")
            self.opened = None

    def teardown(self) -> None:
        """End the recording and close what is open."""
        if self.life is not None:
            self.life.give_up()
        self._abandon()
        super().teardown()


class AtomicityMachine(CrashingMachine):
    """Saves, deletes and reopens between crashes."""

    needs = ("crash_recovery",)
    uses = ("durable", "durable_on_close", "atomic_keys", "delete")
    weight = 0.75

    @initialize()
    def open(self) -> None:
        """Open a new store; a crash may come as early as this."""
        self.begin_life(self.nothing)
        assert self.life is not None
        with self.life.rule("open", lambda: self.nothing, lambda: self.nothing):
            self.opened = self.open_store()

    @rule(data=st.data(), key=keys(), value=documents(max_leaves=3))
    def save(self, data: Drawing, key: str, value: dict[str, Any]) -> None:
        """Save one value."""
        act = lambda: self.now.save(key, value)  # noqa: E731
        self.do(f"save({key!r}, {_short(value)})", {key: as_text(value)}, act)
        self.then(data)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), value=documents(max_leaves=3))
    def overwrite(self, data: Drawing, value: dict[str, Any]) -> None:
        """Replace a value that is there."""
        key = data.pick(sorted(self.live), label="key")
        self.do(
            f"overwrite({key!r}, {_short(value)})",
            {key: as_text(value)},
            lambda: self.now.save(key, value),
        )
        self.then(data)

    @precondition(lambda self: self.can("atomic_keys"))
    @rule(
        data=st.data(),
        values=st.dictionaries(
            keys(), documents(max_leaves=3, large=False), min_size=2, max_size=3
        ),
    )
    def save_many(self, data: Drawing, values: dict[str, dict[str, Any]]) -> None:
        """Save several values in one step."""
        changes = {key: as_text(value) for key, value in values.items()}
        self.do(f"save_many({sorted(values)})", changes, lambda: self.now.save_many(values))
        self.then(data)

    @precondition(lambda self: self.live and self.can("delete"))
    @rule(data=st.data())
    def delete(self, data: Drawing) -> None:
        """Delete a key."""
        key = data.pick(sorted(self.live), label="key")
        self.do(f"delete({key!r})", {key: None}, lambda: self.now.delete(key))
        self.then(data)


def _short(value: dict[str, Any]) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}…"
