"""LMDB (C): a B-tree that is read through a memory map and, by default, written by calls.

A commit writes new pages to free places, syncs them, and then writes one of two meta pages through
a descriptor opened with O_DSYNC. The other meta page stays as it was: a torn one is recognised.
`lock=False`, because the lock file is a shared writable map, of which nobody sees single changes.

Expected: atomic and durable everywhere.
"""

from pathlib import Path

import lmdb

from examples.engines import MODELS, expect


def put(directory: Path, value: bytes, **options: bool) -> None:
    with (
        lmdb.open(str(directory), map_size=1 << 18, lock=False, **options) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(b"list", value)


def setup(directory: Path) -> None:
    put(directory, b"bread")


def workload(directory: Path) -> None:
    put(directory, b"bread and milk")


def recover(directory: Path) -> object:
    with (
        lmdb.open(str(directory), map_size=1 << 18, lock=False, readonly=True) as environment,
        environment.begin() as transaction,
    ):
        return transaction.get(b"list")


EXPECTED = expect(atomic=MODELS, durable=MODELS)
