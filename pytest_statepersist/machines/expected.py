"""What may be on disk: the in-memory model of a store whose process can die.

Belongs here: pure values. Rules:

1. A store that is durable on return is in one of a few *worlds*: one when nothing is under way, two
   while a change runs that is whole or absent.
2. A store that is not durable on return may show for each key any value that it had since the last
   moment at which all was durable; each by itself, and always a whole one.
3. What was once read after a crash stays: `settled` leaves that world only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pytest_statepersist.machines.base import Content

__all__ = ["Changes", "Expected", "Fading", "Worlds", "changed"]

Changes = Mapping[str, str | None]
"""Keys and their new values; ``None`` for a key that goes."""
_SHOWN = 3


class Expected(Protocol):
    """What may be found after a crash."""

    def allows(self, found: Content) -> bool:
        """Say whether a crash may leave this content."""

    def changed(self, changes: Changes) -> Expected:
        """Return what is expected once a change was acknowledged."""

    def under_way(self, changes: Changes) -> Expected:
        """Return what is expected while a change runs."""

    def apart(self, changes: Changes) -> Expected:
        """Return what is expected while changes run of which each is whole or absent."""

    def settled(self, found: Content) -> Expected:
        """Return what is expected once this content was read, or made durable."""

    def __str__(self) -> str:
        """Return it in words."""


def changed(content: Content, changes: Changes) -> Content:
    """Return a content with changes made."""
    merged: dict[str, str | None] = {**content, **changes}
    return {key: value for key, value in merged.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Worlds:
    """One of these contents, exactly: for stores that are durable on return."""

    contents: tuple[Content, ...] = ({},)

    def allows(self, found: Content) -> bool:
        """Say whether the content is one of the worlds."""
        return found in self.contents

    def changed(self, changes: Changes) -> Worlds:
        """Every world changes."""
        return Worlds(_distinct([changed(content, changes) for content in self.contents]))

    def under_way(self, changes: Changes) -> Worlds:
        """Each world as it was, or changed as a whole."""
        return Worlds(_distinct([*self.contents, *self.changed(changes).contents]))

    def apart(self, changes: Changes) -> Worlds:
        """Each world with any of the changes."""
        worlds = self
        for key, value in changes.items():
            worlds = worlds.under_way({key: value})
        return worlds

    def settled(self, found: Content) -> Worlds:
        """This world, and no other."""
        return Worlds((found,))

    def __str__(self) -> str:
        shown = " or ".join(_words(content) for content in self.contents[:_SHOWN])
        more = len(self.contents) - _SHOWN
        return f"{shown} (or one of {more} more)" if more > 0 else shown


@dataclass(frozen=True, slots=True)
class Fading:
    """For each key one of these values, ``None`` for absent: for stores that sync later."""

    options: Mapping[str, frozenset[str | None]]

    def allows(self, found: Content) -> bool:
        """Say whether each key has one of its values."""
        keys = {*self.options, *found}
        return all(found.get(key) in self.options.get(key, _ABSENT) for key in keys)

    def changed(self, changes: Changes) -> Fading:
        """Every key keeps its older values too."""
        merged = dict(self.options)
        for key, value in changes.items():
            merged[key] = merged.get(key, _ABSENT) | {value}
        return Fading(merged)

    def under_way(self, changes: Changes) -> Fading:
        """Nothing is promised sooner or later."""
        return self.changed(changes)

    def apart(self, changes: Changes) -> Fading:
        """Nothing is promised together."""
        return self.changed(changes)

    def settled(self, found: Content) -> Fading:
        """These values, and no other."""
        return Fading({key: frozenset({value}) for key, value in found.items()})

    def __str__(self) -> str:
        lines = []
        for key, values in sorted(self.options.items()):
            words = sorted("absent" if v is None else _short(v) for v in values)
            lines.append(f"{key!r}: {' or '.join(words)}")
        return "; ".join(lines) or "nothing"


_ABSENT: frozenset[str | None] = frozenset({None})


def _distinct(contents: list[Content]) -> tuple[Content, ...]:
    found: list[Content] = []
    for content in contents:
        if content not in found:
            found.append(content)
    return tuple(found)


def _words(content: Content) -> str:
    if not content:
        return "an empty store"
    return "{" + ", ".join(f"{key!r}: {_short(value)}" for key, value in content.items()) + "}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:40]}… ({len(text)} letters)"
