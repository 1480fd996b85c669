"""Locks that a process has on files of a directory.

Belongs here: reading them from the kernel. Opening the files to try would drop locks: a process
loses its fcntl locks on a file when it closes any descriptor of it.
"""

from __future__ import annotations

import os

from pytest_statepersist.recorders import real

__all__ = ["held_locks", "locks_known"]

_TABLE = "/proc/locks"


def locks_known() -> bool:
    """Say whether this system tells which locks are held."""
    return os.access(_TABLE, os.R_OK)


def held_locks(directory: str, pid: int | None = None) -> frozenset[tuple[str, str]]:
    """Return (relative path, kind) of every lock of this process below a directory.

    Kinds are the kernel's: POSIX (fcntl, lockf), FLOCK, OFDLCK. Empty where nothing tells.
    """
    if pid is None and not _has_open(directory):
        return frozenset()  # a lock needs a descriptor, and that is far cheaper to find out
    pids = {str(os.getpid() if pid is None else pid), "-1"}
    found: dict[str, set[str]] = {}
    try:
        with real.open(_TABLE, encoding="ascii", errors="replace") as table:
            for line in table:
                fields = line.split()
                if "->" in fields or len(fields) < 6 or fields[4] not in pids:
                    continue
                found.setdefault(fields[5].rpartition(":")[2], set()).add(fields[1])
    except OSError:
        return frozenset()
    if not found:
        return frozenset()
    return frozenset(_named(directory, "", found))


def _has_open(directory: str) -> bool:
    """Say whether this process has a descriptor of anything below a directory."""
    prefix = directory + os.sep
    try:
        with real.scandir("/proc/self/fd") as entries:
            for entry in entries:
                try:
                    if real.readlink(entry.path).startswith(prefix):
                        return True
                except OSError:
                    continue  # the descriptor of this very listing
    except OSError:
        return True
    return False


def _named(directory: str, prefix: str, found: dict[str, set[str]]) -> list[tuple[str, str]]:
    named: list[tuple[str, str]] = []
    try:
        with real.scandir(directory) as entries:
            for entry in entries:
                kinds = found.get(str(entry.inode()), ())
                named.extend((prefix + entry.name, kind) for kind in kinds)
                if entry.is_dir(follow_symlinks=False):
                    named.extend(_named(entry.path, f"{prefix}{entry.name}/", found))
    except OSError:
        pass
    return named
