"""What a store of the zoo declares about itself.

Belongs here: the declaration and nothing that runs it (`test_zoo.py` does). A broken store lists
the models under which it must be caught; under every other model it must pass, so a model that is
too strict and one that is too loose both show. A sound store lists none.

The line to be named carries the comment ``# BUG`` in the store's own source: it is the call after
which, or at which, the missing step belongs. Two lines carry it only where the mistake is their
order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ALL_MODELS", "POWER_LOSS", "ZooSpec", "bug_lines"]

ALL_MODELS = (
    "posix",
    "ext4",
    "ext4-writeback",
    "ext4-noauto_da_alloc",
    "xfs",
    "btrfs",
    "kill",
)
"""Every model; a bug that shows in all of them needs no reordering, only a stop at a bad moment."""

POWER_LOSS = ALL_MODELS[:-1]
"""Every model but the killed process, whose page cache survives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooSpec:
    """One store: how it is run, and what the crash engine has to say about it.

    ``causes`` are the classes of bug that truly describe it (nearly always one), ``kind`` what the
    first finding is, ``deviations`` the fewest at which it shows under `posix`, the weakest model;
    for a broken recovery, those of the first crash. ``spare_syncs`` are syncs in the workload of a
    sound store, counted from 0, without which it would be sound too.
    """

    workload: Callable[..., object]
    recover: Callable[[Path], object]
    setup: Callable[[Path], object]
    before: Any = None
    after: Any = None
    invariant: Callable[[Any, tuple[Any, ...]], object] | None = None
    models: tuple[str, ...] = ()
    kind: str = ""
    causes: tuple[str, ...] = ()
    deviations: int = 0
    spare_syncs: tuple[int, ...] = ()


def bug_lines(source: str) -> set[int]:
    """Return the numbers of the lines that end in the marker."""
    lines = source.splitlines()
    return {number for number, line in enumerate(lines, 1) if line.rstrip().endswith("# BUG")}
