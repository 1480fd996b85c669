"""Concurrency: several openers of one directory, interleaved at every call or run at once.

Belongs here: what may be said of any schedule. The second opener may be refused with one of the
store's own errors; it may never see half a value nor undo what the first one saved.
"""

from __future__ import annotations

from pytest_statepersist.conformance.bench import Bench
from pytest_statepersist.conformance.needs import needs

__all__ = ["ConcurrencyConformance"]


class ConcurrencyConformance:
    """Openers do not hurt each other."""

    @needs("concurrent_writers")
    def test_a_second_opener_sees_what_was_saved(self, bench: Bench) -> None:
        """A value saved by one opener is seen by another one, opened before or after."""
        with bench.opened() as one, bench.opened() as two:
            one.save("key", bench.value(1))
            assert two.load("key") == bench.value(1)
            with bench.opened() as three:
                assert three.load("key") == bench.value(1)

    @needs("concurrent_writers")
    def test_the_last_save_wins(self, bench: Bench) -> None:
        """Saves of one key by two openers in turn: the last one is what both see."""
        with bench.opened() as one, bench.opened() as two:
            one.save("key", bench.value(1))
            two.save("key", bench.value(2))
            one.save("key", bench.value(1))
            assert one.load("key") == two.load("key") == bench.value(1)
        assert bench.content() == {"key": bench.value(1)}

    @needs("concurrent_writers")
    def test_two_openers_keep_each_others_keys(self, bench: Bench) -> None:
        """Keys saved by two openers in turn are all there afterwards."""
        with bench.opened() as one, bench.opened() as two:
            for number in range(4):
                one.save(f"one-{number}", bench.value(number))
                two.save(f"two-{number}", bench.value(number))
        assert len(bench.content()) == 8

    @needs("concurrent_writers")
    def test_an_opener_in_the_middle_of_a_save_breaks_nothing(self, bench: Bench) -> None:
        """Another opener that comes at any call of a save neither sees half of it nor spoils it."""
        bench.check_interleaved(lambda store: store.save("key", bench.value(2)))

    @needs("concurrent_writers", "atomic_keys")
    def test_an_opener_in_the_middle_of_a_save_of_several_keys(self, bench: Bench) -> None:
        """Another opener that comes at any call sees all of several keys or none of them."""
        values = {"key": bench.value(2), "more": bench.value(3)}
        bench.check_interleaved(lambda store: store.save_many(values))

    @needs("concurrent_writers")
    def test_threads_may_share_an_opener(self, bench: Bench) -> None:
        """Four threads that save through one opener lose nothing."""
        bench.check_threads()

    @needs("concurrent_writers")
    def test_processes_may_save_at_once(self, bench: Bench) -> None:
        """Three processes that save into one directory lose nothing."""
        bench.check_processes()
