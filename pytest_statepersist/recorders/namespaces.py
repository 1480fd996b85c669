"""Modules that hold a function or a class by name.

Belongs here: looking through the namespaces of modules. A process has thousands of them with a
hundred thousand names, and each recording asks twice. So what a namespace held is remembered for as
long as it is unchanged. That is exact, not a guess:

1. An unchanged namespace still holds what it held, and nothing that was made since.
2. What was not asked for when it was looked through may be in it: then all are looked through
   again. ``fresh`` objects, which nothing but the caller holds, are in none.
3. Without the interpreter's word that a namespace is unchanged, each is looked through each time.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable
from typing import Any, NamedTuple

from pytest_statepersist.recorders.dict_versions import kept, version_of

__all__ = ["Namespace", "namespaces_with"]

Namespace = tuple[dict[str, Any], str]
"""What a module holds by name, and the name of the module."""


class _Looked(NamedTuple):
    """What a namespace held when its number was ``version``; ``now`` shows the number of today."""

    namespace: int
    version: int
    now: Any
    held: frozenset[int]


_looked: dict[str, _Looked] = {}
"""By the name of the module."""
_asked: set[int] = set()
"""Ids of all that each of `_looked` was asked for; to hold the objects would be a reference."""


def namespaces_with(
    wanted: set[int], *, fresh: Iterable[int] = (), others: Iterable[int] = ()
) -> list[Namespace]:
    """Return the namespaces that hold one of the objects of these ids by name.

    ``fresh`` are the ids of those that were made just now and are in no namespace yet, ``others``
    what somebody else will ask for later who named it as fresh before.
    """
    exact = kept()
    older = wanted.difference(fresh)
    if not older <= _asked:
        _looked.clear()
        _asked.update(older)
    interest = _asked.union(wanted, others)
    found: dict[int, Namespace] = {}
    for name, module in list(sys.modules.items()):
        if isinstance(module, types.ModuleType):
            namespace = vars(module)
            key = id(namespace)
            known = _looked.get(name)
            if known is None or known.namespace != key or known.now.value != known.version:
                if not exact:
                    if not wanted.isdisjoint(map(id, namespace.values())):
                        found.setdefault(key, (namespace, name))
                    continue
                now = version_of(namespace)
                version = now.value  # before the look: what changes meanwhile is looked at again
                held = interest.intersection(map(id, namespace.values()))
                known = _looked[name] = _Looked(key, version, now, frozenset(held))
            # os.path and posixpath are one module.
            if known.held and not known.held.isdisjoint(wanted):
                found.setdefault(key, (namespace, name))
    return list(found.values())
