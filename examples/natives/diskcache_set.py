"""diskcache: large values are files beside a SQLite database (C) that names them.

From which size on is a setting, here 0. The file is written and closed, then the row is committed,
with a write-ahead log and `synchronous=NORMAL`; neither is synced. A row whose file is not there
reads as "not in the cache".

Expected: atomic and durable only where the page cache survives.
"""

from pathlib import Path

import diskcache

from examples.engines import expect

OLD, NEW = b"bread", b"bread and milk"


def put(directory: Path, value: bytes) -> None:
    with diskcache.Cache(str(directory), disk_min_file_size=0) as cache:
        cache.set("key", value)


def setup(directory: Path) -> None:
    put(directory, OLD)


def workload(directory: Path) -> None:
    put(directory, NEW)


def recover(directory: Path) -> object:
    with diskcache.Cache(str(directory), disk_min_file_size=0) as cache:
        return cache.get("key")


EXPECTED = expect(atomic=("kill",), durable=("kill",))
SETTINGS = {"budget": 3000}
