"""RoundTrip: anything saved is loaded equal, and nothing else is there.

Belongs here: promises that need neither a crash nor damage nor a second opener to be broken. The
model is a dictionary.
"""

from __future__ import annotations

import errno
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from pytest_statepersist.adapter import OpenStore
from pytest_statepersist.machines.base import Held, StoreMachine, as_text, content_of
from pytest_statepersist.machines.history import Drawing, initialize, rule
from pytest_statepersist.strategies import documents, hostile_names, keys

__all__ = ["RoundTripMachine"]


class RoundTripMachine(StoreMachine):
    """Saves, overwrites, deletes, lists and reopens; the store has to agree with a dictionary."""

    uses = ("delete", "list", "atomic_keys")
    weight = 1.5

    def __init__(self) -> None:
        super().__init__()
        self.expected = Held()
        self.opened: OpenStore | None = None

    @property
    def now(self) -> OpenStore:
        """The open store."""
        assert self.opened is not None
        return self.opened

    @initialize()
    def open(self) -> None:
        """Open a new store."""
        self.opened = OpenStore(self.adapter, self.adapter.open(self.directory))

    @rule(key=keys(), value=documents())
    def save(self, key: str, value: dict[str, Any]) -> None:
        """Save under a plain key: a store that refuses it cannot be tested."""
        self.now.save(key, value)
        self.expected[key] = as_text(value)
        self._loads(key)

    @rule(key=hostile_names(), value=documents(large=False))
    def save_under_a_hostile_key(self, key: str, value: dict[str, Any]) -> None:
        """A key is taken or refused; a refused one changes nothing."""
        outside = sorted(self.directory.parent.iterdir())
        try:
            self.now.save(key, value)
        except self.adapter.refusal as error:
            self.tell(f"refused: {error}")
            self.happened("key refused")
        else:
            self.expected[key] = as_text(value)
            self._loads(key)
        assert sorted(self.directory.parent.iterdir()) == outside, (
            f"the key {key!r} reached outside the store's directory"
        )

    @precondition(lambda self: self.can("atomic_keys"))
    @rule(values=st.dictionaries(keys(), documents(large=False), max_size=3))
    def save_many(self, values: dict[str, dict[str, Any]]) -> None:
        """Save several at once."""
        self.now.save_many(values)
        self.expected.update({key: as_text(value) for key, value in values.items()})

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), value=documents())
    def overwrite(self, data: Drawing, value: dict[str, Any]) -> None:
        """Replace a value."""
        key = data.pick(sorted(self.expected), label="key")
        self.now.save(key, value)
        self.expected[key] = as_text(value)
        self._loads(key)

    @precondition(lambda self: self.expected and self.can("delete"))
    @rule(data=st.data())
    def delete(self, data: Drawing) -> None:
        """Delete a key; it is missing then."""
        key = data.pick(sorted(self.expected), label="key")
        self.now.delete(key)
        del self.expected[key]
        found = self.now.get(key)
        assert found is None, f"{key!r} was deleted and still gives {found!r}"

    @rule(key=keys() | hostile_names())
    def load_missing(self, key: str) -> None:
        """A key that was never saved is missing."""
        if key in self.expected:
            return
        try:
            found = self.now.load(key)
        except (*self.adapter.missing, *self.adapter.refusal):
            return
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return  # no file system keeps a file of such a name
            raise
        raise AssertionError(f"{key!r} was never saved and gives {found!r}")

    @rule()
    def change_what_was_loaded(self) -> None:
        """What a load returned is a copy."""
        for key in sorted(self.expected)[:1]:
            self.now.load(key)["changed by the caller"] = True
            self._loads(key)

    @rule()
    def reopen(self) -> None:
        """Close and open again."""
        self.now.close()
        self.open()

    def after_step(self) -> None:
        """The store holds what the dictionary holds."""
        if self.opened is not None:
            found = content_of(self.opened, tuple(self.expected.named))
            assert found == self.expected, f"stored is {found}, saved was {self.expected}"

    def _loads(self, key: str) -> None:
        value = self.now.get(key)
        assert value is not None, f"{key!r} was saved and is missing"
        found = as_text(value)
        assert found == self.expected[key], (
            f"{key!r} gives {found}, but {self.expected[key]} was saved"
        )

    def teardown(self) -> None:
        """Close the store."""
        if self.opened is not None:
            self.opened.close()
        super().teardown()
