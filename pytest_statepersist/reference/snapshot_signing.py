"""Who made this snapshot: Ed25519 signatures over its canonical form.

The law: a signature covers everything but itself, and verification answers for a set of keys
that the *caller* trusts; the key inside the snapshot only says which of them to try.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.errors import IntegrityError, ValidationError
from pytest_statepersist.reference.state_snapshot import Signature, StateSnapshot

__all__ = ["sign", "verify_signature"]

# So that a signature for a snapshot is never one for anything else that the key may sign.
_DOMAIN = b"reference state snapshot v1\0"


@checked
def sign(snapshot: StateSnapshot, key: Ed25519PrivateKey) -> StateSnapshot:
    """Return the snapshot with a signature, in the place of one it may have had.

    Raises `ValidationError` for a snapshot that is not valid: it could not be loaded again.
    """
    snapshot.validate()
    signature = Signature(
        public_key=base64.b64encode(key.public_key().public_bytes_raw()).decode(),
        signature=base64.b64encode(key.sign(_DOMAIN + snapshot.canonical())).decode(),
    )
    return snapshot.model_copy(update={"signature": signature})


@checked
def verify_signature(
    snapshot: StateSnapshot, trusted: Iterable[Ed25519PublicKey]
) -> Ed25519PublicKey:
    """Return the trusted key that signed the snapshot.

    Raises `ValidationError` (no signature, malformed) or `IntegrityError` (by nobody in
    ``trusted``, or the snapshot was changed since).
    """
    if snapshot.signature is None:
        raise ValidationError("signature", "is missing: the snapshot was not signed")
    claimed = _decoded("public_key", snapshot.signature.public_key, 32)
    signature = _decoded("signature", snapshot.signature.signature, 64)
    for key in trusted:
        if key.public_bytes_raw() != claimed:
            continue
        try:
            key.verify(signature, _DOMAIN + snapshot.canonical())
        except InvalidSignature:
            raise IntegrityError(
                "signature: does not fit; the snapshot was changed after it was signed"
            ) from None
        return key
    raise IntegrityError("signature: made with a key that is not among the trusted ones")


def _decoded(name: str, text: str, length: int) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValidationError(f"signature.{name}", f"is not base64: {error}") from error
    if len(raw) != length:
        raise ValidationError(f"signature.{name}", f"has {len(raw)} bytes instead of {length}")
    return raw
