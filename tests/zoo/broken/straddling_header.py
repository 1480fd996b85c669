"""A header of 64 bytes, small enough to be "atomic", lies across two blocks.

Writes tear at block boundaries of the file, not at the beginning of the write. The header begins 32
bytes before a boundary, so its generation may be new while its root pointer is old. No sync helps;
alignment or a checksum does. Every model, a killed process included (the kernel copies the two
pages one after the other), at 0 deviations.
"""

import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably

OFFSET = 4096 - 32


def header(generation: int, root: int) -> bytes:
    return f"{generation:032d}{root:032d}".encode()


def setup(directory: Path) -> None:
    replace_durably(directory / "table", (b"." * OFFSET + header(1, 1)).ljust(8192, b"."))


def workload(directory: Path) -> None:
    descriptor = os.open(directory / "table", os.O_WRONLY)
    os.pwrite(descriptor, header(2, 2), OFFSET)  # BUG
    os.fsync(descriptor)
    os.close(descriptor)


def recover(directory: Path) -> object:
    content = (directory / "table").read_bytes()
    return [int(content[OFFSET : OFFSET + 32]), int(content[OFFSET + 32 : OFFSET + 64])]


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before=[1, 1],
    after=[2, 2],
    models=ALL_MODELS,
    kind="atomicity",
    causes=("torn write",),
    deviations=0,
)
