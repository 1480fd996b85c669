"""Values to bytes and back, in formats that can be told apart by their content.

The law: a `Serializer` is deterministic (equal values, equal bytes), strict (what JSON cannot
say is refused, not approximated) and bounded (unpacking stops at a limit). `load_any` reads
every format whatever the current setting is, so the setting may change at any time.

What can be stored is the JSON data model: None, bool, int, finite float, str, list, and dict
with str keys. The binary format takes bytes too. Anything else raises `ValidationError`, and so
do more than `MOST_VALUES` values in one document: small brackets, packed well, would unfold to
gigabytes of Python objects, whatever the limit in bytes is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from pytest_statepersist.reference import cbor, strict_json
from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.cbor import MOST_VALUES
from pytest_statepersist.reference.errors import DamagedData
from pytest_statepersist.reference.packing import Packing, pack, packing_of, unpack

__all__ = [
    "DEFAULT_LIMIT",
    "MOST_VALUES",
    "AdaptiveSerializer",
    "BinarySerializer",
    "CompactJsonSerializer",
    "Format",
    "GzipJsonSerializer",
    "JsonSerializer",
    "Serializer",
    "ZstdJsonSerializer",
    "detect_format",
    "load_any",
    "serializer_for",
    "sniff",
]

DEFAULT_LIMIT = 256 << 20  # bytes after unpacking


class Format(Enum):
    """The formats that `detect_format` knows."""

    JSON = "json"
    COMPACT_JSON = "compact-json"
    GZIP_JSON = "gzip-json"
    ZSTD_JSON = "zstd-json"
    BINARY = "binary"


class Serializer(Protocol):
    """What a store needs to know about a format; write your own with these three names.

    ``format`` of your own is a string. ``loads`` must raise `DamagedData` for bytes that
    ``dumps`` cannot have written: that is how a store finds the right one.
    """

    @property
    def format(self) -> Format | str:
        """The format that ``dumps`` writes."""

    def dumps(self, value: object) -> bytes:
        """Return the bytes of a value. Raises `ValidationError`."""

    def loads(self, data: bytes) -> Any:
        """Return the value of the bytes. Raises `DamagedData`."""


@checked
@dataclass(frozen=True, slots=True)
class JsonSerializer:
    """JSON for people: sorted keys, two spaces, one final newline, so that it diffs well."""

    format: Format = field(default=Format.JSON, init=False)

    def dumps(self, value: object) -> bytes:
        """Return indented JSON in UTF-8. Raises `ValidationError`."""
        return strict_json.dump(value, indent=True) + b"\n"

    def loads(self, data: bytes) -> Any:
        """Return the value of strict JSON. Raises `DamagedData`."""
        return strict_json.load(data)


@checked
@dataclass(frozen=True, slots=True)
class CompactJsonSerializer:
    """JSON without a byte to spare: sorted keys, no white space."""

    format: Format = field(default=Format.COMPACT_JSON, init=False)

    def dumps(self, value: object) -> bytes:
        """Return JSON in UTF-8 on one line. Raises `ValidationError`."""
        return strict_json.dump(value, indent=False)

    def loads(self, data: bytes) -> Any:
        """Return the value of strict JSON. Raises `DamagedData`."""
        return strict_json.load(data)


@checked
@dataclass(frozen=True, slots=True)
class GzipJsonSerializer:
    """Compact JSON in gzip, readable with any tool; no time stamp, so equal values stay equal.

    ``limit`` is the most bytes that ``loads`` unpacks.
    """

    level: int = 6
    limit: int = DEFAULT_LIMIT
    format: Format = field(default=Format.GZIP_JSON, init=False)

    def dumps(self, value: object) -> bytes:
        """Return gzip bytes. Raises `ValidationError`."""
        return pack(CompactJsonSerializer().dumps(value), Packing.GZIP, level=self.level)

    def loads(self, data: bytes) -> Any:
        """Return the value. Raises `DamagedData`, `DecompressionBomb`."""
        return strict_json.load(_unpack(data, Packing.GZIP, self.limit))


@checked
@dataclass(frozen=True, slots=True)
class ZstdJsonSerializer:
    """Compact JSON in a Zstandard frame with its checksum on: smaller and faster than gzip.

    ``limit`` is the most bytes that ``loads`` unpacks.
    """

    level: int = 3
    limit: int = DEFAULT_LIMIT
    format: Format = field(default=Format.ZSTD_JSON, init=False)

    def dumps(self, value: object) -> bytes:
        """Return one zstd frame. Raises `ValidationError`."""
        return pack(CompactJsonSerializer().dumps(value), Packing.ZSTD, level=self.level)

    def loads(self, data: bytes) -> Any:
        """Return the value. Raises `DamagedData`, `DecompressionBomb`."""
        return strict_json.load(_unpack(data, Packing.ZSTD, self.limit))


@checked
@dataclass(frozen=True, slots=True)
class BinarySerializer:
    """CBOR: the fastest to parse safely where values hold bytes, and open to other languages."""

    format: Format = field(default=Format.BINARY, init=False)

    def dumps(self, value: object) -> bytes:
        """Return deterministic CBOR. Raises `ValidationError`."""
        return cbor.encode(value)

    def loads(self, data: bytes) -> Any:
        """Return the value. Raises `DamagedData`."""
        return cbor.decode(data)


@checked
@dataclass(frozen=True, slots=True)
class AdaptiveSerializer:
    """Small values as JSON that people can read, large ones compressed: the stores' default.

    ``threshold`` is in bytes of the small form; from there on ``large`` is used.
    """

    threshold: int = 64 << 10
    small: Serializer = field(default_factory=JsonSerializer)
    large: Serializer = field(default_factory=ZstdJsonSerializer)

    @property
    def format(self) -> Format | str:
        """The format of small values."""
        return self.small.format

    def dumps(self, value: object) -> bytes:
        """Return the small or the large form. Raises `ValidationError`."""
        data = self.small.dumps(value)
        return data if len(data) < self.threshold else self.large.dumps(value)

    def loads(self, data: bytes) -> Any:
        """Return the value, in whichever form it is. Raises `DamagedData`."""
        return load_any(data)[0]


@checked
def serializer_for(form: Format, *, limit: int = DEFAULT_LIMIT) -> Serializer:
    """Return the built-in serializer that writes ``form``."""
    if form is Format.GZIP_JSON:
        return GzipJsonSerializer(limit=limit)
    if form is Format.ZSTD_JSON:
        return ZstdJsonSerializer(limit=limit)
    if form is Format.BINARY:
        return BinarySerializer()
    return JsonSerializer() if form is Format.JSON else CompactJsonSerializer()


@checked
def detect_format(data: bytes, *, limit: int = DEFAULT_LIMIT) -> Format:
    """Tell the format of ``data`` by its content: its first bytes, then a complete parse.

    JSON with a line break is `Format.JSON`, without one `Format.COMPACT_JSON`. Raises
    `DamagedData` for what is none of them, `DecompressionBomb` beyond ``limit`` bytes.
    """
    return load_any(data, limit=limit)[1]


@checked
def load_any(data: bytes, *, limit: int = DEFAULT_LIMIT) -> tuple[Any, Format]:
    """Return the value of ``data`` and the format it was in. Raises as `detect_format`."""
    form = sniff(data)
    return serializer_for(form, limit=limit).loads(data), form


@checked
def sniff(data: bytes) -> Format:
    """Name the only format that ``data`` could be in, by its first bytes: no parse, no promise."""
    packing = packing_of(data)
    if packing is not Packing.NONE:
        return Format.GZIP_JSON if packing is Packing.GZIP else Format.ZSTD_JSON
    if data.startswith(cbor.MAGIC):
        return Format.BINARY
    return Format.JSON if b"\n" in data else Format.COMPACT_JSON


def _unpack(data: bytes, packing: Packing, limit: int) -> bytes:
    if packing_of(data) is not packing:
        raise DamagedData(f"is not packed with {packing.name.lower()}")
    return unpack(data, limit=limit)
