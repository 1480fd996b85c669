"""The forms in which a secret can lie in a file, and the streams in which it can be hidden.

Belongs here: from a canary to the byte strings to look for, and from bytes to the decompressed and
decoded contents found in them. Rules:

1. A needle is only what is certain: of Base64 the characters that do not depend on neighbours.
2. Nothing is unpacked without a bound; where the bound is reached, `Unpacked.cut` says so.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import quote_from_bytes

__all__ = ["Needle", "Unpacked", "needles", "unpack"]


@dataclass(frozen=True, slots=True)
class Needle:
    """One form of one canary: the bytes to look for, and how that form is called."""

    canary: str
    form: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What a stream at ``offset`` holds; ``cut`` where only its beginning was unpacked."""

    how: str
    offset: int
    data: bytes
    cut: bool = False


def needles(label: str, canary: bytes) -> Iterator[Needle]:
    """Yield every form of a canary that can be told from chance."""
    seen: set[bytes] = set()
    for form, data in _forms(canary):
        if data not in seen and len(data) >= 6:
            seen.add(data)
            yield Needle(label, form, data)


def _forms(canary: bytes) -> Iterator[tuple[str, bytes]]:
    texts = [("plain", canary)]
    try:
        text = canary.decode()
    except UnicodeDecodeError:
        pass
    else:
        texts.append(("UTF-16 LE", text.encode("utf-16-le")))
        texts.append(("UTF-16 BE", text.encode("utf-16-be")))
    for name, data in texts:
        of = "" if name == "plain" else f" of {name}"
        yield name, data
        yield f"hex{of}", data.hex().encode()
        yield f"hex, upper case{of}", data.hex().upper().encode()
        for shift in range(3):
            core = _base64_core(data, shift)
            yield f"Base64{of}, alignment {shift}", core
            yield (
                f"URL-safe Base64{of}, alignment {shift}",
                core.translate(bytes.maketrans(b"+/", b"-_")),
            )
    if len(texts) > 1:
        yield "JSON-escaped", json.dumps(canary.decode())[1:-1].encode()
    yield "percent-encoded", quote_from_bytes(canary).encode()


def _base64_core(data: bytes, shift: int) -> bytes:
    """Return the Base64 characters that are the same whatever stands before and after."""
    coded = base64.b64encode(bytes(shift) + data).rstrip(b"=")
    head = (0, 2, 3)[shift]
    # A last group that is not full shares its last character with the next byte.
    tail = 1 if (shift + len(data)) % 3 else 0
    return coded[head : len(coded) - tail]


# --- what is packed inside ------------------------------------------------------------------------

_ZLIB = re.compile(rb"[\x08\x18\x28\x38\x48\x58\x68\x78]")
_MAGICS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x5d\x00\x00", "lzma"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"),
)
_RUNS = (
    (re.compile(rb"[A-Za-z0-9+/_-]{32,}={0,2}"), "Base64"),
    (re.compile(rb"(?:[0-9a-fA-F]{2}){24,}"), "hex"),
)


def unpack(data: bytes, *, limit: int, missing: set[str]) -> Iterator[Unpacked]:
    """Yield what is compressed or coded inside ``data``, each at most ``limit`` bytes long.

    Formats that this interpreter cannot read are added to ``missing``.
    """
    for magic, how in _MAGICS:
        at = data.find(magic)
        while at >= 0:
            found = _decompress(how, data, at, limit, missing)
            if found is not None:
                yield Unpacked(how, at, *found)
            at = data.find(magic, at + 1)
    for match in _ZLIB.finditer(data):
        at = match.start()
        # The two header bytes of a zlib stream are a multiple of 31: cheap to test first.
        if at + 2 < len(data) and (data[at] * 256 + data[at + 1]) % 31 == 0:
            found = _decompress("zlib", data, at, limit, missing)
            if found is not None:
                yield Unpacked("zlib", at, *found)
    for pattern, how in _RUNS:
        for match in pattern.finditer(data):
            decoded = _decode(how, match.group()[:limit])
            if decoded:
                yield Unpacked(how, match.start(), decoded, len(match.group()) > limit)


def _decode(how: str, text: bytes) -> bytes:
    try:
        if how == "hex":
            return bytes.fromhex(text.decode())
        body = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        body = body[: len(body) - (len(body) % 4 == 1)]
        return base64.b64decode(body + b"=" * (-len(body) % 4))
    except (ValueError, binascii.Error):
        return b""


def _decompress(
    how: str, data: bytes, at: int, limit: int, missing: set[str]
) -> tuple[bytes, bool] | None:
    """Return what a stream at ``at`` gives and whether it was cut; None where there is none."""
    start = at
    if how == "zip":
        start = _zip_body(data, at)
        if start < 0:
            return None
    if how == "zstd" and _zstd() is None:
        missing.add("zstd (install backports.zstd)")
        return None
    out, cut = _drain(_OPENERS[how](), data, start, limit)
    return (out, cut) if out else None


def _drain(stream: Any, data: bytes, start: int, limit: int) -> tuple[bytes, bool]:
    """Return what a decompressor gives, at most ``limit`` bytes, and whether there was more."""
    out = bytearray()
    # In pieces: what a torn or damaged stream gave before it broke off is plaintext all the same.
    for at in range(start, len(data), 1024):
        pending = data[at : at + 1024]
        try:
            while len(out) < limit and not stream.eof:
                out += stream.decompress(pending, limit - len(out))
                # zlib hands back what it did not take, the others keep it.
                pending = getattr(stream, "unconsumed_tail", b"")
                if not pending and getattr(stream, "needs_input", True):
                    break
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, _zstd_error()):
            break
        if stream.eof or len(out) >= limit:
            break
    return bytes(out), len(out) >= limit and not stream.eof


def _zip_body(data: bytes, at: int) -> int:
    """Return where the deflated content of a zip member begins, -1 where it is not deflated."""
    if len(data) < at + 30 or int.from_bytes(data[at + 8 : at + 10], "little") != 8:
        return -1
    name = int.from_bytes(data[at + 26 : at + 28], "little")
    extra = int.from_bytes(data[at + 28 : at + 30], "little")
    return at + 30 + name + extra


def _zstd() -> Any:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


def _zstd_error() -> type[Exception]:
    module = _zstd()
    return module.ZstdError if module is not None else OSError


_OPENERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "zlib": lambda: zlib.decompressobj(15),
    "zip": lambda: zlib.decompressobj(-15),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=1 << 28),
    "lzma": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=1 << 28),
    "zstd": lambda: _zstd().ZstdDecompressor(),
}
