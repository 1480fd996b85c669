"""The one exception tree of the reference implementation.

Belongs here: every error that a caller of `reference` can meet. All of them descend from
`PersistenceError`, so one ``except`` suffices; each subclass is a different thing to *do*
(ask for the password again, free some space, call support), never just a different place.
Each message names the culprit, the usual cause and the way out.

Append only: other modules and users match on these names.
"""

from __future__ import annotations

import os

__all__ = [
    "BackupError",
    "ConflictError",
    "DamagedData",
    "DamagedHeader",
    "DamagedLog",
    "DecompressionBomb",
    "IntegrityError",
    "InvalidId",
    "LockTimeout",
    "NewerVersion",
    "NotFound",
    "PersistenceError",
    "QuotaExceeded",
    "RolledBack",
    "StorageError",
    "TooLarge",
    "TransportError",
    "ValidationError",
    "WrongPassword",
]


class PersistenceError(Exception):
    """Root of everything that the reference implementation raises on purpose."""


class StorageError(PersistenceError):
    """The operating system refused a call on ``path``; ``cause`` is its own error.

    The state on disk is what the method's docstring promises for a crash at that moment:
    usually the old value, never a mixture.
    """

    def __init__(self, path: str | os.PathLike[str], cause: BaseException) -> None:
        super().__init__(f"{os.fspath(path)}: {cause}")
        self.path = os.fspath(path)
        self.cause = cause

    @property
    def errno(self) -> int | None:
        """The operating system's error number, where it gave one."""
        return getattr(self.cause, "errno", None)


class NotFound(PersistenceError):
    """Nothing is stored under that name."""


class InvalidId(PersistenceError):
    """An identifier cannot safely become a file name."""


class DamagedData(PersistenceError):
    """Stored bytes cannot be what was once written: cut short, overwritten, or never ours."""


class IntegrityError(DamagedData):
    """A checksum, an authentication tag or a signature does not fit the bytes beside it."""


class TooLarge(DamagedData):
    """Stored data is larger than the caller's limit; it was not read, and left untouched.

    It was not written by us under this limit: open it with a larger one, or restore a backup.
    """


class DecompressionBomb(TooLarge):
    """Data unfolds to more bytes, or values, than is accepted; unpacking stopped there."""


class WrongPassword(PersistenceError):
    """The password or key is not the one that this data was encrypted with."""


class NewerVersion(PersistenceError):
    """The data was written by newer code; it was left untouched. Update the application."""


class QuotaExceeded(PersistenceError):
    """The value does not fit into what is left of the quota; nothing was lost."""


class ValidationError(PersistenceError):
    """A value breaks the schema; ``field`` is the dotted path of the first offender."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class LockTimeout(PersistenceError):
    """Another thread or process kept the store's lock for longer than the timeout."""


class BackupError(PersistenceError):
    """A backup is missing, incomplete or already there; the store itself was not touched."""


class ConflictError(PersistenceError):
    """Two writers changed the same thing and the code must not choose between them."""


class DamagedLog(DamagedData):
    """Part of an event log is unreadable or missing, and no crash explains it.

    ``path`` is the segment, snapshot or directory concerned. Nothing was skipped or cut.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        super().__init__(
            f"{os.fspath(path)}: {problem}. A crash does not cause this, a failing disk or a "
            "foreign hand does: restore a backup, or take what `inspect_log` can still read"
        )
        self.path = os.fspath(path)
        self.problem = problem


class RolledBack(IntegrityError):
    """Genuine data, but older than what is known to have been saved."""


class TransportError(PersistenceError):
    """A message could not be handed to, or fetched from, the other members."""


class DamagedHeader(WrongPassword, DamagedData):
    """Wrong password or damaged header: the bytes that could tell the two apart are damaged."""
