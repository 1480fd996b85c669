"""Ways in which a verdict could be wrongly "safe", each found by attacking the engine once."""

from __future__ import annotations

import io
import itertools
import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist import BlindSpot, CrashSimulator, UserError, raises
from pytest_statepersist.explorer.materialise import Materialiser
from pytest_statepersist.explorer.outcome import equal_values
from pytest_statepersist.recorders.python import PythonRecorder


def unsynced_new(directory: Path) -> None:
    (directory / "tmp").write_bytes(b"new")
    os.replace(directory / "tmp", directory / "state")


def explore(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "setup": lambda d: (d / "state").write_bytes(b"old"),
        "workload": unsynced_new,
        "recover": lambda d: (d / "state").read_bytes(),
    }
    return CrashSimulator(repairs=False).explore(**{**arguments, **changes})


class Box:
    def __init__(self, data: Any) -> None:
        self.data = data


def test_objects_without_an_equality_are_compared_by_what_they_hold() -> None:
    report = explore(recover=lambda d: [Box(Box((d / "state").read_bytes()))])
    assert report.verdict("posix").atomic is False


def newer(first: os.stat_result, second: os.stat_result) -> str:
    if first.st_mtime_ns > second.st_mtime_ns:
        raise ValueError("a is newer than b")
    return "fine"


def by_descriptor(directory: Path) -> str:
    found = []
    for name in "ab":
        with open(directory / name, "rb") as file:
            found.append(os.stat(file.fileno()))
    return newer(*found)


def by_directory(directory: Path) -> str:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        return newer(*(os.stat(name, dir_fd=descriptor) for name in "ab"))
    finally:
        os.close(descriptor)


def by_dots(directory: Path) -> str:
    return newer(*(os.stat(f"{directory}/./{name}") for name in "ab"))


@pytest.mark.parametrize("recover", [by_descriptor, by_directory, by_dots])
def test_times_that_are_read_in_odd_ways(recover: Any) -> None:
    def setup(directory: Path) -> None:
        for name, at in (("a", 1), ("b", 2)):
            (directory / name).write_bytes(b"x")
            os.utime(directory / name, ns=(at, at))

    def workload(directory: Path) -> None:
        for name in "ab":
            with open(directory / name, "ab") as file:
                file.write(b"y")
                file.flush()
                os.fsync(file.fileno())

    report = explore(
        setup=setup, workload=workload, recover=recover, invariant=lambda value, _: value == "fine"
    )
    assert report.verdict("posix").atomic is False


@pytest.mark.parametrize("name", ["workload", "recover", "setup"])
def test_a_generator_never_runs_and_is_refused(name: str) -> None:
    def generator(directory: Path) -> Any:
        yield directory

    with pytest.raises(UserError, match="generator"):
        explore(**{name: generator})


def test_an_invariant_that_never_runs_is_refused() -> None:
    async def invariant(recovered: Any, acknowledged: Any) -> bool:
        return False

    with pytest.raises(UserError, match="async"):
        explore(invariant=invariant)
    with pytest.raises(UserError, match="did not run"):
        explore(invariant=lambda r, a: invariant(r, a))


def test_an_optional_acknowledge_is_passed() -> None:
    def positional(directory: Path, ack: Any = None) -> None:
        unsynced_new(directory)
        ack(b"new")

    def keyword(directory: Path, *, acknowledge: Any = None) -> None:
        unsynced_new(directory)
        acknowledge(b"new")

    for workload in (positional, keyword):
        report = explore(workload=workload, invariant=lambda r, a: not a or r == a[-1])
        assert report.verdict("posix").durable is False


def test_a_recovery_that_removes_the_directory_is_survived() -> None:
    import shutil

    def recover(directory: Path) -> bytes:
        data = (directory / "state").read_bytes()
        shutil.rmtree(directory)
        return data

    assert explore(recover=recover, recovery_crashes=0).verdict("posix").atomic is False


def test_a_link_back_into_the_recorded_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with CrashSimulator().record(tmp_path) as recording:
        (tmp_path / "state").write_bytes(b"new")
    with pytest.raises(UserError, match="absolute symbolic link"):
        recording.explore(recover=lambda d: (d / "link").write_bytes(b"overwritten"))
    assert (tmp_path / "real").read_bytes() == b"precious"


# -- values that are read when they are looked at


class Lazy:
    """Reads a manifest when it is made, and the file that it names when it is asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = (directory / "manifest").read_text()

    def get(self) -> str:
        return (self.directory / self.name).read_text()


def put(path: Path, data: str, *, sync: bool = True) -> None:
    with open(path, "w") as file:
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def switch(directory: Path, *, sync: bool) -> None:
    put(directory / "two", "new", sync=sync)
    put(directory / "m", "two")
    sync_directory(directory)
    os.replace(directory / "m", directory / "manifest")
    sync_directory(directory)


def one_file_and_its_name(directory: Path) -> None:
    put(directory / "one", "old")
    put(directory / "manifest", "one")


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("shape", [lambda d: Lazy(d), lambda d: {"store": Lazy(d)}])
def test_what_an_invariant_reads_counts_as_read(shape: Any, sync: bool) -> None:
    def holds(value: Any, acknowledged: Any) -> bool:
        return (value["store"] if isinstance(value, dict) else value).get() in ("old", "new")

    report = explore(
        setup=one_file_and_its_name,
        workload=lambda d: switch(d, sync=sync),
        recover=shape,
        invariant=holds,
    )
    assert report.verdict("posix").atomic is sync


def lines_of(directory: Path) -> Iterator[str]:
    with open(directory / "state") as file:
        yield from file


@pytest.mark.parametrize(
    "recover",
    [
        lines_of,
        lambda d: [lines_of(d)],
        lambda d: open(d / "state"),  # noqa: SIM115
        lambda d: {"state": open(d / "state", "rb")},  # noqa: SIM115
        lambda d: map(str, d.iterdir()),
        lambda d: os.scandir(d),
    ],
)
@pytest.mark.parametrize("invariant", [None, lambda value, _: True])
def test_what_is_read_once_and_later_is_refused(recover: Any, invariant: Any) -> None:
    with pytest.raises(UserError, match=r"generator|open file|iterator"):
        explore(recover=recover, invariant=invariant)


def test_bytes_in_a_buffer_are_compared_by_what_they_hold() -> None:
    report = explore(recover=lambda d: io.BytesIO((d / "state").read_bytes()))
    assert report.verdict("posix").atomic is False


class Grid:
    """As an array: ``==`` is no yes or no, and the text leaves out the middle."""

    shape, dtype = (3,), type("dtype", (), {"hasobject": False, "__eq__": lambda a, b: True})()

    def __init__(self, *items: int) -> None:
        self.items = items

    def __eq__(self, other: object) -> Any:
        raise ValueError("the truth value is ambiguous")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"grid([{self.items[0]}, ..., {self.items[-1]}])"

    def tobytes(self) -> bytes:
        return bytes(self.items)


def test_arrays_are_compared_whole() -> None:
    assert equal_values(Grid(1, 2, 3), Grid(1, 2, 3))
    assert not equal_values(Grid(1, 2, 3), Grid(1, 9, 3))
    assert equal_values([Grid(1, 2, 3)], [Grid(1, 2, 3)])
    assert not equal_values({"a": [Grid(1, 2, 3)]}, {"a": [Grid(1, 9, 3)]})


# -- invariants


def test_an_invariant_that_takes_a_lost_save_says_nothing_of_durability() -> None:
    def sound(directory: Path) -> None:
        put(directory / "t", "new")
        os.replace(directory / "t", directory / "state")

    def either(value: bytes, acknowledged: Any) -> bool:
        return value in (b"old", b"new")

    report = explore(workload=sound, invariant=either)
    verdict = report.verdict("posix")
    assert (verdict.atomic, verdict.durable, verdict.asked) == (True, None, False)
    assert "not asked" in str(verdict)
    report.raise_where_not_covered()  # nobody asked for it

    def acknowledged(directory: Path, acknowledge: Any) -> None:
        sound(directory)
        acknowledge(b"new")

    report = explore(workload=acknowledged, invariant=lambda r, a: r == (a or [b"old"])[-1])
    assert report.verdict("posix").durable is False


def test_an_invariant_that_stumbles_over_a_value_does_not_hold() -> None:
    torn = {b"old": {"v": 1}, b"new": {"v": 2}}
    report = explore(
        recover=lambda d: torn.get((d / "state").read_bytes(), {}),
        invariant=lambda value, _: value["v"] > 0,
    )
    assert report.verdict("posix").atomic is False
    with pytest.raises(UserError, match=r"KeyError.*without any crash"):
        explore(recover=lambda d: {}, invariant=lambda value, _: value["v"] > 0)


# -- what no crash state is made to show


def newest(key: Callable[[Path], Any]) -> Any:
    return lambda d: max((p for p in d.iterdir() if p.suffix == ""), key=key).read_text()


def next_generation(directory: Path) -> None:
    put(directory / "two.part", "new")
    os.rename(directory / "two.part", directory / "two")
    sync_directory(directory)


@pytest.mark.parametrize(
    "key", [os.path.getctime, lambda p: p.stat().st_ctime_ns, lambda p: os.stat(p).st_ctime]
)
def test_change_times_are_not_covered(key: Any) -> None:
    report = explore(
        setup=lambda d: put(d / "one", "old"), workload=next_generation, recover=newest(key)
    )
    verdict = report.verdict("posix")
    assert (verdict.atomic, verdict.durable) == (None, None)
    assert "change time" in verdict.reason


@pytest.mark.parametrize(
    "names",
    [
        lambda d: os.listdir(d),  # bare, it would be held by the session
        lambda d: [path.name for path in d.iterdir()],
        lambda d: [entry.name for entry in os.scandir(d)],
        lambda d: next(os.walk(d))[2],
    ],
)
@pytest.mark.parametrize("sort", [list, sorted])
def test_the_order_of_a_listing_is_not_covered(names: Any, sort: Any) -> None:
    def recover(directory: Path) -> str:
        found = [name for name in sort(names(directory)) if "." not in name]
        return (directory / found[-1]).read_text()

    report = explore(
        setup=lambda d: put(d / "one", "old"), workload=next_generation, recover=recover
    )
    verdict = report.verdict("posix")
    if sort is sorted:
        assert (verdict.atomic, verdict.durable) == (True, True)
    else:
        assert not verdict.atomic
        assert not verdict.durable


def test_a_list_in_the_order_of_the_directory_is_no_doubt() -> None:
    report = explore(
        setup=lambda d: put(d / "one", "old"),
        workload=lambda d: put(d / "two", "new"),
        recover=lambda d: [path.read_text() for path in d.iterdir()],
    )
    assert "order" not in report.verdict("posix").reason


def newest_directory(directory: Path) -> str:
    places = sorted((p for p in directory.iterdir()), key=lambda p: p.stat().st_mtime)
    states = [place / "state" for place in places if (place / "state").exists()]
    return states[-1].read_text()


def careful(directory: Path) -> str:
    before = max(p.stat().st_mtime for p in directory.iterdir())
    found = [(p / "state").read_text() for p in sorted(directory.iterdir()) if any(p.iterdir())]
    assert before == max(p.stat().st_mtime for p in directory.iterdir())  # nobody else wrote
    return found[-1]


@pytest.mark.parametrize("recover", [newest_directory, careful])
def test_modification_times_of_directories_count_where_they_change_the_answer(recover: Any) -> None:
    def setup(directory: Path) -> None:
        for name in "ab":
            (directory / name).mkdir()
        put(directory / "a" / "state", "old")

    def workload(directory: Path) -> None:
        put(directory / "b" / "t", "new")
        os.rename(directory / "b" / "t", directory / "b" / "state")
        sync_directory(directory / "b")

    def whole(directory: Path) -> str:
        (directory / "b" / "t").unlink(missing_ok=True)
        return str(recover(directory))

    verdict = explore(setup=setup, workload=workload, recover=whole).verdict("posix")
    if recover is careful:
        assert (verdict.atomic, verdict.durable) == (True, True)
    else:
        assert not (verdict.atomic and verdict.durable)


def test_what_an_earlier_run_left_of_directory_times_is_not_seen_by_the_next() -> None:
    """A lock file that comes and goes makes its directory the newest: for this run, not for all."""
    count = itertools.count()

    def setup(directory: Path) -> None:
        for name in "ab":
            (directory / name).mkdir()
            put(directory / name / "state", "old")

    def workload(directory: Path) -> None:
        put(directory / "b" / "t", "new")
        os.rename(directory / "b" / "t", directory / "b" / "state")
        sync_directory(directory / "b")

    def recover(directory: Path) -> str:
        found = newest_directory(directory)
        lock = directory / "ab"[next(count) % 2] / "lock"
        lock.touch()
        lock.unlink()
        return found

    verdict = explore(setup=setup, workload=workload, recover=recover).verdict("posix")
    assert verdict.atomic is None
    assert "modification times of directories" in verdict.reason


def test_a_copy_outside_the_directory_is_not_covered() -> None:
    elsewhere = Path(tempfile.mkdtemp()) / "copy"

    def workload(directory: Path) -> None:
        elsewhere.write_text("new")
        (directory / "state").write_text("new")

    def recover(directory: Path) -> str:
        state = (directory / "state").read_text()
        return state if state in ("old", "new") else elsewhere.read_text()

    verdict = explore(workload=workload, recover=recover).verdict("posix")
    assert verdict.atomic is None
    assert "outside the directory" in verdict.reason
    # What the workload did not write there may be read, and so may a lock.
    elsewhere.write_text("")
    other = elsewhere.with_name("settings")
    other.write_text("3")

    def harmless(directory: Path) -> bytes:
        with open(elsewhere, "a"):
            return (directory / "state").read_bytes() * int(other.read_text())

    def locked(directory: Path) -> None:
        with open(elsewhere, "a"):
            put(directory / "t", "new")
            os.replace(directory / "t", directory / "state")
            sync_directory(directory)

    assert explore(workload=locked, recover=harmless).verdict("posix").atomic is True


# -- stores into mappings


def test_a_store_into_a_mapping_that_changes_no_time_is_seen() -> None:
    """On tmpfs a page that was read is writable at once: neither times nor events tell."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(dir=memory))
    (directory / "state").write_bytes(b"old" * 1000)
    with open(directory / "state", "r+b") as file:
        before = mmap.mmap(file.fileno(), 0)
    assert before[:3] == b"old"
    with pytest.raises(BlindSpot, match="state"), PythonRecorder(directory):
        before[:3] = b"NEW"
    before.close()
    with PythonRecorder(directory) as recorder, open(directory / "state", "r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
        mapping[:3] = b"new"
        mapping.close()
    assert [type(each).__name__ for each in recorder.trace.operations][:1] == ["Write"]


def test_nothing_saved_yet_may_raise() -> None:
    report = explore(setup=None, before=raises(FileNotFoundError))
    assert report.verdict("posix").atomic is False


# -- what a process remembers


@pytest.mark.parametrize("seed", range(4))
def test_a_last_good_value_that_the_process_remembers_is_no_recovery(seed: int) -> None:
    """One torn disk among many sound ones: all that passed is looked at again elsewhere."""
    good: list[bytes] = []

    def setup(directory: Path) -> None:
        (directory / "state").write_bytes(b"old")
        for number in range(10):
            (directory / f"old{number}").write_bytes(b"x")

    def workload(directory: Path) -> None:
        for number in range(10):
            os.unlink(directory / f"old{number}")
            sync_directory(directory)
        put(directory / "tmp", "new", sync=False)
        os.replace(directory / "tmp", directory / "state")
        sync_directory(directory)

    def recover(directory: Path) -> bytes:
        os.listdir(directory)
        value = (directory / "state").read_bytes()
        if value not in (b"old", b"new"):
            return good[-1] if good else b"nothing"
        if value == b"new":
            good.append(value)
        return value

    report = explore(setup=setup, workload=workload, recover=recover, seed=seed)
    assert report.verdict("posix").atomic is False


# -- workloads that do not end tidily


def test_a_workload_that_removes_the_directory_itself_is_told_so() -> None:
    with pytest.raises(UserError, match="removed or renamed"):
        explore(workload=shutil.rmtree)


def test_a_thread_that_is_left_is_named() -> None:
    ended = threading.Event()

    def workload(directory: Path) -> None:
        unsynced_new(directory)
        threading.Thread(target=ended.wait, name="saver").start()

    try:
        report = explore(workload=workload)
    finally:
        ended.set()
    assert any("saver" in warning for warning in report.warnings)
    assert not any("threads" in warning for warning in explore().warnings)


def test_a_thread_that_goes_on_writing_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def show(*_: Any) -> None:
        raise FileExistsError(17, "File exists", "made meanwhile by a thread")

    monkeypatch.setattr(Materialiser, "show", show)
    with pytest.raises(UserError, match="goes on writing"):
        explore()
