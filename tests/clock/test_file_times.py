"""Files that change get the virtual time of their change."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pytest_statepersist.clock import (
    StateClock,
)
from pytest_statepersist.errors import UserError
from tests.clock.common import DAY, START


def mtime(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


@pytest.mark.parametrize("patched", [False, True])
def test_file_times_follow(clock: StateClock, tmp_path: Path, patched: bool) -> None:
    (tmp_path / "before").write_bytes(b"")
    before = (tmp_path / "before").stat().st_mtime_ns
    (tmp_path / "sub").mkdir()

    def block() -> None:
        with clock.mtime_follows(tmp_path):
            for day, name in enumerate(["a", "sub/b", "c"]):
                (tmp_path / name).write_bytes(b"x")
                assert mtime(tmp_path / name) == START + timedelta(days=day)
                clock.advance(DAY)
            (tmp_path / "a").write_bytes(b"y")
            clock.step(-10 * DAY)
            (tmp_path / "d").write_bytes(b"")

    if patched:
        with clock.installed():
            block()
    else:
        block()
    times = {name: mtime(tmp_path / name) for name in ("a", "sub/b", "c", "d")}
    assert times == {
        "a": START + timedelta(days=3),
        "sub/b": START + timedelta(days=1),
        "c": START + timedelta(days=2),
        "d": START - timedelta(days=7),
    }
    assert (tmp_path / "before").stat().st_mtime_ns == before


def test_file_times_are_on_the_disk(clock: StateClock, tmp_path: Path) -> None:
    with clock.mtime_follows(tmp_path) as stamp:
        (tmp_path / "a").write_bytes(b"")
        stamp()
        code = f"import os; print(os.stat({str(tmp_path / 'a')!r}).st_mtime_ns)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, timeout=60
        )
    assert int(done.stdout) == clock.time_ns()


def test_times_that_the_program_sets_are_left_alone(clock: StateClock, tmp_path: Path) -> None:
    with clock.mtime_follows(tmp_path):
        (tmp_path / "restored").write_bytes(b"")
        os.utime(tmp_path / "restored", (1e9, 1e9))
        (tmp_path / "moved.tmp").write_bytes(b"")
        clock.advance(DAY)
        (tmp_path / "moved.tmp").rename(tmp_path / "moved")
        (tmp_path / "moved").chmod(0o600)
        clock.advance(DAY)
    assert (tmp_path / "restored").stat().st_mtime == 1e9
    assert mtime(tmp_path / "moved") == START


def test_the_newest_file_is_the_newest_in_virtual_time(clock: StateClock, tmp_path: Path) -> None:
    with clock.mtime_follows(tmp_path):
        for name in ("1.snap", "2.snap", "3.snap"):
            (tmp_path / name).write_bytes(b"")
            clock.step(-3600)  # the wall clock runs back between saves
        newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime)
    assert newest.name == "1.snap"


def test_file_times_need_a_directory(clock: StateClock, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="is not a directory"),
        clock.mtime_follows(tmp_path / "missing"),
    ):
        raise AssertionError("unreachable")
