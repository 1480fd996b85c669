"""The fast lane: a state directory in memory, on pyfakefs, for tests of quotas and retention.

Belongs here: making that directory, and knowing whether one is active. It says nothing about
crashes: in it `fsync` does nothing, and SQLite writes to the real disk. Whoever records or explores
while it is active is told so (`refuse_while_active`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_statepersist.errors import UserError

__all__ = ["fake_state_dir", "refuse_while_active"]

_active: list[str] = []


@contextmanager
def fake_state_dir(*, capacity: int | None = None) -> Iterator[Path]:
    """Give an empty directory in memory while the block runs; ``None`` for no limit of its size.

    Writing beyond ``capacity`` bytes raises ENOSPC. Raises `UserError` inside a recording.
    """
    from pyfakefs.fake_filesystem_unittest import Patcher

    if capacity is not None and (not isinstance(capacity, int) or capacity < 0):
        raise UserError(f"capacity={capacity!r} cannot be: give bytes from 0")
    recording = sys.modules.get("pytest_statepersist.recorders.python")
    if recording is not None and recording._slot.session is not None:
        raise UserError("fake_state_dir cannot begin inside a recording: nothing of it is a disk")
    other = _in_memory()
    if other is not None:
        raise UserError(f"fake_state_dir cannot begin while {other} is active: one at a time")
    with Patcher() as patcher:
        fake = patcher.fs
        assert fake is not None  # it is made when the patcher starts
        directory = "/state"
        fake.create_dir(directory)
        if capacity is not None:
            fake.set_disk_usage(capacity)
        _active.append(directory)
        try:
            import pathlib

            yield pathlib.Path(directory)
        finally:
            _active.remove(directory)


def refuse_while_active(what: str) -> None:
    """Raise `UserError` where a fake directory is in use: no claim about crashes would be true."""
    fake = _in_memory()
    if fake is not None:
        raise UserError(
            f"{what} cannot be used while {fake} is active: in memory fsync does nothing, "
            "writes are never torn and SQLite goes past it to the real disk, so every verdict "
            "about a crash would be made up. Use state_dir, which is a real directory."
        )


def _in_memory() -> str | None:
    """Return what keeps files in memory here: `fake_state_dir`, or pyfakefs itself."""
    if _active:
        return "fake_state_dir"
    pyfakefs = sys.modules.get("pyfakefs.fake_filesystem_unittest")
    if pyfakefs is None:
        return None
    patchers = pyfakefs.Patcher
    paused = getattr(patchers.PATCHER, "_paused", False)
    return "pyfakefs" if patchers.REF_COUNT and not paused else None
