"""A machine that fails: what it says, what it keeps, and how that is done again."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

# Loaded out here, or each run in this process would load them anew.
import pytest_statepersist.machine_keeping
import pytest_statepersist.report.capabilities  # noqa: F401
from pytest_statepersist.cli import main
from pytest_statepersist.machines import AtomicityMachine, RoundTripMachine, replay_history

assert AtomicityMachine
assert RoundTripMachine

STORE = """
    import json, os
    from hypothesis import Phase, settings
    from pytest_statepersist.adapter import Capabilities, StoreAdapter
    from pytest_statepersist.machines import AtomicityMachine, RoundTripMachine

    SAFE = False
    FORGETS = True

    class NotesAdapter(StoreAdapter):
        capabilities = Capabilities(durable=True, crash_recovery=True)

        def open(self, directory):
            return directory

        def sync(self, path):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

        def save(self, store, key, value):
            if not key.replace("-", "").replace("_", "").isalnum() or len(key) > 99:
                raise ValueError(key)
            (store / f"{key}.tmp").write_text(json.dumps(value))
            if SAFE:
                self.sync(store / f"{key}.tmp")
            os.rename(store / f"{key}.tmp", store / f"{key}.json")
            self.sync(store)

        def load(self, store, key):
            return json.loads((store / f"{key}.json").read_text())

        def delete(self, store, key):
            os.unlink(store / f"{key}.json")
            self.sync(store)

        def keys(self, store):
            return [path.stem for path in store.glob("*.json")]

    class ForgetfulAdapter(NotesAdapter):
        def delete(self, store, key):
            if not FORGETS:
                super().delete(store, key)

    def few(case):
        case.settings = settings(case.settings, max_examples=40, stateful_step_count=8,
                                 database=None, derandomize=True)
        return case

    class TestCrashes(few(AtomicityMachine.for_store(NotesAdapter).TestCase)):
        pass

    class TestPlain(few(RoundTripMachine.for_store(ForgetfulAdapter).TestCase)):
        pass
"""


@pytest.fixture(autouse=True)
def _store(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider")
    pytester.makepyfile(test_notes=STORE)
    monkeypatch.chdir(pytester.path)


def kept(pytester: pytest.Pytester) -> list[str]:
    place = pytester.path / ".statepersist" / "bundles"
    return sorted(path.name.split(".")[0] for path in place.glob("*.json*"))


def change(pytester: pytest.Pytester, old: str, new: str) -> None:
    path = pytester.path / "test_notes.py"
    path.write_text(path.read_text().replace(old, new))


def replayed(pytester: pytest.Pytester, name: str) -> dict[str, Any]:
    pytester.runpytest_inprocess("--statepersist-replay", name, "--statepersist-json=out.json")
    (row,) = json.loads(Path(pytester.path / "out.json").read_text())["replays"]
    assert isinstance(row, dict)
    return row


def test_a_crash_is_told_in_full_kept_replayed_and_gone_once_it_is_repaired(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    result = pytester.runpytest_inprocess("-k", "TestCrashes", "--statepersist-json=out.json")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.re_match_lines(
        [
            r"E +On disk, under posix:",
            r"E +save\('a', \{\}\)",
            r"E +(PARTLY )?LOST +#1 write a.tmp bytes 0..2 +test_notes.py:\d+",
            r"E +crash at \d of \d operations, .*",
            r"E +\[\w{8}\] missing fsync before rename, at test_notes.py:\d+.*",
            r"E +What was lost: .*",
            r"E +What recovery saw:",
            r"E +a.json: .*",
            r"E +What to do:",
            r"E +Repair: fsync a.tmp after #\d .* at test_notes.py:\d+",
            r"E +Replay it: pytest --statepersist-replay [0-9a-f]{8}-[0-9a-f]{6}",
            r"E +A test of it to copy, and what was on disk: statepersist show .*",
            r"AtomicityMachine of Notes, \w+: posix: atomic NO.*",
        ]
    )
    steps = re.findall(r"^E +state\.(\w+)", result.stdout.str(), re.M)
    assert steps == ["open", "save", "teardown"], "the crash comes in the save"
    (exploration,) = json.loads(Path(pytester.path / "out.json").read_text())["explorations"]
    assert exploration["test"] == "test_notes.py::TestCrashes::runTest"
    assert {finding["deviations"] for finding in exploration["findings"]} == {1}

    name = kept(pytester)[0]
    assert exploration["findings"][0]["bundle"] in kept(pytester)
    assert replayed(pytester, name)["status"] == "FAILED"
    assert name in kept(pytester)
    assert main(["materialize", name, "disk"]) == 0
    assert (pytester.path / "disk" / "a.json").exists()

    again = pytester.runpytest_inprocess("-k", "TestCrashes")
    again.assert_outcomes(failed=1, deselected=1)
    again.stdout.re_match_lines([r"The kept history .* still fails\."])

    change(pytester, "SAFE = False", "SAFE = True")
    row = replayed(pytester, name)
    assert row["status"] == "FIXED", row["text"]
    pytester.runpytest_inprocess("-k", "TestCrashes").assert_outcomes(passed=1, deselected=1)
    assert kept(pytester) == [], "what is followed without a failure is no longer kept"


def test_a_failure_without_a_crash_is_kept_too(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    result = pytester.runpytest_inprocess("-k", "TestPlain")
    result.assert_outcomes(failed=1, deselected=1)
    (name,) = kept(pytester)
    result.stdout.fnmatch_lines([f"E*Replay it: pytest --statepersist-replay {name}"])
    assert replayed(pytester, name)["status"] == "FAILED"

    capsys.readouterr()
    assert main(["show", name]) == 0
    shown = capsys.readouterr().out
    assert "'a' was deleted and still gives {}" in shown
    assert "  delete(0)" in shown
    test = shown.split("of Hypothesis:\n")[1]
    source = "\n".join(line.removeprefix("    ") for line in test.splitlines())
    (pytester.path / "test_again.py").write_text(f"from test_notes import TestPlain\n{source}\n")
    sys.path.insert(0, str(pytester.path))
    try:
        only = ("test_again.py", "-k", "history")
        pytester.runpytest_inprocess(*only).assert_outcomes(failed=1, deselected=1)
        change(pytester, "FORGETS = True", "FORGETS = False")
        assert replayed(pytester, name)["status"] == "FIXED"
        pytester.runpytest_inprocess(*only).assert_outcomes(passed=1, deselected=1)
    finally:
        sys.path.remove(str(pytester.path))


def test_no_bundle_is_lost_between_workers(pytester: pytest.Pytester) -> None:
    change(pytester, "derandomize=True)", "derandomize=True, phases=[Phase.generate])")
    result = pytester.runpytest_subprocess("-p", "xdist", "-n2")
    result.assert_outcomes(failed=2)
    names = kept(pytester)
    shown = result.stdout.str()
    assert len(names) >= 2
    assert all(f"--statepersist-replay {name}" in shown for name in names)


def test_a_history_that_cannot_be_followed_is_an_error_and_never_fixed(
    pytester: pytest.Pytester,
) -> None:
    pytester.runpytest_inprocess("-k", "TestPlain")
    (name,) = kept(pytester)
    path = next((pytester.path / ".statepersist" / "bundles").glob("*"))
    path.write_text(path.read_text().replace('\\"rule\\": \\"delete\\"', '\\"rule\\": \\"erase\\"'))
    row = replayed(pytester, name)
    assert row["status"] == "ERROR"
    assert "no rule 'erase'" in row["text"]
    assert kept(pytester) == [name]


def test_a_history_is_refused_where_it_is_none() -> None:
    from pytest_statepersist.errors import UserError

    with pytest.raises(UserError, match="no machine of a store"):
        replay_history(int, "{}")
    machine = RoundTripMachine.for_store(_nothing())
    with pytest.raises(UserError, match="no history"):
        replay_history(machine, '{"format": "something else"}')


def _nothing() -> Any:
    from pytest_statepersist.adapter import StoreAdapter

    return StoreAdapter()
