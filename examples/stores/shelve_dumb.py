"""`shelve` over `dbm.dumb`, the only engine of `dbm` that is in every Python.

A value that fits is overwritten in place in the `.dat` file. On `close` the directory file is
renamed to `.bak` and written anew under its own name; in between there is none, and nothing ever
reads the `.bak`. A killed process is enough. There is no sync in the module.

Expected: atomic nowhere; durable only where the page cache survives.
"""

import dbm.dumb
import shelve
from pathlib import Path

from examples.example import Citation, expect


def scores(directory: Path, flag: str = "c") -> shelve.Shelf[int]:
    return shelve.Shelf(dbm.dumb.open(str(directory / "scores"), flag))  # type: ignore[arg-type]


def setup(directory: Path) -> None:
    with scores(directory) as shelf:
        shelf["ada"] = 1


def workload(directory: Path) -> None:
    with scores(directory) as shelf:
        shelf["ada"] = 2


def recover(directory: Path) -> object:
    with scores(directory, "r") as shelf:
        return dict(shelf)


EXPECTED = expect(atomic=(), durable=("kill",))
CITATIONS = (
    Citation("python", "3.11.7", "dbm.dumb", 126, "self._os.rename(self._dirfile, self._bakfile)"),
    Citation(
        "python",
        "3.11.7",
        "dbm.dumb",
        130,
        "with self._io.open(self._dirfile, 'w', encoding=\"Latin-1\") as f:",
    ),
    Citation("python", "3.11.7", "dbm.dumb", 175, "f.write(val)"),
)
