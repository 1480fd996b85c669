"""What a durable operation is to the tests of crashes and faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Invariant = Callable[[Any, Sequence[object]], bool]


@dataclass(frozen=True)
class Case:
    """A durable operation: what was there, what it does, what the next start then finds.

    ``name`` is ``Owner.method`` or a function's name, and a variant after a hyphen. What is found
    must be the state before or the state after, unless an ``invariant`` says more precisely what
    may be. With ``item_by_item`` an item that cannot be saved does not stop the others. ``sqlite``
    marks what writes through SQLite, whose file takes many more states (see `settings`).
    """

    name: str
    setup: Callable[[Path], object]
    workload: Callable[..., object]
    recover: Callable[[Path], object]
    item_by_item: bool = False
    invariant: Invariant | None = None
    sqlite: bool = False
    recovery_crashes: int = 1

    @property
    def operation(self) -> str:
        """The operation without its variant."""
        return self.name.partition("-")[0]

    @property
    def settings(self) -> dict[str, Any]:
        """How far a crash is explored: `Settings` of the simulator.

        A transaction of SQLite has a hundred states even in order, and its recovery writes in all
        of them; so there each write is torn and each crash point tried, in order, and crashes
        during recovery are left to `test_every_durable_operation`'s own test of them.
        """
        if self.sqlite:
            return {"deviations": 0, "recovery_crashes": 0, "samples": 3}
        return {"deviations": 1, "recovery_crashes": self.recovery_crashes, "samples": 3}
