"""A registry of components on disk: what a state snapshot is taken of and restored to.

The law: the registry changes in atomic, durable steps (`apply` takes any number of components
at once), all of its files are 0600 from the first instant, and whoever holds `locked` sees one
point in time. Layout below the root::

    components/ID.json   source URI, metadata, the policy's origin, the binary's checksum
    policies/ID.yaml     the policy's text
    binaries/ID.bin      the binary, if there is one
    secrets/ID.json      the secrets, if there are any; encrypted if the registry has a cipher
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import pydantic

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import (
    check_size,
    fsync_directory,
    make_directory,
    read_bounded,
    resolved_path,
)
from pytest_statepersist.reference.cipher import Cipher
from pytest_statepersist.reference.errors import (
    DamagedData,
    IntegrityError,
    NotFound,
    StorageError,
    ValidationError,
    WrongPassword,
)
from pytest_statepersist.reference.ids import check_id
from pytest_statepersist.reference.locking import StoreLock
from pytest_statepersist.reference.presence import is_link, is_present
from pytest_statepersist.reference.serializers import DEFAULT_LIMIT, JsonSerializer
from pytest_statepersist.reference.state_snapshot import Component, Policy
from pytest_statepersist.reference.transaction import JOURNAL_NAME, Transaction, recover

__all__ = ["ComponentRecord", "ComponentRegistry", "DirectoryRegistry"]

_DIRECTORIES = ("components", "policies", "binaries", "secrets")


@dataclass(frozen=True, slots=True)
class ComponentRecord:
    """One component with all that belongs to it.

    ``binary_sha256`` (hex) is known even where the binary itself is not here (yet).
    """

    component_id: str
    source_uri: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    policy: Policy | None = None
    binary: bytes | None = field(default=None, repr=False)
    binary_sha256: str | None = None
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


class ComponentRegistry(Protocol):
    """What export and import need to know about a registry."""

    def locked(self) -> AbstractContextManager[None]:
        """Keep every other thread and process from changing the registry meanwhile."""

    def ids(self) -> tuple[str, ...]:
        """Return the ids of all components, sorted."""

    def get(self, component_id: str) -> ComponentRecord:
        """Return one component. Raises `NotFound`."""

    def apply(self, records: Iterable[ComponentRecord]) -> None:
        """Add or replace all of these: all or nothing, durable on return."""


@checked
class DirectoryRegistry:
    """Opens, or creates, the registry in a directory; recovery is done on return.

    Raises `StorageError`, `LockTimeout`, `DamagedData` (a forged journal).
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        cipher: Cipher | None = None,
        lock_timeout: float = 10.0,
        limit: int = DEFAULT_LIMIT,
    ) -> None:
        self.root = resolved_path(root)
        self._cipher = cipher
        self._limit = limit
        self._interrupted = True
        make_directory(self.root)
        self._lock = StoreLock(self.root / ".lock", timeout=lock_timeout)
        with self.locked():
            pass

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the registry's lock; what a crash cut short is finished first."""
        with self._lock:
            if self._interrupted or is_present(self.root / JOURNAL_NAME):
                self._recover()
            yield

    def ids(self) -> tuple[str, ...]:
        """Return the ids of all components, sorted."""
        with self.locked():
            try:
                names = os.listdir(self.root / "components")
            except OSError as error:
                raise StorageError(self.root, error) from error
            stems = (n.removesuffix(".json") for n in names if n.endswith(".json"))
            return tuple(sorted(stem for stem in stems if not stem.startswith(".")))

    def get(self, component_id: str) -> ComponentRecord:
        """Return one component.

        Raises `NotFound`, `DamagedData`, `IntegrityError` (the binary does not fit its
        checksum), `WrongPassword` (secrets under another key), `StorageError`.
        """
        check_id(component_id, "component_id")
        with self.locked():
            card = self._card(component_id)
            policy = self._optional(f"policies/{component_id}.yaml")
            binary = self._optional(f"binaries/{component_id}.bin")
            sealed = self._optional(f"secrets/{component_id}.json")
            if binary is not None and hashlib.sha256(binary).hexdigest() != card.binary_sha256:
                raise IntegrityError(f"{component_id}: the binary does not fit its checksum")
            return ComponentRecord(
                component_id=component_id,
                source_uri=card.source_uri,
                metadata=card.metadata,
                policy=_join_policy(component_id, card.policy, policy),
                binary=binary,
                binary_sha256=card.binary_sha256,
                secrets={} if sealed is None else self._open_secrets(component_id, sealed),
            )

    def register(self, record: ComponentRecord) -> None:
        """Add or replace one component; atomic, durable on return."""
        self.apply([record])

    def apply(self, records: Iterable[ComponentRecord]) -> None:
        """Add or replace all of these: one atomic step, durable on return.

        After a crash all of them are there or none is. Raises `InvalidId`, `ValidationError`,
        `IntegrityError` (a binary that does not fit its checksum) before anything is touched;
        `StorageError`.
        """
        with self.locked():
            transaction = Transaction(self.root)
            for record in records:
                self._put(transaction, record)
            self._commit(transaction)

    def remove(self, component_id: str) -> None:
        """Remove one component with all that belongs to it; one atomic, durable step.

        Raises `NotFound`, `StorageError`.
        """
        check_id(component_id, "component_id")
        with self.locked():
            if component_id not in self.ids():
                raise NotFound(f"no component is called {component_id!r}")
            transaction = Transaction(self.root)
            for place in _places(component_id).values():
                transaction.delete(place)
            self._commit(transaction)

    def _recover(self) -> None:
        for directory in _DIRECTORIES:
            path = self.root / directory
            if is_link(path):
                raise ValidationError(directory, f"{path} is a symbolic link; move the files here")
            make_directory(path)
        recover(self.root, (".", *_DIRECTORIES))
        for directory in _DIRECTORIES:  # a writer may have been killed before its last sync
            fsync_directory(self.root / directory)
        self._interrupted = False

    def _commit(self, transaction: Transaction) -> None:
        self._interrupted = True  # after an error, the next call recovers first
        transaction.commit()
        self._interrupted = False

    def _put(self, transaction: Transaction, record: ComponentRecord) -> None:
        name = check_id(record.component_id, "component_id")
        digest = record.binary_sha256
        if record.binary is not None:
            actual = hashlib.sha256(record.binary).hexdigest()
            if digest not in (None, actual):
                raise IntegrityError(f"{name}: the binary does not fit its checksum")
            digest = actual
        card = _checked_card(record, digest)
        contents = {
            "components": JsonSerializer().dumps(card.document()),
            "policies": None if record.policy is None else record.policy.content.encode(),
            "binaries": record.binary,
            "secrets": self._seal_secrets(name, record.secrets),
        }
        for directory, place in _places(name).items():
            data = contents[directory]
            if data is None:
                transaction.delete(place)
            else:
                check_size(data, self._limit, f"{name}.{directory}")
                transaction.put(place, data)

    def _card(self, component_id: str) -> Component:
        raw = self._optional(f"components/{component_id}.json")
        if raw is None:
            raise NotFound(f"no component is called {component_id!r}")
        try:
            JsonSerializer().loads(raw)  # strict: no duplicate keys, no NaN
            card = Component.model_validate_json(raw)
        except pydantic.ValidationError as error:
            raise DamagedData(f"{component_id}: is no component: {error}") from error
        if card.component_id != component_id:
            raise IntegrityError(f"{component_id}: its file holds {card.component_id!r}")
        return card

    def _optional(self, place: str) -> bytes | None:
        try:
            return read_bounded(self.root / place, self._limit, follow_symlinks=False)
        except NotFound:
            return None

    def _seal_secrets(self, name: str, secrets: Mapping[str, str]) -> bytes | None:
        if not secrets:
            return None
        plain = JsonSerializer().dumps(dict(secrets))
        return plain if self._cipher is None else self._cipher.encrypt(plain, f"secrets/{name}")

    def _open_secrets(self, name: str, raw: bytes) -> dict[str, str]:
        if self._cipher is not None:
            raw = self._cipher.decrypt(raw, f"secrets/{name}")
        elif Cipher.is_encrypted(raw):
            raise WrongPassword(
                f"{name}: its secrets are encrypted; open the registry with the key"
            )
        secrets = JsonSerializer().loads(raw)
        if not isinstance(secrets, dict) or not all(isinstance(v, str) for v in secrets.values()):
            raise DamagedData(f"{name}: its secrets are no names with texts")
        return secrets


def _places(name: str) -> dict[str, str]:
    return {
        "components": f"components/{name}.json",
        "policies": f"policies/{name}.yaml",
        "binaries": f"binaries/{name}.bin",
        "secrets": f"secrets/{name}.json",
    }


def _checked_card(record: ComponentRecord, digest: str | None) -> Component:
    """Return what goes into the component's own file: all but text, binary and secrets."""
    policy = record.policy
    try:
        return Component(
            component_id=record.component_id,
            source_uri=record.source_uri,
            metadata=dict(record.metadata),
            policy=None if policy is None else policy.model_copy(update={"content": ""}),
            binary_sha256=digest,
        )
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        field_name = ".".join(str(part) for part in first["loc"])
        raise ValidationError(f"{record.component_id}.{field_name}", first["msg"]) from error


def _join_policy(name: str, card: Policy | None, text: bytes | None) -> Policy | None:
    if card is None or text is None:
        if card is not None or text is not None:
            raise DamagedData(f"{name}: its policy is only half there")
        return None
    try:
        return card.model_copy(update={"content": text.decode()})
    except UnicodeDecodeError as error:
        raise DamagedData(f"{name}: its policy is not UTF-8") from error
