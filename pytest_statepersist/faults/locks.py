"""Locks that this process has on files of a directory.

Belongs here: reading them from the kernel, which tells for each open file the locks that were taken
through it (proc(5), /proc/pid/fdinfo). Opening the files to try would drop locks: a process loses
its fcntl locks on a file when it closes any descriptor of it.
"""

from __future__ import annotations

import os

from pytest_statepersist.recorders import real

__all__ = ["held_locks", "locks_known"]

_OPEN, _INFORMATION = "/proc/self/fd", "/proc/self/fdinfo"
_DELETED = " (deleted)"


def locks_known() -> bool:
    """Say whether this system tells which locks are held."""
    return os.access(_INFORMATION, os.R_OK)


def held_locks(directory: str) -> frozenset[tuple[str, str]]:
    """Return (relative path, kind) of every lock of this process below a directory.

    Kinds are the kernel's: POSIX (fcntl, lockf), FLOCK, OFDLCK. Empty where nothing tells. A lock
    on a file that is deleted is none: nobody else can come to wait for it.
    """
    prefix = directory + os.sep
    found: set[tuple[str, str]] = set()
    try:
        with real.scandir(_OPEN) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return frozenset()
    for name in names:
        try:
            path = real.readlink(f"{_OPEN}/{name}")
            if path.startswith(prefix) and not path.endswith(_DELETED):
                kinds = _kinds(f"{_INFORMATION}/{name}")
                found.update((path.removeprefix(prefix), kind) for kind in kinds)
        except OSError:
            continue  # the descriptor of the listing itself
    return frozenset(found)


def _kinds(path: str) -> set[str]:
    with real.open(path, encoding="ascii", errors="replace") as file:
        return {line.split()[2] for line in file if line.startswith("lock:")}
