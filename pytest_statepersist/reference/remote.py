"""Documents on any file system that fsspec reaches: S3, GCS, Azure, SFTP, memory, local …

The law: under a document's name there is either a complete upload or the one before it, never
a part. How that is made depends on what the backend can do, and a backend that can do none of
it is refused rather than trusted:

* local files: `write_atomic`, so saves are durable too; what a killed save left is removed by
  the next one, under a lock;
* object stores and memory: one upload becomes visible as a whole when it is complete;
* others: an upload under a temporary name, read back, then the backend's own rename. A killed
  upload leaves a temporary there for ever, since nobody can know whether its writer lives; it is
  never listed nor loaded.

What a document holds proves itself (snapshots and packed backups carry checksums). A save is
as durable as the backend makes its answer. Of two savers of one name the last one wins.

fsspec (extra ``remote``) and the backend's own package are imported on use.
"""

from __future__ import annotations

import importlib
import os
import posixpath
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import (
    is_temporary,
    make_directory,
    read_bounded,
    remove_durably,
    remove_temporaries,
    temporary_name,
    write_atomic,
)
from pytest_statepersist.reference.errors import (
    DamagedData,
    NotFound,
    PersistenceError,
    StorageError,
    ValidationError,
)
from pytest_statepersist.reference.ids import check_id
from pytest_statepersist.reference.locking import StoreLock
from pytest_statepersist.reference.serializers import DEFAULT_LIMIT

__all__ = ["ATOMIC_UPLOADS", "RemoteStore"]

T = TypeVar("T")

ATOMIC_UPLOADS = frozenset(
    {"memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "r2"}
)
"""Protocols whose uploads become visible only as a whole."""


@checked
class RemoteStore:
    """Documents below an fsspec URL, such as ``s3://bucket/backups`` or ``file:///mnt/b``.

    ``options`` go to the file system (credentials, endpoint_url …). The bucket must exist.
    Raises `ValidationError` for a URL that no installed backend handles or that cannot upload
    atomically.
    """

    def __init__(self, url: str, **options: Any) -> None:
        if not url.partition("://")[2 if "://" in url else 0].strip("/"):
            # fsspec would take it for the current directory, or for a whole account.
            raise ValidationError("url", f"{url!r} names no place")
        self.url = url.rstrip("/")
        self._backend = _backend_for(url, options)

    def save(self, name: str, data: bytes) -> None:
        """Upload a document; readers see the whole of it, or the one before.

        Raises `InvalidId`, `StorageError`: what was there before is still there then, unless
        the answer to a completed upload was lost.
        """
        check_id(name, "name")
        self._guarded(name, lambda: self._backend.put(name, data))

    def load(self, name: str, *, limit: int = DEFAULT_LIMIT) -> bytes:
        """Download a document of at most ``limit`` bytes.

        Raises `InvalidId`, `NotFound`, `DamagedData` (larger than the limit), `StorageError`.
        """
        check_id(name, "name")
        return self._guarded(name, lambda: self._backend.get(name, limit))

    def list(self) -> tuple[str, ...]:
        """Return the names of all documents, sorted; uploads under way are none."""
        names = self._guarded("", self._backend.names)
        return tuple(sorted(name for name in names if _is_document(name)))

    def delete(self, name: str) -> None:
        """Remove a document. Raises `InvalidId`, `NotFound`, `StorageError`."""
        check_id(name, "name")
        self._guarded(name, lambda: self._backend.remove(name))

    def _guarded(self, name: str, action: Callable[[], T]) -> T:
        where = f"{self.url}/{name}".rstrip("/")
        try:
            return action()
        except FileNotFoundError as error:
            raise NotFound(f"{where}: there is no such document") from error
        except PersistenceError:
            raise
        except Exception as error:  # each backend has its own idea of an I/O error
            raise StorageError(where, error) from error


class _Backend(ABC):
    """One way to keep the law; may raise anything that `RemoteStore` then translates."""

    @abstractmethod
    def put(self, name: str, data: bytes) -> None: ...

    @abstractmethod
    def get(self, name: str, limit: int) -> bytes: ...

    @abstractmethod
    def names(self) -> list[str]: ...

    @abstractmethod
    def remove(self, name: str) -> None: ...


class _Local(_Backend):
    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def put(self, name: str, data: bytes) -> None:
        make_directory(self._root)
        with StoreLock(self._root / ".lock"):  # so that the temporaries below are nobody's
            remove_temporaries(self._root)
            write_atomic(self._root / name, data)

    def get(self, name: str, limit: int) -> bytes:
        return read_bounded(self._root / name, limit)

    def names(self) -> list[str]:
        try:
            with os.scandir(self._root) as entries:
                return [entry.name for entry in entries if entry.is_file()]
        except FileNotFoundError:
            return []

    def remove(self, name: str) -> None:
        remove_durably(self._root / name)


class _AtomicUpload(_Backend):
    """The upload itself is atomic, so the name is written to directly."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def put(self, name: str, data: bytes) -> None:
        self._upload(self._path(name), data)

    def _upload(self, path: str, data: bytes) -> None:
        self._fs.pipe_file(path, data)
        for _ in range(3):
            # A listing that another thread began before the upload may come into the cache now.
            self._fs.invalidate_cache()
            size = self._fs.info(path)["size"]
            if size == len(data):
                return
        raise OSError(f"uploaded {len(data)} bytes, the backend holds {size}")

    def get(self, name: str, limit: int) -> bytes:
        self._fs.invalidate_cache()  # listings are cached, also of what others have replaced
        path = self._path(name)
        found = self._fs.info(path)
        if found["type"] != "file":
            raise FileNotFoundError(path)
        if found["size"] > limit:
            raise DamagedData(f"{path}: has {found['size']} bytes, more than the limit of {limit}")
        data = self._fs.cat_file(path)
        if len(data) > limit:  # replaced by a larger one in between
            raise DamagedData(f"{path}: has more bytes than the limit of {limit}")
        return bytes(data)

    def names(self) -> list[str]:
        self._fs.invalidate_cache()
        try:
            entries = self._fs.ls(self._root or "/", detail=True)
        except FileNotFoundError:
            return []
        return [posixpath.basename(e["name"]) for e in entries if e["type"] == "file"]

    def remove(self, name: str) -> None:
        self._fs.invalidate_cache()
        self._fs.info(self._path(name))  # object stores do not mind removing what is not there
        self._fs.rm_file(self._path(name))
        self._fs.invalidate_cache()


class _UploadAndRename(_AtomicUpload):
    """The upload may be seen half-done, so it happens under a temporary name."""

    def put(self, name: str, data: bytes) -> None:
        temporary = self._path(temporary_name(name))
        self._fs.makedirs(self._root, exist_ok=True)
        try:
            self._upload(temporary, data)
            if self._fs.cat_file(temporary) != data:
                raise OSError("the upload reads back differently")
            self._fs.mv(temporary, self._path(name))
        except BaseException:
            self._discard(temporary)
            raise
        self._fs.invalidate_cache()

    def _discard(self, temporary: str) -> None:
        try:
            self._fs.rm_file(temporary)
        except Exception:
            pass  # the error under way matters more; the name is none that anybody reads


def _backend_for(url: str, options: dict[str, Any]) -> _Backend:
    try:
        fsspec: Any = importlib.import_module("fsspec")
    except ImportError as error:
        raise ValidationError(
            "url", "remote stores need fsspec: pip install 'pytest-statepersist[remote]'"
        ) from error
    try:
        filesystem, root = fsspec.core.url_to_fs(url, **options)
    except Exception as error:  # a backend that is missing, too old, or without credentials
        raise ValidationError("url", f"{url!r} cannot be reached: {error!r}") from error
    own = filesystem.protocol
    protocols = {own} if isinstance(own, str) else set(own)
    if protocols & {"file", "local"}:
        return _Local(root)
    if protocols & ATOMIC_UPLOADS:
        return _AtomicUpload(filesystem, root)
    if type(filesystem).mv is not fsspec.AbstractFileSystem.mv:
        return _UploadAndRename(filesystem, root)
    raise ValidationError(
        "url",
        f"{url!r}: this backend can neither upload nor rename atomically, so readers could see "
        "half a document; use an object store, SFTP or a local path",
    )


def _is_document(name: str) -> bool:
    if is_temporary(name):
        return False
    try:
        check_id(name)
    except PersistenceError:
        return False
    return True
