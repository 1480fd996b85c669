"""Every way in which Python code changes files: recorded completely, with the right call site.

Each way is a function that is run under recording. The recorder's own self-check compares the
trace with the real directory; the test compares once more by itself, and looks at the operations.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gzip
import io
import mmap
import os
import pathlib
import posix
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from os import fsync as bound_fsync
from os import replace as bound_replace
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.core.apply import apply
from pytest_statepersist.core.operations import Trace
from pytest_statepersist.recorders.python import PythonRecorder, interposition
from pytest_statepersist.recorders.scan import scan

linux = pytest.mark.skipif(sys.platform != "linux", reason="a call of Linux")


def record(directory: Path, work: Callable[[Path], object]) -> Trace:
    recorder = PythonRecorder(directory)
    with recorder:
        work(directory)
    assert recorder.unproved is None or sys.platform != "linux"
    assert apply(recorder.trace).differences(scan(directory).tree) == []
    return recorder.trace


def kinds(trace: Trace) -> list[str]:
    return [type(operation).__name__ for operation in trace.operations]


@pytest.fixture(scope="module", autouse=True)
def held() -> Iterator[None]:
    """Search for bound names once; `test_python_undo` has recordings by themselves."""
    with interposition():
        yield


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir()
    (directory / "old").write_bytes(b"old content")
    (directory / "sub").mkdir()
    (directory / "sub" / "deep").write_bytes(b"deep")
    return directory


WAYS: dict[str, tuple[Callable[[Path], object], str]] = {}


def way(expected: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def add(function: Callable[[Path], object]) -> Callable[[Path], object]:
        WAYS[function.__name__] = (function, expected)
        return function

    return add


# -- open and file objects --


@way("Create Write Close")
def open_text(d: Path) -> None:
    with open(d / "f", "w", encoding="utf-8") as file:
        file.write("text")


@way("Truncate Write Close")
def open_truncates(d: Path) -> None:
    with open(d / "old", "wb") as file:
        file.write(b"1")


@way("Write Close")
def open_appends(d: Path) -> None:
    with open(d / "old", "ab") as file:
        file.write(b"more")


@way("Write Close")
def open_updates(d: Path) -> None:
    with open(d / "old", "r+b") as file:
        file.seek(4)
        file.write(b"C")


@way("Create Write Truncate Close")
def open_exclusive_plus(d: Path) -> None:
    with open(d / "f", "x+b") as file:
        file.write(b"12345")
        file.truncate(3)
        file.seek(0)
        assert file.read() == b"123"


@way("Create Write Write Close")
def open_unbuffered(d: Path) -> None:
    with open(d / "f", "wb", buffering=0) as file:
        assert file.write(b"1") == 1
        file.write(bytearray(b"2"))


@way("Create Write Write Close")
def open_line_buffered(d: Path) -> None:
    with open(d / "f", "w", buffering=1, encoding="utf-8", newline="\r\n") as file:
        file.write("a\n")
        file.write("b\n")


@way("Create Write Write Close")
def buffered_bytes_are_seen_when_they_leave_user_space(d: Path) -> None:
    with open(d / "f", "wb", buffering=100) as file:
        for _ in range(15):
            file.write(b"0123456789")


@way("Create Write Close")
def io_open(d: Path) -> None:
    with io.open(os.fsencode(d / "f"), "wb") as file:  # noqa: UP020
        file.write(b"1")


@way("Create Write Close")
def io_fileio(d: Path) -> None:
    with io.FileIO(d / "f", "w") as file:
        assert isinstance(file, io.FileIO)
        assert repr(file).startswith("<_io.FileIO")
        file.write(memoryview(b"1234")[::2].tobytes())


@way("Create Write Close")
def buffered_writer_on_fileio(d: Path) -> None:
    with io.BufferedWriter(io.FileIO(str(d / "f"), mode="x")) as file:
        file.write(b"1")


@way("Create Write Close")
def os_fdopen(d: Path) -> None:
    with os.fdopen(os.open(d / "f", os.O_CREAT | os.O_WRONLY), "w") as file:
        file.write("1")


@way("Create Write Close")
def open_with_opener(d: Path) -> None:
    with open("f", "wb", opener=lambda name, flags: os.open(d / name, flags)) as file:
        file.write(b"1")


@way("Create Write Close")
def not_closed_explicitly(d: Path) -> None:
    file: Any = open(d / "f", "wb", buffering=0)  # noqa: SIM115
    file.write(b"1")
    with pytest.warns(ResourceWarning):
        file = None


@way("Create Write")
def leaves_a_descriptor_behind(d: Path) -> None:
    fd = os.open(d / "f", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"1")
    WAYS["left"] = (lambda _: os.close(fd), "")


@way("Create")
def open_that_fails_after_it_made_the_file(d: Path) -> None:
    with pytest.raises(LookupError):
        open(d / "f", "w", encoding="no-such-encoding")  # noqa: SIM115


class OwnFile(io.FileIO):
    def write(self, data: Any, /) -> int:
        return super().write(bytes(data).upper())


class OwnerFile(io.FileIO):
    def __init__(self, path: Any) -> None:
        super().__init__(path, "w")


@way("Create Write Close")
def own_subclass_of_fileio(d: Path) -> None:
    with OwnFile(str(d / "f"), "w") as file:
        file.write(b"abc")
    assert (d / "f").read_bytes() == b"ABC"


# -- os --


@way("Create Write Write Write Fsync Fsync Close")
def os_write(d: Path) -> None:
    fd = os.open(d / "f", os.O_CREAT | os.O_RDWR, 0o600)
    os.write(fd, b"1234567890")
    os.lseek(fd, 3, os.SEEK_SET)
    os.write(fd, memoryview(b"abc"))
    os.writev(fd, [b"d", bytearray(b"ef")])
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    assert (d / "f").read_bytes() == b"123abcdef0"


@way("Create Write Write Close")
def os_pwrite(d: Path) -> None:
    fd = os.open(d / "f", os.O_CREAT | os.O_WRONLY)
    os.pwrite(fd, b"later", 5000)
    os.pwritev(fd, [b"so", b"on"], 3)
    os.close(fd)


@way("Write Write Close")
def os_append(d: Path) -> None:
    fd = os.open(d / "old", os.O_APPEND | os.O_WRONLY)
    os.write(fd, b"1")
    os.pwrite(fd, b"2", 0)
    os.close(fd)


@way("Truncate Truncate Truncate Allocate Close")
def os_truncate(d: Path) -> None:
    os.truncate(d / "old", 3)
    fd = os.open(d / "old", os.O_RDWR)
    os.ftruncate(fd, 20)
    os.truncate(fd, 10)
    os.posix_fallocate(fd, 0, 30)
    os.close(fd)


@way("Create Write Close Create Write Close Create Write Close")
@linux
def in_kernel_copies(d: Path) -> None:
    source = os.open(d / "old", os.O_RDONLY)
    one = os.open(d / "one", os.O_CREAT | os.O_WRONLY)
    assert os.sendfile(one, source, 2, 5) == 5
    os.close(one)
    two = os.open(d / "two", os.O_CREAT | os.O_WRONLY)
    assert os.copy_file_range(source, two, 5, 1, 3) == 5
    os.close(two)
    r, w = os.pipe()
    os.write(w, b"through a pipe")
    three = os.open(d / "three", os.O_CREAT | os.O_WRONLY)
    assert os.splice(r, three, 100) == 14
    for fd in (three, r, w, source):
        os.close(fd)


@way("Create Write Write Close")
def os_dup(d: Path) -> None:
    fd = os.open(d / "f", os.O_CREAT | os.O_WRONLY)
    copy = os.dup(fd)
    os.write(fd, b"1")
    os.close(fd)
    target = os.open(os.devnull, os.O_WRONLY)
    os.dup2(copy, target)
    os.close(copy)
    os.write(target, b"2")
    os.close(target)


@way("Create Write Close")
def os_closerange(d: Path) -> None:
    fd = os.open(d / "f", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"1")
    os.closerange(fd, fd + 1)


@way("Rename Rename Link Unlink Unlink Symlink")
def os_names(d: Path) -> None:
    os.rename(d / "old", d / "a")
    os.replace(d / "a", d / "sub" / "deep")
    os.link(d / "sub" / "deep", d / "b")
    os.unlink(d / "b")
    os.remove(d / "sub" / "deep")
    os.symlink("sub", d / "s")


@way("Mkdir Mkdir Create Unlink Rmdir Rmdir")
def os_directories(d: Path) -> None:
    os.makedirs(d / "x" / "y")
    os.close(os.open(d / "x" / "y" / "f", os.O_CREAT | os.O_WRONLY))
    os.remove(d / "x" / "y" / "f")
    os.removedirs(d / "x" / "y")


@way("SetAttributes SetAttributes SetAttributes SetAttributes")
def os_attributes(d: Path) -> None:
    os.chmod(d / "old", 0o600)
    fd = os.open(d / "old", os.O_RDONLY)
    os.fchmod(fd, 0o640)
    os.close(fd)
    os.utime(d / "old", ns=(1, 2))
    os.chown(d / "sub", -1, os.getgid())


@way("SetAttributes SetAttributes SetAttributes")
@linux
def os_xattrs(d: Path) -> None:
    try:
        os.setxattr(d / "old", "user.a", b"1")
    except OSError:
        pytest.skip("the file system has no extended attributes")
    os.setxattr(d / "old", b"user.b", b"2")
    os.removexattr(d / "old", "user.a")


@way("Create Write Fsync Rename Fsync")
def through_posix(d: Path) -> None:
    fd = posix.open(str(d / "f"), os.O_CREAT | os.O_WRONLY)
    posix.write(fd, b"1")
    posix.fsync(fd)
    posix.rename(str(d / "f"), str(d / "old"))
    directory = posix.open(str(d), os.O_RDONLY)
    posix.fsync(directory)
    posix.close(directory)
    WAYS["left"] = (lambda _: os.close(fd), "")


@way("Create Write Link Close")
@linux
def o_tmpfile(d: Path) -> None:
    fd = os.open(d, os.O_TMPFILE | os.O_WRONLY)
    os.write(fd, b"1")
    directory = os.open(d, os.O_RDONLY)
    os.link(f"/proc/self/fd/{fd}", "f", dst_dir_fd=directory, follow_symlinks=True)
    os.close(directory)
    os.close(fd)


@way("Create Write Close Create Write Close")
def o_sync(d: Path) -> None:
    for name, flag in (("f", os.O_SYNC), ("g", os.O_DSYNC)):
        fd = os.open(d / name, os.O_CREAT | os.O_WRONLY | flag)
        os.write(fd, b"1")
        os.close(fd)


@way("Create Mkdir Rename Symlink Unlink Rmdir")
def dir_fd(d: Path) -> None:
    fd = os.open(d / "sub", os.O_RDONLY)
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.mkdir("x", dir_fd=fd)
    os.rename("f", "g", src_dir_fd=fd, dst_dir_fd=fd)
    os.symlink("g", "s", dir_fd=fd)
    os.unlink("g", dir_fd=fd)
    os.rmdir("x", dir_fd=fd)
    os.close(fd)


@way("Create Create Rename")
def relative_paths(d: Path) -> None:
    before = os.getcwd()
    try:
        os.chdir(d)
        open("f", "w").close()
        os.chdir("sub")
        open("./../g", "w").close()
        os.rename("../g", "../sub/h")
    finally:
        os.chdir(before)


@way("Create Write Close Rename")
def through_symlinked_directories(d: Path) -> None:
    (d.parent / "link").symlink_to(d)
    with open(d.parent / "link" / "sub" / "f", "w") as file:
        file.write("1")
    os.rename(d.parent / "link" / "sub" / "f", d / "f")


@way("Symlink Truncate Write Close Symlink Create Write Close")
def through_symlinked_files(d: Path) -> None:
    os.symlink("sub/deep", d / "s")
    (d / "s").write_bytes(b"new")
    os.symlink(str(d / "fresh"), d / "t")
    (d / "t").write_bytes(b"fresh")


@way("Create Write Close")
def a_symlink_outside_that_leads_in(d: Path) -> None:
    (d.parent / "link").symlink_to(d / "fresh")
    (d.parent / "link").write_bytes(b"fresh")


@way("SyncAll")
def os_sync(d: Path) -> None:
    os.sync()


# -- names bound before --


def save_with_defaults(source: Path, target: Path, replace: Any = os.replace) -> None:
    replace(source, target)


save_partially = functools.partial(os.replace)


@pytest.fixture
def saver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that has functions bound, for one test: each search of the heap would find it."""

    class Saver:
        replace = os.replace
        sync = staticmethod(os.fsync)

    monkeypatch.setitem(BOUND, "Saver", Saver)


BOUND: dict[str, Any] = {}


@way("Rename Rename Rename Rename Fsync Fsync")
def names_bound_before(d: Path) -> None:
    bound_replace(d / "old", d / "1")
    save_with_defaults(d / "1", d / "2")
    save_partially(d / "2", d / "3")
    BOUND["Saver"]().replace(d / "3", d / "4")
    fd = os.open(d / "4", os.O_RDONLY)
    bound_fsync(fd)
    BOUND["Saver"].sync(fd)
    os.close(fd)


# -- threads, async --


@way("Create Write Close " * 8)
def threads(d: Path) -> None:
    def work(name: str) -> None:
        (d / name).write_bytes(name.encode())

    workers = [threading.Thread(target=work, args=(str(number),)) for number in range(4)]
    for worker in workers:
        worker.start()
        worker.join()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        list(pool.map(work, ["a", "b", "c", "d"]))


@way("Create Write Close Rename")
def async_code(d: Path) -> None:
    async def save() -> None:
        await asyncio.to_thread((d / "f").write_bytes, b"1")
        await asyncio.get_running_loop().run_in_executor(None, os.replace, d / "f", d / "old")

    asyncio.run(save())


# -- the standard library --


@way("Create Write Close SetAttributes SetAttributes Create Write Close SetAttributes Rename")
def shutil_copies(d: Path) -> None:
    os.chmod(d.parent, 0o755)
    shutil.copy2(d / "old", d / "new")
    shutil.copy(d / "old", d / "sub" / "new")
    shutil.move(d / "new", d / "sub" / "deep")


@way("Unlink Rmdir Mkdir Mkdir SetAttributes SetAttributes Rename")
def shutil_trees(d: Path) -> None:
    shutil.rmtree(d / "sub")
    os.makedirs(d / "t" / "u")
    os.utime(d / "t" / "u", ns=(5, 5))
    os.chmod(d / "t", 0o700)
    shutil.move(d / "t", d / "v")


@way("Create Write Close Rename Create Unlink Mkdir Rmdir")
def tempfiles(d: Path) -> None:
    with tempfile.NamedTemporaryFile("w", dir=d, delete=False) as file:
        file.write("1")
    os.replace(file.name, d / "old")
    with tempfile.NamedTemporaryFile(dir=d):
        pass
    with tempfile.TemporaryDirectory(dir=d):
        pass


@way("Create Write Close Rename Create SetAttributes Unlink Mkdir Rmdir Symlink Link")
def pathlib_methods(d: Path) -> None:
    (d / "f").write_text("1")
    (d / "f").replace(d / "g")
    (d / "h").touch()
    (d / "h").chmod(0o600)
    (d / "h").unlink()
    (d / "i").mkdir()
    (d / "i").rmdir()
    (d / "j").symlink_to("g")
    pathlib.Path(d / "k").hardlink_to(d / "g")


@way("Create Write Close")
def gzip_file(d: Path) -> None:
    with gzip.open(d / "f.gz", "wb") as file:
        file.write(b"1")


# -- from and to elsewhere --


@way("Create Write Fsync Close Rename")
def written_elsewhere_and_renamed_in(d: Path) -> None:
    with open(d.parent / "t", "wb") as file:
        file.write(b"1")
        file.flush()
        os.fsync(file.fileno())
    os.rename(d.parent / "t", d / "f")


@way("Create Write Close Link Write Close Unlink")
def linked_in_and_written_elsewhere(d: Path) -> None:
    (d.parent / "t").write_bytes(b"1")
    os.link(d.parent / "t", d / "f")
    with open(d.parent / "t", "ab") as file:
        file.write(b"2")
    os.unlink(d.parent / "t")


@way("Create Write Rename")
def an_older_file_moves_in(d: Path) -> None:
    os.rename(d.parent / "older", d / "f")


@way("Create Write Fsync Rename")
def an_older_file_is_synced_and_moves_in(d: Path) -> None:
    fd = os.open(d.parent / "older", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    os.rename(d.parent / "older", d / "f")


@way("Create Write Rename")
def an_older_file_is_written_and_moves_in(d: Path) -> None:
    with open(d.parent / "older", "ab") as file:
        file.write(b"more")
    os.rename(d.parent / "older", d / "f")


@way("Rename")
def renamed_out(d: Path) -> None:
    os.rename(d / "old", d.parent / "out")


@way("Rename Write Close Rename")
def renamed_out_written_and_in_again(d: Path) -> None:
    os.rename(d / "old", d.parent / "out")
    with open(d.parent / "out", "ab") as file:
        file.write(b"more")
    os.rename(d.parent / "out", d / "in")


@way("Mkdir Create Write Close Rename Create Write Close")
def a_directory_made_elsewhere_moves_in(d: Path) -> None:
    (d.parent / "t").mkdir()
    (d.parent / "t" / "f").write_bytes(b"1")
    os.rename(d.parent / "t", d / "t")
    (d / "t" / "g").write_bytes(b"2")


@way("Mkdir Mkdir Create Write Rename Create")
def an_older_directory_moves_in(d: Path) -> None:
    os.rename(d.parent / "olddir", d / "x")
    (d / "x" / "y" / "g").touch()


@way("Mkdir Create Write Close Rename")
def a_file_moves_in_from_a_directory_made_elsewhere(d: Path) -> None:
    (d.parent / "t").mkdir()
    (d.parent / "t" / "f").write_bytes(b"1")
    (d.parent / "t" / "other").write_bytes(b"2")
    os.rename(d.parent / "t" / "f", d / "new")


@way("Create Write Close")
def a_copy_from_below_a_directory_made_elsewhere(d: Path) -> None:
    (d.parent / "t" / "u").mkdir(parents=True)
    (d.parent / "t" / "u" / "f").write_bytes(b"1")
    (d / "new").write_bytes((d.parent / "t" / "u" / "f").read_bytes())
    shutil.rmtree(d.parent / "t")


@way("")
def elsewhere_only(d: Path) -> None:
    (d.parent / "t").write_bytes(b"1")
    (d.parent / "t").rename(d.parent / "u")
    (d.parent / "u").unlink()


# -- mappings --


@way("Truncate Write Write SyncRange Write Close")
def mapped(d: Path) -> None:
    with open(d / "old", "r+b") as file:
        file.truncate(9000)
        with mmap.mmap(file.fileno(), 0) as mapping:
            mapping[0:3] = b"abc"
            mapping[-1] = 7
            mapping.flush()
            with memoryview(mapping) as view:
                view[5000:5003] = b"xyz"


@way("Write SyncRange")
def mapped_by_position(d: Path) -> None:
    with open(d / "old", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping.write(b"12")
        mapping.flush(0, 11)


@pytest.mark.usefixtures("saver")
@pytest.mark.parametrize("name", list(WAYS))
def test_way(name: str, state: Path) -> None:
    (state.parent / "older").write_bytes(b"older")
    (state.parent / "olddir" / "y").mkdir(parents=True)
    (state.parent / "olddir" / "y" / "f").write_bytes(b"f")
    work, expected = WAYS[name]
    for mark in getattr(work, "pytestmark", []):
        if mark.args[0]:
            pytest.skip(mark.kwargs["reason"])
    WAYS.pop("left", None)
    trace = record(state, work)
    WAYS.pop("left", (lambda _: None, ""))[0](state)
    assert " ".join(kinds(trace)) == expected.strip()
    code = work.__code__ if hasattr(work, "__code__") else None
    for operation in trace.operations:
        assert operation.time is not None
        site = operation.site
        if site is not None and code is not None:
            assert site.file == code.co_filename
            assert site.line > code.co_firstlineno or name == "names_bound_before"
