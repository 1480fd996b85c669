"""Two slots written in turn, each with a generation and a checksum inside its own block.

The counterpart of `newest_by_mtime` and `header_before_payload`: which slot is newest is said by
the slot itself, under the checksum, and the other slot is whole while one is being written.
"""

import json
import os
import zlib
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably

BLOCK = 4096


def slot(generation: int, score: int) -> bytes:
    body = json.dumps({"generation": generation, "score": score}).encode()
    return f"{zlib.crc32(body):08x}".encode() + body.ljust(BLOCK - 8)


def setup(directory: Path) -> None:
    replace_durably(directory / "slots", slot(7, 1) + slot(6, 0))


def workload(directory: Path) -> None:
    descriptor = os.open(directory / "slots", os.O_WRONLY)
    os.pwrite(descriptor, slot(8, 2), BLOCK)
    os.fsync(descriptor)
    os.close(descriptor)


def recover(directory: Path) -> object:
    content = (directory / "slots").read_bytes()
    whole = []
    for offset in range(0, len(content), BLOCK):
        checksum, body = content[offset : offset + 8], content[offset + 8 : offset + BLOCK].rstrip()
        if checksum == f"{zlib.crc32(body):08x}".encode():
            whole.append(json.loads(body))
    return max(whole, key=lambda value: value["generation"])["score"]


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, before=1, after=2)
