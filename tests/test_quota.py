"""A full disk: as a quota at the level of calls, as a real small tmpfs, and in memory."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from pyfakefs.fake_filesystem_unittest import Patcher

from pytest_statepersist import BlindSpot, CrashSimulator, UserError
from pytest_statepersist.fault_injector import FaultInjector
from pytest_statepersist.faults.fake import fake_state_dir
from pytest_statepersist.faults.quota import quota
from tests.zoo.steps import replace_durably

LIMIT = 64 * 1024


@contextmanager
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "small"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={LIMIT}", "statepersist", str(directory)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no small tmpfs: {error}")
    if done.returncode:
        pytest.skip(f"no small tmpfs: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@contextmanager
def with_quota(tmp_path: Path) -> Iterator[Path]:
    with quota(tmp_path, LIMIT):
        yield tmp_path


@contextmanager
def in_memory(tmp_path: Path) -> Iterator[Path]:
    with fake_state_dir(capacity=LIMIT) as directory:
        yield directory


Disk = Callable[[Path], AbstractContextManager[Path]]


@pytest.mark.parametrize("disk", [with_quota, small_tmpfs, in_memory])
def test_a_full_disk_keeps_the_old_value(tmp_path: Path, disk: Disk) -> None:
    with disk(tmp_path) as directory:
        path = directory / "state.json"
        with open(path, "w") as file:
            json.dump("a" * 1000, file)
        with pytest.raises(OSError) as caught, open(directory / "state.tmp", "w") as file:
            json.dump("b" * (2 * LIMIT), file)
        assert caught.value.errno == errno.ENOSPC
        assert json.loads(path.read_text()) == "a" * 1000
        (directory / "state.tmp").unlink()
        with open(directory / "state.tmp", "w") as file:
            json.dump("b" * 1000, file)
        os.replace(directory / "state.tmp", path)
        assert json.loads(path.read_text()) == "b" * 1000


@pytest.mark.parametrize("disk", [with_quota, small_tmpfs])
def test_a_write_that_fits_in_part_is_made_in_part(tmp_path: Path, disk: Disk) -> None:
    with disk(tmp_path) as directory:
        descriptor = os.open(directory / "f", os.O_WRONLY | os.O_CREAT)
        try:
            assert os.write(descriptor, bytes(LIMIT + 4096)) == LIMIT
            with pytest.raises(OSError) as caught:
                os.write(descriptor, b"x")
            assert caught.value.errno == errno.ENOSPC
            assert os.pwrite(descriptor, b"again", 0) == 5
        finally:
            os.close(descriptor)


def test_sqlite_says_that_the_disk_is_full(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "s.db")) as database:
        database.execute("CREATE TABLE t (v)")
        database.commit()
        with (
            quota(tmp_path, LIMIT, error="EDQUOT") as limit,
            pytest.raises(sqlite3.OperationalError) as caught,
            database,
        ):
            database.execute("INSERT INTO t VALUES (?)", (bytes(2 * LIMIT),))
        # SQLite knows a full disk by ENOSPC only; any other error of a write is an I/O error.
        assert caught.value.sqlite_errorname.startswith("SQLITE_IOERR")
        assert limit.refused
        with (
            quota(tmp_path, LIMIT) as limit,
            pytest.raises(sqlite3.OperationalError, match="full"),
            database,
        ):
            database.execute("INSERT INTO t VALUES (?)", (bytes(2 * LIMIT),))
        assert limit.used <= LIMIT
        assert database.execute("SELECT count(*) FROM t").fetchone() == (0,)


def copy_by_system(source: Path, target: Path) -> None:
    with open(source, "rb") as there, open(target, "wb") as here:
        for _ in range(2):
            os.copy_file_range(there.fileno(), here.fileno(), count=LIMIT * 2)


def send(source: Path, target: Path) -> None:
    with open(source, "rb") as there, open(target, "wb") as here:
        os.sendfile(here.fileno(), there.fileno(), LIMIT, LIMIT * 2)
        os.sendfile(here.fileno(), there.fileno(), 0, LIMIT * 2)


def move(source: Path, target: Path) -> None:
    os.replace(source, target)


def link(source: Path, target: Path) -> None:
    os.link(source, target)


@pytest.mark.parametrize("bring", [shutil.copy, copy_by_system, send, move, link])
def test_what_the_system_copies_or_moves_in_counts(
    tmp_path: Path, bring: Callable[[Path, Path], Any]
) -> None:
    (directory := tmp_path / "state").mkdir()
    (tmp_path / "large").write_bytes(bytes(LIMIT * 2))
    with quota(directory, LIMIT) as limit:
        with pytest.raises(OSError, match="No space left"):
            bring(tmp_path / "large", directory / "f")
        assert limit.used in (0, LIMIT), "what fits is copied, what does not is not moved"
        (tmp_path / "small").write_bytes(b"1")
        os.replace(tmp_path / "small", directory / "f")
        assert limit.used == 1
    assert limit.refused


def test_a_copy_by_the_system_may_be_short(tmp_path: Path) -> None:
    """It says how many bytes it copied; who does not look saves the half."""

    def save(directory: Path, text: str) -> None:
        (directory / "draft").write_text(text)
        with open(directory / "draft", "rb") as draft, open(directory / "new", "wb") as new:
            os.sendfile(new.fileno(), draft.fileno(), 0, 1 << 20)
        os.replace(directory / "new", directory / "f")

    report = FaultInjector(errors=["short"], states=0).sweep(
        setup=lambda d: save(d, "old"),
        workload=lambda d: save(d, "a new text"),
        recover=lambda d: (d / "f").read_text(),
    )
    assert "os.sendfile" in {each.site.function for each in report.findings}


def test_native_code_past_the_quota_is_a_blind_spot(tmp_path: Path) -> None:
    program = "import sys; open(sys.argv[1], 'wb').write(bytes(5000))"
    command = [sys.executable, "-c", program, str(tmp_path / "f")]
    with pytest.raises(BlindSpot, match="tmpfs"), quota(tmp_path, 1000):
        subprocess.run(command, check=True)


def test_links_count_once_and_overwriting_is_free(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(1000))
    os.link(tmp_path / "f", tmp_path / "g")
    with quota(tmp_path, 1000) as limit:
        assert limit.used == 1000
        with open(tmp_path / "f", "r+b") as file:
            file.write(b"x" * 1000)
        with pytest.raises(OSError), open(tmp_path / "g", "ab", buffering=0) as file:
            file.write(b"x")
        with pytest.raises(OSError):
            os.truncate(tmp_path / "f", 1001)


def store(directory: Path, value: Any) -> None:
    replace_durably(directory / "state.json", json.dumps(value).encode())


def test_no_claim_about_crashes_is_made_in_memory(tmp_path: Path) -> None:
    simulator = CrashSimulator()
    arguments: dict[str, Any] = {"workload": lambda d: store(d, 1), "recover": lambda d: None}
    with fake_state_dir() as directory:
        for attempt in (
            lambda: simulator.explore(**arguments),
            lambda: simulator.check(**arguments),
            lambda: simulator.kill(arguments["workload"], recover=lambda d: None, at=0),
            lambda: simulator.record(directory).__enter__(),
            lambda: simulator.interleave(savers=[len, len], recover=len),
            lambda: FaultInjector().sweep(**arguments),
        ):
            with pytest.raises(UserError, match="fsync does nothing"):
                attempt()
        with pytest.raises(UserError, match="one at a time"), fake_state_dir():
            pass
    with Patcher() as patcher:  # as the fixture ``fs`` does
        with pytest.raises(UserError, match="while pyfakefs is active"):
            simulator.explore(**arguments)
        patcher.pause()
        assert simulator.explore(**arguments).verdict("posix").complete
        patcher.resume()
    with pytest.raises(UserError, match="capacity='4 KB'"), fake_state_dir(capacity="4 KB"):  # type: ignore[arg-type]
        pass
    (tmp_path / "state").mkdir()
    with simulator.record(tmp_path / "state"):
        store(tmp_path / "state", 1)
        with pytest.raises(UserError, match="inside a recording"), fake_state_dir():
            pass


@pytest.mark.parametrize(
    "make",
    [
        lambda path: quota(path, -1),
        lambda path: quota(path, 1, error="EIO"),
        lambda path: fake_state_dir(capacity=-1),
    ],
)
def test_wrong_sizes_are_user_errors(tmp_path: Path, make: Any) -> None:
    with pytest.raises(UserError), make(tmp_path):
        pass


def test_a_quota_ends_with_its_block(tmp_path: Path) -> None:
    with quota(tmp_path, 0), nullcontext(), pytest.raises(OSError):
        (tmp_path / "f").write_text("x")
    (tmp_path / "f").write_text("x")
