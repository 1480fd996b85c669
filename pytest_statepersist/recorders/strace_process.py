"""strace as a process: who may be traced, by whom, and how much it may write.

Belongs here: what has to do with strace as a program that runs, not with what it says. Rules:

1. strace once printed one call of the traced process without end. So its output has a bound, beyond
   which it is ended: by the system while it traces this process, whose own calls it would print as
   well, and by a look now and then while it traces a command.
2. What a traced command writes is not bounded: that is limited for strace alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from pytest_statepersist.errors import RecorderUnavailable
from pytest_statepersist.recorders import real

__all__ = [
    "LARGEST",
    "bound_output",
    "may_be_traced",
    "no_permission",
    "one_processor",
    "output_of",
    "tasks",
    "too_much",
    "tracers",
    "was_too_much",
]

LARGEST = 4 << 30
"""How many bytes of output are believed: four for each byte that a program writes, and as much."""
_LOOK = 0.2
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")


def bound_output(strace: subprocess.Popen[bytes], largest: int) -> None:
    """Let the system end an strace that writes a file larger than so many bytes.

    Not for one that starts the command itself, which would take the limit over.
    """
    with contextlib.suppress(OSError, ValueError):  # it has ended already, which is told elsewhere
        resource.prlimit(strace.pid, resource.RLIMIT_CORE, (0, 0))
        resource.prlimit(strace.pid, resource.RLIMIT_FSIZE, (largest, largest))


def was_too_much(strace: subprocess.Popen[bytes]) -> bool:
    """Say whether the system has ended it because of that limit."""
    return strace.poll() == -signal.SIGXFSZ


def output_of(
    strace: subprocess.Popen[bytes], calls: Path, largest: int, timeout: float | None
) -> tuple[bytes, bytes | None]:
    """Return what the command under strace prints, once it has ended.

    Raises `subprocess.TimeoutExpired` after so many seconds, and `RecorderUnavailable` where the
    file of calls outgrows the bound; it ends nothing.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = _LOOK if deadline is None else deadline - time.monotonic()
        try:
            return strace.communicate(timeout=max(0.0, min(_LOOK, left)))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                if calls.stat().st_size > largest:
                    raise too_much(largest) from None
            if deadline is not None and time.monotonic() >= deadline:
                raise


def too_much(largest: int) -> RecorderUnavailable:
    """Return the error for an output that outgrew its bound."""
    return RecorderUnavailable(
        f"strace wrote more than {largest:,} bytes about this recording, so it was ended and "
        "nothing was judged: usually very much is written at a time, of which strace prints each "
        "byte as four; sometimes strace prints one call without end. Record less at a time, or use "
        "the python or sqlite recorder"
    )


def no_permission(message: str) -> RecorderUnavailable:
    """Say what keeps strace from tracing, and the way out."""
    shown = message.strip().splitlines()[-1:] or ["no message"]
    if "not permitted" not in message and "EPERM" not in message:
        return RecorderUnavailable(f"strace could not start: {shown[0]}")
    ways = ["in a container, run it with --cap-add=SYS_PTRACE (Docker, Podman)"]
    with contextlib.suppress(OSError):
        scope = int(_YAMA.read_text())
        if scope >= 2:
            ways.insert(0, f"{_YAMA} is {scope}: as root, write 1 or 0 into it")
    return RecorderUnavailable(f"strace may not trace here ({shown[0]}): " + "; or ".join(ways))


def tasks() -> list[int]:
    """Return the threads of this process."""
    return [int(name) for name in os.listdir("/proc/self/task")]


def tracers() -> dict[int, int]:
    """Return, for every thread of this process, the process that traces it (0 for none)."""
    found = {}
    for task in tasks():
        with contextlib.suppress(OSError), real.open(f"/proc/self/task/{task}/status") as status:
            for line in status:
                if line.startswith("TracerPid:"):
                    found[task] = int(line.split()[1])
    return found


@contextlib.contextmanager
def may_be_traced() -> Iterator[None]:
    """Let any process trace this one for a moment: Yama allows only parents by default."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_PTRACER, 0, 0, 0, 0)


@contextlib.contextmanager
def one_processor() -> Iterator[None]:
    """Run this thread, and what it starts meanwhile, on one processor."""
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usual)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, usual)
