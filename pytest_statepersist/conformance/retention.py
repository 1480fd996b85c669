"""Retention: exactly what the policy says goes, and nothing else, whatever the clock does.

Belongs here: ages, stars and clean-up. Snapshots are added under a clock that the test moves.
"""

from __future__ import annotations

from datetime import timedelta

from pytest_statepersist.conformance.bench import Bench
from pytest_statepersist.conformance.needs import needs

__all__ = ["RetentionConformance"]

MOMENT = timedelta(microseconds=1)


class RetentionConformance:
    """Clean-up removes what is too old and unmarked."""

    @needs("retention", "snapshots")
    def test_what_is_older_than_the_limit_goes(self, bench: Bench) -> None:
        """A snapshot one microsecond older than the limit goes."""
        assert bench.kept_after({"old": bench.limit + MOMENT}) == set()

    @needs("retention", "snapshots")
    def test_what_is_exactly_as_old_as_the_limit_stays(self, bench: Bench) -> None:
        """A snapshot exactly as old as the limit stays."""
        assert bench.kept_after({"edge": bench.limit}) == {"edge"}

    @needs("retention", "snapshots")
    def test_what_is_younger_stays(self, bench: Bench) -> None:
        """Younger snapshots stay when older ones go."""
        ages = {"new": timedelta(0), "young": bench.limit - MOMENT, "old": bench.limit + MOMENT}
        assert bench.kept_after(ages) == {"new", "young"}

    @needs("retention", "snapshots", "stars")
    def test_what_is_starred_stays(self, bench: Bench) -> None:
        """A starred snapshot stays however old it is."""
        ages = {"starred": 10 * bench.limit, "plain": 10 * bench.limit}
        assert bench.kept_after(ages, starred={"starred"}) == {"starred"}

    @needs("retention", "snapshots", "stars")
    def test_a_star_taken_back_protects_no_more(self, bench: Bench) -> None:
        """A snapshot whose star was taken back goes like any other."""
        assert bench.kept_after({"once": 2 * bench.limit}, unstarred={"once"}) == set()

    @needs("retention", "snapshots")
    def test_a_second_clean_up_finds_nothing(self, bench: Bench) -> None:
        """Cleaning up twice removes no more than cleaning up once."""
        ages = {"young": timedelta(0), "old": 2 * bench.limit}
        assert bench.kept_after(ages, times=2) == {"young"}

    @needs("retention", "snapshots")
    def test_a_clock_that_was_set_back_removes_nothing(self, bench: Bench) -> None:
        """Snapshots from the future, as a clock that was set back sees them, stay."""
        assert bench.kept_after({"future": -bench.limit, "now": timedelta(0)}) == {"future", "now"}

    @needs("retention", "snapshots", "atomic_cleanup")
    def test_a_crash_in_a_clean_up_removes_all_or_none(self, bench: Bench) -> None:
        """A crash in a clean-up leaves all that was to go, or none of it; the rest stays."""
        bench.check_clean_up_under_crashes()
