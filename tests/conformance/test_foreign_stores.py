"""Stores that nobody here wrote fail what is listed, for the reason that is given, and no more.

Three suites run whole in every run, the others in the soak profile; the lists, their citations and
the printed table are compared in every run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from examples.conformance import table
from examples.conformance.citations import CITED
from pytest_statepersist.conformance.needs import needs_of
from pytest_statepersist.conformance.suite import StoreConformance, all_test_ids

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "how-to" / "foreign-stores.md"
ALWAYS = ("Semidbm", "Tinydb", "Cachelib")
"""Whole suites of some twenty seconds of CPU together: pure Python, and no SQLite."""


def printed() -> list[str]:
    """The rows of the table in the documentation, without its heading."""
    block = re.search(r"^```text\n(store .*?)^```", PAGE.read_text(), re.M | re.S)
    assert block
    return block[1].splitlines()[1:]


def counts(row: str) -> list[int]:
    return [int(word) for word in row.split()[1:]]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.conformance", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_stores_fail_what_is_listed_and_nothing_else() -> None:
    done = run(*ALWAYS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[1:] == [
        row for row in printed() if row.split()[0] in ALWAYS
    ], done.stdout


@pytest.mark.parametrize("name", [name for name in table.names() if name not in ALWAYS])
def test_the_other_stores_fail_what_is_listed_and_nothing_else(name: str) -> None:
    if os.environ.get("STATEPERSIST_PROFILE") != "soak":
        pytest.skip("runs in the soak profile: STATEPERSIST_PROFILE=soak")
    done = run(name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[1:] == [row for row in printed() if row.split()[0] == name]


def test_what_the_list_does_not_say_is_named(tmp_path: Path) -> None:
    """The canary: a failure that is not listed, and a listed test that passes."""
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('[TestTinydb]\ntest_many_keys = "it passes"\n')
    done = run("Tinydb", "--xfails", str(wrong))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Not what the list says (2):" in done.stdout
    assert "Tinydb: test_many_keys failed: [XPASS(strict)] it passes" in done.stdout
    assert "Tinydb: test_an_io_error_in_a_deletion_is_told failed: " in done.stdout


def test_a_listed_test_that_could_not_look_is_named() -> None:
    outcomes = table.Outcomes("Some", {"test_a": "not covered", "test_b": "expected failures"})
    assert list(outcomes.disagreements({"test_a": "why", "test_b": "why"})) == [
        "Some: test_a is listed as failing, and was not covered"
    ]
    assert outcomes.row().split() == ["Some", "0", "1", "1", "0"]


def test_an_unknown_store_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        table.main(["nonsense"])
    assert caught.value.code == 2
    assert "there is no store nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("name", table.names())
def test_the_table_agrees_with_the_list_and_with_what_is_declared(name: str) -> None:
    """What is printed cannot drift from the list, nor a list hold a test of no promise."""
    adapter, known = table.adapter(name), table.listed(name)
    lacking = {
        test
        for test in all_test_ids()
        if adapter.lacks(*needs_of(getattr(StoreConformance, test))) is not None
    }
    assert not lacking & set(known)
    (row,) = [row for row in printed() if row.split()[0] == name]
    passed, failures, _, not_declared = counts(row)
    assert failures == len(known)
    assert not_declared >= len(lacking)
    assert sum(counts(row)) == len(all_test_ids())
    assert passed


def test_the_table_has_every_store_and_the_list_no_other() -> None:
    assert [row.split()[0] for row in printed()] == table.names()
    assert len([name for name in table.names() if not name.endswith("ReliedOn")]) >= 8
    assert set(tomllib.loads(table.LIST.read_text())) <= {f"Test{name}" for name in table.names()}


@pytest.mark.parametrize("name", table.names())
def test_every_expected_failure_is_explained_by_lines_that_exist(name: str) -> None:
    """A reason names its lines, as they stand in the source, or what the documentation says."""
    for test, reason in table.listed(name).items():
        places = re.findall(r"[\w/]+\.py:\d+", reason)
        told = ("documentation", "os_unix.c")  # SQLite's own source is not installed
        assert places or any(word in reason for word in told), f"{test}: {reason}"
        for place in places:
            citation = CITED[place]
            if citation.installed():
                assert citation.actual() == citation.text, place


def test_no_citation_is_left_over() -> None:
    assert set(CITED) == set(re.findall(r"[\w/]+\.py:\d+", table.LIST.read_text()))
