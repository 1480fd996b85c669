"""Modules that hold a function or a class by name.

Belongs here: looking through the namespaces of all modules. Each recording looks through all of
them: one that began to hold something since the last time shows in no other way for certain.
"""

from __future__ import annotations

import sys
import types
from typing import Any

__all__ = ["Namespace", "namespaces_with"]

Namespace = tuple[dict[str, Any], str]
"""What a module holds by name, and the name of the module."""


def namespaces_with(wanted: set[int]) -> list[Namespace]:
    """Return the namespaces that hold one of the objects of these ids by name."""
    found: dict[int, Namespace] = {}
    for name, module in list(sys.modules.items()):
        if isinstance(module, types.ModuleType):
            namespace = vars(module)
            # os.path and posixpath are one module.
            if not wanted.isdisjoint(map(id, namespace.values())):
                found.setdefault(id(namespace), (namespace, name))
    return list(found.values())
