"""The bench as tests see it: the checks of all groups on one object.

Belongs here: the composition, and nothing else.
"""

from __future__ import annotations

from pytest_statepersist.conformance.faulty import FaultChecks
from pytest_statepersist.conformance.openers import OpenerChecks
from pytest_statepersist.conformance.quotas import QuotaChecks
from pytest_statepersist.conformance.scans import BackupChecks, DamageChecks, VersionChecks

__all__ = ["Bench"]


class Bench(
    DamageChecks, FaultChecks, QuotaChecks, OpenerChecks, BackupChecks, VersionChecks
):
    """A directory of its own for one test, the adapter, and every check."""
