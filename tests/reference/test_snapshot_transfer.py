"""Export is one point in time without secrets; import is all or nothing and verified."""

from __future__ import annotations

import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pytest_statepersist.reference.cipher import Cipher
from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.component_registry import ComponentRecord, DirectoryRegistry
from pytest_statepersist.reference.errors import (
    DamagedData,
    IntegrityError,
    InvalidId,
    LockTimeout,
    NotFound,
    PersistenceError,
    StorageError,
    ValidationError,
    WrongPassword,
)
from pytest_statepersist.reference.snapshot_signing import sign
from pytest_statepersist.reference.snapshot_transfer import (
    ExportOptions,
    ImportOptions,
    export_state,
    import_state,
)
from pytest_statepersist.reference.state_snapshot import SnapshotMetadata, StateSnapshot
from tests.reference.kill_points import Killed, counting, each_kill_point, tree, without_syncing
from tests.reference.snapshot_helpers import (
    CANARY,
    POLICY,
    component,
    record,
    registry,
    snapshot,
    state,
)
from tests.reference.store_helpers import CHEAP


@pytest.fixture(scope="module", autouse=True)
def _no_power_loss() -> Iterator[None]:
    with without_syncing():
        yield


CLOCK = ManualClock(datetime(2025, 3, 1, 12, tzinfo=UTC))
WITH_BINARIES = ExportOptions(include_binaries=True)


def without_secrets(records: dict[str, ComponentRecord]) -> dict[str, ComponentRecord]:
    return {
        name: record(name, secrets={}, binary=r.binary, binary_sha256=r.binary_sha256)
        for name, r in records.items()
    }


# The registry


def test_the_registry_keeps_components(tmp_path: Path) -> None:
    made = registry(tmp_path / "r", "fetch", "time")
    assert made.ids() == ("fetch", "time")
    again = DirectoryRegistry(tmp_path / "r")
    found = again.get("fetch")
    assert (found.metadata, found.policy, found.binary, dict(found.secrets)) == (
        {"tools": ["get"], "note": None},
        POLICY,
        b"\0asm fetch",
        {"API_KEY": f"{CANARY}-fetch"},
    )
    again.register(record("fetch", policy=None, binary=None, secrets={}))
    assert again.get("fetch").policy is None
    assert again.get("fetch").binary is None
    again.remove("fetch")
    assert made.ids() == ("time",)
    assert not any("fetch" in name for name in tree(tmp_path / "r"))
    for action in (again.get, again.remove):
        with pytest.raises(NotFound):
            action("fetch")
        with pytest.raises(InvalidId):
            action("../x")


def test_the_registry_refuses_the_impossible_and_stays_as_it_was(tmp_path: Path) -> None:
    made = registry(tmp_path, "a")
    before = tree(tmp_path)
    for bad, error in (
        (record("../x"), InvalidId),
        (record("b", source_uri=""), ValidationError),
        (record("b", metadata={"x": object()}), ValidationError),
        (record("b", metadata={"x": float("nan")}), ValidationError),
        (record("b", binary_sha256="0" * 64), IntegrityError),
    ):
        with pytest.raises(error):
            made.apply([record("a", source_uri="u:new"), bad])
        assert tree(tmp_path) == before


def test_damage_in_the_registry_is_named(tmp_path: Path) -> None:
    made = registry(tmp_path, "a")
    original = tree(tmp_path)
    for place, data, error in (
        ("binaries/a.bin", b"evil", IntegrityError),
        ("components/a.json", b"{", DamagedData),
        ("components/a.json", b"{}", DamagedData),
        (
            "components/a.json",
            original["components/a.json"].replace(b'"a"', b'"b"'),
            IntegrityError,
        ),
        ("policies/a.yaml", None, DamagedData),
        ("policies/a.yaml", b"\xff", DamagedData),
        ("secrets/a.json", b"[]", DamagedData),
    ):
        path = tmp_path / place
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        with pytest.raises(error, match="a"):
            made.get("a")
        path.write_bytes(original[place])
    assert made.get("a")


def test_registry_secrets_can_be_encrypted_at_rest(tmp_path: Path) -> None:
    made = registry(tmp_path, "a", cipher=Cipher(b"k" * 32))
    assert made.get("a").secrets == {"API_KEY": f"{CANARY}-a"}
    assert not any(CANARY.encode() in data for data in tree(tmp_path).values())
    with pytest.raises(WrongPassword):
        DirectoryRegistry(tmp_path).get("a")


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_restored_policy_files_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        import_state(registry(tmp_path), snapshot())
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert (tmp_path / "policies/fetch.yaml").read_text() == POLICY.content


# Export


def test_exports_what_was_asked_for(tmp_path: Path) -> None:
    made = registry(tmp_path, "fetch", "time", "zip")
    everything = export_state(made, clock=CLOCK)
    assert [c.component_id for c in everything.components] == ["fetch", "time", "zip"]
    assert everything.created_at == 1740830400
    assert all(c.binary is None and c.secrets is None for c in everything.components)
    assert all(c.binary_sha256 for c in everything.components)
    metadata = SnapshotMetadata(description="some", tags={"a": "b"})
    some = export_state(
        made,
        ExportOptions(include_binaries=True, components=["time", "zip"], metadata=metadata),
        clock=CLOCK,
    )
    assert [c.binary_bytes() for c in some.components] == [b"\0asm time", b"\0asm zip"]
    assert some.metadata == metadata
    with pytest.raises(NotFound, match="nobody"):
        export_state(made, ExportOptions(components=["fetch", "nobody"]))


def test_exports_are_byte_stable(tmp_path: Path) -> None:
    made = registry(tmp_path, "b", "a")
    texts = {export_state(made, WITH_BINARIES, clock=CLOCK).to_json() for _ in range(3)}
    assert len(texts) == 1


def test_secrets_leave_only_sealed_and_on_purpose(tmp_path: Path) -> None:
    made = registry(tmp_path / "r", "a")
    assert CANARY not in export_state(made, WITH_BINARIES).to_json()
    sealed = export_state(made, ExportOptions(seal_secrets_with="pass", kdf_cost=CHEAP))
    assert sealed.components[0].secrets is not None
    assert CANARY not in sealed.to_json()
    other = registry(tmp_path / "other")
    import_state(other, sealed, ImportOptions(open_secrets_with="pass"))
    assert other.get("a").secrets == made.get("a").secrets
    with pytest.raises(ValidationError):
        export_state(made, ExportOptions(seal_secrets_with=""))


def test_an_export_is_one_point_in_time(ram_path: Path) -> None:
    """A writer that changes two components in one step is never seen half-way."""
    made = registry(ram_path, "a", "b")
    stop = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        writer = DirectoryRegistry(ram_path)
        number = 0
        try:
            while not stop.is_set():
                number += 1
                uri = f"u:{number}"
                writer.apply([record("a", source_uri=uri), record("b", source_uri=uri)])
                stop.wait(0.03)  # flock is not fair: let the reader have its turn
        except BaseException as error:
            failures.append(error)

    made.apply([record("a", source_uri="u:0"), record("b", source_uri="u:0")])
    thread = threading.Thread(target=write)
    thread.start()
    seen: list[tuple[str, ...]] = []
    try:
        deadline = time.monotonic() + 60
        while len(set(seen)) < 3 and time.monotonic() < deadline:
            seen.append(tuple(c.source_uri for c in export_state(made).components))
            time.sleep(0.03)  # flock is not fair: let the writer have its turn
    finally:
        stop.set()
        thread.join()
    assert failures == []
    assert all(a == b for a, b in seen)
    assert len(set(seen)) == 3  # the writer did run meanwhile


def test_the_lock_is_held_during_the_whole_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = registry(tmp_path, "a")
    other = DirectoryRegistry(tmp_path, lock_timeout=0.02)
    really = made.get

    def slow(name: str) -> ComponentRecord:
        with pytest.raises(LockTimeout):
            other.register(record("a"))
        return really(name)

    monkeypatch.setattr(made, "get", slow)
    assert len(export_state(made).components) == 1
    other.register(record("a"))


def test_what_cannot_be_read_is_not_silently_left_out(tmp_path: Path) -> None:
    made = registry(tmp_path, "a", "b")
    (tmp_path / "binaries/a.bin").write_bytes(b"evil")
    with pytest.raises(IntegrityError):
        export_state(made)


# Import


def test_a_registry_can_be_moved(tmp_path: Path) -> None:
    source, target = registry(tmp_path / "one", "a", "b"), registry(tmp_path / "two")
    moved = StateSnapshot.from_json(export_state(source, WITH_BINARIES).to_json())
    assert import_state(target, moved) == 2
    assert state(target) == without_secrets(state(source))


def test_existing_components_are_replaced_or_skipped(tmp_path: Path) -> None:
    made = registry(tmp_path, "fetch")
    made.register(record("fetch", source_uri="u:own"))
    assert import_state(made, snapshot("fetch", "time"), ImportOptions(skip_existing=True)) == 1
    assert made.get("fetch").source_uri == "u:own"
    assert import_state(made, snapshot("fetch", "time")) == 2
    assert made.get("fetch").source_uri == "oci://registry.example.org/fetch:1"
    assert made.get("fetch").secrets == {"API_KEY": f"{CANARY}-fetch"}  # its own ones stay


def test_imports_only_what_was_asked_for(tmp_path: Path) -> None:
    made = registry(tmp_path)
    assert import_state(made, snapshot("a", "b"), ImportOptions(components=["b"])) == 1
    assert made.ids() == ("b",)
    with pytest.raises(NotFound, match="nobody"):
        import_state(made, snapshot("a"), ImportOptions(components=["nobody"]))
    assert import_state(made, snapshot(components=())) == 0


def test_an_absent_binary_is_fetched_and_verified(tmp_path: Path) -> None:
    lean = snapshot(components=(component("fetch", binary=None),))
    asked: list[str] = []

    def fetch(uri: str) -> bytes:
        asked.append(uri)
        return b"\0asm fetch"

    made = registry(tmp_path / "a")
    import_state(made, lean, ImportOptions(fetch=fetch))
    assert asked == ["oci://registry.example.org/fetch:1"]
    assert made.get("fetch").binary == b"\0asm fetch"
    import_state(made, lean, ImportOptions(fetch=fetch))
    assert len(asked) == 1  # the registry has that very binary already
    import_state(registry(tmp_path / "b"), lean)
    assert registry(tmp_path / "b").get("fetch").binary is None
    assert registry(tmp_path / "b").get("fetch").binary_sha256 is not None


def test_a_wrong_or_failed_fetch_stops_everything(tmp_path: Path) -> None:
    lean = snapshot(components=(component("a"), component("b", binary=None)))
    made = registry(tmp_path)
    before = tree(tmp_path)

    def fail(uri: str) -> bytes:
        raise TimeoutError("the network is down")

    with pytest.raises(IntegrityError, match="another one"):
        import_state(made, lean, ImportOptions(fetch=lambda uri: b"evil"))
    with pytest.raises(StorageError, match="network is down"):
        import_state(made, lean, ImportOptions(fetch=fail))
    assert tree(tmp_path) == before
    trusting = ImportOptions(fetch=lambda uri: b"newer build", verify_checksums=False)
    assert import_state(made, lean, trusting) == 2
    assert made.get("b").binary == b"newer build"


def test_bad_snapshots_passwords_and_signatures_change_nothing(tmp_path: Path) -> None:
    key, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    made = registry(tmp_path / "r", "a")
    sealed = export_state(made, ExportOptions(seal_secrets_with="pass", kdf_cost=CHEAP))
    before = tree(tmp_path / "r")
    trusted = ImportOptions(trusted=[key.public_key()])
    cases: list[tuple[StateSnapshot, ImportOptions, type[PersistenceError]]] = [
        (snapshot("a", "a"), ImportOptions(), ValidationError),
        (snapshot(components=(component("../x"),)), ImportOptions(), ValidationError),
        (sealed, ImportOptions(open_secrets_with="wrong"), WrongPassword),
        (snapshot("b"), trusted, ValidationError),
        (sign(snapshot("b"), stranger), trusted, IntegrityError),
    ]
    for bad, options, error in cases:
        with pytest.raises(error):
            import_state(made, bad, options)
        assert tree(tmp_path / "r") == before
    assert import_state(made, sign(snapshot("b"), key), trusted) == 1


def test_sealed_secrets_without_passphrase_keep_the_registrys_own(tmp_path: Path) -> None:
    source = registry(tmp_path / "one", "a")
    sealed = export_state(source, ExportOptions(seal_secrets_with="pass", kdf_cost=CHEAP))
    target = registry(tmp_path / "two")
    target.register(record("a", secrets={"OWN": "x"}))
    import_state(target, sealed)
    assert target.get("a").secrets == {"OWN": "x"}
    import_state(target, snapshot("a"), ImportOptions(open_secrets_with="pass"))
    assert target.get("a").secrets == {"OWN": "x"}
    import_state(target, sealed, ImportOptions(open_secrets_with="pass"))
    assert target.get("a").secrets == {"API_KEY": f"{CANARY}-a"}


def test_an_import_is_all_or_nothing_after_a_kill_in_it_or_in_recovery(tmp_path: Path) -> None:
    root = tmp_path / "r"
    coming = snapshot("a", "b")

    def start() -> DirectoryRegistry:
        shutil.rmtree(root, ignore_errors=True)
        made = DirectoryRegistry(root)
        made.register(record("a", source_uri="u:old", secrets={}))
        return made

    old = state(start())
    made = start()
    with counting() as whole:
        import_state(made, coming)
    new = state(made)
    seen = []
    for first in range(0, whole.made, 2):
        second = 0
        while True:
            made = start()
            with counting(first), pytest.raises(Killed):
                import_state(made, coming)
            with counting(second) as recovery:
                try:
                    DirectoryRegistry(root)
                except Killed:
                    pass
            found = state(DirectoryRegistry(root))
            assert found in (old, new), (first, second)
            seen.append(found == new)
            if recovery.made <= second:
                break
            second += 5
    assert set(seen) == {True, False}


def test_removal_is_one_step(tmp_path: Path) -> None:
    root = tmp_path / "r"
    full = state(registry(root, "a", "b"))
    seen = []

    def make():  # type: ignore[no-untyped-def]
        made = registry(root, "a", "b")
        return lambda: made.remove("a")

    def after() -> None:
        seen.append(state(DirectoryRegistry(root)))

    each_kill_point(make, after)
    assert all(found in (full, {"b": full["b"]}) for found in seen)
    assert seen[-1] == {"b": full["b"]}
