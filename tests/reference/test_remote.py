"""Remote stores: whole documents or none, on memory, local files, S3, GCS and Azure."""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pytest_statepersist.reference.cipher import Cipher
from pytest_statepersist.reference.errors import (
    DamagedData,
    DecompressionBomb,
    IntegrityError,
    InvalidId,
    NotFound,
    PersistenceError,
    StorageError,
    ValidationError,
)
from pytest_statepersist.reference.items import Session
from pytest_statepersist.reference.packing import Packing, pack
from pytest_statepersist.reference.remote import RemoteStore
from pytest_statepersist.reference.serializers import BinarySerializer
from pytest_statepersist.reference.store_remote import (
    backup_to_remote,
    load_snapshot,
    pack_backup,
    restore_from_remote,
    save_snapshot,
    unpack_backup,
)
from tests.reference.kill_points import each_kill_point, tree
from tests.reference.remote_servers import STARTERS, Servers, Unavailable
from tests.reference.snapshot_helpers import snapshot
from tests.reference.store_helpers import chain, content, conversation, open_store, session

fsspec = pytest.importorskip("fsspec", reason="the extra `remote` is not installed")
from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402

BACKENDS = ["memory", "file", "renaming", *STARTERS]
pytestmark = [
    # aiohttp warns its caller about bodies of more than 1 MiB; the caller is the Azure SDK.
    pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning"),
]


class RenamingFileSystem(MemoryFileSystem):
    """A file system as SFTP is one: uploads grow before all eyes, renames are atomic."""

    protocol = "renaming"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    fail_in: str | None = None

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, value[: len(value) // 2])
        if self.fail_in == "upload":
            raise ConnectionResetError("the network is down")
        super().pipe_file(path, value)
        if self.fail_in == "corrupt":
            super().pipe_file(path, b"\0" * len(value))

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        if self.fail_in == "rename":
            raise ConnectionResetError("the network is down")
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        self.store[target] = self.store.pop(source)


class CopyingFileSystem(MemoryFileSystem):
    """A file system whose rename is a copy: nothing there is atomic."""

    protocol = "copying"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    started = Servers()
    yield started
    started.stop()


@pytest.fixture
def renaming() -> Iterator[type[RenamingFileSystem]]:
    fsspec.register_implementation("renaming", RenamingFileSystem, clobber=True)
    fsspec.register_implementation("copying", CopyingFileSystem, clobber=True)
    yield RenamingFileSystem
    RenamingFileSystem.fail_in = None


@pytest.fixture(params=BACKENDS)
def remote(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    servers: Servers,
    renaming: type[RenamingFileSystem],
) -> RemoteStore:
    """An empty remote store on each backend."""
    place = uuid.uuid4().hex
    if request.param == "file":
        return RemoteStore(f"file://{tmp_path}/remote/{place}")
    if request.param in ("memory", "renaming"):
        return RemoteStore(f"{request.param}://{place}")
    try:
        server = servers.get(request.param)
    except Unavailable as reason:
        pytest.skip(f"{request.param}: {reason}")
    return RemoteStore(f"{server.url}/{place}", **server.options)


def test_saves_loads_lists_and_deletes(remote: RemoteStore) -> None:
    assert remote.list() == ()
    remote.save("two", b"2" * 1000)
    remote.save("one", b"first")
    remote.save("one", b"1")
    remote.save("empty", b"")
    assert remote.list() == ("empty", "one", "two")
    assert [remote.load(name) for name in remote.list()] == [b"", b"1", b"2" * 1000]
    remote.delete("one")
    assert remote.list() == ("empty", "two")
    for action in (remote.load, remote.delete):
        with pytest.raises(NotFound, match="one"):
            action("one")


def test_bad_names_are_refused(remote: RemoteStore) -> None:
    for name in ("", "../x", "a/b", ".hidden", "a\0b", "CON", "x" * 200):
        for action in (remote.load, remote.delete, lambda n: remote.save(n, b"")):
            with pytest.raises(InvalidId):
                action(name)
    assert remote.list() == ()


def test_a_limit_is_kept(remote: RemoteStore) -> None:
    remote.save("big", b"x" * 1001)
    assert len(remote.load("big", limit=1001)) == 1001
    with pytest.raises(DamagedData, match="1000"):
        remote.load("big", limit=1000)


def test_readers_see_whole_documents_only(remote: RemoteStore) -> None:
    versions = [bytes([n]) * (300_000 + n) for n in range(2)]
    remote.save("doc", versions[0])
    stop = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for number in range(1, 13):
                remote.save("doc", versions[number % 2])
        except BaseException as error:
            failures.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = [remote.load("doc")]
    while not stop.is_set():
        seen.append(remote.load("doc"))
        assert remote.list() == ("doc",)
    thread.join()
    assert failures == []
    assert all(data in versions for data in seen)


def test_state_snapshots_travel(remote: RemoteStore) -> None:
    for packing in Packing:
        save_snapshot(snapshot(), remote, "state.json", packing=packing)
        assert load_snapshot(remote, "state.json") == snapshot()
    remote.save("state.json", b"{")
    with pytest.raises(DamagedData, match=r"state\.json"):
        load_snapshot(remote, "state.json")
    changed = json.loads(snapshot().to_json())
    changed["created_at"] = 5
    remote.save("state.json", json.dumps(changed).encode())
    with pytest.raises(IntegrityError):
        load_snapshot(remote, "state.json")


def test_a_file_store_is_backed_up_and_restored(remote: RemoteStore, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    for item in (session("a"), conversation("b", 300), chain("c")):
        store.save(item)
    expected = content(store.load_all())
    size = backup_to_remote(store, remote, "monday")
    assert size == len(remote.load("monday"))
    store.save(session("a", "changed"))
    store.save(session("z"))
    assert restore_from_remote(store, remote, "monday") == 3
    assert content(store.load_all()) == expected
    other = open_store(tmp_path / "other")
    restore_from_remote(other, remote, "monday")
    assert content(other.load_all()) == expected
    before = tree(tmp_path / "store")
    with pytest.raises(NotFound):
        restore_from_remote(store, remote, "tuesday")
    assert tree(tmp_path / "store") == before


def test_a_remote_backup_of_an_encrypted_store_shows_nothing(
    tmp_path: Path, renaming: type[RenamingFileSystem]
) -> None:
    remote = RemoteStore("memory://" + uuid.uuid4().hex)
    store = open_store(tmp_path, cipher=Cipher(b"k" * 32))
    store.save(session("a", "canary-99"))
    backup_to_remote(store, remote, "b")
    packed = remote.load("b")
    assert b"canary-99" not in packed
    document = unpack_backup(packed)
    assert not any(b"canary-99" in data for data in document.files.values())


def test_damaged_and_hostile_remote_backups_are_refused_untouched(tmp_path: Path) -> None:
    remote = RemoteStore("memory://" + uuid.uuid4().hex)
    store = open_store(tmp_path)
    store.save(session("a"))
    good = pack_backup(store.backup_content())
    document: dict[str, Any] = BinarySerializer().loads(_unpacked(good))
    place = "sessions/a.json"

    def variant(**changes: Any) -> bytes:
        return pack(BinarySerializer().dumps({**document, **changes}), Packing.ZSTD)

    files = document["files"]
    store.save(session("a", "current"))
    before = tree(tmp_path)
    for bad in (
        b"",
        b"{}",
        good[:-1],
        good[: len(good) // 2],
        pack(b"[]", Packing.ZSTD),
        variant(files={}),
        variant(files={place: b"evil"}),
        variant(files={place: "text"}),
        variant(files={**files, "sessions/b.json": b""}),
        variant(sha256="0" * 64),
        variant(manifest={}),
    ):
        remote.save("b", bad)
        with pytest.raises(DamagedData):
            restore_from_remote(store, remote, "b")
        assert tree(tmp_path) == before
    remote.save("b", pack(b"\0" * (8 << 20), Packing.ZSTD))
    with pytest.raises(DecompressionBomb):
        restore_from_remote(store, remote, "b", limit=1 << 20)
    remote.save("b", good)
    restore_from_remote(store, remote, "b")
    assert store.load(Session, "a") == session("a")


def _unpacked(data: bytes) -> bytes:
    from pytest_statepersist.reference.packing import unpack

    return unpack(data, limit=1 << 20)


def test_a_kill_during_a_local_upload_leaves_old_or_new(tmp_path: Path) -> None:
    remote = RemoteStore(f"file://{tmp_path}/remote")
    seen = set()

    def make() -> Callable[[], None]:
        remote.save("doc", b"old")
        return lambda: remote.save("doc", b"new")

    def after() -> None:
        seen.add(remote.load("doc"))
        assert remote.list() == ("doc",)

    each_kill_point(make, after)
    assert seen == {b"old", b"new"}
    assert sorted(tree(tmp_path / "remote")) == [".lock", "doc"], "a killed save's left-overs"


@pytest.mark.parametrize("where", ["upload", "corrupt", "rename"])
def test_a_broken_upload_leaves_the_old_document_and_no_rubbish(
    renaming: type[RenamingFileSystem], where: str
) -> None:
    place = uuid.uuid4().hex
    remote = RemoteStore(f"renaming://{place}")
    remote.save("doc", b"old")
    renaming.fail_in = where
    with pytest.raises(StorageError, match="doc"):
        remote.save("doc", b"new and longer")
    renaming.fail_in = None
    assert remote.load("doc") == b"old"
    (left,) = (name for name in renaming.store if place in name)
    assert left.endswith(f"{place}/doc")


def test_a_truncated_upload_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = RemoteStore("memory://" + uuid.uuid4().hex)
    really = MemoryFileSystem.pipe_file
    monkeypatch.setattr(
        MemoryFileSystem, "pipe_file", lambda fs, path, data: really(fs, path, data[:-1])
    )
    with pytest.raises(StorageError, match="holds"):
        remote.save("doc", b"data")


def test_backends_that_are_not_atomic_or_not_there_are_refused(
    renaming: type[RenamingFileSystem], tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="atomically"):
        RemoteStore("copying://x")
    for url in ("nosuchprotocol://x", f"zip://x::file://{tmp_path}"):  # a directory is no archive
        with pytest.raises(ValidationError, match="cannot be reached"):
            RemoteStore(url)


@pytest.mark.parametrize("url", ["", "/", "://", "file://", "memory:///", "s3://"])
def test_a_url_that_names_no_place_is_refused(url: str) -> None:
    """fsspec takes these for the current directory, or for the root of everything."""
    with pytest.raises(ValidationError, match="names no place"):
        RemoteStore(url)


def test_an_unreachable_server_is_a_clear_error() -> None:
    pytest.importorskip("s3fs")
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # ours, and nobody listens: each connection is refused
        remote = RemoteStore(
            "s3://bucket/x", key="k", secret="s", skip_instance_cache=True,
            client_kwargs={"endpoint_url": f"http://127.0.0.1:{unheard.getsockname()[1]}"},
            config_kwargs={"retries": {"total_max_attempts": 1}, "connect_timeout": 1},
        )  # fmt: skip
        _check_unreachable(remote)


def _check_unreachable(remote: RemoteStore) -> None:
    for action in (lambda: remote.load("doc"), lambda: remote.save("doc", b""), remote.list):
        with pytest.raises(PersistenceError) as caught:
            action()
        assert isinstance(caught.value, StorageError)


def test_a_missing_fsspec_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ValidationError, match="pip install"):
        RemoteStore("memory://x")


def test_local_saves_are_durable_and_private(tmp_path: Path) -> None:
    RemoteStore(f"file://{tmp_path}/r").save("doc", b"x")
    if os.name != "nt":
        assert (tmp_path / "r/doc").stat().st_mode & 0o777 == 0o600
    (tmp_path / "r/sub").mkdir()
    assert RemoteStore(str(tmp_path / "r")).list() == ("doc",)
