"""Kill the code under test at each of its file-system calls in turn.

The process "dies" by an exception that no handler of ours may swallow, and from then on every
further call dies too: clean-up code does not get to run, just as after SIGKILL. What is on
disk then is what the next process finds. (Power loss is the crash simulator's business.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

CALLS = ("open", "write", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir")


class Killed(BaseException):
    """The process is gone."""


@dataclass
class _Counter:
    die_at: int | None
    made: int = 0
    log: list[str] = field(default_factory=list)


@contextmanager
def counting(die_at: int | None = None) -> Iterator[_Counter]:
    """Count calls of `os`; from call number ``die_at`` (from 0) on, each raises `Killed`."""
    counter = _Counter(die_at)
    originals = {name: getattr(os, name) for name in CALLS}

    def wrap(name: str) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            number = counter.made
            counter.made += 1
            counter.log.append(f"{name}({args[0] if args else ''})")
            if counter.die_at is not None and number >= counter.die_at:
                raise Killed
            return originals[name](*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, wrap(name))
    try:
        yield counter
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


def each_kill_point(
    make: Callable[[], Callable[[], object]], after: Callable[[], None], *, step: int = 1
) -> int:
    """For each call of the workload that ``make`` builds: kill it there, then run ``after``.

    ``step`` says to take every second or third call only. Returns how many points there were; the
    last run is the one that completed.
    """
    point = 0
    while True:
        workload = make()
        with counting(point) as counter:
            try:
                workload()
            except Killed:
                pass
        after()
        if counter.made <= point:
            return point
        point += step


@contextmanager
def without_syncing() -> Iterator[None]:
    """Let `os.fsync` do nothing: a killed process loses no cache, and disks are slow."""
    really = os.fsync
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    try:
        yield
    finally:
        os.fsync = really


def tree(root: Path) -> dict[str, bytes]:
    """Return the files below a directory with their contents; what cannot be listed is an error."""
    paths = [
        Path(where, name) for where, _, names in os.walk(root, onerror=_raised) for name in names
    ]
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(paths)}


def _raised(error: OSError) -> None:
    raise error
