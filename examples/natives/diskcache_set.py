"""diskcache: values above 32 kB are files beside a SQLite database (C) that names them.

The file is written and closed, then the row is committed, with a write-ahead log and
`synchronous=NORMAL`; neither is synced. A row whose file is not there reads as "not in the cache".

Expected: atomic and durable only where the page cache survives.
"""

from pathlib import Path

import diskcache

from examples.engines import expect

OLD, NEW = b"o" * 40_000, b"n" * 40_000


def put(directory: Path, value: bytes) -> None:
    with diskcache.Cache(str(directory)) as cache:
        cache.set("key", value)


def setup(directory: Path) -> None:
    put(directory, OLD)


def workload(directory: Path) -> None:
    put(directory, NEW)


def recover(directory: Path) -> object:
    with diskcache.Cache(str(directory)) as cache:
        return cache.get("key")


EXPECTED = expect(atomic=("kill",), durable=("kill",))
