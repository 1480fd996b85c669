"""Recoveries that ask for names in native code, or for inode numbers: no run of them tells."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist import BlindSpot, CrashSimulator
from pytest_statepersist.explorer.code_uses import Uses, uses_of

libc = ctypes.CDLL(None)


def there_natively(path: Path) -> bool:
    return bool(libc.access(os.fsencode(path), os.F_OK) == 0)


def save(directory: Path, number: int) -> None:
    with open(directory / "value.tmp", "w") as file:
        file.write(str(number))
        file.flush()
        os.fsync(file.fileno())
    os.replace(directory / "value.tmp", directory / "value")


@pytest.mark.parametrize("sound", [True, False])
def test_a_name_that_only_native_code_asks_for(sound: bool) -> None:
    """A lock that is left locks everybody out; seen by `access` in C, it was found in no state."""

    def workload(directory: Path) -> None:
        for number in range(1, 6):
            save(directory, number)
            if number == 3 and not sound:
                (directory / "lock").mkdir()
                (directory / "lock").rmdir()

    def recover(directory: Path) -> int:
        if there_natively(directory / "lock"):
            raise RuntimeError("locked by somebody")
        return int((directory / "value").read_text())

    report = CrashSimulator().explore(
        setup=lambda d: save(d, 0),
        workload=workload,
        recover=recover,
        invariant=lambda found, acknowledged: found in range(6),
        model="kill",
    )
    assert report.verdict("kill").atomic is sound


class Store:
    library = libc

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> bool:
        return bool(self.library.access(os.fsencode(self.path), 0))


class Inherits(Store):
    pass


class Keeps:
    def __init__(self) -> None:
        self.call = libc.access


class Refuses:
    """Asking such an object anything runs its own code."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)

    def load(self, path: Path) -> str:
        return path.read_text()


def imports_inside(path: Path) -> object:
    import ctypes

    return ctypes.CDLL(None)


def calls_another(path: Path) -> bool:
    return there_natively(path)


@functools.lru_cache
def cached(path: Path) -> bool:
    return calls_another(path)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[bool]:
    yield there_natively(path)


def with_it(path: Path) -> bool:
    with opened(path) as found:
        return found


def in_python(path: Path) -> Any:
    return json.loads(path.read_text()) if os.path.exists(path) else Refuses().load(path)


keeps, refuses = Keeps(), Refuses()


@pytest.mark.parametrize(
    "recover",
    [
        calls_another,
        imports_inside,
        cached,
        with_it,
        lambda path: Store(path).load(),
        Inherits(Path()).load,
        functools.partial(there_natively),
        lambda path: [each for each in "ab" if there_natively(path / each)],
        lambda path: keeps.call(path),
    ],
)
def test_code_that_reaches_native_code(recover: Callable[..., Any]) -> None:
    assert uses_of(recover) == Uses(native=True, calls=True)


def test_sqlite_is_native_code_that_is_recorded() -> None:
    assert uses_of(lambda path: sqlite3.connect(path)) == Uses(native=True)


@pytest.mark.parametrize(
    "recover",
    [
        in_python,
        lambda path: refuses.load(path),
        refuses.load,
        functools.partial(in_python),
        lambda path: sorted(path.iterdir()),
        len,
    ],
)
def test_code_that_does_not(recover: Callable[..., Any]) -> None:
    assert uses_of(recover) == Uses()
    assert uses_of(recover) == Uses()


def by_stat(path: Path) -> int:
    return os.stat(path).st_ino


def by_descriptor(path: Path) -> int:
    with open(path) as file:
        return os.fstat(file.fileno()).st_ino


def by_listing(path: Path) -> int:
    with os.scandir(path.parent) as entries:
        return next(entry.inode() for entry in entries if entry.name == path.name)


@pytest.mark.parametrize("number_of", [by_stat, by_descriptor, by_listing])
def test_a_file_that_is_found_again_by_its_saved_number(number_of: Callable[[Path], int]) -> None:
    """A reader of logs keeps the number of the file that it was at; no crash state has that one."""

    def read_to_the_end(directory: Path) -> None:
        (directory / "place").write_text(f"{number_of(directory / 'log')} 3")

    def recover(directory: Path) -> int:
        number, _, at = (directory / "place").read_text().partition(" ")
        return int(at) if int(number) == number_of(directory / "log") else 0

    def setup(directory: Path) -> None:
        (directory / "log").write_text("one")
        (directory / "place").write_text("0 0")

    with pytest.raises(BlindSpot, match=r"returned 3 .* returned 0 .*st_ino"):
        CrashSimulator().explore(
            setup=setup, workload=read_to_the_end, recover=recover, before=0, after=3
        )


def test_two_looks_at_the_same_number() -> None:
    """Whether a name still leads to the open file: both numbers are those of the crash state."""

    def recover(directory: Path) -> str:
        with open(directory / "value") as file:
            assert os.fstat(file.fileno()).st_ino == os.stat(directory / "value").st_ino
            return file.read()

    report = CrashSimulator().explore(
        setup=lambda d: save(d, 0), workload=lambda d: save(d, 1), recover=recover, model="kill"
    )
    assert report.safe


def sync_natively(descriptor: int) -> None:
    assert libc.fsync(descriptor) == 0


def sync_in_python(descriptor: int) -> None:
    os.fsync(descriptor)


@pytest.mark.parametrize("sync", [sync_natively, sync_in_python])
def test_a_workload_that_syncs_in_native_code(sync: Callable[[int], None]) -> None:
    """Such a sync leaves no mark: the sound store was accused of losing what it had saved."""

    def workload(directory: Path) -> None:
        with open(directory / "value.tmp", "w") as file:
            file.write("new")
            file.flush()
            sync(file.fileno())
        os.replace(directory / "value.tmp", directory / "value")
        descriptor = os.open(directory, os.O_RDONLY)
        sync(descriptor)
        os.close(descriptor)

    report = CrashSimulator().explore(
        setup=lambda d: (d / "value").write_text("old"),
        workload=workload,
        recover=lambda d: (d / "value").read_text(),
    )
    if sync is sync_in_python or report.recorder.startswith("strace"):
        assert report.safe
    else:
        assert any("a finding may be wrong" in warning for warning in report.warnings)
    assert any("C code" in warning for warning in report.warnings) is (sync is sync_natively)
