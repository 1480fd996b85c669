"""One operation, one state, one model list: the small words that every report uses."""

from __future__ import annotations

import os
import unicodedata

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.operations import Operation, Site

__all__ = ["describe_operation", "place", "printable"]


def printable(text: str) -> str:
    """Return a text without what a terminal would obey or could not show; newlines and tabs stay.

    Names on a disk may hold anything, and a bundle from elsewhere may say anything.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
        else character.encode("unicode-escape", "surrogatepass").decode("ascii")
        for character in text
    )


def _name(path: str) -> str:
    return printable(path).replace("\n", "\\n").replace("\t", "\\t")


def place(site: Site | None) -> str:
    """Return file:line of a call site, relative to the current directory where it is below it."""
    if site is None:
        return "(no call site)"
    path = site.file
    try:
        relative = os.path.relpath(path)
    except ValueError:
        relative = path
    if not relative.startswith(".."):
        path = relative
    return f"{_name(path)}:{site.line}"


def describe_operation(operation: Operation) -> str:
    """Return an operation in words: what was called, on which path, with which sizes."""
    name = _name(operation.path) or "?"
    match operation:
        case op.Create():
            return f"create {name}"
        case op.Mkdir():
            return f"mkdir {name}/"
        case op.Symlink():
            return f"symlink {name} -> {_name(operation.target)}"
        case op.Link():
            return f"link {name}"
        case op.Unlink():
            return f"unlink {name}"
        case op.Rmdir():
            return f"rmdir {name}/"
        case op.Rename():
            verb = "exchange" if operation.exchange else "rename"
            over = " (replaces a file)" if operation.replaced is not None else ""
            return f"{verb} {_name(operation.name)} -> {name}{over}"
        case op.Write():
            end = operation.offset + len(operation.data)
            sync = "" if operation.durability is op.Durability.NONE else ", synced by its flags"
            how = ", through memory that maps it" if operation.unordered else ""
            return f"write {name} bytes {operation.offset}..{end}{sync}{how}"
        case op.Truncate():
            return f"truncate {name} to {operation.size} bytes"
        case op.Allocate():
            return f"allocate space for {name}"
        case op.ZeroRange():
            end = operation.offset + operation.length
            return f"zero {name} bytes {operation.offset}..{end}"
        case op.SetAttributes():
            return f"set attributes of {name}"
        case op.Fsync():
            verb = "fdatasync" if operation.data_only else "fsync"
            failed = " (failed)" if operation.failed else ""
            return f"{verb} {name if operation.inode != op.ROOT else 'the directory'}{failed}"
        case op.SyncRange():
            return f"sync a range of {name}"
        case op.SyncAll():
            return "sync"
        case op.Close():
            return f"close {name}"
