"""What shares something is made by one worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scheduling import BY_FILE, BY_PARAMETER, together

ROOT = Path(__file__).parent.parent


def test_what_belongs_together_has_one_name() -> None:
    file = BY_PARAMETER[0]
    assert together(f"{file}::test_one[a-b]") == together(f"{file}::test_two[a-b]")
    assert together(f"{file}::test_one[a-b]") != together(f"{file}::test_one[a-c]")
    assert together(f"{file}::test_one") != together(f"{file}::test_two")
    assert together(f"{BY_FILE[0]}::test_one[a]") == together(f"{BY_FILE[0]}::test_two")
    other = "tests/test_tamper.py"
    assert together(f"{other}::test_one[a]") != together(f"{other}::test_two[a]")


def test_all_files_are_there() -> None:
    assert all((ROOT / file).is_file() for file in (*BY_FILE, *BY_PARAMETER))


SHARING = """
import os, pathlib, pytest

@pytest.fixture
def noted(name):
    with open("seen", "a") as seen:
        seen.write(f"{name} {os.environ['PYTEST_XDIST_WORKER']}\\n")

@pytest.mark.parametrize("name", NAMES)
def test_one(name, noted): pass

@pytest.mark.parametrize("name", NAMES)
def test_two(name, noted): pass
"""


def test_tests_of_one_name_run_in_one_worker(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the marks of xdist itself this does not hold with every pytest."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    names = [f"name{number}" for number in range(8)]
    file = pytester.path / BY_PARAMETER[1]
    file.parent.mkdir()
    file.write_text(SHARING.replace("NAMES", repr(names)))
    hook = "from tests.conftest import pytest_xdist_make_scheduler\n"
    (pytester.path / "conftest.py").write_text(hook)
    pytester.runpytest_subprocess("-p", "xdist", "-n2", "--import-mode=importlib")
    lines = (pytester.path / "seen").read_text().splitlines()
    assert len(lines) == 2 * len(names)
    seen = {tuple(line.split()) for line in lines}
    assert sorted(name for name, _ in seen) == names
    assert {worker for _, worker in seen} == {"gw0", "gw1"}
