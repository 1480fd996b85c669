"""LMDB (C) with `writemap=True`: pages are changed through a shared writable memory map.

Which bytes changed when, between two calls, is known to nobody but the processor; `msync` says only
what was there at the end. A recorder that guessed the order would be lying.

Expected: not covered.
"""

from pathlib import Path

from examples.engines import NOT_COVERED
from examples.natives.lmdb_put import put, recover

__all__ = ["recover"]


def setup(directory: Path) -> None:
    put(directory, b"bread", writemap=True)


def workload(directory: Path) -> None:
    put(directory, b"bread and milk", writemap=True)


EXPECTED = NOT_COVERED
