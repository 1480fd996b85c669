"""Which promise of which store was tested, by what, and with what result: the capability matrix.

Belongs here: rows as plain data, collected while tests run. No prose, no pytest. Rules:

1. A machine or suite says what it is about to test; whether that held is known only when its test
   has ended. Until then the rows are *pending*: whoever runs the test takes them and judges them.
2. A promise that a store declares and nothing tested is shown as such, never left out.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields
from typing import Any

from pytest_statepersist.adapter import Capabilities, StoreAdapter

__all__ = ["Row", "Status", "about_to_test", "judged", "merged", "not_declared", "take"]


class Status(enum.Enum):
    """What is known of one promise of one store."""

    YES = "yes"
    """Declared, and everything that tests it passed."""
    PARTLY = "partly"
    """Declared; what could look at it passed, and some could not look."""
    FAILS = "FAILS"
    """Declared, and something that tests it failed."""
    KNOWN = "known"
    """Declared, and a test fails that a list says fails."""
    SKIPPED = "skipped"
    """Declared, and nothing that tests it could look."""
    UNTESTED = "untested"
    """Declared, and nothing that ran tests it."""
    NO = "no"
    """Not declared: nothing is known."""


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """One promise of one store and one thing that tests it.

    ``status`` is a `Status` by its value, ``reason`` why it is not plainly ``yes``.
    """

    store: str
    capability: str
    by: str
    status: str
    reason: str = ""

    def plain(self) -> dict[str, str]:
        """Return the row as JSON knows it; ``Row(**row.plain())`` is the row again."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


_pending: dict[Row, None] = {}


def about_to_test(adapter: StoreAdapter, by: str, capabilities: Collection[str]) -> None:
    """Note that something is about to test these promises of a store, all of them declared."""
    for name in _ALL:
        if not getattr(adapter.capabilities, name):
            _add(Row(adapter.name, name, "", Status.NO.value))
        elif name in capabilities:
            _add(Row(adapter.name, name, by, Status.YES.value))
        else:
            _add(Row(adapter.name, name, "", Status.UNTESTED.value))


def not_declared(adapter: StoreAdapter, by: str, capabilities: Collection[str], why: str) -> None:
    """Note what was left out since the store does not declare these."""
    about_to_test(adapter, by, ())
    for name in capabilities:
        _add(Row(adapter.name, name, by, Status.NO.value, why))


def take() -> tuple[Row, ...]:
    """Return what is pending, and forget it."""
    found = tuple(_pending)
    _pending.clear()
    return found


def judged(rows: Iterable[Row], status: Status, reason: str) -> tuple[Row, ...]:
    """Return rows whose test has ended: what it was about to test has this status."""
    return tuple(
        Row(row.store, row.capability, row.by, status.value, reason)
        if row.status == Status.YES.value
        else row
        for row in rows
    )


def merged(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return one entry for each store and promise: its status, who tested it, and reasons.

    The keys are "store", "capability", "status", "by" and "reasons", the last two sorted lists.
    """
    groups: dict[tuple[str, str], set[Row]] = {}
    for row in rows:
        groups.setdefault((row.store, row.capability), set()).add(row)
    return [
        {
            "store": store,
            "capability": capability,
            "status": _together({row.status for row in found}),
            "by": sorted({row.by for row in found if row.by and row.status != Status.NO.value}),
            "reasons": sorted({_reason(row) for row in found if row.reason}),
        }
        for (store, capability), found in sorted(groups.items())
    ]


def _add(row: Row) -> None:
    _pending[row] = None


def _together(found: set[str]) -> str:
    if {Status.YES.value, Status.SKIPPED.value} <= found:
        found = found | {Status.PARTLY.value}
    return next(status.value for status in _STRONGEST if status.value in found)


def _reason(row: Row) -> str:
    return f"{row.by}: {row.reason}" if row.by else row.reason


_STRONGEST = (
    Status.FAILS, Status.KNOWN, Status.PARTLY, Status.YES, Status.SKIPPED, Status.UNTESTED,
    Status.NO,
)  # fmt: skip
_ALL = tuple(each.name for each in fields(Capabilities))
