"""The feature table of the reference implementation: each name imports, each test is collected.

That the tests pass is what the run of the suite itself shows.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/reference-implementation.md"
TESTS = "tests/reference"
ROW = re.compile(
    r"^\| .+ \| (?P<names>`[\w.]+`(?:, `[\w.]+`)*) \| `(?P<test>test_\w+\.py::[\w:]+)` \|$"
)


def rows() -> list[tuple[tuple[str, ...], str]]:
    found = [ROW.match(line) for line in PAGE.read_text().splitlines()]
    return [(tuple(re.findall(r"[\w.]+", m["names"])), m["test"]) for m in found if m is not None]


def test_every_row_was_understood() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if "::" in line]
    assert len(rows()) == len(lines) > 200


def test_every_name_can_be_imported() -> None:
    for name in sorted({name for names, _ in rows() for name in names}):
        module, *attributes = name.split(".")
        target: object = importlib.import_module(f"pytest_statepersist.reference.{module}")
        for attribute in attributes:
            assert hasattr(target, attribute), name
            target = getattr(target, attribute)


def test_every_test_is_collected(request: pytest.FixtureRequest) -> None:
    """By pytest itself, so that what is skipped over or misspelt does not count."""
    named = {test for _, test in rows()}
    missing = named - _bare(item.nodeid for item in request.session.items)
    if missing:  # only some of the files are part of this run
        missing -= _bare(_collected({test.partition("::")[0] for test in missing}))
    assert missing == set()


def _bare(ids: Iterable[str]) -> set[str]:
    """Return ids without directory, parameters and the worker group that pytest-xdist adds."""
    return {
        each.removeprefix(f"{TESTS}/").partition("[")[0].partition("@")[0]
        for each in ids
        if each.startswith(TESTS)
    }


def _collected(files: set[str]) -> list[str]:
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider",
            "-p", "no:randomly", *sorted(f"{TESTS}/{name}" for name in files),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()
