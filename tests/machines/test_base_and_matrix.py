from __future__ import annotations

import json
import os
import subprocess
import sys
import unittest
from dataclasses import replace

import pytest

from pytest_statepersist import matrix
from pytest_statepersist.adapter import Capabilities, StoreAdapter
from pytest_statepersist.errors import UserError
from pytest_statepersist.machines import MACHINES, profiles
from pytest_statepersist.machines.base import as_text
from pytest_statepersist.machines.reference_stores import REFERENCE_STORES, LocalStorageAdapter
from pytest_statepersist.machines.round_trip import RoundTripMachine
from pytest_statepersist.matrix import Status
from pytest_statepersist.report.capabilities import matrix_lines
from tests.machines.broken import Files


def test_a_capability_without_its_method_is_an_error() -> None:
    class Careless(Files):
        capabilities = Capabilities(backup=True)

    with pytest.raises(UserError, match=r"no method backup"):
        Careless().has("backup")


def test_a_word_that_is_no_capability_is_an_error() -> None:
    with pytest.raises(UserError, match="no capability"):
        Files().has("wings")


@pytest.mark.parametrize("store", REFERENCE_STORES, ids=lambda s: s.__name__)
def test_every_declared_capability_of_the_reference_stores_has_its_methods(
    store: type[StoreAdapter],
) -> None:
    adapter = store()
    assert [name for name in Capabilities.__dataclass_fields__ if adapter.has(name)]


def test_a_machine_needs_a_store() -> None:
    with pytest.raises(UserError, match="for_store"):
        RoundTripMachine()
    with pytest.raises(UserError, match="StoreAdapter"):
        type("Mine", (RoundTripMachine,), {"store": 3})


def test_a_machine_can_be_subclassed() -> None:
    class Mine(RoundTripMachine):
        store = Files  # type: ignore[assignment]

    machine = Mine()
    assert isinstance(machine.adapter, Files)
    machine.teardown()


def test_values_that_python_takes_for_equal_are_told_apart() -> None:
    assert len({as_text({"a": value}) for value in (1, 1.0, True)}) == 3
    assert as_text({"a": 1, "b": 2}) == as_text({"b": 2, "a": 1})


class Promises(Files):
    capabilities = Capabilities(durable=True, backup=False)


def test_rows_are_pending_until_their_test_has_ended() -> None:
    matrix.take()
    matrix.about_to_test(Promises(), "Machine", ("durable",))
    matrix.about_to_test(Promises(), "Machine", ("durable",))
    rows = matrix.take()
    assert matrix.take() == ()
    assert [row.by for row in rows if row.capability == "durable"] == ["Machine"]
    assert [matrix.Row(**row.plain()) for row in rows] == list(rows)
    (failed,) = [r for r in matrix.judged(rows, Status.FAILS, "why") if r.capability == "durable"]
    assert (failed.status, failed.reason) == ("FAILS", "why")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((Status.YES, Status.FAILS, Status.SKIPPED), "FAILS"),
        ((Status.YES, Status.KNOWN), "known"),
        ((Status.YES, Status.SKIPPED), "partly"),
        ((Status.YES, Status.UNTESTED), "yes"),
        ((Status.SKIPPED, Status.UNTESTED), "skipped"),
        ((Status.UNTESTED,), "untested"),
        ((Status.NO,), "no"),
    ],
)
def test_what_several_tests_say_of_one_promise(found: tuple[Status, ...], expected: str) -> None:
    rows = [matrix.Row("Store", "durable", f"t{n}", s.value) for n, s in enumerate(found)]
    (entry,) = matrix.merged(rows)
    assert entry["status"] == expected


def test_a_wide_matrix_is_folded_and_says_why() -> None:
    rows = [matrix.Row(f"Store{n}", "durable", "M", "yes") for n in range(12)]
    rows += [matrix.Row("Store1", "backup", f"t{n}", "FAILS", "no") for n in range(9)]
    rows += [matrix.Row("Store1", "quota", "", "no")]
    lines = list(matrix_lines(matrix.merged(rows), width=80))
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("capability ") for line in lines) == 2
    assert "declared by no store, not tested: quota" in lines
    assert lines[lines.index("Store1 backup: FAILS") + 1] == "  t0: no"
    assert lines[-1] == "  … and 4 more"
    assert list(matrix_lines([])) == []


def test_an_unknown_profile_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(profiles.VARIABLE, "huge")
    with pytest.raises(UserError, match="dev, ci, soak"):
        profiles.current()


def test_profiles_decide_how_many_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in profiles.PROFILES:
        monkeypatch.setenv(profiles.VARIABLE, name)
        machine = RoundTripMachine.for_store(Files)
        expected = round(profiles.PROFILES[name].examples * RoundTripMachine.weight)
        assert machine.TestCase.settings.max_examples == expected


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_a_profile_governs_what_really_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many examples of so many steps are run, and the same ones again where it says so."""
    real = profiles.PROFILES[name]
    small = replace(real, examples=real.examples % 53 + 6, steps=real.steps // 5)
    monkeypatch.setitem(profiles.PROFILES, name, small)
    monkeypatch.setenv(profiles.VARIABLE, name)
    runs: list[list[str]] = []
    for _ in range(2):
        ran: list[str] = []

        class Counted(RoundTripMachine):
            weight = 1.0
            store = LocalStorageAdapter  # type: ignore[assignment]

            def teardown(self, ran: list[str] = ran) -> None:
                ran.append(self.history.to_json())
                super().teardown()

        outcome = unittest.TestResult()
        Counted.TestCase("runTest").run(outcome)
        assert outcome.wasSuccessful(), outcome
        runs.append(ran)
    assert all(len(ran) >= small.examples for ran in runs)
    steps = [len(json.loads(history)["steps"]) for history in runs[0]]
    assert max(steps) <= small.steps + 1  # the opening is no drawn step
    assert (runs[0] == runs[1]) is real.fixed


def test_machines_are_found_by_name_and_the_adapters_come_without_hypothesis() -> None:
    code = (
        "import sys; import pytest_statepersist.machines.reference_stores, "
        "pytest_statepersist.matrix; assert 'hypothesis' not in sys.modules; "
        "import pytest_statepersist.machines as m; [getattr(m, name) for name in m.MACHINES]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
    assert len(MACHINES) == 7


def test_a_test_case_runs_under_pytest(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "from pytest_statepersist.machines import AtomicityMachine, RetentionMachine\n"
        "from pytest_statepersist.machines.reference_stores import LocalStorageAdapter as Store\n"
        "TestCrashes = AtomicityMachine.for_store(Store).TestCase\n"
        "TestCrashes.settings = __import__('hypothesis').settings(\n"
        "    TestCrashes.settings, max_examples=3, database=None)\n"
        "TestRetention = RetentionMachine.for_store(Store).TestCase\n"
    )
    result = pytester.runpytest("-rs", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*LocalStorage does not declare snapshots, retention"])
