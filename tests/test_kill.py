"""Real kills: what a killed process leaves is what the `kill` model allows; recovery copes."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist import (
    CrashConsistencyError,
    CrashSimulator,
    NotCovered,
    UserError,
    raises,
)
from pytest_statepersist.core.models import get_model
from pytest_statepersist.explorer.outcome import Kind
from pytest_statepersist.faults.installing import installed
from tests.zoo.steps import replace_durably


@pytest.fixture(scope="module", autouse=True)
def replacements_once() -> Iterator[None]:
    """Put in place for all tests what each run would put in place for itself."""
    with installed():
        yield


def store(directory: Path, value: Any) -> None:
    replace_durably(directory / "state.json", json.dumps(value).encode())


def load(directory: Path) -> Any:
    return json.loads((directory / "state.json").read_text())


def careless(directory: Path) -> None:
    with open(directory / "state.json", "w") as file:
        file.write("[2")
        file.flush()
        file.write("2]")


def forgetful(directory: Path, acknowledge: Callable[[Any], None]) -> None:
    """Save two things and say so, of which the second is not there."""
    store(directory, 2)
    acknowledge(2)
    acknowledge(3)


def never_less(found: Any, done: tuple[Any, ...]) -> bool:
    return bool(found >= 1)


@pytest.mark.parametrize("given", [{"after": 3}, {"before": 0}, {"before": 0, "after": 2}])
def test_what_is_given_counts_beside_an_invariant(given: dict[str, Any]) -> None:
    options: dict[str, Any] = {
        "setup": lambda d: store(d, 1),
        "recover": load,
        "invariant": never_less,
        "at": "every",
    }
    with pytest.raises(UserError, match="without a kill recovery returned"):
        CrashSimulator().kill(forgetful, **given, **options)
    assert CrashSimulator().kill(forgetful, before=1, after=2, **options).ok is True


def test_a_save_that_had_ended_before_its_kill_is_held_against_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saves and takes its time once, then it is quick and saves nothing."""
    monkeypatch.setattr("pytest_statepersist.kill._SOONEST", 60)
    ran = tmp_path / "ran"

    def worse(directory: Path) -> None:
        if ran.exists():
            return
        store(directory, 2)
        ran.touch()
        time.sleep(0.3)

    report = CrashSimulator().kill(
        worse,
        setup=lambda d: store(d, 1),
        recover=load,
        invariant=never_less,
        after=2,
        seed=3,
        check=False,
    )
    (run,) = report.kills
    assert run.ended
    assert run.problem is not None
    assert run.problem.kind is Kind.DURABILITY


def many(directory: Path) -> None:
    (directory / "d").mkdir()
    with open(directory / "d" / "log", "wb", buffering=0) as log:
        for number in range(3):
            log.write(bytes([number]) * 5000)
    os.link(directory / "d" / "log", directory / "copy")
    os.truncate(directory / "copy", 7000)
    os.rename(directory / "d" / "log", directory / "log")
    (directory / "copy").unlink()
    store(directory, 2)


@pytest.mark.parametrize("workload", [lambda d: store(d, [2]), careless, many])
def test_what_a_kill_leaves_is_allowed_by_the_model(
    tmp_path: Path, workload: Callable[[Path], None]
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    store(state, 1)
    simulator = CrashSimulator()
    with simulator.record(state) as recording:
        workload(state)
    report = simulator.kill(
        workload,
        setup=lambda d: store(d, 1),
        recover=lambda d: sorted(os.listdir(d)),
        invariant=lambda found, done: True,
        at="every",
    )
    assert report.operations >= 3
    assert len(report.kills) == report.operations
    model = get_model("kill")
    for each in report.kills:
        assert not each.ended
        assert model.allows(recording.trace, each.tree), str(each)
    assert len({each.tree.key() for each in report.kills}) >= 2


def test_a_sound_store_survives_every_kill() -> None:
    report = CrashSimulator().kill(
        lambda d: store(d, 2), setup=lambda d: store(d, 1), recover=load, at="every"
    )
    assert report.ok is True
    assert {each.recovered.value for each in report.kills} == {1, 2}


def test_a_careless_store_is_caught_at_the_call() -> None:
    with pytest.raises(CrashConsistencyError, match="killed before call"):
        CrashSimulator().kill(
            careless, setup=lambda d: store(d, [1]), recover=load, before=[1], after=[22], at=2
        )


def test_acknowledged_values_count() -> None:
    def saves(directory: Path, acknowledge: Callable[[object], None]) -> None:
        for number in range(1, 4):
            store(directory, number)
            acknowledge(number)

    report = CrashSimulator().kill(
        saves, setup=lambda d: store(d, 0), recover=load, before=0, after=3, at="every"
    )
    assert report.ok is True
    assert {len(each.acknowledged) for each in report.kills} == {0, 1, 2}

    def too_early(directory: Path, acknowledge: Callable[[object], None]) -> None:
        acknowledge(1)
        store(directory, 1)

    report = CrashSimulator().kill(
        too_early, setup=lambda d: store(d, 0), recover=load, at="every", check=False
    )
    assert report.ok is False
    assert "durability" in str(report)


def test_sqlite_survives_kills_between_its_calls() -> None:
    def save(directory: Path, value: int) -> None:
        with closing(sqlite3.connect(directory / "s.db")) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS t (v)")
            database.execute("DELETE FROM t")
            database.execute("INSERT INTO t VALUES (?)", (value,))

    def value(directory: Path) -> Any:
        with closing(sqlite3.connect(directory / "s.db")) as database:
            return database.execute("SELECT v FROM t").fetchone()[0]

    report = CrashSimulator().kill(
        lambda d: save(d, 2), setup=lambda d: save(d, 1), recover=value, at=range(0, 10, 3)
    )
    assert report.operations > 5
    assert report.ok is True


def test_random_moments_are_drawn_by_seed() -> None:
    arguments: dict[str, Any] = {
        "setup": lambda d: store(d, 0),
        "recover": load,
        "before": 0,
        "invariant": lambda found, done: found >= max((0, *done)),
        "seed": 7,
        "runs": 4,
    }

    def saves(directory: Path, acknowledge: Callable[[object], None]) -> None:
        for number in range(1, 60):
            store(directory, number)
            acknowledge(number)

    report = CrashSimulator().kill(saves, **arguments)
    assert [each.ended for each in report.kills] == [False] * 4
    assert report.findings == ()
    assert all(each.after_seconds >= 0 for each in report.kills if each.after_seconds is not None)


def in_another_program(directory: Path) -> None:
    subprocess.run(["cp", "state.json", "copy.json"], cwd=directory, check=True)


@pytest.mark.parametrize(
    ("workload", "recover", "why"),
    [
        (lambda d: store(d, 2), lambda d: load(d / "misspelt"), "same answer before and after"),
        (in_another_program, lambda d: (d / "copy.json").exists(), "no kill came before the end"),
    ],
)
def test_what_no_kill_could_show_does_not_pass(workload: Any, recover: Any, why: str) -> None:
    with pytest.raises(NotCovered, match=why) as caught:
        CrashSimulator().kill(
            workload, setup=lambda d: store(d, 1), recover=recover, at="every"
        )
    assert caught.value.report.ok is None  # type: ignore[attr-defined]
    assert why in str(caught.value.report.checked())  # type: ignore[attr-defined]


def test_from_nothing_saved() -> None:
    report = CrashSimulator().kill(
        lambda d: store(d, 1), recover=load, before=raises(FileNotFoundError), at="every"
    )
    assert report.ok is True


@pytest.mark.parametrize(
    "wrong", [{}, {"at": 1, "seed": 2}, {"at": 99}, {"at": "some"}, {"at": 2.5}]
)
def test_wrong_moments_are_user_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        CrashSimulator().kill(lambda d: store(d, 1), recover=load, **wrong)
