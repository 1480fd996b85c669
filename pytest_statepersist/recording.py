"""Which recorder sees a workload: Python and SQLite together, then strace where they are blind.

Belongs here: starting recorders on a directory and handing on what they saw. What one can see is
its own business; what the trace means is `core`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from pytest_statepersist.core.operations import Trace
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.errors import BlindSpot, RecorderUnavailable, UserError
from pytest_statepersist.explorer.materialise import remove
from pytest_statepersist.explorer.outcome import Outcome
from pytest_statepersist.explorer.runner import call
from pytest_statepersist.recorders.builder import Moment, TraceBuilder
from pytest_statepersist.recorders.python import Companion, PythonRecorder

__all__ = ["Recorded", "RecordingSession", "record_workload"]

Acknowledge = Callable[[Any], None]
Companions = tuple[Callable[[TraceBuilder, Callable[[], Moment]], Companion], ...]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A finished recording: the trace, acknowledged values with positions, and who saw it."""

    trace: Trace
    acknowledged: tuple[tuple[int, Any], ...]
    recorder: str
    warnings: tuple[str, ...] = ()

    def record_recovery(
        self, directory: Path
    ) -> Callable[[Tree, Callable[[], Outcome]], tuple[Trace, Outcome] | BlindSpot]:
        """Return a function that records a recovery which runs on a known tree."""

        def record(tree: Tree, run: Callable[[], Outcome]) -> tuple[Trace, Outcome] | BlindSpot:
            companions, _ = sqlite_companions()
            recorder = PythonRecorder(
                directory, base_tree=tree, ignore=_is_shared_memory, companions=companions
            )
            try:
                with recorder:
                    outcome = run()
            except BlindSpot as blind:
                return blind
            return recorder.trace, outcome

        return record


def sqlite_companions() -> tuple[Companions, tuple[str, ...]]:
    """Return what records SQLite in this process, or why nothing can."""
    try:
        import sqlite3

        from pytest_statepersist.recorders.sqlite import SqliteRecorder
        from pytest_statepersist.recorders.sqlite_library import library
    except ImportError:
        return (), ()
    del sqlite3
    try:
        library()
    except (RecorderUnavailable, BlindSpot) as error:
        return (), (str(error),)
    return (lambda builder, moment: SqliteRecorder(builder, moment=moment),), ()


def _is_shared_memory(path: str) -> bool:
    from pytest_statepersist.recorders.sqlite import is_shared_memory

    return is_shared_memory(path)


class _Recorder(Protocol):
    acknowledged: list[object]


def record_workload(
    directory: Path,
    workload: Callable[[Path, Acknowledge], Any],
    *,
    recorder: str,
    setup: Callable[[Path], Any] | None,
) -> Recorded:
    """Record ``workload(directory, acknowledge)``; with "auto" again under strace when blind.

    Raises `UserError` where the workload raises, `BlindSpot` where no recorder sees all of it.
    """
    if recorder == "strace":
        return _under_strace(directory, workload, ())
    try:
        return _in_python(directory, workload)
    except BlindSpot as blind:
        if recorder != "auto":
            raise
        return _again_under_strace(directory, workload, setup, blind)


def _in_python(directory: Path, workload: Callable[[Path, Acknowledge], Any]) -> Recorded:
    companions, warnings = sqlite_companions()
    recorder = PythonRecorder(directory, ignore=_is_shared_memory, companions=companions)
    with recorder:
        _run(workload, directory, recorder.acknowledge)
    names = "python+sqlite" if companions else "python"
    if recorder.unproved:
        warnings = (*warnings, f"completeness rests on the final tree only: {recorder.unproved}")
    return Recorded(recorder.trace, _values(recorder, recorder.trace), names, warnings)


def _run(
    workload: Callable[[Path, Acknowledge], Any], directory: Path, acknowledge: Acknowledge
) -> None:
    try:
        call(workload, directory, acknowledge)
    except (KeyboardInterrupt, BlindSpot):
        raise
    except BaseException as error:
        raise UserError(
            f"the workload raised {type(error).__name__}: {error}. Nothing was judged: it has to "
            "succeed once without a crash. For saves that fail, use the fault injector."
        ) from error


def _values(recorder: _Recorder, trace: Trace) -> tuple[tuple[int, Any], ...]:
    positions = [ack.position for ack in trace.acknowledgements]
    return tuple(zip(positions, recorder.acknowledged, strict=True))


def _again_under_strace(
    directory: Path,
    workload: Callable[[Path, Acknowledge], Any],
    setup: Callable[[Path], Any] | None,
    blind: BlindSpot,
) -> Recorded:
    for name in os.listdir(directory):
        remove(f"{directory}/{name}")
    if setup is not None:
        call(setup, directory)
    note = f"recorded again under strace, because of a blind spot: {blind}"
    try:
        return _under_strace(directory, workload, (note,))
    except (RecorderUnavailable, ImportError) as error:
        blind.add_note(f"strace, which would see it, cannot be used here: {error}")
        raise blind from error


def _under_strace(
    directory: Path, workload: Callable[[Path, Acknowledge], Any], warnings: tuple[str, ...]
) -> Recorded:
    recorder = _StraceWithValues(directory)
    recorder.start()
    try:
        _run(workload, directory, recorder.acknowledge)
    except BaseException:
        with suppress(BlindSpot):
            recorder.stop()
        raise
    trace = recorder.stop()
    return Recorded(trace, _values(recorder, trace), "strace", warnings)


class _StraceWithValues:
    """The strace recorder, which sees text only, with the acknowledged values kept beside it."""

    def __init__(self, directory: Path) -> None:
        from pytest_statepersist.recorders.strace import StraceRecorder

        self.acknowledged: list[object] = []
        self._recorder = StraceRecorder(directory)
        self.start = self._recorder.start
        self.stop = self._recorder.stop

    def acknowledge(self, value: object = None) -> None:
        self._recorder.acknowledge(repr(value))
        self.acknowledged.append(value)


class RecordingSession:
    """Records a block of the user's own test; the result is given to ``recording``."""

    def __init__(self, directory: Path, recording: Any, recorder: str) -> None:
        self._recording = recording
        self._warnings: tuple[str, ...] = ()
        self._recorder: Any
        if recorder == "strace":
            self._recorder = _StraceWithValues(directory)
            self._name = "strace"
        else:
            companions, self._warnings = sqlite_companions()
            self._recorder = PythonRecorder(
                directory, ignore=_is_shared_memory, companions=companions
            )
            self._name = "python+sqlite" if companions else "python"

    def __enter__(self) -> RecordingSession:
        self._recorder.start()
        self._recording.attach(self._recorder.acknowledge)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            if isinstance(self._recorder, PythonRecorder):
                self._recorder.__exit__(kind, error, traceback)
            else:
                with suppress(BlindSpot):
                    self._recorder.stop()
            return
        trace = self._recorder.stop()
        self._recording.recorded = Recorded(
            trace, _values(self._recorder, trace), self._name, self._warnings
        )
