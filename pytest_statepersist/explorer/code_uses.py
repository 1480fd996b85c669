"""What the code of a recovery uses that no run of it shows: native code, and inode numbers.

Belongs here: a search of what the user's code refers to. Rules:

1. The kernel tells of files that native code opens. That it asked for a name (`access`, `stat`), or
   for one that is not there, leaves no event: code that may do so counts as having asked for all.
2. Code is searched, not run: what a run on one disk passes by, a run on another may come to. No
   attribute is asked for that could run code.
3. The standard library is not searched: but for those of `_NATIVE`, its functions are observed.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import types
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

__all__ = ["Uses", "uses_of"]

_NATIVE = frozenset(
    {"_cffi_backend", "_ctypes", "_dbm", "_gdbm", "_sqlite3", "apsw", "cffi", "ctypes", "dbm"}
    | {"sqlite3"}
)
_NUMBERS = frozenset({"st_ino", "inode"})
_PLAIN = (str, bytes, int, float, bool, type(None), os.PathLike, types.ModuleType)
_HELD = ("__func__", "__self__", "__wrapped__", "fget", "func", "args")
"""What bound methods, static ones, properties and partial functions stand for."""
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB = (_OWN, "<frozen ", os.path.normpath(sysconfig.get_path("stdlib")) + os.sep)
_MOST = 3_000
_searched: WeakSet[types.FunctionType] = WeakSet()
"""Functions of which all that they refer to was searched, and nothing found."""


@dataclass(slots=True)
class Uses:
    """Whether code, or code that it refers to, uses `ctypes`, `cffi` or SQLite; or inode numbers.

    Code that is too much to be searched counts as doing so.
    """

    native: bool = False
    inode_numbers: bool = False


def uses_of(recover: Any) -> Uses:
    """Return what a recovery uses."""
    search = _Search()
    search.add(recover)
    looks = 0
    while search.pending and not (search.uses.native and search.uses.inode_numbers):
        looks += 1
        if looks > _MOST:
            return Uses(native=True, inode_numbers=True)
        if search.is_native(search.pending.pop()):
            search.uses.native = True
    if search.uses == Uses():
        _searched.update(search.functions)
    return search.uses


class _Search:
    def __init__(self) -> None:
        self.pending: list[Any] = []
        self.functions: list[types.FunctionType] = []
        self.uses = Uses()
        self._seen: dict[int, Any] = {}

    def add(self, value: Any) -> None:
        if not issubclass(type(value), _PLAIN) and id(value) not in self._seen:
            self._seen[id(value)] = value  # kept, so that no other gets its number
            self.pending.append(value)

    def is_native(self, value: Any) -> bool:
        """Say whether a value is native itself, and queue what it refers to."""
        kind = type(value)
        if kind is types.FunctionType:
            return value not in _searched and self._function(value)
        if kind is types.BuiltinFunctionType:
            return _package(value.__module__) in _NATIVE
        if issubclass(kind, type):
            return self._class(value)
        if any(_package(base.__module__) in _NATIVE for base in kind.__mro__):
            return True
        if kind is tuple:
            for each in value:
                self.add(each)
        elif _package(kind.__module__) in sys.stdlib_module_names:
            for name in _HELD:
                self.add(_attribute(value, name))
        elif not _is_of_the_system(kind):
            self.add(kind)
            for each in list((_attribute(value, "__dict__") or {}).values()):
                self.add(each)
        return False

    def _class(self, kind: type) -> bool:
        for base in kind.__mro__:
            if _package(base.__module__) in _NATIVE:
                return True
            if not _is_of_the_system(base):
                for each in list(vars(base).values()):
                    self.add(each)
        return False

    def _function(self, function: types.FunctionType) -> bool:
        code = function.__code__
        if _is_known(code.co_filename):
            return False
        self.functions.append(function)
        self.add(vars(function).get("__wrapped__"))
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # nothing is bound to it yet
                continue
        names = _names(code)
        if not _NUMBERS.isdisjoint(names):
            self.uses.inode_numbers = True
        if not _NATIVE.isdisjoint(names):
            return True
        known = function.__globals__
        for name in names & known.keys():
            value = known[name]
            if not isinstance(value, types.ModuleType):
                self.add(value)
            elif _package(value.__name__) in _NATIVE:
                return True
            else:
                for each in names & vars(value).keys():
                    self.add(vars(value)[each])
        return False


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


def _is_known(file: str) -> bool:
    return file.startswith(_STDLIB) and "-packages" not in file
