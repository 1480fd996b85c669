"""The JSON data model, and bytes, in CBOR (RFC 8949): the codec below the binary format.

The law: encoding is deterministic (shortest heads, definite lengths, map keys in the order of
their encoded bytes, floats as 64 bits), decoding accepts exactly what `encode` can produce,
and no input, however hostile, costs more memory than a small multiple of its own length, nor
unfolds to more than `MOST_VALUES` Python objects.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from pytest_statepersist.reference.errors import (
    DamagedData,
    DecompressionBomb,
    ValidationError,
)

__all__ = ["MAGIC", "MOST_VALUES", "decode", "encode"]

MAGIC = b"\xd9\xd9\xf7"  # tag 55799, "self-described CBOR": RFC 8949, 3.4.6
MOST_VALUES = 1 << 22
"""In one document; a few hundred megabytes as Python objects."""
_DEEPEST = 200

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _OTHER = range(8)
_SIMPLE = {False: b"\xf4", True: b"\xf5", None: b"\xf6"}
_FLOAT64 = 0xFB
_BIG_POSITIVE, _BIG_NEGATIVE = 2, 3


def encode(value: object) -> bytes:
    """Return `MAGIC` and the encoded value.

    Takes None, bool, int, finite float, str, bytes, list or tuple, and dict with str keys;
    anything else raises `ValidationError` with the path of the offender.
    """
    pieces = list(_encode(value, "$", 0))  # one for each value and key
    if len(pieces) > MOST_VALUES:
        raise ValidationError("$", f"more than {MOST_VALUES} values, which nobody would load")
    return MAGIC + b"".join(pieces)


def _encode(value: object, where: str, depth: int) -> Iterator[bytes]:
    if depth > _DEEPEST:
        raise ValidationError(where, f"nested more than {_DEEPEST} levels deep")
    if value is None or isinstance(value, bool):
        yield _SIMPLE[value]
    elif isinstance(value, int):
        yield _encode_int(value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValidationError(where, f"{value!r} has no JSON counterpart")
        yield struct.pack(">Bd", _FLOAT64, value)
    elif isinstance(value, str):
        yield _encode_text(value, where)
    elif isinstance(value, bytes | bytearray):
        yield _head(_BYTES, len(value)) + bytes(value)
    elif isinstance(value, list | tuple):
        yield _head(_ARRAY, len(value))
        for index, item in enumerate(value):
            yield from _encode(item, f"{where}[{index}]", depth + 1)
    elif isinstance(value, dict):
        yield _head(_MAP, len(value))
        yield from _encode_pairs(value, where, depth)
    else:
        raise ValidationError(where, f"a {type(value).__name__} cannot be stored")


def _encode_pairs(value: dict[object, object], where: str, depth: int) -> Iterator[bytes]:
    pairs: list[tuple[bytes, str]] = []
    for key in value:
        if not isinstance(key, str):
            raise ValidationError(where, f"the key {key!r} is not a string")
        pairs.append((_encode_text(key, where), key))
    for encoded, key in sorted(pairs):
        yield encoded
        yield from _encode(value[key], f"{where}.{key}", depth + 1)


def _encode_text(value: str, where: str) -> bytes:
    try:
        raw = value.encode()
    except UnicodeEncodeError as error:
        raise ValidationError(where, f"text with a lone surrogate ({error.reason})") from error
    return _head(_TEXT, len(raw)) + raw


def _encode_int(value: int) -> bytes:
    major, number = (_UNSIGNED, value) if value >= 0 else (_NEGATIVE, -1 - value)
    if number < 1 << 64:
        return _head(major, number)
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    tag = _BIG_POSITIVE if major == _UNSIGNED else _BIG_NEGATIVE
    return _head(_TAG, tag) + _head(_BYTES, len(raw)) + raw


def _head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes([major << 5 | number])
    for code, (size, form) in enumerate(((8, "B"), (16, "H"), (32, "I"), (64, "Q")), start=24):
        if number < 1 << size:
            return struct.pack(f">B{form}", major << 5 | code, number)
    raise ValidationError("$", "longer than CBOR can say")


def decode(data: bytes) -> object:
    """Return the value in ``data``; raise `DamagedData` if `encode` cannot have written it."""
    if not data.startswith(MAGIC):
        raise DamagedData("not in the binary format: it does not begin with CBOR's own mark")
    reader = _Reader(data, len(MAGIC))
    value = reader.value(0)
    if reader.position != len(data):
        raise DamagedData(f"{len(data) - reader.position} bytes follow the end of the value")
    return value


class _Reader:
    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self.position = position
        self.values = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise DamagedData(f"cut short: byte {end} was expected of {len(self.data)}")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def head(self) -> tuple[int, int, int]:
        """Return major type, the five low bits, and the number that they announce."""
        first = self.take(1)[0]
        major, low = first >> 5, first & 31
        if low < 24:
            return major, low, low
        if low > 27:
            raise DamagedData(f"byte {self.position - 1}: indefinite or reserved length")
        number = int.from_bytes(self.take(1 << (low - 24)), "big")
        if major != _OTHER and _head(major, number)[0] & 31 != low:
            raise DamagedData(f"byte {self.position}: a length is not in its shortest form")
        return major, low, number

    def value(self, depth: int) -> object:
        if depth > _DEEPEST:
            raise DamagedData(f"nested more than {_DEEPEST} levels deep")
        self.count()
        major, low, number = self.head()
        if major == _UNSIGNED:
            return number
        if major == _NEGATIVE:
            return -1 - number
        if major == _BYTES:
            return self.take(number)
        if major == _TEXT:
            return self.text(number)
        if major == _ARRAY:
            self.expect_room(number)
            return [self.value(depth + 1) for _ in range(number)]
        if major == _MAP:
            return self.mapping(number, depth)
        if major == _TAG:
            return self.big_integer(number)
        return self.simple(low, number)

    def count(self) -> None:
        self.values += 1
        if self.values > MOST_VALUES:
            raise DecompressionBomb(f"CBOR of more than {MOST_VALUES} values")

    def expect_room(self, count: int) -> None:
        if count > len(self.data) - self.position:  # each item takes a byte at least
            raise DamagedData(f"cut short: {count} items are announced, fewer bytes follow")

    def text(self, length: int) -> str:
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise DamagedData(f"byte {self.position}: text is not UTF-8") from error

    def mapping(self, count: int, depth: int) -> dict[str, object]:
        self.expect_room(count)
        result: dict[str, object] = {}
        last = b""
        for _ in range(count):
            start = self.position
            major, _, number = self.head()
            if major != _TEXT:
                raise DamagedData(f"byte {start}: a key is not text")
            key = self.text(number)
            self.count()
            encoded = self.data[start : self.position]
            if encoded <= last:
                raise DamagedData(f"byte {start}: keys are repeated or out of order")
            last = encoded
            result[key] = self.value(depth + 1)
        return result

    def big_integer(self, tag: int) -> int:
        major, _, length = self.head()
        if tag not in (_BIG_POSITIVE, _BIG_NEGATIVE) or major != _BYTES:
            raise DamagedData(f"byte {self.position}: unknown tag {tag}")
        raw = self.take(length)
        if length <= 8 or raw[0] == 0:
            raise DamagedData(f"byte {self.position}: a big integer is not in its shortest form")
        number = int.from_bytes(raw, "big")
        return number if tag == _BIG_POSITIVE else -1 - number

    def simple(self, low: int, number: int) -> object:
        if low == 27:
            value: float = struct.unpack(">d", number.to_bytes(8, "big"))[0]
            if math.isfinite(value):
                return value
        elif low in (20, 21, 22):
            return (False, True, None)[low - 20]
        raise DamagedData(f"byte {self.position}: a value that JSON does not have")
