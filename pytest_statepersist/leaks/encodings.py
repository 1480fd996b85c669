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
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
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
        for width in ("UTF-16", "UTF-32"):  # the latter is what arrays of NumPy hold
            texts.append((f"{width} LE", text.encode(f"{width}-le")))
            texts.append((f"{width} BE", text.encode(f"{width}-be")))
        if not text.isascii():
            with suppress(UnicodeEncodeError):
                texts.append(("Latin-1", text.encode("latin-1")))
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
    (re.compile(rb"[A-Za-z0-9+/_-]{32,}={0,2}"), "Base64", 4),
    (re.compile(rb"(?:[0-9a-fA-F]{2}){24,}[0-9a-fA-F]?"), "hex", 2),
)
"""What coded text looks like, and how many characters stand for whole bytes."""
_BEGINS = re.compile(b"|".join(re.escape(m) for m, _ in _MAGICS) + b"|x[\x01\x5e\x9c\xda]")


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
    for pattern, how, group in _RUNS:
        for match in pattern.finditer(data):
            for skipped in range(group):
                text = match.group()[skipped:]
                decoded = _decode(how, text[:limit])
                # Behind a word that looks alike: of use only where something begins there.
                if decoded and (not skipped or _BEGINS.search(decoded)):
                    yield Unpacked(how, match.start() + skipped, decoded, len(text) > limit)


def _decode(how: str, text: bytes) -> bytes:
    try:
        if how == "hex":
            return bytes.fromhex(text[: len(text) & ~1].decode())
        body = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        body = body[: len(body) - (len(body) % 4 == 1)]
        return base64.b64decode(body + b"=" * (-len(body) % 4))
    except (ValueError, binascii.Error):
        return b""


def _decompress(
    how: str, data: bytes, at: int, limit: int, missing: set[str]
) -> tuple[bytes, bool] | None:
    """Return what a stream at ``at`` gives and whether it was cut; None where there is none."""
    start, opener = at, _OPENERS[how]
    if how == "zip":
        start, opener = _zip_body(data, at)
        if start < 0:
            return None
    if how == "zstd" and _zstd() is None:
        missing.add("zstd (install backports.zstd)")
        return None
    try:
        stream = opener()
    except (ValueError, lzma.LZMAError):  # properties that cannot be
        return None
    out, cut = _drain(stream, data, start, limit)
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


def _zip_body(data: bytes, at: int) -> tuple[int, Callable[[], Any]]:
    """Return where the packed content of a zip member begins, and what opens it.

    The place is -1 where the content begins with a magic of its own, or is not packed.
    """
    method, name, extra = (
        int.from_bytes(data[at + n : at + n + 2], "little") for n in (8, 26, 28)
    )
    start = at + 30 + name + extra
    if len(data) < at + 30 or method not in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        return -1, _OPENERS["zip"]
    if method == zipfile.ZIP_DEFLATED:
        return start, _OPENERS["zip"]
    # A version, and the size of the properties, come before them.
    size = int.from_bytes(data[start + 2 : start + 4], "little")
    properties = data[start + 4 : start + 4 + size]
    return start + 4 + size, lambda: _raw_lzma(properties)


def _raw_lzma(properties: bytes) -> Any:
    """Return a decompressor for LZMA1 without a header, by what the header would say."""
    if len(properties) != 5:
        raise ValueError("not the properties of LZMA1")
    coded, dictionary = properties[0], int.from_bytes(properties[1:], "little")
    rest, context = divmod(coded, 9)
    bits, literal = divmod(rest, 5)
    chain = {
        "id": lzma.FILTER_LZMA1,
        "lc": context,
        "lp": literal,
        "pb": bits,
        "dict_size": min(dictionary, 1 << 28),
    }
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[chain])


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
