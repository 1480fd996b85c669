"""Replacing functions of modules for a time, as one unit.

Belongs here: installing a table of replacements and undoing it. Rules:

1. All replacements of an `Interposition` are installed together and undone together.
2. Several interpositions may be installed at once. The one with the higher layer is called first
   and is given, as its original, what the layers below left; undoing in any order is right.
3. What somebody else put on top meanwhile (a test's monkeypatch) is left alone: it holds our
   replacement, which passes calls through as soon as its owner is not active.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeAlias

from pytest_statepersist.recorders.rebind import Rebinding, Unreached

__all__ = ["Interposition", "Table"]

Table: TypeAlias = Mapping[tuple[Any, str], Callable[[Any], Any]]
"""(module or class, attribute) to a function that makes the replacement from the original."""

_lock = threading.RLock()
_installed: list[Interposition] = []
"""All that is installed in this process, lowest layer first: what is patched is global as well."""


class Interposition:
    """A table of replacements that is installed while at least one user needs it.

    An attribute that does not exist is passed over. With ``rebind`` the names that were bound to
    the originals before (``from os import replace``, default arguments) are rewritten as well; what
    could not be is in ``unreached``. ``layer`` orders interpositions: 0 is next to the system.
    """

    def __init__(self, table: Table, *, layer: int = 1, rebind: bool = False) -> None:
        self.layer = layer
        self.unreached: list[Unreached] = []
        self._table = table
        self._rebind = rebind
        self._users = 0
        self._done: list[tuple[Any, str, Any, Any]] = []
        self._rebinding: Rebinding | None = None

    @property
    def installed(self) -> bool:
        """Whether the replacements are in place."""
        return self._users > 0

    def install(self) -> None:
        """Put the replacements in place, or count one more user."""
        with _lock:
            if self._users == 0:
                position = sum(other.layer <= self.layer for other in _installed)
                above = _installed[position:]
                for other in reversed(above):
                    other._undo()
                try:
                    self._do()
                    _installed.insert(position, self)
                finally:
                    for other in above:
                        other._do()
            self._users += 1

    def uninstall(self) -> None:
        """Count one user less; the last one puts the originals back."""
        with _lock:
            if self._users == 0:
                return
            self._users -= 1
            if self._users == 0:
                above = _installed[_installed.index(self) + 1 :]
                for other in reversed(above):
                    other._undo()
                self._undo()
                _installed.remove(self)
                for other in above:
                    other._do()

    def __enter__(self) -> Interposition:
        self.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.uninstall()

    def _do(self) -> None:
        made: dict[int, tuple[Any, Any]] = {}
        try:
            for (owner, name), factory in self._table.items():
                original = vars(owner).get(name)
                if original is None:
                    continue
                # One original under two names (os.replace, posix.replace) has one replacement.
                if id(original) not in made:
                    made[id(original)] = (original, factory(original))
                replacement = made[id(original)][1]
                setattr(owner, name, replacement)
                self._done.append((owner, name, original, replacement))
            if self._rebind:
                del original, replacement  # references are counted there
                private = [entry for each in (*_installed, self) for entry in each._done]
                self._rebinding = Rebinding(list(made.values()), private=private)
                self.unreached = self._rebinding.unreached
        except BaseException:
            self._undo()
            raise

    def _undo(self) -> None:
        if self._rebinding is not None:
            self._rebinding.undo()
            self._rebinding = None
        while self._done:
            owner, name, original, replacement = self._done.pop()
            if vars(owner).get(name) is replacement:
                setattr(owner, name, original)
