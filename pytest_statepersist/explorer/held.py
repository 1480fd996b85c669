"""One small file of the directory in which states are shown, and what it holds now.

Belongs here: `Held`, which turns the content of one state into that of the next one with as few
system calls as the difference needs, and `set_xattrs` for files that are not held. Rules:

1. It is open for as long as it is held, so that a change is one `pwrite` and not a new file.
2. What is equal is not written again; a modification time is set whenever a write moved it.
3. Whoever removes the file, or lets others change it, closes it first.
4. It calls the system past all replacements: no recorder and no gate is to see the explorer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress

from pytest_statepersist.recorders.real import system

__all__ = ["Held", "set_xattrs", "xattrs_of"]


class Held:
    """A regular file that holds ``content``, with this mode, time and extended attributes."""

    __slots__ = ("content", "descriptor", "mode", "mtime", "xattrs")

    def __init__(self, path: str, mode: int, umask: int, *, fresh: bool) -> None:
        """Open a file and empty it; ``fresh`` where there must be none yet."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | (os.O_EXCL if fresh else 0)
        try:
            self.descriptor = system.open(path, flags, mode)
        except PermissionError:
            system.chmod(path, 0o600)
            self.descriptor = system.open(path, flags, mode)
        self.content = b""
        self.mode = mode & ~umask if fresh else -1
        self.mtime: int | None = None
        self.xattrs: Mapping[str, bytes] = {} if fresh else xattrs_of(self.descriptor)

    def become(
        self, content: bytes, mode: int, xattrs: Mapping[str, bytes], mtime: int | None
    ) -> None:
        """Give the file this content and these attributes; a time of ``None`` is left alone."""
        descriptor, before = self.descriptor, self.content
        if mode != self.mode:
            system.fchmod(descriptor, mode)
            self.mode = mode
        if content != before:
            _write(descriptor, content)
            if len(content) < len(before):
                system.ftruncate(descriptor, len(content))
            self.content = content
            self.mtime = None
        if xattrs != self.xattrs:
            self._set_xattrs(xattrs)
        if mtime is not None and mtime != self.mtime:
            system.utime(descriptor, ns=(mtime, mtime))
            self.mtime = mtime

    def _set_xattrs(self, xattrs: Mapping[str, bytes]) -> None:
        set_xattrs(self.descriptor, self.xattrs, xattrs)
        self.xattrs = dict(xattrs)

    def close(self) -> None:
        """Let go of the file; called twice it does nothing."""
        if self.descriptor >= 0:
            system.close(self.descriptor)
            self.descriptor = -1


def xattrs_of(descriptor: int) -> dict[str, bytes]:
    """Return the attributes of an open file that trees hold: those that programs may set."""
    if not hasattr(os, "listxattr"):
        return {}
    try:
        names = [name for name in system.listxattr(descriptor) if name.startswith("user.")]
        return {name: system.getxattr(descriptor, name) for name in names}
    except OSError:
        return {}  # a file system without them


def set_xattrs(descriptor: int, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
    """Give an open file other attributes than those it has, where the file system has any."""
    if not hasattr(os, "setxattr"):
        return
    for name in before.keys() - after.keys():
        with suppress(OSError):
            system.removexattr(descriptor, name)
    for name, value in after.items():
        with suppress(OSError):
            system.setxattr(descriptor, name, value)


def _write(descriptor: int, data: bytes) -> None:
    done = system.pwrite(descriptor, data, 0) if data else 0
    while done < len(data):
        done += system.pwrite(descriptor, memoryview(data)[done:], done)
