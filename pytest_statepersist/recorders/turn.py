"""What is held across a real call and its record, so that the order of records is true.

Belongs here: `Turn`. Nearly always one thread makes all calls of a recording, and to take and give
back a lock of the system costs it more than most records. So the thread that begins the recording
owns the turn and only says when it is inside, until another thread comes. Rules:

1. The owner's quick way is written out by who goes it, since a function would cost more ::

       if get_ident() == turn.owner:
           outer = turn.inside
           turn.inside = True
           try:
               if turn.owner is not None:
                   ...  # the call and its record
           finally:
               turn.inside = outer

   It says that it is inside, and then looks whether it is still the owner; who takes that away
   looks afterwards whether the owner is inside. In whatever order the interpreter runs these, one
   of both sees the other.
2. All others hold the lock, and so does the former owner. It is got by `Turn.lock`, each time.
3. Both ways may be nested in each other: signal handlers and finalisers come at any moment.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

__all__ = ["Turn"]

_get_ident, _sleep = threading.get_ident, time.sleep
_WAIT = 0.00005  # seconds; a call with its record takes some microseconds


def _in_one_order() -> bool:
    """Say whether all threads see what each did in one order: the interpreter has its lock."""
    enabled = getattr(sys, "_is_gil_enabled", None)
    return enabled is None or bool(enabled())


class Turn:
    """Gives the turn to one thread at a time; see the rules of the module.

    The thread that makes it is the owner.
    """

    __slots__ = ("_first", "_lock", "inside", "owner")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._first = _get_ident()
        self.owner: int | None = self._first if _in_one_order() else None
        """The thread that may go the quick way."""
        self.inside = False
        """Whether it is on it."""

    @property
    def lock(self) -> Any:
        """The lock, to be held by who does not go the quick way; nobody is on that any more.

        It is reentrant. The owner gets it while it is inside itself.
        """
        if _get_ident() != self._first:
            self.owner = None
            while self.inside:
                _sleep(_WAIT)
        return self._lock

    def end(self) -> None:
        """Let nobody go the quick way any more."""
        self.owner = None
