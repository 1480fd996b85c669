"""joblib: `dump` a fitted model over the previous one.

`dump` opens the file with "wb", which truncates it, and pickles into it. No temporary, no sync.

Expected: atomic nowhere; durable only where the page cache survives.
"""

from pathlib import Path

import joblib

from examples.example import Citation, expect


def setup(directory: Path) -> None:
    joblib.dump({"weights": [0.1, 0.2], "epoch": 1}, directory / "model.joblib")


def workload(directory: Path) -> None:
    joblib.dump({"weights": [0.3, 0.4], "epoch": 2}, directory / "model.joblib")


def recover(directory: Path) -> object:
    return joblib.load(directory / "model.joblib")


EXPECTED = expect(atomic=(), durable=("kill",))
CITATIONS = (
    Citation("joblib", "1.6.0", "joblib.numpy_pickle", 605, 'with open(filename, "wb") as f:'),
)
