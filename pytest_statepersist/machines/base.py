"""What all machines share: a store under test, a place on disk, what is skipped and why.

Belongs here: `StoreMachine`, and how it runs a step, fails, and does a history again. Rules:

1. A machine that needs a capability which the store does not declare is skipped as a whole; a rule
   that needs one is left out. Both are in the capability matrix with the reason.
2. Each example has a directory of its own, in memory where there is one, removed afterwards.
3. Values are compared as JSON text, so that 1, 1.0 and True are three values.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import unittest
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis import currently_in_test_context, event, note
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption
from hypothesis.stateful import RULE_MARKER, RuleBasedStateMachine

from pytest_statepersist import matrix
from pytest_statepersist.adapter import OpenStore, StoreAdapter, Value
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.errors import UserError
from pytest_statepersist.explorer.workplace import workplace
from pytest_statepersist.machines import kept, profiles
from pytest_statepersist.machines.history import Diverged, Drawing, History, Scripted, Step

__all__ = ["Content", "Held", "Lazy", "StoreMachine", "as_text", "content_of", "replay_history"]

Content = dict[str, str]
"""What is stored: keys to values, as JSON text with sorted names."""

_LONG = 200_000

M = TypeVar("M", bound="StoreMachine")


def as_text(value: Value) -> str:
    """Return a value as text that is equal exactly for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True)


def content_of(store: OpenStore, keys: tuple[str, ...] = ()) -> Content:
    """Return everything in a store; ``keys`` are asked for where the store cannot list."""
    adapter = store.adapter
    if not adapter.has("list"):
        found = ((key, store.get(key)) for key in sorted(keys))
        return {key: as_text(value) for key, value in found if value is not None}
    listed = store.keys()
    assert len(listed) == len(set(listed)), f"a key is listed twice: {list(listed)}"
    found_all: Content = {}
    for key in listed:
        value = store.get(key)
        assert value is not None, f"{key!r} is listed and missing"
        found_all[key] = as_text(value)
    return found_all


class Held(Content):
    """What a store has to hold, and in ``named`` every key that it ever held.

    A store that cannot list is asked for all of them: what was deleted must not come back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.named: dict[str, None] = {}

    def __setitem__(self, key: str, text: str) -> None:
        self.named[key] = None
        super().__setitem__(key, text)

    def update(self, values: Content) -> None:  # type: ignore[override]
        """Take over several."""
        self.named.update(dict.fromkeys(values))
        super().update(values)


class Lazy:
    """Text that is made when it is shown, which Hypothesis does for the smallest failure only."""

    def __init__(self, make: Callable[[], Iterator[str]]) -> None:
        self._make = make

    def __repr__(self) -> str:
        return "\n".join(self._make())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


class StoreMachine(RuleBasedStateMachine):
    """A machine for one store; make one with `for_store`, or subclass it with ``store = …``."""

    store: ClassVar[StoreAdapter]
    needs: ClassVar[tuple[str, ...]] = ()
    """Without these the whole machine is skipped."""
    needs_one_of: ClassVar[tuple[str, ...]] = ()
    """Without any of these the whole machine is skipped."""
    uses: ClassVar[tuple[str, ...]] = ()
    """Without one of these the rules for it are left out."""
    weight: ClassVar[float] = 1.0
    """How many examples of this machine cost what one of the usual kind costs."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        store = cls.__dict__.get("store")
        if isinstance(store, type) and issubclass(store, StoreAdapter):
            cls.store = store()
        elif store is not None and not isinstance(store, StoreAdapter):
            raise UserError(
                f"{cls.__name__}.store is {store!r}; it has to be a StoreAdapter: describe how to "
                "open, save and load in a subclass of pytest_statepersist.adapter.StoreAdapter"
            )
        cls.TestCase.settings = profiles.current().settings(cls.weight)
        case: Any = cls.TestCase
        case.setUpClass = classmethod(lambda case: cls.begin())
        case.tearDownClass = classmethod(lambda case: cls.end())
        inner = case.runTest

        @functools.wraps(inner)
        def run_test(case: Any) -> None:
            __tracebackhide__ = True
            keeper = kept.current()
            if keeper is None or not keeper.before(cls):
                inner(case)

        case.runTest = run_test
        case.runTest.statepersist_machine = cls

    @classmethod
    def for_store(
        cls: type[M], store: StoreAdapter | type[StoreAdapter], **changes: Any
    ) -> type[M]:
        """Return this machine for a store; ``changes`` are class attributes to set."""
        adapter = store() if isinstance(store, type) else store
        return type(f"{adapter.name}{cls.__name__}", (cls,), {"store": adapter, **changes})

    @classmethod
    def begin(cls) -> None:
        """Prepare what all examples share."""

    @classmethod
    def end(cls) -> None:
        """Undo `begin`."""

    def __init__(self) -> None:
        super().__init__()
        self.adapter = self._checked()
        self._steps: list[Step] = []
        self._inside = False
        self.told: list[object] = []
        self._kept = False
        self.scripted = False
        self._stack = ExitStack()
        place = self._stack.enter_context(workplace(None))
        self.directory = Path(place.directory)
        self.aside = Path(place.aside)

    def _checked(self) -> StoreAdapter:
        kind = type(self)
        adapter: StoreAdapter | None = getattr(kind, "store", None)
        if adapter is None:
            raise UserError(f"{kind.__name__} has no store: use {kind.__name__}.for_store(adapter)")
        by = kind._machine_name()
        reason = adapter.lacks(*kind.needs)
        if kind.needs_one_of and not any(adapter.has(name) for name in kind.needs_one_of):
            reason = f"{adapter.name} declares none of {', '.join(kind.needs_one_of)}"
        asked = (*kind.needs, *kind.needs_one_of, *kind.uses)
        absent = [name for name in asked if not adapter.has(name)]
        if absent:
            what = "rules left out" if reason is None else "skipped"
            matrix.not_declared(adapter, by, absent, f"{what}: {adapter.lacks(*absent)}")
        if reason is None:
            matrix.about_to_test(adapter, by, [name for name in asked if name not in absent])
        if reason is not None:
            raise unittest.SkipTest(reason)
        return adapter

    def can(self, capability: str) -> bool:
        """Say whether the store has a capability: the precondition of a rule."""
        return self.adapter.has(capability)

    # -- one step

    def run_step(
        self, function: Callable[..., None], positional: tuple[Any, ...], arguments: dict[str, Any]
    ) -> None:
        """Run a rule and write it down; a rule that a rule calls is part of that step."""
        __tracebackhide__ = True
        if self._inside:
            function(self, *positional, **arguments)
            return
        draws: list[Any] = []
        drawing, plain = "", {}
        for name, value in arguments.items():
            if isinstance(value, st.DataObject):
                drawing, arguments[name] = name, Drawing(value, draws)
            elif isinstance(value, Drawing):
                drawing, draws = name, value.draws
            else:
                plain[name] = copy.deepcopy(value)
        self._steps.append(Step(function.__name__, plain, draws, drawing))
        self._inside = True
        try:
            function(self, *positional, **arguments)
            self.after_step()
        except (UnsatisfiedAssumption, unittest.SkipTest, Diverged):
            raise
        except Exception as error:
            failure = error
            self.tell(Lazy(lambda: self.explained(failure)))
            raise
        finally:
            self._inside = False

    def after_step(self) -> None:
        """Check what must hold after every step."""

    def tell(self, what: object) -> None:
        """Show something with the smallest failure."""
        if self.scripted or not currently_in_test_context():
            self.told.append(what)
        else:
            note(what)

    def happened(self, what: str) -> None:
        """Tell Hypothesis' statistics what an example met."""
        if currently_in_test_context() and not self.scripted:
            event(f"{self.adapter.name}: {what}")

    # -- failures

    @property
    def history(self) -> History:
        """What this machine did so far. Raises `UserError` where not all of it is written down."""
        kind = type(self)
        foreign = sorted(
            name
            for name in dir(kind)
            if hasattr(member := getattr(kind, name, None), RULE_MARKER)
            and not hasattr(member, "__statepersist_rule__")
        )
        if foreign:
            raise UserError(
                f"the rule {foreign[0]} is not written down: make it with "
                "pytest_statepersist.machines.rule instead of Hypothesis'"
            )
        return History(self._machine_name(), self.adapter.name, tuple(self._steps))

    @property
    def digest(self) -> str:
        """A short name of the history, whatever its last step drew."""
        *before, last = self._steps
        told = [*((s.rule, s.arguments, s.draws) for s in before), (last.rule, last.arguments)]
        return hashlib.sha256(repr(told).encode("utf-8", "surrogatepass")).hexdigest()[:8]

    def keep(self, **words: Any) -> Iterator[str]:
        """Keep this failure, and yield how to do it again; see `kept.Told` for the words."""
        if self._kept:
            return
        self._kept = True
        try:
            history = self.history.to_json()
            if len(history) > _LONG:
                raise UserError(f"its history is {len(history)} letters long")
        except UserError as error:
            yield f"This failure cannot be replayed without Hypothesis: {error}"
            return
        keeper = kept.current()
        if keeper is None:
            yield "Do it again, with any version of Hypothesis:"
            test = kept.regression_test(type(self).__name__, history)
            yield from (f"    {line}" for line in test)
            return
        tree = Tree.read(self.directory)
        name = keeper.keep(kept.Told(self._machine_name(), history, tree=tree, **words))
        if words.get("report") is None:  # it says so itself
            yield f"Replay it: pytest --statepersist-replay {name}"
        yield f"A test of it to copy, and what was on disk: statepersist show {name}"

    def explained(self, error: Exception) -> Iterator[str]:
        """Yield what a failure is and how to do it again, from the fewest steps that show it."""
        if self._kept:
            return
        self.pause()
        short = self._shortened(error)
        if short is None:
            yield from self.own_words(error)
            return
        self._kept = True
        yield "The same failure in fewer steps:"
        yield from (f"  {line}" for line in str(short).splitlines())
        machine, _ = self._follow(short)
        try:
            yield from map(str, machine.told)
        finally:
            machine.teardown()

    def own_words(self, error: Exception) -> Iterator[str]:
        """Yield what a failure is; here no more than what the exception says."""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        steps = [f"  {line}" for line in str(History("", "", tuple(self._steps))).splitlines()]
        text = "\n".join([f"{type(error).__name__}: {error}", "after:", *steps])
        yield from self.keep(kind="machine", cause=lines[0][:200], text=text)

    def pause(self) -> None:
        """Stop what other machines of this process would be disturbed by."""

    def _shortened(self, error: Exception) -> History | None:
        """Leave out steps while it fails alike; Hypothesis cannot take every step out."""
        if self.scripted:
            return None
        try:
            history = History.from_json(self.history.to_json())
        except UserError:
            return None
        sign = _sign(error)

        def fails(steps: tuple[Step, ...]) -> bool:
            machine, failure = self._follow(replace(history, steps=steps))
            machine.teardown()
            return failure is not None and _sign(failure) == sign

        steps = _fewest(history.steps, fails)
        return replace(history, steps=steps) if len(steps) < len(history.steps) else None

    @classmethod
    def _machine_name(cls) -> str:
        package = __package__ or ""
        name = next(c.__name__ for c in cls.__mro__ if c.__module__.startswith(package))
        store = getattr(cls, "store", None)
        return name.removeprefix(store.name) if store is not None else name

    @classmethod
    def replay(cls, history: History) -> None:
        """Do a history again, step by step, with the store as it is now.

        Raises what fails, with its explanation as notes, and `Diverged` where the history cannot
        be followed: then nothing is known.
        """
        machine, failure = cls._follow(history)
        try:
            if failure is not None:
                if not isinstance(failure, Diverged):
                    for each in machine.told:
                        failure.add_note(str(each))
                raise failure
        finally:
            machine.teardown()

    @classmethod
    def _follow(cls: type[M], history: History) -> tuple[M, Exception | None]:
        """Do a history again; return the machine, which is still open, and what failed."""
        machine = cls()
        machine.scripted = True
        last = len(history.steps) - 1
        try:
            for number, step in enumerate(history.steps):
                function = getattr(cls, step.rule, None)
                if not hasattr(function, "__statepersist_rule__"):
                    raise Diverged(f"{cls.__name__} has no rule {step.rule!r}")
                arguments = dict(step.arguments)
                if step.drawing:
                    arguments[step.drawing] = Scripted(step.draws, is_last=number == last)
                getattr(machine, step.rule)(**arguments)
        except Exception as error:
            return machine, error
        return machine, None

    def teardown(self) -> None:
        """Close what is open and remove the directory."""
        self._stack.close()


def _fewest(
    steps: tuple[Step, ...], fails: Callable[[tuple[Step, ...]], bool]
) -> tuple[Step, ...]:
    """Leave out steps, several at a time and then one by one; never the first and the last."""
    size = len(steps) - 2
    while size > 0:
        begin = len(steps) - 1 - size
        while begin > 0:
            fewer = (*steps[:begin], *steps[begin + size :])
            if fails(fewer):
                steps = fewer
            begin -= 1 if size <= _ONE_BY_ONE else size // 2
        size = min(size - 1, len(steps) - 2) if size <= _ONE_BY_ONE else size // 2
    return steps


_ONE_BY_ONE = 8


def _sign(error: Exception) -> tuple[type, str]:
    """Return what two failures have in common that are the same one."""
    return type(error), str(error).split(":")[0][:60]


def replay_history(machine: Any, history: str) -> None:
    """Do a history that failed again: a regression test that no version of Hypothesis changes.

    ``machine`` is a machine of a store, or its ``TestCase``; ``history`` what a failure printed.
    Where the history ends in a crash and the store makes other file-system calls than then, every
    crash with up to two deviations is tried. Raises what fails, and `UserError` where the history
    cannot be followed any more.
    """
    case = getattr(machine, "runTest", None)
    kind: type[StoreMachine] = getattr(case, "statepersist_machine", machine)
    if not (isinstance(kind, type) and issubclass(kind, StoreMachine)):
        raise UserError(f"{machine!r} is no machine of a store, and no TestCase of one")
    kind.begin()
    try:
        kind.replay(History.from_json(history))
    except Diverged as error:
        raise UserError(f"the history cannot be followed any more: {error}") from error
    finally:
        kind.end()
