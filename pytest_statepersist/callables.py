"""How a function that a test gave is written in another test: its expression, and its imports.

Belongs here: reading source, to print a regression test that runs as it is. Rules:

1. A function of a module is imported from there. A lambda is copied, with imports of what it names.
2. What holds values of its own (closures, defaults, bound methods, functions inside functions) is
   not written: "" says that the reader has to put it in. Nothing is guessed.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

__all__ = ["IMPORT", "written"]

IMPORT = "import"
"""The name under which lines of import stand beside the expressions."""


def written(functions: Mapping[str, Callable[..., Any] | None]) -> tuple[tuple[str, str], ...]:
    """Return (name, expression) for each function that is given, after the imports they need."""
    imports: set[str] = set()
    rows = []
    for name, function in functions.items():
        if function is None:
            continue
        found = _expression(function)
        if found is not None:
            imports.update(found[1])
        rows.append((name, found[0] if found is not None else ""))
    return (*((IMPORT, line) for line in sorted(imports)), *rows)


def _expression(function: Callable[..., Any]) -> tuple[str, set[str]] | None:
    if not isinstance(function, FunctionType):
        return None
    if function.__name__ != "<lambda>":
        line = _import(function.__name__, function)
        return None if line is None else (function.__name__, {line})
    if function.__closure__ or function.__defaults__ or function.__kwdefaults__:
        return None
    node = _lambda(function.__code__)
    if node is None:
        return None
    imports = set()
    for name in _names(node):
        if name not in function.__globals__:
            if hasattr(builtins, name):
                continue
            return None
        value = function.__globals__[name]
        line = _import(name, value) or _defined(name, function)
        if line is None:
            return None
        imports.add(line)
    return ast.unparse(node), imports


def _import(name: str, value: object) -> str | None:
    """Return the line that brings a value in under a name from where it was defined."""
    if isinstance(value, ModuleType):
        whole = value.__name__
        if whole == name:
            return f"import {name}"
        parent, _, last = whole.rpartition(".")
        if parent and last == name:
            return f"from {parent} import {name}"
        return f"import {whole} as {name}"
    module = getattr(value, "__module__", None)
    own = getattr(value, "__name__", None)
    if not isinstance(module, str) or not isinstance(own, str) or not own.isidentifier():
        return None
    if not _holds(module, own, value):
        return None
    return f"from {module} import {own}" + ("" if own == name else f" as {name}")


def _defined(name: str, function: FunctionType) -> str | None:
    """Return the import of a value that is no function or class, such as a constant."""
    if _holds(function.__module__, name, function.__globals__[name]):
        return f"from {function.__module__} import {name}"
    return None


def _holds(module: str, name: str, value: object) -> bool:
    found = sys.modules.get(module)
    return module != "__main__" and found is not None and getattr(found, name, None) is value


def _lambda(code: CodeType) -> ast.Lambda | None:
    """Find the lambda in its file: by its place, and by what the file compiles to now."""
    try:
        lines, _ = inspect.findsource(code)
        tree = ast.parse("".join(lines))
        whole = compile("".join(lines), code.co_filename, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    begins = _begins(code)
    if begins is None:
        return None  # python -X no_debug_ranges
    if not any(_alike(each, code) for each in _inner(whole) if _begins(each) == begins):
        return None  # the file has changed
    first, last = begins, max(_places(code, end=True))
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Lambda)
        and (node.lineno, node.col_offset) <= first
        and (node.end_lineno or 0, node.end_col_offset or 0) >= last
        and _compiled(node).co_varnames == code.co_varnames
        and set(_compiled(node).co_names) == set(code.co_names)
    ]
    return max(around, key=lambda node: (node.lineno, node.col_offset), default=None)


def _compiled(node: ast.Lambda) -> CodeType:
    whole = compile(ast.Expression(node), "<lambda>", "eval", dont_inherit=True)
    return next(_inner(whole))


def _begins(code: CodeType) -> tuple[int, int] | None:
    """Return the first place; a function that is nothing but its docstring has none."""
    return min(_places(code), default=None)


def _places(code: CodeType, end: bool = False) -> Iterator[tuple[int, int]]:
    """Yield where the instructions stand in the file; one line may hold many lambdas."""
    for line, end_line, column, end_column in code.co_positions():
        # The first instruction, which only begins, is said to stand at the start of its line.
        if line and end_line and end_column:
            yield (end_line, end_column) if end else (line, column or 0)


def _inner(code: CodeType) -> Iterator[CodeType]:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield each
            yield from _inner(each)


def _alike(one: CodeType, other: CodeType) -> bool:
    """Say whether two codes do the same; where they stand does not count."""
    if (one.co_code, one.co_names, one.co_varnames) != (
        other.co_code,
        other.co_names,
        other.co_varnames,
    ) or len(one.co_consts) != len(other.co_consts):
        return False
    for mine, theirs in zip(one.co_consts, other.co_consts, strict=True):
        if isinstance(mine, CodeType) and isinstance(theirs, CodeType):
            if not _alike(mine, theirs):
                return False
        elif (type(mine), repr(mine)) != (type(theirs), repr(theirs)):
            return False
    return True


def _names(node: ast.Lambda) -> Iterator[str]:
    """Yield the names that are read in a lambda and are not its own."""
    own = {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}
    bound = {
        each.id
        for each in ast.walk(node)
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    }
    for each in ast.walk(node):
        if isinstance(each, ast.Name) and each.id not in own | bound:
            yield each.id
