"""The class of a bug, in the words of the field, from what was on disk and what was not.

Belongs here: `Cause` and the rules that choose one. A cause is read off a reduced history, never
off the subject's source. Rules, in this order:

1. *In order*: all that had returned is on disk, so no sync could have helped. The cause is in what
   is there: half of one write, a rename before the bytes were handed over, a file that only
   exists for a while, or an update in steps.
2. *Out of order*: something that had returned is missing. Only entries missing: a directory was
   not synced. Content missing under a name that was moved into place: no fsync before the rename.
   Content missing under later content: reordered. Else: a missing fsync.
3. Nothing overtook what is missing and the sync that it needs does come later: it was acknowledged
   before it was durable.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.effects import Effect, Kind

__all__ = ["Cause", "History", "name_cause", "short_lived"]


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
class History:
    """A failing state reduced to what matters.

    ``missing`` and ``on_disk`` are indices of operations; one that is in both is partly on disk.
    ``answered`` says that recovery returned a value, ``lost`` that what was acknowledged is gone,
    ``in_recovery`` that the trace is what a recovery did.
    """

    disk: Disk
    state: CrashState
    point: int
    missing: tuple[int, ...]
    on_disk: tuple[int, ...]
    answered: bool = True
    lost: bool = False
    in_recovery: bool = False

    @property
    def operations(self) -> tuple[op.Operation, ...]:
        """All operations of the trace."""
        return self.disk.trace.operations

    def lost_effects(self) -> Iterator[Effect]:
        """Yield what is missing of the operations that matter, times left out."""
        effects, state = self.disk.effects, self.state
        for number in self.missing:
            for index in effects.of_operation[number]:
                gone = index in state.missing or number > state.last
                if gone and effects.effects[index].kind is not Kind.TIMES:
                    yield effects.effects[index]


def name_cause(history: History) -> tuple[Cause, int | None]:
    """Return the cause and the operation to name: what had to be durable, or is not atomic."""
    if not history.operations:
        return Cause.NOT_ATOMIC, None
    if history.state.returned is not None:
        return Cause.DIRECTORY_FSYNC, _moved_away(history)
    if history.state.ghosts:
        # Bytes that no sync had written took a freed block before the file was gone.
        source = history.state.ghosts[0].source
        return Cause.FSYNC, history.disk.effects.effects[source].operation
    gone = [effect for effect in history.lost_effects() if effect.operation < history.point]
    if gone:
        return _out_of_order(history, gone)
    cause, culprit = _in_order(history)
    if history.in_recovery and cause is Cause.NOT_ATOMIC:
        cause = Cause.RECOVERY_NOT_IDEMPOTENT
    return cause, culprit


# -- everything that had returned is on disk


def _in_order(history: History) -> tuple[Cause, int]:
    operations = history.operations
    for number in reversed(history.on_disk):
        moved = operations[number]
        if isinstance(moved, op.Rename) and any(
            isinstance(later, op.Write) and later.inode == moved.inode
            for later in operations[history.point :]
        ):
            return Cause.NOT_FLUSHED, number
    for number in history.missing:
        if number in history.on_disk and isinstance(operations[number], op.Write):
            return Cause.TORN_WRITE, number
    for number in history.on_disk:
        cause = _of_short_lived(history, number)
        if cause is not None:
            return cause, number
    culprit = history.on_disk[-1] if history.on_disk else history.point - 1
    return Cause.NOT_ATOMIC, min(max(culprit, 0), len(operations) - 1)


def short_lived(trace: op.Trace, number: int) -> bool:
    """Say whether an operation makes a name that the trace itself takes away again."""
    made = trace.operations[number]
    if not isinstance(made, op.Create | op.Mkdir | op.Symlink | op.Link):
        return False
    name = (made.parent, made.name)
    return any(
        isinstance(later, op.Unlink | op.Rmdir | op.Rename) and (later.parent, later.name) == name
        for later in trace.operations[number + 1 :]
    )


def _of_short_lived(history: History, number: int) -> Cause | None:
    """A file that exists for a while: it is in the way, or it is taken for what it is not."""
    made = history.operations[number]
    if not short_lived(history.disk.trace, number):
        return None
    assert isinstance(made, op.Create | op.Mkdir | op.Symlink | op.Link)
    inode = made.inode
    if history.disk.entry(history.state, made.parent, made.name) != inode:
        return None
    content_matters = any(
        getattr(history.operations[other], "inode", None) == inode
        for other in (*history.missing, *history.on_disk)
        if other > number
    )
    if not history.answered and not content_matters:
        return Cause.LEFTOVER
    if _gets_another_name(history, number, inode):
        return Cause.TEMPORARY
    return None


def _gets_another_name(history: History, number: int, inode: int) -> bool:
    return any(
        isinstance(later, op.Rename | op.Link) and later.inode == inode
        for later in history.operations[number + 1 :]
    )


# -- something that had returned is missing


def _out_of_order(history: History, gone: list[Effect]) -> tuple[Cause, int]:
    contents = [effect for effect in gone if effect.kind is not Kind.ENTRY]
    overtaken = any(number > gone[0].operation for number in history.on_disk)
    if not overtaken and history.lost and all(_synced_later(history, each) for each in gone):
        return Cause.ACKNOWLEDGED_EARLY, gone[0].operation
    if not contents:
        moved = gone[0].operation
        halved = isinstance(history.operations[moved], op.Rename) and moved in history.on_disk
        # A rename across directories that is under both names, or none, was never one step.
        return Cause.NOT_ATOMIC if halved else Cause.DIRECTORY_FSYNC, moved
    for effect in contents:
        if _published(history, effect):
            return Cause.FSYNC_BEFORE_RENAME, effect.operation
    first = contents[0].operation
    if any(_brings_content(history, number, first) for number in history.on_disk):
        return Cause.REORDERED, first
    return Cause.FSYNC, first


def _brings_content(history: History, number: int, first: int) -> bool:
    """Say whether an operation shows bytes that were written after the first lost ones."""
    shown = history.operations[number]
    if number <= first or not isinstance(shown, op.Write | op.Rename | op.Link):
        return False
    return any(
        isinstance(written, op.Write) and written.inode == shown.inode
        for written in history.operations[first + 1 : number + 1]
    )


def _published(history: History, lost: Effect) -> bool:
    """Say whether a file, or a directory that holds it, was put under a name after the write."""
    holders = {lost.inode}
    for number, operation in enumerate(history.operations[: history.point + 1]):
        if isinstance(operation, op.Create | op.Mkdir) and operation.inode in holders:
            holders.add(operation.parent)
        if number <= lost.operation or not isinstance(operation, op.Rename | op.Link):
            continue
        if operation.inode in holders and _present(history, number):
            return True
    return False


def _present(history: History, number: int) -> bool:
    effects = history.disk.effects.of_operation[number]
    return number <= history.state.last and any(e not in history.state.missing for e in effects)


def _synced_later(history: History, lost: Effect) -> bool:
    """Say whether a sync of just this file or directory comes after the crash."""
    wanted = {cell.inode for cell, _ in lost.entries} if lost.entries else {lost.inode}
    return any(
        isinstance(later, op.SyncAll)
        or (isinstance(later, op.Fsync) and not later.failed and later.inode in wanted)
        for later in history.operations[history.point :]
    )


def _moved_away(history: History) -> int | None:
    """Return the operation that took a name away which a log brought back."""
    returned = history.state.returned
    assert returned is not None
    chain = history.disk.effects.chains.get(returned.cell, [])
    taken = [history.disk.effects.effects[index].operation for index in chain]
    before = [number for number in taken if number <= history.point]
    return before[-1] if before else None
