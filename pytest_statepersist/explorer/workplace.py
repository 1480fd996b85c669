"""Where crash states are shown: a directory, and scratch space beside it.

In memory where there is some.

Belongs here: making these directories, and taking them away on every way out.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pytest_statepersist.errors import UserError

__all__ = ["Workplace", "discard", "in_memory", "workplace"]


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where states are shown: the directory, scratch space, and the original if another."""

    directory: str
    aside: str
    original: str | None = None
    outside: frozenset[str] = frozenset()
    """Files elsewhere that the workload wrote: no crash state takes anything from them."""


@contextmanager
def workplace(parent: str | None, keep: bool = False) -> Iterator[Workplace]:
    """Make a directory for states and one for scratch, in memory where there is one."""
    if parent is not None and not os.path.isdir(parent):
        raise UserError(f"workspace={parent!r} is no directory; make it, or leave it out")
    root = tempfile.mkdtemp(prefix="statepersist-", dir=parent or in_memory())
    try:
        root = os.path.realpath(root)
        directory, aside = f"{root}/state", f"{root}/aside"
        os.mkdir(directory, 0o755)
        os.mkdir(aside, 0o700)
        yield Workplace(directory, aside)
    finally:
        if not keep:
            discard(root)
        else:
            discard_later(root)


def in_memory() -> str | None:
    """Return a directory in memory, ``None`` where there is none that may be written to."""
    shared = "/dev/shm"
    if os.path.isdir(shared) and os.access(shared, os.W_OK | os.X_OK):
        return shared
    return None


def discard(root: str) -> None:
    """Remove a directory with all that is in it, whatever its permissions are."""
    def force(function: Any, path: str, _: Any) -> None:
        for each in (os.path.dirname(path), path):
            try:
                os.chmod(each, stat.S_IRWXU)
            except OSError:
                pass
        try:
            function(path)
        except OSError:
            pass

    shutil.rmtree(root, onerror=force)


def discard_later(root: str) -> None:
    """A recording may be explored after its block: its copies live as long as the process."""
    import atexit

    atexit.register(discard, root)
