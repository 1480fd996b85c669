"""Start, stop, and everything that can go wrong between them."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.errors import UserError
from pytest_statepersist.recorders import callsite, python, real
from pytest_statepersist.recorders.builder import Moment, TraceBuilder
from pytest_statepersist.recorders.python import PythonRecorder, interposition


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir()
    return directory


@pytest.fixture(scope="module", autouse=True)
def held() -> Iterator[None]:
    """Search for bound names once; `test_python_undo` has recordings by themselves."""
    with interposition():
        yield


def kinds(recorder: PythonRecorder) -> list[str]:
    return [type(operation).__name__ for operation in recorder.trace.operations]


def test_start_and_stop(state: Path) -> None:
    recorder = PythonRecorder(state)
    recorder.start()
    (state / "f").write_bytes(b"1")
    recorder.acknowledge({"saved": 1})
    (state / "g").write_bytes(b"1")
    trace = recorder.stop()
    assert trace is recorder.trace
    assert trace.directory == str(state)
    assert trace.acknowledgements == (op.Acknowledgement(3, "{'saved': 1}"),)
    assert recorder.acknowledged == [{"saved": 1}]


def test_stop_without_start_and_twice(state: Path) -> None:
    recorder = PythonRecorder(state)
    with pytest.raises(UserError, match="not running"):
        recorder.stop()
    with pytest.raises(UserError, match="not started"):
        recorder.acknowledge()
    recorder.start()
    recorder.stop()
    with pytest.raises(UserError, match="not running"):
        recorder.stop()


def test_a_directory_that_is_none(state: Path) -> None:
    (state / "f").touch()
    with pytest.raises(UserError, match="not a directory"):
        PythonRecorder(state / "f").start()
    with pytest.raises(UserError, match="not a directory"):
        PythonRecorder(state / "missing").start()


def test_a_given_base_is_not_read(state: Path) -> None:
    (state / "d").mkdir()
    (state / "d" / "f").write_bytes(b"1")
    base = Tree.from_mapping({"d/f": b"1"})
    with PythonRecorder(state, base_tree=base) as recorder:
        (state / "d" / "f").write_bytes(b"2")
    assert recorder.trace.base is base
    assert kinds(recorder) == ["Truncate", "Write", "Close"]
    with pytest.raises(UserError, match="base tree"):
        PythonRecorder(state, base_tree=Tree.from_mapping({"g": b""})).start()


def test_a_wrong_base_is_refused(state: Path) -> None:
    (state / "f").write_bytes(b"1")
    with pytest.raises(UserError, match="2 bytes, and 1"):
        PythonRecorder(state, base_tree=Tree.from_mapping({"f": b"22"})).start()


class Companion:
    """One that notes what is done with it, and can fail."""

    def __init__(self, builder: TraceBuilder, clock: Any, failing: str = "") -> None:
        self.log: list[str] = []
        self.builder, self.clock, self.failing = builder, clock, failing

    def start(self) -> None:
        self.log.append("start")
        if self.failing == "start":
            raise RuntimeError("start")

    def stop(self) -> None:
        self.log.append("stop")
        if self.failing == "stop":
            raise RuntimeError("stop")


def test_companions_feed_the_same_trace(state: Path) -> None:
    made: list[Companion] = []

    def make(builder: TraceBuilder, clock: Any) -> Companion:
        made.append(Companion(builder, clock))
        return made[-1]

    with PythonRecorder(state, companions=[make]) as recorder:
        at: Moment = made[0].clock.moment()
        assert at[0] is not None
        assert at[0].file == __file__
        made[0].builder.sync_all(at)
    assert kinds(recorder) == ["SyncAll"]
    assert made[0].log == ["start", "stop"]


def test_a_thread_that_goes_on_writes_straight_through(state: Path, tmp_path: Path) -> None:
    go, done = threading.Event(), threading.Event()
    fd = os.open(tmp_path / "outside", os.O_CREAT | os.O_WRONLY)

    def work() -> None:
        with open(state / "f", "wb", buffering=0) as file:
            file.write(b"1")
            done.set()
            go.wait()
            file.write(b"2")
            os.write(fd, b"3")

    thread = threading.Thread(target=work)
    with PythonRecorder(state) as recorder:
        thread.start()
        done.wait()
    go.set()
    thread.join()
    os.close(fd)
    assert kinds(recorder) == ["Create", "Write"]
    assert (state / "f").read_bytes() == b"12"


def test_the_order_of_threads_is_true(state: Path) -> None:
    def work(name: str) -> None:
        for number in range(30):
            (state / f"{name}{number}").write_bytes(b"x" * number)
            os.replace(state / f"{name}{number}", state / name)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    with PythonRecorder(state) as recorder:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert recorder.unproved is None or sys.platform != "linux"
    tasks = {operation.task for operation in recorder.trace.operations}
    assert len(tasks) == 4


def test_pipes_between_threads_do_not_wait_for_the_lock(state: Path) -> None:
    r, w = os.pipe()

    def read() -> None:
        with open(state / "f", "wb", buffering=0) as file:
            while chunk := os.read(r, 1 << 16):
                file.write(chunk)

    thread = threading.Thread(target=read)
    with PythonRecorder(state) as recorder:
        thread.start()
        os.write(w, bytes(1 << 20))  # more than a pipe holds
        os.close(w)
        thread.join(20)
    os.close(r)
    assert sum(len(o.data) for o in recorder.trace.operations if isinstance(o, op.Write)) == 1 << 20


def test_files_and_descriptors_that_were_open_before(state: Path) -> None:
    raw = open(state / "raw", "wb", buffering=0)  # noqa: SIM115
    text = open(state / "text", "w")  # noqa: SIM115
    fd = os.open(state / "fd", os.O_CREAT | os.O_WRONLY | os.O_DSYNC)
    text.write("pending ")
    with PythonRecorder(state) as recorder:
        raw.write(b"1")
        text.write("more")
        text.flush()
        os.write(fd, b"3")
        os.fsync(raw.fileno())
        raw.close()
        text.close()
        os.close(fd)
    assert kinds(recorder) == ["Write", "Write", "Write", "Fsync", "Close", "Close", "Close"]
    written = [o for o in recorder.trace.operations if isinstance(o, op.Write)]
    assert [o.data for o in written] == [b"1", b"pending more", b"3"]
    assert written[2].durability is op.Durability.DATA


def test_a_file_that_stays_open_is_left_as_it_was(state: Path) -> None:
    with open(state / "f", "wb", buffering=0) as file:
        with PythonRecorder(state):
            file.write(b"1")
            assert "write" in vars(file)
        assert "write" not in vars(file)
        file.write(b"2")


def test_a_file_that_nobody_holds_is_closed_at_once(state: Path) -> None:
    with PythonRecorder(state) as recorder:
        with pytest.warns(ResourceWarning):
            open(state / "f", "wb").write(b"1")  # noqa: SIM115
        assert (state / "f").read_bytes() == b"1"
    assert kinds(recorder) == ["Create", "Write", "Close"]


def test_a_file_in_a_cycle_is_flushed_and_closed_by_the_collector(state: Path) -> None:
    class Node:
        pass

    with PythonRecorder(state) as recorder:
        node: Any = Node()
        node.me, node.file = node, open(state / "f", "wb", buffering=0)  # noqa: SIM115
        node.file.write(b"1")
        node = None
        with pytest.warns(ResourceWarning):
            gc.collect()
    assert kinds(recorder) == ["Create", "Write", "Close"]


def test_a_buffered_file_in_a_cycle_is_closed_once(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its buffer closes it again, when its number may be another file's."""

    class Node:
        pass

    closed: list[int] = []
    close = real.close
    with PythonRecorder(state) as recorder:
        node: Any = Node()
        node.me, node.file = node, open(state / "f", "wb")  # noqa: SIM115
        fd = node.file.fileno()
        monkeypatch.setattr(real, "close", lambda each: closed.append(each) or close(each))
        node = None
        with pytest.warns(ResourceWarning):
            gc.collect()
        assert closed.count(fd) == 1
    assert kinds(recorder) == ["Create"]


def test_failed_calls_are_as_ever_and_leave_no_operation(state: Path) -> None:
    (state / "full").mkdir()
    (state / "full" / "f").touch()
    with PythonRecorder(state) as recorder:
        for call in (
            lambda: os.replace(state / "no", state / "f"),
            lambda: os.unlink(state / "no"),
            lambda: os.rmdir(state / "full"),
            lambda: os.mkdir(state / "full"),
            lambda: os.link(state / "no", state / "f"),
            lambda: os.symlink("x", state / "full"),
            (state / "no" / "f").touch,
            lambda: (state / "full" / "f").touch(exist_ok=False),
            lambda: os.open(state / "no", os.O_RDWR),
            lambda: os.truncate(state / "no", 1),
            lambda: os.chmod(state / "no", 0),
            lambda: os.write(999, b""),
            lambda: os.fsync(999),
        ):
            with pytest.raises(OSError):
                call()
        with pytest.raises(TypeError):
            os.replace(state / "no")  # type: ignore[call-arg]
        with pytest.raises(ValueError):
            open(state / "f", "wx")  # noqa: SIM115
    assert recorder.trace.operations == ()


def test_a_failed_sync_is_recorded_as_failed(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pytest_statepersist.recorders.calls.system.fsync", fail)
    with PythonRecorder(state) as recorder:
        fd = os.open(state / "f", os.O_CREAT | os.O_WRONLY)
        with pytest.raises(OSError, match="Input/output"):
            os.fsync(fd)
        os.close(fd)
    syncs = [o for o in recorder.trace.operations if isinstance(o, op.Fsync)]
    assert [sync.failed for sync in syncs] == [True]


def test_durability_and_modes(state: Path) -> None:
    with PythonRecorder(state) as recorder:
        for name, flag in (("f", os.O_SYNC), ("g", os.O_DSYNC), ("h", 0)):
            fd = os.open(state / name, os.O_CREAT | os.O_WRONLY | flag, 0o600)
            os.write(fd, b"1")
            os.close(fd)
    writes = [o.durability for o in recorder.trace.operations if isinstance(o, op.Write)]
    assert writes == [op.Durability.FULL, op.Durability.DATA, op.Durability.NONE]
    modes = [o.mode for o in recorder.trace.operations if isinstance(o, op.Create)]
    assert modes == [0o600] * 3


def test_offsets(state: Path) -> None:
    (state / "f").write_bytes(b"0123456789")
    with PythonRecorder(state) as recorder:
        with open(state / "f", "r+b") as file:
            file.seek(3)
            file.write(b"abc")
            file.flush()
            os.lseek(file.fileno(), 8, os.SEEK_SET)
            os.write(file.fileno(), memoryview(b"xy"))
        with open(state / "f", "ab") as file:
            file.write(b"end")
    writes = [(o.offset, o.data) for o in recorder.trace.operations if isinstance(o, op.Write)]
    assert writes == [(3, b"abc"), (8, b"xy"), (10, b"end")]


def test_call_sites_and_times(state: Path) -> None:
    before = time.time_ns()
    line = sys._getframe().f_lineno
    with PythonRecorder(state) as recorder:
        (state / "f").write_text("1")
        os.replace(state / "f", state / "g")
    sites = [operation.site for operation in recorder.trace.operations]
    assert all(site is not None and site.file == __file__ for site in sites)
    assert [site.line - line for site in sites if site] == [2, 2, 2, 3]
    assert sites[0] is not None
    assert sites[0].function == "test_call_sites_and_times"
    times = [operation.time or 0 for operation in recorder.trace.operations]
    assert times == sorted(times)
    assert before <= times[0] <= time.time_ns()


def test_a_frozen_clock_does_not_freeze_the_trace(state: Path) -> None:
    freezegun = pytest.importorskip("freezegun")
    with freezegun.freeze_time("2001-01-01"), PythonRecorder(state) as recorder:
        (state / "f").touch()
    assert (recorder.trace.operations[0].time or 0) > 1_600_000_000_000_000_000


def test_time_machine_does_not_freeze_the_trace(state: Path) -> None:
    time_machine = pytest.importorskip("time_machine")
    with time_machine.travel(0, tick=False), PythonRecorder(state) as recorder:
        (state / "f").touch()
    assert (recorder.trace.operations[0].time or 0) > 1_600_000_000_000_000_000


def test_whose_line_it_is() -> None:
    import json
    import pathlib

    own = Path(python.__file__)
    assert callsite.is_internal(pathlib.__file__)
    assert callsite.is_internal(json.__file__)
    assert callsite.is_internal(str(own))
    assert callsite.is_internal("<frozen importlib._bootstrap>")
    assert not callsite.is_internal(str(own.parents[1] / "reference" / "atomic.py"))
    assert not callsite.is_internal(pytest.__file__)
    assert not callsite.is_internal(__file__)


def test_replacements_pickle_as_the_real_functions(state: Path) -> None:
    with PythonRecorder(state):
        text = pickle.dumps(os.replace)
        assert os.unlink in os.supports_dir_fd
    assert pickle.loads(text) is os.replace


def test_a_test_s_own_patch_survives(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    (state / "f").touch()
    with PythonRecorder(state) as recorder:
        original = os.replace

        def mine(*args: Any) -> None:
            calls.append("mine")
            original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", mine)
            os.replace(state / "f", state / "g")
    assert calls == ["mine"]
    assert kinds(recorder) == ["Rename"]


def test_ten_thousand_operations_stay_small(state: Path) -> None:
    data = b"x" * 4096
    tracemalloc.start()
    try:
        with PythonRecorder(state) as recorder:
            fd = os.open(state / "f", os.O_CREAT | os.O_WRONLY)
            for number in range(10_000):
                os.pwrite(fd, bytes(data), (number % 100) * 4096)
            os.close(fd)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(recorder.trace) == 10_002
    assert peak < 100 << 20
