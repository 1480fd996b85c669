"""Encryption: nothing readable on any disk, nothing accepted that was changed, keys that change.

Belongs here: what the owner of the disk without the key can do, now or after a crash.
"""

from __future__ import annotations

from pytest_statepersist.conformance.bench import Bench
from pytest_statepersist.conformance.needs import needs

__all__ = ["EncryptionConformance"]


class EncryptionConformance:
    """Without the key there is nothing to read and nothing to forge."""

    @needs("encryption")
    def test_nothing_readable_is_on_any_disk(self, bench: Bench) -> None:
        """No disk that a crash may leave shows a value in any common encoding."""
        bench.check_leaks()

    @needs("encryption")
    def test_a_wrong_key_is_refused(self, bench: Bench) -> None:
        """A wrong key raises one of the store's errors and gives no value."""
        bench.check_wrong_key()

    @needs("encryption")
    def test_a_wrong_key_harms_nothing(self, bench: Bench) -> None:
        """After an attempt with a wrong key, the right one loads everything."""
        bench.check_wrong_key(harmless=True)

    @needs("encryption")
    def test_any_changed_bit_is_noticed(self, bench: Bench) -> None:
        """No flipped bit in an encrypted file makes a load return anything but an error."""
        bench.check_damage("FLIP", encrypted=True)

    @needs("encryption")
    def test_cut_and_extended_files_are_noticed(self, bench: Bench) -> None:
        """No truncation and no extension of an encrypted file is accepted."""
        bench.check_damage("TRUNCATE", "EXTEND", "EMPTY", encrypted=True)

    @needs("encryption")
    def test_exchanged_files_are_noticed(self, bench: Bench) -> None:
        """A genuine file in the place of another one is not accepted."""
        bench.check_damage("SWAP_NAMES", "SPLICE", encrypted=True)

    @needs("encryption")
    def test_one_value_saved_twice_looks_different(self, bench: Bench) -> None:
        """The same value under the same key never gives the same file twice: nonces are fresh."""
        bench.check_fresh_nonces()

    @needs("encryption", "rollback_evident")
    def test_an_older_file_is_noticed(self, bench: Bench) -> None:
        """A genuine but older file in its own place is not taken for the current one."""
        bench.check_damage("ROLL_BACK", encrypted=True)

    @needs("encryption", "key_change")
    def test_a_change_of_key_keeps_every_value(self, bench: Bench) -> None:
        """After a change of key the new one loads everything and the old one nothing."""
        bench.check_key_change()

    @needs("encryption", "key_change")
    def test_a_crash_in_a_change_of_key_leaves_one_that_opens_all(self, bench: Bench) -> None:
        """After a crash in a change of key, one of the two keys loads every value."""
        bench.check_key_change_under_crashes()
