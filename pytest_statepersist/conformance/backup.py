"""Backup: a copy of one moment, whole or absent, that restores exactly or not at all.

Belongs here: making, damaging and restoring backups, with crashes in each.
"""

from __future__ import annotations

from pytest_statepersist.conformance.bench import Bench
from pytest_statepersist.conformance.needs import needs

__all__ = ["BackupConformance"]


class BackupConformance:
    """What was backed up comes back."""

    @needs("backup")
    def test_a_restored_store_is_what_it_was(self, bench: Bench) -> None:
        """A restore brings back every value as it was at the time of the backup."""
        bench.check_restore(lambda store: store.save("a", bench.value(9)))

    @needs("backup")
    def test_a_restore_removes_what_came_later(self, bench: Bench) -> None:
        """Keys that were saved after the backup are gone after a restore."""
        bench.check_restore(lambda store: store.save("later", bench.value(9)))

    @needs("backup", "delete")
    def test_a_restore_brings_back_what_was_deleted(self, bench: Bench) -> None:
        """Keys that were deleted after the backup are there after a restore."""
        bench.check_restore(lambda store: store.delete("a"))

    @needs("backup")
    def test_a_backup_restores_into_a_new_directory(self, bench: Bench) -> None:
        """A backup restores into an empty store elsewhere."""
        bench.check_restore_elsewhere()

    @needs("backup")
    def test_a_damaged_backup_is_refused_and_changes_nothing(self, bench: Bench) -> None:
        """A backup with a flipped, cut, missing or later file is refused; the store stays."""
        bench.check_damaged_backup()

    @needs("backup")
    def test_a_crash_in_a_backup_leaves_a_whole_one_or_none(self, bench: Bench) -> None:
        """A crash in a backup leaves one that restores everything, or none that restores."""
        bench.check_backup_under_crashes()

    @needs("backup")
    def test_a_finished_backup_survives(self, bench: Bench) -> None:
        """Once a backup has returned, it restores after a power loss."""
        bench.check_backup_under_crashes(durable=True)

    @needs("backup")
    def test_a_crash_in_a_restore_leaves_old_or_restored(self, bench: Bench) -> None:
        """A crash in a restore leaves the state before it or the restored one."""
        bench.check_restore_under_crashes()
