"""The encrypted envelope `MLSS0001`: one secret blob, bound to its purpose and its group.

The law: nothing leaves `EnvelopeKey.seal` but AES-256-GCM ciphertext under a nonce drawn for
it alone, and nothing leaves `EnvelopeKey.open` that did not authenticate together with the
whole header and the ``context`` (the group id, for a snapshot). A blob moved to another
group, to another purpose or under another header does not open. The layout is frozen:
``docs/reference/envelope-format.md`` has it byte by byte, and golden files must open for ever.

What an envelope cannot see: an older one put back in its place. That is the index' business.
"""

from __future__ import annotations

import hmac
import os
import struct
import threading
from dataclasses import dataclass
from enum import IntEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.cipher import KdfCost
from pytest_statepersist.reference.errors import (
    DamagedData,
    IntegrityError,
    NewerVersion,
    ValidationError,
    WrongPassword,
)

__all__ = ["HEADER_SIZE", "KEY_SIZE", "MAGIC", "OVERHEAD", "VERSION", "EnvelopeKey", "Purpose"]

MAGIC = b"MLSS0001"
VERSION = 1
KEY_SIZE = 32
#: magic, version, purpose, key source, memory, iterations, lanes, salt, key check, nonce
_HEADER = struct.Struct(">8sBBBIHB16s8s12s")
HEADER_SIZE = _HEADER.size
_TAG_SIZE = 16
OVERHEAD = HEADER_SIZE + _TAG_SIZE
_RAW, _ARGON2ID = 0, 1


class Purpose(IntEnum):
    """What an envelope holds; part of the header, and so authenticated."""

    SNAPSHOT = 1
    INDEX = 2
    LOG_RECORD = 3
    LOG_SNAPSHOT = 4
    INVITES = 5
    EXPORT = 6


@dataclass(frozen=True, slots=True)
class _Source:
    """How a key came about: all that the header says of it."""

    kind: int
    memory_kib: int
    iterations: int
    lanes: int
    salt: bytes


@dataclass(frozen=True, slots=True)
class _Keys:
    encrypting: bytes
    check: bytes


@checked
class EnvelopeKey:
    """Seals and opens envelopes under one password or one raw key; safe between threads.

    A raw key gives each envelope a salt, hence a key, of its own. With a password each salt
    costs one Argon2id, so that one object writes under one salt: the first one that it has
    opened successfully at its own cost, else a fresh one. So a store that was opened has one
    salt, and opening it costs one derivation.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_SIZE:
            raise ValidationError("key", f"has {len(key)} bytes; AES-256 needs {KEY_SIZE}")
        self._secret = bytes(key)
        self._cost: KdfCost | None = None
        self._lock = threading.Lock()
        self._writing: _Source | None = None
        self._derived: dict[_Source, _Keys] = {}

    @classmethod
    def from_password(cls, password: str, *, cost: KdfCost | None = None) -> EnvelopeKey:
        """Return a key for a password. Raises `ValidationError` for an empty one."""
        if not password:
            raise ValidationError("password", "is empty")
        self = cls(bytes(KEY_SIZE))
        try:
            self._secret = password.encode()
        except UnicodeEncodeError:
            raise ValidationError("password", "has a lone surrogate") from None
        self._cost = cost or KdfCost()
        return self

    def seal(self, plaintext: bytes, *, purpose: Purpose, context: bytes) -> bytes:
        """Return the envelope: `OVERHEAD` bytes more than the plaintext, never the same twice.

        ``context`` is not stored: whoever opens the envelope must know it.
        """
        source = self._source_for_writing()
        keys = self._keys(source)
        nonce = os.urandom(12)
        header = _HEADER.pack(
            MAGIC, VERSION, purpose, source.kind, source.memory_kib, source.iterations,
            source.lanes, source.salt, keys.check, nonce,
        )  # fmt: skip
        return header + AESGCM(keys.encrypting).encrypt(nonce, plaintext, header + context)

    def open(self, data: bytes, *, purpose: Purpose, context: bytes) -> bytes:
        """Return the plaintext of an envelope sealed for the same purpose and context.

        Raises `DamagedData` (not an envelope, cut short, or of another purpose),
        `NewerVersion`, `WrongPassword` (or the salt or the key check is damaged: the two
        cannot be told apart) and `IntegrityError` (the right key, but changed or moved).
        """
        if len(data) < OVERHEAD or not data.startswith(MAGIC):
            raise DamagedData("no envelope: it is cut short, or does not begin with MLSS0001")
        version = data[len(MAGIC)]
        if version > VERSION:
            raise NewerVersion(
                f"envelope version {version}, this code knows {VERSION}; update the application"
            )
        header = bytes(data[:HEADER_SIZE])
        _, _, kind_of_content, kind, memory, iterations, lanes, salt, check, nonce = _HEADER.unpack(
            header
        )
        if version != VERSION or kind_of_content != purpose:
            raise DamagedData(
                f"an envelope of version {version} and purpose {kind_of_content}, where version "
                f"{VERSION} and purpose {int(purpose)} ({purpose.name.lower()}) was expected"
            )
        source = self._checked(_Source(kind, memory, iterations, lanes, salt))
        keys = self._keys(source)
        if not hmac.compare_digest(keys.check, check):
            raise WrongPassword("wrong password or key, or a damaged envelope header")
        try:
            plaintext = AESGCM(keys.encrypting).decrypt(nonce, data[HEADER_SIZE:], header + context)
        except InvalidTag:
            raise IntegrityError(
                "the envelope does not authenticate: it was changed since it was sealed, or "
                "belongs to another group or place; restore it from a backup"
            ) from None
        self._adopt(source)
        return plaintext

    def _source_for_writing(self) -> _Source:
        if self._cost is None:
            return _Source(_RAW, 0, 0, 0, os.urandom(16))
        with self._lock:
            if self._writing is None:
                cost = self._cost
                self._writing = _Source(
                    _ARGON2ID, cost.memory_kib, cost.iterations, cost.lanes, os.urandom(16)
                )
            return self._writing

    def _adopt(self, source: _Source) -> None:
        """Write under the salt of what was opened, unless that would change the cost."""
        cost = self._cost
        if cost is None:
            return
        price = (source.memory_kib, source.iterations, source.lanes)
        with self._lock:
            if self._writing is None and price == (cost.memory_kib, cost.iterations, cost.lanes):
                self._writing = source

    def _checked(self, source: _Source) -> _Source:
        expected = _RAW if self._cost is None else _ARGON2ID
        if source.kind not in (_RAW, _ARGON2ID):
            raise DamagedData(f"unknown key source {source.kind} in the envelope header")
        if source.kind != expected:
            needed = "a raw key" if source.kind == _RAW else "a password"
            raise WrongPassword(f"this envelope was sealed with {needed}; open it with that")
        if source.kind == _ARGON2ID:
            try:  # a forged header must not exhaust our memory or patience
                KdfCost(source.memory_kib, source.iterations, source.lanes)
            except ValidationError as error:
                raise DamagedData("the envelope header asks for an impossible Argon2id") from error
        return source

    def _keys(self, source: _Source) -> _Keys:
        if source.kind == _RAW:
            return _expand(self._secret, source.salt)
        with self._lock:
            found = self._derived.get(source)
            if found is None:
                kdf = Argon2id(
                    salt=source.salt,
                    length=KEY_SIZE,
                    iterations=source.iterations,
                    lanes=source.lanes,
                    memory_cost=source.memory_kib,
                )
                found = self._derived[source] = _expand(kdf.derive(self._secret), source.salt)
            return found


def _expand(secret: bytes, salt: bytes) -> _Keys:
    kdf = HKDF(algorithm=hashes.SHA256(), length=KEY_SIZE + 8, salt=salt, info=b"MLSS0001 envelope")
    material = kdf.derive(secret)
    return _Keys(material[:KEY_SIZE], material[KEY_SIZE:])
