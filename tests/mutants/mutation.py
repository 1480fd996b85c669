"""One line of one function changed, in a file's text and in the running program.

Belongs here: finding the line, and putting the changed function in the place of the real one. The
code of a function is exchanged, not the function: whoever imported it, bound it or decorated it
runs the change too, so that nothing has to be imported anew and a fork can be mutated in
milliseconds. Only code inside functions can be changed like that; anything else is refused.
"""

from __future__ import annotations

import ast
import gc
from dataclasses import dataclass
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FunctionType

import pytest_statepersist

__all__ = ["Change", "NoSuchLine", "apply", "changed_source", "path_of"]

_ROOT = Path(pytest_statepersist.__file__).parent / "reference"
_Codes = dict[tuple[str, int], CodeType]


class NoSuchLine(Exception):
    """The mutant no longer applies: its line is not there, or is there more than once."""


@dataclass(frozen=True, slots=True)
class Change:
    """A line of a function, as it stands without its indentation, and what takes its place.

    ``where`` is ``module.function`` or ``module.Class.method`` below the reference implementation.
    """

    where: str
    line: str
    instead: str

    @property
    def module(self) -> str:
        """The module's name."""
        return self.where.partition(".")[0]


def path_of(change: Change) -> Path:
    """Return the file that a change is made in."""
    return _ROOT / f"{change.module}.py"


def changed_source(change: Change) -> str:
    """Return the text of the module with the line changed. Raises `NoSuchLine`."""
    text = path_of(change).read_text(encoding="utf-8")
    lines = text.splitlines()
    first, last = _span(ast.parse(text), change.where)
    hits = [n for n in range(first - 1, last) if lines[n].strip() == change.line]
    if len(hits) != 1:
        raise NoSuchLine(f"{change.where} has {change.line!r} {len(hits)} times, not once")
    indentation = lines[hits[0]][: -len(lines[hits[0]].lstrip())]
    lines[hits[0]] = indentation + change.instead
    return "\n".join(lines) + "\n"


def apply(change: Change) -> int:
    """Let the running program behave as if the line were changed; return how many functions did.

    Raises `NoSuchLine`, and `ValueError` for a change that is not inside a function, or of a module
    that is not loaded.
    """
    path = str(path_of(change))
    module = compile(path_of(change).read_text(encoding="utf-8"), path, "exec")
    changed = compile(changed_source(change), path, "exec")
    before, after = _codes(module), _codes(changed)
    shared = before.keys() & after.keys()
    # Comprehensions and the like come and go inside functions.
    if any("<locals>" not in name for name, _ in before.keys() ^ after.keys()):
        raise ValueError(f"{change.where}: the change adds or removes a function")
    bodies = [(module, changed), *((before[key], after[key]) for key in shared)]
    if any(_own(old) != _own(new) for old, new in bodies if not old.co_flags & CO_OPTIMIZED):
        raise ValueError(f"{change.where}: the change is not inside a function")
    # Functions inside functions are made anew by those around them.
    differ = {key for key in shared if before[key] != after[key]}
    wanted = {
        key for key in differ
        if before[key].co_flags & CO_OPTIMIZED and "<locals>" not in key[0]
    }  # fmt: skip
    if not wanted:
        raise ValueError(f"{change.where}: the change changes nothing")
    exchanged = set()
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__.co_filename == path:
            key = (function.__code__.co_qualname, function.__code__.co_firstlineno)
            if key in differ:
                function.__code__ = after[key]
                exchanged.add(key)
    if not wanted <= exchanged:
        raise ValueError(f"{change.where}: {sorted(wanted - exchanged)} is in no loaded module")
    return len(exchanged)


def _span(tree: ast.Module, where: str) -> tuple[int, int]:
    body: list[ast.stmt] = tree.body
    found: ast.FunctionDef | ast.ClassDef | None = None
    for name in where.split(".")[1:]:
        named = [
            node
            for node in body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
        ]
        if not named:
            raise NoSuchLine(f"there is no {where}")
        found = named[-1]  # before it come overloads
        body = found.body
    if not isinstance(found, ast.FunctionDef) or found.end_lineno is None:
        raise NoSuchLine(f"{where} is no function")
    return found.lineno, found.end_lineno


def _codes(code: CodeType) -> _Codes:
    """Return all code of functions, by name and first line."""
    found: _Codes = {}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found[constant.co_qualname, constant.co_firstlineno] = constant
            found |= _codes(constant)
    return found


def _own(code: CodeType) -> tuple[object, ...]:
    """Return what makes a function itself, without the functions inside it."""
    constants = [repr(c) for c in code.co_consts if not isinstance(c, CodeType)]
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars
