"""From a password to the key of a vault, and the header that says how.

The law: a vault's data is encrypted with one random *data key*. The header holds that key,
encrypted with a key derived from the password. So a change of password is the replacement of
one small file, and no entry is touched. Whoever kept the data key (`export_key`), or an old
header and its password, can still read: to shut them out, move the entries to a new vault.

The header is JSON, so that it explains itself; binary values are Base64::

    format      "vault"
    version     1
    vaultId     32 hexadecimal digits, bound into every ciphertext
    kdf         name "argon2id": memoryKib, iterations, lanes
                name "pbkdf2-hmac-sha256": iterations
    salt        16 bytes
    check       16 bytes: HMAC-SHA256(key, "vault key check") cut short
    wrappedKey  12 bytes nonce, 32 bytes of AES-256-GCM ciphertext, 16 bytes tag; associated
                data: the canonical JSON of format, version, vaultId, kdf and salt
    checksum    SHA-256 of the canonical JSON of everything else, hexadecimal

``key`` is the 32 bytes that the derivation gives for the password (NFC, UTF-8) and the salt;
the wrapping key is HMAC-SHA256(key, "vault key wrapping").

The check value tells a wrong password from a damaged entry. Where the header itself is damaged,
nobody can know whether the password was right, and the error says so.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import unicodedata
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.cipher import KdfCost
from pytest_statepersist.reference.errors import (
    DamagedData,
    DamagedHeader,
    NewerVersion,
    ValidationError,
    WrongPassword,
)
from pytest_statepersist.reference.values import from_json, to_json

__all__ = ["Pbkdf2Cost", "VaultHeader", "decode_key", "encode_key"]

HEADER_VERSION = 1
KEY_SIZE = 32
_SALT_SIZE, _CHECK_SIZE, _NONCE_SIZE, _TAG_SIZE = 16, 16, 12, 16
_ARGON2ID, _PBKDF2 = "argon2id", "pbkdf2-hmac-sha256"
# A forged header must not cost more than patience: about ten seconds.
_MOST_PBKDF2_ITERATIONS = 20_000_000
_KEY_PREFIX = "vault-key-1"


@dataclass(frozen=True, slots=True)
class Pbkdf2Cost:
    """PBKDF2-HMAC-SHA256's price per guess; the default is OWASP's recommendation of 2023.

    Older vaults have 100,000 iterations; they open, and `change_password` raises the price.
    """

    iterations: int = 600_000

    def __post_init__(self) -> None:
        if not 1 <= self.iterations <= _MOST_PBKDF2_ITERATIONS:
            raise ValidationError("cost.iterations", f"{self.iterations} is out of bounds")


Cost = KdfCost | Pbkdf2Cost


@checked
@dataclass(frozen=True, slots=True)
class VaultHeader:
    """The header as a value. `create` and `unlock` do the expensive derivation."""

    vault_id: str
    cost: Cost
    salt: bytes
    check: bytes
    wrapped_key: bytes
    intact: bool = True  # whether the stored checksum fits

    @classmethod
    def create(cls, vault_id: str, data_key: bytes, password: str, cost: Cost) -> VaultHeader:
        """Return a header that gives ``data_key`` to whoever knows the password."""
        salt, nonce = os.urandom(_SALT_SIZE), os.urandom(_NONCE_SIZE)
        key = _derive(password, salt, cost)
        sealed = AESGCM(_wrapping_key(key)).encrypt(
            nonce, data_key, _associated(vault_id, cost, salt)
        )
        return cls(vault_id, cost, salt, _check_value(key), nonce + sealed)

    def unlock(self, password: str, where: str) -> bytes:
        """Return the data key.

        Raises `WrongPassword`, or `DamagedHeader`, which is a `WrongPassword` and a
        `DamagedData` at once, where the header is damaged and nobody can tell.
        """
        key = _derive(password, self.salt, self.cost)
        if not hmac.compare_digest(_check_value(key), self.check):
            if self.intact:
                raise WrongPassword(f"{where}: wrong password")
            raise _damaged_header(where, "its checksum does not fit")
        nonce, sealed = self.wrapped_key[:_NONCE_SIZE], self.wrapped_key[_NONCE_SIZE:]
        associated = _associated(self.vault_id, self.cost, self.salt)
        try:
            return AESGCM(_wrapping_key(key)).decrypt(nonce, sealed, associated)
        except InvalidTag:
            raise _damaged_header(
                where, "the password fits the check value, the wrapped key does not authenticate"
            ) from None

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        body = {
            **_bound(self.vault_id, self.cost, self.salt),
            "check": _base64(self.check),
            "wrappedKey": _base64(self.wrapped_key),
        }
        return to_json({**body, "checksum": _checksum(body)}).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> VaultHeader:
        """Return the header of a file's content. Raises `DamagedHeader`, `NewerVersion`."""
        try:
            body = from_json(data)
            if body["format"] != "vault":
                raise DamagedData("it is not the header of a vault")
            version = body["version"]
            checksum = body.pop("checksum")
            intact = bool(checksum == _checksum(body))
            if isinstance(version, int) and version > HEADER_VERSION and intact:
                raise NewerVersion(
                    f"{where}: header version {version}, this code knows {HEADER_VERSION}. "
                    "Update the application"
                )
            header = cls(
                vault_id=str(body["vaultId"]),
                cost=_cost(body["kdf"]),
                salt=_bytes(body["salt"], _SALT_SIZE),
                check=_bytes(body["check"], _CHECK_SIZE),
                wrapped_key=_bytes(body["wrappedKey"], _NONCE_SIZE + KEY_SIZE + _TAG_SIZE),
                intact=intact,
            )
        except (
            DamagedData, ValidationError, KeyError, TypeError, ValueError, AttributeError,
        ) as error:  # fmt: skip
            raise _damaged_header(where, f"it cannot be read ({error})") from error
        return header


@checked
def encode_key(vault_id: str, data_key: bytes) -> str:
    """Return a data key as text that can be printed, with a checksum against typing errors."""
    if not vault_id.isascii():
        raise ValidationError("vault_id", "is no id of a vault: those are hexadecimal")
    body = f"{_KEY_PREFIX}-{vault_id}-{data_key.hex()}"
    return f"{body}-{hashlib.sha256(body.encode()).hexdigest()[:8]}"


@checked
def decode_key(text: str) -> tuple[str, bytes]:
    """Return vault id and data key of an exported key. Raises `WrongPassword`."""
    body, _, checksum = text.strip().lower().rpartition("-")
    parts = body.removeprefix(_KEY_PREFIX + "-").split("-")
    valid = hashlib.sha256(body.encode("utf-8", "replace")).hexdigest()[:8] == checksum
    if not valid or not body.startswith(_KEY_PREFIX) or len(parts) != 2:
        raise WrongPassword("this is not an exported vault key, or it has a typing error")
    try:
        return parts[0], bytes.fromhex(parts[1])
    except ValueError:
        raise WrongPassword("this exported vault key holds something else than a key") from None


def _derive(password: str, salt: bytes, cost: Cost) -> bytes:
    if not password:
        raise ValidationError("password", "is empty")
    try:
        # One password, whichever way the keyboard composes its accents.
        secret = unicodedata.normalize("NFC", password).encode()
    except UnicodeEncodeError as error:
        raise ValidationError("password", "has a lone surrogate") from error
    if isinstance(cost, Pbkdf2Cost):
        return hashlib.pbkdf2_hmac("sha256", secret, salt, cost.iterations, KEY_SIZE)
    return Argon2id(
        salt=salt,
        length=KEY_SIZE,
        iterations=cost.iterations,
        lanes=cost.lanes,
        memory_cost=cost.memory_kib,
    ).derive(secret)


def _wrapping_key(key: bytes) -> bytes:
    return hmac.digest(key, b"vault key wrapping", "sha256")


def _check_value(key: bytes) -> bytes:
    return hmac.digest(key, b"vault key check", "sha256")[:_CHECK_SIZE]


def _bound(vault_id: str, cost: Cost, salt: bytes) -> dict[str, Any]:
    if isinstance(cost, Pbkdf2Cost):
        kdf: dict[str, Any] = {"name": _PBKDF2, "iterations": cost.iterations}
    else:
        kdf = {
            "name": _ARGON2ID,
            "memoryKib": cost.memory_kib,
            "iterations": cost.iterations,
            "lanes": cost.lanes,
        }
    return {
        "format": "vault",
        "version": HEADER_VERSION,
        "vaultId": vault_id,
        "kdf": kdf,
        "salt": _base64(salt),
    }


def _associated(vault_id: str, cost: Cost, salt: bytes) -> bytes:
    return to_json(_bound(vault_id, cost, salt)).encode()


def _cost(kdf: dict[str, Any]) -> Cost:
    numbers = {name: value for name, value in kdf.items() if name != "name"}
    if not all(type(value) is int for value in numbers.values()):
        raise ValidationError("kdf", "a parameter is not a whole number")
    if kdf["name"] == _PBKDF2:
        return Pbkdf2Cost(numbers["iterations"])
    if kdf["name"] == _ARGON2ID:
        return KdfCost(numbers["memoryKib"], numbers["iterations"], numbers["lanes"])
    raise ValidationError("kdf.name", f"{kdf['name']!r} is unknown")


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(to_json(body).encode()).hexdigest()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str, size: int) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValidationError("header", "a binary value is not Base64") from error
    if len(data) != size:
        raise ValidationError("header", f"a binary value has {len(data)} bytes, not {size}")
    return data


def _damaged_header(where: str, detail: str) -> DamagedHeader:
    return DamagedHeader(
        f"{where}: wrong password or damaged header: {detail}. Restore a backup of this file, or "
        "use `Vault.import_key` with the exported key"
    )
