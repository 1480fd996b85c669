"""Secrets in a snapshot: only sealed, only on purpose, each bound to its component.

The law: what goes in is AES-256-GCM under a key that Argon2id derives from a passphrase (see
`cipher` for the bytes); the component's id is authenticated with it, so that one component's
secrets cannot be handed to another.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.cipher import Cipher, KdfCost
from pytest_statepersist.reference.errors import DamagedData, ValidationError
from pytest_statepersist.reference.serializers import CompactJsonSerializer

__all__ = ["SecretsSealer"]


@checked
class SecretsSealer:
    """Seals and opens the secrets of components under one passphrase.

    Raises `ValidationError` for an empty passphrase.
    """

    def __init__(self, passphrase: str, *, cost: KdfCost | None = None) -> None:
        self._cipher = Cipher.from_passphrase(passphrase, cost=cost)

    def seal(self, component_id: str, secrets: Mapping[str, str]) -> str:
        """Return the base64 text for a component's ``secrets`` field; new bytes each time."""
        plain = CompactJsonSerializer().dumps(dict(secrets))
        return base64.b64encode(self._cipher.encrypt(plain, _context(component_id))).decode()

    def open(self, component_id: str, sealed: str) -> dict[str, str]:
        """Return the secrets.

        Raises `WrongPassword`, `IntegrityError` (changed, or another component's), or
        `DamagedData`.
        """
        try:
            raw = base64.b64decode(sealed, validate=True)
        except ValueError as error:
            raise DamagedData(f"{component_id}: sealed secrets are not base64") from error
        plain = self._cipher.decrypt(raw, _context(component_id))
        secrets = CompactJsonSerializer().loads(plain)
        if not isinstance(secrets, dict) or not all(isinstance(v, str) for v in secrets.values()):
            raise ValidationError(f"{component_id}.secrets", "are no names with texts")
        return secrets


def _context(component_id: str) -> str:
    return f"secrets of {component_id}"
