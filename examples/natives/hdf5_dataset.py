"""HDF5 (C, by h5py): a scientific format; a dataset of an existing file is replaced.

Metadata and data are changed in place, in several writes and without a journal; nothing is synced.

Expected: atomic nowhere; durable only where the page cache survives.
"""

from pathlib import Path

import h5py

from examples.engines import expect


def setup(directory: Path) -> None:
    with h5py.File(directory / "run.h5", "w") as file:
        file["signal"] = [1, 2, 3]


def workload(directory: Path) -> None:
    with h5py.File(directory / "run.h5", "r+") as file:
        del file["signal"]
        file["signal"] = [4, 5, 6, 7]


def recover(directory: Path) -> object:
    with h5py.File(directory / "run.h5", "r") as file:
        return [int(value) for value in file["signal"][:]]


EXPECTED = expect(atomic=(), durable=("kill",))
