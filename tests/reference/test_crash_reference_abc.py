"""Blocks A to C under every legal crash, crashes during recovery included, and under I/O errors.

One `Case` for each durable operation. Each must be atomic and durable in all five persistence
models; each must, when any one file-system call fails, leave the old or the new state and say
so. Two sabotaged versions show that the check would notice.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.reference import atomic, transaction
from pytest_statepersist.reference.atomic import (
    make_directory,
    remove_durably,
    write_atomic,
)
from pytest_statepersist.reference.cipher import Cipher
from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.component_registry import DirectoryRegistry
from pytest_statepersist.reference.errors import PersistenceError
from pytest_statepersist.reference.file_store import FileStore
from pytest_statepersist.reference.items import Session
from pytest_statepersist.reference.managers import SessionManager
from pytest_statepersist.reference.remote import RemoteStore
from pytest_statepersist.reference.snapshot_transfer import import_state
from pytest_statepersist.reference.state_snapshot import Component, StateSnapshot
from pytest_statepersist.reference.store_backup import read_backup
from pytest_statepersist.reference.store_remote import (
    backup_to_remote,
    load_snapshot,
    restore_from_remote,
    save_snapshot,
    unpack_backup,
)
from pytest_statepersist.reference.store_schedule import BackupSchedule
from pytest_statepersist.reference.transaction import Transaction, recover
from pytest_statepersist.simulator import CrashSimulator
from tests.reference.kill_points import tree
from tests.reference.snapshot_helpers import component, record, registry, snapshot
from tests.reference.store_helpers import NOON, content, open_store, session

MODELS = ("posix", "ext4", "xfs", "btrfs", "kill")
KEY = Cipher(b"k" * 32)
CANARY = "canary-51d0"


@dataclass(frozen=True)
class Case:
    """A durable operation: what was there, what it does, what the next start then finds."""

    name: str
    setup: Callable[[Path], object]
    workload: Callable[[Path], object]
    recover: Callable[[Path], object]
    item_by_item: bool = False  # where one item fails, the others are saved all the same


def opened(directory: Path, **options: object) -> FileStore:
    return open_store(directory / "store", **options)


def items(directory: Path, **options: object) -> dict[str, str]:
    report = opened(directory, **options).load_all()
    assert report.failed == (), report.failed
    found: dict[str, Any] = content(report)
    return {place: item.model_dump_json() for place, item in found.items()}


def filled(directory: Path, **options: object) -> FileStore:
    store = opened(directory, **options)
    for item in (session("a", CANARY), session("b", CANARY)):
        store.save(item)
    return store


def save_all(directory: Path) -> None:
    store, manager = opened(directory), SessionManager()
    manager.adopt([session("a", "new"), session("b", "new"), session("c", "new")])
    store.attach(sessions=manager)
    for failure in store.save_all().failed:
        raise failure.error  # the report is how `save_all` tells


def with_backup(directory: Path) -> None:
    store = filled(directory)
    store.backup(directory / "full")
    backup_to_remote(store, RemoteStore(str(directory / "remote")), "full")
    store.save(session("a", "current"))
    store.delete(Session, "b")


def old_version(directory: Path) -> None:
    source = Path(__file__).parents[2] / "fixtures/reference/file_store_v1"
    for path in sorted(source.rglob("*.json")):
        target = directory / "store" / path.relative_to(source)
        make_directory(target.parent)
        write_atomic(target, path.read_bytes())


def versions(directory: Path) -> tuple[dict[str, str], set[bool]]:
    found = items(directory)
    raw = tree(directory / "store")
    return found, {b'"version": 2' in raw[f"{place}.json"] for place in found}


def backup_at(name: str) -> Callable[[Path], object]:
    def read(directory: Path) -> object:
        if not (directory / name).exists():
            return None
        return dict(read_backup(directory / name).files)

    return read


def dated(directory: Path, hours: int) -> None:
    clock = ManualClock(NOON + timedelta(hours=hours))
    store = FileStore(directory / "store", clock=clock)
    store.save(session("a", str(hours)))
    BackupSchedule(store, directory / "dated", keep=1, clock=clock).run_now()


def dated_state(directory: Path) -> object:
    names = sorted(p.name for p in (directory / "dated").iterdir() if not p.name.startswith("."))
    assert names, "the old backup went before the new one was there"
    for name in names:
        read_backup(directory / "dated" / name)
    return names[-1]


def which_key_opens(directory: Path) -> object:
    for name, cipher in (("none", None), ("key", KEY)):
        report = opened(directory, cipher=cipher).load_all()
        if not report.failed:
            return name, sorted(content(report))
    return "mixture"


def lean(name: str) -> Component:
    return component(name, policy=None, binary=None)


def registered(directory: Path) -> object:
    made = DirectoryRegistry(directory / "registry")
    return {name: repr(made.get(name)) for name in made.ids()}


def by_hand(directory: Path) -> dict[str, bytes]:
    """What lies there, without the store, which would set the damaged file aside itself."""
    return {
        name.partition("damaged-")[0]: data  # the rest of the name tells the content, if it can
        for name, data in tree(directory / "store").items()
        if "sessions" in name
    }


def set_aside(directory: Path) -> None:
    for failure in opened(directory).load_all().failed:
        if failure.quarantined is None:
            raise failure.error


def damaged(directory: Path) -> None:
    filled(directory)
    write_atomic(directory / "store/sessions/a.json", b"ruins")


def encrypted_items(directory: Path) -> dict[str, str]:
    for name, data in tree(directory / "store").items():
        assert CANARY.encode() not in data, f"plaintext in {name}"
    return items(directory, cipher=KEY)


def files(directory: Path) -> dict[str, bytes]:
    recover(directory / "root", (".", "a", "b"))
    return tree(directory / "root")


def three_files(directory: Path) -> None:
    for name in ("a", "b"):
        make_directory(directory / "root" / name)
    for place in ("a/1", "a/2", "b/3"):
        write_atomic(directory / "root" / place, b"old")


def change_three(directory: Path) -> None:
    change = Transaction(directory / "root")
    change.put("a/1", b"new")
    change.put("b/4", b"new")
    change.delete("a/2")
    change.commit()


def one_file(directory: Path) -> None:
    write_atomic(directory / "f", b"old" * 3000)


def remote_at(directory: Path) -> RemoteStore:
    return RemoteStore(str(directory / "remote"))


CASES = [
    Case(
        "write_atomic",
        one_file,
        lambda d: write_atomic(d / "f", b"new" * 3000),
        lambda d: (d / "f").read_bytes(),
    ),
    Case(
        "remove_durably",
        one_file,
        lambda d: remove_durably(d / "f"),
        lambda d: (d / "f").exists(),
    ),
    Case(
        "make_directory",
        one_file,
        lambda d: make_directory(d / "x/y"),
        lambda d: (d / "x/y").is_dir(),
    ),
    Case("Transaction.commit", three_files, change_three, files),
    Case("FileStore.save", filled, lambda d: opened(d).save(session("a", "new")), items),
    Case("FileStore.delete", filled, lambda d: opened(d).delete(Session, "a"), items),
    Case("FileStore.save_all", filled, save_all, items, item_by_item=True),
    Case("FileStore.clear", filled, lambda d: opened(d).clear(), items),
    Case("FileStore.migrate", old_version, lambda d: opened(d).migrate(), versions),
    Case("FileStore.rekey", filled, lambda d: opened(d).rekey(KEY), which_key_opens),
    Case("FileStore.backup", filled, lambda d: opened(d).backup(d / "new"), backup_at("new")),
    Case(
        "FileStore.backup-differential",
        with_backup,
        lambda d: opened(d).backup(d / "diff", base=d / "full"),
        backup_at("diff"),
    ),
    Case("FileStore.restore", with_backup, lambda d: opened(d).restore(d / "full"), items),
    Case(
        "FileStore.save-encrypted",
        lambda d: filled(d, cipher=KEY),
        lambda d: opened(d, cipher=KEY).save(session("a", CANARY * 2)),
        encrypted_items,
    ),
    Case("FileStore.load_all-quarantine", damaged, set_aside, by_hand),
    Case("BackupSchedule.run_now", lambda d: dated(d, 0), lambda d: dated(d, 1), dated_state),
    Case(
        "backup_to_remote",
        filled,
        lambda d: backup_to_remote(opened(d), remote_at(d), "doc"),
        lambda d: {n: dict(unpack_backup(remote_at(d).load(n)).files) for n in remote_at(d).list()},
    ),
    Case(
        "restore_from_remote",
        with_backup,
        lambda d: restore_from_remote(opened(d), remote_at(d), "full"),
        items,
    ),
    Case(
        "StateSnapshot.save",
        lambda d: snapshot("a").save(d / "s"),
        lambda d: snapshot("b").save(d / "s"),
        lambda d: StateSnapshot.load(d / "s").to_json(),
    ),
    Case(
        "save_snapshot",
        lambda d: save_snapshot(snapshot("a"), remote_at(d), "s"),
        lambda d: save_snapshot(snapshot("b"), remote_at(d), "s"),
        lambda d: load_snapshot(remote_at(d), "s").to_json(),
    ),
    Case(
        "RemoteStore.delete",
        lambda d: remote_at(d).save("doc", b"x"),
        lambda d: remote_at(d).delete("doc"),
        lambda d: remote_at(d).list(),
    ),
    Case(
        "DirectoryRegistry.register",
        lambda d: registry(d / "registry", "a"),
        lambda d: DirectoryRegistry(d / "registry").register(
            record("a", source_uri="u:2", binary=None, secrets={})
        ),
        registered,
    ),
    Case(
        "DirectoryRegistry.remove",
        lambda d: registry(d / "registry", "a"),
        lambda d: DirectoryRegistry(d / "registry").remove("a"),
        registered,
    ),
    Case(
        "import_state",
        lambda d: registry(d / "registry", "a"),
        lambda d: import_state(
            DirectoryRegistry(d / "registry"),
            snapshot(components=(lean("a"), lean("b"))),
        ),
        registered,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_survives_every_legal_crash(case: Case) -> None:
    simulator = CrashSimulator(model=MODELS, deviations=1, samples=5, time_limit=None)
    report = simulator.check(
        setup=case.setup, workload=case.workload, recover=case.recover, name=case.name
    )
    for model in MODELS:
        verdict = report.verdict(model)
        assert (verdict.atomic, verdict.durable) == (True, True), str(verdict)


class Injected(OSError):
    """The one call that fails."""


CALLS = ("open", "write", "fsync", "replace", "rename", "unlink", "mkdir", "read", "listdir")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_io_error_at_any_call_leaves_old_or_new_and_is_told(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call in turn fails once; the clean-up then works. A false "saved" is the worst."""
    start, disk = tmp_path / "start", tmp_path / "disk"
    start.mkdir()
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nothing here is about power
    case.setup(start)
    shutil.copytree(start, disk, symlinks=True)
    before = case.recover(disk)
    after: object = None
    for point in range(-1, 1_000):
        shutil.rmtree(disk)
        shutil.copytree(start, disk, symlinks=True)
        told, made = _run_failing_at(point, case.workload, disk, monkeypatch)
        found = case.recover(disk)
        if point == -1:  # no failure
            after = found
            assert before != after
            assert made > 1
        elif made <= point:
            break
        elif told:
            assert _allowed(case, found, before, after), f"a mixture after call {point} failed"
        else:
            assert found == after, f"call {point} failed, and the caller heard nothing of it"
    assert found == after


def _allowed(case: Case, found: object, before: object, after: object) -> bool:
    if case.item_by_item and isinstance(found, dict):
        assert isinstance(before, dict)
        assert isinstance(after, dict)
        return all(
            found.get(place) in (before.get(place), after.get(place))
            for place in found.keys() | before.keys() | after.keys()
        )
    return found in (before, after)


def _run_failing_at(
    point: int, workload: Callable[[Path], object], directory: Path, patch: pytest.MonkeyPatch
) -> tuple[bool, int]:
    made = 0
    here = str(directory)

    def wrap(name: str) -> Callable[..., object]:
        really = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> object:
            nonlocal made
            if _concerns(here, args):
                made += 1
                if made == point + 1:
                    raise Injected(errno.EIO, f"injected into {name}")
            return really(*args, **kwargs)

        return call

    with patch.context() as patched:
        for name in CALLS:
            patched.setattr(os, name, wrap(name))
        try:
            workload(directory)
        except PersistenceError:
            return True, made
    return False, made


def _concerns(here: str, args: tuple[Any, ...]) -> bool:
    """Tell whether a call is about our directory; the lock file is filelock's own business."""
    if not args or isinstance(args[0], int):
        return bool(args) and args[0] > 2
    path = os.fspath(args[0])
    return isinstance(path, str) and path.startswith(here) and not path.endswith(".lock")


def test_without_the_sync_of_new_names_the_simulator_finds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(atomic, "fsync_directory", lambda path: None)
    case = CASES[0]
    report = CrashSimulator(model="posix").explore(
        setup=case.setup, workload=case.workload, recover=case.recover
    )
    assert report.verdict("posix").durable is False
    assert report.verdict("posix").atomic is True


def test_without_the_sync_before_the_journal_goes_the_simulator_finds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The transaction's own directory syncs make it atomic: without them it is not."""
    monkeypatch.setattr(transaction, "fsync_directory", lambda path: None)
    case = next(case for case in CASES if case.name == "Transaction.commit")
    report = CrashSimulator(model="posix").explore(
        setup=case.setup, workload=case.workload, recover=case.recover
    )
    assert report.verdict("posix").atomic is False


def test_every_durable_operation_has_its_case() -> None:
    """Public methods that change the disk; a new one without a case fails here."""
    durable = {
        FileStore: {"save", "delete", "save_all", "clear", "migrate", "rekey", "backup", "restore"},
        DirectoryRegistry: {"register", "remove"},
        BackupSchedule: {"run_now"},
    }
    harmless = {
        FileStore: {
            "attach", "load", "load_all", "ids", "enable_autosave", "disable_autosave", "close",
            "backup_content", "restore_content", "root", "serializer", "last_save_time",
            "autosave_interval",
        },
        DirectoryRegistry: {"apply", "get", "ids", "locked"},
        BackupSchedule: {"backups", "start"},
    }  # fmt: skip
    names = {case.name.partition("-")[0] for case in CASES}
    for owner, methods in durable.items():
        public = {name for name in vars(owner) if not name.startswith("_")}
        assert public == methods | harmless[owner], owner
        assert {f"{owner.__name__}.{method}" for method in methods} <= names
