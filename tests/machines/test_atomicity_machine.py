from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from pytest_statepersist.adapter import Capabilities, StoreAdapter
from pytest_statepersist.machines.atomicity import AtomicityMachine
from pytest_statepersist.machines.reference_stores import (
    EncryptedFileStoreAdapter,
    SqliteConversationsAdapter,
)
from pytest_statepersist.recorders.python import interposition
from tests.machines.broken import FEW, MANY, Files, steps_of


@pytest.fixture(scope="module", autouse=True)
def _fast() -> Iterator[None]:
    interposition().install()
    yield
    interposition().uninstall()


class InPlace(Files):
    """Overwrites the file where it is."""

    def save(self, store: Path, key: str, value: dict[str, Any]) -> None:
        with open(store / f"{key}.json", "w") as file:
            file.write(json.dumps(value))
            file.flush()
            os.fsync(file.fileno())
        self._sync(store)


class NoFileSync(Files):
    """Renames a file whose bytes are not on disk yet."""

    sync_file = False


class NoDirectorySync(Files):
    """The new name may be lost after it was acknowledged."""

    sync_directory = False


class OneByOne(Files):
    """Says that several keys are one step, and saves them one after the other."""

    capabilities = Capabilities(durable=True, crash_recovery=True, atomic_keys=True)

    def save_many(self, store: Path, values: Mapping[str, dict[str, Any]]) -> None:
        for key, value in values.items():
            self.save(store, key, value)


class JournalGoneTooEarly(OneByOne):
    """Recovery removes the journal before it has done what the journal says."""

    def open(self, directory: Path) -> Path:
        journal = directory / "journal"
        if journal.exists():
            values = json.loads(journal.read_text())
            journal.unlink()
            self._sync(directory)
            super().save_many(directory, values)
        return super().open(directory)

    def save_many(self, store: Path, values: Mapping[str, dict[str, Any]]) -> None:
        temporary = store / "journal.tmp"
        with open(temporary, "w") as file:
            file.write(json.dumps(values))
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, store / "journal")
        self._sync(store)
        super().save_many(store, values)
        os.unlink(store / "journal")
        self._sync(store)


class JournalGoneInTime(JournalGoneTooEarly):
    """The same store with a recovery that can be repeated."""

    def open(self, directory: Path) -> Path:
        journal = directory / "journal"
        if journal.exists():
            OneByOne.save_many(self, directory, json.loads(journal.read_text()))
            journal.unlink()
            self._sync(directory)
        return Files.open(self, directory)


# The other reference stores pass as the sound controls of tests/mutants.
@pytest.mark.parametrize(
    "adapter",
    [EncryptedFileStoreAdapter, SqliteConversationsAdapter, Files, JournalGoneInTime],
    ids=lambda a: a.__name__,
)
def test_sound_stores_pass(adapter: type[StoreAdapter]) -> None:
    run_state_machine_as_test(AtomicityMachine.for_store(adapter), settings=FEW)


@pytest.mark.parametrize(
    "broken", [InPlace, NoFileSync, NoDirectorySync, OneByOne, JournalGoneTooEarly]
)
def test_broken_stores_are_caught(broken: type[StoreAdapter]) -> None:
    with pytest.raises(AssertionError, match=r"atomicity|durability|unrecoverable"):
        run_state_machine_as_test(AtomicityMachine.for_store(broken), settings=MANY)


class Buffered(Files):
    """Keeps everything in memory until it is closed, and says so."""

    capabilities = Capabilities(crash_recovery=True, durable_on_close=True)

    def open(self, directory: Path) -> Any:
        return (super().open(directory), {})

    def save(self, store: Any, key: str, value: dict[str, Any]) -> None:
        store[1][key] = value

    def load(self, store: Any, key: str) -> dict[str, Any]:
        if key in store[1]:
            if store[1][key] is None:
                raise KeyError(key)
            return dict(store[1][key])
        return super().load(store[0], key)

    def delete(self, store: Any, key: str) -> None:
        store[1][key] = None

    def keys(self, store: Any) -> set[str]:
        there = set(super().keys(store[0])) | store[1].keys()
        return {key for key in there if store[1].get(key, 0) is not None}

    def close(self, store: Any) -> None:
        for key, value in store[1].items():
            if value is not None:
                super().save(store[0], key, value)
            elif key in super().keys(store[0]):
                super().delete(store[0], key)
        store[1].clear()

    def abandon(self, store: Any) -> None:
        store[1].clear()


class Forgetful(Buffered):
    def close(self, store: Any) -> None:
        store[1].clear()


def test_a_store_that_is_durable_on_close_passes() -> None:
    run_state_machine_as_test(AtomicityMachine.for_store(Buffered), settings=FEW)


def test_a_store_that_forgets_at_close_is_caught() -> None:
    with pytest.raises(AssertionError):
        run_state_machine_as_test(AtomicityMachine.for_store(Forgetful), settings=MANY)


def test_a_failure_is_short_and_explained() -> None:
    shrinking = settings(
        max_examples=200,
        stateful_step_count=20,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
    )
    with pytest.raises(AssertionError) as caught:
        run_state_machine_as_test(AtomicityMachine.for_store(NoFileSync), settings=shrinking)
    notes = "\n".join(caught.value.__notes__)
    assert len(steps_of(caught.value)) <= 2, "open, and a save with its crash"
    assert "On disk, under posix:" in notes
    assert "LOST" in notes
    assert "What to do:" in notes
    assert "broken.py" in notes
