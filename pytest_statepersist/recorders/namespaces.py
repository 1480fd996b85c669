"""Modules that hold a function or a class by name.

Belongs here: looking through the namespaces of modules, and remembering where something was found.
A process has thousands of modules with a hundred thousand names, and the same few dozen of them
hold what is replaced each time. So all are looked through for what was never asked for before;
then only those that held something once, and those that are new. A module that began to hold
something meanwhile is not among these: whoever asks must see from the count of references that
something is missing, and ask again for all.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable
from typing import Any

__all__ = ["Namespace", "namespaces_with"]

Namespace = tuple[dict[str, Any], str]
"""What a module holds by name, and the name of the module."""

_holding: set[str] = set()
"""Modules that held something once, by name."""
_looked_through: dict[str, int] = {}
"""Modules that were looked through, and their ids."""
_asked: set[int] = set()
"""The ids of what all modules were looked through for; to hold it would be a reference more."""


def namespaces_with(
    wanted: set[int], roots: Iterable[int], *, everywhere: bool = False
) -> tuple[list[Namespace], bool]:
    """Return the namespaces with one of the objects of these ids, and whether all were looked at.

    ``roots`` are the ids of what the objects stand for, of the functions before any replacement.
    """
    roots = set(roots)
    everywhere = everywhere or not roots <= _asked
    names: Iterable[str] = list(sys.modules)
    if not everywhere:
        modules = sys.modules
        names = [
            name
            for name in names
            if name in _holding or _looked_through.get(name) != id(modules.get(name))
        ]
    found: dict[int, Namespace] = {}
    for name in names:
        module = sys.modules.get(name)
        if isinstance(module, types.ModuleType):
            _looked_through[name] = id(module)
            namespace = vars(module)
            # os.path and posixpath are one module.
            if not wanted.isdisjoint(map(id, namespace.values())):
                _holding.add(name)
                found.setdefault(id(namespace), (namespace, name))
    if everywhere:  # at the end: it may have been stopped before
        _asked.update(roots)
    return list(found.values()), everywhere
