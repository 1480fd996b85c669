"""What comes into the directory from outside.

Belongs here: making known what the recording did not see being made, before a call moves or links
it in, or syncs it. It counts as written now, and as synced only by what follows. Rule: functions
are called in the turn of the call that they belong to.
"""

from __future__ import annotations

import os
import stat

from pytest_statepersist.core.operations import OUTSIDE
from pytest_statepersist.core.tree import LARGE
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.scan import scan
from pytest_statepersist.recorders.session import Path, Session, descriptor_path

__all__ = ["adopt", "adopt_if_possible", "adopt_synced"]

_ADOPTED = 256 << 20
"""Bytes of a file that are kept, at most."""


def adopt(session: Session, path: Path, name: str, directory: int | None = None) -> int | None:
    """Make something outside known before it moves in; ``None`` where it is not there."""
    try:
        status = real.lstat(path, dir_fd=directory)
    except OSError:
        return None
    builder = session.builder
    identity = (status.st_dev, status.st_ino)
    known = builder.find(identity)
    if known is not None:
        if builder.entry(OUTSIDE, name) is None and not builder[known].inside:
            builder.link(known, OUTSIDE, name, session.moment())
        return known
    full = name if directory is None else _at(path, directory)
    if stat.S_ISREG(status.st_mode):
        return _adopt_file(session, full, name, status)
    if stat.S_ISLNK(status.st_mode):
        target = real.readlink(full)
        return builder.symlink(OUTSIDE, name, target, session.moment(), identity=identity)
    if stat.S_ISDIR(status.st_mode):
        found = scan(full)
        at = session.moment()
        return builder.adopt_tree(name, found.tree, at, identities=found.identities)
    return None


def adopt_if_possible(session: Session, path: Path, name: str, directory: int | None) -> None:
    """Adopt what is about to move in, unless the call cannot succeed: another device."""
    try:
        device = real.lstat(path, dir_fd=directory).st_dev
    except OSError:
        return
    if device == real.stat(session.directory).st_dev:
        adopt(session, path, name, directory)


def adopt_synced(session: Session, fd: int, status: os.stat_result) -> int | None:
    """Make an older file outside known because it is synced now, unless it is large."""
    if not stat.S_ISREG(status.st_mode) or status.st_size > LARGE:
        return None
    path = descriptor_path(fd)
    try:
        return _adopt_file(session, path, os.path.realpath(path), status)
    except OSError:
        return None  # not readable: it counts as unsynced if it ever moves in


def _adopt_file(session: Session, path: str, name: str, status: os.stat_result) -> int:
    if status.st_size > _ADOPTED:
        session.unseen(name, f"came from outside with {status.st_size} bytes,", None)
    with real.open(path, "rb", buffering=0) as file:
        content = file.read(min(status.st_size, _ADOPTED))
    return session.builder.adopt(
        name,
        bytes(content),
        session.moment(),
        mode=stat.S_IMODE(status.st_mode),
        identity=(status.st_dev, status.st_ino),
    )


def _at(path: Path, directory: int) -> str:
    return os.path.join(descriptor_path(directory), os.fsdecode(path))
