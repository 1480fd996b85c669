"""Backups: whole or absent, verified before anything is touched, restored in one step."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.reference import store_backup
from pytest_statepersist.reference.atomic import temporary_name
from pytest_statepersist.reference.cipher import Cipher
from pytest_statepersist.reference.clock import ManualClock, ManualScheduler
from pytest_statepersist.reference.errors import (
    BackupError,
    DamagedData,
    IntegrityError,
    NewerVersion,
    PersistenceError,
    StorageError,
    ValidationError,
    WrongPassword,
)
from pytest_statepersist.reference.file_store import FileStore
from pytest_statepersist.reference.items import Session
from pytest_statepersist.reference.store_backup import read_backup, read_manifest
from pytest_statepersist.reference.store_events import ErrorInfo
from pytest_statepersist.reference.store_schedule import BackupSchedule
from pytest_statepersist.reference.store_schema import Schema
from tests.reference.kill_points import Killed, counting, each_kill_point, tree, without_syncing
from tests.reference.store_helpers import NOON, chain, content, conversation, open_store, session


@pytest.fixture(scope="module", autouse=True)
def _no_power_loss() -> Iterator[None]:
    with without_syncing():
        yield


def everything(store: FileStore) -> dict[str, object]:
    return content(store.load_all())


def filled(root: Path, word: str = "old") -> FileStore:
    store = open_store(root)
    store.save(session("a", word))
    store.save(session("b", word))
    store.save(conversation("c"))
    store.save(chain("f"))
    return store


def test_restores_exactly_what_was_there(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    before = everything(store)
    assert store.backup(tmp_path / "deep/er/backup") == tmp_path / "deep/er/backup"
    store.save(session("a", "new"))
    store.delete(Session, "b")
    store.save(session("z"))
    assert store.restore(tmp_path / "deep/er/backup") == 4
    assert everything(store) == before
    assert everything(open_store(tmp_path / "store")) == before
    other = open_store(tmp_path / "elsewhere")
    other.restore(tmp_path / "deep/er/backup")
    assert everything(other) == before
    assert other.save(session("a", "old")) is False


def test_a_backup_of_nothing_restores_nothing(tmp_path: Path) -> None:
    open_store(tmp_path / "empty").backup(tmp_path / "backup")
    store = filled(tmp_path / "store")
    assert store.restore(tmp_path / "backup") == 0
    assert everything(store) == {}


def test_never_overwrites(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "empty", "dangling"):
        with pytest.raises(BackupError, match="already there"):
            store.backup(tmp_path / name)


def test_a_kill_during_backup_leaves_a_whole_one_or_none(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    expected = everything(store)
    dest = tmp_path / "backups/one"
    seen = set()

    def make() -> Callable[[], object]:
        shutil.rmtree(tmp_path / "backups", ignore_errors=True)
        again = open_store(tmp_path / "store")
        return lambda: again.backup(dest)

    def after() -> None:
        seen.add(dest.exists())
        if not dest.exists():
            open_store(tmp_path / "store").backup(dest)
            left = sorted(os.listdir(dest.parent))
            assert left == [".backup.lock", "one"]  # left-overs were cleared away
        fresh = open_store(tmp_path / "fresh")
        fresh.restore(dest)
        assert everything(fresh) == expected

    assert each_kill_point(make, after) > 20
    assert seen == {True, False}


def test_two_stores_that_back_up_to_one_name_do_not_touch_each_others_files(
    ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one is building looks like the left-over of a crash to the other, which must wait."""
    one, other = filled(ram_path / "one"), filled(ram_path / "other")
    dest = ram_path / "backups/b"
    building, go_on = threading.Event(), threading.Event()
    really = store_backup._write_tree

    def slowly(*arguments: Any) -> None:
        really(*arguments)
        building.set()
        assert go_on.wait(30)

    monkeypatch.setattr(store_backup, "_write_tree", slowly)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(one.backup, dest)
        assert building.wait(30)
        second = threads.submit(other.backup, dest)
        time.sleep(0.1)  # time enough to do harm
        assert not second.done()
        go_on.set()
        assert first.result(30) == dest
        with pytest.raises(BackupError, match="already there"):
            second.result(30)
    assert len(read_backup(dest).files) == len(everything(one))


def test_a_kill_during_restore_or_its_recovery_leaves_old_or_restored(tmp_path: Path) -> None:
    root = tmp_path / "store"
    filled(root, "restored").backup(tmp_path / "backup")
    restored = everything(open_store(root))

    def start() -> FileStore:
        shutil.rmtree(root)
        store = open_store(root)
        store.save(session("a", "current"))
        store.save(session("x", "current"))
        return store

    current = everything(start())
    store = start()
    with counting() as whole:
        store.restore(tmp_path / "backup")
    seen = []
    for first in range(whole.made):
        second = 0
        while True:
            store = start()
            with counting(first), pytest.raises(Killed):
                store.restore(tmp_path / "backup")
            with counting(second) as recovery:
                try:
                    open_store(root)
                except Killed:
                    pass
            state = everything(open_store(root))
            assert state in (current, restored), (first, second)
            seen.append(state == restored)
            if recovery.made <= second:
                break
            second += 4  # every fourth call of the recovery: the full square is slow
    assert set(seen) == {True, False}


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda b: shutil.rmtree(b), BackupError),
        (lambda b: (b / "manifest.json").unlink(), BackupError),
        (lambda b: (b / "files/sessions/a.json").unlink(), BackupError),
        (lambda b: flip(b / "files/sessions/a.json"), IntegrityError),
        (lambda b: flip(b / "manifest.json"), DamagedData),
        (lambda b: (b / "manifest.json").write_bytes(b""), DamagedData),
        (lambda b: (b / "manifest.json").write_bytes(b"[]"), DamagedData),
        (lambda b: (b / "files/sessions/a.json").write_bytes(b""), IntegrityError),
        (lambda b: extend(b / "files/sessions/a.json"), IntegrityError),
    ],
    ids=["gone", "no-manifest", "no-file", "flip", "flip-manifest", "empty-manifest",
         "list-manifest", "empty-file", "longer-file"],
)  # fmt: skip
def test_a_damaged_backup_is_refused_before_anything_is_touched(
    tmp_path: Path, damage: Callable[[Path], object], error: type[Exception]
) -> None:
    store = filled(tmp_path / "store")
    store.backup(tmp_path / "backup")
    store.save(session("a", "newer"))
    damage(tmp_path / "backup")
    before = tree(tmp_path / "store")
    seen: list[ErrorInfo] = []
    store.on_error(seen.append)
    with pytest.raises(error):
        store.restore(tmp_path / "backup")
    assert tree(tmp_path / "store") == before
    assert len(seen) == 1
    assert store.load(Session, "a").title == "newer"


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def forge(backup: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change a manifest and make its checksum right again: an attacker can."""
    import hashlib

    from pytest_statepersist.reference.serializers import CompactJsonSerializer

    path = backup / "manifest.json"
    body = json.loads(path.read_bytes())["manifest"]
    change(body)
    digest = hashlib.sha256(CompactJsonSerializer().dumps(body)).hexdigest()
    path.write_bytes(json.dumps({"manifest": body, "sha256": digest}).encode())


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.0, None])
def test_a_version_that_never_was_is_damage(tmp_path: Path, version: object) -> None:
    store = filled(tmp_path / "store")
    store.backup(tmp_path / "backup")
    forge(tmp_path / "backup", lambda body: body.update(version=version))
    with pytest.raises(DamagedData):
        store.restore(tmp_path / "backup")


def test_forged_manifests_reach_no_file_outside(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    store.backup(tmp_path / "backup")
    (tmp_path / "outside.json").write_bytes(b"secret")
    before = tree(tmp_path / "store")
    entry = {"sha256": "0" * 64, "size": 6, "stored": True}
    for place in ("../../outside.json", "/etc/passwd", "sessions/../../x.json", "a\\b", ""):
        forge(tmp_path / "backup", lambda body, p=place: body["files"].update({p: entry}))  # type: ignore[attr-defined,misc]
        with pytest.raises(PersistenceError):
            store.restore(tmp_path / "backup")
        forge(tmp_path / "backup", lambda body, p=place: body["files"].pop(p))  # type: ignore[attr-defined,misc]
    assert tree(tmp_path / "store") == before
    forge(tmp_path / "backup", lambda body: body.update(version=2))
    with pytest.raises(NewerVersion):
        store.restore(tmp_path / "backup")
    forge(tmp_path / "backup", lambda body: body.update(version="one"))
    with pytest.raises(DamagedData):
        store.restore(tmp_path / "backup")


def test_a_foreign_file_in_a_backup_is_refused(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    store.backup(tmp_path / "backup")
    source = tmp_path / "backup/files/sessions/a.json"
    (tmp_path / "backup/files/other").mkdir()
    shutil.copy(source, tmp_path / "backup/files/other/a.json")

    def add(body: dict[str, object]) -> None:
        files = body["files"]
        assert isinstance(files, dict)
        files["other/a.json"] = files["sessions/a.json"]

    forge(tmp_path / "backup", add)
    with pytest.raises(BackupError, match="no item of this store"):
        store.restore(tmp_path / "backup")


def test_items_from_the_future_and_under_another_key_are_refused(tmp_path: Path) -> None:
    newer = Schema(3, {2: lambda kind, data: data})
    open_store(tmp_path / "new", schema=newer).save(session())
    open_store(tmp_path / "new", schema=newer).backup(tmp_path / "new-backup")
    locked = open_store(tmp_path / "locked", cipher=Cipher(b"k" * 32))
    locked.save(session())
    locked.backup(tmp_path / "locked-backup")
    store = filled(tmp_path / "store")
    before = tree(tmp_path / "store")
    with pytest.raises(NewerVersion):
        store.restore(tmp_path / "new-backup")
    with pytest.raises(WrongPassword):
        store.restore(tmp_path / "locked-backup")
    assert tree(tmp_path / "store") == before


def test_damaged_items_and_links_are_left_out_and_reported(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    flip(tmp_path / "store/sessions/a.json")
    (tmp_path / "store/sessions/link.json").symlink_to("b.json")
    seen: list[ErrorInfo] = []
    store.on_error(seen.append)
    store.backup(tmp_path / "backup")
    assert len(seen) == 2
    assert set(read_manifest(tmp_path / "backup").files) == {
        "sessions/b.json",
        "conversations/c.json",
        "focus/f.json",
    }
    assert open_store(tmp_path / "other").restore(tmp_path / "backup") == 3


@pytest.mark.parametrize("place", ["inside", ".journal", "sessions/q.json", "link/sessions/q"])
def test_a_backup_does_not_go_into_the_store_itself(tmp_path: Path, place: str) -> None:
    """Taken for an item it would be set aside, and whatever destroys the store destroys it."""
    store = filled(tmp_path / "store")
    (tmp_path / "store/link").symlink_to("../store")
    before = tree(tmp_path / "store")
    with pytest.raises(BackupError, match="inside the store"):
        store.backup(tmp_path / "store" / place)
    with pytest.raises(BackupError, match="inside the store"):
        BackupSchedule(store, tmp_path / "store" / place)
    assert tree(tmp_path / "store") == before


def test_a_full_disk_leaves_no_backup_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "store")
    (tmp_path / "backups").mkdir()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(StorageError):
            store.backup(tmp_path / "backups/one")
    assert os.listdir(tmp_path / "backups") == [".backup.lock"]


# Differential backups


def test_a_differential_backup_holds_what_changed_and_restores_all(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    store.backup(tmp_path / "full")
    store.save(session("a", "changed"))
    store.delete(Session, "b")
    store.save(session("n", "new"))
    expected = everything(store)
    store.backup(tmp_path / "diff", base=tmp_path / "full")
    assert sorted(tree(tmp_path / "diff/files")) == ["sessions/a.json", "sessions/n.json"]
    assert not read_manifest(tmp_path / "diff").is_full
    store.clear()
    assert store.restore(tmp_path / "diff") == 4
    assert everything(store) == expected


def test_a_differential_backup_needs_its_very_base(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    store.backup(tmp_path / "full")
    store.backup(tmp_path / "twin")
    store.backup(tmp_path / "diff", base=tmp_path / "full")
    expected = everything(store)
    (tmp_path / "full").rename(tmp_path / "moved")
    with pytest.raises(BackupError, match="say where"):
        store.restore(tmp_path / "diff")
    with pytest.raises(BackupError, match="another backup"):
        store.restore(tmp_path / "diff", base=tmp_path / "twin")
    store.clear()
    store.restore(tmp_path / "diff", base=tmp_path / "moved")
    assert everything(store) == expected
    flip(tmp_path / "moved/files/sessions/a.json")
    with pytest.raises(IntegrityError):
        read_backup(tmp_path / "diff", tmp_path / "moved")
    with pytest.raises(BackupError, match="full"):
        store.backup(tmp_path / "second", base=tmp_path / "diff")
    with pytest.raises(BackupError, match="no backup"):
        store.backup(tmp_path / "second", base=tmp_path / "nothing")
    assert not (tmp_path / "second").exists()


# Dated backups


def scheduled(tmp_path: Path, **options: int) -> tuple[FileStore, BackupSchedule, ManualClock]:
    clock = ManualClock(NOON)
    store = FileStore(tmp_path / "store", clock=clock)
    store.save(session("a", "0"))
    schedule = BackupSchedule(store, tmp_path / "dated", clock=clock, **options)
    return store, schedule, clock


def names(schedule: BackupSchedule) -> list[str]:
    return [path.name for path in schedule.backups()]


def test_dated_backups_beat_and_are_thinned_out(tmp_path: Path) -> None:
    _store, schedule, clock = scheduled(tmp_path, keep=3)
    scheduler = ManualScheduler(clock)
    handle = schedule.start(scheduler, 24 * 3600)
    scheduler.advance(5 * 24 * 3600)
    assert names(schedule) == [
        "20250304T120000Z-full",
        "20250305T120000Z-full",
        "20250306T120000Z-full",
    ]
    handle.cancel()
    assert scheduler.advance(10 * 24 * 3600) == 0


def test_a_base_is_kept_as_long_as_it_is_needed(tmp_path: Path) -> None:
    store, schedule, clock = scheduled(tmp_path, keep=2, full_every=3)
    states = {}
    for number in range(7):
        store.save(session("a", str(number)))
        states[schedule.run_now().name] = str(number)
        clock.advance(3600)
        for path in schedule.backups():  # every one that is left can be restored
            other = open_store(tmp_path / "other")
            other.restore(path)
            assert other.load(Session, "a").title == states[path.name]
    kinds = [name.rpartition("-")[2] for name in names(schedule)]
    assert kinds == ["full", "diff", "full"]


def test_two_in_one_second_and_a_clock_set_back(tmp_path: Path) -> None:
    _store, schedule, clock = scheduled(tmp_path, keep=2)
    first, second = schedule.run_now(), schedule.run_now()
    assert [first.name, second.name] == ["20250301T120000Z-full", "20250301T120000Z-2-full"]
    clock.set(NOON - timedelta(days=400))
    third = schedule.run_now()
    assert third in schedule.backups()  # the newest made is kept, whatever its date says


def test_a_failing_scheduled_backup_is_reported_and_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, schedule, clock = scheduled(tmp_path, keep=1)
    told: list[PersistenceError] = []
    telling = BackupSchedule(store, tmp_path / "dated", keep=1, clock=clock, on_error=told.append)
    schedule.run_now()
    before = names(schedule)
    scheduler = ManualScheduler(clock)
    schedule.start(scheduler, 60)
    telling.start(scheduler, 60)
    seen: list[ErrorInfo] = []
    store.on_error(seen.append)

    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    for call in ("write", "listdir"):  # in the store's part and in the schedule's own
        with monkeypatch.context() as patched:
            patched.setattr(os, call, refuse)
            scheduler.advance(60)
    assert names(schedule) == before
    assert [type(error) for error in told] == [StorageError] * 2
    assert caplog.text.count("scheduled backup") == 2
    assert len(seen) == 2  # those of the store's part


def test_errors_inside_a_restore_are_reported_once(tmp_path: Path) -> None:
    locked = open_store(tmp_path / "locked", cipher=Cipher(b"k" * 32))
    locked.save(session())
    locked.backup(tmp_path / "backup")
    store = filled(tmp_path / "store")
    seen: list[ErrorInfo] = []
    store.on_error(seen.append)
    with pytest.raises(WrongPassword):
        store.restore(tmp_path / "backup")
    assert len(seen) == 1


def test_a_kill_while_thinning_out_leaves_only_whole_backups(tmp_path: Path) -> None:
    def make() -> Callable[[], object]:
        shutil.rmtree(tmp_path, ignore_errors=True)
        tmp_path.mkdir()
        _, schedule, clock = scheduled(tmp_path, keep=1)
        schedule.run_now()
        clock.advance(60)
        return schedule.run_now

    def after() -> None:
        store = open_store(tmp_path / "store")
        schedule = BackupSchedule(store, tmp_path / "dated", keep=1, clock=ManualClock(NOON))
        assert len(schedule.backups()) >= 1
        for path in schedule.backups():
            read_backup(path)
        schedule.run_now()
        left = {path.name for path in (tmp_path / "dated").iterdir()}
        assert left == {".lock", ".backup.lock", *names(schedule)}

    each_kill_point(make, after)


def test_left_over_directories_of_crashed_runs_go(tmp_path: Path) -> None:
    _store, schedule, _clock = scheduled(tmp_path)
    (tmp_path / "dated" / temporary_name("x")).mkdir()
    schedule.run_now()
    assert sorted(os.listdir(tmp_path / "dated")) == [
        ".backup.lock", ".lock", "20250301T120000Z-full",
    ]  # fmt: skip


@pytest.mark.parametrize("option", ["keep", "full_every"])
def test_impossible_schedules_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(ValidationError, match=option):
        scheduled(tmp_path, **{option: 0})
