"""The factory: an order checked, a directory of its own for each snapshot, the result loaded once.

Belongs here: `SnapshotFactory`, which the fixture ``snapshot_factory`` gives. A factory, not a
value, so that it works under Hypothesis' ``@given``.
"""

from __future__ import annotations

import itertools
import os
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from pytest_statepersist.errors import UserError
from pytest_statepersist.snapshots.breaking import SnapshotDamage, break_file
from pytest_statepersist.snapshots.making import (
    ENCRYPTED,
    MAKERS,
    NOW,
    MadeSnapshot,
    Order,
    SnapshotKind,
)

__all__ = ["SnapshotFactory"]

E = TypeVar("E", SnapshotKind, SnapshotDamage)


class SnapshotFactory:
    """Makes snapshots below ``root``, each in a new directory."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._numbers = itertools.count(1)

    @property
    def kinds(self) -> tuple[SnapshotKind, ...]:
        """Every kind that can be made."""
        return tuple(MAKERS)

    def __call__(
        self,
        kind: SnapshotKind | str = SnapshotKind.STATE,
        *,
        size: int = 200,
        age: timedelta = timedelta(0),
        encrypted: bool | None = None,
        seed: int = 0,
        damage: SnapshotDamage | str | None = None,
    ) -> MadeSnapshot:
        """Return a new snapshot on disk, a valid one unless ``damage`` is given.

        ``size`` is that of the payload in bytes; ``age`` counts back from a fixed moment;
        ``encrypted=None`` is what the kind usually is. Raises `UserError` for what a kind cannot
        be, and for damage that its format cannot notice.
        """
        kind = _member(SnapshotKind, kind, "kind")
        broken = None if damage is None else _member(SnapshotDamage, damage, "damage")
        if size < 0:
            raise UserError(f"size={size} cannot be: a payload has 0 bytes or more")
        choices = ENCRYPTED[kind]
        if encrypted is not None and encrypted not in choices:
            word = "plain" if choices[0] else "encrypted"
            raise UserError(f"a {kind} snapshot is never {word}; leave encrypted= out")
        directory = self.root / f"{kind}-{next(self._numbers)}"
        directory.mkdir(parents=True, mode=0o700)
        order = Order(
            directory=directory,
            size=size,
            created_at=NOW - age,
            encrypted=choices[0] if encrypted is None else encrypted,
            seed=seed,
        )
        path, load = MAKERS[kind](order)
        value = load()
        if broken is not None:
            break_file(kind, path, broken, seed)
        return MadeSnapshot(kind, directory, path, value, order.created_at, order.encrypted, load)


def _member(kinds: type[E], value: str, name: str) -> E:
    try:
        return kinds(value)
    except ValueError:
        known = ", ".join(repr(str(each)) for each in kinds)
        raise UserError(f"{name}={value!r} is unknown; choose from {known}") from None
