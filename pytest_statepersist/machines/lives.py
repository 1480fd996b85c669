"""The life of a store's process, recorded from its opening to the crash that ends it.

Belongs here: recording what rules do, and putting a drawn crash state on disk. Rules:

1. A life is one recording. Each rule leaves a `Mark`: between which operations it ran, and what may
   be found after a crash before, during and after it.
2. A crash shows its state at the path at which the store ran: stores keep absolute paths.
3. Recovery belongs to the next life, so that it can be cut short like any other rule.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.operations import Trace
from pytest_statepersist.explorer.materialise import Materialiser
from pytest_statepersist.machines.expected import Expected
from pytest_statepersist.recorders.python import PythonRecorder
from pytest_statepersist.recording import shared_memory_in, sqlite_companions

__all__ = ["Life", "Mark", "Past", "put_on_disk"]


@dataclass(frozen=True, slots=True)
class Mark:
    """One rule in a trace: operations ``begin`` to ``end``, and what a crash may leave around it.

    At crash points from ``end`` on it was acknowledged.
    """

    label: str
    begin: int
    end: int
    during: Expected
    after: Expected


@dataclass(frozen=True, slots=True)
class Past:
    """A life that is over: its trace, its marks, and what was expected before the first one."""

    trace: Trace
    marks: tuple[Mark, ...]
    before: Expected

    def expected_at(self, point: int) -> Expected:
        """Return what recovery may find after a crash at a crash point."""
        found = self.before
        for mark in self.marks:
            if mark.end <= point:
                found = mark.after
            elif mark.begin <= point:
                return mark.during
        return found

    def mark_at(self, point: int) -> Mark | None:
        """Return the rule that a crash at this point interrupts, ``None`` between two."""
        for mark in self.marks:
            if mark.begin <= point < mark.end:
                return mark
        return None


class Life:
    """Records one life in a directory; `end` gives the `Past`."""

    def __init__(self, directory: Path, before: Expected) -> None:
        self.before = self.expected = before
        self._marks: list[tuple[str, Expected, Expected]] = []
        companions, _ = sqlite_companions()
        self._recorder = PythonRecorder(
            directory, ignore=shared_memory_in(directory), companions=companions
        )
        self._recorder.start()
        self._running = True

    @property
    def rules(self) -> int:
        """How many rules have left a mark so far."""
        return len(self._marks)

    @contextlib.contextmanager
    def rule(
        self, label: str, during: Callable[[], Expected], after: Callable[[], Expected]
    ) -> Iterator[None]:
        """Mark a block; both are asked once it has ended without an error."""
        self._recorder.acknowledge(label)
        yield
        self._recorder.acknowledge(label)
        self.expected = after()
        self._marks.append((label, during(), self.expected))

    def end(self) -> Past:
        """Stop recording. Raises `BlindSpot` where the store did something unseen."""
        self._running = False
        trace = self._recorder.stop()
        at = [each.position for each in trace.acknowledgements]
        marks = tuple(
            Mark(label, at[2 * number], at[2 * number + 1], during, after)
            for number, (label, during, after) in enumerate(self._marks)
        )
        return Past(trace, marks, self.before)

    def give_up(self) -> None:
        """Stop recording because something else failed."""
        if self._running:
            self._running = False
            # Enough for the recorder to undo its replacements; what it recorded is not used.
            self._recorder.__exit__(RuntimeError, RuntimeError("given up"), None)


def put_on_disk(directory: Path, aside: Path, disk: Disk, state: CrashState) -> None:
    """Make the directory hold a crash state and nothing else."""
    Materialiser(str(directory), str(aside), disk.trace, present=False).show(disk, state)
