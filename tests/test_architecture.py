"""The house keeps its shape: imports point downwards, nothing heavy loads with the plugin."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pytest_statepersist"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = (
    ("errors",),
    ("core", "checked", "callables"),
    ("recorders", "clock", "tamper", "leaks", "faults", "bundle_json", "bundle"),
    ("explorer",),
    ("report",),
    (
        "recording",
        "findings",
        "diagnosing",
        "repairing",
        "settings",
        "arguments",
        "exploring",
        "mixing",
        "programs",
        "saver_time",
        "savers",
    ),
    ("concurrency", "kill", "fault_sweep"),
    ("simulator", "fault_injector", "replaying"),
    ("snapshots", "adapter", "matrix"),
    ("options", "baseline", "keeping"),
    ("strategies",),
    ("machines", "conformance"),
    ("fixtures", "reference_fixtures", "machine_keeping"),
    ("plugin", "commands", "cli", "__main__"),
)
"""From the bottom up. A module may import its own layer and every one below."""

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
PYTEST = {"plugin", "fixtures", "reference_fixtures", "options", "keeping", "machine_keeping"}
PYTEST.add("conformance")
HYPOTHESIS = {"strategies", "machines", "conformance"}
REFERENCE = {"strategies", "machines", "conformance", "fixtures", "reference_fixtures", "snapshots"}
"""Who may use the reference implementation."""
HEAVY = ("hypothesis", "pydantic", "freezegun", "cryptography", "pyfakefs", "sqlite3", "asyncio")


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@dataclass(frozen=True)
class Facts:
    """What a module says of itself: its own words, and what it imports.

    ``typing_only`` is imported for type checking: no dependency when the code runs.
    """

    docstring: str | None
    imports: frozenset[str]
    typing_only: frozenset[str]


@cache
def facts_of(path: Path) -> Facts:
    tree = ast.parse(path.read_text())
    typing_only: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            typing_only.update(imported(node, path))
    return Facts(ast.get_docstring(tree), frozenset(imported(tree, path)), frozenset(typing_only))


def imported(tree: ast.AST, path: Path) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    part = part_of(path)
    if part in ("__init__", "reference"):
        return
    level = LEVEL[part]
    facts = facts_of(path)
    for name in facts.imports - facts.typing_only:
        pieces = name.split(".")
        if pieces[0] == "pytest_statepersist" and len(pieces) > 1:
            other = pieces[1]
            if other == "reference":
                assert part in REFERENCE, f"{part} must not depend on the reference implementation"
            elif other in LEVEL:
                assert LEVEL[other] <= level, f"{part} imports {other}, which is above it"
        if pieces[0] in ("pytest", "_pytest"):
            assert part in PYTEST, f"{part} must not know pytest"
        if pieces[0] == "hypothesis":
            assert part in HYPOTHESIS, f"{part} must not know hypothesis"


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "reference").rglob("*.py")), ids=lambda p: p.name
)
def test_the_reference_implementation_stands_alone(path: Path) -> None:
    for name in facts_of(path).imports:
        if name.startswith("pytest_statepersist"):
            assert name.startswith("pytest_statepersist.reference"), f"{path.name} imports {name}"
        assert name.split(".")[0] not in ("pytest", "hypothesis", "_pytest")


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").rglob("*.py")), ids=lambda p: p.name)
def test_the_core_touches_nothing(path: Path) -> None:
    forbidden = {"os", "io", "pathlib", "tempfile", "shutil", "subprocess", "time", "random"}
    assert not forbidden & {name.split(".")[0] for name in facts_of(path).imports}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_module_states_its_law(path: Path) -> None:
    if path.stat().st_size > 1:
        assert facts_of(path).docstring, f"{path} has no docstring"


def test_loading_the_plugin_loads_nothing_heavy() -> None:
    code = (
        "import sys; import pytest; before = set(sys.modules); import pytest_statepersist.plugin;"
        "print(sorted(n for n in set(sys.modules) - before))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    for name in HEAVY:
        assert f"'{name}'" not in loaded, f"loading the plugin imports {name}"


def test_public_names_are_sorted_and_exist() -> None:
    import pytest_statepersist

    names = pytest_statepersist.__all__
    assert sorted(names) == sorted(set(names))
    for name in names:
        assert getattr(pytest_statepersist, name) is not None


def test_no_name_of_the_workshop_is_in_the_project() -> None:
    words = ("/work" + "/shared", "shared/" + "DESIGN", "shared/" + "seeds", "/root" + "/venv")
    root = PACKAGE.parent
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, check=False
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        path = root / name
        if path.suffix in (".py", ".md", ".toml", ".ini", ".txt", "") and path.is_file():
            text = path.read_text(errors="ignore")
            for word in words:
                assert word not in text, f"{name} mentions {word}"


TESTS = sorted(Path(__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_no_parameter_is_a_bare_function_of_os(path: Path) -> None:
    """What holds one in a list makes each recording of the whole run search the heap for it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            called = [
                part.func
                for decorator in node.decorator_list
                for part in ast.walk(decorator)
                if isinstance(part, ast.Call)
            ]
            bare = [
                ast.unparse(part)
                for decorator in node.decorator_list
                for part in ast.walk(decorator)
                if isinstance(part, ast.Attribute)
                and part not in called
                and isinstance(part.value, ast.Name)
                and part.value.id == "os"
                and part.attr.islower()
                and part.attr not in ("path", "environ", "name")
            ]
            assert bare == [], f"{path.name}, {node.name}: put it into a function of its own"
