"""What a pipeline gets: JSON, JUnit properties, annotations, and one summary of many workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

STORE = """
    import json, os

    def save(path, value):
        path.write_text(json.dumps(value))

    def check(simulator, value):
        simulator.check(
            setup=lambda d: save(d / "s", 1),
            workload=lambda d: save(d / "s", value),
            recover=lambda d: json.loads((d / "s").read_text()),
            before=1,
            after=value,
        )

    def test_one(crash_simulator):
        check(crash_simulator, 2)

    def test_two(crash_simulator):
        check(crash_simulator, 3)

    def test_three(crash_simulator):
        check(crash_simulator, 4)
"""


@pytest.fixture(autouse=True)
def _store(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider")
    pytester.makepyfile(test_store=STORE)


def merged(pytester: pytest.Pytester, result: pytest.RunResult) -> dict[str, Any]:
    """Check that a run of all tests gave one summary and one file; return what that holds."""
    result.assert_outcomes(failed=3)
    document: dict[str, Any] = json.loads(Path(pytester.path / "out.json").read_text())
    assert document["version"] == 1
    names = [each["name"] for each in document["explorations"]]
    assert names == [f"test_store.py::test_{n}" for n in ("one", "three", "two")]
    found = [finding for each in document["explorations"] for finding in each["findings"]]
    assert document["totals"]["findings"] == len(found) >= 6
    shown = result.stdout.str()
    assert shown.count("= statepersist =") == 1
    assert shown.count(": posix: atomic NO") >= 3
    # No bundle is lost, and none is written twice.
    directory = pytester.path / ".statepersist" / "bundles"
    kept = sorted(path.name.split(".")[0] for path in directory.glob("*.json*"))
    assert kept == sorted(finding["bundle"] for finding in found)
    return document


@pytest.mark.parametrize(
    "options",
    [
        ("-p", "xdist", "-n2"),
        ("-p", "randomly"),
        ("-p", "xdist", "-n2", "-p", "randomly"),
    ],
    ids=["workers", "random", "random workers"],
)
def test_results_are_merged_into_one_summary_and_one_file(
    pytester: pytest.Pytester, options: tuple[str, ...]
) -> None:
    result = pytester.runpytest_subprocess("--statepersist-json=out.json", *options)
    merged(pytester, result)


def test_json_junit_and_annotations_of_one_run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(pytester.path.parent))
    result = pytester.runpytest_inprocess("--statepersist-json=out.json", "--junitxml=out.xml")
    finding = merged(pytester, result)["explorations"][0]["findings"][0]
    assert Path(finding["file"]).name == "test_store.py"
    assert finding["line"] == 4
    assert "posix" in finding["models"]

    case = next(ElementTree.parse(pytester.path / "out.xml").iter("testcase"))
    properties = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert str(properties["statepersist.posix"]).startswith("posix: atomic NO, durable NO")
    assert "test_store.py:4" in str(properties["statepersist.finding"])

    path = f"{pytester.path.name}/test_store.py"  # from the root of the repository
    result.stdout.fnmatch_lines([f"::error file={path},line=4,title=*::*recovery*"])
    monkeypatch.delenv("GITHUB_ACTIONS")
    plain = pytester.runpytest_inprocess("-k", "test_one")
    assert "::error" not in plain.stdout.str()
