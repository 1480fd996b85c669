"""Damages files on purpose, and judges whether a load notices.

Belongs here: `damage` makes the damaged bytes and knows nothing of loading; `integrity` loads them
and judges. A load of damaged files that returns anything but the saved value is a finding, and so
is an error that does not say that the files are damaged.
"""

from __future__ import annotations

from pytest_statepersist.tamper.damage import Damage, Sweep, Tampering, tamperings
from pytest_statepersist.tamper.integrity import (
    IntegrityFinding,
    IntegrityReport,
    Passing,
    Verdict,
    check_integrity,
)

__all__ = [
    "Damage",
    "IntegrityFinding",
    "IntegrityReport",
    "Passing",
    "Sweep",
    "Tampering",
    "Verdict",
    "check_integrity",
    "tamperings",
]
