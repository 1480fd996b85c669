"""What the code of a user uses that no run of it shows: native code, and inode numbers.

Belongs here: a search of what the user's code refers to. Rules:

1. The kernel tells of files that native code opens. That it asked for a name (`access`, `stat`), or
   for one that is not there, leaves no event: code that may do so counts as having asked for all.
2. Code is searched, not run: what a run on one disk passes by, a run on another may come to. No
   attribute is asked for that could run code.
3. The standard library is not searched: but for those of `_NATIVE`, its functions are observed.
"""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
import types
from collections import deque
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

__all__ = ["Uses", "uses_of"]

_CALLS = frozenset({"_cffi_backend", "_ctypes", "cffi", "ctypes"})
_NATIVE = _CALLS | {"_dbm", "_gdbm", "_sqlite3", "apsw", "dbm", "sqlite3"}
_NUMBERS = frozenset({"st_ino", "inode"})
_PLAIN = (str, bytes, int, float, bool, type(None), os.PathLike, types.ModuleType)
_HELD = ("__func__", "__self__", "__wrapped__", "fget", "func", "args")
"""What bound methods, static ones, properties and partial functions stand for."""
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB = ("<frozen ", os.path.normpath(sysconfig.get_path("stdlib")) + os.sep)
_TESTING = ("_pytest/", "pytest/", "pluggy/", "hypothesis/")
_MOST = 3_000
_searched: WeakSet[types.FunctionType] = WeakSet()
"""Functions of which all that they refer to was searched, and nothing found."""


@dataclass(slots=True)
class Uses:
    """What code, or code that it refers to, uses.

    ``native`` are SQLite, `ctypes` and `cffi`, ``calls`` the latter two. Code that is too much to
    be searched counts as using native code and inode numbers.
    """

    native: bool = False
    calls: bool = False
    inode_numbers: bool = False


def uses_of(function: Any) -> Uses:
    """Return what a function of the user uses."""
    search = _Search()
    uses = search.uses
    search.add(function)
    looks = 0
    while search.pending and uses != _ALL:
        looks += 1
        if looks > _MOST:
            return Uses(native=True, calls=uses.calls, inode_numbers=True)
        search.look_at(search.pending.popleft())
    if uses == Uses():
        _searched.update(search.functions)
    return uses


_ALL = Uses(native=True, calls=True, inode_numbers=True)


class _Search:
    def __init__(self) -> None:
        self.pending: deque[Any] = deque()
        self.functions: list[types.FunctionType] = []
        self.uses = Uses()
        self._seen: dict[int, Any] = {}

    def add(self, value: Any) -> None:
        if not issubclass(type(value), _PLAIN) and id(value) not in self._seen:
            self._seen[id(value)] = value  # kept, so that no other gets its number
            self.pending.append(value)

    def look_at(self, value: Any) -> None:
        """Note what a value is, and queue what it refers to."""
        kind = type(value)
        if kind is types.FunctionType:
            if value not in _searched:
                self._function(value)
        elif kind is types.BuiltinFunctionType:
            self._note(_package(value.__module__))
        elif issubclass(kind, type):
            self._class(value)
        elif self._note(*(_package(base.__module__) for base in kind.__mro__)):
            pass
        elif kind is tuple:
            for each in value:
                self.add(each)
        elif _package(kind.__module__) in sys.stdlib_module_names:
            for name in _HELD:
                self.add(_attribute(value, name))
        elif not _is_of_the_system(kind):
            self.add(kind)
            for each in list((_attribute(value, "__dict__") or {}).values()):
                self.add(each)

    def _note(self, *names: str) -> bool:
        """Say whether one of the names of packages and attributes is of native code."""
        native = not _NATIVE.isdisjoint(names)
        self.uses.native = self.uses.native or native
        self.uses.calls = self.uses.calls or not _CALLS.isdisjoint(names)
        return native

    def _class(self, kind: type) -> None:
        for base in kind.__mro__:
            if not self._note(_package(base.__module__)) and not _is_of_the_system(base):
                for each in list(vars(base).values()):
                    self.add(each)

    def _function(self, function: types.FunctionType) -> None:
        self.functions.append(function)
        self.add(vars(function).get("__wrapped__"))
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # nothing is bound to it yet
                continue
        code = function.__code__
        if _is_known(code.co_filename):
            return
        names = _names(code)
        self._note(*names)
        if not _NUMBERS.isdisjoint(names):
            self.uses.inode_numbers = True
        known = function.__globals__
        for name in names & known.keys():
            value = known[name]
            if not isinstance(value, types.ModuleType):
                self.add(value)
            elif not self._note(_package(value.__name__)):
                for each in names & vars(value).keys():
                    self.add(vars(value)[each])


def _names(code: types.CodeType) -> set[str]:
    """Return the names that a code object uses, with those of the functions inside it."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


def _package(module: Any) -> str:
    return module.partition(".")[0] if type(module) is str else ""


def _attribute(value: Any, name: str) -> Any:
    """Return an attribute without running code of the value's own; ``None`` for none."""
    try:
        return object.__getattribute__(value, name)
    except Exception:
        return None


def _is_of_the_system(kind: type) -> bool:
    """Say whether a class is of C, of the standard library or of this package."""
    module = sys.modules.get(kind.__module__)
    file = vars(module).get("__file__") if module is not None else None
    return module is None or type(file) is not str or _is_known(file)


@functools.cache
def _is_known(file: str) -> bool:
    """Say whether a file is of the standard library, of this package, or of what runs tests."""
    if file.startswith(_OWN):
        return True
    _, installed, package = file.replace(os.sep, "/").partition("-packages/")
    return package.startswith(_TESTING) if installed else file.startswith(_STDLIB)
