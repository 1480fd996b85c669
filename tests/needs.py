"""What some tests need of the machine, asked once.

Belongs here: marks that skip with the reason, where something was tried and does not work.
"""

from __future__ import annotations

import sys
import tempfile

import pytest

from pytest_statepersist.errors import RecorderUnavailable
from pytest_statepersist.recorders.strace import StraceRecorder

__all__ = ["needs_strace"]


def _missing() -> str:
    """Say why strace cannot be used here: tried, not guessed."""
    try:
        with tempfile.TemporaryDirectory() as directory:
            StraceRecorder(directory).run([sys.executable, "-c", ""])
            recorder = StraceRecorder(directory)
            recorder.start()
            recorder.stop()
    except RecorderUnavailable as error:
        return str(error)
    return ""


_reason = _missing()
needs_strace = pytest.mark.skipif(bool(_reason), reason=_reason or "-")
