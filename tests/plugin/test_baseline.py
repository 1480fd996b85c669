"""Accepted findings are shown and do not fail, new ones fail, and those that are gone are named."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from pytest_statepersist import UserError
from pytest_statepersist.baseline import Accepted, read_baseline, vanished, write_baseline

STORE = """
    import json

    def save(directory, value):
        (directory / "s").write_text(json.dumps(value))

    def load(directory):
        return json.loads((directory / "s").read_text())

    def test_one(crash_simulator):
        crash_simulator.check(
            setup=lambda d: save(d, 1), workload=lambda d: save(d, 2),
            recover=load, before=1, after=2, repairs=False,
        )
"""


def test_a_team_adopts_it_on_an_imperfect_store(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\nstatepersist_baseline = known.json")
    pytester.makepyfile(test_store=STORE)
    missing = pytester.runpytest_inprocess()
    assert missing.ret != 0
    missing.stderr.fnmatch_lines(["*known.json does not exist*--statepersist-write-baseline*"])

    pytester.runpytest_inprocess("--statepersist-write-baseline").assert_outcomes(passed=1)
    path = Path(pytester.path / "known.json")
    data = json.loads(path.read_text())
    assert len(data["findings"]) >= 2
    for row in data["findings"]:
        row["note"] = "ticket 7"
    data["findings"].append({"id": "00000000", "test": "test_store.py::test_one"})
    path.write_text(json.dumps(data))

    # Lines may move.
    source = pytester.path / "test_store.py"
    source.write_text("# a line more\n" + source.read_text())
    known = pytester.runpytest_inprocess()
    known.assert_outcomes(passed=1)
    known.stdout.fnmatch_lines(
        [
            "*posix: atomic NO*",
            "*(accepted: ticket 7)*",
            "*00000000 is gone (test_store.py::test_one); take it out",
        ]
    )
    # A run that was told to look at less cannot know what is gone.
    less = pytester.runpytest_inprocess("--statepersist-model=kill")
    less.assert_outcomes(passed=1)
    assert "is gone" not in less.stdout.str()

    data["findings"] = data["findings"][1:]
    path.write_text(json.dumps(data))
    pytester.runpytest_inprocess().assert_outcomes(failed=1)


@pytest.mark.parametrize("name", ["b.json", "b.toml"])
def test_both_forms_are_read_as_they_were_written(tmp_path: Path, name: str) -> None:
    rows = (
        Accepted("12345678", 'says "no"\n\u007f é', "t.py::a[\\x]", "torn write"),
        Accepted("1"),
    )
    for some in (rows, ()):
        write_baseline(tmp_path / name, some)
        assert read_baseline(tmp_path / name) == some
    if name.endswith("toml"):
        tomllib.loads((tmp_path / name).read_text())


@pytest.mark.parametrize(
    "text", ["{", "{}", "[1]", '[{"note": "x"}]', '[{"id": "1", "why": "x"}]', '[{"id": 1}]']
)
def test_what_is_no_baseline_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(UserError, match="baseline"):
        read_baseline(tmp_path / "b.json")


def test_gone_is_said_only_where_it_is_known() -> None:
    entry = Accepted("1", test="a")
    run = {"test": "a", "verdicts": [{"complete": True}], "findings": []}
    assert vanished([entry], [run], {"a"}) == [entry]
    assert vanished([entry], [run], set()) == [], "the test did not come to its end"
    assert vanished([entry], [], {"a"}) == [], "it did not run"
    half = {**run, "verdicts": [{"complete": False}]}
    assert vanished([entry], [half], {"a"}) == [], "not all was explored"
    found = {**run, "findings": [{"id": "1"}]}
    assert vanished([entry], [found], {"a"}) == [], "it is there"
