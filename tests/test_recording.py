"""Which recorder sees a workload and a recovery, and what is said where none does."""

from __future__ import annotations

import mmap
import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from pytest_statepersist import BlindSpot, CrashSimulator, Kind, RecorderUnavailable
from pytest_statepersist.recorders import strace
from tests.needs import needs_strace

WITHOUT = "strace is not installed: it comes from the system's package manager"


def shell(directory: Path, script: str) -> str:
    done = subprocess.run(
        ["sh", "-c", script], cwd=directory, check=True, capture_output=True, text=True
    )
    return done.stdout


def setup(directory: Path) -> None:
    (directory / "note").write_text("old")


def save_in_a_child(directory: Path) -> None:
    shell(directory, "printf new > note.tmp && mv note.tmp note")


def save_in_both(directory: Path) -> None:
    (directory / "note.tmp").write_text("new")
    shell(directory, "mv note.tmp note")


def load(directory: Path) -> str:
    return (directory / "note").read_text()


@pytest.fixture
def no_strace(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> str:
        raise RecorderUnavailable(WITHOUT)

    monkeypatch.setattr(strace, "check_available", check)


@needs_strace
def test_a_workload_in_a_child_is_run_again_under_strace() -> None:
    report = CrashSimulator(model="ext4").explore(
        setup=setup, workload=save_in_a_child, recover=load
    )
    assert report.recorder.startswith("strace")
    assert any("because of a blind spot: 'note'" in text for text in report.warnings)
    # ext4 keeps the size of a file that replaces another, not its data.
    verdict = report.verdict("ext4")
    assert (verdict.atomic, verdict.durable, verdict.complete) == (False, False, True)
    assert Kind.DURABILITY in {kind for f in report.findings for kind in f.kinds}


def test_the_shared_memory_of_sqlite_is_no_blind_spot() -> None:
    def run(directory: Path, *statements: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(directory / "db", isolation_level=None)) as connection:
            return [connection.execute(each).fetchall() for each in statements][-1]

    report = CrashSimulator().explore(
        setup=lambda d: run(d, "PRAGMA journal_mode=WAL", "CREATE TABLE t(x)"),
        workload=lambda d: run(d, "PRAGMA synchronous=FULL", "INSERT INTO t VALUES (1)"),
        recover=lambda d: run(d, "SELECT x FROM t"),
        deviations=1,
        samples=0,
    )
    assert report.recorder == "python+sqlite"
    assert not report.warnings
    assert report.safe
    assert not any(o.path.endswith("-shm") for o in report.trace.operations)


@needs_strace
def test_the_lines_of_python_are_lent_to_what_strace_saw() -> None:
    report = CrashSimulator().explore(setup=setup, workload=save_in_both, recover=load)
    assert "with the lines of 3 of 4 operations from python" in report.recorder
    sites = [o.site for o in report.trace.operations]
    line = save_in_both.__code__.co_firstlineno + 1
    assert [(site.file, site.line) for site in sites[:3] if site] == [(__file__, line)] * 3
    assert sites[3] is not None
    assert sites[3].file == "mv"
    assert report.verdict("posix").atomic is False


@needs_strace
def test_strace_can_be_asked_for_and_sees_what_python_sees() -> None:
    def save(directory: Path, acknowledge: object) -> None:
        assert callable(acknowledge)
        for text in ("one", "two"):
            with open(directory / "note", "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            acknowledge(text)

    traces = {}
    for recorder in ("python", "strace"):
        report = CrashSimulator().explore(
            setup=setup, workload=save, recover=load, recorder=recorder, repairs=False
        )
        traces[recorder] = [(type(o), o.path, o.site) for o in report.trace.operations]
        assert [a.position for a in report.trace.acknowledgements] == [4, 8]
        assert report.verdict("posix").atomic is False
    assert traces["python"] == traces["strace"]


def test_without_strace_the_blind_spot_says_what_is_missing(no_strace: None) -> None:
    with pytest.raises(BlindSpot, match=r"'note'.*cannot be used here: strace is not installed"):
        CrashSimulator().explore(setup=setup, workload=save_in_a_child, recover=load)


def save_synced_by_a_program(directory: Path) -> None:
    """As scripts on small boards do: Python writes, and a program syncs."""
    (directory / "new").write_text("new")
    subprocess.run(["sync", directory / "new"], check=True)
    os.replace(directory / "new", directory / "note")
    os.system(f"sync {directory}")


@needs_strace
def test_what_a_program_syncs_is_seen() -> None:
    """Python alone saw each write and no sync: a sound store was accused."""
    report = CrashSimulator().explore(
        setup=setup, workload=save_synced_by_a_program, recover=load, repairs=False
    )
    assert report.safe
    assert any("because of a blind spot: the workload ran" in text for text in report.warnings)


def test_without_strace_a_program_that_may_have_synced_is_told(no_strace: None) -> None:
    report = CrashSimulator().explore(
        setup=setup, workload=save_synced_by_a_program, recover=load, repairs=False
    )
    assert report.findings
    assert any("so a finding may be wrong" in text for text in report.warnings)


def test_in_a_block_a_program_that_may_have_synced_is_told(tmp_path: Path) -> None:
    setup(tmp_path)
    with CrashSimulator().record(tmp_path) as recording:
        save_synced_by_a_program(tmp_path)
    report = recording.explore(recover=load, repairs=False)
    assert any("so a finding may be wrong" in text for text in report.warnings)


@pytest.mark.parametrize("through_a_view", [True, False])
def test_stores_that_were_only_found_are_never_called_safe(through_a_view: bool) -> None:
    """A flag that is set and cleared between two looks is in no crash state."""

    def workload(directory: Path) -> None:
        with open(directory / "note", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            if through_a_view:
                with memoryview(memory) as view:
                    view[0:1] = b"!"
                    view[0:1] = b"n"
            else:
                memory[0:1] = b"n"
            memory.flush()

    report = CrashSimulator().explore(setup=setup, workload=workload, recover=load, repairs=False)
    assert not report.findings
    for verdict in report.verdicts:
        assert verdict.atomic is (None if through_a_view else True)
        assert ("came and went between two looks" in str(verdict)) == through_a_view


def test_a_process_that_is_left_running_is_told() -> None:
    """What it writes later nobody records: a warning, as for threads."""
    left: list[subprocess.Popen[bytes]] = []

    def workload(directory: Path) -> None:
        (directory / "note").write_text("new")
        left.append(subprocess.Popen(["sleep", "60"]))

    try:
        report = CrashSimulator().explore(
            setup=setup, workload=workload, recover=load, repairs=False, model="kill"
        )
    finally:
        for process in left:
            process.kill()
            process.wait()
    assert any("left processes running (sleep)" in text for text in report.warnings)


def test_python_alone_does_not_fall_back() -> None:
    with pytest.raises(BlindSpot, match=r"record with strace$") as caught:
        CrashSimulator().explore(
            setup=setup, workload=save_in_a_child, recover=load, recorder="python"
        )
    assert caught.value.culprit == "note"


def test_a_block_cannot_run_again_and_says_so(tmp_path: Path) -> None:
    setup(tmp_path)
    with (
        pytest.raises(BlindSpot, match=r"give recorder='strace' to record\(\)"),
        CrashSimulator().record(tmp_path),
    ):
        save_in_a_child(tmp_path)


@needs_strace
def test_a_block_under_strace(tmp_path: Path) -> None:
    setup(tmp_path)
    with CrashSimulator().record(tmp_path, recorder="strace") as recording:
        save_in_both(tmp_path)
    report = recording.explore(recover=load)
    assert "with the lines of 3 of 4 operations" in report.recorder
    assert report.verdict("posix").atomic is False


# -- recoveries in other programs ------------------------------------------------------------------


def journal_setup(directory: Path) -> None:
    (directory / "value").write_text("old")


def journal_save(directory: Path) -> None:
    """Write a journal, in whole or not at all; recovery brings it into place."""
    for name in ("journal.tmp", "directory"):
        if name == "directory":
            os.rename(directory / "journal.tmp", directory / "journal")
            descriptor = os.open(directory, os.O_RDONLY)
        else:
            descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, b"new")
        os.fsync(descriptor)
        os.close(descriptor)


SOUND = "[ ! -e journal ] || { cp journal value && sync value && rm journal; }; cat value"
UNSOUND = "[ ! -e journal ] || { cp journal value && rm journal; }; cat value"


def in_a_shell(script: str) -> object:
    return lambda directory: shell(directory, script)


@needs_strace
def test_a_recovery_in_a_child_is_crashed_as_well() -> None:
    arguments = {"setup": journal_setup, "workload": journal_save}
    sound = CrashSimulator().explore(**arguments, recover=in_a_shell(SOUND))
    assert sound.recorder == "python+sqlite; crashes during recovery by strace"
    assert sound.safe, str(sound)
    assert not sound.warnings

    broken = CrashSimulator().explore(**arguments, recover=in_a_shell(UNSOUND))
    assert {kind for f in broken.findings for kind in f.kinds} >= {Kind.UNSTABLE}
    assert all(f.failure.step is not None for f in broken.findings)


def test_without_strace_a_crash_in_such_a_recovery_is_not_covered(no_strace: None) -> None:
    report = CrashSimulator().explore(
        setup=journal_setup, workload=journal_save, recover=in_a_shell(SOUND)
    )
    assert not report.findings
    assert (report.verdict("posix").atomic, report.verdict("posix").durable) == (None, None)
    assert any("strace is not installed" in text for text in report.warnings)
