"""What holds a function or a class in every process, so that no search of the heap is needed.

Belongs here: parts of functions and classes that hold them by their nature; functions, instances,
classes and tables of modules that an earlier search found; and functions that variables of C hold.
Searching the heap takes longer than all else that a small check does; a search is left out only
where each reference to an object is accounted for without it.
"""

from __future__ import annotations

import gc
import sys
import types
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

__all__ = [
    "functions_with",
    "hidden",
    "note",
    "note_hidden",
    "note_owners",
    "owners",
    "parts",
    "tables",
]

_DESCRIPTORS = (
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    types.BuiltinFunctionType,
)

_OWN = __name__.partition(".")[0] + "."
_SUBJECT = _OWN + "reference"

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE; a type without it is a variable of C, and holds itself

_CONTAINERS = (dict, list, tuple, set, type, types.ModuleType, types.FrameType, types.CellType)

_owners: dict[int, weakref.ref[Any]] = {}
_tables: set[tuple[str, str]] = set()
"""Module and name."""
_hidden: dict[int, int] = {}
"""By the id of a function, which is never freed: to hold it here would be one reference more."""


def parts(item: Any) -> Iterator[Any]:
    """Yield what belongs to a function or a class, and may hold it or what it stands for.

    The closure of a replacement holds the original. The methods of a class, its subclasses and its
    module hold the class, and all of them need the real one.
    """
    if isinstance(item, types.FunctionType):
        yield from item.__closure__ or ()
        yield vars(item)
    elif isinstance(item, type):
        yield sys.modules.get(item.__module__)
        waiting = [item]
        seen: set[int] = set()
        while waiting:
            each = waiting.pop()
            if id(each) not in seen:
                seen.add(id(each))
                waiting.extend(type.__subclasses__(each))
                yield from (each, each.__bases__, each.__mro__)
                yield from (part for part in vars(each).values() if isinstance(part, _DESCRIPTORS))
                yield from _cells(each)
                if type(each) is not type:
                    yield from _cells(type(each))


def _cells(of: type) -> Iterator[types.CellType]:
    """Yield what methods of a replacement share with it: the real class, and the class itself."""
    for each in vars(of).values():
        function = getattr(each, "__func__", each)
        if type(function) is types.FunctionType and _is_own(function.__module__):
            yield from function.__closure__ or ()


def _is_own(module: str) -> bool:
    return module.startswith(_OWN) and not module.startswith(_SUBJECT)


def owners() -> list[Any]:
    """Return the functions, instances and classes by which a search found something before."""
    return [owner for owner in [each() for each in list(_owners.values())] if owner is not None]


def tables() -> list[dict[Any, Any]]:
    """Return the dicts in modules in which a search found something before."""
    found = (vars(sys.modules[m]).get(name) for m, name in list(_tables) if m in sys.modules)
    return [each for each in found if type(each) is dict]


def note(owner: Any) -> None:
    """Remember a function, an instance or a class that holds something; never for its life."""
    key = id(owner)
    with suppress(TypeError):  # of a kind that cannot be referred to weakly
        _owners[key] = weakref.ref(owner, lambda _: _owners.pop(key, None) and None)


def note_owners(found: list[dict[Any, Any]]) -> None:
    """Remember whose keyword-only default arguments, attributes or variables these are."""
    wanted = {id(each) for each in found}
    cells: list[Any] = []
    namespaces: list[Any] = []
    for holder in gc.get_referrers(*found) if found else ():
        if isinstance(holder, types.CellType):
            cells.append(holder)
        elif type(holder) is dict and "__module__" in holder:
            namespaces.append(holder)
        elif type(holder) is dict and "__spec__" in holder:
            _tables.update(
                (str(holder.get("__name__")), key)
                for key, value in list(holder.items())
                if id(value) in wanted
            )
        elif isinstance(holder, types.FunctionType):
            if not wanted.isdisjoint((id(holder.__kwdefaults__), id(vars(holder)))):
                note(holder)
        elif not isinstance(holder, _CONTAINERS):
            note(holder)
    for holder in gc.get_referrers(*namespaces) if namespaces else ():
        if isinstance(holder, type):
            note(holder)
    for function in functions_with(cells):
        note(function)


def functions_with(cells: list[Any]) -> list[types.FunctionType]:
    """Search for the functions that have one of these cells in their closure."""
    wanted = {id(cell) for cell in cells}
    closures = [each for each in gc.get_referrers(*cells) if type(each) is tuple] if cells else []
    return [
        each
        for each in (gc.get_referrers(*closures) if closures else ())
        if isinstance(each, types.FunctionType)
        and not wanted.isdisjoint(map(id, each.__closure__ or ()))
    ]


def hidden(item: Any) -> int:
    """Return how many references are held by C itself, where no search sees them."""
    if isinstance(item, type):
        return not item.__flags__ & _HEAP_TYPE
    return _hidden.get(id(item), 0)


def note_hidden(item: Any, count: int) -> None:
    """Remember what a search left over, of `open` only: the interpreter keeps it for ever."""
    if isinstance(item, types.BuiltinFunctionType) and item.__module__ in ("io", "_io"):
        _hidden[id(item)] = count
