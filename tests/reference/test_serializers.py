"""Serializers: exact round trips, recognised by content, bounded, strict."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.reference import cbor, strict_json
from pytest_statepersist.reference.errors import (
    DamagedData,
    DecompressionBomb,
    ValidationError,
)
from pytest_statepersist.reference.packing import Packing, pack
from pytest_statepersist.reference.serializers import (
    AdaptiveSerializer,
    BinarySerializer,
    CompactJsonSerializer,
    Format,
    GzipJsonSerializer,
    JsonSerializer,
    Serializer,
    ZstdJsonSerializer,
    detect_format,
    load_any,
    serializer_for,
)

ALL: list[Serializer] = [
    JsonSerializer(),
    CompactJsonSerializer(),
    GzipJsonSerializer(),
    ZstdJsonSerializer(),
    BinarySerializer(),
    AdaptiveSerializer(threshold=40),
]
each = pytest.mark.parametrize("serializer", ALL, ids=lambda s: type(s).__name__)

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=15,
)


def same(left: object, right: object) -> bool:
    """Equal, and of equal types all the way down (1 is not True, 1 is not 1.0)."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@each
@given(value=values)
@settings(max_examples=60)
def test_round_trips_exactly_and_is_found_by_content(serializer: Serializer, value: Any) -> None:
    data = serializer.dumps(value)
    assert same(serializer.loads(data), value)
    loaded, form = load_any(data)
    assert same(loaded, value)
    if not isinstance(serializer, AdaptiveSerializer):
        assert form is serializer.format
    assert detect_format(data) is form
    assert serializer.dumps(loaded) == data  # byte-stable


@given(value=values.filter(lambda v: isinstance(v, dict)))
def test_the_order_of_keys_makes_no_difference(value: dict[str, Any]) -> None:
    turned = dict(reversed(list(value.items())))
    for serializer in ALL:
        assert serializer.dumps(turned) == serializer.dumps(value)


@given(value=values)
@settings(max_examples=40)
def test_indented_json_is_what_python_calls_so(value: Any) -> None:
    expected = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    assert JsonSerializer().dumps(value) == expected.encode() + b"\n"


def test_what_holds_itself_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "MOST_VALUES", 1 << 12)
    round_and_round: list[object] = []
    round_and_round += [round_and_round, round_and_round]
    shared: object = 0
    for _ in range(40):  # forty small lists, that would be written as 2**40
        shared = [shared, shared]
    for value in (round_and_round, shared):
        with pytest.raises(ValidationError, match=r"values|levels"):
            JsonSerializer().dumps(value)


@pytest.mark.parametrize("form", list(Format))
def test_each_format_has_a_serializer(form: Format) -> None:
    assert serializer_for(form).format is form


def test_large_values_are_compressed_by_default() -> None:
    serializer = AdaptiveSerializer()
    small, large = {"a": "x" * 100}, {"a": "x" * 100_000}
    assert detect_format(serializer.dumps(small)) is Format.JSON
    assert detect_format(serializer.dumps(large)) is Format.ZSTD_JSON
    assert len(serializer.dumps(large)) < 1000
    assert serializer.loads(serializer.dumps(large)) == large


def test_the_formats_are_those_of_other_tools() -> None:
    value = {"name": "é", "n": [1, 2.5, None]}
    assert json.loads(JsonSerializer().dumps(value)) == value
    assert json.loads(gzip.decompress(GzipJsonSerializer().dumps(value))) == value
    # RFC 8949, appendix A, behind the self-described tag.
    examples = {
        "00": 0, "17": 23, "1818": 24, "1903e8": 1000, "1b000000e8d4a51000": 10**12,
        "1bffffffffffffffff": 2**64 - 1, "c249010000000000000000": 2**64,
        "20": -1, "3903e7": -1000, "c349010000000000000000": -(2**64) - 1,
        "fb3ff199999999999a": 1.1, "f4": False, "f5": True, "f6": None,
        "4401020304": b"\1\2\3\4", "62c3bc": "ü", "83010203": [1, 2, 3],
        "a26161016162820203": {"a": 1, "b": [2, 3]},
    }  # fmt: skip
    for code, expected in examples.items():
        assert cbor.encode(expected) == cbor.MAGIC + bytes.fromhex(code)
        assert same(cbor.decode(cbor.MAGIC + bytes.fromhex(code)), expected)


def test_the_binary_format_takes_bytes() -> None:
    value = {"blob": bytes(range(256))}
    assert BinarySerializer().loads(BinarySerializer().dumps(value)) == value
    with pytest.raises(ValidationError, match=r"\$\.blob"):
        JsonSerializer().dumps(value)


@each
@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": {"b": float("nan")}}, "$.a.b"),
        ({"a": [0, float("inf")]}, "$.a[1]"),
        ({"a": {1: "x"}}, "$.a"),
        ({"a": object()}, "$.a"),
        ({"a": {1, 2}}, "$.a"),
        ({"a": "\ud800"}, "$.a"),
        ({"\ud800": 1}, "$"),
    ],
    ids=["nan", "inf", "int-key", "object", "set", "surrogate", "surrogate-key"],
)
def test_what_json_cannot_say_is_refused_with_its_path(
    serializer: Serializer, value: object, where: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        serializer.dumps(value)
    assert caught.value.field == where


@each
def test_too_deep_nesting_is_refused(serializer: Serializer) -> None:
    value: Any = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(ValidationError, match="deep"):
        serializer.dumps(value)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[1,]", b"nul", b'{"a":1,"a":2}', b"NaN", b"[1e999]", b"\xff\xfe[\x00]\x00",
        b"[" * 200_000, b"1" * 5000, b"\x1f\x8b", b"\x1f\x8b\x08\x00garbage", b"\x28\xb5\x2f\xfd",
        b"\x28\xb5\x2f\xfdgarbage", cbor.MAGIC, cbor.MAGIC + b"\xff", cbor.MAGIC + b"\x5f",
        cbor.MAGIC + b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", cbor.MAGIC + b"\x81" * 100_000,
        cbor.MAGIC + b"\x18\x01", cbor.MAGIC + b"\x00\x00", cbor.MAGIC + b"\xa2\x61b\x00\x61a\x00",
        cbor.MAGIC + b"\xa1\x00\x00", cbor.MAGIC + b"\xc2\x41\x01", cbor.MAGIC + b"\xf9\x3c\x00",
        cbor.MAGIC + b"\xc0\x00", cbor.MAGIC + b"\x61\xff", cbor.MAGIC + b"\xfb\x7f\xf0" + bytes(6),
        rb'"\ud800"', rb'{"\uDFFF": 1}', rb'["\udc00\ud800"]',
    ],
    ids=range(31),
)  # fmt: skip
def test_foreign_bytes_are_damaged_data(data: bytes) -> None:
    with pytest.raises(DamagedData):
        detect_format(data)


@each
@given(seed=st.integers(0, 2**32))
@settings(max_examples=40)
def test_damage_is_noticed_or_gives_a_value_but_never_another_error(
    serializer: Serializer, seed: int
) -> None:
    source = random.Random(seed)
    data = bytearray(serializer.dumps({"key": ["value", 1.5, {"n": None}] * 5}))
    for _ in range(source.randint(1, 3)):
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    if source.random() < 0.3:
        del data[source.randrange(len(data)) :]
    with contextlib.suppress(DamagedData):
        load_any(bytes(data))


@pytest.mark.parametrize("make", [GzipJsonSerializer, ZstdJsonSerializer])
def test_a_bomb_is_refused_without_being_unpacked(make: Any) -> None:
    bomb = make().dumps("0" * (64 << 20))
    assert len(bomb) < 100_000
    with pytest.raises(DecompressionBomb, match="1000000 bytes"):
        make(limit=1_000_000).loads(bomb)
    with pytest.raises(DecompressionBomb):
        load_any(bomb, limit=1_000_000)


def test_a_bomb_of_many_small_values_is_refused_before_it_is_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bytes that unfold to a thousand times as many brackets, and those to as many objects."""
    monkeypatch.setattr(strict_json, "MOST_VALUES", count := 1 << 17)
    brackets = b"[" + b"[]," * count + b"[]]"
    bomb = pack(brackets, Packing.ZSTD)
    assert len(bomb) < len(brackets) / 1000
    for data in (brackets, bomb, b"{" + b'"a":1,' * count + b'"a":1}'):
        tracemalloc.start()
        try:
            with pytest.raises(DecompressionBomb, match="values"):
                load_any(data)
            # The packed one is unpacked, in chunks of a megabyte; a parse takes far more.
            assert tracemalloc.get_traced_memory()[1] < 3_000_000 < 50 * count
        finally:
            tracemalloc.stop()


def test_text_is_no_bomb_whatever_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (strict_json, cbor):
        monkeypatch.setattr(module, "MOST_VALUES", most := 1 << 17)
    text = '[{,"\\' * (most // 2)  # six times too many, if they were none
    for serializer in (CompactJsonSerializer(), ZstdJsonSerializer(), BinarySerializer()):
        assert serializer.loads(serializer.dumps([text, 1])) == [text, 1]


@pytest.mark.parametrize("make", [CompactJsonSerializer, BinarySerializer])
def test_what_would_be_refused_is_not_written(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound made small: else this takes seconds."""
    for module in (strict_json, cbor):
        monkeypatch.setattr(module, "MOST_VALUES", 1000)
    most = next(n for n in range(1000, 0, -1) if _fits(make(), [0] * n))
    assert most > 990
    assert make().loads(make().dumps([0] * most)) == [0] * most
    with pytest.raises(ValidationError, match="values"):
        make().dumps([0] * 1001)


def _fits(serializer: Any, value: object) -> bool:
    try:
        serializer.dumps(value)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("make", [GzipJsonSerializer, ZstdJsonSerializer])
def test_the_limit_is_exact(make: Any) -> None:
    data = make().dumps("0" * 98)  # 100 bytes with the quotation marks
    assert make(limit=100).loads(data) == "0" * 98
    with pytest.raises(DecompressionBomb):
        make(limit=99).loads(data)


@pytest.mark.parametrize("make", [GzipJsonSerializer, ZstdJsonSerializer])
def test_bytes_after_the_end_and_cut_ends_are_damage(make: Any) -> None:
    data = make().dumps({"a": "b" * 1000})
    for broken in (data + b"x", data + data, data[:-1], data[:5]):
        with pytest.raises(DamagedData):
            make().loads(broken)


def test_a_zstd_frame_that_asks_for_a_giant_window_is_refused() -> None:
    # Frame header without single-segment flag; window descriptor 0xA8: 2**31 bytes.
    frame = b"\x28\xb5\x2f\xfd" + struct.pack("<BB", 0, 0xA8) + b"\x01\x00\x00"
    with pytest.raises(DamagedData):
        load_any(frame)
