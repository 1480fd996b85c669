"""A finding of a test is kept, replayed alone, and gone once it is repaired."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

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
    path.write_text(path.read_text().replace(old, new))


def replayed(pytester: pytest.Pytester) -> list[Any]:
    found: list[Any] = json.loads(Path(pytester.path / "out.json").read_text())["replays"]
    return found


def test_no_bundle_is_lost_and_one_is_replayed(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("-n2")
    result.assert_outcomes(failed=2)
    bundles = kept(pytester)
    assert len(bundles) == 2, "both tests have the same finding, and each has a bundle"
    assert (pytester.path / ".statepersist" / ".gitignore").read_text() == "*\n"
    for name in bundles:
        result.stdout.fnmatch_lines([f"*--statepersist-replay {name}*"])

    failed = pytester.runpytest_subprocess(
        "--statepersist-replay", bundles[0], "--statepersist-json=out.json"
    )
    failed.assert_outcomes(failed=1)
    failed.stdout.fnmatch_lines(["*FAILED *JSONDecodeError*", f"{bundles[0]}: FAILED *"])
    (row,) = replayed(pytester)
    assert (row["bundle"], row["status"]) == (bundles[0], "FAILED")
    assert not json.loads((pytester.path / "out.json").read_text())["explorations"]

    # Without the exploration nothing is judged, and nothing is a success.
    change(pytester, "    check(crash_simulator,", "    print(crash_simulator,")
    lost = pytester.runpytest_subprocess(
        "--statepersist-replay", bundles[0], "--statepersist-json=out.json"
    )
    lost.assert_outcomes(failed=1)
    (row,) = replayed(pytester)
    assert row["status"] == "ERROR"
    assert "ended without the exploration" in row["text"]


def test_a_repaired_recovery_is_fixed(pytester: pytest.Pytester) -> None:
    change(pytester, "SAFE = False", "SAFE = True")
    change(pytester, "STRICT = False", "STRICT = True")
    pytester.runpytest_subprocess("-k", "test_two").assert_outcomes(failed=1)
    (name,) = kept(pytester)
    replay = ("--statepersist-replay", name[:8])
    pytester.runpytest_subprocess(*replay, "test_store.py").assert_outcomes(failed=1, deselected=1)
    change(pytester, "STRICT = True", "STRICT = False")
    fixed = pytester.runpytest_subprocess(*replay)
    fixed.assert_outcomes(passed=1)
    fixed.stdout.fnmatch_lines([f"{name}: FIXED *"])
    done = pytester.run(sys.executable, "-m", "pytest_statepersist", "replay", "--recovery-only")
    assert done.ret == 0
    done.stdout.fnmatch_lines([f"FIXED  {name} test_store.py::test_two: recovery returned 1"])
    assert kept(pytester) == []


def test_a_repaired_save_takes_its_bundles_along(pytester: pytest.Pytester) -> None:
    pytester.runpytest_subprocess("-k", "test_one")
    assert len(kept(pytester)) == 1
    change(pytester, "SAFE = False", "SAFE = True")
    still = pytester.run(sys.executable, "-m", "pytest_statepersist", "replay", "--recovery-only")
    assert still.ret == 1
    still.stdout.fnmatch_lines(["FAILED * test_store.py::test_one*"])
    done = pytester.run(sys.executable, "-m", "pytest_statepersist", "replay")
    assert done.ret == 0
    done.stdout.fnmatch_lines(["FIXED * test_store.py::test_one*no longer leaves*"])
    assert kept(pytester) == []


def test_a_bundle_whose_test_is_gone_is_an_error(pytester: pytest.Pytester) -> None:
    pytester.runpytest_subprocess("-k", "test_one")
    change(pytester, "def test_one", "def test_renamed")
    done = pytester.run(sys.executable, "-m", "pytest_statepersist", "replay")
    assert done.ret == 2
    done.stdout.fnmatch_lines(["ERROR * test_store.py::test_one*"])
    assert len(kept(pytester)) == 1
