"""The way from a workload to a verdict, and what becomes of subjects that misbehave."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist import (
    MODELS,
    BlindSpot,
    CrashConsistencyError,
    CrashSimulator,
    Kind,
    NotCovered,
    Trace,
    UserError,
    raises,
)

OLD, NEW = {"score": 1}, {"score": 2}


def save_without_directory(path: Path, value: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save(path: Path, value: Any) -> None:
    save_without_directory(path, value)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_badly(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def explore(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "setup": lambda d: save(d / "state", OLD),
        "workload": lambda d: save(d / "state", NEW),
        "recover": lambda d: load(d / "state"),
    }
    return CrashSimulator().explore(**{**arguments, **changes})


# -- verdicts


def test_a_correct_save_is_atomic_and_durable_under_every_model() -> None:
    report = explore(model=list(MODELS))
    for name in MODELS:
        verdict = report.verdict(name)
        assert (verdict.atomic, verdict.durable, verdict.complete) == (True, True, True), name
        assert verdict.states > 2
    assert report.findings == ()
    assert report.safe


def test_a_save_in_place_is_caught() -> None:
    report = explore(workload=lambda d: save_badly(d / "state", NEW), model=["posix", "kill"])
    assert report.verdict("posix").atomic is False
    assert report.verdict("posix").durable is False
    assert report.verdict("kill").atomic is False
    assert report.verdict("kill").durable is True
    assert report.findings[0].kind is Kind.UNRECOVERABLE
    assert Path(report.findings[0].site.file).name == "test_simulator.py"
    assert report.findings[0].confirmed is True


def test_check_raises_with_the_report() -> None:
    with pytest.raises(CrashConsistencyError, match=r"NOT on disk|PARTLY on disk") as caught:
        CrashSimulator().check(
            setup=lambda d: save(d / "state", OLD),
            workload=lambda d: save_badly(d / "state", NEW),
            recover=lambda d: load(d / "state"),
        )
    assert caught.value.report.findings
    assert isinstance(caught.value, AssertionError)


def test_nothing_saved_before() -> None:
    report = explore(setup=None, before=raises(FileNotFoundError))
    assert report.safe
    report = explore(setup=None, before=raises(ValueError))
    assert report.verdict("posix").atomic is False


def test_two_unsynced_files_that_are_both_lost_are_found() -> None:
    def workload(directory: Path) -> None:
        (directory / "a").write_bytes(b"new")
        (directory / "b").write_bytes(b"new")

    def recover(directory: Path) -> bool:
        both = [(directory / name).exists() for name in "ab"]
        return True in both  # one of the two is enough

    report = explore(setup=None, workload=workload, recover=recover, before=False, after=True)
    assert report.verdict("posix").durable is False


def test_ten_correct_saves_have_no_finding_under_any_model() -> None:
    def workload(directory: Path, acknowledge: Any) -> None:
        for number in range(10):
            save(directory / "state", number)
            acknowledge(number)

    report = explore(workload=workload, model=list(MODELS), before=OLD)
    assert report.findings == ()
    assert report.safe


def test_an_acknowledged_value_must_survive() -> None:
    def workload(directory: Path, acknowledge: Any) -> None:
        for number in range(3):
            save_badly(directory / str(number), number)
            acknowledge(number)

    def recover(directory: Path) -> set[int]:
        return {int(p.name) for p in directory.iterdir() if p.read_text()}

    def all_there(recovered: set[int], acknowledged: tuple[int, ...]) -> bool:
        return recovered >= set(acknowledged)

    report = explore(setup=None, workload=workload, recover=recover, invariant=all_there)
    assert report.verdict("posix").durable is False
    assert {f.kind for f in report.findings} == {Kind.DURABILITY}
    sound = explore(
        setup=None, workload=workload, recover=recover, invariant=all_there, model="kill"
    )
    assert sound.safe


def test_async_workloads_and_recoveries_are_awaited() -> None:
    async def workload(directory: Path) -> None:
        await asyncio.to_thread(save, directory / "state", NEW)

    async def recover(directory: Path) -> Any:
        await asyncio.sleep(0)
        return load(directory / "state")

    assert explore(workload=workload, recover=recover).safe


@pytest.mark.parametrize("which", ["setup", "workload", "recover"])
def test_an_async_test_is_told_that_nothing_can_be_awaited_there(which: str) -> None:
    """An async recovery gave the RuntimeError of asyncio for each state, as a finding."""

    async def later(directory: Path) -> Any:
        return load(directory / "state")

    async def test() -> None:
        await asyncio.sleep(0)
        explore(**{which: later})

    with pytest.raises(UserError, match=r"inside an event loop .* def, not async def"):
        asyncio.run(test())


@pytest.mark.parametrize("which", ["setup", "workload"])
@pytest.mark.parametrize("skip", [pytest.skip.Exception, unittest.SkipTest])
def test_a_test_may_skip_itself_from_inside(which: str, skip: type[BaseException]) -> None:
    def missing(directory: Path) -> None:
        raise skip("no such library here")

    with pytest.raises(skip, match="no such library"):
        explore(**{which: missing})


@pytest.mark.parametrize("acknowledges", [True, False])
@pytest.mark.parametrize("durable", [True, False])
def test_after_is_demanded_beside_an_invariant(acknowledges: bool, durable: bool) -> None:
    """It was passed over: durable was "not asked", and the advice was to give it."""

    def workload(directory: Path, acknowledge: Callable[[Any], None]) -> None:
        save(directory / "state", {"score": 1.5})
        if acknowledges:
            acknowledge({"score": 1.5})
        if durable:
            save(directory / "state", NEW)
        else:
            save_without_directory(directory / "state", NEW)

    def never_less(found: Any, acknowledged: tuple[Any, ...]) -> bool:
        least = max([1, *(each["score"] for each in acknowledged)])
        return bool(found["score"] >= least)

    report = explore(workload=workload, invariant=never_less, after=NEW)
    verdict = report.verdict("posix")
    assert (verdict.atomic, verdict.durable) == (True, durable)
    if not durable:
        assert report.findings[0].kind is Kind.DURABILITY
        assert "{'score': 2}, and never_less(" in report.findings[0].expected
        assert report.repairs


# -- observation: many states, few runs


def test_forty_independent_files_of_which_three_are_read_need_a_handful_of_runs() -> None:
    def workload(directory: Path) -> None:
        for number in range(40):
            (directory / f"file{number}").write_bytes(b"x")

    def recover(directory: Path) -> list[bool]:
        return [(directory / f"file{number}").exists() for number in (3, 17, 31)]

    def anything(recovered: list[bool], _: object) -> bool:
        return len(recovered) == 3

    report = explore(
        setup=None, workload=workload, recover=recover, invariant=anything, deviations=50
    )
    verdict = report.verdict("posix")
    assert (verdict.atomic, verdict.complete) == (True, True)
    assert verdict.coverage.startswith("all ")
    assert report.runs < 60


def test_a_large_temporary_that_recovery_never_opens_costs_no_run_for_each_torn_block() -> None:
    def workload(directory: Path) -> None:
        temporary = directory / "state.tmp"
        with open(temporary, "wb", buffering=0) as file:
            file.write(json.dumps({"score": 2, "pad": "x" * 100_000}).encode())
            os.fsync(file.fileno())
        os.replace(temporary, directory / "state")
        descriptor = os.open(directory, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    report = explore(
        workload=workload, recover=lambda d: load(d / "state")["score"], model=list(MODELS)
    )
    assert report.safe
    assert report.runs < 40


@pytest.mark.skipif(os.stat("/tmp").st_dev == os.stat("/dev/shm").st_dev, reason="one device")
def test_a_move_from_another_file_system_is_pointed_out() -> None:
    """States are shown in memory, so that a move from /tmp copies; a link or rename cannot be."""

    def moved(directory: Path) -> None:
        with tempfile.NamedTemporaryFile("w", dir="/tmp", delete=False) as file:
            json.dump(NEW, file)
        shutil.move(file.name, directory / "state")

    report = explore(workload=moved, repairs=False)
    assert any("another file system" in str(each) for each in report.warnings)
    assert not explore(workload=lambda d: save(d / "state", NEW)).warnings

    def renamed(directory: Path) -> None:
        with tempfile.NamedTemporaryFile("w", dir="/tmp") as file:
            os.rename(file.name, directory / "state")

    with pytest.raises(UserError, match=r"cross-device.*workspace="):
        explore(workload=renamed)


# -- recoveries that cannot be trusted in this process


def test_a_cache_on_load_does_not_answer_for_the_disk() -> None:
    @functools.lru_cache
    def cached(path: Path) -> Any:
        return load(path)

    report = explore(
        workload=lambda d: save_badly(d / "state", NEW), recover=lambda d: cached(d / "state")
    )
    assert report.verdict("posix").atomic is False
    assert any("fresh process" in text for text in report.warnings)
    sound = explore(recover=lambda d: cached(d / "state"))
    assert sound.safe


def test_a_recovery_that_follows_a_stored_absolute_path_sees_the_crash_state() -> None:
    def workload(directory: Path) -> None:
        (directory / "data").write_text("new")
        save(directory / "pointer", str(directory / "data"))

    def recover(directory: Path) -> str:
        try:
            target = load(directory / "pointer")
        except FileNotFoundError:
            return "none"
        return Path(target).read_text()

    report = explore(setup=None, workload=workload, recover=recover)
    assert report.verdict("posix").atomic is False


def test_a_recovery_that_cannot_tell_old_from_new_is_not_covered() -> None:
    report = explore(recover=lambda d: "fine")
    verdict = report.verdict("posix")
    assert (verdict.atomic, verdict.durable) == (None, None)
    assert "cannot tell" in verdict.reason
    assert not report.safe


def test_a_recovery_that_is_not_deterministic_is_a_clear_error() -> None:
    counter = itertools.count()

    def recover(directory: Path) -> Any:
        return load(directory / "state"), next(counter), os.urandom(4)

    with pytest.raises(UserError, match="deterministic"):
        explore(recover=recover)


# -- recoveries that misbehave


def test_a_recovery_that_hangs_on_a_crash_state_is_a_finding() -> None:
    def recover(directory: Path) -> Any:
        while True:
            try:
                return load(directory / "state")
            except ValueError:
                time.sleep(0.01)

    report = explore(
        workload=lambda d: save_badly(d / "state", NEW), recover=recover, time_limit=0.2
    )
    assert Kind.HANG in {finding.kind for finding in report.findings}
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_hang_is_found_in_another_thread_than_the_main_one() -> None:
    found: list[Any] = []

    def recover(directory: Path) -> Any:
        while True:
            try:
                return load(directory / "state")
            except ValueError:
                time.sleep(0.01)

    thread = threading.Thread(
        target=lambda: found.append(
            explore(
                workload=lambda d: save_badly(d / "state", NEW), recover=recover, time_limit=0.2
            )
        )
    )
    thread.start()
    thread.join()
    assert Kind.HANG in {finding.kind for finding in found[0].findings}


@pytest.mark.parametrize("leave", ["exit", "_exit"])
def test_a_recovery_that_exits_is_a_finding(leave: str) -> None:
    def recover(directory: Path) -> Any:
        try:
            return load(directory / "state")
        except ValueError:
            getattr(sys if leave == "exit" else os, leave)(3)

    report = explore(workload=lambda d: save_badly(d / "state", NEW), recover=recover)
    assert Kind.UNRECOVERABLE in {finding.kind for finding in report.findings}
    assert os._exit.__module__ == "posix"


def test_what_recovery_changes_is_put_back_before_the_next_state() -> None:
    def recover(directory: Path) -> Any:
        value = load(directory / "state")
        for path in list(directory.iterdir()):
            path.unlink()
        save(directory / "state", value)
        (directory / "deep").mkdir()
        (directory / "deep" / "junk").write_text("junk")
        return value

    report = explore(recover=recover, recovery_crashes=0)
    assert report.safe


# -- arguments and surroundings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "ext5"}, "no persistence model 'ext5'"),
        ({"model": []}, "no persistence model was named"),
        ({"model": 3}, "given by name, not as int"),
        ({"budget": "nans"}, "budget='nans'"),
        ({"seed": "7"}, "seed='7'"),
        ({"time_limit": float("nan")}, "time_limit=nan"),
        ({"time_limit": "5s"}, "time_limit='5s'"),
        ({"workspace": "/no/such"}, "workspace='/no/such' is no directory"),
        ({"budget": 0}, "budget=0"),
        ({"budget": -3}, "budget=-3"),
        ({"budget": "soon"}, "budget='soon'"),
        ({"deviations": -1}, "deviations=-1"),
        ({"recovery_crashes": -1}, "recovery_crashes=-1"),
        ({"time_limit": 0}, "time_limit=0"),
        ({"recorder": "magic"}, "recorder='magic'"),
        ({"speed": 3}, "no setting 'speed'"),
        ({"workload": 3}, "workload="),
        ({"recover": None}, "recover="),
        ({"setup": "x"}, "setup="),
        ({"invariant": 1}, "invariant="),
    ],
)
def test_arguments_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        explore(**changes)


def test_a_workload_that_raises_is_a_clear_error() -> None:
    def workload(directory: Path) -> None:
        raise RuntimeError("boom")

    with pytest.raises(UserError, match="the workload raised RuntimeError: boom") as caught:
        explore(workload=workload)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert explore().safe  # everything was undone


def test_a_setup_that_raises_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="setup raised ZeroDivisionError"):
        explore(setup=lambda d: 1 / 0)


def test_a_setup_that_writes_nothing_is_an_empty_start() -> None:
    report = explore(setup=lambda d: None, before=raises(FileNotFoundError))
    assert report.safe


def test_a_workload_that_does_nothing_cannot_be_judged() -> None:
    report = explore(workload=lambda d: None)
    assert report.verdict("posix").durable is None


def test_a_fifo_in_the_state_is_a_clear_error() -> None:
    def setup(directory: Path) -> None:
        save(directory / "state", OLD)
        os.mkfifo(directory / "pipe")

    with pytest.raises(UserError, match="pipe"):
        explore(setup=setup)


def test_record_refuses_what_is_no_directory(tmp_path: Path) -> None:
    simulator = CrashSimulator()
    file = tmp_path / "file"
    file.write_text("x")
    link = tmp_path / "link"
    link.symlink_to(tmp_path, target_is_directory=True)
    for path, message in (
        (file, "not a directory"),
        (link, "symbolic link"),
        (tmp_path / "no", "exist"),
    ):
        with pytest.raises(UserError, match=message), simulator.record(path):
            pass


def test_a_nested_recording_is_a_clear_error(tmp_path: Path) -> None:
    simulator = CrashSimulator()
    with simulator.record(tmp_path) as outer:
        with pytest.raises(UserError, match="one recording"), simulator.record(tmp_path):
            pass
        save(tmp_path / "state", NEW)
    assert len(outer.trace) >= 5


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    originals = (os.open, os.replace, open, os.stat, os._exit)
    explore(workspace=str(tmp_path))
    with pytest.raises(UserError):
        explore(workspace=str(tmp_path), workload=lambda d: 1 / 0)
    assert list(tmp_path.iterdir()) == []
    assert (os.open, os.replace, open, os.stat, os._exit) == originals
    if before:
        assert len(os.listdir("/proc/self/fd")) <= len(before) + 1


# -- the block form


def test_a_recorded_block_is_explored_elsewhere(tmp_path: Path) -> None:
    save(tmp_path / "state", OLD)
    with CrashSimulator().record(tmp_path) as recording:
        save(tmp_path / "state", NEW)
        recording.acknowledge(NEW)
    assert recording.check(recover=lambda d: load(d / "state"), before=OLD, after=NEW).safe
    assert load(tmp_path / "state") == NEW
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state"]
    again = Trace.from_json(recording.trace.to_json())
    assert again.operations == recording.trace.operations


def test_a_recovery_that_reads_the_original_directory_is_a_blind_spot(tmp_path: Path) -> None:
    save(tmp_path / "state", OLD)
    with CrashSimulator().record(tmp_path) as recording:
        save(tmp_path / "state", NEW)
    with pytest.raises(BlindSpot, match="absolute path"):
        recording.explore(recover=lambda d: load(tmp_path / "state"), before=OLD, after=NEW)


def test_crash_states_are_directories(tmp_path: Path) -> None:
    save(tmp_path / "state", OLD)
    with CrashSimulator().record(tmp_path) as recording:
        save_badly(tmp_path / "state", NEW)
    seen = set()
    for state in recording.crash_states(model="ext4"):
        seen.add((state.path / "state").read_bytes())
        assert state.tree.read("state") == (state.path / "state").read_bytes()
        (state.path / "junk").write_text("may be changed")
    assert json.dumps(OLD).encode() in seen
    assert b"" in seen
    assert json.dumps(NEW).encode() in seen


def test_acknowledging_after_the_block_is_an_error(tmp_path: Path) -> None:
    with CrashSimulator().record(tmp_path) as recording, pytest.raises(UserError, match="ended"):
        _ = recording.trace
    with pytest.raises(UserError, match="ended"):
        recording.acknowledge(1)


def test_the_same_seed_gives_the_same_report() -> None:
    def once() -> tuple[Any, ...]:
        report = explore(workload=lambda d: save_badly(d / "state", NEW), seed=5)
        return tuple((f.id, f.cause, f.count) for f in report.findings), report.states_checked

    assert once() == once()


def test_a_budget_that_ends_makes_the_verdict_not_covered() -> None:
    def workload(directory: Path) -> None:
        for number in range(30):
            (directory / f"{number}").write_bytes(b"x")

    def recover(directory: Path) -> int:
        return len(list(directory.iterdir()))

    report = explore(
        setup=None, workload=workload, recover=recover, invariant=lambda r, _: r >= 0, budget=20
    )
    verdict = report.verdict("posix")
    assert (verdict.atomic, verdict.durable, verdict.complete) == (None, None, False)
    assert "budget of 20 recoveries ended" in verdict.coverage


def test_a_finding_says_which_file_systems_allow_its_disk() -> None:
    """Judged under the weakest model, a finding still says how likely it is."""

    def unsynced(directory: Path) -> None:
        (directory / "state.tmp").write_text(json.dumps(NEW))
        os.replace(directory / "state.tmp", directory / "state")

    report = explore(workload=unsynced)
    (finding,) = [f for f in report.findings if f.cause == "missing fsync before rename"]
    assert finding.tree.read("state") == b""
    assert set(finding.allowed_by) == {"posix", "ext4-noauto_da_alloc", "xfs", "btrfs"}
    for name, model in MODELS.items():
        allowed = model.allows(report.trace, finding.tree, at=finding.crash_point)
        assert allowed is (name in finding.allowed_by)


def test_check_does_not_pass_where_a_question_stayed_open() -> None:
    """Two ways of seeing nothing wrong without having seen enough."""
    simulator = CrashSimulator()

    def workload(directory: Path) -> None:
        save(directory / "state", NEW)

    with pytest.raises(NotCovered, match=r"(?s)cannot tell.*does not pass"):
        simulator.check(setup=lambda d: None, workload=workload, recover=lambda d: 0)

    def recover(directory: Path) -> int:
        return sum(path.stat().st_size > 0 for path in directory.iterdir())

    def many(directory: Path) -> None:
        for number in range(30):
            (directory / str(number)).write_text("x")

    with pytest.raises(NotCovered, match="budget of 5 recoveries ended"):
        simulator.check(
            workload=many, recover=recover, invariant=lambda r, _: r >= 0, budget=5
        )
    safe = simulator.check(
        setup=lambda d: save(d / "state", OLD),
        workload=workload,
        recover=lambda d: load(d / "state"),
    )
    assert safe.safe


def test_many_failures_of_one_kind_do_not_hide_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict that says NO to both questions has a finding for each of them."""
    monkeypatch.setattr("pytest_statepersist.diagnosing._DIAGNOSED", 1)

    def workload(directory: Path, acknowledge: Callable[[object], None]) -> None:
        for text in ("1", "2"):
            with open(directory / "log", "a") as file:
                file.write(text)
            acknowledge((directory / "log").read_text())
        with open(directory / "log", "r+") as file:
            for text in ("4", "5"):
                file.write(text)
                file.flush()

    report = CrashSimulator().explore(
        setup=lambda d: (d / "log").write_text(""),
        workload=workload,
        recover=lambda d: (d / "log").read_text(),
        repairs=False,
    )
    assert (report.verdicts[0].atomic, report.verdicts[0].durable) == (False, False)
    kinds = {kind for finding in report.findings for kind in finding.kinds}
    assert kinds == {Kind.ATOMICITY, Kind.DURABILITY}
