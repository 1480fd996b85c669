"""Who the user is: `identity.json`, small, readable, and signed by its own key.

The law: user id, display name and fingerprint, in plain JSON that a person may read and copy.
The fingerprint is the SHA-256 of the public key, and the key has signed all the rest, so that
a damaged or edited file is noticed. The private key is not here but in the encrypted slots.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
import uuid
from typing import Literal

from pydantic import BaseModel, ConfigDict
from pydantic import ValidationError as PydanticError

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import read_bounded, write_atomic
from pytest_statepersist.reference.clock import Clock
from pytest_statepersist.reference.errors import (
    DamagedData,
    IntegrityError,
    NewerVersion,
    ValidationError,
)
from pytest_statepersist.reference.message_protection import sign, verify
from pytest_statepersist.reference.slots import SignatureKey
from pytest_statepersist.reference.timestamps import Moment

__all__ = ["IDENTITY_NAME", "Identity", "load_identity", "parse_identity", "save_identity"]

IDENTITY_NAME = "identity.json"
_VERSION = 1
_LARGEST = 64 << 10
_LONGEST_NAME = 100


@checked
class Identity(BaseModel):
    """A user: UUID, display name, and the fingerprint of the public key (hexadecimal)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    user_id: uuid.UUID
    display_name: str
    fingerprint: str
    public_key: str
    created_at: Moment
    signature: str

    @classmethod
    def create(cls, display_name: str, key: SignatureKey, clock: Clock) -> Identity:
        """Return a new identity. Raises `ValidationError` for an impossible name."""
        blank = cls(
            user_id=uuid.uuid4(),
            display_name=_checked_name(display_name),
            fingerprint=_fingerprint(key.public_key),
            public_key=key.public_key.hex(),
            created_at=clock.now(),
            signature="",
        )
        return blank._signed(key)

    def renamed(self, display_name: str, key: SignatureKey) -> Identity:
        """Return the same identity under another display name."""
        changed = self.model_copy(update={"display_name": _checked_name(display_name)})
        return changed._signed(key)

    def check(self) -> None:
        """Raise `IntegrityError` unless fingerprint and signature fit the rest."""
        try:
            public = bytes.fromhex(self.public_key)
            signature = bytes.fromhex(self.signature)
        except ValueError as error:
            raise IntegrityError("identity: key or signature is not hexadecimal") from error
        if _fingerprint(public) != self.fingerprint:
            raise IntegrityError("identity: the fingerprint is not that of the public key")
        verify(public, self._to_sign(), signature)

    def encode(self) -> bytes:
        """Return the file's content: sorted, indented JSON."""
        content = self.model_dump(mode="json")
        return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()

    def _signed(self, key: SignatureKey) -> Identity:
        return self.model_copy(update={"signature": sign(key, self._to_sign()).hex()})

    def _to_sign(self) -> bytes:
        content = self.model_dump(mode="json", exclude={"signature"})
        return json.dumps(content, sort_keys=True).encode()


@checked
def save_identity(path: str | os.PathLike[str], identity: Identity) -> None:
    """Store an identity: atomic, durable on return, mode 0600. Raises `StorageError`."""
    write_atomic(path, identity.encode())


@checked
def load_identity(path: str | os.PathLike[str]) -> Identity:
    """Return the stored identity.

    Raises `NotFound`, `DamagedData`, `IntegrityError` (edited or damaged), `NewerVersion`,
    `StorageError`.
    """
    return parse_identity(read_bounded(path, _LARGEST, follow_symlinks=False))


@checked
def parse_identity(data: bytes) -> Identity:
    """Return the identity in a file's content. Raises like `load_identity`."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedData(f"{IDENTITY_NAME}: is not JSON ({error})") from error
    version = content.get("version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > _VERSION:
        raise NewerVersion(f"{IDENTITY_NAME}: version {version}, this code knows {_VERSION}")
    try:
        identity = Identity.model_validate(content)
    except PydanticError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DamagedData(f"{IDENTITY_NAME}: {where}: {first['msg']}") from error
    identity.check()
    return identity


def _fingerprint(public_key: bytes) -> str:
    return hashlib.sha256(public_key).hexdigest()


def _checked_name(name: str) -> str:
    if not name.strip() or len(name) > _LONGEST_NAME:
        raise ValidationError("display_name", f"needs 1 to {_LONGEST_NAME} visible characters")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise ValidationError("display_name", "holds a control character or half a surrogate pair")
    return name
