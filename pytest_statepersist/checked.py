"""What every check but an exploration says of itself, in one shape.

Belongs here: `Checked` and `CheckedFinding`, into which the reports of faults, kills, concurrency,
integrity and leaks turn themselves, so that a summary, a JSON file and another process need to know
no more than this. It holds results and formats nothing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from pytest_statepersist.core.operations import Site

__all__ = ["Check", "Checked", "CheckedFinding"]


class Check(enum.Enum):
    """Which promise was checked."""

    FAULTS = "faults"
    KILL = "kill"
    CONCURRENCY = "concurrency"
    INTEGRITY = "integrity"
    LEAKS = "leaks"
    NONCES = "nonces"
    PERMISSIONS = "permissions"


@dataclass(frozen=True, slots=True)
class CheckedFinding:
    """One thing that was wrong. ``count`` is in how many cases; ``text`` is one line."""

    kind: str
    text: str
    observed: str = ""
    expected: str = ""
    site: Site | None = None
    count: int = 1
    confirmed: bool | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """One check: ``ok`` is False with a finding, ``None`` where it is not covered.

    ``coverage`` says in words how much was done, ``cases`` as a number; ``seconds`` is 0 where the
    check does not measure it.
    """

    check: Check
    ok: bool | None
    cases: int
    coverage: str
    findings: tuple[CheckedFinding, ...] = ()
    not_covered: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())
    seed: int | None = None
    seconds: float = 0.0
    name: str = ""
