"""Retention, Integrity, Backup, Migration, Concurrency: the sound pass, one bug each is caught."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import unittest
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from pytest_statepersist.adapter import Capabilities, StoreAdapter
from pytest_statepersist.concurrency import interposed
from pytest_statepersist.machines import (
    BackupMachine,
    ConcurrencyMachine,
    IntegrityMachine,
    MigrationMachine,
    RetentionMachine,
    StoreMachine,
)
from pytest_statepersist.machines.reference_stores import (
    ConversationsAdapter,
    EncryptedFileStoreAdapter,
    GroupStoreAdapter,
)
from tests.machines.broken import FEW, MANY, Files, steps_of

FEWER = settings(FEW, max_examples=3)


@pytest.fixture(scope="module", autouse=True)
def _fast() -> Iterator[None]:
    with interposed():
        yield


def run(machine: type[StoreMachine], store: type[StoreAdapter], how: settings = FEW) -> None:
    run_state_machine_as_test(machine.for_store(store), settings=how)


def caught(machine: type[StoreMachine], store: type[StoreAdapter], **changes: Any) -> None:
    broken = type("Broken", (store,), changes)
    with pytest.raises(AssertionError):
        run(machine, broken, MANY)


# -- Retention


class Shelf(Files):
    """Snapshots in one file, which is replaced as a whole."""

    capabilities = Capabilities(
        durable=True, crash_recovery=True, snapshots=True, stars=True, retention=True,
        atomic_cleanup=True,
    )  # fmt: skip
    honours_stars = True
    one_step = True
    limit = timedelta(days=30)

    def open_with_clock(self, directory: Path, clock: Any) -> Any:
        return (self.open(directory), clock)

    def _read(self, store: Any) -> dict[str, Any]:
        return dict(self.load(store[0], "all")) if "all" in self.keys(store[0]) else {}

    def snapshot(self, store: Any, name: str) -> str:
        found = self._read(store)
        made = os.urandom(8).hex()
        self.save(store[0], "all", {**found, made: [store[1].now().isoformat(), False]})
        return made

    def snapshots(self, store: Any) -> Iterable[str]:
        return self._read(store)

    def starred(self, store: Any) -> Iterable[str]:
        return [name for name, (_, star) in self._read(store).items() if star]

    def star(self, store: Any, snapshot: str, starred: bool) -> None:
        found = self._read(store)
        found[snapshot][1] = starred
        self.save(store[0], "all", found)

    def too_old(self, age: timedelta) -> bool:
        return age > self.limit

    def clean_up(self, store: Any) -> None:
        found = self._read(store)
        for name, (taken, star) in list(found.items()):
            if star and self.honours_stars:
                continue
            if self.too_old(store[1].now() - datetime.fromisoformat(taken)):
                del found[name]
                if not self.one_step:
                    self.save(store[0], "all", found)
        self.save(store[0], "all", found)

    def close(self, store: Any) -> None:
        pass


class Impatient(Shelf):
    def too_old(self, age: timedelta) -> bool:
        return age >= self.limit


class Absolute(Shelf):
    """A clock that was set back makes a snapshot look old."""

    def too_old(self, age: timedelta) -> bool:
        return abs(age) > self.limit


# Reference stores that are not here pass as the sound controls of tests/mutants.
@pytest.mark.parametrize("store", [Shelf])
def test_retention_passes(store: type[StoreAdapter]) -> None:
    run(RetentionMachine, store)


@pytest.mark.parametrize(
    ("store", "changes"),
    [
        (Impatient, {}),
        (Absolute, {}),
        (Shelf, {"honours_stars": False}),
        (Shelf, {"one_step": False}),
        (Shelf, {"sync_directory": False}),
        (Shelf, {"limit": timedelta(days=31)}),
    ],
    ids=["limit itself", "clock set back", "stars", "two steps", "not durable", "too late"],
)
def test_retention_catches(store: type[StoreAdapter], changes: dict[str, Any]) -> None:
    caught(RetentionMachine, store, **changes)


# -- Integrity


class Safe(Files):
    """One encrypted file for each key, bound to its name."""

    capabilities = Capabilities(
        durable=True, crash_recovery=True, encryption=True, tamper_evident=True, key_change=False,
        permissions=True,
    )  # fmt: skip
    damage = (InvalidTag, ValueError)
    wrong_key = (InvalidTag,)
    bound = True
    checks = True
    fixed_nonce = False
    mode = 0o600

    def open(self, directory: Path) -> Any:
        return self.open_with_key(directory, "usual")

    def open_with_key(self, directory: Path, key: str) -> Any:
        return (super().open(directory), hashlib.sha256(key.encode()).digest())

    def close(self, store: Any) -> None:
        pass

    def save(self, store: Any, key: str, value: dict[str, Any]) -> None:
        nonce = bytes(12) if self.fixed_nonce else os.urandom(12)
        plain = json.dumps(value).encode()
        bound = key.encode() if self.bound else b""
        sealed = nonce + AESGCM(store[1]).encrypt(nonce, plain, bound)
        temporary = store[0] / f"{key}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, self.mode)
        with open(descriptor, "wb") as file:
            file.write(sealed)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, store[0] / f"{key}.json")
        self._sync(store[0])

    def load(self, store: Any, key: str) -> dict[str, Any]:
        data = (store[0] / f"{key}.json").read_bytes()
        if len(data) < 28:
            raise ValueError("too short")
        bound = key.encode() if self.bound else b""
        return dict(json.loads(AESGCM(store[1]).decrypt(data[:12], data[12:], bound)))

    def delete(self, store: Any, key: str) -> None:
        super().delete(store[0], key)

    def keys(self, store: Any) -> Iterable[str]:
        return super().keys(store[0])

    def sealed(self, data: bytes) -> Iterable[bytes]:
        yield data[:12]


class Checksummed(Files):
    """Readable, with a checksum that is not looked at."""

    capabilities = Capabilities(tamper_evident=True)
    damage = (ValueError,)
    checks = False

    def save(self, store: Path, key: str, value: dict[str, Any]) -> None:
        text = json.dumps(value, sort_keys=True)
        super().save(store, key, {"v": value, "sum": hashlib.sha256(text.encode()).hexdigest()})

    def load(self, store: Path, key: str) -> dict[str, Any]:
        found = super().load(store, key)
        try:
            value, checksum = found["v"], found["sum"]
            text = json.dumps(value, sort_keys=True)
        except (KeyError, TypeError) as error:
            raise ValueError("damaged") from error
        if self.checks and hashlib.sha256(f"{text}".encode()).hexdigest() != checksum:
            raise ValueError("damaged")
        return dict(value)


class Rekeying(Safe):
    """Changes the key file by file."""

    capabilities = Capabilities(
        durable=True, crash_recovery=True, encryption=True, key_change=True, tamper_evident=True
    )

    def change_key(self, store: Any, old: str, new: str) -> None:
        values = {key: self.load(store, key) for key in self.keys(store)}
        other = self.open_with_key(store[0], new)
        for key, value in values.items():
            self.save(other, key, value)


class Wrapped(Safe):
    """Encrypts by a key that is in a file of its own, under the password."""

    capabilities = Capabilities(
        durable=True, crash_recovery=True, encryption=True, key_change=True, tamper_evident=True
    )

    def open_with_key(self, directory: Path, key: str) -> Any:
        Files.open(self, directory)
        if not (directory / "header").exists():
            self.write_header(directory, AESGCM.generate_key(256), key)
        return directory, self.unwrapped((directory / "header").read_bytes(), key)

    def change_key(self, store: Any, old: str, new: str) -> None:
        self.write_header(*store, new)

    def write_header(self, directory: Path, data_key: bytes, *passwords: str) -> None:
        """Replace the header by one that each of the passwords opens."""
        with open(directory / "header.tmp", "wb") as file:
            for password in passwords:
                nonce, wrapping = os.urandom(12), hashlib.sha256(password.encode()).digest()
                file.write(nonce + AESGCM(wrapping).encrypt(nonce, data_key, b"header"))
            file.flush()
            os.fsync(file.fileno())
        os.rename(directory / "header.tmp", directory / "header")
        self._sync(directory)

    def unwrapped(self, header: bytes, password: str) -> bytes:
        """Return the key of the data. Raises `InvalidTag`."""
        wrapping = AESGCM(hashlib.sha256(password.encode()).digest())
        for start in range(0, len(header) - 59, 60):
            with contextlib.suppress(InvalidTag):
                slot = header[start : start + 60]
                return wrapping.decrypt(slot[:12], slot[12:], b"header")
        raise InvalidTag


@pytest.mark.parametrize(
    "store",
    [Safe, Wrapped, ConversationsAdapter, GroupStoreAdapter],
)
def test_integrity_passes(store: type[StoreAdapter]) -> None:
    run(IntegrityMachine, store)


class OneKeyForAll(Safe):
    def open_with_key(self, directory: Path, key: str) -> Any:
        return super().open_with_key(directory, "always this")


@pytest.mark.parametrize(
    ("store", "changes"),
    [
        (Safe, {"bound": False}),
        (Safe, {"fixed_nonce": True}),
        (Safe, {"mode": 0o644}),
        (OneKeyForAll, {}),
        (Checksummed, {}),
        (Rekeying, {}),
        (Files, {"capabilities": Capabilities(encryption=True),
                 "open_with_key": lambda self, directory, key: self.open(directory)}),
    ],
    ids=["associated data", "nonce", "permissions", "wrong key", "no check", "rekey", "plain"],
)  # fmt: skip
def test_integrity_catches(store: type[StoreAdapter], changes: dict[str, Any]) -> None:
    caught(IntegrityMachine, store, **changes)


# -- Backup


class Copied(Files):
    """Backs up by copying, restores by removing and copying back."""

    capabilities = Capabilities(durable=True, crash_recovery=True, backup=True)
    forgets_extra = True
    crashes = True

    def backup(self, store: Path, destination: Path) -> None:
        shutil.copytree(store, destination)

    def restore(self, store: Path, source: Path) -> None:
        if self.forgets_extra:
            for path in store.iterdir():
                path.unlink()
        for path in source.iterdir():
            shutil.copyfile(path, store / path.name)
        self._sync(store)


CALM = Capabilities(durable=True, backup=True)


def test_backup_passes() -> None:
    run(BackupMachine, EncryptedFileStoreAdapter, FEWER)
    run(BackupMachine, type("Calm", (Copied,), {"capabilities": CALM}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"capabilities": CALM, "forgets_extra": False},
        {"capabilities": Capabilities(durable=True, backup=True, tamper_evident=True)},
    ],
    ids=["crash inside restore", "keeps newer keys", "damaged backup"],
)
def test_backup_catches(changes: dict[str, Any]) -> None:
    caught(BackupMachine, Copied, **changes)


# -- Migration


class Versioned(Files):
    """Version 1 had the bare value, version 2 wraps it with its number."""

    capabilities = Capabilities(
        durable=True, crash_recovery=True, migration=True, refuses_newer=True
    )
    old_versions = (1,)
    newer = (ValueError,)
    in_place = False
    refuses = True
    drops_empty = False

    def save(self, store: Path, key: str, value: dict[str, Any]) -> None:
        super().save(store, key, {"version": 2, "value": value})

    def load(self, store: Path, key: str) -> dict[str, Any]:
        found = super().load(store, key)
        if isinstance(found.get("version"), int) and "old" not in found:
            if found["version"] > 2 and self.refuses:
                raise ValueError("newer")
            return dict(found["value"])
        return dict(found["old"])

    def write_old(self, directory: Path, version: int, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            (directory / f"{key}.json").write_text(json.dumps({"old": value}))

    def write_newer(self, directory: Path) -> None:
        (directory / "n.json").write_text(json.dumps({"version": 3, "value": {}}))

    def migrate(self, store: Path) -> None:
        for key in self.keys(store):
            value = self.load(store, key)
            if self.drops_empty and not value:
                self.delete(store, key)
            elif self.in_place:
                (store / f"{key}.json").write_text(json.dumps({"version": 2, "value": value}))
            else:
                self.save(store, key, value)


class Eager(Versioned):
    """Rewrites everything when it opens, what it does not understand too."""

    def open(self, directory: Path) -> Path:
        opened = super().open(directory)
        for path in directory.glob("*.json"):
            found = json.loads(path.read_text())
            if "value" in found:
                Files.save(self, opened, path.stem, {"version": 2, "value": found["value"]})
        return opened


class Downgrading(Versioned):
    """Older code empties what it does not understand."""

    def open_old(self, directory: Path, version: int) -> Path:
        for path in directory.glob("*.json"):
            if "version" in json.loads(path.read_text()):
                path.write_text(json.dumps({"old": {}}))
        return super().open(directory)


def test_migration_passes() -> None:
    run(MigrationMachine, Versioned)


@pytest.mark.parametrize(
    ("store", "changes"),
    [
        (Versioned, {"in_place": True}),
        (Versioned, {"drops_empty": True}),
        (Versioned, {"refuses": False}),
        (Eager, {}),
        (Downgrading, {}),
    ],
    ids=["in place", "drops", "newer taken", "newer rewritten", "older code harms"],
)
def test_migration_catches(store: type[StoreAdapter], changes: dict[str, Any]) -> None:
    caught(MigrationMachine, store, **changes)


# -- Concurrency


class Together(Files):
    """All values in one file, read anew and replaced at each save, without a lock."""

    capabilities = Capabilities(concurrent_writers=True)
    cached = False

    def open(self, directory: Path) -> Any:
        return (directory, self._all(directory) if self.cached else None)

    def close(self, store: Any) -> None:
        pass

    @staticmethod
    def _all(directory: Path) -> dict[str, Any]:
        path = directory / "all.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def _known(self, store: Any) -> dict[str, Any]:
        return self._all(store[0]) if store[1] is None else store[1]  # type: ignore[no-any-return]

    def _put(self, store: Any, found: dict[str, Any]) -> None:
        temporary = store[0] / f"{os.urandom(4).hex()}.tmp"
        temporary.write_text(json.dumps(found))
        os.rename(temporary, store[0] / "all.json")

    def save(self, store: Any, key: str, value: dict[str, Any]) -> None:
        found = self._known(store)
        found[key] = value
        self._put(store, found)

    def load(self, store: Any, key: str) -> dict[str, Any]:
        return dict(self._known(store)[key])

    def delete(self, store: Any, key: str) -> None:
        found = self._known(store)
        found.pop(key, None)
        self._put(store, found)

    def keys(self, store: Any) -> Iterable[str]:
        return self._known(store)


class OldAtClose(Together):
    """Closing writes what was there at the opening, over what others have saved since."""

    def open(self, directory: Path) -> Any:
        return (directory, None, self._all(directory))

    def close(self, store: Any) -> None:
        self._put(store, {**self._all(store[0]), **store[2]})


SEQUENTIAL = settings(MANY, max_examples=60)


@pytest.mark.parametrize("cached", [True, False], ids=["stale cache", "no lock"])
def test_concurrency_catches(cached: bool) -> None:
    broken = type("Broken", (Together,), {"cached": cached})
    with pytest.raises(AssertionError):
        run(ConcurrencyMachine, broken, SEQUENTIAL)


def test_concurrency_catches_what_closing_takes_back() -> None:
    with pytest.raises(AssertionError):
        run(ConcurrencyMachine, OldAtClose, SEQUENTIAL)


# -- what all share


def test_what_a_store_does_not_declare_is_skipped_with_the_reason() -> None:
    machine = RetentionMachine.for_store(Files)
    outcome = unittest.TestResult()
    machine.TestCase("runTest").run(outcome)
    assert not outcome.failures
    assert not outcome.errors
    ((_, reason),) = outcome.skipped
    assert reason == "Files does not declare snapshots, retention"


def test_shrinking_gives_short_histories() -> None:
    shrinking = settings(
        MANY, phases=[Phase.generate, Phase.shrink], report_multiple_bugs=False, max_examples=100
    )
    with pytest.raises(AssertionError) as failure:
        run(RetentionMachine, Impatient, shrinking)
    steps = steps_of(failure.value)
    assert len(steps) <= 4, steps  # open, a snapshot, time, a clean-up
