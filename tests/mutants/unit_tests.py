"""The ordinary unit tests of a mutated module: do they still pass?

``python -m tests.mutants.unit_tests [NAME ...]`` prints one JSON line for each mutant. Each runs in
a fork of a warm process.

Belongs here: which tests are ordinary. Those are the tests in ``tests/reference/test_MODULE*.py``
but for the ones that kill, that let calls of the system fail, or that watch them (they import
`kill_points` or `fault_points` and use their tools, or replace functions of `os`): such tests do by
hand, for one function, what the machines and suites do for any store.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.mutants.mutation import Change, apply
from tests.mutants.table import MUTANTS

__all__ = ["files_of", "is_ordinary"]

_TESTS = Path(__file__).parent.parent / "reference"
_FILES = {
    "file_store": ("file_store", "store_backup", "cipher"),
    "store_files": ("file_store",),
    "store_codec": ("file_store", "cipher"),
    "store_schema": ("file_store",),
    "sqlite_file": ("database", "database_migrations", "retention"),
    "migrations": ("database", "database_migrations"),
}
"""Where the tests of a module are, if not (only) in a file that is named after it."""
_TOOLS = frozenset({"counting", "each_kill_point", "Killed", "failing"})


def files_of(module: str) -> list[Path]:
    """Return the test files of a module of the reference implementation."""
    names = _FILES.get(module, (module,))
    return [_TESTS / f"test_{name}.py" for name in names]


def is_ordinary(file: Path, function: str) -> bool:
    """Say whether a test neither kills, nor lets calls fail, nor watches them."""
    return function not in _extraordinary(file)


@functools.cache
def _extraordinary(file: Path) -> frozenset[str]:
    functions = {
        node.name: node
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    found = {name for name, node in functions.items() if _uses_tools(node)}
    found -= {name for name in found if _is_autouse(functions[name])}
    while True:
        more = {
            name for name, node in functions.items()
            if name not in found and not _is_autouse(node) and found & set(_names(node))
        }  # fmt: skip
        if not more:
            return frozenset(found)
        found |= more


def _names(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            yield each.id
        elif isinstance(each, ast.arg):  # a fixture
            yield each.arg


def _uses_tools(node: ast.AST) -> bool:
    if _TOOLS & set(_names(node)):
        return True
    return any(
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "setattr"
        and call.args
        and isinstance(call.args[0], ast.Name)
        and call.args[0].id == "os"
        for call in ast.walk(node)
    )


def _is_autouse(node: ast.FunctionDef) -> bool:
    """A fixture of all tests, such as "no real syncs", makes none of them extraordinary."""
    return any("autouse" in ast.dump(each) for each in node.decorator_list)


class _Ordinary:
    """Leaves the other tests out, and remembers what failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.passed = 0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [
            item for item in items
            if is_ordinary(item.path, getattr(item, "originalname", item.name))
        ]  # fmt: skip

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed += 1


def _run(change: Change | None, files: Sequence[Path]) -> dict[str, object]:
    if change is not None:
        apply(change)
    watcher = _Ordinary()
    with contextlib.redirect_stdout(io.StringIO()):
        code = pytest.main(
            ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist",
             *map(str, files)],
            plugins=[watcher],
        )  # fmt: skip
    return {"code": int(code), "passed": watcher.passed, "failed": watcher.failed}


def _in_a_fork(change: Change | None, files: Sequence[Path]) -> dict[str, object]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.write(writer, json.dumps(_run(change, files)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    found: dict[str, object] = json.loads(data) if data else {"code": -1}
    return found


def main(names: Sequence[str]) -> None:
    """Run the ordinary unit tests on the mutants with these names, or all."""
    import hypothesis.stateful  # noqa: F401 - warm

    import pytest_statepersist.machines.reference_stores  # noqa: F401 - apply() needs it loaded

    for mutant in MUTANTS:
        if names and mutant.name not in names:
            continue
        began = time.perf_counter()
        found = _in_a_fork(mutant.change, files_of(mutant.change.module))
        seconds = round(time.perf_counter() - began, 1)
        print(json.dumps({"name": mutant.name, **found, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
