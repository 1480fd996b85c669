"""Whether a dict is as it was: the number that CPython gives it anew at each change.

Belongs here: reading that number (PEP 509, which no function of Python shows), and finding out
whether this interpreter keeps it. Where it does not, nobody may take a dict for unchanged.
"""

from __future__ import annotations

import ctypes
import sys
import sysconfig
from functools import cache
from typing import Any

__all__ = ["kept", "version_of"]

_OFFSET = object.__basicsize__ + ctypes.sizeof(ctypes.c_ssize_t)
"""Behind the object's head and the count of what is in it."""


def version_of(each: dict[Any, Any]) -> ctypes.c_uint64:
    """Return a view of a dict's number, unique in the process; it is not to outlive the dict."""
    return ctypes.c_uint64.from_address(id(each) + _OFFSET)


@cache
def kept() -> bool:
    """Say whether each change of a dict gives it a number that none had before.

    CPython 3.11 to 3.13 do so, others need not; it is tried out, the quick ways in which compiled
    code stores an attribute or a global variable included.
    """
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return False
    module = type(sys)("tried")
    tried = vars(module)
    number = version_of(tried)
    seen = {number.value}

    def changed() -> bool:
        new = number.value not in seen
        seen.add(number.value)
        return new

    # Often enough that the interpreter replaces the instructions by those for this very dict.
    code = compile("def f(value):\n global other\n other = value\n", "<tried>", "exec")
    exec(code, tried)
    rounds = 200
    right = changed()
    for value in range(rounds):
        module.__doc__ = str(value)  # any attribute would do
        right = right and changed()
        tried["f"](value)
        right = right and changed()
        tried["key"] = value
        right = right and changed()
    for change in (
        lambda: tried.update(key=0),
        lambda: tried.update({"third": 1}),
        lambda: tried.setdefault("fourth", 1),
        lambda: tried.__ior__({"key": 2}),
        lambda: tried.pop("key"),
        lambda: tried.popitem(),
        lambda: tried.__delitem__("other"),
        lambda: setattr(module, "other", 1),
        lambda: delattr(module, "other"),
        tried.clear,
    ):
        change()
        right = right and changed()
    before = number.value
    same = list(tried.values()), tried.get("key"), "key" in tried
    return right and before == number.value and bool(same)
