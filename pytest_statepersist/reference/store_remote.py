"""Backups of a file store, and state snapshots, on a remote: one document each.

The law: a whole backup is one document, so an upload is atomic wherever a document is. It is
verified by the same checksums as a local backup, and restored by the same atomic step.

A packed backup is a zstd frame around CBOR of ``{"manifest", "sha256", "files"}``.
"""

from __future__ import annotations

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.errors import DamagedData
from pytest_statepersist.reference.file_store import FileStore
from pytest_statepersist.reference.packing import Packing, pack, packing_of, unpack
from pytest_statepersist.reference.remote import RemoteStore
from pytest_statepersist.reference.serializers import DEFAULT_LIMIT, BinarySerializer
from pytest_statepersist.reference.state_snapshot import StateSnapshot
from pytest_statepersist.reference.store_backup import (
    BackupContent,
    seal_manifest,
    unseal_manifest,
    verified,
)

__all__ = [
    "backup_to_remote",
    "load_snapshot",
    "pack_backup",
    "restore_from_remote",
    "save_snapshot",
    "unpack_backup",
]


@checked
def backup_to_remote(store: FileStore, remote: RemoteStore, name: str) -> int:
    """Upload the whole store, as of one moment, as the document ``name``; return its bytes.

    Readers of the remote see the complete backup or what was there before. Encrypted items
    stay encrypted. Raises `InvalidId`, `StorageError`, `LockTimeout`.
    """
    data = pack_backup(store.backup_content())
    remote.save(name, data)
    return len(data)


@checked
def restore_from_remote(
    store: FileStore, remote: RemoteStore, name: str, *, limit: int = DEFAULT_LIMIT
) -> int:
    """Make the store what it was at that backup; return how many items.

    One atomic durable step, after everything was downloaded and verified. ``limit`` is in
    bytes, before and after unpacking. Raises `NotFound`, `DamagedData`, `IntegrityError`,
    `WrongPassword`, `NewerVersion`, `StorageError`; the store is as before then.
    """
    return store.restore_content(unpack_backup(remote.load(name, limit=limit), limit=limit))


@checked
def pack_backup(content: BackupContent) -> bytes:
    """Return a backup as one byte string."""
    document = seal_manifest(content.manifest) | {"files": dict(content.files)}
    return pack(BinarySerializer().dumps(document), Packing.ZSTD)


@checked
def unpack_backup(data: bytes, *, limit: int = DEFAULT_LIMIT) -> BackupContent:
    """Return the verified backup in a byte string.

    Raises `DamagedData`, `IntegrityError`, `DecompressionBomb`, `NewerVersion`.
    """
    if packing_of(data) is not Packing.ZSTD:
        raise DamagedData("is no packed backup")
    document = BinarySerializer().loads(unpack(data, limit=limit))
    if not isinstance(document, dict) or not isinstance(document.get("files"), dict):
        raise DamagedData("is no packed backup: it has no files")
    manifest, _ = unseal_manifest(document)
    files = document["files"]
    if not manifest.is_full or files.keys() != manifest.files.keys():
        raise DamagedData("a packed backup must hold exactly the files of its manifest")
    return BackupContent(
        manifest, {place: verified(place, files[place], manifest.files[place]) for place in files}
    )


@checked
def save_snapshot(
    snapshot: StateSnapshot, remote: RemoteStore, name: str, *, packing: Packing = Packing.NONE
) -> None:
    """Upload a state snapshot. Raises `ValidationError`, `InvalidId`, `StorageError`."""
    remote.save(name, snapshot.to_bytes(packing))


@checked
def load_snapshot(
    remote: RemoteStore, name: str, *, verify: bool = True, limit: int = DEFAULT_LIMIT
) -> StateSnapshot:
    """Download a state snapshot, validated and verified.

    Raises `NotFound`, `DamagedData`, `ValidationError`, `IntegrityError`, `NewerVersion`,
    `StorageError`.
    """
    data = remote.load(name, limit=limit)
    try:
        return StateSnapshot.from_bytes(data, verify=verify, limit=limit)
    except DamagedData as error:
        raise type(error)(f"{remote.url}/{name}: {error}") from error
