"""Between a live registry and a portable snapshot: export and import.

The law: an export is one point in time (the registry's lock is held), and shows no secret
unless a passphrase to seal them with was given; an import happens completely or not at all,
and nothing that fails a check gets near the registry.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.cipher import KdfCost
from pytest_statepersist.reference.clock import Clock, SystemClock
from pytest_statepersist.reference.component_registry import ComponentRecord, ComponentRegistry
from pytest_statepersist.reference.errors import (
    IntegrityError,
    NotFound,
    PersistenceError,
    StorageError,
)
from pytest_statepersist.reference.snapshot_secrets import SecretsSealer
from pytest_statepersist.reference.snapshot_signing import verify_signature
from pytest_statepersist.reference.state_snapshot import (
    Component,
    SnapshotMetadata,
    StateSnapshot,
)

__all__ = ["ExportOptions", "Fetcher", "ImportOptions", "export_state", "import_state"]

Fetcher = Callable[[str], bytes]
"""Returns the binary behind a source URI; whatever it raises stops the import."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What goes into a snapshot.

    ``components``: only these ids. ``seal_secrets_with``: a passphrase; without one no secret
    is exported. With one, two exports differ in their sealed bytes.
    """

    include_binaries: bool = False
    components: Collection[str] | None = None
    metadata: SnapshotMetadata | None = None
    seal_secrets_with: str | None = None
    kdf_cost: KdfCost | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What becomes of a snapshot.

    ``skip_existing``: leave components that are there alone (else they are replaced).
    ``components``: only these ids. ``verify_checksums``: of fetched binaries, where the
    snapshot has one (inline binaries are always verified).
    ``fetch``: gets a binary that the snapshot leaves out; without it such a component is
    restored without binary, unless the registry has that very binary already.
    ``open_secrets_with``: the passphrase for sealed secrets; where there are none, or no
    passphrase, the registry's own secrets stay.
    ``trusted``: refuse what none of these keys has signed.
    """

    skip_existing: bool = False
    components: Collection[str] | None = None
    verify_checksums: bool = True
    fetch: Fetcher | None = None
    open_secrets_with: str | None = None
    trusted: Collection[Ed25519PublicKey] | None = None


@checked
def export_state(
    registry: ComponentRegistry,
    options: ExportOptions | None = None,
    *,
    clock: Clock | None = None,
) -> StateSnapshot:
    """Return a snapshot of the registry, as of one moment. Touches nothing on disk.

    Raises `NotFound` for an id in ``components`` that is not registered, and what the
    registry raises for one that it cannot read: a snapshot with silent gaps is worse than none.
    """
    chosen = options or ExportOptions()
    with registry.locked():
        names = registry.ids()
        if chosen.components is not None:
            _all_known(chosen.components, names)
            names = tuple(name for name in names if name in chosen.components)
        records = [registry.get(name) for name in names]
        moment = int((clock or SystemClock()).now().timestamp())
    sealer = None
    if chosen.seal_secrets_with is not None:
        sealer = SecretsSealer(chosen.seal_secrets_with, cost=chosen.kdf_cost)
    snapshot = StateSnapshot(
        created_at=moment,
        metadata=chosen.metadata or SnapshotMetadata(),
        components=tuple(_exported(record, chosen, sealer) for record in records),
    )
    snapshot.validate()
    return snapshot


def _exported(
    record: ComponentRecord, options: ExportOptions, sealer: SecretsSealer | None
) -> Component:
    binary = record.binary if options.include_binaries else None
    sealed = None
    if sealer is not None and record.secrets:
        sealed = sealer.seal(record.component_id, record.secrets)
    return Component(
        component_id=record.component_id,
        source_uri=record.source_uri,
        metadata=dict(record.metadata),
        policy=record.policy,
        binary=None if binary is None else base64.b64encode(binary).decode(),
        binary_sha256=record.binary_sha256,
        secrets=sealed,
    )


@checked
def import_state(
    registry: ComponentRegistry,
    snapshot: StateSnapshot,
    options: ImportOptions | None = None,
) -> int:
    """Restore components from a snapshot; return how many. All or nothing, durable on return.

    Everything is validated, fetched, verified and decrypted first; then one atomic step
    changes the registry. Policy files are 0600 from the first instant.

    Raises `ValidationError`, `NotFound` (an id in ``components`` that the snapshot lacks),
    `IntegrityError` (checksum or signature), `WrongPassword`, `StorageError` (fetching or
    writing failed); the registry is as before then.
    """
    chosen = options or ImportOptions()
    snapshot.validate()
    if chosen.trusted is not None:
        verify_signature(snapshot, chosen.trusted)
    components = list(snapshot.components)
    if chosen.components is not None:
        _all_known(chosen.components, [c.component_id for c in components])
        components = [c for c in components if c.component_id in chosen.components]
    if chosen.skip_existing:
        there = set(registry.ids())
        components = [c for c in components if c.component_id not in there]
    sealer = None
    if chosen.open_secrets_with is not None:
        sealer = SecretsSealer(chosen.open_secrets_with)
    with registry.locked():
        own = [_own_binary(registry, component) for component in components]
    # Fetching may take long: nobody waits for it.
    records = [
        _imported(component, binary, chosen, sealer)
        for component, binary in zip(components, own, strict=True)
    ]
    with registry.locked():
        there = set(registry.ids())
        if chosen.skip_existing:
            records = [record for record in records if record.component_id not in there]
        opened = {c.component_id for c in components if sealer is not None and c.secrets}
        registry.apply(
            record if record.component_id in opened else _with_own_secrets(registry, record, there)
            for record in records
        )
    return len(records)


def _imported(
    component: Component,
    own_binary: bytes | None,
    options: ImportOptions,
    sealer: SecretsSealer | None,
) -> ComponentRecord:
    name = component.component_id
    binary = component.binary_bytes()
    if binary is None:
        binary = own_binary
    if binary is None and options.fetch is not None:
        binary = _fetched(component, options.fetch)
    digest = component.binary_sha256
    if binary is not None:
        actual = hashlib.sha256(binary).hexdigest()
        if options.verify_checksums and digest not in (None, actual):
            raise IntegrityError(f"{name}: the binary from {component.source_uri} is another one")
        digest = actual
    secrets = {}
    if sealer is not None and component.secrets is not None:
        secrets = sealer.open(name, component.secrets)
    return ComponentRecord(
        component_id=name,
        source_uri=component.source_uri,
        metadata=component.metadata,
        policy=component.policy,
        binary=binary,
        binary_sha256=digest,
        secrets=secrets,
    )


def _own_binary(registry: ComponentRegistry, component: Component) -> bytes | None:
    """Return the registry's binary of that component where the snapshot leaves it out."""
    if component.binary is not None or component.binary_sha256 is None:
        return None
    try:
        own = registry.get(component.component_id)
    except PersistenceError:
        return None  # absent or damaged: it is about to be replaced
    return own.binary if own.binary_sha256 == component.binary_sha256 else None


def _fetched(component: Component, fetch: Fetcher) -> bytes:
    try:
        return bytes(fetch(component.source_uri))
    except PersistenceError:
        raise
    except Exception as error:
        raise StorageError(component.source_uri, error) from error


def _with_own_secrets(
    registry: ComponentRegistry, record: ComponentRecord, there: set[str]
) -> ComponentRecord:
    if record.component_id not in there:
        return record
    return replace(record, secrets=registry.get(record.component_id).secrets)


def _all_known(wanted: Collection[str], known: Collection[str]) -> None:
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise NotFound(f"no component is called {', '.join(map(repr, unknown))}")
