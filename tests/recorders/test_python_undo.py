"""Whatever happens in a recording, everything is put back as it was."""

from __future__ import annotations

import io
import mmap
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pytest_statepersist.errors import BlindSpot, UserError
from pytest_statepersist.recorders.builder import TraceBuilder
from pytest_statepersist.recorders.interpose import Interposition
from pytest_statepersist.recorders.python import PythonRecorder, interposition

REPLACED = {
    "os.replace": lambda: id(os.replace),
    "os.open": lambda: id(os.open),
    "os.write": lambda: id(os.write),
    "open": lambda: id(open),
    "io.open": lambda: id(io.open),
    "io.FileIO": lambda: id(io.FileIO),
    "mmap.mmap": lambda: id(mmap.mmap),
    "supports": lambda: frozenset(map(id, os.supports_dir_fd)),
}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir()
    return directory


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    before = looks()
    yield
    assert looks() == before


def looks() -> dict[str, Any]:
    """Say what is where, and hold nothing: each recording would search for who does."""
    return {name: look() for name, look in REPLACED.items()}


def kinds(recorder: PythonRecorder) -> list[str]:
    return [type(operation).__name__ for operation in recorder.trace.operations]


class Companion:
    """One that notes what is done with it, and can fail."""

    def __init__(self, builder: TraceBuilder, moment: Any, failing: str = "") -> None:
        self.log: list[str] = []
        self.builder, self.moment, self.failing = builder, moment, failing

    def start(self) -> None:
        self.log.append("start")
        if self.failing == "start":
            raise RuntimeError("start")

    def stop(self) -> None:
        self.log.append("stop")
        if self.failing == "stop":
            raise RuntimeError("stop")


@pytest.mark.parametrize("other", ["state", "elsewhere"])
def test_a_nested_recording_is_refused_and_the_outer_goes_on(state: Path, other: str) -> None:
    (state.parent / "elsewhere").mkdir()
    with PythonRecorder(state) as recorder:
        with pytest.raises(UserError, match="one recording at a time"):
            PythonRecorder(state.parent / other).start()
        (state / "f").touch()
    assert kinds(recorder) == ["Create"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_everything_is_undone_when_the_workload_raises(
    state: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error), PythonRecorder(state):
        (state / "f").touch()
        raise error
    with PythonRecorder(state) as recorder:
        (state / "g").touch()
    assert kinds(recorder) == ["Create"]


@pytest.mark.parametrize("failing", ["start", "stop"])
def test_a_companion_that_fails_leaves_nothing_behind(state: Path, failing: str) -> None:
    with (
        pytest.raises(RuntimeError, match=failing),
        PythonRecorder(state, companions=[lambda b, m: Companion(b, m, failing)]),
    ):
        pass


def test_types_are_what_they_were(state: Path) -> None:
    with open(state / "before", "wb", buffering=0) as before, PythonRecorder(state):
        plain = type(before)
        with open(state / "f", "wb", buffering=0) as file:
            assert type(file) is plain
            assert isinstance(file, io.FileIO)
            assert isinstance(before, io.FileIO)
            assert issubclass(plain, io.FileIO)
        with io.FileIO(state / "f") as file:
            assert type(file) is plain

        class Mine(io.FileIO):
            pass

        with Mine(state / "g", "w") as mine:
            mine.write(b"1")
            assert isinstance(mine, io.FileIO)
            assert isinstance(mine, Mine)
            assert not isinstance(before, Mine)
        with open(state / "f", "r+b") as file:
            file.write(b"1234")
            file.flush()
            with mmap.mmap(file.fileno(), 0) as mapping:
                assert isinstance(mapping, mmap.mmap)


def test_a_sync_in_a_holder_that_cannot_be_rewritten(state: Path) -> None:
    lazy = map(os.fsync, [0])
    with pytest.raises(BlindSpot, match=r"fsync was bound before.*map"), PythonRecorder(state):
        pass
    del lazy


def test_another_function_in_such_a_holder_is_found_by_what_it_does(state: Path) -> None:
    (state / "f").touch()
    lazy = map(os.unlink, [state / "f"])
    with PythonRecorder(state):
        pass
    with pytest.raises(BlindSpot, match="'f' is missing"), PythonRecorder(state):
        list(lazy)


def test_a_held_interposition_makes_starting_cheap(state: Path) -> None:
    with interposition():
        wrapper = os.replace
        for name in "ab":
            with PythonRecorder(state) as recorder:
                assert os.replace is wrapper
                (state / name).touch()
            assert kinds(recorder) == ["Create"]
        assert os.replace is wrapper
        os.replace(state / "a", state / "b")


def test_an_observer_above_sees_the_calls_and_they_are_recorded(state: Path) -> None:
    seen: list[str] = []

    def factory(original: Any) -> Any:
        def replace(*args: Any, **kwargs: Any) -> None:
            seen.append("replace")
            original(*args, **kwargs)

        return replace

    (state / "f").touch()
    with Interposition({(os, "replace"): factory}, layer=1), PythonRecorder(state) as recorder:
        os.replace(state / "f", state / "g")
    assert seen == ["replace"]
    assert kinds(recorder) == ["Rename"]


def test_a_sync_that_a_test_took_away_is_no_sync(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recording called the real one in its place: a store without any sync was "durable"."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    taken = os.fsync
    with PythonRecorder(state) as recorder, open(state / "f", "wb") as file:
        os.fsync(file.fileno())
    assert kinds(recorder) == ["Create"]
    assert os.fsync is taken
    monkeypatch.undo()
    with PythonRecorder(state) as recorder, open(state / "g", "wb") as file:
        os.fsync(file.fileno())
    assert kinds(recorder) == ["Create", "Fsync"]


@pytest.mark.parametrize("ends_inside", [False, True])
def test_what_a_test_put_round_a_call_is_called(state: Path, ends_inside: bool) -> None:
    (state / "f").touch()
    real = id(os.replace)
    patch = mock.patch("os.replace", wraps=os.replace)
    spy = patch.start()
    with PythonRecorder(state) as recorder:
        os.replace(state / "f", state / "g")
        if ends_inside:
            patch.stop()
            os.replace(state / "g", state / "h")
    if not ends_inside:
        patch.stop()
    assert spy.call_count == 1
    assert kinds(recorder) == ["Rename"] * (1 + ends_inside)
    assert id(os.replace) == real
    assert isinstance(os.replace, types.BuiltinFunctionType)
