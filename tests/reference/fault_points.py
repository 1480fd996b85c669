"""Let each file-system call of the code under test fail once, in turn.

Unlike a kill the process lives on: the caller must get an error of the tree, nothing saved
may be lost, and trying again must work.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.reference.kill_points import CALLS


@dataclass
class Fault:
    """How many calls were made, and whether the failing one was reached."""

    made: int = 0
    fired: bool = False
    call: str = ""


@contextmanager
def failing(at: int, code: int = errno.EIO) -> Iterator[Fault]:
    """Let call number ``at`` (from 0) of `os` fail with ``code``; all others work."""
    fault = Fault()
    originals = {name: getattr(os, name) for name in CALLS}

    def wrap(name: str) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            fault.made += 1
            if fault.made - 1 == at:
                fault.fired, fault.call = True, f"{name}({args[0] if args else ''})"
                raise OSError(code, os.strerror(code))
            return originals[name](*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, wrap(name))
    try:
        yield fault
    finally:
        for name, original in originals.items():
            setattr(os, name, original)
