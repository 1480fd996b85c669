"""Round trip: what was saved is loaded equal, and nothing else is.

Belongs here: promises that need no crash, no error and no second opener to be broken.
"""

from __future__ import annotations

import math

from pytest_statepersist.conformance.bench import Bench
from pytest_statepersist.conformance.needs import needs

__all__ = ["RoundTripConformance"]


class RoundTripConformance:
    """Saved values come back equal, whatever they are called and whatever they hold."""

    def test_a_saved_value_is_loaded_equal(self, bench: Bench) -> None:
        """A value that was saved is loaded equal by the same opener."""
        bench.check_round_trip({"name": "Ada", "year": 1815})

    def test_a_saved_value_survives_a_reopening(self, bench: Bench) -> None:
        """A value that was saved is loaded equal after the store was closed and opened again."""
        bench.check_reopened({"key-1": bench.value(1), "key-2": bench.value(2)})

    def test_empty_values(self, bench: Bench) -> None:
        """Empty documents, lists and texts come back as they were, not as something missing."""
        empty: tuple[object, ...] = ([], "", {}, None)
        for number, value in enumerate(({}, *({"a": each} for each in empty))):
            bench.check_round_trip(value, key=f"empty-{number}")

    def test_truth_values_and_numbers_keep_their_type(self, bench: Bench) -> None:
        """True stays True, 1 stays 1 and 1.5 stays 1.5: no type turns into a look-alike."""
        value = {"t": True, "f": False, "one": 1, "zero": 0, "half": 1.5, "negative": -7}
        loaded = bench.check_round_trip(value)
        assert [type(loaded[name]) for name in value] == [type(each) for each in value.values()]

    def test_numbers_at_the_edges(self, bench: Bench) -> None:
        """Integers of 53 bits and the extremes of floating point come back exactly."""
        value = {"big": 2**53 - 1, "small": -(2**53), "tiny": 5e-324, "third": 1 / 3}
        value["huge"] = 1.7976931348623157e308
        loaded = bench.check_round_trip(value)
        assert all(math.copysign(1, loaded[n]) == math.copysign(1, value[n]) for n in value)

    def test_text_of_every_plane(self, bench: Bench) -> None:
        """Text with accents, emoji, control characters and line ends comes back unchanged."""
        bench.check_round_trip(
            {"text": "é e\u0301 \U0001f600 \u202e \u0001 \x7f \r\n \n\r\t \u2028"}
        )

    def test_text_that_looks_like_something_else(self, bench: Bench) -> None:
        """Texts such as "null", "1.0" or a quote stay texts."""
        bench.check_round_trip({n: n for n in ("null", "true", "1.0", "'", '"', "\\", "{}", "%s")})

    def test_deep_nesting(self, bench: Bench) -> None:
        """A document nested 50 levels deep comes back equal."""
        value: object = "bottom"
        for level in range(25):
            value = {"level": level, "inside": [value]}
        bench.check_round_trip({"top": value})

    def test_a_value_of_more_than_a_mebibyte(self, bench: Bench) -> None:
        """A value of 1.5 MiB comes back whole."""
        bench.check_round_trip({"text": bench.noise(3 << 19)})

    def test_many_fields(self, bench: Bench) -> None:
        """A document of 2,000 fields comes back equal."""
        bench.check_round_trip({f"field-{number}": number for number in range(2000)})

    def test_an_overwrite_replaces(self, bench: Bench) -> None:
        """A second save under a key replaces the first one completely."""
        with bench.opened() as store:
            store.save("key", {"old": 1, "both": 1})
            store.save("key", {"new": 2, "both": 2})
            assert store.load("key") == {"new": 2, "both": 2}
        assert bench.content() == {"key": {"new": 2, "both": 2}}

    def test_a_shorter_value_leaves_nothing_of_a_longer_one(self, bench: Bench) -> None:
        """After a long value a short one comes back without a tail of the old one."""
        with bench.opened() as store:
            store.save("key", {"text": bench.noise(20_000)})
            store.save("key", {"text": "short"})
        assert bench.content() == {"key": {"text": "short"}}

    @needs("delete")
    def test_a_deleted_key_is_gone(self, bench: Bench) -> None:
        """A deleted value is neither loaded nor listed, also after a reopening."""
        with bench.opened() as store:
            store.save("gone", bench.value(1))
            store.save("kept", bench.value(2))
            store.delete("gone")
            bench.check_missing(store, "gone")
        assert bench.content() == {"kept": bench.value(2)}

    @needs("delete")
    def test_a_deleted_key_can_be_saved_again(self, bench: Bench) -> None:
        """A key that was deleted takes a new value and gives that one."""
        with bench.opened() as store:
            store.save("key", bench.value(1))
            store.delete("key")
            store.save("key", bench.value(2))
        assert bench.content() == {"key": bench.value(2)}

    def test_what_was_never_saved_is_told(self, bench: Bench) -> None:
        """Loading a key that was never saved raises, and gives no default for the truth."""
        with bench.opened() as store:
            bench.check_missing(store, "never")
            store.save("other", bench.value(1))
            bench.check_missing(store, "never")

    @needs("list")
    def test_the_list_is_exactly_what_was_saved(self, bench: Bench) -> None:
        """The keys listed are exactly those saved, each once."""
        with bench.opened() as store:
            assert store.keys() == ()
            for number in (3, 1, 2, 1):
                store.save(f"key-{number}", bench.value(number))
            assert sorted(store.keys()) == ["key-1", "key-2", "key-3"]

    def test_a_new_store_is_empty(self, bench: Bench) -> None:
        """A store opened in an empty directory holds nothing and can be closed at once."""
        for _ in range(2):
            assert bench.content(known={"key": {}}) == {}

    def test_keys_with_special_characters(self, bench: Bench) -> None:
        """An accepted key gives its own value back; a refused one changes nothing."""
        bench.check_keys(
            ("with space", "dot.dot", "-dash", "ünïcödé", "a%2fb", "tilde~", "#1", "a=b")
        )

    def test_keys_that_look_like_paths(self, bench: Bench) -> None:
        """Keys such as "../x", "a/b" or "/abs" reach nothing outside the store."""
        outside = bench.surroundings()
        bench.check_keys(("../outside", "a/b", "/absolute", "..", ".", "a\\b", "con", "nul.txt"))
        assert bench.surroundings() == outside

    def test_keys_that_differ_in_case(self, bench: Bench) -> None:
        """Two keys that differ only in case are two keys."""
        bench.check_keys(("Key", "key", "KEY"))

    def test_long_keys(self, bench: Bench) -> None:
        """A key of up to 255 letters is stored or refused, never cut."""
        bench.check_keys(tuple("k" * length for length in (100, 199, 200, 201, 240, 250, 255)))

    def test_empty_key(self, bench: Bench) -> None:
        """The empty key is stored or refused, and hides no other key."""
        bench.check_keys(("", "other"))

    def test_what_was_loaded_is_a_copy(self, bench: Bench) -> None:
        """Changing a loaded value changes nothing in the store."""
        with bench.opened() as store:
            store.save("key", {"list": [1]})
            store.load("key")["list"].append(2)
            assert store.load("key") == {"list": [1]}
        assert bench.content() == {"key": {"list": [1]}}

    def test_what_was_saved_is_taken_as_it_was(self, bench: Bench) -> None:
        """Changing a value after it was saved changes nothing in the store."""
        value = {"list": [1]}
        with bench.opened() as store:
            store.save("key", value)
            value["list"].append(2)
            assert store.load("key") == {"list": [1]}
        assert bench.content() == {"key": {"list": [1]}}

    def test_two_directories_are_two_stores(self, bench: Bench) -> None:
        """Two stores in two directories know nothing of each other."""
        with bench.opened() as one, bench.opened("other") as other:
            one.save("key", bench.value(1))
            bench.check_missing(other, "key")
            other.save("key", bench.value(2))
            assert one.load("key") == bench.value(1)

    def test_many_keys(self, bench: Bench) -> None:
        """One hundred values come back, each under its own key."""
        bench.check_reopened({f"key-{number}": bench.value(number) for number in range(100)})
