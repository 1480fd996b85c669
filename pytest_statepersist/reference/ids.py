"""Identifiers that become file names.

The law: an accepted identifier names exactly one file, in the directory where we put it, on
every platform. What could mean anything else is refused, never repaired: a "cleaned" name may
collide with another one.
"""

from __future__ import annotations

import re

from pytest_statepersist.reference.errors import InvalidId

__all__ = ["LONGEST_ID", "check_id"]

LONGEST_ID = 128
_ALLOWED = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
# Names of devices on Windows, whatever extension follows.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE | re.DOTALL)


def check_id(value: object, what: str = "id") -> str:
    """Return ``value`` if it can be a file name everywhere; else raise `InvalidId`.

    Allowed are ASCII letters, digits, ``_``, ``-`` and, after the first character, ``.``; at
    most `LONGEST_ID` characters. File systems that ignore case hold "A" and "a" as one file.
    """
    if not isinstance(value, str):
        raise InvalidId(f"{what}: {value!r} is a {type(value).__name__}, not a string")
    problem = _problem(value)
    if problem is not None:
        shown = value if len(value) <= 40 else value[:40] + "…"
        raise InvalidId(f"{what} {shown!r}: {problem}")
    return value


def _problem(value: str) -> str | None:
    if not value:
        return "is empty"
    if "\0" in value:
        return "holds a NUL character, which ends a file name"
    if "/" in value or "\\" in value:
        return "holds a path separator; an id is one file name, not a path"
    if value in (".", "..") or value.startswith(".."):
        return "would leave its directory"
    if value.startswith("."):
        return "begins with a dot, which marks the store's own files"
    if len(value) > LONGEST_ID:
        return f"has {len(value)} characters; at most {LONGEST_ID} fit into every file system"
    if _RESERVED.fullmatch(value):
        return "is reserved for a device on Windows"
    if value.endswith("."):
        return "ends with a dot, which Windows drops"
    if not _ALLOWED.fullmatch(value):
        return "holds something other than ASCII letters, digits, '.', '_' and '-'"
    return None
