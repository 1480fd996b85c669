"""Replacing methods of types that are written in C, as one unit, for a time.

Belongs here: `Methods`, for what `setattr` refuses: `acquire` of a lock, `get` of a simple queue.
Rules:

1. Only CPython keeps a type's methods in a dict that can be found; elsewhere nothing is replaced,
   and `Methods.reached` says so.
2. The interpreter is told of each change, since it keeps what it has looked up.
3. A method that is bound already (`take = lock.acquire`) stays what it was.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Methods"]

_CPYTHON = sys.implementation.name == "cpython"
_lock = threading.RLock()


class Methods:
    """Methods that are replaced while at least one user needs it.

    ``table`` gives for (type, name) a function that makes the replacement from the original.
    """

    def __init__(self, table: Mapping[tuple[type, str], Callable[[Any], Any]]) -> None:
        self._table = table
        self._users = 0
        self._done: list[tuple[type, str, Any]] = []

    @property
    def reached(self) -> bool:
        """Whether this interpreter lets methods of types in C be replaced."""
        return _CPYTHON

    def __enter__(self) -> Methods:
        with _lock:
            self._users += 1
            if self._users == 1 and _CPYTHON:
                for (kind, name), factory in self._table.items():
                    original = vars(kind).get(name)
                    if original is not None:
                        self._done.append((kind, name, original))
                        _put(kind, name, factory(original))
        return self

    def __exit__(self, *_: object) -> None:
        with _lock:
            self._users -= 1
            while not self._users and self._done:
                _put(*self._done[-1])
                self._done.pop()


def _put(kind: type, name: str, method: Any) -> None:
    (methods,) = (each for each in gc.get_referents(vars(kind)) if type(each) is dict)
    methods[name] = method
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))
