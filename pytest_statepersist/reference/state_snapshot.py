"""State snapshots: the components of an app as one portable, reviewable JSON document.

The law: equal snapshots are equal bytes (keys and components sorted, so that they diff well
under version control); what is loaded was validated, and its checksum fits; no secret is in
one unless it was sealed on purpose (`snapshot_secrets`).

Version 1::

    version      1
    created_at   seconds since 1970, UTC
    metadata     description, app_version, source, tags
    components   each: component_id, source_uri, metadata, and optionally
                 policy (content, source_uri, created_at),
                 binary (base64) and binary_sha256 (also where the binary is left out),
                 secrets (base64 of a sealed blob)
    sha256       of all of the above in canonical form
    signature    optional: algorithm, public_key, signature
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import read_bounded, write_atomic
from pytest_statepersist.reference.errors import (
    DamagedData,
    IntegrityError,
    InvalidId,
    NewerVersion,
    PersistenceError,
    ValidationError,
)
from pytest_statepersist.reference.ids import check_id
from pytest_statepersist.reference.packing import Packing, pack, unpack
from pytest_statepersist.reference.serializers import (
    DEFAULT_LIMIT,
    CompactJsonSerializer,
    JsonSerializer,
)

__all__ = [
    "VERSION",
    "Component",
    "Policy",
    "Signature",
    "SnapshotMetadata",
    "StateSnapshot",
]

VERSION = 1
_REQUIRED = ("version", "created_at", "metadata", "components")


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Policy(_Value):
    """What a component may do, as text; a boundary, not a secret."""

    content: str
    source_uri: str = "inline"
    created_at: int = Field(ge=0)


class Component(_Value):
    """One component. ``binary`` is base64; ``binary_sha256`` hex, of the bytes themselves."""

    component_id: str
    source_uri: str = Field(min_length=1)
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    policy: Policy | None = None
    binary: str | None = None
    binary_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    secrets: str | None = None

    def document(self) -> dict[str, Any]:
        """Return the component as JSON, without the optional fields that it does not have."""
        # Not exclude_none: that would also drop nulls inside the caller's own metadata.
        dumped = self.model_dump(mode="json", warnings="none")
        optional = ("policy", "binary", "binary_sha256", "secrets")
        return {k: v for k, v in dumped.items() if v is not None or k not in optional}

    def binary_bytes(self) -> bytes | None:
        """Return the binary that is in the snapshot, if any. Raises `ValidationError`."""
        if self.binary is None:
            return None
        try:
            return base64.b64decode(self.binary, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValidationError("binary", f"is not base64: {error}") from error


class SnapshotMetadata(_Value):
    """Who made the snapshot, of what, and why."""

    description: str = ""
    app_version: str = ""
    source: str = ""
    tags: dict[str, str] = Field(default_factory=dict)


class Signature(_Value):
    """An Ed25519 signature in base64; see `snapshot_signing`."""

    algorithm: Literal["ed25519"] = "ed25519"
    public_key: str
    signature: str


@checked
class StateSnapshot(_Value):
    """A snapshot of version 1; ``created_at`` is in seconds since 1970, UTC."""

    version: Literal[1] = 1
    created_at: int = Field(ge=0)
    metadata: SnapshotMetadata = Field(default_factory=SnapshotMetadata)
    components: tuple[Component, ...] = ()
    signature: Signature | None = None

    def component(self, component_id: str) -> Component | None:
        """Return one component; None if it is not there."""
        return next((c for c in self.components if c.component_id == component_id), None)

    def validate(self) -> None:  # type: ignore[override]  # pydantic's deprecated classmethod
        """Check everything that the types cannot say.

        Raises `ValidationError` that names the field (a duplicate, a malformed id, bad base64),
        `IntegrityError` when a binary does not fit its checksum, `NewerVersion`.
        """
        _parse(self._document())
        _check_components(self)

    def digest(self) -> bytes:
        """Return the SHA-256 of the canonical form, signature excluded."""
        return hashlib.sha256(self.canonical()).digest()

    def canonical(self) -> bytes:
        """Return the bytes that the checksum and the signature cover."""
        document = self._document()
        document.pop("signature", None)
        return CompactJsonSerializer().dumps(document)

    def to_json(self) -> str:
        """Return the document: validated, indented, byte-stable, with a final newline."""
        self.validate()
        document = self._document() | {"sha256": self.digest().hex()}
        return JsonSerializer().dumps(document).decode()

    @classmethod
    def from_json(cls, text: str | bytes, *, verify: bool = True) -> StateSnapshot:
        """Return the snapshot in a document.

        ``verify=False`` accepts one whose checksum is missing or no longer fits, for instance
        after an edit by hand; all else is checked all the same. Raises `DamagedData` (no
        JSON), `NewerVersion`, `ValidationError` with the field, `IntegrityError`.
        """
        document = JsonSerializer().loads(text if isinstance(text, bytes) else _encoded(text))
        if not isinstance(document, dict):
            raise ValidationError("$", "a snapshot is a JSON object")
        claimed = document.pop("sha256", None)
        snapshot = _parse(document)
        _check_components(snapshot)
        if verify:
            if claimed is None:
                raise ValidationError("sha256", "is missing; load with verify=False to accept")
            if claimed != snapshot.digest().hex():
                raise IntegrityError(
                    "sha256: does not fit the snapshot, which was changed after it was made; "
                    "load with verify=False to accept the change"
                )
        return snapshot

    def to_bytes(self, packing: Packing = Packing.NONE) -> bytes:
        """Return the document in UTF-8, compressed if asked for."""
        return pack(self.to_json().encode(), packing)

    @classmethod
    def from_bytes(
        cls, data: bytes, *, verify: bool = True, limit: int = DEFAULT_LIMIT
    ) -> StateSnapshot:
        """Return the snapshot in bytes, however packed. Raises as `from_json`, and bombs."""
        return cls.from_json(unpack(data, limit=limit), verify=verify)

    def save(self, path: str | os.PathLike[str], *, packing: Packing = Packing.NONE) -> None:
        """Write the snapshot to a file: atomic, durable on return, mode 0600.

        Raises `ValidationError` before anything is written, `StorageError`.
        """
        write_atomic(path, self.to_bytes(packing))

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, verify: bool = True, limit: int = DEFAULT_LIMIT
    ) -> StateSnapshot:
        """Read a snapshot file, however packed. Raises as `from_json`, and `NotFound`."""
        raw = read_bounded(path, limit)
        try:
            return cls.from_bytes(raw, verify=verify, limit=limit)
        except ValidationError as error:
            raise ValidationError(error.field, f"{error.problem} ({os.fspath(path)})") from error
        except PersistenceError as error:
            raise type(error)(f"{os.fspath(path)}: {error}") from error

    def _document(self) -> dict[str, Any]:
        document = self.model_dump(mode="json", exclude={"components"}, warnings="none")
        if document["signature"] is None:
            del document["signature"]
        components = sorted(self.components, key=lambda component: str(component.component_id))
        return document | {"components": [component.document() for component in components]}


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DamagedData(f"not valid text: {error}") from error


def _parse(document: dict[str, Any]) -> StateSnapshot:
    for name in _REQUIRED:  # the models have defaults, for those who build a snapshot in code
        if name not in document:
            raise ValidationError(name, "is missing")
    version = document.get("version")
    if isinstance(version, int) and version > VERSION:
        raise NewerVersion(f"version: {version}, this code knows up to {VERSION}; update it")
    try:
        # Strict typing in JSON mode: "1" is no integer, but a list may become a tuple.
        return StateSnapshot.model_validate_json(CompactJsonSerializer().dumps(document))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValidationError(_dotted(first["loc"]), first["msg"]) from error


def _dotted(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "$"


def _check_components(snapshot: StateSnapshot) -> None:
    seen: set[str] = set()
    for index, component in enumerate(snapshot.components):
        where = f"components[{index}]"
        try:
            check_id(component.component_id, "component_id")
        except InvalidId as error:
            raise ValidationError(f"{where}.component_id", str(error)) from error
        if component.component_id in seen:
            raise ValidationError(
                f"{where}.component_id", f"{component.component_id!r} is there twice"
            )
        seen.add(component.component_id)
        _check_blobs(component, where)


def _check_blobs(component: Component, where: str) -> None:
    try:
        content = component.binary_bytes()
    except ValidationError as error:
        raise ValidationError(f"{where}.binary", error.problem) from error
    if content is not None:
        if component.binary_sha256 is None:
            raise ValidationError(f"{where}.binary_sha256", "is missing beside a binary")
        if hashlib.sha256(content).hexdigest() != component.binary_sha256:
            raise IntegrityError(f"{where}.binary: does not fit its checksum binary_sha256")
    if component.secrets is not None:
        try:
            base64.b64decode(component.secrets, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValidationError(f"{where}.secrets", f"is not base64: {error}") from error
