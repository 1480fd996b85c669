"""Several files in one atomic, durable step: a redo journal over prepared temporaries.

The law: after `Transaction.commit` returns, all of its changes are durable; after a crash at
any moment `recover` leaves all of them or none, and may itself be crashed and run again.

How, for a directory with files to put and files to delete:

1. each new content is written to a temporary beside its target and fsynced;
2. the directories are fsynced, so that the temporaries' names are durable too;
3. the journal, which lists *temporary -> target* and the deletions, is written atomically:
   **this one durable rename is the commit**;
4. renames and deletions are done, and their directories fsynced;
5. the journal is removed durably.

Before 3 is durable, the temporaries are rubbish that `recover` clears away. From then on
`recover` does 4 again, which is harmless: a temporary that is no longer there has already
become its target. Step 5 comes after 4 is durable, so no half is ever left without journal.

All of it, and every reading of the directory that must not see a half-done step, belongs
under the store's lock.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import (
    checked_path,
    create_temporary,
    fsync_directory,
    is_temporary,
    read_bounded,
    remove_durably,
    remove_temporaries,
    write_atomic,
)
from pytest_statepersist.reference.errors import (
    DamagedData,
    IntegrityError,
    NewerVersion,
    NotFound,
    StorageError,
    ValidationError,
)
from pytest_statepersist.reference.presence import is_present

__all__ = ["JOURNAL_NAME", "Transaction", "recover"]

JOURNAL_NAME = ".journal"
_JOURNAL_LIMIT = 256 << 20
_VERSION = 1


@checked
class Transaction:
    """Collects changes below ``root`` and makes them in one step.

    Paths are relative, with ``/``; their directories must exist. Nothing is touched before
    `commit`. A transaction is used once.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = checked_path(root)
        self._puts: dict[str, bytes] = {}
        self._deletes: set[str] = set()

    def put(self, path: str, data: bytes) -> None:
        """Let ``path`` hold ``data``. Raises `ValidationError` for a path out of the root."""
        self._puts[_checked(path)] = data
        self._deletes.discard(path)

    def delete(self, path: str) -> None:
        """Let ``path`` be absent; it may be so already."""
        self._deletes.add(_checked(path))
        self._puts.pop(path, None)

    def __len__(self) -> int:
        return len(self._puts) + len(self._deletes)

    def commit(self) -> None:
        """Make all changes: atomic as a whole, durable on return.

        Raises `StorageError`. Until `recover` has run, it is then open whether the change
        happened: `recover` finishes what was committed and clears away what was not. So the
        owner of the directory calls `recover` before it touches anything again.
        """
        if len(self) == 0:
            return
        if len(self) == 1:  # one file is atomic without a journal
            self._commit_single()
            return
        steps = self._prepare()
        _write_journal(self.root, steps)
        _apply(self.root, steps)

    def _commit_single(self) -> None:
        for path, data in self._puts.items():
            write_atomic(self.root / path, data)
        for path in self._deletes:
            remove_durably(self.root / path, missing_ok=True)

    def _prepare(self) -> _Steps:
        renames: list[_Rename] = []
        try:
            for path, data in sorted(self._puts.items()):
                temporary = create_temporary(self.root / path, data)
                renames.append(_Rename(temporary.name, path, hashlib.sha256(data).hexdigest()))
            steps = _Steps(tuple(renames), tuple(sorted(self._deletes)))
            for directory in steps.directories(self.root):
                fsync_directory(directory)
        except BaseException:
            for rename in renames:
                _unlink_quietly(rename.source(self.root))
            raise
        return steps


@dataclass(frozen=True, slots=True)
class _Rename:
    temporary: str  # a bare name, in the target's directory
    target: str
    sha256: str

    def source(self, root: Path) -> Path:
        return root / os.path.join(os.path.dirname(self.target), self.temporary)


@dataclass(frozen=True, slots=True)
class _Steps:
    renames: tuple[_Rename, ...]
    deletes: tuple[str, ...]

    def directories(self, root: Path) -> Iterable[Path]:
        targets = [rename.target for rename in self.renames] + list(self.deletes)
        return sorted(root / name for name in {os.path.dirname(target) for target in targets})


@checked
def recover(root: str | os.PathLike[str], directories: Iterable[str] = (".",)) -> bool:
    """Finish a committed transaction, clear away an uncommitted one; durable on return.

    Call it under the lock before anything else is read. ``directories`` (relative) are those
    whose left-over temporaries are removed. Returns whether there was a journal to finish.
    Raises `DamagedData` (the journal or a prepared file was tampered with: nothing is guessed,
    nothing removed), `NewerVersion`, `StorageError`.
    """
    base = checked_path(root)
    found = _read_journal(base)
    if found is not None:
        _apply(base, found)
    else:
        # The absence of the journal must be durable before a prepared file goes: a failed
        # removal could otherwise bring back a journal whose files we have just removed.
        fsync_directory(base)
    for directory in directories:
        remove_temporaries(base / directory)
    return found is not None


def _apply(root: Path, steps: _Steps) -> None:
    for rename in steps.renames:
        source = rename.source(root)
        try:
            os.replace(source, root / rename.target)
        except FileNotFoundError as error:
            # Renamed already, by a run that a crash cut short. Anything else is a loss.
            if not is_present(root / rename.target):
                raise DamagedData(
                    f"{source}: the committed content of {rename.target} is gone, and no crash "
                    "of ours removes it; restore a backup"
                ) from error
        except OSError as error:
            raise StorageError(root / rename.target, error) from error
    for path in steps.deletes:
        try:
            os.unlink(root / path)
        except FileNotFoundError:
            pass  # deleted already
        except OSError as error:
            raise StorageError(root / path, error) from error
    for directory in steps.directories(root):
        fsync_directory(directory)
    remove_durably(root / JOURNAL_NAME, missing_ok=True)


def _write_journal(root: Path, steps: _Steps) -> None:
    body = json.dumps(
        {
            "version": _VERSION,
            "put": [[item.temporary, item.target, item.sha256] for item in steps.renames],
            "delete": list(steps.deletes),
        }
    ).encode()
    try:
        write_atomic(root / JOURNAL_NAME, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    except StorageError:
        # Only the last directory sync may have failed, and the journal be there: then it is
        # withdrawn, so that a caller who was told "error" does not see the change later.
        remove_durably(root / JOURNAL_NAME, missing_ok=True)
        for rename in steps.renames:
            _unlink_quietly(rename.source(root))
        raise


def _read_journal(root: Path) -> _Steps | None:
    path = root / JOURNAL_NAME
    try:
        raw = read_bounded(path, _JOURNAL_LIMIT, follow_symlinks=False)
    except NotFound:
        return None
    digest, _, body = raw.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise IntegrityError(
            f"{path}: the journal's checksum is wrong, and no crash of ours can cause that; "
            "keep a copy of the directory, then restore a backup or remove the journal"
        )
    steps = _parse(path, body)
    for rename in steps.renames:
        _verify_prepared(root, rename)
    return steps


def _parse(path: Path, body: bytes) -> _Steps:
    try:
        content = json.loads(body)
        version = content["version"]
        if version == _VERSION:
            return _Steps(
                tuple(_Rename(_temporary(t), _checked(p), s) for t, p, s in content["put"]),
                tuple(_checked(p) for p in content["delete"]),
            )
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise DamagedData(f"{path}: the journal cannot be read ({error})") from error
    raise NewerVersion(f"{path}: journal version {version}, this code knows {_VERSION}")


def _verify_prepared(root: Path, rename: _Rename) -> None:
    try:
        data = read_bounded(rename.source(root), 1 << 62, follow_symlinks=False)
    except NotFound:
        return  # became its target before the crash
    if hashlib.sha256(data).hexdigest() != rename.sha256:
        raise IntegrityError(
            f"{rename.source(root)}: the prepared content of {rename.target} was changed "
            "after it had been committed; keep a copy of the directory and restore a backup"
        )


def _checked(path: str) -> str:
    parts = path.split("/")
    inside = all(part not in ("", ".", "..") and "\0" not in part for part in parts)
    if not inside or "\\" in path or PurePosixPath(path).is_absolute():
        raise ValidationError("path", f"{path!r} does not lie inside the store")
    if path != path.encode("utf-8", "ignore").decode():
        raise ValidationError("path", f"{path!r} has a lone surrogate, which UTF-8 cannot express")
    if path == JOURNAL_NAME or is_temporary(parts[-1]):
        raise ValidationError("path", f"{path!r} is a name that the transaction itself uses")
    return path


def _temporary(name: str) -> str:
    if "/" in name or not is_temporary(name):
        raise ValidationError("temporary", f"{name!r} is not a temporary's name")
    return name


def _unlink_quietly(path: Path) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # `recover` removes it under the lock
