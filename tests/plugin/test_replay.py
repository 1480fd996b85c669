"""A finding of a test is kept, replayed alone, and gone once it is repaired."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from pytest_statepersist.bundle_json import bundle_name
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
    pytester: pytest.Pytester,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytester.runpytest_inprocess()
    one, two = kept(pytester)
    runs: list[object] = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: (runs.append(a), run(*a, **k))[1])
    code, shown = command(capsys, "replay")
    assert code == 1
    assert [line[:22] for line in shown.splitlines()] == [f"FAILED {one}", f"FAILED {two}"]
    assert len(runs) == 2, "all disks in one run, all saves in another"
    change(pytester, "SAFE = False", "SAFE = True")
    assert command(capsys, "replay", "--recovery-only")[0] == 1
    code, shown = command(capsys, "replay", "--keep")
    assert code == 0
    assert shown.count(": the save no longer leaves such a disk\n") == 2
    assert kept(pytester) == [one, two]
    code, shown = command(capsys, "replay", one[:-1])
    assert (code, len(kept(pytester))) == (0, 1)


def test_a_bundle_whose_test_is_gone_is_an_error(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    """And it is the only one: a run that it stops says nothing of others."""
    pytester.runpytest_inprocess()
    names = kept(pytester)
    change(pytester, "def test_one", "def test_renamed")
    code, shown = command(capsys, "replay", "--recovery-only")
    assert code == 2
    by_test = dict(reversed(line.split(": ")[0].split(maxsplit=1)) for line in shown.splitlines())
    assert sorted(by_test.values()) == ["ERROR", "FAILED"]
    assert by_test[next(each for each in by_test if "test_one" in each)] == "ERROR"
    assert kept(pytester) == names

    # A bundle from elsewhere brings no file that is not one of tests to be imported.
    path = pytester.path / ".statepersist" / "bundles" / f"{names[0]}.json"
    row = json.loads(path.read_text()) | {"test": "deploy.py::test_one"}
    row["name"] = bundle_name("00000000", row["test"], row["exploration"], row["ordinal"])
    (pytester.path / "sent.json").write_text(json.dumps(row))
    pytester.makepyfile(deploy="raise SystemExit('deployed')")
    refused = pytester.runpytest_inprocess("--statepersist-replay", "sent.json")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*whose file is not one of tests*"])


APP = """
    import json, os

    def save(path, value, *, synced=False):
        scratch = path.with_suffix(".tmp")
        with open(scratch, "w") as file:
            json.dump(value, file)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        os.replace(scratch, path)
        descriptor = os.open(path.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def load(path, *, careful=False):
        try:
            return json.loads(path.read_text())
        except ValueError:
            if not careful:
                raise
            return {"n": 2}
"""
TEST = """
    from my_app import load, save

    OLD = {"n": 1}

    def test_save(crash_simulator):
        crash_simulator.check(
            setup=lambda d: save(d / "s", OLD), workload=lambda d: save(d / "s", {"n": 2}),
            recover=lambda d: load(d / "s"), before=OLD, after={"n": 2},
        )
"""


def test_the_printed_regression_test_runs_as_it_is(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    """It fails as long as the bug is there, and passes once the save or the load is repaired."""
    pytester.makepyfile(my_app=APP, test_save=TEST)
    pytester.runpytest_inprocess("test_save.py").assert_outcomes(failed=1)
    (name,) = kept(pytester)
    code, shown = command(capsys, "show", name)
    assert code == 0
    copied = shown.partition("lies beside it:")[2]
    target = pytester.path / "regressions"
    target.mkdir()
    (pytester.path / "conftest.py").write_text("")
    source = "\n".join(line[4:] for line in copied.splitlines())
    (target / "test_regression.py").write_text(source)
    (pytester.path / ".statepersist" / "bundles" / f"{name}.json").rename(target / f"{name}.json")
    assert "from my_app import load\n" in source
    assert "import save\n" in source
    assert "workload=lambda d: save(d / 's', {'n': 2})," in source

    regression = ("regressions/test_regression.py",)
    failed = pytester.runpytest_inprocess(*regression)
    failed.assert_outcomes(failed=1)
    failed.stdout.fnmatch_lines(["*missing fsync before rename*"])
    app = pytester.path / "my_app.py"
    for old, new in (("synced=False", "synced=True"), ("careful=False", "careful=True")):
        app.write_text(app.read_text().replace(old, new))
        pytester.runpytest_inprocess(*regression).assert_outcomes(passed=1)
        app.write_text(app.read_text().replace(new, old))
    pytester.runpytest_inprocess(*regression).assert_outcomes(failed=1)


def test_a_function_with_another_name_is_no_repair(
    pytester: pytest.Pytester,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ids are made of names; and the command works from any directory of the project."""
    pytester.runpytest_inprocess("-k", "test_one")
    (name,) = kept(pytester)
    change(pytester, "save(", "store_it(")
    inner = pytester.mkdir("inner")
    monkeypatch.chdir(inner)
    code, shown = command(capsys, "replay", "--keep")
    assert code == 1
    assert shown.startswith(f"FAILED {name} test_store.py::test_one: ")
