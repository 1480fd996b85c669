"""The vault: nothing in the clear, each error its own, and one password at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.reference.cipher import KdfCost
from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.conversation_json import JsonConversations
from pytest_statepersist.reference.conversations import (
    Conversations,
    delete_all_data,
    export_all_data,
)
from pytest_statepersist.reference.errors import (
    ConflictError,
    DamagedData,
    DamagedHeader,
    IntegrityError,
    NewerVersion,
    NotFound,
    StorageError,
    ValidationError,
    WrongPassword,
)
from pytest_statepersist.reference.vault import Category, Vault
from pytest_statepersist.reference.vault_keys import Pbkdf2Cost, VaultHeader, _checksum
from tests.reference.kill_points import each_kill_point, tree

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "vault"
ROOT = Path(__file__).resolve().parents[2]
START = datetime(2025, 6, 1, 12, tzinfo=UTC)
TINY = KdfCost(memory_kib=8, iterations=1, lanes=1)
CANARY = "canary-3b1f-in-the-clear"


@pytest.fixture(autouse=True)
def no_real_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here processes die and disks refuse, but the power stays on: a sync may cost nothing."""
    monkeypatch.setattr(os, "fsync", os.fstat)


def vault_at(path: Path, password: str = "old", **options: Any) -> Vault:
    return Vault(path, password=password, cost=TINY, **{"clock": ManualClock(START), **options})


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return vault_at(tmp_path / "vault")


# -- entries -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["text ü 🎉", 150000, 1.5, None, True, [], {"a": [1, {"b": None}]}, "x" * 100_000]
)
def test_a_value_comes_back(vault: Vault, value: Any) -> None:
    vault.store("key", value)
    again = vault_at(vault.path)
    assert again.retrieve("key") == value
    assert type(again.retrieve("key")) is type(value)


def test_an_entry_can_be_replaced_and_deleted(vault: Vault) -> None:
    vault.store("goal", "first")
    vault.clock.advance(60)  # type: ignore[attr-defined]
    vault.store("goal", "second", category=Category.HEALTH)
    (info,) = vault.list()
    assert (info.created_at, info.updated_at) == (START, START + timedelta(seconds=60))
    assert vault.retrieve("goal") == "second"
    assert len(list(vault.path.glob("*.vault"))) == 1  # the old file is gone
    assert "goal" in vault
    vault.delete("goal")
    assert "goal" not in vault
    assert list(vault.path.glob("*.vault")) == []
    for call in (vault.retrieve, vault.delete):
        with pytest.raises(NotFound, match="goal"):
            call("goal")
    assert vault_at(vault.path).list() == ()


def test_lists_and_searches(vault: Vault) -> None:
    vault.store("insight", {"text": "Focus beats MULTITASKING"}, category=Category.KNOWLEDGE,
                tags=["Productivity", "2024"])  # fmt: skip
    vault.store("bank", "PIN 1234", category=Category.FINANCE)
    vault.store("notes", ["about productivity"])

    def keys(infos: Any) -> list[str]:
        return [info.key for info in infos]

    assert keys(vault.list()) == ["bank", "insight", "notes"]
    assert keys(vault.list(category=Category.FINANCE)) == ["bank"]
    assert keys(vault.list(tag="2024")) == ["insight"]
    assert vault.list(tag="2024")[0].tags == ("Productivity", "2024")
    assert keys(vault.search("productivity")) == ["insight"]
    assert keys(vault.search("productivity", in_values=True)) == ["insight", "notes"]
    assert keys(vault.search("multitask", in_values=True)) == ["insight"]
    assert keys(vault.search("1234")) == []
    assert keys(vault.search("1234", in_values=True)) == ["bank"]
    assert keys(vault.search("FINANCE")) == ["bank"]
    assert keys(vault.search("BANK")) == ["bank"]


@settings(max_examples=20, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["store", "delete", "reopen", "password"]),
            st.text(st.characters(codec="utf-8"), min_size=1, max_size=4) | st.just("a"),
            st.integers(),
        ),
        max_size=12,
    )
)
def test_the_vault_is_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, int]]
) -> None:
    path = tmp_path_factory.mktemp("v") / "vault"
    password, model, vault = "old", dict[str, int](), vault_at(path)
    for what, key, value in steps:
        if what == "store":
            vault.store(key, value)
            model[key] = value
        elif what == "delete" and key in model:
            vault.delete(key)
            del model[key]
        elif what == "reopen":
            vault = vault_at(path, password)
        elif what == "password":
            password = f"password {value}"
            vault.change_password(password, cost=TINY)
    vault = vault_at(path, password)
    assert {info.key: vault.retrieve(info.key) for info in vault.list()} == model
    assert len(list(path.glob("*.vault"))) == len(model)


# -- what shows --------------------------------------------------------------------------


def test_nothing_is_in_the_clear_and_names_reveal_nothing(tmp_path: Path) -> None:
    vault = vault_at(tmp_path / "vault", "password-" + CANARY)
    vault.store(f"key-{CANARY}", {CANARY: CANARY}, category=Category.HEALTH, tags=[CANARY])
    for name, data in tree(tmp_path).items():
        assert CANARY.encode() not in data, name
        assert b"health" not in data, name
        assert CANARY not in name
    names = [path.name for path in vault.path.glob("*.vault")]
    vault.store(f"key-{CANARY}", 1)
    other = vault_at(tmp_path / "other")
    other.store(f"key-{CANARY}", 1)
    names += [path.name for path in (*vault.path.glob("*.vault"), *other.path.glob("*.vault"))]
    assert len(set(names)) == 3  # the same key, and never the same name
    assert all(len(name) == len("x" * 32 + ".vault") for name in names)


def test_no_plaintext_at_any_kill_point(tmp_path: Path) -> None:
    path = tmp_path / "vault"
    vault_at(path).store("a", CANARY)

    def after() -> None:
        for name, data in tree(tmp_path).items():
            assert CANARY.encode() not in data, name

    each_kill_point(lambda: lambda: vault_at(path).store(CANARY, CANARY, tags=[CANARY]), after)


def test_files_are_private_from_the_start(vault: Vault) -> None:
    vault.store("a", 1)
    assert vault.path.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in vault.path.iterdir()} == {0o600}


# -- the three errors, and the header ----------------------------------------------------


def test_missing_damaged_and_wrong_are_three_errors(vault: Vault) -> None:
    vault.store("whole", 1)
    vault.store("hurt", 2)
    with pytest.raises(NotFound):
        vault.retrieve("missing")
    index = vault._index()
    path = vault.path / index.entries["hurt"].file
    raw = path.read_bytes()
    for position in range(0, len(raw), 7):  # wherever it is damaged, the header of it included
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
        with pytest.raises(IntegrityError, match="entry is damaged"):
            vault.retrieve("hurt")
    for wrong in (b"", raw[:-1], raw + b"x", bytes(len(raw))):
        path.write_bytes(wrong)
        with pytest.raises(DamagedData):
            vault.retrieve("hurt")
    assert vault.retrieve("whole") == 1
    with pytest.raises(DamagedData, match="entry is damaged"):
        vault.search("x", in_values=True)
    assert [info.key for info in vault.search("hurt")] == ["hurt"]
    path.unlink()
    with pytest.raises(DamagedData, match="gone"):
        vault.retrieve("hurt")
    with pytest.raises(WrongPassword, match="wrong password") as caught:
        vault_at(vault.path, "guess")
    assert not isinstance(caught.value, DamagedData)
    vault.delete("hurt")  # a damaged entry can be let go
    assert [info.key for info in vault.list()] == ["whole"]


def test_entries_cannot_be_exchanged(vault: Vault) -> None:
    vault.store("a", 1)
    vault.store("b", 2)
    entries = vault._index().entries
    first, second = (vault.path / entries[key].file for key in "ab")
    shutil.copy(first, second)
    with pytest.raises(IntegrityError):
        vault.retrieve("b")


def test_an_entry_of_another_vault_does_not_open(vault: Vault, tmp_path: Path) -> None:
    other = Vault(tmp_path / "other", key=None, password="old", cost=TINY)
    vault.store("a", 1)
    other.store("a", 2)
    theirs, ours = (next(item.path.glob("*.vault")) for item in (other, vault))
    shutil.copy(theirs, ours)
    with pytest.raises(IntegrityError):
        vault.retrieve("a")


@pytest.mark.parametrize("field", ["salt", "check", "wrappedKey", "kdf", "vaultId", "checksum"])
def test_a_damaged_header_says_wrong_password_or_damaged_header(vault: Vault, field: str) -> None:
    path = vault.path / "vault.json"
    plain = json.loads(path.read_bytes())
    if field == "kdf":
        plain["kdf"]["iterations"] = 2
    else:
        text = plain[field]
        plain[field] = ("A" if text[0] != "A" else "B") + text[1:]
    path.write_text(json.dumps(plain))
    if field == "checksum":  # all that matters is whole, and authenticates
        assert vault_at(vault.path).list() == ()
        return
    with pytest.raises(DamagedHeader, match="wrong password or damaged header") as caught:
        vault_at(vault.path)
    assert isinstance(caught.value, WrongPassword)
    assert isinstance(caught.value, DamagedData)


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_no_changed_byte_of_the_header_goes_unnoticed(position: int, flip: int) -> None:
    data_key = bytes(range(32))
    raw = bytearray(VaultHeader.create("ab" * 16, data_key, "old", TINY).to_bytes())
    raw[position % len(raw)] ^= flip
    try:
        found = VaultHeader.from_bytes(bytes(raw), "header").unlock("old", "header")
    except DamagedHeader:
        return
    assert found == data_key  # it was white space, or the checksum itself


@pytest.mark.parametrize(
    "kdf",
    [
        {"name": "argon2id", "memoryKib": 1 << 30, "iterations": 1, "lanes": 1},
        {"name": "argon2id", "memoryKib": 64, "iterations": 1 << 20, "lanes": 1},
        {"name": "argon2id", "memoryKib": "64", "iterations": 1, "lanes": 1},
        {"name": "pbkdf2-hmac-sha256", "iterations": 10**12},
        {"name": "pbkdf2-hmac-sha256", "iterations": 0},
        {"name": "md5"},
        {},
    ],
)
def test_a_header_cannot_ask_for_the_impossible(vault: Vault, kdf: dict[str, Any]) -> None:
    path = vault.path / "vault.json"
    plain = json.loads(path.read_bytes())
    plain["kdf"] = kdf
    del plain["checksum"]
    path.write_text(json.dumps({**plain, "checksum": _checksum(plain)}))
    with pytest.raises(DamagedHeader, match="cannot be read"):
        vault_at(vault.path)


def test_a_newer_header_is_refused_untouched(vault: Vault) -> None:
    path = vault.path / "vault.json"
    plain = json.loads(path.read_bytes())
    plain["version"] = 2
    del plain["checksum"]
    path.write_text(json.dumps({**plain, "checksum": _checksum(plain)}))
    before = tree(vault.path)
    with pytest.raises(NewerVersion, match="version 2"):
        vault_at(vault.path)
    assert tree(vault.path) == before


def test_entries_without_a_header_are_not_taken_for_a_new_vault(vault: Vault) -> None:
    vault.store("a", 1)
    key = vault.export_key()
    (vault.path / "vault.json").unlink()
    with pytest.raises(DamagedData, match="header"):
        vault_at(vault.path)
    rescued = Vault.import_key(vault.path, key, password="new", cost=TINY)
    assert rescued.retrieve("a") == 1
    assert vault_at(vault.path, "new").retrieve("a") == 1


# -- the index ---------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["gone", "empty", "flipped", "old key"])
def test_a_damaged_index_is_said_and_can_be_made_anew(
    vault: Vault, tmp_path: Path, damage: str
) -> None:
    vault.store("a", 1, tags=["x"])
    vault.store("a", 2, tags=["y"])
    vault.store("b", 3)
    vault.store("hurt", 4)
    index = vault.path / ".vault_index.enc"
    raw = index.read_bytes()
    hurt = vault.path / vault._index().entries["hurt"].file
    hurt.write_bytes(b"rubbish")
    if damage == "gone":
        index.unlink()
    else:
        other = vault_at(tmp_path / "other").path / ".vault_index.enc"
        index.write_bytes(
            {
                "empty": b"",
                "flipped": raw[:-1] + bytes([raw[-1] ^ 1]),
                "old key": other.read_bytes(),
            }[damage]
        )
    before = tree(vault.path)
    with pytest.raises(DamagedData, match="rebuild_index"):
        vault_at(vault.path)
    assert tree(vault.path) == before
    again = vault_at(vault.path, rebuild_index=True)
    assert [(info.key, info.tags) for info in again.list()] == [("a", ("y",)), ("b", ())]
    assert (again.retrieve("a"), again.retrieve("b")) == (2, 3)
    assert hurt.with_name(hurt.name + ".damaged").read_bytes() == b"rubbish"  # never deleted
    again.store("a", 5)
    assert vault_at(vault.path).retrieve("a") == 5
    assert hurt.with_name(hurt.name + ".damaged").exists()
    again.delete_all()
    assert list(vault.path.iterdir()) == []


def test_left_over_files_go_when_the_vault_is_opened(vault: Vault) -> None:
    vault.store("a", 1)
    (vault.path / ("0" * 32 + ".vault")).write_bytes(b"of an interrupted store")
    (vault.path / ".vault_index.enc.0123456789abcdef.tmp~").write_bytes(b"half")
    (vault.path / "..vault_index.enc.0123456789abcdef.tmp~").write_bytes(b"half")
    (vault.path / "mine.txt").write_text("not the vault's")
    vault_at(vault.path)
    left = {path.name for path in vault.path.iterdir()}
    assert left == {"vault.json", ".vault_index.enc", "mine.txt", vault._index().entries["a"].file}


# -- passwords and keys ------------------------------------------------------------------


def test_change_password(vault: Vault) -> None:
    vault.store("a", 1)
    vault.change_password("new", current="old", cost=TINY)
    with pytest.raises(WrongPassword):
        vault_at(vault.path, "old")
    assert vault_at(vault.path, "new").retrieve("a") == 1
    assert vault.retrieve("a") == 1  # an open vault stays open
    before = tree(vault.path)
    with pytest.raises(WrongPassword):
        vault.change_password("newer", current="guess")
    with pytest.raises(ValidationError, match="password"):
        vault.change_password("")
    assert tree(vault.path) == before


def test_passwords_are_the_same_however_accents_are_composed(tmp_path: Path) -> None:
    vault_at(tmp_path / "v", "caf\u00e9").store("a", 1)
    assert vault_at(tmp_path / "v", "cafe\u0301").retrieve("a") == 1


def test_a_killed_change_of_password_leaves_exactly_one_that_opens_everything(
    tmp_path: Path,
) -> None:
    path = tmp_path / "vault"
    opened = set()

    def make() -> Callable[[], object]:
        shutil.rmtree(path, ignore_errors=True)
        vault = vault_at(path)
        for n in range(3):
            vault.store(f"k{n}", n)
        return lambda: vault.change_password("new", cost=TINY)

    def after() -> None:
        works = []
        for password in ("old", "new"):
            try:
                vault = vault_at(path, password)
            except WrongPassword:
                continue
            works.append(password)
            assert [vault.retrieve(f"k{n}") for n in range(3)] == [0, 1, 2]
        assert len(works) == 1
        opened.add(works[0])

    assert each_kill_point(make, after) > 4
    assert opened == {"old", "new"}


@pytest.mark.parametrize(
    ("change", "outcomes"),
    [
        (lambda vault: vault.store("a", "new"), [("old", 1), ("new", 1)]),
        (lambda vault: vault.store("c", "new"), [("old", 1), ("old", 1, "new")]),
        (lambda vault: vault.delete("a"), [("old", 1), (1,)]),
        (lambda vault: vault.delete_all(), [("old", 1), ()]),
    ],
    ids=["replace", "add", "delete", "delete_all"],
)
def test_a_killed_change_is_whole_or_not_at_all(
    tmp_path: Path, change: Callable[[Vault], None], outcomes: list[tuple[Any, ...]]
) -> None:
    path = tmp_path / "vault"
    seen = set()

    def make() -> Callable[[], object]:
        shutil.rmtree(path, ignore_errors=True)
        vault = vault_at(path)
        vault.store("a", "old")
        vault.store("b", 1)
        return lambda: change(vault)

    def after() -> None:
        vault = vault_at(path)
        seen.add(tuple(vault.retrieve(info.key) for info in vault.list()))
        assert len(list(path.glob("*.vault"))) == len(vault.list())
        assert list(path.glob(".*tmp~")) == []

    each_kill_point(make, after)
    assert seen == set(outcomes)


def test_a_killed_creation_can_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "vault"

    def make() -> Callable[[], object]:
        shutil.rmtree(path, ignore_errors=True)
        return lambda: vault_at(path)

    def after() -> None:
        vault = vault_at(path)
        vault.store("a", 1)
        assert vault_at(path).retrieve("a") == 1

    assert each_kill_point(make, after) > 8


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace", "unlink"])
@pytest.mark.parametrize("what", ["store", "delete", "change_password"])
def test_a_disk_that_fails_loses_nothing_and_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, what: str
) -> None:
    original = getattr(os, call)
    nth = 0
    while True:
        vault = vault_at(tmp_path / f"v{nth}")
        vault.store("a", "old")
        vault.store("b", 1)
        calls = 0

        def fail(*args: Any, nth: int = nth, **kwargs: Any) -> Any:
            nonlocal calls
            if call == "open" and not args[1] & os.O_CREAT:
                return original(*args, **kwargs)
            calls += 1
            if calls == nth + 1:
                raise OSError(28, "No space left on device")
            return original(*args, **kwargs)

        def change(vault: Vault = vault) -> None:
            if what == "store":
                vault.store("a", "new")
            elif what == "delete":
                vault.delete("a")
            else:
                vault.change_password("new", cost=TINY)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            try:
                change()
            except StorageError:
                assert vault.retrieve("b") == 1
                try:
                    change()
                except NotFound:
                    assert what == "delete"  # it had happened; only its last sync failed
        again = vault_at(vault.path, "new" if what == "change_password" else "old")
        assert again.retrieve("b") == 1
        assert ("a" in again) == (what != "delete")
        assert len(list(vault.path.glob("*.vault"))) == len(again.list())
        if calls <= nth:
            break
        nth += 1


def test_an_exported_key_opens_whatever_the_password_is(vault: Vault, tmp_path: Path) -> None:
    vault.store("a", 1)
    key = vault.export_key()
    vault.change_password("new", cost=TINY)
    assert Vault(vault.path, key=key).retrieve("a") == 1
    assert Vault(vault.path, key=f"  {key.upper()}\n").retrieve("a") == 1  # typed from paper
    moved = tmp_path / "other machine"
    shutil.copytree(vault.path, moved)
    assert Vault.import_key(moved, key, password="theirs", cost=TINY).retrieve("a") == 1
    assert vault_at(moved, "theirs").retrieve("a") == 1
    assert vault_at(vault.path, "new").retrieve("a") == 1


def test_a_wrong_key_is_refused(vault: Vault, tmp_path: Path) -> None:
    vault.store("a", 1)
    other = vault_at(tmp_path / "other")
    key = vault.export_key()
    with pytest.raises(WrongPassword, match="another vault"):
        Vault(vault.path, key=other.export_key())
    for wrong in ("", "rubbish", key[:-1], key.replace("1", "2", 1), key[:60] + key[61:]):
        with pytest.raises(WrongPassword):
            Vault(vault.path, key=wrong)
    with pytest.raises(WrongPassword):
        Vault.import_key(vault.path, other.export_key(), password="stolen", cost=TINY)
    assert vault_at(vault.path, "old").retrieve("a") == 1
    with pytest.raises(NotFound, match="no vault"):
        Vault(tmp_path / "empty", key=key)
    with pytest.raises(ValidationError):
        Vault(vault.path)
    with pytest.raises(ValidationError):
        Vault(vault.path, password="old", key=key)


def test_the_costs_that_are_written_are_todays() -> None:
    assert (KdfCost().memory_kib, KdfCost().iterations, KdfCost().lanes) == (65536, 3, 4)
    assert Pbkdf2Cost().iterations == 600_000
    with pytest.raises(ValidationError):
        Pbkdf2Cost(0)


def test_a_vault_keeps_the_derivation_it_was_made_with(tmp_path: Path) -> None:
    path = tmp_path / "v"
    vault = Vault(path, password="old", cost=Pbkdf2Cost(1000))
    vault.store("a", 1)
    header = VaultHeader.from_bytes((path / "vault.json").read_bytes(), "header")
    assert header.cost == Pbkdf2Cost(1000)
    again = vault_at(path)  # whatever cost is passed
    again.change_password("new", cost=Pbkdf2Cost(1200))
    header = VaultHeader.from_bytes((path / "vault.json").read_bytes(), "header")
    assert header.cost == Pbkdf2Cost(1200)


@pytest.mark.parametrize("name", ["v1-argon2id", "v1-pbkdf2-100000"])
def test_golden_vaults_open_for_ever(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    shutil.copytree(FIXTURES / name, path)
    vault = Vault(path, password="correct horse é")
    assert vault.retrieve("health_goal") == "Run a marathon"
    assert vault.retrieve("salary_target") == 150000
    assert vault.retrieve("insight")["ü"] == [1, None, True]
    (info,) = vault.list(category=Category.KNOWLEDGE)
    assert (info.key, info.tags) == ("insight", ("productivity", "2024"))
    assert info.created_at == datetime(2025, 1, 1, tzinfo=UTC)
    key = (path / "exported-key.txt").read_text()
    assert Vault(path, key=key).retrieve("salary_target") == 150000
    if name.endswith("100000"):
        header = VaultHeader.from_bytes((path / "vault.json").read_bytes(), "header")
        assert header.cost == Pbkdf2Cost(100_000)
    with pytest.raises(WrongPassword):
        Vault(path, password="correct horse e")


# -- deleting everything, two programs, conversations ------------------------------------


def test_delete_all_leaves_an_empty_directory(vault: Vault, tmp_path: Path) -> None:
    for n in range(3):
        vault.store(str(n), n)
    vault.delete_all()
    assert list(vault.path.iterdir()) == []
    with pytest.raises(NotFound, match="deleted"):
        vault.list()
    fresh = vault_at(vault.path, "quite another")
    assert fresh.list() == ()


def test_two_programs_share_a_vault(vault: Vault) -> None:
    program = textwrap.dedent("""
        import sys
        from pytest_statepersist.reference.vault import Vault
        vault = Vault(sys.argv[1], password="old")
        for n in range(8):
            vault.store(f"theirs {n}", n)
            vault.store("both", n)
    """)
    child = subprocess.Popen([sys.executable, "-c", program, str(vault.path)], cwd=ROOT)
    for n in range(8):
        vault.store(f"ours {n}", n)
        vault.store("both", -n)
        vault.retrieve("both")
    assert child.wait(30) == 0
    assert len(vault.list()) == 17
    assert all(vault.retrieve(info.key) is not None for info in vault.list())


def test_another_vault_in_its_place_is_not_mistaken_for_it(vault: Vault) -> None:
    vault.store("a", 1)
    shutil.rmtree(vault.path)
    vault_at(vault.path, "someone else").store("a", 2)
    with pytest.raises(WrongPassword, match="another vault"):
        vault.retrieve("a")


def test_bad_arguments_are_refused(vault: Vault) -> None:
    with pytest.raises(ValidationError, match="empty"):
        vault.store("", 1)
    with pytest.raises(ValidationError, match="tags"):
        vault.store("a", 1, tags="one")
    with pytest.raises(ValidationError):
        vault.store("a", {1: 2})
    with pytest.raises(ValidationError):
        vault.store("a\ud800", 1)
    with pytest.raises(ValidationError):
        vault.store("a", 1, category="unknown")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="password"):
        vault_at(vault.path, "")
    assert vault.list() == ()
    assert list(vault.path.glob("*.vault")) == []


def test_a_session_moves_into_the_vault_and_out_again(vault: Vault, tmp_path: Path) -> None:
    store = Conversations(JsonConversations(tmp_path / "c"))
    session = store.create_session("Secrets")
    session.send(CANARY)
    session.save()
    key = store.to_vault(session.id, vault, tags=["talk"])
    assert store.list_sessions() == ()
    for name, data in tree(tmp_path).items():
        assert CANARY.encode() not in data, name
    assert [info.key for info in vault.list(tag="talk")] == [key]
    back = store.from_vault(key, vault)
    assert back.messages == session.messages
    assert store.load_session(session.id).export() == session.export()


def test_a_session_saved_while_it_moves_is_not_lost(vault: Vault, tmp_path: Path) -> None:
    store = Conversations(JsonConversations(tmp_path / "c"))
    session = store.create_session("t")
    session.send("one")
    session.save()

    class Interfering(Vault):
        def __init__(self) -> None:
            """Open nothing."""

        def store(self, *args: Any, **options: Any) -> None:
            session.send("two")
            session.save()

    with pytest.raises(ConflictError, match="while it was being deleted"):
        store.to_vault(session.id, Interfering())
    assert len(store.load_session(session.id).messages) == 2


def test_everything_can_be_exported_and_deleted(vault: Vault, tmp_path: Path) -> None:
    store = Conversations(JsonConversations(tmp_path / "c"))
    session = store.create_session(CANARY)
    session.save()
    vault.store("insight", {"a": 1})
    everything = export_all_data(store, vault)
    assert everything["vault"] == {"insight": {"a": 1}}
    assert everything["conversations"]["sessions"][0]["title"] == CANARY
    delete_all_data(store, vault)
    assert list(vault.path.iterdir()) == list((tmp_path / "c").iterdir()) == []
