"""Durable: what a call acknowledged survives a crash at any later moment.

Belongs here: the same changes as in the atomic group, judged from their return on.
"""

from __future__ import annotations

from pytest_statepersist.conformance.bench import Bench
from pytest_statepersist.conformance.needs import needs, needs_one_of

__all__ = ["DurableConformance"]


class DurableConformance:
    """Once a change has returned, no crash takes it back."""

    @needs_one_of("durable", "durable_on_close")
    def test_the_first_save_survives(self, bench: Bench) -> None:
        """The first value of a new store is there after a power loss."""
        bench.check_durable({}, lambda store: store.save("key", bench.value(1)))

    @needs_one_of("durable", "durable_on_close")
    def test_an_overwrite_survives(self, bench: Bench) -> None:
        """A replaced value stays replaced after a power loss."""
        bench.check_durable(
            {"key": bench.value(1)}, lambda store: store.save("key", bench.value(2))
        )

    @needs_one_of("durable", "durable_on_close")
    def test_a_value_of_several_blocks_survives(self, bench: Bench) -> None:
        """A value larger than a page is there as a whole after a power loss."""
        large = {"text": bench.noise(9000)}
        bench.check_durable({"key": bench.value(1)}, lambda store: store.save("key", large))

    @needs_one_of("durable", "durable_on_close")
    @needs("delete")
    def test_a_deletion_survives(self, bench: Bench) -> None:
        """A deleted value does not come back after a power loss."""
        bench.check_durable(
            {"a": bench.value(1), "b": bench.value(2)}, lambda store: store.delete("a")
        )

    @needs_one_of("durable", "durable_on_close")
    @needs("atomic_keys")
    def test_several_keys_survive(self, bench: Bench) -> None:
        """Values that were saved together are all there after a power loss."""
        values = {name: bench.value(number) for number, name in enumerate("abc")}
        bench.check_durable({}, lambda store: store.save_many(values))

    @needs_one_of("durable", "durable_on_close")
    def test_each_of_several_saves_survives(self, bench: Bench) -> None:
        """Of several saves in a row each is durable by itself, whatever the next one does."""
        bench.check_durable(
            {},
            lambda store: store.save("a", bench.value(1)),
            lambda store: store.save("b", bench.value(2)),
            lambda store: store.save("a", bench.value(3)),
        )

    @needs_one_of("durable", "durable_on_close")
    def test_a_save_after_a_reopening_survives(self, bench: Bench) -> None:
        """A save into a store that was closed and opened again survives as the first one did."""
        bench.check_durable(
            {"key": bench.value(1)},
            lambda store: store.save("other", bench.value(2)),
            lambda store: store.save("key", bench.value(3)),
        )
