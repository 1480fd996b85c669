"""Temporary, `fsync`, `os.replace`, `fsync` of the directory: the whole recipe.

Expected: atomic and durable everywhere.
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
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def setup(directory: Path) -> None:
    save(directory / "settings.json", OLD)


def workload(directory: Path) -> None:
    save(directory / "settings.json", NEW)


def recover(directory: Path) -> object:
    with open(directory / "settings.json") as handle:
        return json.load(handle)


EXPECTED = expect(atomic=MODELS, durable=MODELS)
CITATIONS = ()
