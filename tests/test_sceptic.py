"""Ways in which a verdict could be wrongly "safe", each found by attacking the engine once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist import CrashSimulator, UserError


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
