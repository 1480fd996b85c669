"""Atomic: after a crash at any moment a change is there as a whole or not at all.

Belongs here: each kind of change, crashed at every operation under the persistence model of the
run (`posix` unless told otherwise). Losing an acknowledged value is the durable group's business.
"""

from __future__ import annotations

from pytest_statepersist.conformance.bench import Bench
from pytest_statepersist.conformance.needs import needs

__all__ = ["AtomicConformance"]


class AtomicConformance:
    """A crash leaves the old state or the new one."""

    @needs("crash_recovery")
    def test_the_first_save_is_whole_or_absent(self, bench: Bench) -> None:
        """A crash in the first save leaves an empty store or the value."""
        bench.check_atomic({}, lambda store: store.save("key", bench.value(1)))

    @needs("crash_recovery")
    def test_an_overwrite_is_old_or_new(self, bench: Bench) -> None:
        """A crash in an overwrite leaves the old value or the new one."""
        bench.check_atomic({"key": bench.value(1)}, lambda store: store.save("key", bench.value(2)))

    @needs("crash_recovery")
    def test_an_overwrite_by_a_larger_value_is_old_or_new(self, bench: Bench) -> None:
        """A crash while a value of several blocks is written leaves no mixture."""
        large = {"text": bench.noise(9000)}
        bench.check_atomic({"key": bench.value(1)}, lambda store: store.save("key", large))

    @needs("crash_recovery")
    def test_an_overwrite_by_a_smaller_value_is_old_or_new(self, bench: Bench) -> None:
        """A crash while a large value is replaced by a small one leaves no tail."""
        large = {"text": bench.noise(9000)}
        bench.check_atomic({"key": large}, lambda store: store.save("key", bench.value(2)))

    @needs("crash_recovery")
    def test_a_save_hurts_no_other_key(self, bench: Bench) -> None:
        """A crash in a save leaves every other value as it was."""
        before = {"a": bench.value(1), "b": bench.value(2)}
        bench.check_atomic(before, lambda store: store.save("c", bench.value(3)))

    @needs("crash_recovery", "delete")
    def test_a_deletion_is_done_or_not(self, bench: Bench) -> None:
        """A crash in a deletion leaves the value or nothing, and every other value."""
        before = {"a": bench.value(1), "b": bench.value(2)}
        bench.check_atomic(before, lambda store: store.delete("a"))

    @needs("crash_recovery", "atomic_keys")
    def test_several_new_keys_are_all_there_or_none(self, bench: Bench) -> None:
        """A crash while several new values are saved together leaves all of them or none."""
        values = {name: bench.value(number) for number, name in enumerate("abc")}
        bench.check_atomic({}, lambda store: store.save_many(values))

    @needs("crash_recovery", "atomic_keys")
    def test_several_overwrites_are_all_old_or_all_new(self, bench: Bench) -> None:
        """A crash while several values are replaced together leaves all old or all new ones."""
        before = {name: bench.value(1) for name in "abc"}
        after = {name: bench.value(2) for name in "abc"}
        bench.check_atomic(before, lambda store: store.save_many(after))

    @needs("crash_recovery")
    def test_a_killed_process_leaves_old_or_new(self, bench: Bench) -> None:
        """A process killed in an overwrite, the system living on, leaves the old or new value."""
        bench.check_atomic(
            {"key": bench.value(1)}, lambda store: store.save("key", bench.value(2)), model="kill"
        )
