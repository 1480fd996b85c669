"""What a conformance test needs of a store, as a decorator; read before the test runs.

Belongs here: the vocabulary between tests and the harness. A test whose need is missing is skipped
with the reason, and shows as "not covered"; it never passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["choice_of", "needs", "needs_of", "needs_one_of"]

F = TypeVar("F", bound=Callable[..., Any])


def needs(*capabilities: str) -> Callable[[F], F]:
    """Say that a test makes sense only for stores with all of these capabilities."""

    def mark(function: F) -> F:
        function.__conformance_needs__ = (  # type: ignore[attr-defined]
            *getattr(function, "__conformance_needs__", ()),
            *capabilities,
        )
        return function

    return mark


def needs_one_of(*capabilities: str) -> Callable[[F], F]:
    """Say that a test is of each of these that is declared, and makes sense with any of them."""

    def mark(function: F) -> F:
        function.__conformance_choice__ = capabilities  # type: ignore[attr-defined]
        return function

    return mark


def choice_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return what `needs_one_of` said of a test."""
    return tuple(getattr(function, "__conformance_choice__", ()))


def needs_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return what `needs` said of a test."""
    return tuple(getattr(function, "__conformance_needs__", ()))
