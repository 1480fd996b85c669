"""`pickle.dump` into the file itself.

The same truncation in place as `json.dump`; an empty or zeroed file raises `EOFError` or
`UnpicklingError` when it is loaded.

Expected: atomic nowhere; durable only where the page cache survives.
"""

import pickle
from pathlib import Path

from examples.example import expect


def save(path: Path, state: object) -> None:
    with open(path, "wb") as handle:
        pickle.dump(state, handle)


def setup(directory: Path) -> None:
    save(directory / "state.pickle", {"level": 3, "coins": 40})


def workload(directory: Path) -> None:
    save(directory / "state.pickle", {"level": 4, "coins": 55})


def recover(directory: Path) -> object:
    with open(directory / "state.pickle", "rb") as handle:
        return pickle.load(handle)


EXPECTED = expect(atomic=(), durable=("kill",))
CITATIONS = ()
