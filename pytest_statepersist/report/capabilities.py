"""The capability matrix as lines: promises down, stores across, then reasons.

Belongs here: prose made of the plain entries of `matrix.merged`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Any

__all__ = ["matrix_lines"]

_LEGEND = {
    "FAILS": "a test of it failed",
    "known": "fails as the list of known failures says",
    "partly": "what could look at it passed, and some could not look",
    "skipped": "declared, and nothing could look",
    "untested": "declared, and nothing that ran tests it",
    "no": "not declared, so not tested",
}
_TOLD = ("FAILS", "known", "partly", "skipped")
"""Statuses whose reasons are listed; the reason for ``no`` is always the same."""
_REASONS = 5


def matrix_lines(entries: Sequence[dict[str, Any]], width: int = 100) -> Iterator[str]:
    """Yield the table, as many stores side by side as fit, the legend, and the reasons."""
    if not entries:
        return
    stores = sorted({each["store"] for each in entries})
    names = sorted({each["capability"] for each in entries if each["status"] != "no"})
    nobody = sorted({each["capability"] for each in entries}.difference(names))
    cells = {(each["capability"], each["store"]): each["status"] for each in entries}
    first = max(map(len, ["capability", *names]))
    for group in _fitting(stores, width - first):
        head = "".join(f"  {store:<{_wide(store)}}" for store in group)
        yield f"{'capability':<{first}}{head}".rstrip()
        for name in names:
            row = "".join(f"  {cells.get((name, s), '-'):<{_wide(s)}}" for s in group)
            yield f"{name:<{first}}{row}".rstrip()
    if nobody:
        yield from wrap(f"declared by no store, not tested: {', '.join(nobody)}", width)
    seen = {each["status"] for each in entries if each["capability"] in names}
    legend = [f"{word}: {text}" for word, text in _LEGEND.items() if word in seen]
    yield from (f"  {line}" for line in ["yes: declared, tested, passed", *legend])
    for each in entries:
        if each["status"] in _TOLD and each["reasons"]:
            yield f"{each['store']} {each['capability']}: {each['status']}"
            yield from (f"  {reason}" for reason in each["reasons"][:_REASONS])
            more = len(each["reasons"]) - _REASONS
            if more > 0:
                yield f"  … and {more} more"


def _fitting(stores: Sequence[str], width: int) -> Iterator[list[str]]:
    group: list[str] = []
    used = 0
    for store in stores:
        wide = _wide(store) + 2
        if group and used + wide > width:
            yield group
            group, used = [], 0
        group.append(store)
        used += wide
    yield group


def _wide(store: str) -> int:
    return max(len(store), len("untested"))
