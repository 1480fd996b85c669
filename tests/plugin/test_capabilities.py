"""The capability matrix: what of each store was tested, what failed, what nobody looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

# Loaded out here, or each run in this process would load them anew.
from pytest_statepersist.conformance.suite import all_test_ids
from pytest_statepersist.machines import BackupMachine, RoundTripMachine

assert BackupMachine
assert RoundTripMachine

STORES = """
    import json, os
    import pytest
    from hypothesis import Phase, settings
    from pytest_statepersist.adapter import Capabilities, StoreAdapter
    from pytest_statepersist.conformance import StoreConformance as Suite
    from pytest_statepersist.machines import BackupMachine, RoundTripMachine

    class Sound(StoreAdapter):
        capabilities = Capabilities(permissions=True, quota=True)
        def open_with_quota(self, directory, quota):
            return directory
        def open(self, directory):
            return directory
        def save(self, store, key, value):
            if not key.replace("-", "").replace("_", "").isalnum() or len(key) > 99:
                raise ValueError(key)
            descriptor = os.open(store / key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w") as file:
                json.dump(value, file)
        def load(self, store, key):
            return json.loads((store / key).read_text())
        def delete(self, store, key):
            (store / key).unlink()
        def keys(self, store):
            return [path.name for path in store.iterdir()]

    class Readable(Sound):
        def save(self, store, key, value):
            super().save(store, key, value)
            os.chmod(store / key, 0o644)

    class Forgets(Sound):
        capabilities = Capabilities(list=False)
        def save(self, store, key, value):
            super().save(store, key, {})

    class TestSound(Suite):
        @pytest.fixture
        def store(self):
            return Sound

    class TestWide(Suite):
        xfails = "known.toml"
        @pytest.fixture
        def store(self):
            return Readable

    few = settings(max_examples=6, stateful_step_count=8, database=None, deadline=None,
                   derandomize=True, phases=[Phase.generate])
    TestSoundMachine = RoundTripMachine.for_store(Sound).TestCase
    TestSoundMachine.settings = few
    TestMachine = RoundTripMachine.for_store(Forgets).TestCase
    TestMachine.settings = few
    TestBackup = BackupMachine.for_store(Forgets).TestCase
"""
KNOWN = """
[TestWide]
test_a_new_store_is_private_at_every_moment = "the mode is widened on purpose"
"""


@pytest.mark.parametrize("workers", [False, True], ids=["plain", "workers"])
def test_the_matrix(pytester: pytest.Pytester, workers: bool) -> None:
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider")
    pytester.makepyfile(test_stores=STORES)
    (pytester.path / "known.toml").write_text(KNOWN)
    chosen = "runTest or private or processes_may"
    options = ("--statepersist-json=out.json", "-k", chosen)
    run = pytester.runpytest_subprocess if workers else pytester.runpytest_inprocess
    result = run(*options, *(("-p", "xdist", "-n2") if workers else ()))
    found = json.loads(Path(pytester.path / "out.json").read_text())["capabilities"]
    matrix = {(each["store"], each["capability"]): each for each in found}

    def status(store: str, capability: str) -> Any:
        return matrix[store, capability]["status"]

    assert status("Sound", "delete") == "yes"
    assert matrix["Sound", "delete"]["by"] == ["RoundTripMachine"]
    assert status("Sound", "permissions") == "partly"
    (reason,) = matrix["Sound", "permissions"]["reasons"]
    assert reason == "test_directories_are_private: not covered: the store makes no directory"
    assert status("Sound", "quota") == "untested", "declared, and no test that ran asks for it"
    assert status("Sound", "concurrent_writers") == "no"
    assert matrix["Sound", "concurrent_writers"]["reasons"] == [
        "test_processes_may_save_at_once: Sound does not declare concurrent_writers"
    ]
    assert status("Readable", "permissions") == "FAILS", "a test that is not listed failed"
    known = "test_a_new_store_is_private_at_every_moment: the mode is widened on purpose"
    assert known in matrix["Readable", "permissions"]["reasons"]
    assert status("Forgets", "delete") == "FAILS"
    assert status("Forgets", "list") == "no"
    assert "BackupMachine: skipped: Forgets does not declare backup, crash_recovery, durable, " \
        "tamper_evident" in matrix["Forgets", "backup"]["reasons"]  # fmt: skip

    shown = result.stdout.str()
    assert shown.count("= capabilities of the stores under test =") == 1
    result.stdout.re_match_lines_random(
        [
            r"capability   +Forgets   +Readable  Sound",
            r"delete   +FAILS   +untested  yes",
            r"permissions  no   +FAILS   +partly",
            r"declared by no store, not tested: atomic_cleanup, atomic_keys, backup, *",
            r"  untested: declared, and nothing that ran tests it",
            r"Sound permissions: partly",
            r"  test_directories_are_private: not covered: the store makes no directory",
        ]
    )


def test_a_listed_failure_is_known_and_no_yes(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider")
    pytester.makepyfile(test_stores=STORES)
    (pytester.path / "known.toml").write_text(KNOWN)
    result = pytester.runpytest_inprocess("-k", "TestWide and private_at_every_moment")
    result.assert_outcomes(xfailed=1, deselected=len(all_test_ids()) * 2 + 2)
    result.stdout.re_match_lines([r"permissions  known", r".*the mode is widened on purpose"])


def test_a_run_without_stores_shows_no_matrix(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_nothing(): pass")
    result = pytester.runpytest_inprocess("--statepersist-json=out.json")
    assert "capabilities" not in result.stdout.str()
    assert json.loads((pytester.path / "out.json").read_text())["capabilities"] == []
