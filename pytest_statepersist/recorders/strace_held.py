"""What this process holds at the moment when strace begins to look at it.

Belongs here: reading /proc/self once. Descriptors that share one open file (dup before the
recording) share its position, so they are told apart by asking the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import stat
import sys
from dataclasses import dataclass, field

from pytest_statepersist.core.operations import Durability
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.builder import Identity

__all__ = ["Description", "Held", "what_is_held"]

_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "ppc64le": 354, "s390x": 343}
_SYNC = getattr(os, "O_SYNC", 0)


@dataclass(frozen=True, slots=True)
class Description:
    """An open file: those of one ``group`` are the same; ``position`` ``None`` if not known."""

    flags: int
    position: int | None
    identity: Identity
    group: int

    @property
    def durability(self) -> Durability:
        """What a write through it promises."""
        if self.flags & _SYNC == _SYNC:
            return Durability.FULL
        return Durability.DATA if self.flags & os.O_DSYNC else Durability.NONE


@dataclass(slots=True)
class Held:
    """Working directory, umask, descriptors, and shared writable maps of this process.

    A map is address, length, offset in the file, and the file's identity.
    """

    cwd: str
    umask: int
    program: str
    files: dict[int, Description] = field(default_factory=dict)
    maps: list[tuple[int, int, int, Identity]] = field(default_factory=list)


def what_is_held() -> Held:
    """Read what this process holds."""
    held = Held(os.getcwd(), _umask(), os.path.basename(sys.argv[0]) or "python")
    for number in sorted(int(name) for name in os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            status = real.fstat(number)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                continue
            values = {}
            with real.open(f"/proc/self/fdinfo/{number}") as info:
                for line in info:
                    key, _, value = line.partition(":")
                    values[key] = value.strip()
            identity = status.st_dev, status.st_ino
            position: int | None = int(values["pos"])
            group, sure = _group(held, number, identity)
            held.files[number] = Description(
                int(values["flags"], 8), position if sure else None, identity, group
            )
    held.maps = list(_maps())
    return held


def _umask() -> int:
    with real.open("/proc/self/status") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def _group(held: Held, number: int, identity: Identity) -> tuple[int, bool]:
    """Return the group of a descriptor, and whether that is sure."""
    for other, description in held.files.items():
        if description.identity == identity:
            same = _same_open_file(number, other)
            if same is None:
                return number, False
            if same:
                return description.group, True
    return number, True


def _same_open_file(one: int, other: int) -> bool | None:
    """Ask the kernel (kcmp) whether two descriptors are one open file; ``None`` if it won't say."""
    call = _KCMP.get(platform.machine())
    if call is None:
        return None
    pid = os.getpid()
    answer = ctypes.CDLL(None, use_errno=True).syscall(call, pid, pid, 0, one, other)
    return None if answer < 0 else answer == 0


def _maps() -> list[tuple[int, int, int, Identity]]:
    found = []
    with real.open("/proc/self/maps", errors="replace") as maps:
        for line in maps:
            span, flags, offset, _, _, *path = line.rstrip("\n").split(maxsplit=5)
            if flags[1] == "w" and flags[3] == "s" and path:
                begin, end = (int(part, 16) for part in span.split("-"))
                # The device in this file is not what stat says on every file system.
                with contextlib.suppress(OSError):
                    status = real.stat(path[0])
                    identity = status.st_dev, status.st_ino
                    found.append((begin, end - begin, int(offset, 16), identity))
    return found
