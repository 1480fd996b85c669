"""Replicated data types that converge: a last-writer-wins map and an observed-remove set.

The law: the state is a function of the *set* of operations applied, whatever their order,
grouping and repetition. Two replicas that have seen the same operations are equal, and so is
one that got another's whole state by `merge`. Nothing here reads a clock or a file; stamps
and tags are made by the caller's `Stamper`.

The price, stated: removals are remembered for ever (a tombstone each), because a late
operation could otherwise bring back what was removed.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

from pytest_statepersist.reference import cbor
from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.errors import DamagedData

__all__ = ["Add", "LastWriterWinsMap", "ObservedRemoveSet", "Remove", "Set", "Stamp", "Stamper"]

Value = str | int | bytes | bool | None
"""What a map holds; None means that the key was removed."""


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    """A moment in the history of all replicas: Lamport's counter, then who."""

    counter: int
    actor: str


@dataclass(frozen=True, slots=True)
class Set:
    """Operation of a map: let ``key`` hold ``value`` (None removes it) as of ``stamp``."""

    key: str
    value: Value
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Add:
    """Operation of a set: ``element`` is in; ``tag`` is this one insertion's own name."""

    element: str
    tag: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Operation of a set: these insertions of ``element``, which the remover saw, are undone."""

    element: str
    tags: frozenset[str]


@checked
class Stamper:
    """Makes stamps later than all it has seen, and tags that nobody else makes."""

    def __init__(self, actor: str) -> None:
        self.actor = actor
        self._counter = 0

    def observe(self, stamp: Stamp) -> None:
        """Note a stamp, so that all later ones of ours win over it."""
        self._counter = max(self._counter, stamp.counter)

    def stamp(self) -> Stamp:
        """Return a stamp that is greater than all observed and all made before."""
        self._counter += 1
        return Stamp(self._counter, self.actor)

    def tag(self) -> str:
        """Return a fresh random tag (64 bits); random, so that a restored copy repeats none."""
        return secrets.token_hex(8)


@checked
@dataclass(slots=True, eq=True)
class LastWriterWinsMap:
    """A map in which, for each key, the value with the greatest stamp counts."""

    _entries: dict[str, tuple[Stamp, Value]] = field(default_factory=dict)

    def apply(self, operation: Set) -> None:
        """Take in one operation; the order and number of times do not matter."""
        self._offer(operation.key, (operation.stamp, operation.value))

    def merge(self, other: LastWriterWinsMap) -> None:
        """Take in everything that ``other`` has taken in."""
        for key, entry in other._entries.items():
            self._offer(key, entry)

    def _offer(self, key: str, entry: tuple[Stamp, Value]) -> None:
        known = self._entries.get(key)
        # Equal stamps with different values come from an actor that lost its memory; the
        # encoded value decides then, so that all replicas still agree.
        if known is None or _rank(entry) > _rank(known):
            self._entries[key] = entry

    def get(self, key: str, default: Value = None) -> Value:
        """Return the value of a key, or ``default`` when it is absent or removed."""
        value = self._entries[key][1] if key in self._entries else None
        return default if value is None else value

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(key for key, (_, value) in self._entries.items() if value is not None))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.get(key) is not None

    def stamps(self) -> Iterator[Stamp]:
        """Yield the stamps of all entries, removed ones included."""
        return (stamp for stamp, _ in self._entries.values())

    def dump(self) -> dict[str, object]:
        """Return the whole state in the JSON-and-bytes data model."""
        return {
            key: [stamp.counter, stamp.actor, value]
            for key, (stamp, value) in sorted(self._entries.items())
        }

    @classmethod
    def load(cls, data: object) -> LastWriterWinsMap:
        """Return the map of `dump`. Raises `DamagedData`."""
        made = cls()
        for key, item in _mapping(data):
            if not isinstance(item, list) or len(item) != 3:
                raise DamagedData(f"map entry {key!r}: not a stamp and a value")
            made._entries[key] = (read_stamp(item[0], item[1]), read_value(item[2]))
        return made


@checked
@dataclass(slots=True, eq=True)
class ObservedRemoveSet:
    """A set in which an insertion that the remover had not seen survives the removal."""

    _tags: dict[str, set[str]] = field(default_factory=dict)
    _removed: set[str] = field(default_factory=set)

    def apply(self, operation: Add | Remove) -> None:
        """Take in one operation; a removal may arrive before what it removes."""
        if isinstance(operation, Add):
            self._add(operation.element, operation.tag)
        else:
            self._removed |= operation.tags
            self._forget(operation.element)

    def merge(self, other: ObservedRemoveSet) -> None:
        """Take in everything that ``other`` has taken in."""
        self._removed |= other._removed
        for element, tags in other._tags.items():
            for tag in tags:
                self._add(element, tag)
        for element in list(self._tags):
            self._forget(element)

    def _add(self, element: str, tag: str) -> None:
        if tag not in self._removed:
            self._tags.setdefault(element, set()).add(tag)

    def _forget(self, element: str) -> None:
        left = self._tags.get(element, set()) - self._removed
        if left:
            self._tags[element] = left
        else:
            self._tags.pop(element, None)

    def removal(self, element: str) -> Remove:
        """Return the operation that removes what is here of ``element`` now."""
        return Remove(element, frozenset(self._tags.get(element, ())))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._tags))

    def __len__(self) -> int:
        return len(self._tags)

    def __contains__(self, element: object) -> bool:
        return element in self._tags

    def dump(self) -> dict[str, object]:
        """Return the whole state in the JSON-and-bytes data model."""
        return {
            "tags": {element: sorted(tags) for element, tags in sorted(self._tags.items())},
            "removed": sorted(self._removed),
        }

    @classmethod
    def load(cls, data: object) -> ObservedRemoveSet:
        """Return the set of `dump`. Raises `DamagedData`."""
        fields = dict(_mapping(data))
        made = cls({}, set(read_tags(fields.get("removed"))))
        for element, tags in _mapping(fields.get("tags")):
            for tag in read_tags(tags):
                made._add(element, tag)
        return made


def read_stamp(counter: object, actor: object) -> Stamp:
    """Return a stamp of untrusted parts. Raises `DamagedData`."""
    if isinstance(counter, bool) or not isinstance(counter, int) or not isinstance(actor, str):
        raise DamagedData(f"not a stamp: {counter!r}, {actor!r}")
    return Stamp(counter, actor)


def read_value(value: object) -> Value:
    """Return an untrusted value of a map. Raises `DamagedData`."""
    if value is None or isinstance(value, str | int | bytes):
        return value
    raise DamagedData(f"a map cannot hold a {type(value).__name__}")


def read_tags(tags: object) -> frozenset[str]:
    """Return untrusted tags. Raises `DamagedData`."""
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise DamagedData("tags are not a list of strings")
    return frozenset(tags)


def _rank(entry: tuple[Stamp, Value]) -> tuple[Stamp, bytes]:
    stamp, value = entry
    return stamp, cbor.encode(value)


def _mapping(data: object) -> list[tuple[str, object]]:
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise DamagedData("the state of a replicated type is not a map")
    return list(data.items())
