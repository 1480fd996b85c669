"""How frames get from one member to the others: the protocol, and two implementations.

The law: a transport gives each group's frames one order, the same for all, and accepts at
most one commit for each epoch, so that two members who commit at once agree on who was first.
It is trusted with nothing else: frames are encrypted and signed, and may be delivered twice.
`DirectoryTransport` is a mailbox in a directory that all members can reach; a real network
would be one more class with the same two methods.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Protocol

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import (
    check_size,
    checked_path,
    fsync_directory,
    make_directory,
    read_bounded,
    remove_temporaries,
    write_atomic,
)
from pytest_statepersist.reference.errors import (
    ConflictError,
    PersistenceError,
    TransportError,
)
from pytest_statepersist.reference.locking import StoreLock
from pytest_statepersist.reference.slots import check_group_id

__all__ = [
    "LARGEST_FRAME",
    "DirectoryTransport",
    "MemoryTransport",
    "Transport",
    "check_frame",
]

LARGEST_FRAME = 16 << 20
_FRAME_NAME = re.compile(r"([0-9]{8,})(?:-after-([0-9]+))?\.frame")


class Transport(Protocol):
    """What a messenger asks of the network."""

    def publish(self, group_id: bytes, frame: bytes, *, commit_after: int | None = None) -> int:
        """Hand a frame to all members and return its position, from 1.

        ``commit_after`` says that it is a commit, and after which epoch; publishing the same
        commit again returns its old position. Raises `ConflictError` if that epoch has another
        commit, `TransportError` if it is open whether the frame got through.
        """

    def fetch(self, group_id: bytes, after: int) -> tuple[tuple[int, bytes], ...]:
        """Return all frames behind position ``after``, in order. Raises `TransportError`."""


@checked
class MemoryTransport:
    """All members in one process; safe between threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._frames: dict[bytes, list[bytes]] = {}
        self._commits: dict[tuple[bytes, int], int] = {}

    def publish(self, group_id: bytes, frame: bytes, *, commit_after: int | None = None) -> int:
        """Append a frame. Raises `ConflictError`, `ValidationError`."""
        check_frame(frame)
        with self._mutex:
            frames = self._frames.setdefault(group_id, [])
            if commit_after is not None:
                position = self._commits.setdefault((group_id, commit_after), len(frames) + 1)
                if position <= len(frames):
                    _check_same(frames[position - 1], frame, commit_after)
                    return position
            frames.append(frame)
            return len(frames)

    def fetch(self, group_id: bytes, after: int) -> tuple[tuple[int, bytes], ...]:
        """Return the frames behind ``after``."""
        with self._mutex:
            frames = self._frames.get(group_id, [])
            return tuple(enumerate(frames[after:], start=after + 1))


@checked
class DirectoryTransport:
    """A mailbox below a directory, shared by processes: one durable file a frame."""

    def __init__(self, directory: str | os.PathLike[str], *, lock_timeout: float = 10.0) -> None:
        self.directory = checked_path(directory)
        self._lock_timeout = lock_timeout

    def publish(self, group_id: bytes, frame: bytes, *, commit_after: int | None = None) -> int:
        """Store a frame, durable on return.

        Raises `ConflictError`, `ValidationError` (too large), `TransportError`.
        """
        check_frame(frame)
        box = self._box(group_id)
        suffix = "" if commit_after is None else f"-after-{commit_after}"
        try:
            make_directory(box)
            with StoreLock(box / ".lock", timeout=self._lock_timeout):
                remove_temporaries(box)
                names = self._names(box)
                for position, (name, epoch) in names.items():
                    if commit_after is not None and epoch == commit_after:
                        stored = read_bounded(box / name, LARGEST_FRAME)
                        _check_same(stored, frame, commit_after)
                        write_atomic(box / name, frame)  # whoever wrote it may have died unsynced
                        return position
                position = max(names, default=0) + 1
                write_atomic(box / f"{position:08}{suffix}.frame", frame)
                return position
        except ConflictError:
            raise
        except PersistenceError as error:
            raise TransportError(f"a frame was perhaps not delivered: {error}") from error

    def fetch(self, group_id: bytes, after: int) -> tuple[tuple[int, bytes], ...]:
        """Return the frames behind ``after``. Raises `TransportError`."""
        box = self._box(group_id)
        try:
            names = self._names(box)
            if names:
                # A publisher may have died before its sync: what we report as received must
                # not disappear again and its position be given to another frame.
                fsync_directory(box)
            return tuple(
                (position, read_bounded(box / names[position][0], LARGEST_FRAME))
                for position in sorted(names)
                if position > after
            )
        except PersistenceError as error:
            raise TransportError(f"frames could not be fetched: {error}") from error

    def _box(self, group_id: bytes) -> Path:
        return self.directory / check_group_id(group_id).hex()

    def _names(self, box: Path) -> dict[int, tuple[str, int | None]]:
        try:
            found = [match for name in os.listdir(box) if (match := _FRAME_NAME.fullmatch(name))]
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise TransportError(f"{box}: {error}") from error
        return {int(m[1]): (m[0], None if m[2] is None else int(m[2])) for m in found}


@checked
def check_frame(frame: bytes) -> None:
    """Raise `ValidationError` for a frame that the other members would not accept."""
    check_size(frame, LARGEST_FRAME, "frame")


def _check_same(stored: bytes, frame: bytes, epoch: int) -> None:
    if stored != frame:
        raise ConflictError(f"another commit after epoch {epoch} was published first; fetch it")
