"""Backups of the file store as directories: full and differential, verified by checksums.

The law: a backup directory is either complete or not there at all, and one that was changed
since it was made is refused as a whole. Layout::

    DEST/manifest.json   what the backup is and the SHA-256 of every file, itself checksummed
    DEST/files/…         the files as they are in the store, ciphertext included

A differential backup lists all files of its moment, but holds only those that differ from its
base, a full backup, which it names by id and by the checksum of the base's manifest.

Backups are read into memory: a store of documents, not of videos.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pydantic
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import (
    checked_path,
    fsync_directory,
    is_temporary,
    make_directory,
    read_bounded,
    resolved_path,
    temporary_name,
    write_atomic,
)
from pytest_statepersist.reference.errors import (
    BackupError,
    DamagedData,
    IntegrityError,
    NewerVersion,
    NotFound,
    PersistenceError,
    StorageError,
    TooLarge,
)
from pytest_statepersist.reference.locking import StoreLock
from pytest_statepersist.reference.presence import is_present
from pytest_statepersist.reference.serializers import CompactJsonSerializer, JsonSerializer
from pytest_statepersist.reference.values import first_problem

__all__ = [
    "BackupContent",
    "FileEntry",
    "Manifest",
    "create_backup",
    "make_content",
    "outside",
    "read_backup",
    "read_manifest",
    "seal_manifest",
    "unseal_manifest",
    "verified",
]

MANIFEST_NAME = "manifest.json"
LOCK_NAME = ".backup.lock"
_FILES = "files"
_VERSION = 1
_MANIFEST_LIMIT = 256 << 20


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Strict):
    """One file of the store; ``stored`` is false where the base holds it."""

    sha256: str
    size: int = Field(ge=0)
    stored: bool


class Base(_Strict):
    """The full backup that a differential one builds on; ``path`` is relative to its parent."""

    id: str
    sha256: str
    path: str


class Manifest(_Strict):
    """What a backup says about itself."""

    version: int
    id: str
    created_at: AwareDatetime
    schema_version: int
    base: Base | None
    files: dict[str, FileEntry]

    @property
    def is_full(self) -> bool:
        """Whether the backup can be restored without another one."""
        return self.base is None


@dataclass(frozen=True, slots=True)
class BackupContent:
    """A verified backup: the bytes of every file by its place in the store."""

    manifest: Manifest
    files: Mapping[str, bytes]


@checked
def make_content(
    files: Mapping[str, bytes], *, created_at: datetime, schema_version: int
) -> BackupContent:
    """Return a full backup of ``files``, in memory."""
    entries = {
        place: FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data), stored=True)
        for place, data in files.items()
    }
    try:
        manifest = Manifest(
            version=_VERSION,
            id=secrets.token_hex(16),
            created_at=created_at,
            schema_version=schema_version,
            base=None,
            files=entries,
        )
    except pydantic.ValidationError as error:
        raise first_problem(error, "backup") from error
    return BackupContent(manifest, files)


@checked
def create_backup(dest: Path, content: BackupContent, *, base: Path | None = None) -> Path:
    """Write a backup to the new directory ``dest`` and return it: atomic, durable on return.

    Everything is written and synced under a temporary name; one rename makes it a backup.
    Left-overs of crashed attempts at the same ``dest`` are removed. Backups into one parent
    directory wait for each other, whichever store they are of: the lock file
    ``.backup.lock`` there stays behind. Raises `BackupError` (``dest`` exists, ``base`` is none
    or not full), `LockTimeout`, `StorageError`.
    """
    dest = Path(os.path.abspath(dest))
    _refuse_existing(dest)
    manifest = content.manifest
    if base is not None:
        manifest = _difference(manifest, base, dest)
    make_directory(dest.parent)
    with StoreLock(dest.parent / LOCK_NAME):
        _refuse_existing(dest)
        _remove_leftovers(dest)
        _build(dest, manifest, content.files)
    return dest


@checked
def outside(root: Path, path: str | os.PathLike[str]) -> Path:
    """Return where backups of the store at ``root`` go. Raises `BackupError` for inside of it."""
    home = resolved_path(path)
    if root == home or root in home.parents:
        raise BackupError(
            f"{path}: lies inside the store, which would take it for its own file, and whose end "
            "would be its own; choose a place outside"
        )
    return checked_path(path)


def _refuse_existing(dest: Path) -> None:
    if is_present(dest):
        raise BackupError(f"{dest}: is already there; a backup never overwrites, choose a new name")


def _build(dest: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    building = dest.parent / temporary_name(dest.name)
    try:
        _write_tree(building, manifest, files)
        os.rename(building, dest)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise StorageError(dest, error) from error
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    fsync_directory(dest.parent)


def _difference(full: Manifest, base: Path, dest: Path) -> Manifest:
    """Return the manifest with the reference to the base and what it holds marked so."""
    old, digest = _load_manifest(base)
    if not old.is_full:
        raise BackupError(f"{base}: is itself a differential backup; its base must be a full one")
    reference = Base(id=old.id, sha256=digest, path=os.path.relpath(base, dest.parent))
    marked = {
        place: entry.model_copy(update={"stored": not _same(entry, old.files.get(place))})
        for place, entry in full.files.items()
    }
    return full.model_copy(update={"base": reference, "files": marked})


def _same(entry: FileEntry, other: FileEntry | None) -> bool:
    return other is not None and (entry.sha256, entry.size) == (other.sha256, other.size)


def _write_tree(building: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    home = building / _FILES
    make_directory(home)
    stored = [place for place, entry in manifest.files.items() if entry.stored]
    directories = sorted({home / os.path.dirname(place) for place in stored})
    for directory in directories:
        make_directory(directory)
    for place in stored:
        _write_new(f"{home}/{place}", files[place])
    for directory in directories:
        fsync_directory(directory)
    write_atomic(building / MANIFEST_NAME, JsonSerializer().dumps(seal_manifest(manifest)))


def _write_new(path: str, data: bytes) -> None:
    # Not `write_atomic`: nobody can see this directory yet, so one sync of it at the end does.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(dest: Path) -> None:
    prefix = f".{dest.name}."
    try:
        names = os.listdir(dest.parent)
    except OSError as error:
        raise StorageError(dest.parent, error) from error
    for name in names:
        if name.startswith(prefix) and is_temporary(name):
            shutil.rmtree(dest.parent / name, ignore_errors=True)


@checked
def read_manifest(src: Path) -> Manifest:
    """Return what a backup says about itself.

    Raises `BackupError` (no backup), `DamagedData` or `IntegrityError` (changed since),
    `NewerVersion`, `StorageError`.
    """
    return _load_manifest(src)[0]


def _load_manifest(src: Path) -> tuple[Manifest, str]:
    path = src / MANIFEST_NAME
    try:
        raw = read_bounded(path, _MANIFEST_LIMIT)
    except NotFound as error:
        raise BackupError(f"{src}: is no backup: it has no {MANIFEST_NAME}") from error
    try:
        sealed = JsonSerializer().loads(raw)
    except DamagedData as error:
        raise DamagedData(f"{path}: {error}") from error
    try:
        return unseal_manifest(sealed)
    except PersistenceError as error:
        raise type(error)(f"{path}: {error}") from error


@checked
def seal_manifest(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest as JSON together with its checksum."""
    body = manifest.model_dump(mode="json")
    return {"manifest": body, "sha256": _digest(body)}


@checked
def unseal_manifest(sealed: object) -> tuple[Manifest, str]:
    """Return the manifest in what `seal_manifest` made, and its checksum.

    Raises `DamagedData`, `IntegrityError`, `NewerVersion`.
    """
    if not isinstance(sealed, dict) or not isinstance(sealed.get("manifest"), dict):
        raise DamagedData("is no manifest")
    body: dict[str, Any] = sealed["manifest"]
    digest = _digest(body)
    if sealed.get("sha256") != digest:
        raise IntegrityError("the manifest's checksum is wrong; it was changed after the backup")
    version = body.get("version")
    if isinstance(version, int) and version > _VERSION:
        raise NewerVersion(f"backup version {version}, this code knows {_VERSION}")
    if type(version) is not int or version != _VERSION:
        raise DamagedData(f"backup version {version!r} never was")
    try:
        return Manifest.model_validate(body), digest
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise DamagedData(f"the manifest's {first['loc']}: {first['msg']}") from error


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(CompactJsonSerializer().dumps(body)).hexdigest()


@checked
def read_backup(src: Path, base: Path | None = None) -> BackupContent:
    """Read a whole backup, its base included, and verify every checksum.

    ``base`` says where the base of a differential backup is now; unless given, it is looked
    for where it was. Raises as `read_manifest`, and `BackupError` for a missing file or base.
    """
    manifest, _ = _load_manifest(src)
    sources = dict.fromkeys(manifest.files, src)
    if manifest.base is not None:
        home = base if base is not None else src.parent / manifest.base.path
        _check_base(src, manifest.base, home)
        for place, entry in manifest.files.items():
            if not entry.stored:
                sources[place] = home
    files = {
        place: _read_file(sources[place], place, entry) for place, entry in manifest.files.items()
    }
    return BackupContent(manifest, files)


def _check_base(src: Path, expected: Base, home: Path) -> None:
    try:
        found, digest = _load_manifest(home)
    except BackupError as error:
        raise BackupError(
            f"{src}: its base {expected.id} is not at {home}; say where it is with base="
        ) from error
    if (found.id, digest) != (expected.id, expected.sha256):
        raise BackupError(f"{src}: {home} is another backup than its base {expected.id}")


def _read_file(home: Path, place: str, entry: FileEntry) -> bytes:
    if any(part in ("", ".", "..") for part in place.split("/")) or "\\" in place:
        raise DamagedData(f"{home}: the manifest names {place!r}, which is out of the backup")
    path = home / _FILES / place
    try:
        data = read_bounded(path, entry.size, follow_symlinks=False)
    except NotFound as error:
        raise BackupError(f"{path}: is missing from the backup") from error
    except TooLarge as error:
        raise IntegrityError(f"{path}: is longer than when the backup was made") from error
    return verified(str(path), data, entry)


@checked
def verified(name: str, data: object, entry: FileEntry) -> bytes:
    """Return ``data`` if it is what the manifest says. Raises `IntegrityError`."""
    if isinstance(data, bytes) and hashlib.sha256(data).hexdigest() == entry.sha256:
        return data
    raise IntegrityError(f"{name}: was changed after the backup was made")
