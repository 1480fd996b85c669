"""Permissions: what a store writes is readable by its owner alone, from the first instant.

Belongs here: file and directory modes over the whole history of a change, under umask 022, which
is what most people have.
"""

from __future__ import annotations

from pytest_statepersist.conformance.bench import Bench
from pytest_statepersist.conformance.needs import needs

__all__ = ["PermissionConformance"]


class PermissionConformance:
    """Nobody else can read, not even for a moment."""

    @needs("permissions")
    def test_a_new_store_is_private_at_every_moment(self, bench: Bench) -> None:
        """No file of a new store is ever open to others, temporaries included."""
        bench.check_private({}, lambda store: store.save("key", bench.value(1)))

    @needs("permissions")
    def test_an_overwrite_stays_private(self, bench: Bench) -> None:
        """No file is open to others while a value is replaced."""
        bench.check_private(
            {"key": bench.value(1)}, lambda store: store.save("key", bench.value(2))
        )

    @needs("permissions", "atomic_keys")
    def test_a_save_of_several_keys_stays_private(self, bench: Bench) -> None:
        """No file is open to others while several values are saved together."""
        values = {name: bench.value(number) for number, name in enumerate("abc")}
        bench.check_private({}, lambda store: store.save_many(values))

    @needs("permissions")
    def test_directories_are_private(self, bench: Bench) -> None:
        """Every directory that the store makes keeps others out."""
        bench.check_private_directories()

    def test_the_umask_stays_as_it_was(self, bench: Bench) -> None:
        """Opening and saving leave the umask of the process alone."""
        bench.check_umask()
