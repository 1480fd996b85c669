"""The cryptography of group messages: keys for epochs and messages, sealing, signatures.

The law: pure functions over bytes; nothing is stored here. **This is not MLS.** It is a small
stand-in with the same needs from its storage: a secret for each epoch, a key and nonce for
each message number that must never be used twice, and commits whose fresh entropy only the
members of the next epoch can open. Do not take it for a reviewed protocol.
"""

from __future__ import annotations

import hashlib
import os

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pytest_statepersist.reference.errors import DamagedData, IntegrityError
from pytest_statepersist.reference.slots import SignatureKey

__all__ = [
    "GUARD_SIZE",
    "SECRET_SIZE",
    "decrypt_message",
    "encrypt_message",
    "new_signature_key",
    "new_x25519_key",
    "next_secret",
    "open_sealed",
    "seal_to",
    "sign",
    "verify",
    "x25519_public",
]

SECRET_SIZE = 32
GUARD_SIZE = 4


def next_secret(secret: bytes, entropy: bytes, state: bytes) -> bytes:
    """Return the secret of the epoch that begins with ``state``."""
    return _derive(entropy, salt=secret, info=b"epoch " + hashlib.sha256(state).digest())


def encrypt_message(
    secret: bytes, number: bytes, guard: bytes, plain: bytes, bound: bytes
) -> bytes:
    """Encrypt under the key that belongs to ``number`` alone, bound to the header ``bound``.

    ``number`` must never be used twice with one secret: that is the storage's promise.
    ``guard`` is 4 random bytes mixed into the nonce, as MLS does, against the day when a whole
    disk was rolled back and that promise was broken without anybody being able to notice.
    """
    key, nonce = _message_key(secret, number, guard)
    return AESGCM(key).encrypt(nonce, plain, bound)


def decrypt_message(secret: bytes, number: bytes, guard: bytes, data: bytes, bound: bytes) -> bytes:
    """Undo `encrypt_message`. Raises `IntegrityError`."""
    key, nonce = _message_key(secret, number, guard)
    try:
        return AESGCM(key).decrypt(nonce, data, bound)
    except InvalidTag:
        raise IntegrityError("a message does not decrypt: changed, or of another epoch") from None


def seal_to(public_key: bytes, plain: bytes, context: bytes) -> bytes:
    """Encrypt for whoever holds an X25519 private key. Raises `DamagedData` for a bad key."""
    ephemeral = X25519PrivateKey.generate()
    sender = ephemeral.public_key().public_bytes_raw()
    key = _agree(ephemeral, public_key, sender + public_key + context)
    return sender + AESGCM(key).encrypt(bytes(12), plain, context)  # the key is used once


def open_sealed(private_key: bytes, data: bytes, context: bytes) -> bytes:
    """Undo `seal_to`. Raises `IntegrityError`, `DamagedData`."""
    own = X25519PrivateKey.from_private_bytes(private_key)
    sender, sealed = data[:32], data[32:]
    key = _agree(own, sender, sender + own.public_key().public_bytes_raw() + context)
    try:
        return AESGCM(key).decrypt(bytes(12), sealed, context)
    except InvalidTag:
        raise IntegrityError("sealed for somebody else, or changed") from None


def x25519_public(private_key: bytes) -> bytes:
    """Return the public half of a private X25519 key."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def new_x25519_key() -> bytes:
    """Return a fresh private X25519 key (any 32 random bytes are one)."""
    return os.urandom(32)


def new_signature_key() -> SignatureKey:
    """Return a fresh Ed25519 key pair."""
    private = Ed25519PrivateKey.generate()
    return SignatureKey(
        public_key=private.public_key().public_bytes_raw(),
        private_key=private.private_bytes_raw(),
    )


def sign(key: SignatureKey, data: bytes) -> bytes:
    """Return the Ed25519 signature, 64 bytes."""
    return Ed25519PrivateKey.from_private_bytes(key.private_key).sign(data)


def verify(public_key: bytes, data: bytes, signature: bytes) -> None:
    """Raise `IntegrityError` unless the signature fits."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        raise IntegrityError("a signature does not fit what it is said to have signed") from None


def _agree(private: X25519PrivateKey, public_key: bytes, info: bytes) -> bytes:
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError as error:
        raise DamagedData("not a usable X25519 public key") from error
    return _derive(shared, salt=b"", info=b"seal " + info)


def _message_key(secret: bytes, number: bytes, guard: bytes) -> tuple[bytes, bytes]:
    material = _derive(secret, salt=b"", info=b"message " + number, length=SECRET_SIZE + 12)
    nonce = bytearray(material[SECRET_SIZE:])
    for index, byte in enumerate(guard[:GUARD_SIZE]):
        nonce[index] ^= byte
    return material[:SECRET_SIZE], bytes(nonce)


def _derive(secret: bytes, *, salt: bytes, info: bytes, length: int = SECRET_SIZE) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(secret)
