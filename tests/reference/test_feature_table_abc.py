"""The feature table of blocks A to C: each name can be imported, each test exists."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/reference-abc.md"
ROW = re.compile(r"^\| .+ \| `([\w.]+)` \| `(test_\w+\.py)::(test_\w+)` \|$")


def rows() -> list[tuple[str, str, str]]:
    found = [ROW.match(line) for line in PAGE.read_text().splitlines()]
    return [(m[1], m[2], m[3]) for m in found if m is not None]


def test_every_row_of_the_feature_tables_was_understood() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if "::test_" in line]
    assert len(rows()) == len(lines) > 90


@pytest.mark.parametrize("name", sorted({row[0] for row in rows()}))
def test_the_name_exists(name: str) -> None:
    module, *attributes = name.split(".")
    target: object = importlib.import_module(f"pytest_statepersist.reference.{module}")
    for attribute in attributes:
        target = getattr(target, attribute)


def test_the_tests_exist() -> None:
    for _, file, test in rows():
        tree = ast.parse((ROOT / "tests/reference" / file).read_text())
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert test in functions, f"{file}::{test}"
