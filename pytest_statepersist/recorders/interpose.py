"""Replacing functions of modules for a time, as one unit.

Belongs here: installing a table of replacements and undoing it. Rules:

1. All replacements of an `Interposition` are installed together and undone together.
2. Several interpositions may be installed at once. The one with the higher layer is called first
   and is given, as its original, what the layers below left; undoing in any order is right.
3. Nothing stays half-way: what an exception or a signal stops is undone, or done, to its end.
4. What somebody else put on top, meanwhile or before (a test's monkeypatch), is left alone. It is
   called as ever, and holds our replacement, which passes calls through as soon as its owner is
   not active. A function of `os` or `open` that is not the one of the module in C is such a patch.
"""

from __future__ import annotations

import _io
import posix
import sys
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeAlias

from pytest_statepersist.recorders.rebind import Rebinding, Unreached
from pytest_statepersist.recorders.undoing import surely

__all__ = ["Interposition", "Table"]

Table: TypeAlias = Mapping[tuple[Any, str], Callable[[Any], Any]]
"""(module or class, attribute) to a function that makes the replacement from the original."""

_TWINS = {"os": posix, "io": _io, "builtins": _io}
"""Where the system's functions are found whatever tests do to the names that all use."""

_lock = threading.RLock()
_layers: list[Interposition] = []
"""All that has users in this process, lowest layer first: what is patched is global as well."""
_installed: list[Interposition] = []
"""Those that are in place; the last one may be so only in part."""


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
        self._complete = False

    @property
    def installed(self) -> bool:
        """Whether the replacements are in place."""
        return self._users > 0

    def install(self) -> None:
        """Put the replacements in place, or count one more user."""
        with _lock:
            if self._users > 0:
                self._users += 1
                return
            try:
                if self not in _layers:
                    _layers.insert(sum(each.layer <= self.layer for each in _layers), self)
                self._users = 1
                _settle()
            except BaseException:
                self._users = 0
                surely(_settle)
                raise

    def uninstall(self) -> None:
        """Count one user less; the last one puts the originals back."""
        with _lock:
            if self._users > 0:
                self._users -= 1
                if self._users == 0:
                    surely(_settle)

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
        patched = {place for place in self._table if self._is_patched(*place)}
        fresh: set[int] = set()
        plain = object()
        alone = sys.getrefcount(plain)  # what this variable and this call hold
        for (owner, name), factory in self._table.items():
            original = vars(owner).get(name)
            if original is None or (owner, name) in patched:
                continue
            # One original under two names (os.replace, posix.replace) has one replacement.
            if id(original) not in made:
                replacement = factory(original)
                if sys.getrefcount(replacement) == alone:
                    fresh.add(id(replacement))
                made[id(original)] = (original, replacement)
            replacement = made[id(original)][1]
            self._done.append((owner, name, original, replacement))
            setattr(owner, name, replacement)
        if self._rebind:
            original = replacement = None  # references are counted there
            private = [entry for each in _installed for entry in each._done]
            self._rebinding = Rebinding(list(made.values()), private=private, fresh=fresh)
            self._rebinding.do()
            self.unreached = self._rebinding.unreached
        self._complete = True

    def _is_patched(self, owner: Any, name: str) -> bool:
        """Whether a test has put something of its own where the system's function was."""
        twin = _TWINS.get(getattr(owner, "__name__", ""))
        if (twin, name) not in self._table:
            return False
        system = vars(twin).get(name)
        return system is not None and vars(owner).get(name) is not system

    def _undo(self) -> None:
        """Put the originals back, also after a `_do` or an `_undo` that was stopped."""
        self._complete = False
        if self._rebinding is not None:
            self._rebinding.undo()
            self._rebinding = None
        while self._done:
            owner, name, original, replacement = self._done[-1]
            if vars(owner).get(name) is replacement:
                setattr(owner, name, original)
            self._done.pop()


def _settle() -> None:
    """Make what is in place what is in use, in the order of layers; to be called with the lock.

    It begins where both differ first, so whatever was stopped half-way is put right by the next
    call, whoever makes it.
    """
    _layers[:] = [each for each in _layers if each._users > 0]
    right = 0
    for here, wanted in zip(_installed, _layers, strict=False):
        if here is not wanted or not here._complete:
            break
        right += 1
    while len(_installed) > right:
        _installed[-1]._undo()
        _installed.pop()
    for each in _layers[right:]:
        _installed.append(each)
        each._do()
