"""Two people changed the same snapshot: a three-way merge that hides nothing.

The law: what only one side changed is taken; what both changed alike is taken once; what both
changed differently is a `Conflict`, in which the merged snapshot has *our* value (or, where
one side removed what the other changed, the changed one: nothing is lost in silence).
Fields that only make sense together (`_UNITS`) are never mixed from both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.snapshot_diff import ABSENT, same_json
from pytest_statepersist.reference.state_snapshot import (
    Component,
    SnapshotMetadata,
    StateSnapshot,
)

__all__ = ["Conflict", "MergeResult", "merge"]

# A binary belongs to its source and its checksum; a policy's text to its origin and time.
_UNITS = (("source_uri", "binary", "binary_sha256"), ("policy",), ("secrets",))


@dataclass(frozen=True, slots=True)
class Conflict:
    """Both sides changed ``path`` differently; values are JSON, or `ABSENT`.

    ``component_id`` is None for the snapshot's own metadata. ``path`` is empty when a whole
    component was removed by one side and changed by the other, or added differently.
    """

    component_id: str | None
    path: str
    base: Any
    ours: Any
    theirs: Any


@dataclass(frozen=True, slots=True)
class MergeResult:
    """The merged snapshot (valid, unsigned) and what a person has to look at."""

    snapshot: StateSnapshot
    conflicts: tuple[Conflict, ...]


@checked
def merge(base: StateSnapshot, ours: StateSnapshot, theirs: StateSnapshot) -> MergeResult:
    """Merge two snapshots that both come from ``base``.

    ``created_at`` is the later one. Raises `ValidationError` for an input that is not valid.
    """
    for snapshot in (base, ours, theirs):
        snapshot.validate()
    conflicts: list[Conflict] = []
    names = {c.component_id for s in (base, ours, theirs) for c in s.components}
    components = []
    for name in sorted(names):
        merged = _merge_component(name, base, ours, theirs, conflicts)
        if merged is not None:
            components.append(merged)
    metadata = _Merge(None, conflicts).values(
        "metadata", *(s.metadata.model_dump(mode="json") for s in (base, ours, theirs))
    )
    snapshot = StateSnapshot(
        created_at=max(ours.created_at, theirs.created_at),
        metadata=SnapshotMetadata.model_validate(metadata),
        components=tuple(components),
    )
    snapshot.validate()
    return MergeResult(snapshot, tuple(conflicts))


def _merge_component(
    name: str,
    base: StateSnapshot,
    ours: StateSnapshot,
    theirs: StateSnapshot,
    conflicts: list[Conflict],
) -> Component | None:
    sides = [_json_or_absent(snapshot.component(name)) for snapshot in (base, ours, theirs)]
    old, left, right = sides
    if all(isinstance(side, dict) for side in sides):
        merged: Any = _Merge(name, conflicts).component(old, left, right)
    elif old is ABSENT and left is not ABSENT and right is not ABSENT:
        # Added by both: there is no base to tell the fields apart by.
        merged = left
        if not same_json(left, right):
            conflicts.append(Conflict(name, "", old, left, right))
    elif same_json(left, right) or same_json(old, right):
        merged = left
    elif same_json(old, left):
        merged = right
    else:
        merged = right if left is ABSENT else left
        conflicts.append(Conflict(name, "", old, left, right))
    return None if merged is ABSENT else Component.model_validate(merged)


def _json_or_absent(component: Component | None) -> Any:
    return ABSENT if component is None else component.document()


class _Merge:
    """Merges JSON values below one component, collecting conflicts."""

    def __init__(self, component_id: str | None, conflicts: list[Conflict]) -> None:
        self._component_id = component_id
        self._conflicts = conflicts

    def component(
        self, base: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]
    ) -> dict[str, Any]:
        merged: dict[str, Any] = {"component_id": ours["component_id"]}
        for unit in _UNITS:
            picked = [
                {name: side[name] for name in unit if name in side} for side in (base, ours, theirs)
            ]
            merged |= self.leaf("+".join(unit), *picked)
        merged["metadata"] = self.values(
            "metadata", *(side.get("metadata", {}) for side in (base, ours, theirs))
        )
        return merged

    def values(self, path: str, base: Any, ours: Any, theirs: Any) -> Any:
        if not all(isinstance(side, dict) for side in (base, ours, theirs)):
            return self.leaf(path, base, ours, theirs)
        merged = {}
        for key in sorted({*base, *ours, *theirs}):
            sides = [side.get(key, ABSENT) for side in (base, ours, theirs)]
            value = self.values(f"{path}.{key}", *sides)
            if value is not ABSENT:
                merged[key] = value
        return merged

    def leaf(self, path: str, base: Any, ours: Any, theirs: Any) -> Any:
        if same_json(ours, theirs) or same_json(base, theirs):
            return ours
        if same_json(base, ours):
            return theirs
        self._conflicts.append(Conflict(self._component_id, path, base, ours, theirs))
        return theirs if ours is ABSENT else ours
