"""Every rule of every machine has a store that it catches: here one flaw each in a sound store.

Belongs here: for each promise of a rule a store that breaks it, made of one that passes elsewhere,
and the rules that promise nothing, with the reason. A flaw counts where this rule is the first one
that fails, in the expected words. Mutants (`tests/mutants/table.py`) that name exactly one rule
count too; most of them name several, any of which may be the first to notice.
"""

from __future__ import annotations

import json
import os
import re
import unittest
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.errors import UnsatisfiedAssumption
from hypothesis.stateful import (
    INITIALIZE_RULE_MARKER,
    RULE_MARKER,
    run_state_machine_as_test,
)

from pytest_statepersist import machines
from pytest_statepersist.adapter import Capabilities, StoreAdapter, Value
from pytest_statepersist.concurrency import interposed
from pytest_statepersist.machines.base import StoreMachine
from pytest_statepersist.machines.history import Diverged
from pytest_statepersist.machines.reference_stores import (
    EncryptedFileStoreAdapter,
    FileStoreAdapter,
    LocalStorageAdapter,
)
from pytest_statepersist.reference.errors import ValidationError
from tests.conftest import REASON
from tests.machines import test_atomicity_machine, test_other_machines, test_round_trip_machine
from tests.machines.broken import Files
from tests.machines.test_atomicity_machine import Buffered, JournalGoneInTime, OneByOne
from tests.machines.test_other_machines import CALM, Copied, Safe, Shelf, Versioned, Wrapped
from tests.mutants.judge import Target
from tests.mutants.table import MUTANTS

LOCAL, FILE, SEALED = LocalStorageAdapter, FileStoreAdapter, EncryptedFileStoreAdapter
EXAMPLES, STEPS, SEEDS = 6, 10, 60


class Calm(Copied):
    """Backs up and restores as it should where nothing crashes."""

    capabilities = CALM


SOUND: Mapping[tuple[str, type[StoreAdapter]], Callable[..., None]] = {
    ("RoundTrip", LOCAL): test_round_trip_machine.test_reference_stores_pass,
    ("Atomicity", Files): test_atomicity_machine.test_sound_stores_pass,
    ("Atomicity", JournalGoneInTime): test_atomicity_machine.test_sound_stores_pass,
    ("Atomicity", Buffered): test_atomicity_machine.test_a_store_that_is_durable_on_close_passes,
    ("Retention", Shelf): test_other_machines.test_retention_passes,
    ("Integrity", Safe): test_other_machines.test_integrity_passes,
    ("Integrity", Wrapped): test_other_machines.test_integrity_passes,
    ("Backup", Calm): test_other_machines.test_backup_passes,
    ("Migration", Versioned): test_other_machines.test_migration_passes,
}
"""Where a store passes a machine without its flaw; any other is a control of tests/mutants."""


@dataclass(frozen=True)
class Flaw:
    """A sound store with something replaced, and the rule that must be the first to notice.

    Beside it only the rules ``beside`` are left in the machine, which saves time and decides
    nothing: what they do in turn, the whole machine does too.
    """

    machine: str
    rule: str
    what: str
    store: type[StoreAdapter]
    changes: Mapping[str, Any]
    why: str
    beside: str = "save take_snapshot"
    begin: int = 0
    """The seed that is tried first: where it was seen before."""

    @property
    def looking(self) -> type[StoreMachine]:
        """The machine with few rules, on the broken store."""
        machine = machine_of(self.machine)
        kept = {self.rule, *self.beside.split()}
        less = dict.fromkeys(rules_of(machine, RULE_MARKER) - kept)
        store = type("Broken", (self.store,), dict(self.changes))
        return machine.for_store(store, **less)


# -- what is broken


def nothing(self: Any, *arguments: Any) -> None:
    """Do nothing, and say that it is done."""


def with_an_example(self: Any, directory: Path) -> Any:
    handle = LOCAL.open(self, directory)
    if not handle.names():
        handle.set("key", {"example": True})
    return handle


def forgetting(self: Any, directory: Path) -> Any:
    """Each opening forgets the first key."""
    handle = LOCAL.open(self, directory)
    for name in handle.names()[:1]:
        handle.remove(name)
    return handle


def refused_and_saved(self: Any, handle: Any, key: str, value: Value) -> None:
    LOCAL.save(self, handle, key, value)
    if not key.isascii():
        raise ValidationError("name", "has other letters")


def odd_keys_outside(self: Any, handle: Any, key: str, value: Value) -> None:
    """What is no good file name has its file elsewhere, beside all stores."""
    LOCAL.save(self, handle, key, value)
    if not key.isalnum():
        (handle.path.parent.parent / "odd").write_text("")


def stripped(self: Any, handle: Any, key: str, value: Value) -> None:
    LOCAL.save(self, handle, key.strip(), value)


def all_but_one(self: Any, handle: Any, values: Mapping[str, Value]) -> None:
    LOCAL.save_many(self, handle, dict(list(values.items())[:-1]))


def merging(self: Any, handle: Any, key: str, value: Value) -> None:
    old = LOCAL.load(self, handle, key) if key in handle else {}
    LOCAL.save(self, handle, key, {**old, **value})


def empty_for_missing(self: Any, handle: Any, key: str) -> Value:
    return LOCAL.load(self, handle, key) if key in handle else {}


_given: dict[tuple[Path, str, str], Value] = {}


def the_same_object(self: Any, handle: Any, key: str) -> Value:
    found = LOCAL.load(self, handle, key)
    return _given.setdefault((handle.path, key, json.dumps(found)), found)


def exclusive(self: Any, directory: Path) -> Any:
    os.close(os.open(directory / "in use", os.O_CREAT | os.O_EXCL))
    return LOCAL.open(self, directory)


class _Knowing:
    """An opener that reads once, at its opening, and writes all that it knows."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.known = {name: store.get(name) for name in store.names()}

    def put(self) -> None:
        for name in self.store.names():
            self.store.remove(name)
        for name, value in self.known.items():
            self.store.set(name, value)


def knowing(self: Any, directory: Path) -> Any:
    return _Knowing(LOCAL.open(self, directory))


def knowing_save(self: Any, handle: Any, key: str, value: Value) -> None:
    handle.known[key] = value
    handle.put()


def knowing_save_many(self: Any, handle: Any, values: Mapping[str, Value]) -> None:
    handle.known.update(values)
    handle.put()


def knowing_load(self: Any, handle: Any, key: str) -> Value:
    if key not in handle.known:
        raise self.missing[0](key)
    return dict(handle.known[key])


def knowing_delete(self: Any, handle: Any, key: str) -> None:
    handle.known.pop(key, None)
    handle.put()


KNOWING = {"open": knowing, "save": knowing_save, "save_many": knowing_save_many,
           "load": knowing_load, "delete": knowing_delete,
           "keys": lambda self, handle: list(handle.known)}  # fmt: skip


def remembering(self: Any, directory: Path) -> Any:
    handle: Any = LOCAL.open(self, directory)
    handle.was, handle.changed = set(handle.names()), False
    return handle


def changing(method: str) -> Callable[..., None]:
    def change(self: Any, handle: Any, *arguments: Any) -> None:
        getattr(LOCAL, method)(self, handle, *arguments)
        handle.changed = True

    return change


def as_it_was(self: Any, handle: Any) -> None:
    """Who changed nothing leaves everything as it was when it came, whoever changed it since."""
    if not handle.changed:
        for name in handle.names():
            if name not in handle.was:
                handle.remove(name)


LEAVING = {"open": remembering, "close": as_it_was,
           **{each: changing(each) for each in ("save", "save_many", "delete")}}  # fmt: skip


def in_place(self: Any, store: Path, key: str, value: Value) -> None:
    if not (store / f"{key}.json").exists():
        Files.save(self, store, key, value)
        return
    with open(store / f"{key}.json", "w") as file:
        file.write(json.dumps(value))
        file.flush()
        os.fsync(file.fileno())
    self._sync(store)


def not_synced(self: Any, store: Path, key: str) -> None:
    os.unlink(store / f"{key}.json")


def forgets_at_close(self: Any, store: Any) -> None:
    store[1].clear()


def loses_a_file(method: str, store: type[StoreAdapter]) -> dict[str, Any]:
    """Each opening loses a file."""

    def opened(self: Any, directory: Path, *arguments: Any) -> Any:
        for path in sorted(directory.glob("*.json"))[-1:]:
            path.unlink()
        return getattr(store, method)(self, directory, *arguments)

    return {method: opened}


def loses_a_new_file(self: Any, directory: Path) -> Any:
    """Each opening loses a file that this version wrote."""
    for path in sorted(directory.glob("*.json"))[-1:]:
        if json.loads(path.read_text()).get("version") == 2:
            path.unlink()
    return Versioned.open(self, directory)


def rewriting(store: type[StoreAdapter]) -> Callable[..., Any]:
    """Make each opening write every file anew, in place and in small pieces."""

    def opened(self: Any, directory: Path) -> Any:
        for path in directory.glob("*.json"):
            data = path.read_bytes()
            with open(path, "wb", buffering=0) as file:
                for byte in data[:8]:
                    file.write(bytes([byte]))
                file.write(data[8:])
                os.fsync(file.fileno())
        return store.open(self, directory)

    return opened


def named_alike(self: Any, store: Any, name: str) -> str:
    if not name:
        return Shelf.snapshot(self, store, name)
    found = self._read(store)
    made = f"snapshot {len(name)}"
    self.save(store[0], "all", {**found, made: [store[1].now().isoformat(), False]})
    return made


def not_taken(self: Any, store: Any, name: str) -> str:
    return os.urandom(8).hex() if name else Shelf.snapshot(self, store, name)


def removes_one_more(self: Any, store: Any) -> None:
    """A clean-up with nothing to do removes the oldest that there is."""
    before = self._read(store)
    Shelf.clean_up(self, store)
    if before and self._read(store) == before:
        self.save(store[0], "all", dict(list(before.items())[1:]))


def at_the_limit(self: Any, age: timedelta) -> bool:
    return bool(age >= self.limit)


def however_wrong(self: Any, age: timedelta) -> bool:
    """A clock that was set back makes a snapshot look old."""
    return bool(abs(age) > self.limit)


def expiring(self: Any, store: Any) -> Iterable[str]:
    """What is too old is not listed, whether there was a clean-up or not."""
    for name, (taken, star) in self._read(store).items():
        if star or not self.too_old(store[1].now() - datetime.fromisoformat(taken)):
            yield name


def one_key_for_all(self: Any, directory: Path, key: str) -> Any:
    return Safe.open_with_key(self, directory, "always this")


def burnt(self: Any, store: Any, key: str) -> Value:
    """A wrong key costs what is there."""
    try:
        return Safe.load(self, store, key)
    except InvalidTag:
        (store[0] / f"{key}.json").unlink()
        raise


def loses_one(self: Any, store: Any, old: str, new: str) -> None:
    SEALED.change_key(self, store, old, new)
    for key in sorted(SEALED.keys(self, store))[:1]:
        SEALED.delete(self, store, key)


def in_memory_meanwhile(self: Any, store: Any, old: str, new: str) -> None:
    """Empty the store, change its key, and fill it again."""
    values = {key: SEALED.load(self, store, key) for key in SEALED.keys(self, store)}
    for key in values:
        SEALED.delete(self, store, key)
    SEALED.change_key(self, store, old, new)
    for key, value in values.items():
        SEALED.save(self, store, key, value)


def both_meanwhile(self: Any, store: Any, old: str, new: str) -> None:
    """Let the new password in, and only then the old one out."""
    self.write_header(*store, old, new)
    self.write_header(*store, new)


def header_not_synced(self: Any, store: Any, old: str, new: str) -> None:
    """Return before the header's new name is on disk."""
    with patch.object(type(self), "_sync", nothing):
        self.write_header(*store, new)


def marked(self: Any, store: Any, old: str, new: str) -> None:
    """Leave a mark for whoever has to finish what a crash cut short."""
    (store[0] / "changing").touch()
    self._sync(store[0])
    self.write_header(*store, new)
    (store[0] / "changing").unlink()
    self._sync(store[0])


def finishes_at_close(self: Any, store: Any) -> None:
    """Clean up after a change of the key that a crash cut short, and too much of it."""
    if (store[0] / "changing").exists():
        for path in sorted(store[0].glob("*.json"))[:1]:
            path.unlink()
        (store[0] / "changing").unlink()


def moved(self: Any, store: Path, destination: Path) -> None:
    destination.mkdir()
    for path in store.iterdir():
        path.rename(destination / path.name)


def with_its_origin(self: Any, store: Path, destination: Path) -> None:
    Copied.backup(self, store, destination)
    (destination / "origin").write_text(str(store))


def to_its_origin(self: Any, store: Path, source: Path) -> None:
    Copied.restore(self, Path((source / "origin").read_text()), source)


def emptied_first(self: Any, store: Any, source: Path) -> None:
    for key in list(FILE.keys(self, store)):
        FILE.delete(self, store, key)
    FILE.restore(self, store, source)


def old_is_unknown(self: Any, store: Path, key: str) -> Value:
    found = Files.load(self, store, key)
    if "old" in found:
        raise ValueError("what is this?")
    return Versioned.load(self, store, key)


def old_is_empty(self: Any, store: Path, key: str) -> Value:
    return {} if "old" in Files.load(self, store, key) else Versioned.load(self, store, key)


def drops_one(self: Any, store: Path) -> None:
    Versioned.migrate(self, store)
    for key in sorted(Versioned.keys(self, store))[:1]:
        Versioned.delete(self, store, key)


def drops_the_old(self: Any, store: Path, key: str, value: Value) -> None:
    """The first save starts anew."""
    for path in list(store.glob("*.json")):
        if "old" in json.loads(path.read_text()):
            Versioned.delete(self, store, path.stem)
    Versioned.save(self, store, key, value)


def rewrites(self: Any, directory: Path) -> Any:
    """Opening rewrites everything, what it does not understand too."""
    for path in directory.glob("*.json"):
        if "value" in (found := json.loads(path.read_text())):
            path.write_text(json.dumps({**found, "opened": True}))
    return Versioned.open(self, directory)


def removes_what_is_newer(self: Any, directory: Path, version: int) -> Any:
    for path in directory.glob("sessions/*.json"):
        if json.loads(path.read_text())["version"] > version:
            path.unlink()
    return FILE.open_old(self, directory, version)


def empty_for_older_code(self: Any, store: Any, key: str) -> Value:
    found = FILE.load(self, store, key)
    return {} if type(store).__name__ == "_VersionOneStore" else found


# -- which rule notices

LOST = "^AssertionError: (atomicity|durability|unrecoverable)"
HOLDS = "^AssertionError: without a crash the store holds"
STORED = "^AssertionError: stored is "

CRASHING = Capabilities(durable=True, backup=True, crash_recovery=True)
TAMPERED = Capabilities(durable=True, backup=True, tamper_evident=True)

FLAWS = (
    Flaw("RoundTrip", "open", "a new store has an example", LOCAL, {"open": with_an_example},
         STORED),
    Flaw("RoundTrip", "save", "saves nothing", LOCAL, {"save": nothing},
         "was saved and is missing"),
    Flaw("RoundTrip", "save_under_a_hostile_key", "odd keys outside", LOCAL,
         {"save": odd_keys_outside}, "reached outside the store's directory",
         beside=""),
    Flaw("RoundTrip", "save_under_a_hostile_key", "refuses, and saves", LOCAL,
         {"save": refused_and_saved}, STORED,
         beside=""),
    Flaw("RoundTrip", "save_under_a_hostile_key", "keys without their spaces", LOCAL,
         {"save": stripped}, "was saved and is missing",
         beside=""),
    Flaw("RoundTrip", "save_many", "all but one", LOCAL, {"save_many": all_but_one}, STORED),
    Flaw("RoundTrip", "overwrite", "old fields stay", LOCAL, {"save": merging},
         "gives .*but .* was saved"),
    Flaw("RoundTrip", "delete", "deletes nothing", LOCAL, {"delete": nothing},
         "was deleted and still gives"),
    Flaw("RoundTrip", "load_missing", "empty for missing", LOCAL, {"load": empty_for_missing},
         "was never saved and gives {}"),
    Flaw("RoundTrip", "change_what_was_loaded", "no copies", LOCAL, {"load": the_same_object},
         "gives .*changed by the caller"),
    Flaw("RoundTrip", "reopen", "forgets at opening", LOCAL, {"open": forgetting}, STORED),

    Flaw("Atomicity", "save", "names not synced", Files, {"sync_directory": False}, LOST),
    Flaw("Atomicity", "overwrite", "written in place", Files, {"save": in_place}, LOST),
    Flaw("Atomicity", "save_many", "one by one", JournalGoneInTime,
         {"save_many": OneByOne.save_many}, LOST),
    Flaw("Atomicity", "delete", "removals not synced", Files, {"delete": not_synced}, LOST),
    Flaw("Atomicity", "power_loss", "rewrites at opening", Files, {"open": rewriting(Files)},
         LOST),
    Flaw("Atomicity", "kill", "rewrites at opening", Files, {"open": rewriting(Files)}, LOST),
    Flaw("Atomicity", "reopen", "forgets at close", Buffered, {"close": forgets_at_close},
         "^AssertionError: reopened, it holds"),

    Flaw("Retention", "take_snapshot", "one id for two", Shelf, {"snapshot": named_alike},
         "was given twice"),
    Flaw("Retention", "take_snapshot", "takes none", Shelf, {"snapshot": not_taken}, HOLDS),
    Flaw("Retention", "clean_up_several", "removes what is at the limit", Shelf,
         {"too_old": at_the_limit}, HOLDS),
    Flaw("Retention", "clean_up_after_setting_back", "the future is old too", Shelf,
         {"too_old": however_wrong}, HOLDS),
    Flaw("Retention", "star", "sets no star", Shelf, {"star": nothing}, HOLDS),
    Flaw("Retention", "time", "hides without a clean-up", Shelf, {"snapshots": expiring}, HOLDS),
    Flaw("Retention", "clean_up_several", "removes what has a star", Shelf,
         {"honours_stars": False}, "starred",
         beside="take_snapshot star"),
    Flaw("Retention", "clean_up_several", "step by step", Shelf, {"one_step": False},
         "^AssertionError: atomicity"),
    Flaw("Retention", "clean_up", "removes what is young", Shelf, {"clean_up": removes_one_more},
         HOLDS),
    Flaw("Retention", "power_loss", "rewrites at opening", Shelf, {"open": rewriting(Shelf)},
         LOST),
    Flaw("Retention", "kill", "rewrites at opening", Shelf, {"open": rewriting(Shelf)}, LOST),
    Flaw("Retention", "reopen", "loses a file at opening", Shelf, loses_a_file("open", Shelf),
         "^AssertionError: reopened, it holds"),

    Flaw("Integrity", "save", "saves nothing", Safe, {"save": nothing},
         "was saved and is missing"),
    Flaw("Integrity", "delete", "deletes nothing", Safe, {"delete": nothing},
         "was deleted and still gives"),
    Flaw("Integrity", "reopen", "loses a file at opening", Safe,
         loses_a_file("open_with_key", Safe), STORED),
    Flaw("Integrity", "open_with_a_wrong_key", "one key for all", Safe,
         {"open_with_key": one_key_for_all}, "a wrong key opened"),
    Flaw("Integrity", "open_with_a_wrong_key", "a wrong key costs the value", Safe,
         {"load": burnt}, STORED),
    Flaw("Integrity", "tamper", "not bound to its name", Safe, {"bound": False},
         "without an error"),
    Flaw("Integrity", "change_key", "loses a value", SEALED, {"change_key": loses_one},
         "^NotFound: .*nothing is stored there"),
    Flaw("Integrity", "change_key", "the old key stays", SEALED, {"change_key": nothing},
         "a wrong key opened"),
    Flaw("Integrity", "crash_while_the_key_changes", "empties and fills", SEALED,
         {"change_key": in_memory_meanwhile}, "neither key opened everything"),
    Flaw("Integrity", "crash_while_the_key_changes", "both keys for a while", Wrapped,
         {"change_key": both_meanwhile}, "both keys opened everything"),
    Flaw("Integrity", "crash_while_the_key_changes", "a header not synced", Wrapped,
         {"change_key": header_not_synced}, "change of the key was acknowledged and is lost"),
    Flaw("Integrity", "crash_while_the_key_changes", "finishes at close, and loses a value",
         Wrapped, {"change_key": marked, "close": finishes_at_close}, STORED),

    Flaw("Backup", "save", "saves nothing", Calm, {"save": nothing}, HOLDS),
    Flaw("Backup", "delete", "deletes nothing", Calm, {"delete": nothing}, HOLDS),
    Flaw("Backup", "back_up", "backs up nothing", Calm, {"backup": nothing},
         "returned and there is nothing"),
    Flaw("Backup", "back_up", "moves", Calm, {"backup": moved}, HOLDS),
    Flaw("Backup", "restore", "keeps newer keys", Calm, {"forgets_extra": False}, HOLDS,
         beside="save back_up"),
    Flaw("Backup", "restore_elsewhere", "restores where it came from", Calm,
         {"backup": with_its_origin, "restore": to_its_origin}, "restored elsewhere: {}",
         beside="save back_up"),
    Flaw("Backup", "restore_a_damaged_backup", "asks nothing", Calm,
         {"capabilities": TAMPERED},
         "was restored without an error",
         beside="save back_up"),
    Flaw("Backup", "restore_a_damaged_backup", "empties before it asks", FILE,
         {"restore": emptied_first, "capabilities": TAMPERED},
         "was refused and changed the store",
         beside="save back_up"),
    Flaw("Backup", "back_up", "a copy not synced", Calm, {"capabilities": CRASHING},
         "^AssertionError: the backup backup-. was acknowledged and is gone after a crash"),
    Flaw("Backup", "power_loss", "a copy not synced", Calm, {"capabilities": CRASHING},
         "^AssertionError: the backup backup-. was acknowledged and is gone after a crash",
         beside="save back_up", begin=14),
    Flaw("Backup", "power_loss", "rewrites at opening", Calm,
         {"open": rewriting(Calm), "capabilities": CRASHING}, LOST),
    Flaw("Backup", "kill", "rewrites at opening", Calm,
         {"open": rewriting(Calm), "capabilities": CRASHING}, LOST, begin=5),
    Flaw("Backup", "reopen", "loses a file at opening", Calm, loses_a_file("open", Calm),
         "^AssertionError: reopened, it holds"),

    Flaw("Migration", "open", "knows no older version", Versioned, {"load": old_is_unknown},
         "cannot be loaded"),
    Flaw("Migration", "open", "older values are empty", Versioned, {"load": old_is_empty},
         "what version 1 wrote loads as"),
    Flaw("Migration", "migrate", "drops one", Versioned, {"migrate": drops_one}, HOLDS),
    Flaw("Migration", "save", "the first save starts anew", Versioned, {"save": drops_the_old},
         HOLDS),
    Flaw("Migration", "open_with_older_code", "older code removes what is newer", FILE,
         {"open_old": removes_what_is_newer}, "^AssertionError: after older code it holds"),
    Flaw("Migration", "open_with_older_code", "older code sees nothing", FILE,
         {"load": empty_for_older_code}, "^AssertionError: older code loads {}", beside=""),
    Flaw("Migration", "open_what_newer_code_wrote", "takes what is newer", Versioned,
         {"refuses": False}, "as if it were understood"),
    Flaw("Migration", "open_what_newer_code_wrote", "rewrites what is newer", Versioned,
         {"open": rewrites}, "was refused, and changed"),
    Flaw("Migration", "migrate", "in place", Versioned, {"in_place": True}, LOST),
    Flaw("Migration", "power_loss", "rewrites at opening", Versioned,
         {"open": rewriting(Versioned)}, LOST),
    Flaw("Migration", "kill", "rewrites at opening", Versioned, {"open": rewriting(Versioned)},
         LOST),
    Flaw("Migration", "reopen", "loses a file at opening", Versioned, {"open": loses_a_new_file},
         "^AssertionError: reopened, it holds"),

    Flaw("Concurrency", "open", "one opener at a time", LOCAL, {"open": exclusive},
         "^FileExistsError"),
    Flaw("Concurrency", "save", "saves nothing", LOCAL, {"save": nothing},
         "misses what it saved"),
    Flaw("Concurrency", "save_many", "all but one", LOCAL, {"save_many": all_but_one},
         "misses what it saved"),
    Flaw("Concurrency", "delete", "deletes nothing", LOCAL, {"delete": nothing},
         "deleted .* and still loads"),
    Flaw("Concurrency", "close", "leaves it as it was", LOCAL, LEAVING,
         "after opener . was closed a new opener"),
    Flaw("Concurrency", "look_afresh", "each writes what it knows", LOCAL, KNOWING,
         "^AssertionError: a new opener sees"),
)  # fmt: skip

PROMISES_NOTHING = {
    ("Atomicity", "open"): "only opens; the rules that follow draw crashes in it",
    ("Backup", "open"): "only opens; the rules that follow draw crashes in it",
    ("Retention", "open"): "only opens; the rules that follow draw crashes in it",
    ("Integrity", "open"): "only opens a new store, in which nothing was saved",
}
"""Rules that promise nothing of their own, and why."""


# -- the tests


class _First(unittest.SkipTest):
    """Ends a run at its first failure: Hypothesis lets this one through as it is."""


def machine_of(name: str) -> type[StoreMachine]:
    machine: type[StoreMachine] = getattr(machines, f"{name}Machine")
    return machine


def rules_of(machine: type[StoreMachine], *markers: str) -> set[str]:
    return {
        name
        for name in dir(machine)
        if any(hasattr(getattr(machine, name), marker) for marker in markers)
    }


def first_failure(machine: type[StoreMachine], seed: int) -> tuple[str, str]:
    """Return in which rule a machine fails first, and in which words; twice "" for nowhere."""
    failures: list[tuple[str, str]] = []

    class Watched(machine):  # type: ignore[valid-type, misc]
        _hypothesis_internal_use_seed = seed

        def run_step(self, function: Any, positional: Any, arguments: Any) -> None:
            outermost = not self._inside
            try:
                super().run_step(function, positional, arguments)
            except (UnsatisfiedAssumption, unittest.SkipTest, Diverged):
                raise
            except Exception as error:
                if not outermost:
                    raise
                failures.append((function.__name__, f"{type(error).__name__}: {error}"))
                raise _First from error

    Watched.begin()
    try:
        run_state_machine_as_test(Watched, settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, database=None,
            phases=[Phase.generate], verbosity=Verbosity.quiet, report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ))  # fmt: skip
    except _First:
        return failures[0]
    finally:
        Watched.end()
    return "", ""


@pytest.fixture(scope="module", autouse=True)
def _fast() -> Iterator[None]:
    with interposed():
        yield


def seen(flaw: Flaw, seed: int) -> bool:
    rule, words = first_failure(flaw.looking, seed)
    return rule == flaw.rule and bool(re.search(flaw.why, words, re.DOTALL))


def each() -> Iterator[Any]:
    """Parameters: in every run the first flaw of each rule, all of them in the soak profile."""
    soak = os.environ.get("STATEPERSIST_PROFILE") == "soak"
    known: set[tuple[str, str]] = set()
    for flaw in FLAWS:
        skipped = pytest.mark.skipif((flaw.machine, flaw.rule) in known and not soak, reason=REASON)
        known.add((flaw.machine, flaw.rule))
        yield pytest.param(flaw, id=f"{flaw.machine}.{flaw.rule}: {flaw.what}", marks=skipped)


@pytest.mark.parametrize("flaw", [*each()])
def test_a_flaw_is_caught_in_its_rule(flaw: Flaw) -> None:
    assert any(seen(flaw, seed) for seed in (flaw.begin, *range(SEEDS)))


def test_every_rule_has_a_store_that_it_catches_or_promises_nothing() -> None:
    rules = {
        (name.removesuffix("Machine"), rule)
        for name in machines.MACHINES
        for rule in rules_of(getattr(machines, name), RULE_MARKER, INITIALIZE_RULE_MARKER)
    }
    assert len(rules) > len(machines.MACHINES) * 5
    caught = {(flaw.machine, flaw.rule) for flaw in FLAWS}
    caught |= {
        (each.target.by.removesuffix("Machine"), each.at) for mutant in MUTANTS
        for each in mutant.caught
    }  # fmt: skip
    assert not rules - caught - PROMISES_NOTHING.keys()
    assert PROMISES_NOTHING.keys() <= rules - caught
    assert {(flaw.machine, flaw.rule) for flaw in FLAWS} <= rules


def test_every_flaw_is_in_a_store_that_passes_without_it() -> None:
    controls = {each.target for mutant in MUTANTS for each in mutant.caught}
    for flaw in FLAWS:
        target = Target(f"{flaw.machine}Machine", flaw.store.__name__)
        assert (flaw.machine, flaw.store) in SOUND or target in controls, target
