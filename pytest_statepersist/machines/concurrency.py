"""Concurrency: several openers of one store, call by call and file-system call by file-system call.

Belongs here: two or three openers that know nothing of each other. Between calls the model is a
dictionary: whatever one opener saved, no other one may lose. `at_once` goes deeper: two changes run
against each other in an order of file-system calls that is drawn (`concurrency.interleave`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from pytest_statepersist.adapter import OpenStore, Value
from pytest_statepersist.concurrency import interleave, interposed
from pytest_statepersist.explorer.workplace import workplace
from pytest_statepersist.machines.base import Content, Held, StoreMachine, as_text, content_of
from pytest_statepersist.machines.history import Drawing, initialize, rule
from pytest_statepersist.strategies import Save, documents, keys

__all__ = ["ConcurrencyMachine"]

_OPENERS = 3
_KEY = st.sampled_from("ab")
_CHANGE = st.tuples(_KEY, documents(max_leaves=2))


class ConcurrencyMachine(StoreMachine):
    """Openers that save and delete in turn, and now and then at the same time."""

    needs = ("concurrent_writers",)
    uses = ("delete", "atomic_keys")
    weight = 0.2
    _calls: ClassVar[ExitStack]

    @classmethod
    def begin(cls) -> None:
        """Put the scheduler's replacements in place once for all examples."""
        cls._calls = ExitStack()
        cls._calls.enter_context(interposed())

    @classmethod
    def end(cls) -> None:
        """Undo it."""
        cls._calls.close()

    def __init__(self) -> None:
        super().__init__()
        self.expected = Held()
        self.openers: dict[int, OpenStore] = {}

    @initialize()
    def open(self) -> None:
        """Open the store twice."""
        for number in range(2):
            self.openers[number] = self._open()

    def _open(self) -> OpenStore:
        return OpenStore(self.adapter, self.adapter.open(self.directory))

    @rule(number=st.integers(0, _OPENERS - 1), key=keys(), value=documents(max_leaves=3))
    def save(self, number: int, key: str, value: dict[str, Any]) -> None:
        """One opener saves; it sees its own value."""
        self._opener(number).save(key, value)
        self.expected[key] = as_text(value)
        self._sees(number, key)

    @precondition(lambda self: self.can("atomic_keys"))
    @rule(
        number=st.integers(0, _OPENERS - 1),
        values=st.dictionaries(keys(), documents(max_leaves=3, large=False), max_size=3),
    )
    def save_many(self, number: int, values: dict[str, dict[str, Any]]) -> None:
        """One opener saves several values; it sees all of them."""
        self._opener(number).save_many(values)
        self.expected.update({key: as_text(value) for key, value in values.items()})
        for key in values:
            self._sees(number, key)

    @precondition(lambda self: self.expected and self.can("delete"))
    @rule(number=st.integers(0, _OPENERS - 1), data=st.data())
    def delete(self, number: int, data: Drawing) -> None:
        """One opener deletes what perhaps another one saved, and sees it no more."""
        key = data.pick(sorted(self.expected), label="key")
        self._opener(number).delete(key)
        del self.expected[key]
        found = self._opener(number).get(key)
        assert found is None, f"opener {number} deleted {key!r} and still loads {found!r}"

    @rule(number=st.integers(0, _OPENERS - 1))
    def close(self, number: int) -> None:
        """One opener closes; that may write nothing old over what others saved."""
        if number in self.openers:
            self.openers.pop(number).close()
            self._look(f"after opener {number} was closed ")

    @rule()
    def look_afresh(self) -> None:
        """A new opener sees everything that any of them saved."""
        self._look()

    @rule(
        changes=st.tuples(_CHANGE, _CHANGE),
        before=st.lists(st.builds(Save, _KEY, documents(max_leaves=2)), max_size=2),
        first=st.integers(0, 1),
        calls=st.integers(1, 25),
    )
    def at_once(
        self,
        changes: tuple[tuple[str, Value], tuple[str, Value]],
        before: list[Save],
        first: int,
        calls: int,
    ) -> None:
        """Two savers, one stopped before its n-th file-system call while the other one runs."""
        with workplace(None) as place:
            report = interleave(
                savers=[self._saver(key, value) for key, value in changes],
                recover=self._content,
                setup=self._set_up(before),
                place=place,
                allow=self.adapter.busy,
                runs=0,
                schedule=f"switch:{first}:{calls}",
            )
        self.happened("savers at once")
        assert report.ok is not False, str(report)

    def _sees(self, number: int, key: str) -> None:
        found = self._opener(number).get(key)
        assert found is not None, f"opener {number} misses what it saved under {key!r}"
        assert as_text(found) == self.expected[key], f"opener {number} loads {found!r}"

    def _look(self, when: str = "") -> None:
        with self.adapter.opened(self.directory) as store:
            found = content_of(store, tuple(self.expected.named))
        assert found == self.expected, (
            f"{when}a new opener sees {found}, saved was {self.expected}"
        )

    def _opener(self, number: int) -> OpenStore:
        if number not in self.openers:
            self.openers[number] = self._open()
        return self.openers[number]

    def _saver(self, key: str, value: Value) -> Callable[[Path], None]:
        def save(directory: Path) -> None:
            with self.adapter.opened(directory) as store:
                store.save(key, value)

        return save

    def _set_up(self, before: list[Save]) -> Callable[[Path], None]:
        def set_up(directory: Path) -> None:
            with self.adapter.opened(directory) as store:
                for each in before:
                    if each.value is not None:
                        store.save(each.key, each.value)

        return set_up

    def _content(self, directory: Any) -> Content:
        with self.adapter.opened(Path(directory)) as store:
            return content_of(store, ("a", "b"))

    def teardown(self) -> None:
        """Close every opener."""
        for store in self.openers.values():
            store.close()
        super().teardown()
