"""The file store: save, load, degrade gracefully, tell what happened, and stay incremental."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.reference.atomic import create_temporary
from pytest_statepersist.reference.cipher import Cipher
from pytest_statepersist.reference.clock import ManualClock, ManualScheduler
from pytest_statepersist.reference.errors import (
    ConflictError,
    DamagedData,
    IntegrityError,
    InvalidId,
    LockTimeout,
    NewerVersion,
    NotFound,
    PersistenceError,
    StorageError,
    ValidationError,
)
from pytest_statepersist.reference.file_store import FileStore
from pytest_statepersist.reference.ids import LONGEST_ID, check_id
from pytest_statepersist.reference.items import Conversation, Role, Session
from pytest_statepersist.reference.locking import StoreLock
from pytest_statepersist.reference.managers import FocusManager, MemoryManager, SessionManager
from pytest_statepersist.reference.serializers import (
    BinarySerializer,
    CompactJsonSerializer,
    Format,
    GzipJsonSerializer,
    JsonSerializer,
    ZstdJsonSerializer,
    detect_format,
)
from pytest_statepersist.reference.store_events import ErrorInfo, LoadInfo, SaveInfo
from pytest_statepersist.reference.store_schema import SCHEMA, Schema
from tests.reference.kill_points import each_kill_point, tree, without_syncing
from tests.reference.store_helpers import (
    CHEAP,
    NOON,
    chain,
    content,
    conversation,
    open_store,
    session,
)


@pytest.fixture(scope="module", autouse=True)
def _no_power_loss() -> Iterator[None]:
    with without_syncing():
        yield


def attached(store: FileStore) -> tuple[SessionManager, MemoryManager, FocusManager]:
    managers = SessionManager(), MemoryManager(), FocusManager()
    store.attach(sessions=managers[0], memory=managers[1], focus=managers[2])
    return managers


def errors_of(store: FileStore) -> list[ErrorInfo]:
    seen: list[ErrorInfo] = []
    store.on_error(seen.append)
    return seen


# Layout, identifiers, round trips


@pytest.mark.parametrize(
    ("item", "path"),
    [
        (session("a"), "sessions/a.json"),
        (conversation("b"), "conversations/b.json"),
        (chain("c"), "focus/c.json"),
    ],
)
def test_each_kind_has_its_directory_and_comes_back_equal(
    tmp_path: Path, item: Any, path: str
) -> None:
    store = open_store(tmp_path / "store")
    assert store.save(item) is True
    assert (tmp_path / "store" / path).is_file()
    assert open_store(tmp_path / "store").load(type(item), item.id) == item
    assert store.ids(type(item)) == (item.id,)
    store.delete(type(item), item.id)
    assert store.ids(type(item)) == ()
    with pytest.raises(NotFound):
        store.load(type(item), item.id)
    with pytest.raises(NotFound):
        store.delete(type(item), item.id)


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_everything_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = open_store(tmp_path / "store")
        store.save(session())
        store.backup(tmp_path / "backup")
    finally:
        os.umask(before)
    for root in (tmp_path / "store", tmp_path / "backup"):
        for path in (root, *root.rglob("*")):
            expected = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == expected, path


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"), ("a/b", "separator"), ("a\\b", "separator"), ("..", "leave"),
        ("../x", "separator"), ("..x", "leave"), (".", "leave"), (".x", "dot"), ("a\0b", "NUL"),
        ("x" * (LONGEST_ID + 1), "characters"), ("CON", "reserved"), ("nul.txt", "reserved"),
        ("com7", "reserved"), ("a.", "dot"), ("a b", "ASCII"), ("é", "ASCII"), ("a:b", "ASCII"),
        ("a\n", "ASCII"), (".journal", "dot"), (7, "int"), (None, "NoneType"),
    ],
)  # fmt: skip
def test_bad_ids_are_refused_with_the_reason(tmp_path: Path, name: Any, why: str) -> None:
    with pytest.raises(InvalidId, match=why):
        check_id(name)
    store = open_store(tmp_path / "store")
    before = tree(tmp_path)
    refusal = InvalidId if isinstance(name, str) else ValidationError
    with pytest.raises(refusal, match=why):
        store.load(Session, name)
    with pytest.raises(refusal, match=why):
        store.delete(Session, name)
    with pytest.raises(InvalidId, match=why):
        store.save(session().model_copy(update={"id": name}))
    assert tree(tmp_path) == before


@given(name=st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,126}[A-Za-z0-9]", fullmatch=True))
@settings(max_examples=50)
def test_accepted_ids_are_plain_file_names(name: str) -> None:
    try:
        check_id(name)
    except InvalidId as error:
        assert "reserved" in str(error)  # noqa: PT017 - the only legitimate reason here
    assert os.path.basename(name) == name


def test_a_bad_item_is_refused_with_its_field(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    before = tree(tmp_path)
    for update, field in (
        ({"title": 5}, "title"),
        ({"state": {"x": float("nan")}}, "state"),
        ({"title": "\ud800"}, "title"),
    ):
        with pytest.raises(PersistenceError, match=field):
            store.save(session().model_copy(update=update))
    assert tree(tmp_path) == before


# Formats


def test_files_of_any_format_load_whatever_the_setting_is(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    written = {
        "a": JsonSerializer(), "b": CompactJsonSerializer(), "c": GzipJsonSerializer(),
        "d": ZstdJsonSerializer(), "e": BinarySerializer(),
    }  # fmt: skip
    for name, serializer in written.items():
        store.serializer = serializer
        store.save(session(name))
        assert detect_format((tmp_path / f"sessions/{name}.json").read_bytes()) is serializer.format
    for serializer in written.values():
        store = open_store(tmp_path, serializer=serializer)
        assert [s.id for s in store.load_all().sessions] == list("abcde")
    store.serializer = GzipJsonSerializer()
    assert store.save(session("a")) is True  # same value, other format: rewritten


def test_large_items_are_compressed_by_default(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.save(conversation("small", 2))
    store.save(conversation("large", 1000))
    small = (tmp_path / "conversations/small.json").read_bytes()
    large = (tmp_path / "conversations/large.json").read_bytes()
    assert detect_format(small) is Format.JSON
    assert detect_format(large) is Format.ZSTD_JSON
    assert len(large) < 20_000
    assert store.load(Conversation, "large") == conversation("large", 1000)


class ReversedSerializer:
    """A format of one's own."""

    format = "reversed"

    def dumps(self, value: object) -> bytes:
        return b"REV" + CompactJsonSerializer().dumps(value)[::-1]

    def loads(self, data: bytes) -> Any:
        if not data.startswith(b"REV"):
            raise DamagedData("not reversed")
        return CompactJsonSerializer().loads(data[3:][::-1])


def test_a_serializer_of_ones_own_can_be_plugged_in_and_out(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    infos: list[SaveInfo] = []
    store.on_save(infos.append)
    store.save(session("old"))
    store.serializer = ReversedSerializer()
    store.save(session("new"))
    assert infos[-1].format == "reversed"
    store.serializer = JsonSerializer()
    assert len(store.load_all().sessions) == 2
    reopened = open_store(tmp_path, readers=(ReversedSerializer(),))
    assert len(reopened.load_all().sessions) == 2


# Managers, save_all, load_all, clear


def test_managers_are_saved_and_filled_in(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    sessions, memory, focus = attached(store)
    made = sessions.create("first")
    sessions.set_state(made.id, step=3)
    talk = memory.start("talk")
    memory.say(talk.id, Role.USER, "hi")
    plan = focus.create_chain("plan")
    focus.push(plan.id, "one")
    focus.finish(plan.id, 0)
    report = store.save_all()
    assert len(report.written) == 3
    assert store.last_save_time == NOON

    again = open_store(tmp_path)
    others = attached(again)
    loaded = again.load_all()
    assert loaded.failed == ()
    for before, after in zip((sessions, memory, focus), others, strict=True):
        assert before.snapshot() == after.snapshot() != ()


def test_managers_refuse_what_is_not_there_or_there_already() -> None:
    sessions, focus = SessionManager(), FocusManager()
    sessions.create(session_id="a")
    with pytest.raises(ConflictError):
        sessions.create(session_id="a")
    with pytest.raises(NotFound):
        sessions.get("b")
    sessions.remove("a")
    assert len(sessions) == 0
    with pytest.raises(NotFound):
        focus.finish(focus.create_chain().id, 0)


def test_an_empty_store_and_one_without_managers_work(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert store.last_save_time is None
    assert store.save_all().written == ()
    assert content(store.load_all()) == {}
    assert store.clear() == 0


def test_saving_is_incremental(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    sessions, _, _ = attached(store)
    for name in "abc":
        sessions.put(session(name))
    assert len(store.save_all().written) == 3
    before = {p: p.stat().st_ino for p in (tmp_path / "sessions").iterdir()}
    sessions.put(session("b", "changed"))
    report = store.save_all()
    assert report.written == ("sessions/b.json",)
    assert report.unchanged == ("sessions/a.json", "sessions/c.json")
    after = {p: p.stat().st_ino for p in (tmp_path / "sessions").iterdir()}
    assert {p.name for p in before if before[p] != after[p]} == {"b.json"}
    fresh = open_store(tmp_path)
    assert fresh.save(session("a")) is False  # found out by reading


def test_incremental_saving_notices_what_another_process_wrote(tmp_path: Path) -> None:
    ours, theirs = open_store(tmp_path), open_store(tmp_path)
    ours.save(session("a", "mine"))
    theirs.save(session("a", "theirs"))
    assert ours.save(session("a", "mine")) is True
    assert theirs.load(Session, "a").title == "mine"
    ours.delete(Session, "a")
    assert theirs.save(session("a", "theirs")) is True
    assert ours.load(Session, "a").title == "theirs"


def test_a_file_that_only_looks_the_same_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two replacements within a tick of the clock can end with the first inode and time again."""
    ours, theirs = open_store(tmp_path), open_store(tmp_path)
    ours.save(session("a", "mine"))
    path, really = tmp_path / "sessions/a.json", os.stat
    looks = really(path)
    theirs.save(session("a", "them"))
    monkeypatch.setattr(
        os, "stat", lambda at, **how: looks if str(at) == str(path) else really(at, **how)
    )
    assert ours.save(session("a", "mine")) is True
    assert theirs.load(Session, "a").title == "mine"


def test_save_all_is_one_step(tmp_path: Path) -> None:
    root = tmp_path / "store"
    old = {f"sessions/{n}": session(n, "old") for n in "abc"}
    new = {f"sessions/{n}": session(n, "new") for n in "abcd"}
    seen: list[dict[str, object]] = []

    def make():  # type: ignore[no-untyped-def]
        store = open_store(root)
        store.clear()
        for item in old.values():
            store.save(item)
        manager = SessionManager()
        manager.adopt(new.values())
        store.attach(sessions=manager)
        return store.save_all

    def after() -> None:
        seen.append(content(open_store(root).load_all()))

    assert each_kill_point(make, after) > 20
    assert all(state in (old, new) for state in seen)
    assert seen[0] == old
    assert seen[-1] == new


def test_save_all_or_nothing_saves_nothing_where_one_item_cannot_be_saved(tmp_path: Path) -> None:
    newer = Schema(3, {2: lambda kind, data: data})
    open_store(tmp_path, schema=newer).save(session("a", "from the future"))
    store = open_store(tmp_path)
    sessions, _, _ = attached(store)
    sessions.put(session("a", "from the past"))
    sessions.put(session("b"))
    with pytest.raises(NewerVersion):
        store.save_all(or_nothing=True)
    assert store.ids(Session) == ("a",)
    assert len(store.save_all().failed) == 1
    assert store.ids(Session) == ("a", "b")


def test_clear_is_one_step_and_spares_what_was_set_aside(tmp_path: Path) -> None:
    root = tmp_path / "store"
    full = {f"sessions/{n}": session(n) for n in "abc"}
    seen = []

    def make():  # type: ignore[no-untyped-def]
        store = open_store(root)
        for item in full.values():
            store.save(item)
        return store.clear

    def after() -> None:
        seen.append(content(open_store(root).load_all()))

    each_kill_point(make, after)
    assert all(state in (full, {}) for state in seen)
    assert seen[-1] == {}
    store = open_store(root)
    (root / "sessions/x.json").write_bytes(b"?")
    store.load_all()
    store.clear()
    assert len(list((root / "sessions").iterdir())) == 1


# Graceful degradation


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:-5],
        lambda raw: raw.replace(b"work", b"w0rk"),
        lambda raw: b"\0" * len(raw),
        lambda raw: b"[]",
        lambda raw: b"{}",
        lambda raw: raw.replace(b'"s1"', b'"s2"'),
    ],
    ids=["empty", "cut", "changed", "zeros", "list", "object", "other-id"],
)
def test_a_damaged_item_is_reported_and_set_aside_and_the_others_load(
    tmp_path: Path, damage: Any
) -> None:
    store = open_store(tmp_path)
    store.save(session("s1"))
    store.save(session("s3"))
    path = tmp_path / "sessions/s1.json"
    bad = damage(path.read_bytes())
    path.write_bytes(bad)
    errors = errors_of(store)
    report = store.load_all()
    assert [s.id for s in report.sessions] == ["s3"]
    assert [info.path for info in report.failed] == [path]
    assert tuple(errors) == report.failed
    kept = report.failed[0].quarantined
    assert kept is not None
    assert kept.read_bytes() == bad  # never deleted
    assert not path.exists()
    assert store.load_all().failed == ()  # reported once
    with pytest.raises(NotFound, match=kept.name):
        store.load(Session, "s1")
    store.save(session("s1"))  # the name is free again
    assert store.load(Session, "s1") == session("s1")
    assert kept.exists()


def test_a_single_load_of_a_damaged_item_raises_and_sets_it_aside(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.save(session())
    path = tmp_path / "sessions/s1.json"
    path.write_bytes(path.read_bytes().replace(b"work", b"w0rk"))
    errors = errors_of(store)
    with pytest.raises(IntegrityError, match=r"sessions/s1\.json.*checksum"):
        store.load(Session, "s1")
    assert len(errors) == 1
    assert errors[0].quarantined is not None


def test_saving_over_a_damaged_file_keeps_the_damaged_bytes(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    (tmp_path / "sessions/s1.json").write_bytes(b"precious ruins")
    errors = errors_of(store)
    assert store.save(session()) is True
    assert errors[0].quarantined is not None
    assert errors[0].quarantined.read_bytes() == b"precious ruins"


def test_a_file_moved_to_another_kind_or_name_is_not_believed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.save(session("a"))
    raw = (tmp_path / "sessions/a.json").read_bytes()
    (tmp_path / "sessions/b.json").write_bytes(raw)
    (tmp_path / "focus/a.json").write_bytes(raw)
    report = store.load_all()
    assert [s.id for s in report.sessions] == ["a"]
    assert all(isinstance(info.error, IntegrityError) for info in report.failed)
    assert len(report.failed) == 2


def test_foreign_names_are_reported_or_ignored_but_not_touched(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    directory = tmp_path / "sessions"
    for name in ("notes.txt", ".hidden.json", "bad id.json"):
        (directory / name).write_bytes(b"x")
    report = store.load_all()
    assert [info.path.name for info in report.failed] == ["bad id.json"]
    assert len(list(directory.iterdir())) == 3
    store.clear()
    assert len(list(directory.iterdir())) == 3


def test_an_io_error_is_reported_and_the_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    store.save(session("a"))
    store.save(session("b"))
    really = os.read

    def failing(descriptor: int, count: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("a.json"):
            raise OSError(5, "Input/output error")
        return really(descriptor, count)

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc")
    with monkeypatch.context() as patched:
        patched.setattr(os, "read", failing)
        report = store.load_all()
    assert [s.id for s in report.sessions] == ["b"]
    assert isinstance(report.failed[0].error, StorageError)
    assert report.failed[0].quarantined is None
    assert store.load(Session, "a") == session("a")


def test_one_bad_item_does_not_stop_the_others_from_being_saved(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    sessions, _, _ = attached(store)
    sessions.put(session("good"))
    sessions.put(session("bad").model_copy(update={"title": 5}))
    sessions.put(session().model_copy(update={"id": "../evil"}))
    errors = errors_of(store)
    report = store.save_all()
    assert report.written == ("sessions/good.json",)
    assert [type(info.error) for info in report.failed] == [ValidationError, InvalidId]
    assert tuple(errors) == report.failed
    assert store.last_save_time is None  # not everything was saved
    assert not (tmp_path.parent / "evil.json").exists()


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_links_are_reported_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    store = open_store(tmp_path / "link")
    assert store.root == tmp_path / "real"
    secret = tmp_path / "secret"
    store.save(session("a"))
    secret.write_bytes((tmp_path / "real/sessions/a.json").read_bytes())
    (tmp_path / "real/sessions/b.json").symlink_to(secret)
    report = store.load_all()
    assert [s.id for s in report.sessions] == ["a"]
    assert "symbolic link" in str(report.failed[0].error)
    assert secret.exists()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/sessions").symlink_to(tmp_path / "real/sessions")
    with pytest.raises(ValidationError, match="symbolic link"):
        open_store(tmp_path / "bad")


def test_left_over_temporaries_go_at_open_and_are_never_data(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.save(session())
    create_temporary(tmp_path / "sessions/x.json", b"half")
    assert store.ids(Session) == ("s1",)
    open_store(tmp_path)
    assert [p.name for p in (tmp_path / "sessions").iterdir()] == ["s1.json"]


# Schema versions


def test_old_versions_are_upgraded_on_load(tmp_path: Path) -> None:
    fixtures = Path(__file__).parents[2] / "fixtures/reference/file_store_v1"
    for path in fixtures.rglob("*.json"):
        target = tmp_path / path.relative_to(fixtures)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    before = tree(tmp_path)
    store = open_store(tmp_path)
    report = store.load_all()
    assert report.failed == ()
    assert report.sessions[0].title == "release"
    assert report.sessions[0].state == {"branch": "main"}
    assert [m.content for m in report.conversations[0].messages] == ["hi", "hello"]
    assert report.conversations[0].messages[0].created_at == NOON
    assert [i.status for i in report.focus_chains[0].items] == ["done", "open"]
    after = tree(tmp_path)
    assert {k: after[k] for k in before} == before  # loading writes nothing
    assert store.migrate() == 3
    assert content(open_store(tmp_path).load_all()) == content(report)
    assert store.migrate() == 0
    assert all(b'"version": 2' in v for k, v in tree(tmp_path).items() if k.endswith(".json"))


GOLDEN = Path(__file__).parents[2] / "fixtures/reference/file_store_v2"


def test_files_of_version_2_open_for_ever_in_every_format(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "plain", tmp_path / "plain")
    shutil.copytree(GOLDEN / "encrypted", tmp_path / "encrypted")
    plain = open_store(tmp_path / "plain").load_all()
    assert plain.failed == ()
    expected = [session(form.value) for form in Format]
    assert sorted(plain.sessions, key=lambda s: s.id) == sorted(expected, key=lambda s: s.id)
    for name, cipher in (
        ("raw-key", Cipher(bytes(range(32)))),
        ("passphrase", Cipher.from_passphrase("correct horse", cost=CHEAP)),
    ):
        store = open_store(tmp_path / "encrypted", cipher=cipher)
        assert store.load(Session, name) == session(name)


def test_newer_data_is_refused_and_left_untouched(tmp_path: Path) -> None:
    newer = Schema(3, {2: lambda kind, data: data})
    open_store(tmp_path, schema=newer).save(session("a", "from the future"))
    before = tree(tmp_path)
    store = open_store(tmp_path)
    errors = errors_of(store)
    with pytest.raises(NewerVersion, match="update"):
        store.load(Session, "a")
    with pytest.raises(NewerVersion):
        store.save(session("a", "from the past"))
    sessions, _, _ = attached(store)
    sessions.put(session("a", "from the past"))
    assert len(store.save_all().failed) == 1
    assert len(store.load_all().failed) == 1
    assert all(info.quarantined is None for info in errors)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("version", [0, -1])
def test_versions_that_never_were_are_damage(version: int) -> None:
    with pytest.raises(DamagedData, match="never was"):
        SCHEMA.upgrade("sessions", version, {})


def test_a_schema_must_have_all_its_steps() -> None:
    with pytest.raises(ValidationError, match="steps"):
        Schema(3, {1: lambda kind, data: data})


# Events


def test_listeners_get_the_metadata(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    saves: list[SaveInfo] = []
    loads: list[LoadInfo] = []
    store.on_save(saves.append)
    store.on_load(loads.append)
    sessions, _, _ = attached(store)
    store.save(session("a"))
    path = tmp_path / "sessions/a.json"
    size = path.stat().st_size
    assert saves == [SaveInfo(path, Format.JSON, size, NOON, 1)]
    store.load(Session, "a")
    assert loads == [LoadInfo(path, Format.JSON, size, NOON, 1)]
    sessions.put(session("b"))
    sessions.put(session("c"))
    store.save_all()
    assert saves[1] == SaveInfo(tmp_path, Format.JSON, 2 * size, NOON, 2)
    store.load_all()
    assert loads[1] == LoadInfo(tmp_path, Format.JSON, 3 * size, NOON, 3)
    store.save_all()
    assert len(saves) == 2  # nothing was written


def test_a_listener_may_use_the_store_and_may_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path)
    titles: list[str] = []

    def fail(info: SaveInfo) -> None:
        raise RuntimeError("listener")

    store.on_save(fail)
    store.on_save(lambda info: titles.append(store.load(Session, "s1").title))
    with caplog.at_level(logging.ERROR):
        store.save(session())
    assert titles == ["work"]
    assert "listener failed" in caplog.text


def test_errors_of_a_call_are_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    errors = errors_of(store)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(StorageError):
            store.save(session())
    assert len(errors) == 1
    assert errors[0].path == tmp_path / "sessions/s1.json"
    assert store.save(session()) is True


# Auto-save


def test_autosave_beats_in_virtual_time(tmp_path: Path) -> None:
    clock = ManualClock(NOON)
    scheduler = ManualScheduler(clock)
    store = FileStore(tmp_path, clock=clock, scheduler=scheduler)
    sessions, _, _ = attached(store)
    sessions.put(session("a"))
    store.enable_autosave(300)
    assert store.autosave_interval == 300
    scheduler.advance(299)
    assert store.last_save_time is None
    scheduler.advance(1)
    assert store.last_save_time == clock.now()
    assert store.load(Session, "a") == session("a")
    store.enable_autosave(10)  # changed at run time: one beat, not two
    sessions.put(session("b"))
    assert scheduler.advance(10) == 1
    assert store.ids(Session) == ("a", "b")
    store.disable_autosave()
    assert store.autosave_interval is None
    assert scheduler.advance(10_000) == 0
    with pytest.raises(ValidationError):
        store.enable_autosave(0)


def test_a_failing_autosave_is_reported_and_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock(NOON)
    scheduler = ManualScheduler(clock)
    store = FileStore(tmp_path, clock=clock, scheduler=scheduler)
    sessions, _, _ = attached(store)
    sessions.put(session())
    errors = errors_of(store)
    store.enable_autosave(10)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        scheduler.advance(10)
    assert [type(info.error) for info in errors] == [StorageError]
    with monkeypatch.context() as patched:
        patched.setattr(sessions, "snapshot", lambda: 1 / 0)
        scheduler.advance(10)
    assert [type(info.error) for info in errors][1:] == [ZeroDivisionError]
    scheduler.advance(10)
    assert store.load(Session, "s1") == session()


def test_an_autosave_that_cannot_get_the_lock_is_reported(tmp_path: Path) -> None:
    clock = ManualClock(NOON)
    scheduler = ManualScheduler(clock)
    store = FileStore(tmp_path, clock=clock, scheduler=scheduler, lock_timeout=0.02)
    errors = errors_of(store)
    store.enable_autosave(10)
    with StoreLock(tmp_path / ".lock"):
        scheduler.advance(10)
    assert [type(info.error) for info in errors] == [LockTimeout]
    scheduler.advance(10)
    assert store.last_save_time == clock.now()


def test_autosave_runs_in_a_background_thread(tmp_path: Path) -> None:
    saved = threading.Event()
    names: list[str] = []
    with FileStore(tmp_path) as store:
        sessions, _, _ = attached(store)
        sessions.put(session())

        def listen(info: SaveInfo) -> None:
            names.append(threading.current_thread().name)
            saved.set()

        store.on_save(listen)
        store.enable_autosave(0.01)
        assert saved.wait(10)
    assert names == ["reference-scheduler"]
    assert "reference-scheduler" not in [t.name for t in threading.enumerate()]
    assert store.last_save_time is not None


# Threads and processes


def test_many_threads_may_save_and_load(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for round_ in range(5):
                store.save(session(f"t{number}", str(round_)))
                assert store.load(Session, f"t{number}").title == str(round_)
                store.load_all()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(store.load_all().sessions) == 4


def test_many_processes_may_save(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from tests.reference.store_helpers import open_store, session\n"
        "store = open_store(__import__('pathlib').Path(sys.argv[1]))\n"
        "for n in range(10):\n"
        "    store.save(session(f'{sys.argv[2]}-{n}'))\n"
        "    store.save(session('shared', f'{sys.argv[2]}-{n}'))\n"
    )
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)], cwd=root)
        for n in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    report = open_store(tmp_path).load_all()
    assert report.failed == ()
    assert len(report.sessions) == 21


def test_a_held_lock_is_a_clear_error(tmp_path: Path) -> None:
    store = FileStore(tmp_path, lock_timeout=0.05)
    other = FileStore(tmp_path, lock_timeout=0.05)
    with store._lock, pytest.raises(LockTimeout, match="kept the lock"):
        other.save(session())


# A model: any sequence of operations behaves like a dictionary


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_behaves_like_a_dictionary(data: st.DataObject, tmp_path_factory: Any) -> None:
    root = tmp_path_factory.mktemp("store")
    store, model = open_store(root), {}
    names = st.sampled_from(["a", "b", "c"])
    for _ in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["save", "delete", "reopen", "format", "clear"]))
        name = data.draw(names)
        if action == "save":
            item = session(name, data.draw(st.sampled_from(["x", "y"])))
            written = store.save(item)
            assert written or model.get(name) == item  # skipped only if it was there
            model[name] = item
        elif action == "delete" and name in model:
            store.delete(Session, name)
            del model[name]
        elif action == "reopen":
            store = open_store(root)
        elif action == "format":
            store.serializer = data.draw(
                st.sampled_from([JsonSerializer(), GzipJsonSerializer(), BinarySerializer()])
            )
        elif action == "clear":
            assert store.clear() == len(model)
            model.clear()
        assert {s.id: s for s in store.load_all().sessions} == model
