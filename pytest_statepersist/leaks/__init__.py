"""Looks for what a store must never show: plaintext, a nonce twice, a secret that others can read.

Belongs here: three scans over disk states, each given what to look for. They read states that were
recorded or generated elsewhere, and change nothing. What a scan could not look into is in the
report's ``not_covered``; a scan that saw nothing at all gives no verdict.
"""

from __future__ import annotations

from pytest_statepersist.leaks.canaries import LeakFinding, LeakReport, scan_leaks
from pytest_statepersist.leaks.nonces import NonceFinding, NonceReport, Sealed, scan_nonces
from pytest_statepersist.leaks.permissions import (
    ModeEvent,
    PermissionFinding,
    PermissionReport,
    scan_permissions,
)
from pytest_statepersist.leaks.states import State

__all__ = [
    "LeakFinding",
    "LeakReport",
    "ModeEvent",
    "NonceFinding",
    "NonceReport",
    "PermissionFinding",
    "PermissionReport",
    "Sealed",
    "State",
    "scan_leaks",
    "scan_nonces",
    "scan_permissions",
]
