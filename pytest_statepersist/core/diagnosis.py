"""Why a crash state breaks a subject: the smallest history that shows it.

Belongs here: data only. Diagnosis is given a judge to call (a state at a crash point → whether it
fails the same way) and knows nothing of how recovery is run. Rules:

1. Fewest deviations: whatever can be put back on disk while the failure stays, and no operation
   has overtaken more than before, is put back.
2. Earliest crash point: the last operations are taken off, and the crash moved before them, while
   the failure stays.
3. An operation that is missing then matters; one on disk matters if the failure goes away with it.
   All others are left out of the history.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pytest_statepersist.core.causes import Cause, History, name_cause
from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.states import window_at
from pytest_statepersist.core.window import Window, bits

__all__ = ["Cause", "Diagnosis", "Judge", "diagnose"]

Judge = Callable[[CrashState, int], bool]
"""Says whether a state, after a crash at this point, fails in the way that is being diagnosed."""

_TRIES = 200


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The history reduced to what matters: indices of operations, and the cause.

    ``culprit`` is the operation whose line is named: the one that should have been made durable,
    or that is not atomic. ``in_order`` says that all that had returned is on disk, which no sync
    can change.
    """

    cause: Cause
    culprit: int | None
    missing: tuple[int, ...]
    on_disk: tuple[int, ...]
    state: CrashState
    point: int
    in_order: bool = False


def diagnose(
    disk: Disk,
    state: CrashState,
    point: int,
    judge: Judge,
    *,
    answered: bool = True,
    lost: bool = False,
    in_recovery: bool = False,
) -> Diagnosis:
    """Reduce a failing state to what matters and name the cause.

    ``answered``, ``lost`` and ``in_recovery`` are as in `History`.
    """
    reducer = _Reducer(disk, judge, state, point)
    if not state.ghosts and state.returned is None:
        reducer.reduce()
    state, point = reducer.state, reducer.point
    missing = reducer.that_are_missed()
    history = History(
        disk, state, point, missing, reducer.that_matter(), answered, lost, in_recovery
    )
    cause, culprit = name_cause(history)
    in_order = state.returned is None and is_in_order(disk, state, point)
    return Diagnosis(cause, culprit, missing, history.on_disk, state, point, in_order)


def is_in_order(disk: Disk, state: CrashState, point: int) -> bool:
    """Say whether a state holds every effect of the operations that had returned at a point.

    Such a state is legal under every model, whatever is synced before.
    """
    return point <= first_absent(disk, state)


def first_absent(disk: Disk, state: CrashState) -> int:
    """Return the first operation with an effect that is not on disk; the length if there is none.

    Up to this crash point the state is what a plain stop of the program leaves.
    """
    if state.ghosts or state.returned is not None:
        return -1
    effects = disk.effects
    found = len(disk.trace)
    for number in range(state.last + 1, len(disk.trace)):
        if effects.of_operation[number]:
            found = number
            break
    return min((effects.effects[index].operation for index in state.missing), default=found)


class _Reducer:
    """Makes a failing state smaller, step by step, while the judge says that it fails alike."""

    def __init__(self, disk: Disk, judge: Judge, state: CrashState, point: int) -> None:
        self.disk = disk
        self.judge = judge
        self.state = state
        self.point = point
        self.tries = 0

    def reduce(self) -> None:
        """Fewest deviations, then the earliest crash point, until neither changes anything."""
        window = window_at(self.disk, self.point)
        absent = 0
        present_end = self.disk.effects.first_of(self.state.last + 1)
        for bit, index in enumerate(window.ids):
            if index >= present_end or index in self.state.missing:
                absent |= 1 << bit
        before = -1
        while before != absent and self.tries < _TRIES:
            before = absent
            absent = self._put_back(window, absent)
            window, absent = self._earlier(window, absent)

    def _fails(self, window: Window, absent: int, point: int) -> bool:
        self.tries += 1
        candidate = _state(window, absent)
        if not self.judge(candidate, point):
            return False
        self.state, self.point = candidate, point
        return True

    def _put_back(self, window: Window, absent: int) -> int:
        """Put operations back on disk while the failure stays: the latest first, then the earliest.

        Never so that one of them has overtaken more than before: with nothing on disk nothing has.
        """
        numbers = sorted({window.operation[bit] for bit in bits(absent)})
        for number in (*reversed(numbers), *numbers):
            own = 0
            mine = [bit for bit in bits(absent) if window.operation[bit] == number]
            for bit in mine:
                own |= window.down[bit]
            candidates = [absent & ~own]
            if 1 < len(mine) <= 4:
                candidates += [absent & ~window.down[bit] for bit in mine]
            for candidate in dict.fromkeys(candidates):
                if (
                    candidate != absent
                    and self.tries < _TRIES
                    and _state(window, candidate).deviations <= self.state.deviations
                    and self._fails(window, candidate, self.point)
                ):
                    absent = candidate
                    break
        return absent

    def _earlier(self, window: Window, absent: int) -> tuple[Window, int]:
        """Move the crash to the operation that was last to reach the disk, and then before it."""
        end = len(self.disk.trace)
        while self.tries < _TRIES:
            last = self.state.last  # which may be durable at this point, so not in the window
            moved = False
            # The crash comes while the last operation runs; or before it, if it does not matter.
            for point, stop in ((last, last + 1), (last, last)):
                if not 0 <= point < end or (point >= self.point and stop > last):
                    continue
                found = self._restricted(window, absent, point, stop)
                if found is not None and self._fails(*found, point):
                    window, absent = found
                    moved = True
                    break
            if not moved:
                break
        return self._sooner(window, absent)

    def _sooner(self, window: Window, absent: int) -> tuple[Window, int]:
        """Move the crash to where this disk first is a failure: after what was acknowledged."""
        last = self.state.last
        low, high = max(last, 0), self.point
        while low < high and self.tries < _TRIES:
            middle = (low + high) // 2
            found = self._restricted(window, absent, middle, last + 1)
            if found is not None and self._fails(*found, middle):
                (window, absent), high = found, middle
            else:
                low = middle + 1
        return window, absent

    def _restricted(
        self, window: Window, absent: int, point: int, stop: int
    ) -> tuple[Window, int] | None:
        """Return what is on disk of the operations before ``stop``, as a crash at a point."""
        effects = self.disk.effects
        gone = {window.ids[bit] for bit in bits(absent)}
        gone.update(range(effects.first_of(stop), effects.first_of(point + 1)))
        earlier = window_at(self.disk, point)
        wanted = 0
        for index in gone:
            if index >= effects.first_of(point + 1):
                continue
            bit = earlier.bit.get(index)
            if bit is None:
                return None  # it is durable at that point
            wanted |= 1 << bit
        if any(earlier.up[bit] & ~wanted for bit in bits(wanted)) or wanted & earlier.must:
            return None
        return earlier, wanted

    # -- what matters

    def that_are_missed(self) -> tuple[int, ...]:
        """Return the operations that are not on disk in whole, and whose return mends it."""
        disk, state = self.disk, self.state
        effects = disk.effects
        stop = effects.first_of(self.point + 1)
        gone = {*state.missing, *range(effects.first_of(state.last + 1), stop)}
        numbers = sorted({effects.effects[index].operation for index in gone})
        if state.ghosts or state.returned is not None:
            return tuple(numbers)
        window = window_at(disk, self.point)
        absent = sum(1 << window.bit[index] for index in gone)
        found = []
        for number in numbers:
            back = 0
            for index in gone.intersection(effects.of_operation[number]):
                back |= window.down[window.bit[index]]
            if not self.judge(_state(window, absent & ~back), self.point):
                found.append(number)
        return tuple(found)

    def that_matter(self) -> tuple[int, ...]:
        """Return the operations on disk without which the failure would not be there.

        Durable ones count as well: a disk without them was never legal, but it can be tried.
        """
        found = []
        effects, state = self.disk.effects, self.state
        numbers = [
            number
            for number in range(min(state.last, self.point, len(self.disk.trace) - 1) + 1)
            if any(index not in state.missing for index in effects.of_operation[number])
        ]
        for number in numbers[-_TRIES:]:
            without = replace(
                state,
                missing=self._without(number),
                points=((self.point, self.point),),
            )
            if not self.judge(without, self.point):
                found.append(number)
        return tuple(found)

    def _without(self, number: int) -> frozenset[int]:
        """Take an operation off, and what cannot be there without it."""
        effects = self.disk.effects
        gone = set(self.state.missing) | set(effects.of_operation[number])
        for index in range(
            effects.of_operation[number].stop, effects.first_of(self.state.last + 1)
        ):
            if any(needed in gone for needed in effects.needs[index]):
                gone.add(index)
        return frozenset(gone)


def _state(window: Window, absent: int) -> CrashState:
    """Return the state that lacks these effects, ending with the last operation on disk."""
    effects = window.disk.effects
    last = -1
    for index in range(effects.first_of(window.last + 1) - 1, -1, -1):
        bit = window.bit.get(index)
        if bit is None or not absent >> bit & 1:
            last = effects.effects[index].operation
            break
    end = effects.first_of(last + 1)
    missing = frozenset(window.ids[bit] for bit in bits(absent) if window.ids[bit] < end)
    overtaken = {effects.effects[index].operation for index in missing} - {last}
    return CrashState(last, missing, points=window.points(absent), deviations=len(overtaken))


def legal_at(disk: Disk, state: CrashState, point: int) -> bool:
    """Say whether a crash at one point may leave a state, as far as effects decide it."""
    if state.last > point or point > len(disk.trace):
        return False
    window = window_at(disk, point)
    end = disk.effects.first_of(state.last + 1)
    absent = 0
    for index in (*state.missing, *range(end, disk.effects.first_of(point + 1))):
        bit = window.bit.get(index)
        if bit is None:
            return False
        absent |= 1 << bit
    return not absent & window.must and not any(window.up[b] & ~absent for b in bits(absent))
