"""The real functions of the system, bound once at import.

Belongs here: names only. Recorders call these, so that no interposition (ours or a test's) and no
frozen clock changes what they see. A function that the platform lacks is ``None``.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from fcntl import F_GETFL, fcntl
from functools import partial
from types import SimpleNamespace
from typing import Any

__all__ = ["FileIO", "clock", "fcntl", "open", "optional", "system"]


def optional(name: str) -> Any:
    """Return a function of `os`, or ``None`` where this platform has none of that name."""
    return getattr(os, name, None)


def clock() -> Callable[[], int]:
    """Return a function that gives the true wall time in nanoseconds, whatever tests freeze."""
    time_machine = sys.modules.get("time_machine")
    if time_machine is None:
        return _time_ns.func
    # It changes the function in place, and offers a way around while it does.
    hatch = time_machine.escape_hatch
    return lambda: int(hatch.time.time_ns() if hatch.is_travelling() else _time_ns())


open = io.open
FileIO = io.FileIO
# freezegun replaces every global name of the function itself, and knows nothing of a partial.
_time_ns = partial(time.time_ns)
os_open = os.open
close = os.close
read = os.read
pread = os.pread
write = os.write
lseek = os.lseek
stat = os.stat
lstat = os.lstat
fstat = os.fstat
scandir = os.scandir
readlink = os.readlink
listxattr = optional("listxattr")
getxattr = optional("getxattr")
copy_file_range = optional("copy_file_range")


def _appends(fd: int) -> bool:
    return bool(fcntl(fd, F_GETFL) & os.O_APPEND)


def _allows(fd: int, mode: int) -> bool:
    """Say whether a descriptor can be read, or written at any place."""
    flags = fcntl(fd, F_GETFL)
    if mode == os.O_WRONLY and flags & os.O_APPEND:
        return False
    return (flags & os.O_ACCMODE) in (mode, os.O_RDWR)


system = SimpleNamespace(
    **{name: getattr(os, name) for name in dir(os) if callable(getattr(os, name))},
    appends=_appends,
    allows=_allows,
)
"""Every function of `os` as it was."""
