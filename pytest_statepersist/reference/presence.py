"""Whether a file is there: yes, no, or an error; never a guess.

The law: `os.path.exists` and its relatives answer "no" when the disk fails. A store that takes
that for an answer creates a new vault over an old one, or reads past a journal.
"""

from __future__ import annotations

import os
import stat

from pytest_statepersist.reference.errors import StorageError

__all__ = ["is_directory", "is_link", "is_present"]


def is_present(path: str | os.PathLike[str]) -> bool:
    """Tell whether the name exists, be it a file, a directory or a link. Raises `StorageError`."""
    return _mode(path, follow=False) is not None


def is_link(path: str | os.PathLike[str]) -> bool:
    """Tell whether the name is a symbolic link. Raises `StorageError`."""
    mode = _mode(path, follow=False)
    return mode is not None and stat.S_ISLNK(mode)


def is_directory(path: str | os.PathLike[str]) -> bool:
    """Tell whether the name leads to a directory, by a link too. Raises `StorageError`."""
    mode = _mode(path, follow=True)
    return mode is not None and stat.S_ISDIR(mode)


def _mode(path: str | os.PathLike[str], *, follow: bool) -> int | None:
    try:
        return (os.stat(path) if follow else os.lstat(path)).st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(path, error) from error
