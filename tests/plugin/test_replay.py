"""A finding of a test is kept, replayed alone, and gone once it is repaired."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_statepersist.cli import main

STORE = """
    import json, os

    SAFE = False
    STRICT = False

    def sync(path):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def save(directory, value):
        scratch = directory / "scratch"
        scratch.write_text(json.dumps(value))
        if SAFE:
            sync(scratch)
        scratch.replace(directory / "s")
        sync(directory)

    def load(directory):
        if STRICT and (directory / "scratch").exists():
            raise RuntimeError("a save was interrupted")
        return json.loads((directory / "s").read_text())

    def check(simulator, value):
        simulator.check(
            setup=lambda d: save(d, 1), workload=lambda d: save(d, value),
            recover=load, before=1, after=value,
        )

    def test_one(crash_simulator):
        check(crash_simulator, 2)

    def test_two(crash_simulator):
        check(crash_simulator, 3)
"""


@pytest.fixture(autouse=True)
def _store(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider")
    pytester.makepyfile(test_store=STORE)


def kept(pytester: pytest.Pytester) -> list[str]:
    place = pytester.path / ".statepersist" / "bundles"
    return sorted(path.name.split(".")[0] for path in place.glob("*.json*"))


def change(pytester: pytest.Pytester, old: str, new: str) -> None:
    path = pytester.path / "test_store.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def replayed(
    pytester: pytest.Pytester, name: str, *options: str, status: str
) -> tuple[pytest.RunResult, str]:
    """Replay a bundle; return the run, and what the JSON says of it."""
    run = pytester.runpytest_subprocess if "-n2" in options else pytester.runpytest_inprocess
    result = run("--statepersist-replay", name, "--statepersist-json=out.json", *options)
    document = json.loads(Path(pytester.path / "out.json").read_text())
    assert not document["explorations"]
    (row,) = document["replays"]
    assert row["bundle"].startswith(name)
    assert row["status"] == status
    return result, str(row["text"])


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Call ``statepersist``; it starts pytest in a process of its own."""
    capsys.readouterr()
    code = main([*arguments])
    return code, capsys.readouterr().out


def test_one_disk_is_run_and_nothing_is_explored(pytester: pytest.Pytester) -> None:
    pytester.runpytest_inprocess().assert_outcomes(failed=2)
    first, second = kept(pytester)
    assert first[:8] == second[:8], "both tests have the same finding, and each has a bundle"
    assert (pytester.path / ".statepersist" / ".gitignore").read_text() == "*\n"

    failed, _ = replayed(pytester, first, status="FAILED")
    failed.assert_outcomes(failed=1)
    failed.stdout.fnmatch_lines(["*FAILED *JSONDecodeError*", f"{first}: FAILED *"])
    # One worker has the test; the other has nothing to do.
    again, _ = replayed(pytester, first, "-p", "xdist", "-n2", status="FAILED")
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines([f"{first}: FAILED *"])

    # Without the exploration nothing is judged, and nothing is a success.
    change(pytester, "    check(crash_simulator,", "    print(crash_simulator,")
    lost, text = replayed(pytester, first, status="ERROR")
    lost.assert_outcomes(failed=1)
    assert "ended without the exploration" in text


def test_a_repaired_recovery_is_fixed(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    change(pytester, "SAFE = False", "SAFE = True")
    change(pytester, "STRICT = False", "STRICT = True")
    pytester.runpytest_inprocess("-k", "test_two").assert_outcomes(failed=1)
    (name,) = kept(pytester)
    failed, _ = replayed(pytester, name[:8], "test_store.py", status="FAILED")
    failed.assert_outcomes(failed=1, deselected=1)
    change(pytester, "STRICT = True", "STRICT = False")
    fixed, _ = replayed(pytester, name[:8], status="FIXED")
    fixed.assert_outcomes(passed=1)
    fixed.stdout.fnmatch_lines([f"{name}: FIXED *"])
    code, shown = command(capsys, "replay", "--recovery-only")
    assert code == 0
    assert shown == f"FIXED  {name} test_store.py::test_two: recovery returned 1\n"
    assert kept(pytester) == []


def test_a_repaired_save_takes_its_bundles_along(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    pytester.runpytest_inprocess("-k", "test_one")
    (name,) = kept(pytester)
    code, shown = command(capsys, "replay")
    assert code == 1
    assert shown.startswith(f"FAILED {name} test_store.py::test_one: ")
    change(pytester, "SAFE = False", "SAFE = True")
    assert command(capsys, "replay", "--recovery-only")[0] == 1
    code, shown = command(capsys, "replay")
    assert code == 0
    why = "the save no longer leaves such a disk"
    assert shown == f"FIXED  {name} test_store.py::test_one: {why}\n"
    assert kept(pytester) == []


def test_a_bundle_whose_test_is_gone_is_an_error(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    pytester.runpytest_inprocess("-k", "test_one")
    (name,) = kept(pytester)
    change(pytester, "def test_one", "def test_renamed")
    code, shown = command(capsys, "replay")
    assert code == 2
    assert shown.startswith(f"ERROR  {name} test_store.py::test_one: ")
    assert kept(pytester) == [name]
