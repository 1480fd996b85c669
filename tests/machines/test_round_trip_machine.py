from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from pytest_statepersist.adapter import Capabilities, StoreAdapter
from pytest_statepersist.machines import replay_history
from pytest_statepersist.machines.base import Held, as_text, content_of
from pytest_statepersist.machines.reference_stores import REFERENCE_STORES
from pytest_statepersist.machines.round_trip import RoundTripMachine

FEW = settings(max_examples=10, stateful_step_count=10, deadline=None, database=None)
MANY = settings(
    derandomize=True,
    max_examples=300,
    stateful_step_count=20,
    deadline=None,
    database=None,
    phases=[Phase.generate],
)


@pytest.mark.parametrize("adapter", REFERENCE_STORES, ids=lambda a: a.__name__)
def test_reference_stores_pass(adapter: type[StoreAdapter]) -> None:
    run_state_machine_as_test(RoundTripMachine.for_store(adapter), settings=FEW)


class OneFile(StoreAdapter):
    """All values in one JSON file, rewritten at each save."""

    def open(self, directory: Path) -> Path:
        return directory / "all.json"

    def _all(self, store: Path) -> dict[str, Any]:
        return dict(json.loads(store.read_text())) if store.exists() else {}

    def save(self, store: Path, key: str, value: dict[str, Any]) -> None:
        store.write_text(json.dumps(self._all(store) | {key: value}))

    def load(self, store: Path, key: str) -> dict[str, Any]:
        return dict(self._all(store)[key])

    def delete(self, store: Path, key: str) -> None:
        rest = self._all(store)
        del rest[key]
        store.write_text(json.dumps(rest))

    def keys(self, store: Path) -> Iterable[str]:
        return self._all(store)


def test_a_sound_store_passes() -> None:
    run_state_machine_as_test(RoundTripMachine.for_store(OneFile), settings=FEW)


class FilePerKey(OneFile):
    """Loads the file of the key's name, and asks nothing before."""

    def open(self, directory: Path) -> Path:
        return directory

    def load(self, store: Path, key: str) -> dict[str, Any]:
        if key == "unreadable":
            raise OSError(errno.EIO, "Input/output error")
        return dict(json.loads((store / f"{key}.json").read_text()))

    def keys(self, store: Path) -> Iterable[str]:
        return []


def test_a_name_that_no_file_can_have_is_missing() -> None:
    """Any other error in the place of a missing key is a failure."""
    step = {"rule": "load_missing", "draws": [], "drawing": ""}

    def load(key: str) -> None:
        history = {
            "format": "statepersist-history", "version": 1, "machine": "RoundTripMachine",
            "store": "FilePerKey", "steps": [
                {"rule": "open", "arguments": {}, "draws": [], "drawing": ""},
                step | {"arguments": {"key": key}},
            ],
        }  # fmt: skip
        replay_history(RoundTripMachine.for_store(FilePerKey), json.dumps(history))

    load("c" * 1000)
    with pytest.raises(OSError, match="Input/output error"):
        load("unreadable")


class Lossy(OneFile):
    """Empty values are taken for missing ones."""

    def save(self, store: Path, key: str, value: dict[str, Any]) -> None:
        if value:
            super().save(store, key, value)


class CaseBlind(OneFile):
    def save(self, store: Path, key: str, value: dict[str, Any]) -> None:
        super().save(store, key.lower(), value)

    def load(self, store: Path, key: str) -> dict[str, Any]:
        return super().load(store, key.lower())


class Lazy(OneFile):
    """Deletes the key, which comes back at the next opening."""

    def delete(self, store: Path, key: str) -> None:
        store.with_name("deleted").write_text(key)

    def load(self, store: Path, key: str) -> dict[str, Any]:
        gone = store.with_name("deleted")
        if gone.exists() and gone.read_text() == key:
            raise KeyError(key)
        return super().load(store, key)


class Merging(OneFile):
    """An overwrite keeps the fields of the old value."""

    def save(self, store: Path, key: str, value: dict[str, Any]) -> None:
        super().save(store, key, {**self._all(store).get(key, {}), **value})


class Sloppy(OneFile):
    """Numbers lose their type."""

    def load(self, store: Path, key: str) -> dict[str, Any]:
        found = super().load(store, key)
        return {name: int(v) if isinstance(v, bool) else v for name, v in found.items()}


class LazyCache(Lazy):
    """Cannot list: what comes back is seen by asking for it."""

    capabilities = Capabilities(list=False)

    def open(self, directory: Path) -> Path:
        (directory / "deleted").unlink(missing_ok=True)
        return super().open(directory)


class Defaulting(OneFile):
    """What was never saved is empty."""

    def load(self, store: Path, key: str) -> dict[str, Any]:
        return dict(self._all(store).get(key, {}))


class Aliasing(OneFile):
    """Every load of a value gives the same object."""

    def __init__(self) -> None:
        self.cache: dict[tuple[Path, str, str], dict[str, Any]] = {}

    def load(self, store: Path, key: str) -> dict[str, Any]:
        found = super().load(store, key)
        return self.cache.setdefault((store, key, json.dumps(found)), found)


class AllButOne(OneFile):
    """The last one of several values is forgotten."""

    capabilities = Capabilities(atomic_keys=True)

    def save_many(self, store: Path, values: Mapping[str, dict[str, Any]]) -> None:
        for key in list(values)[:-1]:
            self.save(store, key, values[key])


@pytest.mark.parametrize(
    "broken",
    [Lossy, CaseBlind, Lazy, LazyCache, Merging, Sloppy, Defaulting, Aliasing, AllButOne],
)
def test_broken_stores_are_caught(broken: type[StoreAdapter]) -> None:
    with pytest.raises(AssertionError):
        run_state_machine_as_test(RoundTripMachine.for_store(broken), settings=MANY)


def test_a_deleted_key_is_asked_for_where_none_is_listed(tmp_path: Path) -> None:
    adapter, held = LazyCache(), Held()
    with adapter.opened(tmp_path) as store:
        store.save("a", {})
        held["a"] = as_text({})
        store.delete("a")
        del held["a"]
        assert content_of(store, tuple(held.named)) == held == {}
    with adapter.opened(tmp_path) as store:
        assert content_of(store, tuple(held.named)) == {"a": "{}"}
