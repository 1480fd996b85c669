"""Faults: a disk that is full or fails is told, costs nothing that was saved, and can be retried.

Belongs here: errors of the operating system, one failing call at a time, and a store's own bound.
Calls that native code other than SQLite makes are not reached; where no call was, the test is
skipped as not covered.
"""

from __future__ import annotations

import errno

from pytest_statepersist.conformance.bench import Bench
from pytest_statepersist.conformance.needs import needs

__all__ = ["FaultConformance"]


class FaultConformance:
    """An error of the disk is told and loses nothing."""

    def test_an_io_error_in_a_save_is_told(self, bench: Bench) -> None:
        """Whichever call of a save fails with EIO: the save raises, or the value is there."""
        bench.check_faults(errno.EIO, lambda store: store.save("key", bench.value(2)))

    def test_a_full_disk_in_a_save_is_told(self, bench: Bench) -> None:
        """Whichever call of a save finds the disk full: the save raises, or the value is there."""
        bench.check_faults(errno.ENOSPC, lambda store: store.save("key", bench.value(2)))

    @needs("durable")
    def test_a_failed_sync_is_told(self, bench: Bench) -> None:
        """A save whose fsync fails raises, unless no power loss can take what it acknowledged."""
        bench.check_failed_syncs(lambda store: store.save("key", bench.value(2)))

    @needs("delete")
    def test_an_io_error_in_a_deletion_is_told(self, bench: Bench) -> None:
        """Whichever call of a deletion fails: it raises, or the value is gone."""
        bench.check_faults(errno.EIO, lambda store: store.delete("key"))

    @needs("atomic_keys")
    def test_an_io_error_in_a_save_of_several_keys_is_told(self, bench: Bench) -> None:
        """Whichever call of a save of several keys fails: all are old, or all are new."""
        values = {"key": bench.value(2), "more": bench.value(3)}
        bench.check_faults(errno.EIO, lambda store: store.save_many(values))

    def test_a_failed_save_can_be_repeated(self, bench: Bench) -> None:
        """After a save that failed at any call, the same opener can save again."""
        bench.check_retry(errno.EIO, lambda store: store.save("key", bench.value(2)))

    @needs("durable")
    def test_a_save_that_is_repeated_after_a_failed_sync_survives(self, bench: Bench) -> None:
        """A sync failed and was told, the same opener saved again: now the value is durable."""
        bench.check_retry_is_durable(lambda store: store.save("key", bench.value(2)))

    def test_short_writes_are_completed(self, bench: Bench) -> None:
        """A write that takes only some of its bytes is continued, not taken for the whole."""
        bench.check_short_writes()

    def test_an_io_error_at_opening_loses_nothing(self, bench: Bench) -> None:
        """Whichever call of an opening fails: afterwards everything saved is still there."""
        bench.check_faults_at_opening(errno.EIO)

    @needs("quota")
    def test_what_would_exceed_the_quota_is_refused(self, bench: Bench) -> None:
        """A store with a quota refuses to grow beyond it, and keeps all that it took before."""
        bench.check_quota()

    @needs("quota")
    def test_a_refused_overwrite_keeps_the_old_value(self, bench: Bench) -> None:
        """A value that does not fit leaves the one that it would replace, and a usable store."""
        bench.check_quota_overwrite()

    @needs("quota", "delete")
    def test_what_was_deleted_counts_no_more(self, bench: Bench) -> None:
        """A store at its quota takes as much again as was deleted from it."""
        bench.check_quota_is_freed()
