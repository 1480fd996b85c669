"""The reference implementation stands alone: what it imports, and what importing it costs."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_statepersist.reference as package

HOME = Path(package.__file__).parent
PACKAGE = package.__name__
MODULES = sorted(HOME.rglob("*.py"))
ALLOWED = {"pydantic", "cryptography", "filelock", "backports"}
# Loaded by name and on use, so that nobody pays for it who does not use it.
LAZY = {"remote.py": {"fsspec"}}


@functools.cache
def imports_of(source: str) -> frozenset[str]:
    """Return the dotted names that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
        elif isinstance(node, ast.Call) and node.args and "import" in ast.unparse(node.func):
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                found.add(argument.value)
    return frozenset(found)


def forbidden(module: str, names: frozenset[str]) -> set[str]:
    return {
        name
        for name in names
        if name != PACKAGE
        and not name.startswith(PACKAGE + ".")
        and name.split(".")[0] not in sys.stdlib_module_names | ALLOWED | LAZY.get(module, set())
        and name.split(".")[0] != "compression"  # in the library from 3.14 on
    }


def test_the_detector_catches_what_it_must() -> None:
    bad = (
        "import pytest_statepersist.core\nfrom pytest_statepersist import errors\n"
        "from .. import core\nimport numpy\ndef f():\n    import hypothesis\n"
        "__import__('attrs')\nimport os\nimport pydantic\n"
    )
    assert forbidden("x.py", imports_of(bad)) == {
        "pytest_statepersist.core",
        "pytest_statepersist",
        "..",
        "numpy",
        "hypothesis",
        "attrs",
    }


def test_there_is_something_to_check() -> None:
    assert {"atomic.py", "file_store.py", "state_snapshot.py", "remote.py"} <= {
        path.name for path in MODULES
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_imports_nothing_from_the_rest_of_the_package(path: Path) -> None:
    assert forbidden(path.name, imports_of(path.read_text())) == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_opens_with_its_law_and_has_no_import_cycle(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    if path.name != "__init__.py":
        assert "__all__" in path.read_text()
    seen: set[str] = set()
    todo = [path.stem]
    while todo:
        for name in imports_of((HOME / f"{todo.pop()}.py").read_text()):
            stem = name.removeprefix(PACKAGE + ".")
            if name.startswith(PACKAGE + ".") and stem not in seen:
                assert stem != path.stem, f"{path.stem} imports itself by way of others"
                seen.add(stem)
                todo.append(stem)


def test_modules_are_small() -> None:
    lengths = sorted(len(path.read_text().splitlines()) for path in MODULES)
    assert lengths[len(lengths) // 2] <= 250
    assert lengths[-1] <= 650


def test_only_atomic_and_its_kin_rename_and_sync() -> None:
    """Durability is decided in few places; the rest calls them."""
    kin = {"atomic.py", "transaction.py", "store_backup.py", "store_schedule.py", "store_files.py"}
    others = [path for path in MODULES if path.name not in kin and path.name in _ABC]
    for path in others:
        assert not re.search(r"\bos\.(rename|replace|fsync|unlink)\b", path.read_text()), path.name


_ABC = {
    "cipher.py", "component_registry.py", "file_store.py", "items.py", "managers.py", "packing.py",
    "remote.py", "serializers.py", "snapshot_transfer.py", "state_snapshot.py", "store_codec.py",
    "store_remote.py", "store_schema.py",
}  # fmt: skip


def test_importing_the_file_store_loads_no_test_tool_and_no_network_code() -> None:
    code = (
        "import sys\n"
        f"import {PACKAGE}.file_store, {PACKAGE}.remote, {PACKAGE}.snapshot_transfer\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    root = HOME.parents[1]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert "pydantic" in loaded
    assert not loaded & {"pytest", "hypothesis", "fsspec", "freezegun", "aiohttp"}


def test_importing_the_atomic_write_loads_nothing_heavy() -> None:
    code = (
        f"import sys, {PACKAGE}.atomic\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    root = HOME.parents[1]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert not set(result.stdout.split()) & {"pydantic", "cryptography", "filelock"}


def test_all_errors_are_of_one_tree() -> None:
    from pytest_statepersist.reference import errors

    found = [value for value in vars(errors).values() if isinstance(value, type)]
    ours = [value for value in found if value.__module__ == errors.__name__]
    assert len(ours) > 10
    assert all(issubclass(value, errors.PersistenceError) for value in ours)
    assert all(value.__doc__ for value in ours)
