"""Encryption at rest: one key, many small files, each bound to its own place.

The law: nothing is written that was not encrypted with AES-256-GCM under a fresh random
nonce, and nothing is returned that did not authenticate together with its header and its
``context`` (the name of the place it belongs to, so that files cannot be exchanged).

A ciphertext, byte by byte::

    0   8  magic "SPENC001"
    8   1  key derivation: 0 = the key is raw, 1 = Argon2id of a passphrase
    9   4  Argon2id memory in KiB, big-endian   (0 for a raw key)
    13  2  Argon2id iterations                  (0 for a raw key)
    15  1  Argon2id lanes                       (0 for a raw key)
    16 16  salt                                 (zeros for a raw key)
    32  8  key check: tells a wrong key from damaged data
    40 12  nonce
    52  …  AES-256-GCM ciphertext and 16-byte tag; associated data: bytes 0-51 and the context

What this does not hide: how many files there are, their names, and their sizes. What it does
not notice: an old file put back in its own place.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import threading
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.errors import (
    DamagedData,
    IntegrityError,
    ValidationError,
    WrongPassword,
)

__all__ = ["MAGIC", "Cipher", "KdfCost"]

MAGIC = b"SPENC001"
_HEADER = struct.Struct(">8sBIHB16s8s12s")
_RAW, _ARGON2ID = 0, 1
_NO_SALT = bytes(16)
# Bounds for what a header may ask of us: a forged one must not exhaust memory or patience.
_MOST_MEMORY_KIB, _MOST_ITERATIONS, _MOST_LANES = 1 << 20, 64, 64


@dataclass(frozen=True, slots=True)
class KdfCost:
    """Argon2id's price per guess; the default is RFC 9106's second recommendation."""

    memory_kib: int = 64 << 10
    iterations: int = 3
    lanes: int = 4

    def __post_init__(self) -> None:
        if not (1 <= self.lanes <= _MOST_LANES and 1 <= self.iterations <= _MOST_ITERATIONS):
            raise ValidationError("cost", f"{self} is out of bounds")
        if not 8 * self.lanes <= self.memory_kib <= _MOST_MEMORY_KIB:
            raise ValidationError("cost.memory_kib", f"{self.memory_kib} is out of bounds")


@dataclass(frozen=True, slots=True)
class _Keys:
    encrypting: bytes
    check: bytes

    @classmethod
    def of(cls, key: bytes) -> _Keys:
        def derive(purpose: bytes) -> bytes:
            return hmac.digest(key, b"reference cipher " + purpose, hashlib.sha256)

        return cls(derive(b"encrypt"), derive(b"check")[:8])


@checked
class Cipher:
    """Encrypts and decrypts under one raw key or one passphrase; safe between threads.

    With a passphrase each salt costs one key derivation, done once and kept; all that one
    object writes shares a salt.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValidationError("key", f"has {len(key)} bytes; AES-256 needs 32")
        self._passphrase: bytes | None = None
        self._cost = KdfCost()
        self._lock = threading.Lock()
        self._writing = (_RAW, 0, 0, 0, _NO_SALT)
        self._derived = {self._writing: _Keys.of(key)}

    @classmethod
    def from_passphrase(cls, passphrase: str, *, cost: KdfCost | None = None) -> Cipher:
        """Return a cipher for a passphrase. Raises `ValidationError` for an empty one."""
        if not passphrase:
            raise ValidationError("passphrase", "is empty")
        self = cls.__new__(cls)
        try:
            self._passphrase = passphrase.encode()
        except UnicodeEncodeError:
            raise ValidationError("passphrase", "has a lone surrogate") from None
        self._cost = cost or KdfCost()
        self._lock = threading.Lock()
        price = (self._cost.memory_kib, self._cost.iterations, self._cost.lanes)
        self._writing = (_ARGON2ID, *price, os.urandom(16))
        self._derived = {}
        return self

    @staticmethod
    def is_encrypted(data: bytes) -> bool:
        """Tell whether ``data`` says that it is one of our ciphertexts."""
        return data.startswith(MAGIC)

    def encrypt(self, plaintext: bytes, context: str) -> bytes:
        """Return the ciphertext, 68 bytes longer than the plaintext."""
        keys = self._keys(self._writing)
        header = _HEADER.pack(MAGIC, *self._writing, keys.check, os.urandom(12))
        sealed = AESGCM(keys.encrypting).encrypt(header[-12:], plaintext, _bind(header, context))
        return header + sealed

    def decrypt(self, data: bytes, context: str) -> bytes:
        """Return the plaintext of what `encrypt` made for the same context.

        Raises `DamagedData` (not a ciphertext of ours), `WrongPassword` (or the first 40 bytes
        are damaged), `IntegrityError` (right key, but changed, cut, or from another place).
        """
        if len(data) < _HEADER.size + 16 or not self.is_encrypted(data):
            raise DamagedData(f"{context}: is not encrypted data, or is cut short")
        header = data[: _HEADER.size]
        _, *source, check, nonce = _HEADER.unpack(header)
        keys = self._keys(self._checked(tuple(source), context))
        if not hmac.compare_digest(keys.check, check):
            raise WrongPassword(
                f"{context}: encrypted with another key or passphrase (or its header is damaged)"
            )
        try:
            return AESGCM(keys.encrypting).decrypt(
                nonce, data[_HEADER.size :], _bind(header, context)
            )
        except InvalidTag:
            raise IntegrityError(
                f"{context}: changed since it was encrypted, or moved here from another place"
            ) from None

    def _checked(self, source: tuple[int, int, int, int, bytes], context: str) -> _Source:
        kind, memory, iterations, lanes, _ = source
        if kind == _RAW and self._passphrase is None:
            if source != self._writing:
                raise DamagedData(f"{context}: the header of a raw key has other fields set")
            return source
        if kind == _ARGON2ID and self._passphrase is not None:
            try:
                KdfCost(memory, iterations, lanes)
            except ValidationError as error:
                raise DamagedData(f"{context}: the header asks for the impossible") from error
            return source
        if kind in (_RAW, _ARGON2ID):
            needed = "a passphrase" if kind == _ARGON2ID else "a raw key"
            raise WrongPassword(f"{context}: was encrypted with {needed}; pass that one")
        raise DamagedData(f"{context}: unknown key derivation {kind}")

    def _keys(self, source: _Source) -> _Keys:
        with self._lock:
            found = self._derived.get(source)
            if found is None:
                _, memory, iterations, lanes, salt = source
                kdf = Argon2id(
                    salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory
                )
                assert self._passphrase is not None  # raw keys are there from the start
                found = self._derived[source] = _Keys.of(kdf.derive(self._passphrase))
            return found


_Source = tuple[int, int, int, int, bytes]


def _bind(header: bytes, context: str) -> bytes:
    try:
        return header + context.encode()
    except UnicodeEncodeError as error:
        raise ValidationError("context", "has a lone surrogate, which UTF-8 lacks") from error
