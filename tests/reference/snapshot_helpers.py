"""Components and registries for the snapshot tests."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from pytest_statepersist.reference.component_registry import ComponentRecord, DirectoryRegistry
from pytest_statepersist.reference.state_snapshot import (
    Component,
    Policy,
    SnapshotMetadata,
    StateSnapshot,
)

NOON = 1740830400
CANARY = "canary-7c02"
POLICY = Policy(content="network:\n  allow:\n    - host: api.example.org\n", created_at=NOON - 1000)


def component(name: str = "fetch", **changes: object) -> Component:
    binary = b"\0asm " + name.encode()
    fields: dict[str, object] = {
        "component_id": name,
        "source_uri": f"oci://registry.example.org/{name}:1",
        "metadata": {"tools": ["get", "put"], "limits": {"size": 10, "note": None}},
        "policy": POLICY,
        "binary": base64.b64encode(binary).decode(),
        "binary_sha256": hashlib.sha256(binary).hexdigest(),
    }
    return Component(**{**fields, **changes})  # type: ignore[arg-type]


def snapshot(*names: str, **changes: object) -> StateSnapshot:
    fields: dict[str, object] = {
        "created_at": NOON,
        "metadata": SnapshotMetadata(
            description="before the release", app_version="1.2", source="ci", tags={"env": "dev"}
        ),
        "components": tuple(component(name) for name in names or ("fetch", "time")),
    }
    return StateSnapshot(**{**fields, **changes})  # type: ignore[arg-type]


def record(name: str = "fetch", **changes: object) -> ComponentRecord:
    fields: dict[str, object] = {
        "component_id": name,
        "source_uri": f"oci://registry.example.org/{name}:1",
        "metadata": {"tools": ["get"], "note": None},
        "policy": POLICY,
        "binary": b"\0asm " + name.encode(),
        "secrets": {"API_KEY": f"{CANARY}-{name}"},
    }
    return ComponentRecord(**{**fields, **changes})  # type: ignore[arg-type]


def registry(root: Path, *names: str, **options: object) -> DirectoryRegistry:
    made = DirectoryRegistry(root, lock_timeout=5, **options)  # type: ignore[arg-type]
    made.apply(record(name) for name in names)
    return made


def state(reg: DirectoryRegistry) -> dict[str, ComponentRecord]:
    return {name: reg.get(name) for name in reg.ids()}
