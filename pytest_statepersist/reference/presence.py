"""Whether a file is there: yes, no, or an error; never a guess.

The law: `os.path.exists` and its relatives answer "no" when the disk fails. A store that takes
that for an answer creates a new vault over an old one, or reads past a journal.
"""

from __future__ import annotations

import os

from pytest_statepersist.reference.errors import StorageError

__all__ = ["is_present"]


def is_present(path: str | os.PathLike[str]) -> bool:
    """Tell whether the name exists, be it a file, a directory or a link. Raises `StorageError`."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(path, error) from error
    return True
