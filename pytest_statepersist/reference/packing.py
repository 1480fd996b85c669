"""Compression with a bound: what is packed is recognised, what unfolds too far is refused.

The law: packing is deterministic, `unpack` reads whatever `pack` wrote and leaves other bytes
as they are, and no input makes it hold more than its limit and one chunk.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Mapping
from enum import Enum

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.errors import DamagedData, DecompressionBomb

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["Packing", "pack", "packing_of", "unpack"]

_CHUNK = 1 << 20
# A zstd window of 2**27 bytes at most: a small file may ask for far more memory otherwise.
_LARGEST_WINDOW_LOG = 27


class Packing(Enum):
    """The ways to compress; the value is the mark that the packed bytes begin with."""

    NONE = b""
    GZIP = b"\x1f\x8b"
    ZSTD = b"\x28\xb5\x2f\xfd"


@checked
def pack(data: bytes, packing: Packing, *, level: int | None = None) -> bytes:
    """Compress ``data``: gzip without a time stamp, or one zstd frame with its checksum on."""
    if packing is Packing.GZIP:
        return gzip.compress(data, 6 if level is None else level, mtime=0)
    if packing is Packing.ZSTD:
        options: Mapping[int, int] = {
            zstd.CompressionParameter.compression_level: 3 if level is None else level,
            zstd.CompressionParameter.checksum_flag: 1,
        }
        return zstd.compress(data, options=options)
    return data


@checked
def packing_of(data: bytes) -> Packing:
    """Tell by its first bytes how ``data`` is packed."""
    for packing in (Packing.GZIP, Packing.ZSTD):
        if data.startswith(packing.value):
            return packing
    return Packing.NONE


@checked
def unpack(data: bytes, *, limit: int) -> bytes:
    """Return the content of packed data, or ``data`` itself where it is not packed.

    ``limit`` is in bytes of the content. Raises `DecompressionBomb` beyond it, `DamagedData`
    for a cut, changed or continued stream.
    """
    packing = packing_of(data)
    if packing is Packing.GZIP:
        return _gunzip(data, limit)
    if packing is Packing.ZSTD:
        return _unzstd(data, limit)
    _check_size(len(data), limit)
    return data


def _gunzip(data: bytes, limit: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    pieces: list[bytes] = []
    size = 0
    rest = data
    try:
        while not unpacker.eof:
            piece = unpacker.decompress(rest, _CHUNK)
            rest = unpacker.unconsumed_tail
            size += len(piece)
            _check_size(size, limit)
            pieces.append(piece)
            if not piece and not rest and not unpacker.eof:
                raise DamagedData("gzip data is cut short")
    except zlib.error as error:
        raise DamagedData(f"not valid gzip: {error}") from error
    if unpacker.unused_data:
        raise DamagedData("gzip data is followed by foreign bytes")
    return b"".join(pieces)


def _unzstd(data: bytes, limit: int) -> bytes:
    options: Mapping[int, int] = {zstd.DecompressionParameter.window_log_max: _LARGEST_WINDOW_LOG}
    pieces: list[bytes] = []
    size = 0
    rest = data
    try:
        unpacker = zstd.ZstdDecompressor(options=options)
        while not unpacker.eof:
            piece = unpacker.decompress(rest, _CHUNK)
            rest = b""
            size += len(piece)
            _check_size(size, limit)
            pieces.append(piece)
            if not piece and not unpacker.eof and unpacker.needs_input:
                raise DamagedData("zstd data is cut short")
    except zstd.ZstdError as error:
        raise DamagedData(f"not valid zstd: {error}") from error
    if unpacker.unused_data:
        raise DamagedData("zstd data is followed by foreign bytes")
    return b"".join(pieces)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise DecompressionBomb(
            f"unpacks to more than {limit} bytes; if this is no attack, raise the limit"
        )
