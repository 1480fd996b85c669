"""Undoing that is not stopped half-way.

Belongs here: `surely`, for whoever replaces something of the process for a time.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["surely"]

_ATTEMPTS = 4


def surely(*steps: Callable[[], object]) -> None:
    """Do every step to its end, whatever is raised in one; raise the first of that afterwards.

    A step that was stopped is done again, a few times: what stops it is mostly the handler of a
    signal (Ctrl-C, a time limit). So each must be one that can be repeated.
    """
    first: BaseException | None = None
    for step in steps:
        for _ in range(_ATTEMPTS):
            try:
                step()
                break
            except BaseException as error:
                first = first or error
    if first is not None:
        raise first
