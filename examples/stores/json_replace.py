"""`json.dump` into a temporary, then `os.replace`: the advice that stops half-way.

The old value stays readable until the rename, so a killed process sees one or the other. But the
rename is metadata and the bytes are data, and nothing makes the bytes go first: XFS, btrfs and ext4
without auto_da_alloc leave an empty file under the final name, ext4 with its defaults one of the
right size that holds zeros. Nor is the rename itself durable when the save returns.

Expected: atomic and durable only where the page cache survives.
"""

import json
import os
from pathlib import Path

from examples.example import expect

OLD = {"theme": "light", "recent": ["a.txt"]}
NEW = {"theme": "dark", "recent": ["a.txt", "b.txt"]}


def save(path: Path, settings: object) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w") as handle:
        json.dump(settings, handle)
    os.replace(temporary, path)


def setup(directory: Path) -> None:
    save(directory / "settings.json", OLD)


def workload(directory: Path) -> None:
    save(directory / "settings.json", NEW)


def recover(directory: Path) -> object:
    with open(directory / "settings.json") as handle:
        return json.load(handle)


EXPECTED = expect(atomic=("kill",), durable=("kill",))
CITATIONS = ()
