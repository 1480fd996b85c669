"""Which recorder sees a workload: Python and SQLite together, then strace where they are blind.

Belongs here: starting recorders on a directory and handing on what they saw. What one can see is
its own business; what the trace means is `core`'s.
"""

from __future__ import annotations

import errno
import glob
import os
import resource
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pytest_statepersist.core.crash_state import CrashState
from pytest_statepersist.core.models import get_model
from pytest_statepersist.core.operations import Trace
from pytest_statepersist.core.states import disk_of
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.errors import BlindSpot, RecorderUnavailable, TraceError, UserError
from pytest_statepersist.explorer.code_uses import uses_of
from pytest_statepersist.explorer.materialise import Materialiser, remove
from pytest_statepersist.explorer.outcome import Outcome
from pytest_statepersist.explorer.runner import call, is_skip
from pytest_statepersist.mixing import is_unordered
from pytest_statepersist.recorders.builder import Clock, TraceBuilder
from pytest_statepersist.recorders.python import Companion, PythonRecorder
from pytest_statepersist.recorders.strace_sites import lend_sites

__all__ = ["Recorded", "RecordingSession", "record_workload"]

Acknowledge = Callable[[Any], None]
RecordRecovery = Callable[[Tree, Callable[[], Outcome]], "tuple[Trace, Outcome] | BlindSpot"]
_CALLS = "the workload calls C code (ctypes, cffi), whose syncs only strace sees"
_PROGRAMS = "the workload ran another program, whose syncs only strace sees"
_WRONG = "a finding may be wrong; give recorder='strace'"
_MAY_BE_WRONG = f"{_PROGRAMS}, so {_WRONG}"
_SAME_FILE_SYSTEM = (
    "if your directory is on one file system with what is moved or linked into it, give a "
    "workspace= there"
)
Companions = tuple[Callable[[TraceBuilder, Clock], Companion], ...]


@dataclass(slots=True)
class Recorded:
    """A finished recording: the trace, acknowledged values with positions, and who saw it."""

    trace: Trace
    acknowledged: tuple[tuple[int, Any], ...]
    seen_by: str
    choice: str
    """What was asked for: "auto", "python" or "strace"; it holds for recoveries too."""
    warnings: tuple[str, ...] = ()
    recoveries_seen_by: str = ""
    outside: frozenset[str] = frozenset()
    """Files elsewhere, not empty, that Python code of the workload wrote, renamed or removed."""
    ran_programs: bool = False
    """Whether other programs ran and ended, whose syncs leave no mark that Python sees."""
    earlier: Trace | None = None
    """The trace with what memory maps changed as early as can be; see `recorders.strace_maps`."""
    stored_unseen: tuple[str, ...] = ()
    """Files with stores through a buffer of a memory map, which Python found and did not see."""

    @property
    def recorder(self) -> str:
        """Who saw what, in words."""
        if self.recoveries_seen_by in ("", self.seen_by):
            return self.seen_by
        return f"{self.seen_by}; crashes during recovery by {self.recoveries_seen_by}"

    def record_recovery(self, directory: Path) -> RecordRecovery:
        """Return a function that records a recovery which runs on a known tree."""
        return _Recoveries(self, directory).record


class _Recoveries:
    """Records recoveries on crash states; once Python was blind to one, strace sees the others."""

    def __init__(self, recorded: Recorded, directory: Path) -> None:
        self._recorded = recorded
        self._directory = directory
        self._native = recorded.choice == "strace"

    def record(self, tree: Tree, run: Callable[[], Outcome]) -> tuple[Trace, Outcome] | BlindSpot:
        """Record one; returns the `BlindSpot` where no recorder that may be used sees it."""
        if not self._native:
            found = self._in_python(tree, run)
            if not isinstance(found, BlindSpot):
                return found
            if self._recorded.choice != "auto":
                return found
            why = _strace_is_missing()
            if why:
                return with_note(found, f"strace, which would see it, cannot be used here: {why}")
            # The blind attempt has changed the directory.
            _write_tree(self._directory, tree)
            self._native = True
        return self._under_strace(run)

    def _in_python(
        self, tree: Tree, run: Callable[[], Outcome]
    ) -> tuple[Trace, Outcome] | BlindSpot:
        companions, _ = sqlite_companions()
        recorder = PythonRecorder(
            self._directory,
            base_tree=tree,
            ignore=shared_memory_in(self._directory),
            companions=companions,
        )
        try:
            with recorder:
                outcome = run()
        except BlindSpot as blind:
            return blind
        self._recorded.recoveries_seen_by = "python+sqlite" if companions else "python"
        if recorder.stored_unseen or is_unordered(recorder.trace):
            return _unordered_recovery()
        return recorder.trace, outcome

    def _under_strace(self, run: Callable[[], Outcome]) -> tuple[Trace, Outcome] | BlindSpot:
        from pytest_statepersist.recorders.strace import StraceRecorder

        recorder = StraceRecorder(self._directory)
        try:
            with recorder:
                outcome = run()
                trace = recorder.stop()
        except BlindSpot as blind:
            return blind
        except (RecorderUnavailable, TraceError) as error:
            return BlindSpot(f"strace could not record the recovery: {error}")
        if recorder.earlier is not None or is_unordered(trace):
            return _unordered_recovery()
        self._recorded.recoveries_seen_by = "strace"
        return trace, outcome


def _unordered_recovery() -> BlindSpot:
    return BlindSpot(
        "the recovery writes through a memory map, in an order or values that nobody saw, so "
        "crashes during it are not covered; recovery_crashes=0 leaves them out"
    )


def _write_tree(directory: Path, tree: Tree) -> None:
    """Make a directory hold a tree, whatever it holds now."""
    nothing = disk_of(Trace(tree), get_model("posix"))
    aside = tempfile.mkdtemp(prefix="statepersist-aside-", dir=directory.parent)
    try:
        base = CrashState(-1, frozenset(), points=((0, 0),))
        Materialiser(str(directory), aside, nothing.trace, present=False).show(nothing, base)
    finally:
        remove(aside)


def _strace_is_missing() -> str:
    from pytest_statepersist.recorders.strace import check_available

    try:
        check_available()
    except RecorderUnavailable as error:
        return str(error)
    return ""


def with_note(blind: BlindSpot, note: str) -> BlindSpot:
    """Add a note to a blind spot that is reported, or shown by Python, with its message."""
    blind.args = (f"{blind.args[0]}; {note}",)
    return blind


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
    return (SqliteRecorder,), ()


def shared_memory_in(directory: str | os.PathLike[str]) -> Callable[[str], bool]:
    """Return what says whether a relative path is the shared memory of SQLite: no state."""
    from pytest_statepersist.recorders.sqlite import SHARED_MEMORY, is_shared_memory

    def ignore(path: str) -> bool:
        return path.endswith(SHARED_MEMORY) and is_shared_memory(os.path.join(directory, path))

    return ignore


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
        return _under_strace(directory, workload, recorder)
    calls = uses_of(workload).calls
    if calls and recorder == "auto" and not _strace_is_missing():
        recorded = _under_strace(directory, workload, recorder)
        recorded.warnings = (f"recorded under strace: {_CALLS}", *recorded.warnings)
        return recorded
    try:
        recorded = _in_python(directory, workload, recorder)
    except BlindSpot as blind:
        if recorder != "auto":
            raise
        return _again_under_strace(directory, workload, setup, blind)
    if recorded.ran_programs and recorder == "auto" and not _strace_is_missing():
        unseen = BlindSpot(_PROGRAMS, recorder="strace")
        return _again_under_strace(directory, workload, setup, unseen)
    if calls:
        recorded.warnings = (*recorded.warnings, f"{_CALLS}, so {_WRONG}")
    return recorded


def _in_python(
    directory: Path, workload: Callable[[Path, Acknowledge], Any], choice: str
) -> Recorded:
    companions, warnings = sqlite_companions()
    recorder = PythonRecorder(directory, ignore=shared_memory_in(directory), companions=companions)
    before, children = set(threading.enumerate()), _children()
    waited = _waited_for()
    with recorder:
        _run(workload, directory, recorder.acknowledge)
    programs = _waited_for() != waited
    if programs:
        warnings = (*warnings, _MAY_BE_WRONG)
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    if left:
        warnings = (
            *warnings,
            f"the workload left threads running ({', '.join(left[:3])}); what they write from now "
            "on is not recorded, and would disturb the crash states",
        )
    running = sorted(_children() - children)
    if running:
        warnings = (
            *warnings,
            f"the workload left processes running ({', '.join(map(_name_of, running[:3]))}); what "
            "they write from now on is not recorded; wait for them in the workload, which is part "
            "of the save",
        )
    names = "python+sqlite" if companions else "python"
    warnings = (*warnings, *_copied_in(directory, recorder.outside))
    if recorder.unproved:
        warnings = (*warnings, f"completeness rests on the final tree only: {recorder.unproved}")
    values = _values(recorder.acknowledged, recorder.trace)
    return Recorded(
        recorder.trace,
        values,
        names,
        choice,
        warnings,
        outside=recorder.outside,
        ran_programs=programs,
        stored_unseen=recorder.stored_unseen,
    )


def _children() -> set[int]:
    """Return the processes that this one has started and that are there, as Linux lists them."""
    found: set[int] = set()
    for path in glob.glob("/proc/self/task/*/children"):
        with suppress(OSError):
            found.update(map(int, Path(path).read_text().split()))
    return found


def _name_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return str(process)


def _waited_for() -> tuple[int, int]:
    """Return what grows with each process that ends and is waited for: each one faults pages."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_minflt, used.ru_nvcsw


def _run(
    workload: Callable[[Path, Acknowledge], Any], directory: Path, acknowledge: Acknowledge
) -> None:
    try:
        call(workload, directory, acknowledge)
    except (KeyboardInterrupt, BlindSpot, UserError):
        raise
    except BaseException as error:
        if is_skip(error):
            raise
        advice = "For saves that fail, use the fault injector."
        if getattr(error, "errno", None) == errno.EXDEV:
            advice = f"{directory} is made by this tool; {_SAME_FILE_SYSTEM}."
        raise UserError(
            f"the workload raised {type(error).__name__}: {error}. Nothing was judged: it has to "
            f"succeed once without a crash. {advice}"
        ) from error


def _copied_in(directory: Path, outside: Iterable[str]) -> tuple[str, ...]:
    """Return a warning where files came and went on another file system than the directory's."""
    here = os.stat(directory).st_dev
    for path in sorted(outside):
        with suppress(OSError):
            if not os.path.lexists(path) and os.stat(os.path.dirname(path)).st_dev != here:
                return (
                    f"{path} was written on another file system than {directory}, and is gone: "
                    f"moving it in copies; {_SAME_FILE_SYSTEM}",
                )
    return ()


def _values(acknowledged: list[object], trace: Trace) -> tuple[tuple[int, Any], ...]:
    positions = [ack.position for ack in trace.acknowledgements]
    return tuple(zip(positions, acknowledged, strict=True))


def _again_under_strace(
    directory: Path,
    workload: Callable[[Path, Acknowledge], Any],
    setup: Callable[[Path], Any] | None,
    blind: BlindSpot,
) -> Recorded:
    missing = _strace_is_missing()
    if missing:
        note = f"strace, which would see it, cannot be used here: {missing}"
        raise with_note(blind, note) from None
    for name in os.listdir(directory):
        remove(f"{directory}/{name}")
    if setup is not None:
        call(setup, directory)
    try:
        recorded = _under_strace(directory, workload, "auto")
    except RecorderUnavailable as error:
        note = f"strace, which would see it, cannot be used here: {error}"
        raise with_note(blind, note) from error
    note = f"recorded again under strace, because of a blind spot: {blind}"
    recorded.warnings = (note, *recorded.warnings)
    return recorded


def _under_strace(
    directory: Path, workload: Callable[[Path, Acknowledge], Any], choice: str
) -> Recorded:
    recorder = _StraceWithLines(directory)
    recorder.start()
    try:
        _run(workload, directory, recorder.acknowledge)
    except BaseException:
        recorder.abandon()
        raise
    trace = recorder.stop()
    values = _values(recorder.acknowledged, trace)
    return Recorded(
        trace,
        values,
        recorder.names,
        choice,
        outside=recorder.outside,
        earlier=recorder.earlier,
    )


class _StraceWithLines:
    """The strace recorder with what it cannot see from outside: lines of Python, and values.

    The Python recorder runs beside it and is allowed to be blind: only its call sites are used.
    """

    def __init__(self, directory: Path) -> None:
        from pytest_statepersist.recorders.strace import StraceRecorder

        self.acknowledged: list[object] = []
        self.names = "strace"
        self.outside: frozenset[str] = frozenset()
        self._strace = StraceRecorder(directory)
        companions, _ = sqlite_companions()
        self._lender_names = "python+sqlite" if companions else "python"
        self._lender: PythonRecorder | None = PythonRecorder(
            directory, ignore=shared_memory_in(directory), companions=companions
        )

    def start(self) -> None:
        """Begin to record; raises `RecorderUnavailable` where strace cannot."""
        if self._lender is not None:
            self._lender.start()
        try:
            self._strace.start()
        except BaseException:
            self._end_lender()
            raise

    @property
    def earlier(self) -> Trace | None:
        """What `StraceRecorder.earlier` is."""
        return self._strace.earlier

    def stop(self) -> Trace:
        """Return what strace saw, with the lines that Python knows; raises `BlindSpot`."""
        try:
            trace = self._strace.stop()
        except BaseException:
            self._end_lender()
            raise
        lines = self._end_lender()
        if lines is None:
            return trace
        known = lend_sites(trace, lines)
        lent = sum(
            one is not other for one, other in zip(known.operations, trace.operations, strict=True)
        )
        if lent:
            self.names = (
                f"strace, with the lines of {lent} of {len(trace)} operations from "
                f"{self._lender_names}"
            )
        return known

    def abandon(self) -> None:
        """End without a trace, because the block raised."""
        with suppress(BlindSpot, TraceError):
            self._strace.stop()
        self._end_lender()

    def acknowledge(self, value: object = None) -> None:
        """Note a value that was acknowledged here."""
        self._strace.acknowledge(repr(value))
        self.acknowledged.append(value)

    def _end_lender(self) -> Trace | None:
        lender, self._lender = self._lender, None
        if lender is None:
            return None
        try:
            return lender.stop()
        except (BlindSpot, TraceError):
            return lender.builder.finish()
        finally:
            self.outside = lender.outside


class RecordingSession:
    """Records a block of the user's own test; the result is given to ``recording``."""

    def __init__(self, directory: Path, recording: Any, recorder: str) -> None:
        self._recording = recording
        self._choice = recorder
        self._warnings: tuple[str, ...] = ()
        self._recorder: PythonRecorder | _StraceWithLines
        if recorder == "strace":
            self._recorder = _StraceWithLines(directory)
            self._names = ""
        else:
            companions, self._warnings = sqlite_companions()
            self._recorder = PythonRecorder(
                directory, ignore=shared_memory_in(directory), companions=companions
            )
            self._names = "python+sqlite" if companions else "python"

    def __enter__(self) -> RecordingSession:
        self._waited = _waited_for()
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
                self._recorder.abandon()
            return
        trace = self._stop()
        names, earlier = self._names, None
        unseen: tuple[str, ...] = ()
        if isinstance(self._recorder, _StraceWithLines):
            names, earlier = self._recorder.names, self._recorder.earlier
        else:
            if _waited_for() != self._waited:
                self._warnings = (*self._warnings, _MAY_BE_WRONG)
            unseen = self._recorder.stored_unseen
        values = _values(self._recorder.acknowledged, trace)
        self._recording.recorded = Recorded(
            trace,
            values,
            names,
            self._choice,
            self._warnings,
            outside=self._recorder.outside,
            earlier=earlier,
            stored_unseen=unseen,
        )

    def _stop(self) -> Trace:
        try:
            return self._recorder.stop()
        except BlindSpot as blind:
            if self._choice == "auto":
                note = (
                    "a block cannot be run again by itself: give recorder='strace' to record(), or "
                    "explore(setup=…, workload=…, recover=…), which runs again under strace"
                )
                raise with_note(blind, note) from None
            raise
