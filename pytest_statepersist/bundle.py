"""Bundles as files: the directory in which they are kept, finding one, writing and reading it.

Belongs here: what touches the file system for a bundle. What its bytes mean is `bundle_json`'s.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from pytest_statepersist.bundle_json import FILE_LIMIT, NAME, Bundle, dump, load
from pytest_statepersist.errors import BundleError

__all__ = ["DIRECTORY", "drop", "find", "kept", "nearest", "read", "write"]

DIRECTORY = Path(".statepersist") / "bundles"
"""Where bundles are kept, below the root of the project."""

_PREFIX = re.compile(r"[0-9a-f]{4,8}(-[0-9a-f]{0,6})?")


def write(bundle: Bundle, directory: Path) -> Path:
    """Write a bundle into a directory, which is made, and return its path; never half of one.

    Raises `BundleError` where it is too large to be read again.
    """
    if not NAME.fullmatch(bundle.name):
        raise BundleError(f"{bundle.name!r} is not the name of a bundle")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _ignore(directory)
    data = dump(bundle)
    ending = ".json.gz" if data.startswith(b"\x1f\x8b") else ".json"
    descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        path = directory / f"{bundle.name}{ending}"
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    other = ".json" if ending == ".json.gz" else ".json.gz"
    with suppress(FileNotFoundError):
        os.unlink(directory / f"{bundle.name}{other}")
    return path


def _ignore(directory: Path) -> None:
    """What is kept is for this machine: version control is told so, once."""
    top = directory.parent
    if top.name != DIRECTORY.parent.name:
        return
    with suppress(FileExistsError), open(top / ".gitignore", "x", encoding="ascii") as file:
        file.write("*\n")


# -- the directory


def nearest(here: Path) -> Path:
    """Return the directory of bundles of the project in which a directory lies."""
    for each in (here, *here.parents):
        if (each / DIRECTORY).is_dir():
            return each / DIRECTORY
    return here / DIRECTORY


def kept(directory: Path) -> list[Path]:
    """Return the bundles of a directory, sorted by name; none where there is no directory."""
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [directory / name for name in names if NAME.fullmatch(_stem(name)) and "." in name]


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".json")


def find(given: str, directory: Path) -> Path:
    """Return the file of a bundle, given by path, id or the beginning of an id.

    Raises `BundleError` where there is none, or more than one.
    """
    if not _PREFIX.fullmatch(given):
        path = Path(given)
        if not os.path.lexists(path):
            raise BundleError(
                f"there is no bundle {given!r}: give the id that a report names, or a file"
            )
        return path
    found = [path for path in kept(directory) if path.name.startswith(given)]
    if len(found) == 1:
        return found[0]
    if not found:
        names = ", ".join(_stem(path.name) for path in kept(directory)[:10]) or "none"
        raise BundleError(f"there is no bundle {given} in {directory}; there are: {names}")
    names = ", ".join(_stem(path.name) for path in found)
    raise BundleError(f"{given} is the beginning of more than one bundle: {names}")


def drop(
    directory: Path, suffix: str, *, but: Iterable[str], covered: Mapping[str, int]
) -> list[str]:
    """Remove the bundles of one exploration that it no longer finds; return their names.

    ``covered`` has the deviations up to which each model was explored in full: what lies beyond
    cannot be known to be gone. Neither can crashes during recovery, which may be switched off.
    """
    gone, keep = [], set(but)
    for path in kept(directory):
        name = _stem(path.name)
        if not name.endswith(f"-{suffix}") or name in keep:
            continue
        try:
            bundle = read(path)
            if bundle.step is not None or bundle.deviations > covered.get(bundle.model, -1):
                continue
        except BundleError:
            continue  # it cannot be read, so nobody knows what it says
        with suppress(FileNotFoundError):
            path.unlink()
        gone.append(name)
    return gone


def read(path: Path) -> Bundle:
    """Read a bundle from a file; raises `BundleError` where it is not one, or is not allowed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK)
    except ValueError as error:
        raise BundleError(f"{str(path)!r} cannot be a file: {error}") from None
    except OSError as error:
        if os.path.islink(path):
            raise BundleError(f"{path} is a symbolic link; give the bundle itself") from None
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{path} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(FILE_LIMIT + 1)
    try:
        bundle = load(data)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    stem = _stem(path.name)
    if NAME.fullmatch(stem) and stem != bundle.name:
        raise BundleError(f"{path} holds the bundle {bundle.name}; it was renamed, or is not ours")
    return bundle


