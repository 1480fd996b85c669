"""JSON that loses nothing: what a text cannot hold is refused, not approximated.

The law: `dump` writes only what `load` gives back equal, in one form for equal values; `load`
takes only strict JSON (UTF-8, no key twice, no NaN). Both refuse more than `MOST_VALUES` values.

Nearly every value is fit, so `dump` looks at it once, quickly, and searches for the place and the
name of a fault only where that look, or the encoder, found one.
"""

from __future__ import annotations

import json
import math
import re
from json.encoder import encode_basestring as _quoted
from typing import Any

from pytest_statepersist.reference.cbor import MOST_VALUES
from pytest_statepersist.reference.errors import DamagedData, DecompressionBomb, ValidationError

__all__ = ["dump", "load"]

_DEEPEST = 200
_MOST_BITS = 4096  # Python refuses to print or parse integers of more than 4,300 digits
_LARGEST = 1 << _MOST_BITS
_UNCHANGED = frozenset({str, float, bool, type(None)})
_compact = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
).encode


def dump(value: object, *, indent: bool) -> bytes:
    """Return JSON in UTF-8, keys sorted: on one line, or indented by two spaces.

    Raises `ValidationError`, which names the place of what JSON cannot say.
    """
    if not _is_fit(value):
        _refuse_what_json_would_change(value, "$", 0)
    try:
        data = (_indented(value, "\n") if indent else _compact(value)).encode()
    except (TypeError, ValueError):
        _refuse_what_json_would_change(value, "$", 0)
        raise
    if _has_too_many_values(data):
        raise _too_many()
    return data


def load(data: bytes) -> Any:
    """Return the value of strict JSON. Raises `DamagedData`, `DecompressionBomb`."""
    if _has_too_many_values(data):
        raise DecompressionBomb(f"JSON of more than {MOST_VALUES} values")
    try:
        value = json.loads(
            data.decode(),  # never UTF-16 or UTF-32, which json.loads would guess
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique_keys,
        )
        if _SURROGATE.search(data):  # perhaps one of a pair, perhaps after a backslash
            _compact(value).encode()
        return value
    except RecursionError as error:
        raise DamagedData("JSON that is nested too deep to be ours") from error
    except ValueError as error:
        raise DamagedData(f"not valid JSON: {error}") from error


def _indented(value: object, margin: str) -> str:
    """Return what `json.dumps` does with ``indent=2``, whose own way is several times as slow."""
    inner = margin + "  "
    if type(value) is str:
        return _quoted(value)
    if type(value) is int:
        return repr(value)
    if isinstance(value, dict):
        start, end = "{", "}"
        parts = [
            f"{_quoted(key)}: {_indented(each, inner)}" for key, each in sorted(value.items())
        ]
    elif isinstance(value, list | tuple):
        start, end = "[", "]"
        parts = [_indented(each, inner) for each in value]
    else:
        return _compact(value)
    if not parts:
        return start + end
    return start + inner + ("," + inner).join(parts) + margin + end


def _is_fit(value: object) -> bool:
    """Tell at a glance that JSON can hold ``value``; the encoder sees to texts and floats."""
    level: list[Any] = [value]
    for _ in range(_DEEPEST + 1):
        below: list[Any] = []
        for each in level:
            kind = type(each)
            if kind is dict:
                for key in each:
                    if type(key) is not str:
                        return False
                below += each.values()
            elif kind is list or kind is tuple:
                below += each
            elif kind is int:
                if not -_LARGEST < each < _LARGEST:
                    return False
            elif kind not in _UNCHANGED:
                return False
        if not below:
            return True
        if len(below) > MOST_VALUES:
            raise _too_many()
        level = below
    return False


def _refuse_what_json_would_change(value: object, where: str, depth: int) -> None:
    """Raise for what `json.dumps` would silently turn into something else, or choke on."""
    if depth > _DEEPEST:
        raise ValidationError(where, f"nested more than {_DEEPEST} levels deep")
    if isinstance(value, str):
        _refuse_surrogates(value, where)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValidationError(where, f"{value!r} has no JSON counterpart")
    elif isinstance(value, int):
        if value.bit_length() > _MOST_BITS:
            raise ValidationError(where, "an integer of more than 4,096 bits")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_what_json_would_change(item, f"{where}[{index}]", depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValidationError(where, f"the key {key!r} is not a string")
            _refuse_surrogates(key, where)
            _refuse_what_json_would_change(item, f"{where}.{key}", depth + 1)
    elif value is not None:
        raise ValidationError(where, f"a {type(value).__name__} has no JSON counterpart")


def _refuse_surrogates(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValidationError(where, f"text with a lone surrogate ({error.reason})") from error


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def _too_many() -> ValidationError:
    return ValidationError("$", f"more than {MOST_VALUES} values, which nobody would load")


def _has_too_many_values(data: bytes) -> bool:
    """Count what begins or follows a value, without the cost of parsing it."""
    found = _marks(data)
    if found <= MOST_VALUES:
        return False
    # Text may hold any number of commas. One string after the other: a list of them all would
    # itself be the bomb.
    return found - sum(_marks(match[0]) for match in _STRING.finditer(data)) > MOST_VALUES


def _marks(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _refuse_constant(name: str) -> float:
    raise DamagedData(f"not valid JSON: {name}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise DamagedData(f"not valid JSON: {text} is no finite number")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise DamagedData("not valid JSON: an object has the same key twice")
    return result
