"""One item to the bytes of its file and back, with everything that makes them trustworthy.

The law: `decode` returns only what `encode` (or an older version of it) once made for this
very place. Each file holds::

    {"kind": …, "version": schema version, "sha256": of the data, "data": the item}

serialized by any serializer, and encrypted if the store has a cipher. The checksum covers the
kind, the version and the data in one canonical form, so it holds across formats.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, TypeVar

import pydantic

from pytest_statepersist.reference.atomic import check_size
from pytest_statepersist.reference.cipher import Cipher
from pytest_statepersist.reference.errors import (
    BackupError,
    DamagedData,
    DecompressionBomb,
    IntegrityError,
    PersistenceError,
    ValidationError,
    WrongPassword,
)
from pytest_statepersist.reference.ids import check_id
from pytest_statepersist.reference.items import ITEM_TYPES, Item
from pytest_statepersist.reference.packing import unpack
from pytest_statepersist.reference.serializers import (
    DEFAULT_LIMIT,
    CompactJsonSerializer,
    Format,
    Serializer,
    load_any,
    sniff,
)
from pytest_statepersist.reference.store_schema import Schema

__all__ = ["Decoded", "Encoded", "ItemCodec", "NotEncrypted", "item_of", "place_of"]

T = TypeVar("T", bound=Item)


class NotEncrypted(PersistenceError):
    """A plain file lies in an encrypted store; it was not read, nor touched."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The bytes for a file, and what they are; ``digest`` is of the plaintext."""

    data: bytes
    format: Format | str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Decoded:
    """An item as it was read; ``version`` is the schema version of the file."""

    item: Item
    format: Format | str
    version: int
    digest: bytes


def place_of(model: type[Item], item_id: str) -> str:
    """Return an item's path below the store's root."""
    return f"{model.directory}/{item_id}.json"


def item_of(place: str) -> tuple[type[Item], str]:
    """Return the type and the id of the item at a place. Raises `BackupError` for no such place."""
    directory, _, name = place.partition("/")
    for model in ITEM_TYPES:
        if model.directory == directory and name.endswith(".json"):
            return model, check_id(name.removesuffix(".json"))
    raise BackupError(f"the backup holds {place!r}, which is no item of this store")


@dataclass(frozen=True, slots=True)
class ItemCodec:
    """How one store writes; it reads every format.

    ``readers`` are serializers of foreign formats that may be met too; ``limit`` bounds the
    unpacked bytes of an item.
    """

    serializer: Serializer
    schema: Schema
    cipher: Cipher | None = None
    limit: int = DEFAULT_LIMIT
    readers: tuple[Serializer, ...] = ()

    def plaintext(self, item: Item) -> bytes:
        """Return the serialized envelope. Raises `ValidationError`."""
        # Checked again: `model_copy(update=...)` and attribute tricks bypass pydantic.
        data = _validated(type(item), item).model_dump(mode="json")
        kind, version = item.directory, self.schema.version
        envelope = {
            "kind": kind,
            "version": version,
            "sha256": _checksum(kind, version, data),
            "data": data,
        }
        return self.serializer.dumps(envelope)

    def encode(self, item: Item) -> Encoded:
        """Return what an item's file is to hold. Raises `ValidationError`."""
        plain = self.plaintext(item)
        digest = hashlib.sha256(plain).digest()
        data = plain
        if self.cipher is not None:
            data = self.cipher.encrypt(plain, place_of(type(item), item.id))
        self._check_size(plain, data)
        own = self.serializer.format
        return Encoded(data, sniff(plain) if isinstance(own, Format) else own, digest)

    def _check_size(self, plain: bytes, data: bytes) -> None:
        """Refuse what `decode` would refuse: nothing may be saved that cannot be loaded."""
        check_size(data, self.limit, "item")
        try:
            unpack(plain, limit=self.limit)
        except DecompressionBomb as error:
            raise ValidationError("item", str(error)) from error
        except DamagedData:
            pass  # of a foreign format that begins like a packed one

    def decode(self, model: type[Item], item_id: str, raw: bytes) -> Decoded:
        """Return the item in the bytes of its file, upgraded to the current schema.

        Raises `DamagedData` and its kinds, `ValidationError` (the data breaks the schema),
        `NewerVersion`, `WrongPassword` (also when there is no cipher), `NotEncrypted`.
        """
        place = place_of(model, item_id)
        plain = self._decrypt(raw, place)
        try:
            envelope, form = self._parse(plain)
            version, data = _open_envelope(envelope, model.directory)
            upgraded = self.schema.upgrade(model.directory, version, data)
            item = _validated(model, upgraded)
        except ValidationError as error:
            raise ValidationError(f"{place}: {error.field}", error.problem) from error
        except PersistenceError as error:
            raise type(error)(f"{place}: {error}") from error
        if item.id != item_id:
            raise IntegrityError(f"{place}: holds the item {item.id!r}; the file was renamed")
        return Decoded(item, form, version, hashlib.sha256(plain).digest())

    def _parse(self, plain: bytes) -> tuple[Any, Format | str]:
        for reader in (self.serializer, *self.readers):
            if not isinstance(reader.format, Format):
                try:
                    return reader.loads(plain), reader.format
                except DamagedData:
                    pass  # in one of the other formats, then
        return load_any(plain, limit=self.limit)

    def _is_plain(self, raw: bytes) -> bool:
        try:
            return isinstance(self._parse(raw)[0], dict)
        except DamagedData:
            return False

    def _decrypt(self, raw: bytes, place: str) -> bytes:
        if self.cipher is not None:
            if not Cipher.is_encrypted(raw) and self._is_plain(raw):
                raise NotEncrypted(
                    f"{place}: is not encrypted, though the store has a key; open the store "
                    "without the key and call rekey(cipher), or remove a planted file"
                )
            return self.cipher.decrypt(raw, place)
        if Cipher.is_encrypted(raw):
            raise WrongPassword(f"{place}: is encrypted; open the store with its key")
        return raw


def _open_envelope(envelope: object, kind: str) -> tuple[int, dict[str, Any]]:
    match envelope:
        case {"kind": str(found), "version": int(version), "sha256": str(sha), "data": dict(data)}:
            pass
        case _:
            raise DamagedData("is no item: kind, version, sha256 or data is missing")
    if _checksum(found, version, data) != sha:
        raise IntegrityError("the checksum is wrong: the file was changed after it was written")
    if found != kind:
        raise IntegrityError(f"holds an item of {found!r}; the file was moved here")
    return version, data


def _checksum(kind: str, version: int, data: dict[str, Any]) -> str:
    return hashlib.sha256(CompactJsonSerializer().dumps([kind, version, data])).hexdigest()


def _validated(model: type[T], data: object) -> T:
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or model.__name__
        raise ValidationError(field, first["msg"]) from error
