"""Damages the file of a snapshot, in a way that its format promises to notice.

The law: after `break_file` a load must raise. Kinds of damage that a format cannot see are refused
with the reason rather than made, since a "broken" snapshot that loads would prove nothing.
"""

from __future__ import annotations

import random
from enum import StrEnum
from pathlib import Path

from pytest_statepersist.errors import UserError
from pytest_statepersist.snapshots.making import SnapshotKind

__all__ = ["SnapshotDamage", "break_file"]


class SnapshotDamage(StrEnum):
    """What is done to the file."""

    MISSING = "missing"
    EMPTY = "empty"
    TRUNCATED = "truncated"
    APPENDED = "appended"
    FLIPPED = "flipped"
    ZEROED = "zeroed"
    GARBAGE = "garbage"


_UNSEEN = {
    SnapshotDamage.APPENDED: {
        SnapshotKind.DATABASE: "SQLite reads as many pages as its header counts, and no further",
    },
}
_SQLITE_MAGIC = 16  # SQLite has no checksums: of its header it notices the magic, of rows nothing


def break_file(kind: SnapshotKind, path: Path, damage: SnapshotDamage, seed: int) -> None:
    """Damage one file; where exactly depends on the seed. Raises `UserError` as described above."""
    reason = _UNSEEN.get(damage, {}).get(kind)
    if reason is not None:
        raise UserError(f"a {kind} snapshot cannot be broken by {damage!r}: {reason}")
    data = path.read_bytes()
    draw = random.Random(seed)
    if damage is SnapshotDamage.MISSING:
        path.unlink()
        return
    path.write_bytes(_damaged(kind, damage, data, draw))


def _damaged(kind: SnapshotKind, damage: SnapshotDamage, data: bytes, draw: random.Random) -> bytes:
    protected = _SQLITE_MAGIC if kind is SnapshotKind.DATABASE else len(data)
    match damage:
        case SnapshotDamage.EMPTY:
            return b""
        case SnapshotDamage.TRUNCATED:
            return data[: draw.randrange(1, max(2, len(data) // 2))]
        case SnapshotDamage.APPENDED:
            return data + draw.randbytes(32)
        case SnapshotDamage.FLIPPED:
            at = draw.randrange(protected)
            return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        case SnapshotDamage.ZEROED:
            start = 0 if protected < len(data) else draw.randrange(len(data) // 2)
            return data[:start] + bytes(len(data) - start)
        case _:
            return draw.randbytes(len(data))
