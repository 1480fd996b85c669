"""Every conformance test has a store that it catches: here one flaw each in a sound store.

Belongs here: the flaws that neither a mutant of the reference implementation (`tests/mutants`) nor
a store that nobody here wrote (`examples/conformance/xfails.toml`) has. Each is one method of a
reference store's adapter, replaced; the suites of these stores pass without it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.adapter import StoreAdapter, Value
from pytest_statepersist.concurrency import interposed
from pytest_statepersist.conformance.bench import Bench
from pytest_statepersist.conformance.suite import GROUPS, StoreConformance, names_of
from pytest_statepersist.machines.reference_stores import (
    DatabaseAdapter,
    EncryptedFileStoreAdapter,
    FileStoreAdapter,
    LocalStorageAdapter,
    VaultAdapter,
)
from pytest_statepersist.reference.atomic import write_atomic
from tests.mutants.bare_stores import SealedFilesAdapter
from tests.mutants.table import MUTANTS

LIST = Path(__file__).parent.parent.parent / "examples" / "conformance" / "xfails.toml"


@dataclass(frozen=True)
class Flaw:
    """A sound store's adapter with methods replaced, and the tests that must notice."""

    what: str
    store: type[StoreAdapter]
    methods: Mapping[str, Any]
    tests: tuple[str, ...]

    def adapter(self) -> StoreAdapter:
        return type("Broken" + self.store.__name__, (self.store,), dict(self.methods))()


def saves(
    change: Callable[[Value], Value], store: type[StoreAdapter] = LocalStorageAdapter
) -> dict[str, Any]:
    """Make a store that saves something else."""

    def save(self: Any, handle: Any, key: str, value: Value) -> None:
        store.save(self, handle, key, change(value))

    return {"save": save}


def loads(
    change: Callable[[Value], Value], store: type[StoreAdapter] = LocalStorageAdapter
) -> dict[str, Any]:
    """Make a store that loads something else."""

    def load(self: Any, handle: Any, key: str) -> Value:
        return change(store.load(self, handle, key))

    return {"load": load}


def under(rename: Callable[[str], str]) -> dict[str, Any]:
    """Make a store that takes one key for another."""
    store = LocalStorageAdapter

    def save(self: Any, handle: Any, key: str, value: Value) -> None:
        store.save(self, handle, rename(key), value)

    def load(self: Any, handle: Any, key: str) -> Value:
        return store.load(self, handle, rename(key))

    return {"save": save, "load": load}


def each(change: Callable[[Any], Any]) -> Callable[[Value], Value]:
    """Change every value that is not a document or a list."""

    def through(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: through(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [through(inner) for inner in value]
        return change(value)

    return through


def cut_deep(value: Any, depth: int = 0) -> Any:
    if depth > 40:
        return None
    if isinstance(value, dict):
        return {name: cut_deep(inner, depth + 1) for name, inner in value.items()}
    return [cut_deep(inner, depth + 1) for inner in value] if isinstance(value, list) else value


def merging(self: Any, handle: Any, key: str, value: Value) -> None:
    old = LocalStorageAdapter.load(self, handle, key) if key in handle else {}
    LocalStorageAdapter.save(self, handle, key, {**old, **value})


def with_a_tail(self: Any, handle: Any, key: str, value: Value) -> None:
    old = LocalStorageAdapter.load(self, handle, key) if key in handle else {}
    if isinstance(text := value.get("text"), str) and isinstance(tail := old.get("text"), str):
        value = {**value, "text": text + tail[len(text) :]}
    LocalStorageAdapter.save(self, handle, key, value)


def empty_for_missing(self: Any, handle: Any, key: str) -> Value:
    return LocalStorageAdapter.load(self, handle, key) if key in handle else {}


def not_deleted(self: Any, handle: Any, key: str) -> None:
    LocalStorageAdapter.save(self, handle, key, {})


_graves: set[tuple[Path, str]] = set()


def deleted_for_ever(self: Any, handle: Any, key: str) -> None:
    _graves.add((handle.path, key))
    LocalStorageAdapter.delete(self, handle, key)


def save_unless_deleted(self: Any, handle: Any, key: str, value: Value) -> None:
    if (handle.path, key) not in _graves:
        LocalStorageAdapter.save(self, handle, key, value)


def twice(self: Any, handle: Any) -> list[str]:
    return [*LocalStorageAdapter.keys(self, handle), *LocalStorageAdapter.keys(self, handle)]


def with_an_example(self: Any, directory: Path) -> Any:
    handle = LocalStorageAdapter.open(self, directory)
    if not handle.names():
        handle.set("key", {"example": True})
    return handle


def one_for_all(self: Any, directory: Path) -> Any:
    return LocalStorageAdapter.open(self, directory.parent)


def forgetting(self: Any, directory: Path) -> Any:
    """Each opening forgets the first key."""
    handle = LocalStorageAdapter.open(self, directory)
    for name in handle.names()[:1]:
        handle.remove(name)
    return handle


def files_by_key(self: Any, handle: Any, key: str, value: Value) -> None:
    """A copy for people to read, wherever the key leads."""
    LocalStorageAdapter.save(self, handle, key, value)
    try:
        (handle.path.parent / key).write_text(str(value))
    except (OSError, ValueError):
        pass


def telling_nobody(name: str, store: type[StoreAdapter] = LocalStorageAdapter) -> dict[str, Any]:
    """Make a store that says nothing of its errors."""

    def quiet(self: Any, handle: Any, *arguments: Any) -> None:
        try:
            getattr(store, name)(self, handle, *arguments)
        except Exception:
            pass

    return {name: quiet}


def refusing_costs(self: Any, handle: Any, key: str, value: Value) -> None:
    try:
        LocalStorageAdapter.save(self, handle, key, value)
    except self.full:
        handle.remove(key)
        raise


def counted_on(self: Any, handle: Any, key: str) -> None:
    handle.quota -= len(str(LocalStorageAdapter.load(self, handle, key)))
    LocalStorageAdapter.delete(self, handle, key)


def one_by_one(self: Any, handle: Any, values: Mapping[str, Value]) -> None:
    for key, value in values.items():
        self.save(handle, key, value)


def open_to_others(self: Any, handle: Any, values: Mapping[str, Value]) -> None:
    FileStoreAdapter.save_many(self, handle, values)
    for path in handle.root.glob("sessions/*.json"):
        path.chmod(0o644)


def salvaged(self: Any, handle: Any, key: str) -> Value:
    """A file that cannot be read counts as an empty document."""
    try:
        return FileStoreAdapter.load(self, handle, key)
    except self.missing:
        raise
    except self.damage:
        return {}


def all_or_nothing(self: Any, handle: Any, key: str) -> Value:
    """A damaged file of any key makes every key unreadable."""
    for other in FileStoreAdapter.keys(self, handle):
        FileStoreAdapter.load(self, handle, other)
    found = FileStoreAdapter.load(self, handle, key)
    if any(".damaged" in path.name for path in handle.root.rglob("*")):
        raise self.damage[0]("something else is damaged")
    return found


def as_it_was(self: Any, directory: Path) -> Any:
    """What others save after the opening is not seen."""
    handle = FileStoreAdapter.open(self, directory)
    handle.kept = {  # type: ignore[attr-defined]
        key: FileStoreAdapter.load(self, handle, key) for key in FileStoreAdapter.keys(self, handle)
    }
    return handle


def from_memory(self: Any, handle: Any, key: str) -> Value:
    if key not in handle.kept:
        raise self.missing[0](key)
    return dict(handle.kept[key])


def to_memory(self: Any, handle: Any, key: str, value: Value) -> None:
    FileStoreAdapter.save(self, handle, key, value)
    handle.kept[key] = value


def read_change_write(self: Any, handle: Any, key: str, value: Value) -> None:
    """All values in one file, which is written anew without a lock."""
    path = handle.root / "all.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    write_atomic(path, json.dumps({**found, key: value}).encode())


def of_one_file(self: Any, handle: Any) -> dict[str, Any]:
    path = handle.root / "all.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


_HERE = threading.RLock()


def locked_in_one_process(self: Any, handle: Any, key: str, value: Value) -> None:
    with _HERE:
        read_change_write(self, handle, key, value)


UNLOCKED = {
    "save": read_change_write,
    "load": lambda self, handle, key: of_one_file(self, handle)[key],
    "keys": lambda self, handle: list(of_one_file(self, handle)),
    "missing": (KeyError,),
}


def keeps_all(self: Any, handle: Any) -> None:
    """Clean-up removes nothing."""


def removes_young(self: Any, handle: Any) -> None:
    for each in self.snapshots(handle):
        handle.delete_snapshot(each)


def removes_one_more(self: Any, handle: Any) -> None:
    """A clean-up with nothing to do removes the oldest that there is."""
    before = list(self.snapshots(handle))
    DatabaseAdapter.clean_up(self, handle)
    if list(self.snapshots(handle)) == before:
        for each in before[:1]:
            handle.delete_snapshot(each)


def starred_for_ever(self: Any, handle: Any, snapshot: str, starred: bool) -> None:
    if starred:
        DatabaseAdapter.star(self, handle, snapshot, True)


def removes_step_by_step(self: Any, handle: Any) -> None:
    limit = handle.clock.now() - timedelta(days=30)
    for each in handle.snapshots():
        if each.timestamp < limit and not each.starred:
            handle.delete_snapshot(each.id)


def burnt(self: Any, directory: Path, key: str) -> Any:
    """A wrong key costs what is there."""
    try:
        return VaultAdapter.open_with_key(self, directory, key)
    except self.wrong_key:
        shutil.rmtree(directory)
        directory.mkdir()
        raise


def believing(store: type[StoreAdapter]) -> dict[str, Any]:
    """Make a store that takes what it cannot read for an empty document."""

    def load(self: Any, handle: Any, key: str) -> Value:
        try:
            return store.load(self, handle, key)
        except Exception:
            return {}

    return {"load": load}


def only_the_header(self: Any, handle: Any, old: str, new: str) -> None:
    """Change no key at all."""


ROLLBACK = replace(VaultAdapter.capabilities, rollback_evident=True)


def restores_on_top(self: Any, handle: Any, source: Path) -> None:
    """Only what is missing comes back."""
    before = {key: self.load(handle, key) for key in self.keys(handle)}
    FileStoreAdapter.restore(self, handle, source)
    for key, value in before.items():
        self.save(handle, key, value)


def restores_what_is_there(self: Any, handle: Any, source: Path) -> None:
    """What was deleted stays deleted."""
    before = set(self.keys(handle))
    FileStoreAdapter.restore(self, handle, source)
    for key in set(self.keys(handle)) - before:
        self.delete(handle, key)


def copies(self: Any, handle: Any, destination: Path) -> None:
    """The manifest comes first, and the files one by one after it."""
    building = destination.with_name("building")
    FileStoreAdapter.backup(self, handle, building)
    destination.mkdir(mode=0o700)
    for path in sorted(building.rglob("*"), key=lambda path: path.is_dir(), reverse=True):
        target = destination / path.relative_to(building)
        if path.is_dir():
            target.mkdir(mode=0o700, exist_ok=True)
        else:
            target.write_bytes(b"")
            target.write_bytes(path.read_bytes())


def restores_without_asking(self: Any, handle: Any, source: Path) -> None:
    """Whatever files a backup has count as all of it."""
    for key in list(self.keys(handle)):
        self.delete(handle, key)
    for path in (source / "files" / "sessions").glob("*.json"):
        shutil.copy(path, handle.root / "sessions" / path.name)


def old_is_unknown(self: Any, handle: Any, key: str) -> Value:
    """Knows its own version only."""
    path = handle.root / "sessions" / f"{key}.json"
    if path.exists() and b'"version":1' in path.read_bytes().replace(b" ", b""):
        raise self.damage[0]("what is this?")
    return FileStoreAdapter.load(self, handle, key)


def drops_the_old(self: Any, handle: Any, key: str, value: Value) -> None:
    """The first save starts anew."""
    for path in (handle.root / "sessions").glob("*.json"):
        if b'"version":1' in path.read_bytes().replace(b" ", b""):
            path.unlink()
    FileStoreAdapter.save(self, handle, key, value)


def flaw(what: str, store: type[StoreAdapter], methods: Mapping[str, Any], *tests: str) -> Flaw:
    return Flaw(what, store, methods, tuple(tests))


LOCAL, FILE = LocalStorageAdapter, FileStoreAdapter
FLAWS = (
    flaw("saves nothing", LOCAL, {"save": lambda self, handle, key, value: None},
         "round_trip/test_a_saved_value_is_loaded_equal", "round_trip/test_many_keys",
         "round_trip/test_a_saved_value_survives_a_reopening"),
    flaw("drops what is empty", LOCAL,
         saves(lambda value: {k: v for k, v in value.items() if v or v is False or v == 0}),
         "round_trip/test_empty_values"),
    flaw("takes truth for a number", LOCAL,
         loads(each(lambda v: int(v) if isinstance(v, bool) else v)),
         "round_trip/test_truth_values_and_numbers_keep_their_type"),
    flaw("keeps twelve digits", LOCAL,
         saves(each(lambda v: float(f"{v:.12g}") if type(v) is float else v)),
         "round_trip/test_numbers_at_the_edges"),
    flaw("knows one kind of line end", LOCAL,
         saves(each(lambda v: v.replace("\r\n", "\n") if isinstance(v, str) else v)),
         "round_trip/test_text_of_every_plane"),
    flaw("takes a text for what it spells", LOCAL,
         loads(each(lambda v: {"null": None, "true": True}.get(v, v) if isinstance(v, str) else v)),
         "round_trip/test_text_that_looks_like_something_else"),
    flaw("forty levels", LOCAL, saves(cut_deep), "round_trip/test_deep_nesting"),
    flaw("a thousand fields", LOCAL, saves(lambda value: dict(list(value.items())[:1000])),
         "round_trip/test_many_fields"),
    flaw("merges", LOCAL, {"save": merging}, "round_trip/test_an_overwrite_replaces"),
    flaw("leaves a tail", LOCAL, {"save": with_a_tail},
         "round_trip/test_a_shorter_value_leaves_nothing_of_a_longer_one"),
    flaw("deletes by emptying", LOCAL, {"delete": not_deleted},
         "round_trip/test_a_deleted_key_is_gone"),
    flaw("deletes for ever", LOCAL, {"delete": deleted_for_ever, "save": save_unless_deleted},
         "round_trip/test_a_deleted_key_can_be_saved_again"),
    flaw("a default for the truth", LOCAL, {"load": empty_for_missing},
         "round_trip/test_what_was_never_saved_is_told"),
    flaw("lists twice", LOCAL, {"keys": twice},
         "round_trip/test_the_list_is_exactly_what_was_saved"),
    flaw("begins with an example", LOCAL, {"open": with_an_example},
         "round_trip/test_a_new_store_is_empty"),
    flaw("percent signs decoded", LOCAL, under(lambda key: key.replace("%2f", "_")),
         "round_trip/test_keys_with_special_characters"),
    flaw("a file named by the key", LOCAL, {"save": files_by_key},
         "round_trip/test_keys_that_look_like_paths"),
    flaw("the empty key is another one", LOCAL, under(lambda key: key or "other"),
         "round_trip/test_empty_key"),
    flaw("one store for all", LOCAL, {"open": one_for_all},
         "round_trip/test_two_directories_are_two_stores"),
    flaw("forgets at each opening", LOCAL, {"open": forgetting},
         "recovery/test_opening_again_and_again_changes_nothing"),
    flaw("takes damage for emptiness", FILE, {"load": salvaged},
         "recovery/test_a_cut_off_file_is_noticed"),
    flaw("one damaged file damages all", FILE, {"load": all_or_nothing},
         "recovery/test_a_damaged_value_hides_no_other"),
    flaw("tells no error", LOCAL, telling_nobody("save"),
         "faults/test_an_io_error_in_a_save_is_told", "faults/test_a_full_disk_in_a_save_is_told"),
    flaw("knows no quota", LOCAL,
         {"open_with_quota": lambda self, at, quota: LOCAL.open_with_quota(self, at, 1 << 30)},
         "faults/test_what_would_exceed_the_quota_is_refused"),
    flaw("a refused save costs the old value", LOCAL, {"save": refusing_costs},
         "faults/test_a_refused_overwrite_keeps_the_old_value"),
    flaw("what was deleted still counts", LOCAL, {"delete": counted_on},
         "faults/test_what_was_deleted_counts_no_more"),
    flaw("several are saved one by one", LOCAL, {"save_many": one_by_one},
         "faults/test_an_io_error_in_a_save_of_several_keys_is_told",
         "concurrency/test_an_opener_in_the_middle_of_a_save_of_several_keys"),
    flaw("several are open to others", FILE, {"save_many": open_to_others},
         "permissions/test_a_save_of_several_keys_stays_private"),
    flaw("shows what was there at the opening", FILE,
         {"open": as_it_was, "load": from_memory, "save": to_memory},
         "concurrency/test_a_second_opener_sees_what_was_saved"),
    flaw("no lock", FILE, UNLOCKED,
         "concurrency/test_threads_may_share_an_opener",
         "concurrency/test_processes_may_save_at_once"),
    flaw("a lock that holds in one process only", FILE,
         {**UNLOCKED, "save": locked_in_one_process},
         "concurrency/test_processes_may_save_at_once"),
    flaw("cleans nothing up", DatabaseAdapter, {"clean_up": keeps_all},
         "retention/test_what_is_older_than_the_limit_goes"),
    flaw("cleans everything up", DatabaseAdapter, {"clean_up": removes_young},
         "retention/test_what_is_younger_stays"),
    flaw("a star cannot be taken back", DatabaseAdapter, {"star": starred_for_ever},
         "retention/test_a_star_taken_back_protects_no_more"),
    flaw("always finds something to remove", DatabaseAdapter, {"clean_up": removes_one_more},
         "retention/test_a_second_clean_up_finds_nothing"),
    flaw("cleans up step by step", DatabaseAdapter, {"clean_up": removes_step_by_step},
         "retention/test_a_crash_in_a_clean_up_removes_all_or_none"),
    flaw("a wrong key burns it", VaultAdapter, {"open_with_key": burnt},
         "encryption/test_a_wrong_key_harms_nothing"),
    flaw("takes forgery for emptiness", SealedFilesAdapter, believing(SealedFilesAdapter),
         "encryption/test_any_changed_bit_is_noticed",
         "encryption/test_cut_and_extended_files_are_noticed"),
    flaw("promises to notice what it cannot", EncryptedFileStoreAdapter,
         {"capabilities": replace(EncryptedFileStoreAdapter.capabilities, rollback_evident=True)},
         "encryption/test_an_older_file_is_noticed"),
    flaw("the key stays", EncryptedFileStoreAdapter, {"change_key": only_the_header},
         "encryption/test_a_change_of_key_keeps_every_value"),
    flaw("restores only what is missing", FILE, {"restore": restores_on_top},
         "backup/test_a_restored_store_is_what_it_was"),
    flaw("restores only what is there", FILE, {"restore": restores_what_is_there},
         "backup/test_a_restore_brings_back_what_was_deleted",
         "backup/test_a_backup_restores_into_a_new_directory"),
    flaw("copies and asks nothing", FILE,
         {"backup": copies, "restore": restores_without_asking},
         "backup/test_a_crash_in_a_backup_leaves_a_whole_one_or_none"),
    flaw("knows no older version", FILE, {"load": old_is_unknown},
         "migration/test_every_old_version_opens"),
    flaw("the first save starts anew", FILE, {"save": drops_the_old},
         "migration/test_a_migrated_store_can_be_written"),
)  # fmt: skip
CASES = [(each, test) for each in FLAWS for test in each.tests]


@pytest.fixture(scope="module", autouse=True)
def _fast() -> Iterator[None]:
    with interposed():
        yield


@pytest.fixture
def root() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize(("broken", "test"), CASES, ids=[f"{f.what}: {t}" for f, t in CASES])
def test_a_flaw_is_caught(broken: Flaw, test: str, root: Path) -> None:
    group, _, name = test.partition("/")
    run = getattr(GROUPS[group](), name)
    for budget in (60, 600):  # what fails on the first disks fails on all
        settings = {"repairs": False, "samples": 0, "recovery_crashes": 0, "budget": budget}
        try:
            run(Bench(broken.adapter(), root / str(budget), settings))
        except (AssertionError, pytest.fail.Exception, *broken.store.damage):
            return
        except pytest.skip.Exception as reason:
            if "the budget of 60 " not in str(reason):
                raise AssertionError("it could not look") from reason
    pytest.fail("it passed")


def test_every_conformance_test_has_a_store_that_it_catches() -> None:
    foreign = {name for known in tomllib.loads(LIST.read_text()).values() for name in known}
    caught = {test for _, test in CASES}
    caught |= {each.target.by for mutant in MUTANTS for each in mutant.caught}
    without = [
        f"{group}/{name}"
        for group, tests in GROUPS.items()
        for name in names_of(tests)
        if f"{group}/{name}" not in caught and name not in foreign
    ]
    assert not without
    assert all(hasattr(StoreConformance, name) for name in foreign)
