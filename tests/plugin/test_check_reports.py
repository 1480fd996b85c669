"""Faults, kills, savers, damage and leaks are in the summary and in JSON, as explorations are."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

TESTS = """
    import json, os

    import pytest; from pytest_statepersist import NotCovered

    def save(path, value):
        temporary = path.with_suffix(".tmp")
        with open(temporary, "w") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def swallow(path, value):
        try:
            save(path, value)
        except OSError:
            pass

    def in_place(path, value):
        path.write_text("")
        path.write_text(json.dumps(value))

    def load(path):
        return json.loads(path.read_text())

    def arguments(save):
        return dict(
            setup=lambda d: save(d / "s", 1),
            workload=lambda d: save(d / "s", 2),
            recover=lambda d: load(d / "s"),
            before=1,
            after=2,
        )

    def test_faults_fail(fault_injector):
        fault_injector.check(errors=["ENOSPC"], states=0, recovery=False, **arguments(swallow))

    def test_faults_pass(fault_injector):
        fault_injector.check(
            errors=["ENOSPC"], states=0, recovery=False, name="settings", **arguments(save))

    def test_faults_tell_nothing(fault_injector):
        options = arguments(save) | {"recover": lambda d: 1, "before": 1, "after": 1}
        report = fault_injector.sweep(errors=["ENOSPC"], states=0, recovery=False, **options)
        assert report.ok is None
        with pytest.raises(NotCovered, match="cannot tell"):
            report.raise_where_not_covered()

    def test_integrity(tamper):
        class Damaged(Exception):
            pass
        report = tamper.check_integrity(
            lambda files: files["f"], {"f": b"whole"}, expect=Damaged,
            passing=tamper.Passing.MAPPING)
        assert not report.ok

    def test_kill(crash_simulator):
        options = arguments(in_place)
        crash_simulator.kill(options.pop("workload"), at="every", **options)

    def test_leaks(tamper):
        assert tamper.scan_leaks([{"f": b"the secret word"}], {"word": "secret word"}).ok is False

    def test_savers(crash_simulator):
        def add(directory, item):
            found = load(directory / "s")
            save(directory / "s", [*found, item])
        crash_simulator.interleave(
            setup=lambda d: save(d / "s", []),
            savers=[lambda d: add(d, "a"), lambda d: add(d, "b")],
            recover=lambda d: sorted(load(d / "s")),
            runs=1,
        )
"""
EXPECTED = {
    "settings": ("faults", True),
    "test_it.py::test_faults_fail": ("faults", False),
    "test_it.py::test_faults_tell_nothing": ("faults", None),
    "test_it.py::test_integrity": ("integrity", False),
    "test_it.py::test_kill": ("kill", False),
    "test_it.py::test_leaks": ("leaks", False),
    "test_it.py::test_savers": ("concurrency", False),
}


@pytest.fixture(autouse=True)
def _tests(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider")
    pytester.makepyfile(test_it=TESTS)


@pytest.mark.parametrize("workers", [(), ("-p", "xdist", "-n2")], ids=["plain", "workers"])
def test_every_check_is_in_one_summary_and_one_file(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    result = pytester.runpytest_subprocess("--statepersist-json=out.json", *workers)
    result.assert_outcomes(failed=3, passed=4)
    document = json.loads(Path(pytester.path / "out.json").read_text())
    assert document["explorations"] == []
    checks = document["checks"]
    assert [each["name"] for each in checks] == sorted(EXPECTED)
    assert {each["name"]: (each["check"], each["ok"]) for each in checks} == EXPECTED
    assert {tuple(each) for each in checks} == {tuple(checks[0])}, "one shape for all"
    totals = document["totals"]
    assert totals["checks"] == len(EXPECTED)
    assert totals["findings"] == sum(len(each["findings"]) for each in checks) >= 5
    assert totals["not_covered"] == 1

    by_name = {each["name"]: each for each in checks}
    silent = by_name["test_it.py::test_faults_fail"]["findings"][0]
    assert silent["kind"] == "silent loss"
    assert (Path(silent["file"]).name, silent["line"]) == ("test_it.py", 7)
    assert silent["observed"].startswith("the workload reported success")
    (told,) = by_name["test_it.py::test_faults_tell_nothing"]["not_covered"]
    assert "cannot tell" in told
    killed = by_name["test_it.py::test_kill"]["findings"]
    assert {each["kind"] for each in killed} == {"unrecoverable"}
    assert "switch:0:" in by_name["test_it.py::test_savers"]["findings"][0]["text"]
    assert "at byte 4" in by_name["test_it.py::test_leaks"]["findings"][0]["observed"]

    shown = result.stdout.str()
    assert shown.count("= statepersist =") == 1
    assert shown.count("settings: faults: ok (") == 1
    result.stdout.fnmatch_lines(
        [
            "test_it.py::test_faults_fail: faults: NO, * finding* (* faults at * calls, *",
            "  silent loss: ENOSPC from *test_it.py:7*",
            "test_it.py::test_faults_tell_nothing: faults: not covered (*",
            "  not covered: recovery gives the same before and after*",
            "test_it.py::test_integrity: integrity: NO, *",
            "test_it.py::test_kill: kill: NO, *",
            "  killed before call *: recovery raised *JSONDecodeError*",
            "test_it.py::test_leaks: leaks: NO, 1 finding (*",
            "test_it.py::test_savers: concurrency: NO, *",
            "  lost update in schedule 'switch:0:*",
        ]
    )


def test_junit_and_annotations(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = pytester.runpytest_subprocess("--junitxml=out.xml", "-k", "faults_fail")
    tree = ElementTree.parse(pytester.path / "out.xml")
    properties = [(str(p.get("name")), str(p.get("value"))) for p in tree.iter("property")]
    assert [text[:10] for name, text in properties if name.endswith(".faults")] == ["faults: NO"]
    findings = [text for name, text in properties if name == "statepersist.finding"]
    assert "test_it.py:7" in findings[0]
    result.stdout.fnmatch_lines(["::error file=test_it.py,line=7,title=faults%3A silent loss::*"])


def test_the_same_check_many_times_is_one_line(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
            from hypothesis import given, settings, strategies as st

            @settings(max_examples=5, deadline=None, database=None)
            @given(st.integers())
            def test_given(tamper, number):
                assert tamper.scan_leaks([{"f": b"x"}], {"word": "secret word"}).ok
        """
    )
    result = pytester.runpytest_subprocess("--statepersist-json=out.json")
    result.assert_outcomes(passed=1)
    document = json.loads(Path(pytester.path / "out.json").read_text())
    count = document["totals"]["checks"]
    assert count >= 5
    result.stdout.fnmatch_lines(
        [f"test_it.py::test_given: leaks: ok (1 canaries, 1 files, 1 states), {count} times"]
    )
    assert result.stdout.str().count("test_given: leaks") == 1
