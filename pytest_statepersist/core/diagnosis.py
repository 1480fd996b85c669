"""Why a crash state breaks a subject: the smallest history, the cause in the field's words.

Belongs here: data only. Diagnosis is given a judge to call (a state → whether it fails the same way)
and knows nothing of how recovery is run. Rules:

1. An operation is missing when it had begun before the crash and an effect of it is not on disk.
   It counts only if the failure goes away when it is put back.
2. An operation on disk counts only if the failure goes away when it is taken off.
3. The cause is named from what is missing and what is there, never from the subject's source.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.effects import Kind
from pytest_statepersist.core.states import window_at
from pytest_statepersist.core.window import Choice, Window, bits

__all__ = ["Cause", "Diagnosis", "Repair", "diagnose"]

Judge = Callable[[CrashState], bool]
"""Says whether a state fails in the way that is being diagnosed."""

_TRIES = 200


class Cause(enum.Enum):
    """The classes of bug that a history can show."""

    FSYNC_BEFORE_RENAME = "missing fsync before rename"
    FSYNC = "missing fsync"
    DIRECTORY_FSYNC = "missing directory fsync"
    TORN_WRITE = "torn write"
    REORDERED = "reordered writes"
    NOT_ATOMIC = "not atomic"
    ACKNOWLEDGED_EARLY = "acknowledged before durable"
    NOT_FLUSHED = "buffered data not flushed"
    TEMPORARY = "temporary mistaken for data"
    RECOVERY_NOT_IDEMPOTENT = "recovery not idempotent"
    LEFTOVER = "leftover blocks recovery"


@dataclass(frozen=True, slots=True)
class Repair:
    """Sync calls which, inserted in the trace, leave no finding: (after operation, call)."""

    syncs: tuple[tuple[int, op.Operation], ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The history reduced to what matters: indices of operations, and the cause.

    ``culprit`` is the operation whose line is named: the one that should have been made durable,
    or that is not atomic. ``no_sync_helps`` says that no set of syncs can repair it.
    """

    cause: Cause
    culprit: int | None
    missing: tuple[int, ...]
    on_disk: tuple[int, ...]
    state: CrashState
    point: int
    repairs: tuple[Repair, ...] = ()
    no_sync_helps: bool | None = None


def diagnose(
    disk: Disk, state: CrashState, point: int, judge: Judge, *, in_recovery: bool = False
) -> Diagnosis:
    """Reduce a failing state to what matters at a crash point, and name the cause.

    With ``in_recovery`` the trace is what a recovery did, and the crash interrupted that.
    """
    window = window_at(disk, point)
    absent = 0
    present_end = disk.effects.first_of(state.last + 1)
    for bit, index in enumerate(window.ids):
        if index >= present_end or index in state.missing:
            absent |= 1 << bit
    absent = _put_back(window, absent, state, judge)
    reduced = _state(window, absent, state)
    missing = tuple(sorted({window.operation[bit] for bit in bits(absent)}))
    on_disk = _that_matter(window, absent, state, judge)
    cause, culprit = _Namer(disk, reduced, missing, on_disk, point).name()
    if in_recovery and cause is Cause.NOT_ATOMIC:
        cause = Cause.RECOVERY_NOT_IDEMPOTENT
    return Diagnosis(cause, culprit, missing, on_disk, reduced, point)


def _state(window: Window, absent: int, like: CrashState) -> CrashState:
    choice = Choice(window, 0, absent, like.ghosts, like.returned)
    found = choice.state()
    return CrashState(
        found.last, found.missing, found.ghosts, found.returned, found.points, like.deviations
    )


def _put_back(window: Window, absent: int, state: CrashState, judge: Judge) -> int:
    """Put operations back on disk while the failure stays, latest first."""
    if state.ghosts or state.returned:
        return absent
    tries = 0
    for number in sorted({window.operation[bit] for bit in bits(absent)}, reverse=True):
        own = 0
        for bit in bits(absent):
            if window.operation[bit] == number:
                own |= window.down[bit]
        for candidate in [absent & ~own, *_one_by_one(window, absent, number)]:
            if candidate == absent or tries >= _TRIES:
                continue
            tries += 1
            if judge(_state(window, candidate, state)):
                absent = candidate
                break
    return absent


def _one_by_one(window: Window, absent: int, number: int) -> list[int]:
    mine = [bit for bit in bits(absent) if window.operation[bit] == number]
    return [absent & ~window.down[bit] for bit in mine] if 1 < len(mine) <= 4 else []


def _that_matter(window: Window, absent: int, state: CrashState, judge: Judge) -> tuple[int, ...]:
    found = []
    present = [bit for bit in range(len(window.ids)) if not absent >> bit & 1]
    for number in sorted({window.operation[bit] for bit in present})[:_TRIES]:
        without = absent
        for bit in present:
            if window.operation[bit] == number:
                without |= window.up[bit]
        if not judge(_state(window, without, state)):
            found.append(number)
    return tuple(found)


class _Namer:
    """Names the cause from which effects are missing and which are there."""

    def __init__(
        self,
        disk: Disk,
        state: CrashState,
        missing: tuple[int, ...],
        on_disk: tuple[int, ...],
        point: int,
    ) -> None:
        self.disk = disk
        self.operations = disk.trace.operations
        self.state = state
        self.missing = missing
        self.on_disk = on_disk
        self.point = point
        self.gone = [
            disk.effects.effects[e]
            for number in missing
            for e in disk.effects.of_operation[number]
            if e in state.missing and disk.effects.effects[e].kind is not Kind.TIMES
        ]

    def name(self) -> tuple[Cause, int | None]:
        if not self.gone or min(e.operation for e in self.gone) >= self.point:
            return self._in_order()
        torn = [n for n in self.missing if self._torn(n)]
        if torn and len({e.operation for e in self.gone}) == 1:
            return Cause.TORN_WRITE, torn[0]
        contents = [e for e in self.gone if e.kind is not Kind.ENTRY]
        for effect in contents:
            if self._published(effect.inode, effect.operation):
                return Cause.FSYNC_BEFORE_RENAME, effect.operation
        first = self.gone[0].operation
        overtaken = any(number > first for number in self.on_disk)
        if overtaken:
            return Cause.REORDERED, first
        if contents:
            return Cause.FSYNC, contents[0].operation
        return Cause.DIRECTORY_FSYNC, first

    def _in_order(self) -> tuple[Cause, int | None]:
        """Everything that had returned is on disk: no sync could have helped."""
        culprit = self.on_disk[-1] if self.on_disk else max(self.point - 1, 0)
        for number in reversed(self.on_disk):
            if isinstance(self.operations[number], op.Rename):
                inode = self.operations[number].inode  # type: ignore[union-attr]
                later = self.operations[self.point :]
                if any(isinstance(o, op.Write) and o.inode == inode for o in later):
                    return Cause.NOT_FLUSHED, number
        if any(self._torn(number) for number in self.missing):
            return Cause.TORN_WRITE, self.missing[0]
        if not self.operations:
            return Cause.NOT_ATOMIC, None
        return Cause.NOT_ATOMIC, min(culprit, len(self.operations) - 1)

    def _published(self, inode: int, written: int) -> bool:
        """Say whether a rename that is on disk put a file under its name after it was written."""
        return any(
            isinstance(operation, op.Rename)
            and operation.inode == inode
            and number not in {e.operation for e in self.gone}
            for number, operation in enumerate(
                self.operations[written + 1 : self.point], written + 1
            )
        )

    def _torn(self, number: int) -> bool:
        """Say whether some units of one write are on disk and others are not."""
        effects = self.disk.effects
        data = [e for e in effects.of_operation[number] if effects.effects[e].kind is Kind.DATA]
        gone = sum(e in self.state.missing for e in data)
        return 0 < gone < len(data)
