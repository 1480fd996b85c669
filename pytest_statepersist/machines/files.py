"""The files of a store as bytes: read, replaced, and put back.

Belongs here: what Integrity, Backup and Migration share. Only regular files count; links are not
followed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

__all__ = ["Files", "copy_tree", "files_of", "put_files", "remove_tree", "write_changes"]

Files = dict[str, bytes]
"""Relative paths to contents."""


def files_of(directory: Path) -> Files:
    """Return every regular file below a directory."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            found[path.relative_to(directory).as_posix()] = path.read_bytes()
    return found


def put_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Make a directory hold these files; directories that exist stay, with their modes."""
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
    write_changes(directory, files)


def write_changes(directory: Path, changes: Mapping[str, bytes | None]) -> None:
    """Replace or (``None``) remove some files."""
    for name, data in changes.items():
        path = directory / name
        if data is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Private, so that what the store made public is the store's doing and stays visible.
            with open(path, "wb", opener=_private) as file:
                file.write(data)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a directory or a file."""
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def remove_tree(path: Path) -> None:
    """Remove a directory or a file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
