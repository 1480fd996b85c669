"""A gate before every call that Python code makes on one directory.

Belongs here: the gate, which says where in its directory a call is, and which one is in place. The
calls that ask it are in `gate_calls` and `gate_files`; what a handler does (fail it, count bytes,
kill the process, wait for a turn) is elsewhere. Rules:

1. The handler runs before the real call and before the recorder, so that the recorder sees only
   what really happened. The one exception is a failed sync: it goes through the recorder, which
   notes it as failed, and fails below it (`fail_sync`).
2. Without a gate, and for what lies outside the directory, every replacement only passes through.
"""


from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from pytest_statepersist.faults.calls import Call
from pytest_statepersist.recorders import real

__all__ = ["Gate", "Handler", "current", "gated", "slot"]


class Handler(Protocol):
    """Decides about calls; ``run`` makes the call as it was asked for and returns its result."""

    def __call__(self, call: Call, run: Callable[[], Any]) -> Any:
        """Return what the caller gets, or raise what it meets."""


class Gate:
    """The directory that is watched, and who decides."""

    __slots__ = ("directory", "handler", "prefix", "runner", "unseen")

    def __init__(self, directory: str | os.PathLike[str], handler: Handler) -> None:
        self.directory = os.path.realpath(os.fspath(directory))
        self.prefix = self.directory + os.sep
        self.handler = handler
        self.unseen: Callable[[], AbstractContextManager[Any]] = nullcontext
        """Entered while this process does something for a program that its own call shows too."""
        self.runner: Callable[[list[str], dict[str, str]], tuple[int, bytes, bytes]] | None = None
        """What runs a command and its calls by this gate; ``None`` where the kernel is asked."""

    def place(self, path: Any, directory: int | None = None) -> str | None:
        """Return a path relative to the directory, ``None`` for what is outside."""
        if isinstance(path, int):
            return self.place_of(path)
        try:
            text = os.fsdecode(path)
        except TypeError:
            return None  # the call itself will refuse it
        if text.startswith(self.prefix) and not _winds(text):
            return text[len(self.prefix) :]
        if directory is not None and not text.startswith(os.sep):
            head = _path_of(directory)
            if head is None:
                return None
            text = os.path.join(head, text)
        return self._inside(os.path.abspath(text))

    def place_of(self, fd: int) -> str | None:
        """Return the path behind a descriptor relative to the directory, ``None`` outside."""
        path = _path_of(fd)
        return None if path is None else self._inside(path.removesuffix(" (deleted)"))

    def _inside(self, path: str) -> str | None:
        if path.startswith(self.prefix):
            return path[len(self.prefix) :]
        return "" if path == self.directory else None


def _winds(path: str) -> bool:
    """Say whether an absolute path may be written in a shorter way; most are not."""
    return "/." in path or "//" in path or path[-1] == "/"


class _Slot:
    gate: Gate | None = None


slot = _Slot()
"""Where the replacements find the gate that is in place."""


def current() -> Gate | None:
    """Return the gate that is in place in this process, if there is one."""
    return slot.gate


def _path_of(fd: int) -> str | None:
    try:
        return real.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        pass
    get_path = getattr(fcntl, "F_GETPATH", None)  # macOS
    if get_path is None:
        return None
    try:
        return os.fsdecode(fcntl.fcntl(fd, get_path, bytes(1024)).rstrip(b"\0"))
    except OSError:
        return None


@contextmanager
def gated(directory: str | os.PathLike[str], handler: Handler) -> Iterator[Gate]:
    """Send every call on a directory to a handler; needs `installed` around it."""
    before, gate = slot.gate, Gate(directory, handler)
    slot.gate = gate
    try:
        yield gate
    finally:
        slot.gate = before
