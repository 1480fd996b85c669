"""How many sets of effects a choice leaves open, exactly, without listing them.

Belongs here: counting and listing the down-sets of a choice's free effects. Rules:

1. What is not connected by any need is independent: the counts of the parts are multiplied.
2. A part that stays connected is split at the effect that decides most, with it and without it.
3. Times do not count, and neither do the two ghosts. Work is bounded; beyond it there is no number.
"""

from __future__ import annotations

from collections.abc import Iterator

from pytest_statepersist.core.effects import Kind
from pytest_statepersist.core.window import Choice, bits

__all__ = ["Counter", "free_effects", "list_sets"]


def free_effects(choice: Choice) -> int:
    """Return the effects of a choice's window that are not decided, times left out, as bits."""
    window = choice.window
    effects = window.disk.effects.effects
    free = (1 << len(window.ids)) - 1 & ~(choice.present | choice.absent)
    for bit in bits(free):
        if effects[window.ids[bit]].kind is Kind.TIMES:
            free ^= 1 << bit
    return free


def list_sets(choice: Choice) -> Iterator[frozenset[int]]:
    """Yield what may be missing, as effect indices, for every set of effects in a choice."""
    window = choice.window
    effects = window.disk.effects.effects
    stack = [(choice.absent, free_effects(choice))]
    while stack:
        absent, free = stack.pop()
        if not free:
            ids = (window.ids[bit] for bit in bits(absent))
            yield frozenset(e for e in ids if effects[e].kind is not Kind.TIMES)
            continue
        low = (free & -free).bit_length() - 1
        stack.append((absent, free & ~window.down[low]))
        stack.append((absent | window.up[low], free & ~window.up[low]))


class Counter:
    """Counts sets of effects, and gives up after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def count(self, choice: Choice) -> int | None:
        """Return how many sets of effects a choice holds, ``None`` once the steps are used up."""
        window = choice.window
        known: dict[int, int] = {}

        def connected(free: int) -> int | None:
            """Count one part: a chain of n has n + 1 down-sets, anything else is split."""
            self.steps -= 1
            if self.steps < 0:
                return None
            if free in known:
                return known[free]
            size = free.bit_count()
            best, most = -1, -1
            chain = True
            for bit in bits(free):
                below = (window.down[bit] & free).bit_count()
                above = (window.up[bit] & free).bit_count()
                chain = chain and below + above == size + 1
                # Close to the middle on both sides halves what is left.
                decided = min(below, above) * size + below + above
                if decided > most:
                    best, most = bit, decided
            if chain:
                found: int | None = size + 1
            else:
                absent = parts(free & ~window.up[best])
                present = parts(free & ~window.down[best])
                found = None if absent is None or present is None else absent + present
            if found is not None:
                known[free] = found
            return found

        def parts(free: int) -> int | None:
            product = 1
            while free:
                part = new = free & -free
                while new:
                    reached = 0
                    for bit in bits(new):
                        reached |= window.down[bit] | window.up[bit]
                    new = reached & free & ~part
                    part |= new
                free ^= part
                count = connected(part)
                if count is None:
                    return None
                product *= count
            return product

        return parts(free_effects(choice))
