"""What changed from one snapshot to another, field by field.

The law: a diff is data. It names exactly the leaves whose JSON differs, so that an empty diff
means equal snapshots (signatures aside). 1, 1.0 and true are three different values; lists
are compared as wholes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.serializers import CompactJsonSerializer
from pytest_statepersist.reference.state_snapshot import StateSnapshot

__all__ = ["ABSENT", "ComponentChange", "FieldChange", "SnapshotDiff", "diff", "same_json"]


class _Absent(Enum):
    ABSENT = "absent"

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent.ABSENT
"""Stands for a field that is not there at all."""


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One leaf: its dotted path, and its JSON value (or `ABSENT`) on both sides."""

    path: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class ComponentChange:
    """A component that both snapshots have, and what differs in it."""

    component_id: str
    fields: tuple[FieldChange, ...]


@dataclass(frozen=True, slots=True)
class SnapshotDiff:
    """All differences; ``header`` is about ``created_at`` and the snapshot's metadata."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[ComponentChange, ...]
    header: tuple[FieldChange, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.header)


@checked
def diff(before: StateSnapshot, after: StateSnapshot) -> SnapshotDiff:
    """Return what one has to change in ``before`` to get ``after``; all sorted by name."""
    old, new = _by_id(before), _by_id(after)
    changed = []
    for component_id in sorted(old.keys() & new.keys()):
        fields = tuple(_changes("", old[component_id], new[component_id]))
        if fields:
            changed.append(ComponentChange(component_id, fields))
    return SnapshotDiff(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(changed),
        header=tuple(_changes("", _header(before), _header(after))),
    )


@checked
def same_json(left: object, right: object) -> bool:
    """Tell whether two JSON values (or `ABSENT`) are written alike."""
    if left is ABSENT or right is ABSENT:
        return left is right
    dumps = CompactJsonSerializer().dumps
    return dumps(left) == dumps(right)


def _by_id(snapshot: StateSnapshot) -> dict[str, dict[str, Any]]:
    return {c.component_id: c.document() for c in snapshot.components}


def _header(snapshot: StateSnapshot) -> dict[str, Any]:
    return {
        "created_at": snapshot.created_at,
        "metadata": snapshot.metadata.model_dump(mode="json"),
    }


def _changes(path: str, before: object, after: object) -> Iterator[FieldChange]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            inner = f"{path}.{key}" if path else key
            yield from _changes(inner, before.get(key, ABSENT), after.get(key, ABSENT))
    elif not same_json(before, after):
        yield FieldChange(path, before, after)
