"""Durable file operations: the only place of the package's stores that syncs and renames.

The law: a name in a directory shows either the whole old content or the whole new content,
at every instant and after every crash, and once a function here has returned, what it did
survives power loss. For that each function

* fsyncs a file's data *before* a rename makes it reachable,
* fsyncs a directory *after* a name in it changed (``fsync(file)`` does not make names durable),
* creates files as 0600 and directories as 0700 at once, never by a later ``chmod``.

Left-over temporaries of a crash have a shape of their own (`is_temporary`) and are never data.
All errors of the operating system surface as `StorageError` with the path in question.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.errors import (
    DamagedData,
    NotFound,
    StorageError,
    TooLarge,
    ValidationError,
)

__all__ = [
    "FILE_MODE",
    "PRIVATE_DIRECTORY_MODE",
    "check_size",
    "checked_path",
    "create_temporary",
    "fsync_directory",
    "is_temporary",
    "make_directory",
    "read_bounded",
    "remove_durably",
    "remove_temporaries",
    "resolved_path",
    "temporary_name",
    "write_atomic",
]

FILE_MODE = 0o600
PRIVATE_DIRECTORY_MODE = 0o700

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp~", re.DOTALL)
_LONGEST_STEM = 200  # bytes of the final name kept in the temporary's: NAME_MAX is 255

PathLike = str | os.PathLike[str]


@checked
def checked_path(path: PathLike) -> Path:
    """Return the path. Raises `ValidationError` for one that no file can have."""
    _check_path(os.fspath(path))
    return path if isinstance(path, Path) else Path(path)


@checked
def resolved_path(path: PathLike) -> Path:
    """Return the path with all links resolved; its end need not exist.

    Raises `ValidationError`, and `StorageError` where links lead in a circle.
    """
    checked = checked_path(path)
    try:
        return checked.resolve()
    except (OSError, RuntimeError) as error:  # before 3.13 a circle is a RuntimeError
        raise StorageError(checked, error) from error


def _check_path(text: str) -> None:
    problem = ""
    if not text:
        problem = "is empty"
    elif "\0" in text:
        problem = f"{text!r} holds a NUL character"
    else:
        try:
            os.fsencode(text)
        except UnicodeEncodeError:
            problem = f"{text!r} cannot be written in the encoding of this file system"
    if problem:
        raise ValidationError("path", problem)


@checked
def check_size(data: bytes, limit: int, what: str) -> None:
    """Raise `ValidationError` for what could not be read back: a store must not save that."""
    if len(data) > limit:
        raise ValidationError(what, f"{len(data)} bytes to store; {limit} can be read back")


@checked
def write_atomic(path: PathLike, data: bytes, *, mode: int = FILE_MODE) -> None:
    """Replace the content of ``path`` by ``data``: atomic, and durable on return.

    A crash at any moment leaves the old file (or none) or the new one. After an error the
    old content is still there, with one exception: if only the last directory sync failed,
    the new content is in place but may not survive a power loss; call again. A symbolic link
    at ``path`` is replaced, not followed. The directory must exist.

    Raises `StorageError`.
    """
    target = checked_path(path)
    temporary = create_temporary(target, data, mode=mode)
    try:
        os.replace(temporary, target)
    except OSError as error:
        _discard(temporary)
        raise StorageError(target, error) from error
    except BaseException:
        _discard(temporary)
        raise
    fsync_directory(target.parent)


@checked
def create_temporary(target: PathLike, data: bytes, *, mode: int = FILE_MODE) -> Path:
    """Write ``data``, synced, to a new temporary beside ``target`` and return its path.

    The content is durable on return; the temporary's *name* is not until its directory is
    synced. Raises `StorageError`, and leaves no temporary then.
    """
    goal = checked_path(target)
    temporary = goal.parent / temporary_name(goal.name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(temporary, flags, mode)
    except OSError as error:
        raise StorageError(temporary, error) from error
    try:
        try:
            _write_completely(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        _discard(temporary)
        raise StorageError(temporary, error) from error
    except BaseException:
        _discard(temporary)
        raise
    return temporary


def _write_completely(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:  # a write may be short: a signal, a nearly full disk
        view = view[os.write(descriptor, view) :]


def _discard(temporary: Path) -> None:
    try:
        os.unlink(temporary)
    except OSError:
        pass  # the error under way matters more; `remove_temporaries` will find this file


@checked
def fsync_directory(path: PathLike) -> None:
    """Make every name in the directory durable. Raises `StorageError`.

    Windows cannot sync directories; there, names are as durable as NTFS makes them.
    """
    if os.name == "nt":
        return
    _check_path(os.fspath(path))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(path, error) from error


@checked
def make_directory(path: PathLike, mode: int = PRIVATE_DIRECTORY_MODE) -> None:
    """Create a directory and its missing parents; each new name is durable on return.

    A crash leaves some prefix of the chain, which the next call completes. The parent of the
    deepest directory that exists is synced before anything is made below it: whoever created
    that one may have been killed, or met an error, before its name was durable. Raises
    `StorageError` (also when a file is in the way).
    """
    target = checked_path(path)
    missing: list[Path] = []
    probe = target
    try:
        while not probe.is_dir():
            missing.append(probe)
            if probe.parent == probe:
                break
            probe = probe.parent
    except OSError as error:
        raise StorageError(probe, error) from error
    _sync_what_may_be_new(probe.parent)
    for directory in reversed(missing):
        try:
            os.mkdir(directory, mode)
        except FileExistsError as error:
            if not directory.is_dir():  # else another process was faster
                raise StorageError(directory, error) from error
        except OSError as error:
            raise StorageError(directory, error) from error
        fsync_directory(directory.parent)


def _sync_what_may_be_new(parent: Path) -> None:
    """Sync a directory in which one like us may have made another; others' may be unreadable."""
    try:
        fsync_directory(parent)
    except StorageError as error:
        theirs = isinstance(error.__cause__, PermissionError) and not os.access(parent, os.W_OK)
        if not theirs:
            raise


@checked
def remove_durably(path: PathLike, *, missing_ok: bool = False) -> None:
    """Remove a file; on return it stays removed after any crash.

    Raises `NotFound` (unless ``missing_ok``) or `StorageError`.
    """
    target = checked_path(path)
    try:
        os.unlink(target)
    except FileNotFoundError:
        if not missing_ok:
            raise NotFound(f"{target}: there is no such file to remove") from None
    except OSError as error:
        raise StorageError(target, error) from error
    fsync_directory(target.parent)


@checked
def temporary_name(name: str) -> str:
    """Return a fresh temporary's name for a file called ``name``."""
    # What of a name no UTF-8 can be is left out, and so is a character that is cut in two.
    stem = name.encode("utf-8", "ignore")[:_LONGEST_STEM].decode("utf-8", "ignore")
    return f".{stem}.{secrets.token_hex(8)}.tmp~"


@checked
def is_temporary(name: PathLike) -> bool:
    """Tell whether a file name (or the last part of a path) has a temporary's shape."""
    return _TEMPORARY.fullmatch(os.path.basename(os.fspath(name))) is not None


@checked
def remove_temporaries(directory: PathLike) -> tuple[Path, ...]:
    """Remove the temporaries of crashed writers in one directory; return what was removed.

    Call it only under the lock that all writers of this directory take: a live writer's
    temporary looks the same. Sub-directories are not entered, and directories of the shape
    are left alone. A missing directory holds none. Not synced: if a crash brings one back,
    the next call removes it again. Raises `StorageError`.
    """
    removed: list[Path] = []
    _check_path(os.fspath(directory))
    try:
        with os.scandir(directory) as entries:
            found = [
                Path(entry.path)
                for entry in entries
                if is_temporary(entry.name) and not entry.is_dir(follow_symlinks=False)
            ]
        for path in sorted(found):
            os.unlink(path)
            removed.append(path)
    except FileNotFoundError:
        return tuple(removed)
    except OSError as error:
        raise StorageError(directory, error) from error
    return tuple(removed)


@checked
def read_bounded(path: PathLike, limit: int, *, follow_symlinks: bool = True) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes.

    Raises `NotFound`; `TooLarge`; `DamagedData` for a pipe, a directory, or (with
    ``follow_symlinks=False``) a symbolic link: none of them can be what we wrote;
    `StorageError` for the rest.
    """
    _check_path(os.fspath(path))
    # O_NONBLOCK: a pipe in the place of a file would otherwise stop us for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_BINARY", 0)
    if not follow_symlinks:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise NotFound(f"{os.fspath(path)}: there is no such file") from None
    except OSError as error:
        if not follow_symlinks and error.errno in (errno.ELOOP, errno.EMLINK):
            raise DamagedData(
                f"{os.fspath(path)}: is a symbolic link, which this store never writes and "
                "does not follow; put the file itself in its place"
            ) from error
        raise StorageError(path, error) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise DamagedData(f"{os.fspath(path)}: is not a regular file")
        return _read_all(descriptor, path, limit, found.st_size)
    except OSError as error:
        raise StorageError(path, error) from error
    finally:
        # The bytes are read: an error of close says nothing about them.
        with suppress(OSError):
            os.close(descriptor)


def _read_all(descriptor: int, path: PathLike, limit: int, expected: int) -> bytes:
    pieces: list[bytes] = []
    left = limit + 1
    while left > 0:  # to the end: the file may have grown since its size was asked
        piece = os.read(descriptor, min(left, expected + 1, 1 << 20))
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        left -= len(piece)
    raise TooLarge(
        f"{os.fspath(path)}: holds more than {limit} bytes, the most that is accepted here; "
        "it was not written by this store, or the limit is too small"
    )
