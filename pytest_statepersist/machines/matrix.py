"""Which promise of which store was tested by what: the capability matrix, as data.

Belongs here: rows, and the one registry of this process. No prose beyond the reason, no Hypothesis,
no pytest: the plugin shows the rows, and sends them through a distributed run as plain lists.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

__all__ = ["Row", "clear", "record", "rows", "table"]


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """One promise of one store: tested by a machine or suite, or skipped for a reason."""

    store: str
    capability: str
    by: str
    tested: bool
    reason: str = ""

    def plain(self) -> list[str | bool]:
        """Return the row as JSON knows it; ``Row(*row.plain())`` is the row again."""
        return list(astuple(self))


_rows: dict[tuple[str, str, str], Row] = {}


def record(store: str, by: str, capability: str, *, tested: bool, reason: str = "") -> None:
    """Note that a machine or suite tested a promise of a store, or why it did not."""
    _rows[store, by, capability] = Row(store, capability, by, tested, reason)


def rows() -> tuple[Row, ...]:
    """Return all rows so far, sorted by store and capability."""
    return tuple(sorted(_rows.values()))


def clear() -> None:
    """Forget all rows: a new test run begins."""
    _rows.clear()


def table(found: tuple[Row, ...] | None = None) -> tuple[str, ...]:
    """Return the matrix as lines: a capability a line, stores as columns, and the legend.

    A cell is ``tested`` where at least one machine or suite tested it, else ``not covered``.
    """
    known = rows() if found is None else found
    if not known:
        return ()
    stores = sorted({row.store for row in known})
    capabilities = sorted({row.capability for row in known})
    cells = {
        (capability, store): "tested"
        if any(r.tested for r in known if (r.capability, r.store) == (capability, store))
        else "not covered"
        for capability in capabilities
        for store in stores
        if any((r.capability, r.store) == (capability, store) for r in known)
    }
    first = max(len("capability"), *map(len, capabilities))
    widths = [max(len(store), len("not covered")) for store in stores]
    head = "  ".join(s.ljust(w) for s, w in zip(stores, widths, strict=True))
    lines = [f"{'capability':<{first}}  {head}".rstrip()]
    for capability in capabilities:
        row = (
            cells.get((capability, s), "-").ljust(w) for s, w in zip(stores, widths, strict=True)
        )
        lines.append(f"{capability:<{first}}  {'  '.join(row)}".rstrip())
    return tuple(lines)
