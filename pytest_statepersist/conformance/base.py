"""The bench that a conformance test works on: scratch directories, sample values, plain checks.

Belongs here: what every group needs. Rules:

1. Nothing outside the bench's own directory is touched, and what was opened is closed.
2. What could not be looked at is `not_covered`: the test is skipped with the reason, never passed.
3. The content of a store is read through a fresh opener, so that no cache can answer for the disk.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pytest_statepersist.adapter import OpenStore, StoreAdapter, Value

__all__ = ["BaseBench", "Change", "Content", "Shadow", "not_covered", "read_tree"]

Content = dict[str, Value]
Change = Callable[[Any], object]
"""Something done to an opened store, or to its `Shadow`."""


def not_covered(reason: str) -> NoReturn:
    """End the test as one that could not tell."""
    pytest.skip(f"not covered: {reason}")


class Shadow:
    """What a store is compared with: the same calls on a dictionary."""

    def __init__(self, content: Mapping[str, Value]) -> None:
        self.values = dict(copy.deepcopy(dict(content)))

    def save(self, key: str, value: Value) -> None:
        """Keep a copy."""
        self.values[key] = copy.deepcopy(value)

    def delete(self, key: str) -> None:
        """Forget a key."""
        del self.values[key]

    def save_many(self, values: Mapping[str, Value]) -> None:
        """Keep copies."""
        self.values.update(copy.deepcopy(dict(values)))


class BaseBench:
    """A directory of its own for one test, and the adapter of the store under test.

    ``settings`` are those of `CrashSimulator`, for the groups that crash.
    """

    def __init__(
        self, adapter: StoreAdapter, root: Path, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.adapter = adapter
        self.root = root
        self.settings = dict(settings or {})
        self.named: set[str] = set()
        """Every key that this test named so far: where none are listed, these are looked for."""

    # -- places and content

    def place(self, name: str = "store") -> Path:
        """Return a directory for a store; a new name is a new, empty one."""
        directory = self.root / "places" / name
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return directory

    @contextmanager
    def opened(self, where: str | Path = "store") -> Iterator[OpenStore]:
        """Open the store in a directory, or in the place of a name."""
        directory = where if isinstance(where, Path) else self.place(where)
        store = _Naming(self.adapter, self.adapter.open(directory), self.named)
        try:
            yield store
        finally:
            store.close()

    def content(
        self, where: str | Path = "store", known: Mapping[str, Value] | None = None
    ) -> Content:
        """Return what a fresh opener finds; ``known`` has keys to look for where none is listed."""
        with self.opened(where) as store:
            return self.read(store, known)

    def read(self, store: OpenStore, known: Mapping[str, Value] | None = None) -> Content:
        """Return everything in an opened store; in one that lists no keys, under those named."""
        if self.adapter.has("list"):
            return store.content()
        keys = sorted(self.named | set(known or {}))
        if not keys:
            not_covered(f"{self.adapter.name} lists no keys, and none was named")
        found = {key: store.get(key) for key in keys}
        return {key: value for key, value in found.items() if value is not None}

    def fill(self, content: Mapping[str, Value], where: str | Path = "store") -> None:
        """Save all of this, and close."""
        with self.opened(where) as store:
            for key, value in content.items():
                store.save(key, value)

    def files(self, where: str | Path = "store") -> dict[str, bytes]:
        """Return the files of a place by their paths."""
        return read_tree(where if isinstance(where, Path) else self.place(where))

    # -- values

    def value(self, number: int) -> Value:
        """Return a small document that differs for each number."""
        return {"number": number, "text": f"value {number}", "list": [number, None, True]}

    def noise(self, size: int) -> str:
        """Return text of ``size`` letters that does not compress to nothing; always the same."""
        return "".join(random.Random(size).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=size))

    # -- plain checks

    def check_round_trip(self, value: Value, key: str = "key") -> Value:
        """Save and load by one opener and then by another; return what was loaded."""
        with self.opened() as store:
            store.save(key, value)
            assert store.load(key) == value
        with self.opened() as store:
            loaded = store.load(key)
        assert loaded == value
        return loaded

    def check_reopened(self, content: Content) -> None:
        """Save everything, and find exactly that after a reopening."""
        self.fill(content)
        assert self.content(known=content) == content

    def check_missing(self, store: OpenStore, key: str) -> None:
        """Load a key that is not there."""
        with pytest.raises(self.adapter.missing):
            store.load(key)

    def check_keys(self, keys: tuple[str, ...]) -> None:
        """Save under each key; those that are refused must leave nothing, the others their own."""
        accepted: Content = {}
        refused: list[str] = []
        with self.opened() as store:
            for number, key in enumerate(keys):
                try:
                    store.save(key, self.value(number))
                except self.adapter.refusal:
                    refused.append(key)
                    self.named.discard(key)  # loading it may be refused as well
                    continue
                accepted[key] = self.value(number)
        if accepted or self.adapter.has("list"):
            assert self.content(known=accepted) == accepted
        with self.opened() as store:
            for key in refused:
                try:
                    loaded = store.load(key)
                except Exception:
                    continue  # missing, refused again, or more than a name may be long
                raise AssertionError(f"{key!r} was refused, and loads as {loaded!r}")

    def surroundings(self) -> set[str]:
        """Return the names outside the store's directory, as far as this test could reach them."""
        self.place()
        return {
            str(path)
            for directory in (self.root, self.root / "places", Path("/"))
            for path in directory.iterdir()
        }


class _Naming(OpenStore):
    """Notes the keys that are named, whatever comes of it."""

    def __init__(self, adapter: StoreAdapter, handle: Any, named: set[str]) -> None:
        super().__init__(adapter, handle)
        self.named = named

    def save(self, key: str, value: Value) -> None:
        self.named.add(key)
        super().save(key, value)

    def load(self, key: str) -> Value:
        self.named.add(key)
        return super().load(key)

    def delete(self, key: str) -> None:
        self.named.add(key)
        super().delete(key)

    def save_many(self, values: Mapping[str, Value]) -> None:
        self.named.update(values)
        super().save_many(values)


def read_tree(directory: Path) -> dict[str, bytes]:
    """Return the files below a directory by their paths relative to it."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
