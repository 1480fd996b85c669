"""`json.dump` into the file itself, as most programs begin.

`open(path, "w")` truncates before the first new byte is written, so there is a moment with neither
value, and a killed process is enough to stop in it. Nothing is synced: after the save has returned,
a power loss may leave the old text, an empty file, or (ext4) zeros of the right length.

Expected: atomic nowhere; durable only where the page cache survives.
"""

import json
from pathlib import Path

from examples.example import Citation, expect

OLD = {"theme": "light", "recent": ["a.txt"]}
NEW = {"theme": "dark", "recent": ["a.txt", "b.txt"]}


def save(path: Path, settings: object) -> None:
    with open(path, "w") as handle:
        json.dump(settings, handle)


def setup(directory: Path) -> None:
    save(directory / "settings.json", OLD)


def workload(directory: Path) -> None:
    save(directory / "settings.json", NEW)


def recover(directory: Path) -> object:
    with open(directory / "settings.json") as handle:
        return json.load(handle)


EXPECTED = expect(atomic=(), durable=("kill",))
CITATIONS = (Citation("python", "3.11.7", "json", 180, "fp.write(chunk)"),)
