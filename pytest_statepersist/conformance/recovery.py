"""Recovery: a store that was cut short, or whose files were damaged, can be used again.

Belongs here: what opening makes of a crash, of left-overs and of damage. Damage by an attacker
who knows the format is the encryption group's business.
"""

from __future__ import annotations

from pytest_statepersist.conformance.bench import Bench
from pytest_statepersist.conformance.needs import needs

__all__ = ["RecoveryConformance"]


class RecoveryConformance:
    """Opening after a crash gives a store that works."""

    @needs("crash_recovery")
    def test_a_crashed_store_can_be_written_again(self, bench: Bench) -> None:
        """After a crash at any moment of a save, a new value can be saved and comes back."""
        bench.check_usable_after_crash(
            {"key": bench.value(1)}, lambda store: store.save("key", bench.value(2))
        )

    @needs("crash_recovery")
    def test_a_crashed_first_save_can_be_repeated(self, bench: Bench) -> None:
        """After a crash in the very first save, the store opens and takes a value."""
        bench.check_usable_after_crash({}, lambda store: store.save("key", bench.value(2)))

    @needs("crash_recovery", "delete")
    def test_a_crashed_deletion_can_be_repeated(self, bench: Bench) -> None:
        """After a crash in a deletion, the store opens and takes a value."""
        bench.check_usable_after_crash(
            {"key": bench.value(1), "gone": bench.value(2)}, lambda store: store.delete("gone")
        )

    @needs("crash_recovery", "atomic_keys")
    def test_a_crashed_save_of_several_keys_can_be_repeated(self, bench: Bench) -> None:
        """After a crash in a save of several keys, the store opens and takes a value."""
        values = {name: bench.value(number) for number, name in enumerate("abc")}
        bench.check_usable_after_crash({}, lambda store: store.save_many(values))

    def test_opening_again_and_again_changes_nothing(self, bench: Bench) -> None:
        """Opening and closing any number of times gives the same content each time."""
        content = {"a": bench.value(1), "b": bench.value(2)}
        bench.fill(content)
        assert [bench.content() for _ in range(4)] == [content] * 4

    @needs("crash_recovery", "list")
    def test_left_over_files_are_no_keys(self, bench: Bench) -> None:
        """Nothing that a crash left behind is ever listed as a key."""
        bench.check_usable_after_crash(
            {"key": bench.value(1)},
            lambda store: store.save("another", bench.value(2)),
            keys={"key", "another", "after"},
        )

    @needs("tamper_evident")
    def test_a_flipped_bit_is_noticed(self, bench: Bench) -> None:
        """No flipped bit in any file makes a load return a value that was never saved."""
        bench.check_damage("FLIP")

    @needs("tamper_evident")
    def test_a_cut_off_file_is_noticed(self, bench: Bench) -> None:
        """No file that was cut off makes a load return a value that was never saved."""
        bench.check_damage("TRUNCATE", "EMPTY")

    @needs("tamper_evident")
    def test_files_that_were_exchanged_are_noticed(self, bench: Bench) -> None:
        """Two exchanged files never make a load return the value of another key."""
        bench.check_damage("SWAP_NAMES", "SWAP_BLOCKS", "SPLICE")

    @needs("tamper_evident")
    def test_damaged_data_is_never_destroyed(self, bench: Bench) -> None:
        """The bytes of a damaged file are still on the disk after the store has met them."""
        bench.check_damaged_bytes_stay()

    @needs("tamper_evident")
    def test_a_damaged_value_hides_no_other(self, bench: Bench) -> None:
        """One damaged file leaves every value in other files readable."""
        bench.check_damage_is_isolated()
