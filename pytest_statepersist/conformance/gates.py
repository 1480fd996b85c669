"""Every call that this process can be asked about: Python's own, and SQLite's where it is loaded.

Belongs here: which gates stand while a check lets calls fail, or comes in at one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pytest_statepersist.faults.installing import installed
from pytest_statepersist.recording import sqlite_companions

__all__ = ["gates"]


@contextmanager
def gates() -> Iterator[None]:
    """Put the gates in place for a block; that costs more than a whole save."""
    with ExitStack() as stack:
        stack.enter_context(installed())
        if sqlite_companions()[0]:
            from pytest_statepersist.faults.sqlite import sqlite_gate

            stack.enter_context(sqlite_gate())
        yield
