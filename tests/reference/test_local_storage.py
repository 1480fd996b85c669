"""The key-value store: quota, schema, damage, export, and that a set is one durable step."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.reference.errors import (
    DamagedData,
    LockTimeout,
    NewerVersion,
    QuotaExceeded,
    StorageError,
    ValidationError,
)
from pytest_statepersist.reference.local_storage import DEFAULT_QUOTA, Damage, LocalStorage
from pytest_statepersist.reference.locking import StoreLock
from pytest_statepersist.reference.storage_keys import (
    AUTH_TOKEN,
    DEBUG_ENABLED,
    HELP_DISMISSED,
    KEYS,
    RECENT_COMMANDS,
    RECENT_SEARCHES,
    RECENT_SESSIONS,
    SETTINGS,
    THEME,
    TOUR_COMPLETED,
    UI,
    Key,
    KeyboardSettings,
    NotificationSettings,
    Settings,
    UiState,
)
from tests.reference.kill_points import each_kill_point


@pytest.fixture(autouse=True)
def no_real_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here processes die and disks refuse, but the power stays on: a sync may cost nothing."""
    monkeypatch.setattr(os, "fsync", os.fstat)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "state" / "local.storage")


def reopened(storage: LocalStorage, **options: Any) -> LocalStorage:
    return LocalStorage(storage.path, **options)


KNOWN: list[tuple[Key[Any], Any]] = [
    (
        SETTINGS,
        Settings(
            default_model="m-large",
            notifications=NotificationSettings(enabled=False),
            keyboard=KeyboardSettings(shortcuts={"send": "ctrl+enter"}),
        ),
    ),
    (THEME, "dark"),
    (UI, UiState(sidebar_collapsed=True, last_view="chat", panel_sizes={"left": 240.5})),
    (RECENT_SESSIONS, ["s1", "s2"]),
    (RECENT_SEARCHES, ["bern"]),
    (RECENT_COMMANDS, ["/help"]),
    (AUTH_TOKEN, "secret"),
    (TOUR_COMPLETED, True),
    (HELP_DISMISSED, ["intro"]),
    (DEBUG_ENABLED, True),
]


@pytest.mark.parametrize(("key", "value"), KNOWN, ids=lambda item: getattr(item, "name", ""))
def test_a_known_key_comes_back_typed(storage: LocalStorage, key: Key[Any], value: Any) -> None:
    assert storage.get(key) == key.default()
    storage.set(key, value)
    again = reopened(storage)
    assert again.get(key) == value
    assert type(again.get(key)) is type(value)
    assert json.loads(json.dumps(again.get(key.name))) == key.dump(value)


def test_every_known_key_is_tried_above() -> None:
    assert {key.name for key, _ in KNOWN} == set(KEYS) - {"crash.recovery"}


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=5,
        ),
        max_size=5,
    )
)
def test_any_json_comes_back(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("s") / "local", prefix="p")
    values = {f"my.{name}": value for name, value in values.items()}
    for name, value in values.items():
        storage.set(name, value)
    again = LocalStorage(storage.path, prefix="p")
    assert {name: again.get(name, "absent") for name in values} == values
    assert again.names() == tuple(sorted(values))


def test_remove_and_clear(storage: LocalStorage) -> None:
    storage.set("a", 1)
    storage.set("b", None)
    assert "b" in storage
    assert storage.get("b", "default") is None
    assert storage.remove("a")
    assert not storage.remove("a")
    assert storage.get("a") is None
    assert storage.get("a", 7) == 7
    storage.clear()
    assert reopened(storage).names() == ()


# -- quota -------------------------------------------------------------------------------


def test_the_quota_is_5_mb_unless_told() -> None:
    assert DEFAULT_QUOTA == 5 * 1024 * 1024


def test_the_quota_is_exact(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "s", prefix="p", quota=20)
    storage.set("name", "x" * 12)  # "p.name" + two quotes + 12 = 20 bytes
    assert storage.bytes_used == 20
    with pytest.raises(QuotaExceeded, match="21 bytes"):
        storage.set("name", "x" * 13)
    with pytest.raises(QuotaExceeded):
        storage.set("name", "ä" * 7)  # bytes count, not characters
    assert storage.get("name") == "x" * 12


def test_on_quota_the_histories_are_cut_to_ten_and_the_value_is_stored(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "s", quota=3000)
    storage.set(RECENT_SEARCHES, [f"search {n}" for n in range(60)])
    storage.set(RECENT_COMMANDS, [f"command {n}" for n in range(60)])
    storage.set(RECENT_SESSIONS, [f"{n}" for n in range(20)])
    storage.set("large", "x" * 1500)
    again = reopened(storage, quota=3000)
    assert again.get(RECENT_SEARCHES) == [f"search {n}" for n in range(10)]
    assert again.get(RECENT_COMMANDS) == [f"command {n}" for n in range(10)]
    assert len(again.get(RECENT_SESSIONS)) == 20  # only the two histories are cut
    assert again.get("large") == "x" * 1500


def test_when_cutting_is_not_enough_nothing_is_lost_at_all(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "s", quota=3000)
    storage.set(RECENT_SEARCHES, [f"search {n}" for n in range(60)])
    storage.set("kept", 1)
    before = storage.path.read_bytes()
    with pytest.raises(QuotaExceeded, match="nothing was changed"):
        storage.set("large", "x" * 5000)
    assert storage.path.read_bytes() == before
    assert len(storage.get(RECENT_SEARCHES)) == 60
    storage.set("small", "fits")


def test_the_history_being_set_is_not_cut(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "s", quota=1000)
    storage.set(RECENT_SEARCHES, [f"search {n}" for n in range(40)])
    with pytest.raises(QuotaExceeded):
        storage.set(RECENT_SEARCHES, [f"search {n}" for n in range(90)])
    assert len(storage.get(RECENT_SEARCHES)) == 40


def test_a_store_over_its_quota_can_still_shrink(tmp_path: Path) -> None:
    LocalStorage(tmp_path / "s").set("large", "x" * 1000)
    storage = LocalStorage(tmp_path / "s", quota=100)
    assert storage.remove("large")


# -- damage ------------------------------------------------------------------------------


def test_a_damaged_value_gives_the_default_and_costs_no_other(
    storage: LocalStorage, caplog: pytest.LogCaptureFixture
) -> None:
    storage.set(THEME, "dark")
    storage.set("a", [1, 2])
    storage.set("z", "last")
    raw = storage.path.read_bytes()
    storage.path.write_bytes(raw.replace(b"[1,2]", b"[1,3]"))
    again = reopened(storage)
    assert again.get("a", "default") == "default"
    assert again.get(THEME) == "dark"
    assert again.get("z") == "last"
    assert again.damage == Damage(lines=1, missing=0)
    assert "1 damaged" in caplog.text
    again.set("new", 1)  # writing keeps the damaged line
    assert b"[1,3]" in storage.path.read_bytes()
    assert reopened(storage).damage.lines == 1
    assert again.discard_damaged() == 1
    assert reopened(storage).damage == Damage(0, 0)
    assert b"[1,3]" not in storage.path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_one_changed_byte_never_gives_a_wrong_value(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("s") / "s")
    wanted = {"a": "alpha", "b": [1, 2, 3], "c": None}
    for name, content in wanted.items():
        storage.set(name, content)
    raw = bytearray(storage.path.read_bytes())
    raw[position % len(raw)] = value
    storage.path.write_bytes(raw)
    try:
        again = LocalStorage(storage.path)
    except (DamagedData, NewerVersion):
        return  # the first line: said, not guessed
    seen = {name: again.get(name, "default") for name in wanted}
    wrong = [name for name in wanted if seen[name] != wanted[name]]
    assert len(wrong) <= 2  # a line feed in the damage joins two lines
    assert all(seen[name] == "default" for name in wrong)
    assert not wrong or again.damage.lines + again.damage.missing > 0


def test_a_file_cut_short_is_noticed(storage: LocalStorage) -> None:
    for name in "abc":
        storage.set(name, name)
    lines = storage.path.read_bytes().splitlines(keepends=True)
    storage.path.write_bytes(b"".join(lines[:2]))
    again = reopened(storage)
    assert again.get("a") == "a"
    assert again.damage == Damage(lines=0, missing=2)


def test_a_value_against_its_schema_gives_the_default(storage: LocalStorage) -> None:
    storage.set("theme2", "pink")
    raw = storage.path.read_bytes()
    body = b'["sidepanel.theme","pink"]'
    storage.path.write_bytes(raw.splitlines()[0] + b"\n%08x %s\n" % (zlib.crc32(body), body))
    again = reopened(storage)
    assert again.get(THEME) == "system"
    assert again.get("theme", "light") == "light"
    again.set(THEME, "dark")
    assert again.get(THEME) == "dark"


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"{}", b'{"format":"other"}\n', b"\xff\n"])
def test_what_is_not_our_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s"
    path.write_bytes(content)
    with pytest.raises(DamagedData, match="first line"):
        LocalStorage(path)
    assert path.read_bytes() == content


# -- schema and versions -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "where"),
    [
        ("theme", "pink", "theme"),
        ("settings", {"version": 0}, "settings.version"),
        ("ui", {"panelSizes": {"left": "wide"}}, "ui.panelSizes.left"),
        ("recent.searches", "not a list", "recent.searches"),
        ("tour.completed", "maybe", "tour.completed"),
        ("free", {1: 2}, "$"),
        ("free", float("inf"), "$"),
        ("free", "\ud800", "$"),
    ],
)
def test_a_bad_value_is_refused_with_its_field(
    storage: LocalStorage, name: str, value: Any, where: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        storage.set(name, value)
    assert caught.value.field == where
    assert storage.names() == ()


def test_settings_of_a_newer_version_are_not_overwritten(storage: LocalStorage) -> None:
    storage.set("settings", {"version": 1, "defaultModel": "m", "fromSibling": True})
    assert storage.get("settings")["fromSibling"] is True  # unknown fields survive
    body = storage.path.read_bytes().splitlines()[1].split(b" ", 1)[1]
    newer = body.replace(b'"version":1', b'"version":2')
    header = storage.path.read_bytes().splitlines()[0]
    storage.path.write_bytes(header + b"\n%08x %s\n" % (zlib.crc32(newer), newer))
    with pytest.raises(NewerVersion, match="version 2"):
        storage.get(SETTINGS)
    with pytest.raises(NewerVersion):
        storage.set(SETTINGS, Settings())
    assert newer in storage.path.read_bytes()


def test_a_newer_file_is_refused_untouched(storage: LocalStorage) -> None:
    storage.set("a", 1)
    newer = storage.path.read_bytes().replace(b'"version":2', b'"version":3')
    storage.path.write_bytes(newer)
    with pytest.raises(NewerVersion, match="version 3"):
        reopened(storage)
    with pytest.raises(NewerVersion):
        storage.set("a", 2)
    assert storage.path.read_bytes() == newer


def test_version_1_kept_the_ui_in_entries_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(
        b'{"entries":3,"format":"local-storage","version":1}\n'
        b'c53d2a7e ["sidepanel.theme","dark"]\n'
        b'916789a8 ["sidepanel.ui.lastView","chat"]\n'
        b'55a6c78f ["sidepanel.ui.sidebarCollapsed",true]\n'
    )
    storage = LocalStorage(path)
    assert storage.damage == Damage(0, 0)
    assert storage.get(UI) == UiState(sidebar_collapsed=True, last_view="chat")
    assert storage.names() == ("theme", "ui")
    storage.set("a", 1)
    assert b'"version":2' in path.read_bytes()
    assert reopened(storage).get(UI).last_view == "chat"


# -- export and import -------------------------------------------------------------------


def filled(storage: LocalStorage) -> LocalStorage:
    for key, value in KNOWN:
        storage.set(key, value)
    storage.set("crash.recovery", {"timestamp": "now"})
    storage.set("own", [1])
    return storage


def test_an_export_has_everything_but_what_is_private(storage: LocalStorage) -> None:
    export = filled(storage).export_all()
    assert "secret" not in json.dumps(export)
    assert set(export) == {f"sidepanel.{key.name}" for key, _ in KNOWN if key is not AUTH_TOKEN} | {
        "sidepanel.own"
    }
    assert export["sidepanel.ui"]["panelSizes"] == {"left": 240.5}
    asked = storage.export_all(include_private=["auth.token"])
    assert asked["sidepanel.auth.token"] == "secret"
    with pytest.raises(ValidationError, match=r"auth\.tokens"):
        storage.export_all(include_private=["auth.tokens"])


def test_an_import_brings_an_export_back(storage: LocalStorage, tmp_path: Path) -> None:
    export = filled(storage).export_all()
    other = LocalStorage(tmp_path / "other")
    assert other.import_all({**export, "sidepanelx.a": 1, "foreign": 2}) == len(export)
    assert other.export_all() == export
    assert other.get(AUTH_TOKEN) is None


def test_an_import_is_all_or_nothing(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "s", quota=200)
    storage.set("a", 1)
    for bad in ({"sidepanel.b": 2, "sidepanel.theme": "pink"}, {"sidepanel.c": "x" * 300}):
        with pytest.raises((ValidationError, QuotaExceeded)):
            storage.import_all(bad)
        assert storage.names() == ("a",)
    assert storage.import_all({}) == 0
    for no_export in ([], None, "x", {5: 1}):
        with pytest.raises(ValidationError, match="data"):
            storage.import_all(no_export)  # type: ignore[arg-type]


# -- durability, errors, other processes -------------------------------------------------


def test_a_killed_set_leaves_the_old_or_the_new_value(tmp_path: Path) -> None:
    path = tmp_path / "s"

    def make() -> Callable[[], object]:
        for leftover in tmp_path.iterdir():
            leftover.unlink()
        storage = LocalStorage(path)
        storage.set("a", "old")
        return lambda: storage.set("a", "new")

    seen = set()

    def after() -> None:
        again = LocalStorage(path)
        seen.add(again.get("a"))
        again.set("b", 1)
        assert {entry.name for entry in tmp_path.iterdir()} == {"s", "s.lock"}

    assert each_kill_point(make, after) > 4
    assert seen == {"old", "new"}


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_an_error_of_the_disk_is_told_and_a_retry_works(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    storage.set("a", "old")
    original = getattr(os, call)

    def fail(*args: Any, **kwargs: Any) -> Any:
        if call == "open" and not args[1] & os.O_CREAT:
            return original(*args, **kwargs)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError, match="No space"):
            storage.set("a", "new")
    assert storage.get("a") == "old"
    storage.set("a", "new")
    assert reopened(storage).get("a") == "new"


def test_a_neighbour_in_the_same_directory_keeps_its_temporaries(tmp_path: Path) -> None:
    theirs = tmp_path / ".other.0123456789abcdef.tmp~"
    also_theirs = tmp_path / ".s.extra.0123456789abcdef.tmp~"
    ours = tmp_path / ".s.0123456789abcdef.tmp~"
    for path in (theirs, also_theirs, ours):
        path.write_bytes(b"half")
    LocalStorage(tmp_path / "s")
    assert theirs.exists()
    assert also_theirs.exists()
    assert not ours.exists()


def test_processes_do_not_lose_each_others_writes(storage: LocalStorage) -> None:
    program = textwrap.dedent("""
        import sys
        from pytest_statepersist.reference.local_storage import LocalStorage
        storage = LocalStorage(sys.argv[1])
        for n in range(15):
            storage.set(f"theirs.{n}", n)
    """)
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(storage.path)],
        cwd=Path(__file__).resolve().parents[2],
    )
    for n in range(15):
        storage.set(f"ours.{n}", n)
    assert child.wait(30) == 0
    assert len(storage.names()) == 30


def test_a_lock_that_is_held_gives_a_timeout(storage: LocalStorage) -> None:
    impatient = reopened(storage, timeout=0.05)
    with (
        StoreLock(storage.path.with_name("local.storage.lock")),
        pytest.raises(LockTimeout, match="lock"),
    ):
        impatient.set("a", 1)
    impatient.set("a", 1)


def test_the_file_is_private_from_the_start(storage: LocalStorage) -> None:
    storage.set("a", 1)
    assert storage.path.stat().st_mode & 0o777 == 0o600
    assert storage.path.parent.stat().st_mode & 0o777 == 0o700


def test_nonsense_names_are_refused(tmp_path: Path, storage: LocalStorage) -> None:
    with pytest.raises(ValidationError, match="prefix"):
        LocalStorage(tmp_path / "s", prefix="")
    with pytest.raises(ValidationError, match="empty"):
        storage.set("", 1)
    with pytest.raises(ValidationError):
        storage.set("\ud800", 1)
    for name in (5, b"a", ["a"], ("a",)):
        for use in (storage.get, storage.remove, lambda name: storage.set(name, 1)):
            with pytest.raises(ValidationError, match="name"):
                use(name)  # type: ignore[arg-type, operator]


def test_a_save_repeated_after_a_failed_sync_of_the_directory_syncs_it(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one had renamed already: nothing is left to write, and yet not all was done."""
    synced = []

    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            synced.append(descriptor)
            if len(synced) == 1:
                raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(StorageError):
        storage.set("a", 1)
    storage.set("a", 1)
    assert len(synced) == 2
    storage.set("a", 1)
    assert len(synced) == 2
