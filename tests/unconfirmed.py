"""Explorations whose passes are not run again in a fresh process, as where a platform has no fork.

Belongs here: what tests use that ask for something else than whether a recovery remembers what it
should read. To run each pass again takes longer than all the rest; the soak profile does it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from pytest_statepersist import simulator
from pytest_statepersist.explorer.fresh import FreshProcess

__all__ = ["unconfirmed"]


class _NoFreshProcess(FreshProcess):
    def _start(self) -> None:
        self.available = False


@contextmanager
def unconfirmed() -> Iterator[None]:
    """Confirm no pass until the end of the block; in the soak profile all of them."""
    if os.environ.get("STATEPERSIST_PROFILE") == "soak":
        yield
        return
    with patch.object(simulator, "FreshProcess", _NoFreshProcess):
        yield
