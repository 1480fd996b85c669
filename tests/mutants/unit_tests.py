"""The ordinary unit tests of a mutated module: do they still pass?

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
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.mutants.mutation import Change, apply

__all__ = ["files_of", "is_ordinary", "run"]

_ROOT = Path(__file__).parent.parent.parent

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
    """A plugin of the run on one mutant: changes the line, leaves the other tests out."""

    def __init__(self, change: Change | None) -> None:
        self.change = change
        self.failed: list[str] = []
        self.passed = 0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [
            item for item in items
            if is_ordinary(item.path, getattr(item, "originalname", item.name))
        ]  # fmt: skip
        if self.change is not None:  # only now is the module loaded
            apply(self.change)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid.partition("::")[2])
        elif report.when == "call" and report.passed:
            self.passed += 1


def run(change: Change | None, module: str) -> dict[str, Any]:
    """Run the ordinary unit tests of a module up to the first failure, in a new process.

    Returns pytest's exit ``code``, how many ``passed``, and which ``failed``.
    """
    question = json.dumps([None if change is None else asdict(change), module])
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutants.unit_tests", question],
        cwd=_ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    if not lines:
        raise RuntimeError(f"the unit tests of {module} gave no answer:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def _main(question: str) -> None:
    change, module = json.loads(question)
    watcher = _Ordinary(None if change is None else Change(**change))
    with contextlib.redirect_stdout(io.StringIO()):
        code = pytest.main(
            ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist",
             "-W", "ignore::pytest.PytestAssertRewriteWarning", *map(str, files_of(module))],
            plugins=[watcher],
        )  # fmt: skip
    print(json.dumps({"code": int(code), "passed": watcher.passed, "failed": watcher.failed}))


if __name__ == "__main__":
    _main(sys.argv[1])
