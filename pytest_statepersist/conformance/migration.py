"""Migration: every old format opens, interrupted or not, and newer ones are left alone.

Belongs here: stores written by older and by newer code, which the adapter provides.
"""

from __future__ import annotations

from pytest_statepersist.conformance.bench import Bench
from pytest_statepersist.conformance.needs import needs

__all__ = ["MigrationConformance"]


class MigrationConformance:
    """Old data is read, new data is not ruined."""

    @needs("migration")
    def test_every_old_version_opens(self, bench: Bench) -> None:
        """A store written by any older version gives its values."""
        bench.check_old_versions()

    @needs("migration")
    def test_a_migrated_store_can_be_written(self, bench: Bench) -> None:
        """A store written by any older version takes new values and keeps the old ones."""
        bench.check_old_versions(write=True)

    @needs("migration")
    def test_a_crash_in_a_migration_loses_nothing(self, bench: Bench) -> None:
        """A crash at any moment of a migration leaves a store that opens with every value."""
        bench.check_migration_under_crashes()

    @needs("refuses_newer")
    def test_newer_data_is_refused(self, bench: Bench) -> None:
        """A store written by newer code is refused with an error, not misread."""
        bench.check_newer(untouched=False)

    @needs("refuses_newer")
    def test_newer_data_is_left_untouched(self, bench: Bench) -> None:
        """Refusing newer data changes none of its files."""
        bench.check_newer(untouched=True)
