"""Blocks A to C: one `Case` for each durable operation of files, file store and snapshots."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from pytest_statepersist.reference.atomic import (
    make_directory,
    remove_durably,
    write_atomic,
)
from pytest_statepersist.reference.cipher import Cipher
from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.component_registry import DirectoryRegistry
from pytest_statepersist.reference.errors import StorageError
from pytest_statepersist.reference.file_store import FileStore
from pytest_statepersist.reference.items import Conversation, Session
from pytest_statepersist.reference.managers import SessionManager
from pytest_statepersist.reference.remote import RemoteStore
from pytest_statepersist.reference.snapshot_transfer import (
    ExportOptions,
    export_state,
    import_state,
)
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
from tests.reference.durable_case import Case, killed_before_the_last_sync
from tests.reference.kill_points import tree
from tests.reference.snapshot_helpers import CANARY as SECRET
from tests.reference.snapshot_helpers import component, record, registry, snapshot
from tests.reference.store_helpers import CHEAP, NOON, content, conversation, open_store, session

KEY, OLD_KEY = Cipher(b"k" * 32), Cipher(b"o" * 32)
CANARY = "canary-51d0"


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


def save_what_is_there(directory: Path) -> None:
    ours, theirs = opened(directory), opened(directory)
    with killed_before_the_last_sync():
        theirs.save(session("a", "new"))
    ours.save(session("a", "new"))


def save_all_that_is_there(directory: Path) -> None:
    ours, theirs, manager = opened(directory), opened(directory), SessionManager()
    manager.adopt([session("a", "new")])
    ours.attach(sessions=manager)
    with killed_before_the_last_sync():
        theirs.save(session("a", "new"))
    for failure in ours.save_all().failed:
        raise failure.error


def with_conversation(directory: Path) -> None:
    filled(directory).save(conversation("c"))


def clear_what_is_gone(directory: Path, acknowledge: Callable[[object], None]) -> None:
    ours, theirs = opened(directory), opened(directory)
    with killed_before_the_last_sync():
        theirs.delete(Conversation, "c")
    ours.clear()
    acknowledge("cleared")


def all_or_none_of_the_rest(found: Any, acknowledged: Sequence[object]) -> bool:
    left = {place[-1] for place in found}
    return left == set() if acknowledged else left in (set(), {"a", "b"}, {"a", "b", "c"})


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
    for name, cipher in (("none", None), ("old", OLD_KEY), ("key", KEY)):
        report = opened(directory, cipher=cipher).load_all()
        if not report.failed:
            return name, sorted(content(report))
        for failure in report.failed:
            if isinstance(failure.error, StorageError):
                raise failure.error  # which key it was is not known
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


@cache
def with_secrets() -> StateSnapshot:
    """A snapshot of a registry that lies elsewhere, which has its secrets in the clear."""
    with tempfile.TemporaryDirectory() as elsewhere:
        made = registry(Path(elsewhere), "a")
        return export_state(made, ExportOptions(seal_secrets_with="pass", kdf_cost=CHEAP))


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
    # What another process left unsynced counts as saved only when it is durable.
    Case("FileStore.save-found", filled, save_what_is_there, items),
    Case(
        "FileStore.clear-gone",
        with_conversation,
        clear_what_is_gone,
        items,
        invariant=all_or_none_of_the_rest,
    ),
    Case("FileStore.save_all-killed", filled, save_all_that_is_there, items),
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
        encrypted=True,
    ),
    Case(
        "FileStore.rekey-changed",
        lambda d: filled(d, cipher=OLD_KEY),
        lambda d: opened(d, cipher=OLD_KEY).rekey(KEY),
        which_key_opens,
        encrypted=True,
    ),
    Case(
        "FileStore.backup-encrypted",
        lambda d: filled(d, cipher=KEY),
        lambda d: opened(d, cipher=KEY).backup(d / "new"),
        backup_at("new"),
        encrypted=True,
    ),
    Case(
        "backup_to_remote-encrypted",
        lambda d: filled(d, cipher=KEY),
        lambda d: backup_to_remote(opened(d, cipher=KEY), remote_at(d), "doc"),
        lambda d: {n: dict(unpack_backup(remote_at(d).load(n)).files) for n in remote_at(d).list()},
        encrypted=True,
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
        "StateSnapshot.save-secrets",
        lambda d: with_secrets() and snapshot("b").save(d / "s"),
        lambda d: with_secrets().save(d / "s"),
        lambda d: [each.secrets is None for each in StateSnapshot.load(d / "s").components],
        encrypted=True,
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
        "DirectoryRegistry.register-encrypted",
        lambda d: registry(d / "registry", "a", cipher=KEY),
        lambda d: DirectoryRegistry(d / "registry", cipher=KEY).register(
            record("a", secrets={"NEW": SECRET * 2})
        ),
        lambda d: DirectoryRegistry(d / "registry", cipher=KEY).get("a").secrets,
        encrypted=True,
    ),
    Case(
        "DirectoryRegistry.remove",
        lambda d: registry(d / "registry", "a"),
        lambda d: DirectoryRegistry(d / "registry").remove("a"),
        registered,
    ),
    Case(
        "snapshot_transfer.import_state",
        lambda d: registry(d / "registry", "a"),
        lambda d: import_state(
            DirectoryRegistry(d / "registry"),
            snapshot(components=(lean("a"), lean("b"))),
        ),
        registered,
    ),
]
