"""What the Python recorder does not see must be caught: one test for each way.

Nothing here may be silent: each subject below changes the directory behind the recorder's back,
and several leave a tree that equals the recorded one.
"""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.apply import apply
from pytest_statepersist.core.tree import LARGE, File, Tree, size_of
from pytest_statepersist.errors import BlindSpot, UserError
from pytest_statepersist.recorders import notify, selfcheck
from pytest_statepersist.recorders.builder import NOWHERE, TraceBuilder
from pytest_statepersist.recorders.python import PythonRecorder, interposition
from pytest_statepersist.recorders.scan import FileSource, Keep, scan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="native calls of Linux")
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module", autouse=True)
def held() -> Iterator[None]:
    """Search for bound names once; `test_python_undo` has recordings by themselves."""
    with interposition():
        yield


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir()
    (directory / "f").write_bytes(b"old")
    return directory


def native_write(path: Path, data: bytes, flags: int = os.O_WRONLY) -> None:
    fd = libc.open(os.fsencode(path), flags | os.O_CREAT, 0o644)
    assert libc.write(fd, data, len(data)) == len(data)
    libc.close(fd)


def native_fd_write(fd: int, data: bytes) -> None:
    assert libc.write(fd, data, len(data)) == len(data)


def caught(directory: Path, work: Callable[[], object]) -> BlindSpot:
    with pytest.raises(BlindSpot) as info, PythonRecorder(directory):
        work()
    return info.value


def test_numpy_tofile_writes_through_a_descriptor_that_python_opened(state: Path) -> None:
    numpy = pytest.importorskip("numpy")

    def work() -> None:
        with open(state / "a.bin", "wb") as file:
            numpy.arange(100).tofile(file)

    assert caught(state, work).culprit == "a.bin"


def test_numpy_save(state: Path) -> None:
    numpy = pytest.importorskip("numpy")
    spot = caught(state, lambda: numpy.save(state / "a.npy", numpy.arange(100)))
    assert (spot.culprit, spot.recorder) == ("a.npy", "strace")


def test_a_native_unlink_before_a_recorded_rename_leaves_equal_trees(state: Path) -> None:
    def work() -> None:
        (state / "t").write_bytes(b"new")
        assert libc.unlink(os.fsencode(state / "f")) == 0
        os.replace(state / "t", state / "f")

    assert caught(state, work).culprit == "f"


def test_a_native_unlink_and_a_native_return_leave_equal_trees(state: Path) -> None:
    def work() -> None:
        assert libc.rename(os.fsencode(state / "f"), os.fsencode(state / "g")) == 0
        assert libc.rename(os.fsencode(state / "g"), os.fsencode(state / "f")) == 0
        os.unlink(state / "f")

    assert caught(state, work).culprit == "f"


def test_a_native_file_that_came_and_went(state: Path) -> None:
    def work() -> None:
        native_write(state / "ghost", b"1")
        assert libc.unlink(os.fsencode(state / "ghost")) == 0

    assert caught(state, work).culprit == "ghost"


def test_a_database_beside_a_recorded_file_names_the_sqlite_recorder(state: Path) -> None:
    def work() -> None:
        (state / "f").write_bytes(b"new")
        connection = sqlite3.connect(state / "app.db")
        connection.execute("create table t (x)")
        connection.commit()
        connection.close()

    spot = caught(state, work)
    assert (spot.culprit, spot.recorder) == ("app.db", "sqlite")
    assert "record with sqlite" in str(spot)


def test_a_companion_of_an_existing_database_names_the_sqlite_recorder(state: Path) -> None:
    connection = sqlite3.connect(state / "app.db")
    connection.execute("pragma journal_mode=wal")
    connection.execute("create table t (x)")
    connection.commit()

    def work() -> None:
        connection.execute("insert into t values (1)")
        connection.commit()

    spot = caught(state, work)
    connection.close()
    assert spot.recorder == "sqlite"
    assert spot.culprit.startswith("app.db")


def test_a_mapping_made_before(state: Path) -> None:
    with open(state / "f", "r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    spot = caught(state, lambda: mapping.__setitem__(0, 7))
    mapping.close()
    assert spot.culprit == "f"


@pytest.mark.parametrize("method", ["subprocess", "fork"])
def test_a_child_process(state: Path, method: str) -> None:
    def work() -> None:
        if method == "subprocess":
            code = f"open({str(state / 'child')!r}, 'w').close()"
            subprocess.run([sys.executable, "-c", code], check=True)
        else:
            process = multiprocessing.get_context("fork").Process(
                target=(state / "child").write_bytes, args=(b"1",)
            )
            process.start()
            process.join()

    assert caught(state, work).culprit == "child"


def test_a_child_that_leaves_the_directory_alone_is_fine(state: Path) -> None:
    with PythonRecorder(state) as recorder:
        subprocess.run([sys.executable, "-c", ""], check=True)
        (state / "g").write_bytes(b"1")
    assert len(recorder.trace) == 3


def test_native_bytes_equal_to_those_there(state: Path) -> None:
    assert caught(state, lambda: native_write(state / "f", b"old")).culprit == "f"


def test_native_equal_bytes_after_a_recorded_save(state: Path) -> None:
    def work() -> None:
        (state / "f").write_bytes(b"new")
        native_write(state / "f", b"new")

    assert caught(state, work).culprit == "f"


def test_native_equal_bytes_through_an_open_descriptor(state: Path) -> None:
    def work() -> None:
        with open(state / "f", "r+b", buffering=0) as file:
            file.write(b"new")
            time.sleep(0.02)  # a change time has the resolution of the kernel's tick
            file.seek(0)
            native_fd_write(file.fileno(), b"new")

    assert caught(state, work).culprit == "f"


def test_a_native_truncation_before_a_recorded_one(state: Path) -> None:
    def work() -> None:
        assert libc.truncate(os.fsencode(state / "f"), ctypes.c_long(1)) == 0
        os.truncate(state / "f", 0)

    assert caught(state, work).culprit == "f"


def test_a_native_change_of_mode(state: Path) -> None:
    assert caught(state, lambda: libc.chmod(os.fsencode(state / "f"), 0o600)).culprit == "f"


def test_a_native_directory_and_hard_link(state: Path) -> None:
    assert caught(state, lambda: libc.mkdir(os.fsencode(state / "d"), 0o755)).culprit == "d"
    names = os.fsencode(state / "f"), os.fsencode(state / "h")
    assert caught(state, lambda: libc.link(*names)).culprit == "h"


def test_a_native_write_in_a_directory_that_is_new(state: Path) -> None:
    def work() -> None:
        (state / "n").mkdir()
        native_write(state / "n" / "ghost", b"1")
        libc.unlink(os.fsencode(state / "n" / "ghost"))

    assert caught(state, work).culprit == "n/ghost"


def test_a_native_sync_leaves_no_mark_and_is_documented(state: Path) -> None:
    with PythonRecorder(state) as recorder, open(state / "f", "wb") as file:
        file.write(b"new")
        file.flush()
        libc.fsync(file.fileno())
    assert not any(isinstance(each, op.Fsync) for each in recorder.trace.operations)
    assert "leaves no mark" in str(selfcheck.__doc__)


def test_a_workload_that_raises_is_not_hidden_by_a_blind_spot(state: Path) -> None:
    with pytest.raises(KeyboardInterrupt), PythonRecorder(state) as recorder:
        native_write(state / "ghost", b"1")
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="no trace"):
        _ = recorder.trace


def test_without_notifications_the_proof_is_weaker_and_says_so(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "_spare_queue", lambda: -1)
    monkeypatch.setattr(notify, "_library", notify._library.__wrapped__)  # it is kept
    monkeypatch.setattr(ctypes.CDLL, "inotify_init1", lambda *_: -1, raising=False)
    recorder = PythonRecorder(state)
    with recorder:
        (state / "f").write_bytes(b"new")
    assert recorder.unproved is not None
    assert "inotify" in recorder.unproved


class Overflowing(notify.Notifications):
    def events(self) -> Iterator[notify.Event]:
        self._chunks.append((notify._HEADER.pack(-1, 0x4000, 0, 0), 0, 0))
        return super().events()


def test_an_overflow_is_said(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_statepersist.recorders.python.Notifications", Overflowing)
    recorder = PythonRecorder(state)
    with recorder:
        (state / "f").write_bytes(b"new")
    assert recorder.unproved == "the queue of inotify overflowed"


def test_many_writes_do_not_overflow_the_queue(state: Path) -> None:
    recorder = PythonRecorder(state)
    with recorder, open(state / "a", "wb", buffering=0) as a, open(state / "b", "wb", 0) as b:
        for _ in range(10_000):
            a.write(b"1")
            b.write(b"2")
    assert recorder.unproved is None


# -- scans --


def test_a_large_file_is_kept_on_disk_and_stays_as_it_was(state: Path) -> None:
    (state / "big").write_bytes(b"x" * (LARGE + 10))
    recorder = PythonRecorder(state)
    with recorder, open(state / "big", "r+b") as file:
        file.write(b"NEW")
    node = recorder.trace.base["big"]
    assert isinstance(node, File)
    assert isinstance(node.content, FileSource)
    assert Path(node.content.path).parent.parent == state.parent
    assert node.content.read(0, 4) == b"xxxx"
    kept = Path(node.content.path)
    del node, recorder
    assert not kept.exists()


def test_an_untouched_large_file_is_not_read_again(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (state / "big").write_bytes(b"x" * (LARGE + 10))
    recorder = PythonRecorder(state)
    with recorder:
        (state / "f").write_bytes(b"new")
        monkeypatch.setattr(FileSource, "read", None)
    assert len(recorder.trace) == 3


def test_scan_reads_everything(state: Path) -> None:
    (state / "d").mkdir(mode=0o700)
    os.link(state / "f", state / "d" / "hard")
    (state / "s").symlink_to("nowhere")
    (state / "big").write_bytes(bytes(LARGE + 1))
    found = scan(state)
    assert found.tree.resolve("f") == found.tree.resolve("d/hard")
    node = found.tree["big"]
    assert isinstance(node, File)
    assert size_of(node.content) == LARGE + 1
    assert found.identities[(state / "f").stat().st_dev, (state / "f").stat().st_ino] == (
        found.tree.resolve("f")
    )
    kept = scan(state, keep=Keep(str(state)))
    assert kept.tree == found.tree
    assert scan(state, ignore=lambda path: path == "big").ignored == ("big",)


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_what_no_tree_can_hold_is_named(state: Path, kind: str) -> None:
    import socket

    if kind == "fifo":
        os.mkfifo(state / "odd")
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(state / "odd"))
    with pytest.raises(UserError, match=rf"odd is a {kind}.*ignore="):
        PythonRecorder(state).start()
    recorder = PythonRecorder(state, ignore=lambda path: path == "odd")
    with recorder:
        (state / "f").write_bytes(b"new")
    assert "odd" not in recorder.trace.base


# -- the explanation of events --


class Scripted(notify.Notifications):
    """Notifications that were not sent by a kernel."""

    def __init__(self, events: list[notify.Event]) -> None:
        super().__init__()
        self._events = events
        self.since = {0: 0}

    def events(self) -> Iterator[notify.Event]:
        return iter(self._events)


CREATE, DELETE, MODIFY, CLOSE = 0x100, 0x200, 0x2, 0x8


@pytest.mark.parametrize(
    ("events", "unexplained"),
    [  # (kind, name, operations recorded when it was read)
        (
            [(CREATE, "t", 4), (MODIFY, "t", 4), (CLOSE, "t", 4), (0x40, "t", 4), (0x80, "f", 4)],
            None,
        ),
        ([(CREATE, "t", 4), (0x40, "t", 4), (0x80, "f", 4)], None),
        ([(CREATE, "t", 4), (0x40, "t", 4), (0x80, "f", 4), (MODIFY, "f", 4)], "f"),
        ([(DELETE, "f", 4)], "f"),
        ([(CREATE, "t", 4), (DELETE, "f", 4)], "f"),
        ([(CREATE, "t", 4), (MODIFY, "f", 4)], "f"),
        ([(CREATE, "t", 1), (MODIFY, "t", 1)], "t"),
        ([(CREATE, "t", 2), (MODIFY, "t", 2), (MODIFY, "t", 3)], "t"),
        ([(CLOSE, "f", 0)], "f"),
        ([(MODIFY, "unknown", 0)], "unknown"),
    ],
)
def test_explain(events: list[tuple[int, str, int]], unexplained: str | None) -> None:
    builder = TraceBuilder("/w", Tree.from_mapping({"f": b"old"}))
    number = builder.create(0, "t", NOWHERE)
    builder.opened(number)
    builder.write(number, 0, b"new", NOWHERE)
    builder.close(number, NOWHERE, written=True)
    builder.rename(0, "t", 0, "f", NOWHERE)
    after = [0, *(before for _, _, before in events)]
    script = Scripted(
        [
            notify.Event(kind, 0, name, earlier if before != earlier else 0, before)
            for (kind, name, before), earlier in zip(events, after, strict=False)
        ]
    )
    found = notify.explain(builder.finish(), script, opened=lambda n: builder[n].was_opened)
    script.close()
    assert (found.path if found else None) == unexplained


# -- directories that are made outside meanwhile ---------------------------------------------------


def built_outside(outside: Path) -> None:
    """A scratch directory, made while recording, in which native code leaves a file."""
    outside.mkdir()
    native_write(outside / "native", b"native")


def recorded(directory: Path, work: Callable[[], object]) -> op.Trace:
    with PythonRecorder(directory) as recorder:
        work()
    return recorder.trace


def test_what_native_code_makes_in_a_new_directory_outside_does_not_matter(
    state: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "scratch"

    def work() -> None:
        built_outside(outside)
        with open(outside / "native", "a") as file:
            file.write("more")
        native_write(outside / "other", b"other")
        os.replace(outside / "other", outside / "native")
        os.unlink(outside / "native")
        native_write(outside / "last", b"last")
        os.unlink(outside / "last")
        outside.rmdir()
        (state / "f").write_bytes(b"new")

    assert apply(recorded(state, work)).read("f") == b"new"


@pytest.mark.parametrize("how", ["replace", "link"])
def test_a_native_file_in_a_new_directory_outside_is_adopted_when_it_comes_in(
    state: Path, tmp_path: Path, how: str
) -> None:
    outside = tmp_path / "scratch"

    def work() -> None:
        built_outside(outside)
        getattr(os, how)(outside / "native", state / "in")

    trace = recorded(state, work)
    assert apply(trace).read("in") == b"native"
    assert not any(isinstance(each, op.Fsync) for each in trace.operations)


def test_a_new_directory_outside_that_comes_in_must_have_been_seen(
    state: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "scratch"

    def work() -> None:
        built_outside(outside)
        os.unlink(outside / "native")  # equal trees, and a file that a crash may bring back
        os.rename(outside, state / "in")

    assert caught(state, work).culprit == f"{outside}/native"


# -- counted positions -----------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_position_that_native_code_moved_without_asking_for_the_descriptor(
    state: Path, elsewhere: bool
) -> None:
    def work() -> None:
        with open(state / "f", "wb", buffering=0) as file:
            (number,) = {
                int(each)
                for each in os.listdir("/proc/self/fd")
                if os.path.realpath(f"/proc/self/fd/{each}") == str(state / "f")
            }
            for _ in range(3):
                file.write(b"12345678")
                libc.lseek(number, 0, os.SEEK_SET)
            if elsewhere:  # a new call site asks the kernel
                file.write(b"12345678")

    assert caught(state, work).culprit == "f"


def test_positions_that_the_subject_moves_itself_are_recorded(state: Path) -> None:
    def work() -> None:
        with open(state / "f", "wb", buffering=0) as file:
            file.write(b"12345678")
            file.seek(2)
            file.write(b"ab")
            os.lseek(file.fileno(), 6, os.SEEK_SET)
            file.write(b"cd")
            libc.lseek(file.fileno(), 4, os.SEEK_SET)
            file.write(b"ef")

    assert apply(recorded(state, work)).read("f") == b"12abefcd"
