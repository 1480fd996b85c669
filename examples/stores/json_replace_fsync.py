"""Temporary, `fsync`, `os.replace`: whole at any time, but not yet saved when it says so.

The bytes are durable before the rename is asked for, so every crash leaves the old value or the new
one. The rename waits for the next commit of the journal: up to then the caller believes in a save
that a power loss takes back.

Expected: atomic everywhere; durable only where the page cache survives.
"""

import json
import os
from pathlib import Path

from examples.example import MODELS, expect

OLD = {"theme": "light", "recent": ["a.txt"]}
NEW = {"theme": "dark", "recent": ["a.txt", "b.txt"]}


def save(path: Path, settings: object) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w") as handle:
        json.dump(settings, handle)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def setup(directory: Path) -> None:
    save(directory / "settings.json", OLD)


def workload(directory: Path) -> None:
    save(directory / "settings.json", NEW)


def recover(directory: Path) -> object:
    with open(directory / "settings.json") as handle:
        return json.load(handle)


EXPECTED = expect(atomic=MODELS, durable=("kill",))
CITATIONS = ()
