"""Fixtures that all tests of the reference implementation share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")


@pytest.fixture
def ram_path(tmp_path: Path) -> Iterator[Path]:
    """Return an empty directory in memory where there is such a thing, else on disk.

    For sweeps that sync thousands of times: what is checked there is the order and number of
    calls, not the device.
    """
    if not os.access(_MEMORY, os.W_OK):
        yield tmp_path
        return
    made = Path(tempfile.mkdtemp(prefix="statepersist-", dir=_MEMORY))
    try:
        yield made
    finally:
        shutil.rmtree(made)
