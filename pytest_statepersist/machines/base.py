"""What all machines share: a store under test, a place on disk, what is skipped and why.

Belongs here: `StoreMachine`. Rules:

1. A machine that needs a capability which the store does not declare is skipped as a whole; a rule
   that needs one is left out. Both are in the capability matrix with the reason.
2. Each example has a directory of its own, in memory where there is one, removed afterwards.
3. Values are compared as JSON text, so that 1, 1.0 and True are three values.
"""

from __future__ import annotations

import json
import unittest
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis import event
from hypothesis.stateful import RuleBasedStateMachine

from pytest_statepersist import matrix
from pytest_statepersist.adapter import OpenStore, StoreAdapter, Value
from pytest_statepersist.errors import UserError
from pytest_statepersist.machines import profiles
from pytest_statepersist.simulator import workplace

__all__ = ["Content", "StoreMachine", "as_text", "content_of"]

Content = dict[str, str]
"""What is stored: keys to values, as JSON text with sorted names."""

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
        self._stack = ExitStack()
        place = self._stack.enter_context(workplace(None))
        self.directory = Path(place.directory)
        self.aside = Path(place.aside)

    def _checked(self) -> StoreAdapter:
        kind = type(self)
        adapter: StoreAdapter | None = getattr(kind, "store", None)
        if adapter is None:
            raise UserError(f"{kind.__name__} has no store: use {kind.__name__}.for_store(adapter)")
        by = next(c.__name__ for c in kind.__mro__ if c.__module__.startswith(__package__ or ""))
        if by.startswith(adapter.name):
            by = by.removeprefix(adapter.name)
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

    def happened(self, what: str) -> None:
        """Tell Hypothesis' statistics what an example met."""
        event(f"{self.adapter.name}: {what}")

    def teardown(self) -> None:
        """Close what is open and remove the directory."""
        self._stack.close()
