"""`configparser`: read the file, change a value, write it back, as its documentation shows.

`write` takes an open file, so it is the caller's `open(path, "w")` that truncates, and the parser
writes into Python's buffer without flush or sync. What makes it worse than JSON: an empty file
parses without complaint, so the settings are not damaged, they are quietly gone.

Expected: atomic nowhere; durable only where the page cache survives.
"""

import configparser
from pathlib import Path

from examples.example import Citation, expect


def save(path: Path, theme: str) -> None:
    config = configparser.ConfigParser()
    config.read(path)
    config["window"] = {"theme": theme, "width": "1280"}
    with open(path, "w") as handle:
        config.write(handle)


def setup(directory: Path) -> None:
    save(directory / "app.ini", "light")


def workload(directory: Path) -> None:
    save(directory / "app.ini", "dark")


def recover(directory: Path) -> object:
    config = configparser.ConfigParser()
    config.read(directory / "app.ini")
    return {section: dict(config[section]) for section in config.sections()}


EXPECTED = expect(atomic=(), durable=("kill",))
CITATIONS = (
    Citation(
        "python",
        "3.11.7",
        "configparser",
        921,
        "def write(self, fp, space_around_delimiters=True):",
    ),
)
