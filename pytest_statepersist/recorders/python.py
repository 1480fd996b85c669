"""The Python recorder: what Python code does to a directory.

Belongs here: one recording from start to stop. It interposes on `io` and `os` for its time
(`streams`, `calls`, `maps`), lends its lock and its call sites to companions (SQLite), and gives
out a trace only if that is proved to be complete (`selfcheck`). Rules:

1. Whatever happens, every replacement is undone, and what comes late goes straight through.
2. There is one recording at a time in a process: what it replaces is global.
3. The child of a fork records nothing; what it does to the directory is a blind spot here.
"""

from __future__ import annotations

import _io
import builtins
import fcntl
import gc
import io
import mmap
import os
import posix
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol

from pytest_statepersist.core.operations import Trace
from pytest_statepersist.core.tree import Directory, Tree
from pytest_statepersist.errors import BlindSpot, UserError
from pytest_statepersist.recorders import real, selfcheck, streams
from pytest_statepersist.recorders.builder import Clock, TraceBuilder
from pytest_statepersist.recorders.calls import Calls
from pytest_statepersist.recorders.interpose import Interposition, Table
from pytest_statepersist.recorders.maps import Mappings, make_mmap
from pytest_statepersist.recorders.notify import Notifications
from pytest_statepersist.recorders.rawfile import compare_position
from pytest_statepersist.recorders.scan import Keep, Scan, scan, survey
from pytest_statepersist.recorders.session import Session, Slot
from pytest_statepersist.recorders.undoing import surely

__all__ = ["Companion", "PythonRecorder", "interposition"]


class Companion(Protocol):
    """Another recorder that feeds the same builder, such as the one for SQLite."""

    def start(self) -> None:
        """Begin to record; called after the Python recorder began."""

    def stop(self) -> None:
        """Stop recording, whatever happened."""


_SYNCS = frozenset({"fsync", "fdatasync", "sync", "fcntl"})
_slot = Slot()
_mappings: list[Mappings] = []
_starting = threading.Lock()
_fileio = streams.make_fileio(_slot)


def _forget_in_child() -> None:
    if _slot.session is not None:
        _slot.session.turn.end()
        _slot.session = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def _make_fcntl() -> Any:
    duplicate = {getattr(fcntl, name, None) for name in ("F_DUPFD", "F_DUPFD_CLOEXEC")}
    full_sync = {getattr(fcntl, name, 0) for name in ("F_FULLFSYNC", "F_BARRIERFSYNC")} - {0}

    def call(fd: Any, cmd: int, arg: Any = 0, /) -> Any:
        session = _slot.session
        if session is None or cmd not in duplicate | full_sync:
            return real.fcntl(fd, cmd, arg)
        descriptor = fd if isinstance(fd, int) else fd.fileno()
        with session.lock:
            found = session.description(descriptor)
            if cmd in duplicate:
                copy = real.fcntl(fd, cmd, arg)
                session.duplicated(descriptor, copy)
                return copy
            failed = True
            try:
                result = real.fcntl(fd, cmd, arg)
                failed = False
                return result
            finally:
                if found is not None:
                    session.builder.fsync(found.inode, session.moment(), failed=failed)

    return call


def _table() -> Table:
    calls = Calls(_slot)
    table: dict[tuple[Any, str], Callable[[Any], Any]] = {}
    for name in Calls.names():
        for module in (os, posix):
            table[module, name] = _always(getattr(calls, name))
    opening = _always(streams.make_open(_slot))
    for module in (builtins, io, _io):
        table[module, "open"] = opening
    for module in (io, _io):
        table[module, "FileIO"] = _always(_fileio)
    table[mmap, "mmap"] = _always(make_mmap(_slot, lambda: _mappings[-1]))
    table[fcntl, "fcntl"] = _always(_make_fcntl())
    return table


def _always(replacement: Any) -> Callable[[Any], Any]:
    """Return a factory for a replacement that finds the real function by itself."""
    return lambda original: replacement


_interposition: list[Interposition] = []


def interposition() -> Interposition:
    """Return the one interposition of all Python recordings; it has the lowest layer.

    Who records often installs it once around all of it: then a recording need not search the
    process for names that were bound before.
    """
    if not _interposition:
        _interposition.append(Interposition(_table(), layer=0, rebind=True))
    return _interposition[0]


class PythonRecorder:
    """Records what Python code does to a directory, from `start` to `stop` or as a block.

    ``base_tree`` is the directory's tree where the caller knows it; otherwise it is read, and
    files above 1 MiB are copied aside. ``ignore`` gets relative paths and says what is no state.
    ``companions`` make further recorders from the builder and what gives moments.
    Raises `UserError` where another recording is running.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        base_tree: Tree | None = None,
        ignore: Callable[[str], bool] | None = None,
        companions: Sequence[Callable[[TraceBuilder, Clock], Companion]] = (),
    ) -> None:
        self.directory = os.path.realpath(os.fspath(directory))
        self.unproved: str | None = None
        """After `stop`: why the kernel's notifications could not prove completeness, if so."""
        self.acknowledged: list[object] = []
        """The values given to `acknowledge`, in order."""
        self.outside: frozenset[str] = frozenset()
        """After `stop`: files outside the directory, not empty, that were written or removed."""
        self._base_tree = base_tree
        self._ignore = ignore
        self._make_companions = companions
        self._companions: list[Companion] = []
        self._session: Session | None = None
        self._base: Scan | None = None
        self._trace: Trace | None = None
        self._subclasses: streams.Patched = []
        self._mapped: Mappings | None = None
        self._holds = False

    @property
    def trace(self) -> Trace:
        """The trace of the finished recording; raises `UserError` before that."""
        if self._trace is None:
            raise UserError(
                f"the recording of {self.directory} has no trace: it is not finished, or failed"
            )
        return self._trace

    @property
    def stored_unseen(self) -> tuple[str, ...]:
        """Paths of mapped files in which stores were found by looking, not seen one by one."""
        if self._mapped is None or self._session is None:
            return ()
        return tuple(sorted(self.builder[number].path for number in self._mapped.found))

    @property
    def builder(self) -> TraceBuilder:
        """What is recorded so far; raises `UserError` before `start`."""
        if self._session is None:
            raise UserError(f"the recording of {self.directory} was not started")
        return self._session.builder

    def start(self) -> None:
        """Read the base and begin to record."""
        with _starting:
            self._refuse_nesting()
            self._base = self._look()
            builder = TraceBuilder(
                self.directory, self._base.tree, identities=self._base.identities
            )
            for number, seen in self._base.seen.items():
                builder[number].changed = seen.ctime
            notifications = Notifications()
            session = Session(self.directory, builder, notifications)
            self._session = session
            try:
                for number, node in self._base.tree.nodes.items():
                    if isinstance(node, Directory):
                        session.watch(number, f"{self.directory}/{builder[number].path}")
                interposition().install()
                self._holds = True
                self._mapped = Mappings(session)
                _mappings.append(self._mapped)
                _slot.session = session
                streams.patch_subclasses(_slot, _fileio, self._subclasses)
                self._find_open_files(session)
                for make in self._make_companions:
                    companion = make(builder, session)
                    companion.start()
                    self._companions.append(companion)
            except BaseException:
                self._leave()
                raise

    def stop(self) -> Trace:
        """Stop recording and return the trace.

        Raises `BlindSpot` where something happened to the directory that was not recorded.
        """
        session, base = self._session, self._base
        if session is None or base is None or _slot.session is not session:
            raise UserError(f"the recording of {self.directory} is not running")
        try:
            # Calls of other threads wait for the lock until the directory has been compared.
            with session.lock:
                _mappings[-1].sample()
                for fd, found in list(session.files.items()):
                    compare_position(session, fd, found)
                for companion in self._companions:
                    companion.stop()
                self._companions.clear()
                trace = session.builder.finish()
                self.outside = session.outside_files()
                session.drain()
                self._unreached(session.notifications)
                self.unproved = selfcheck.verify(
                    session.builder, trace, base, session.notifications, ignore=self._ignore
                )
                self._trace = trace
                session.turn.end()
                _slot.session = None
        finally:
            self._leave()
        return trace

    def acknowledge(self, value: object = None) -> None:
        """Say that the subject reported "saved" here; ``value`` is what it saved."""
        with self.builder.lock:
            self.acknowledged.append(value)
            self.builder.acknowledge(repr(value))

    def __enter__(self) -> PythonRecorder:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.stop()
        else:
            self._leave()

    def _refuse_nesting(self) -> None:
        running = _slot.session
        if running is None:
            return
        where = "this directory" if running.directory == self.directory else "another directory"
        raise UserError(
            f"{self.directory} cannot be recorded while the recording of {where} "
            f"({running.directory}) runs: one process has one recording at a time; end that one "
            "first, or record a directory above both"
        )

    def _look(self) -> Scan:
        if not os.path.isdir(self.directory):
            raise UserError(
                f"{self.directory} is not a directory: make it before the recording starts"
            )
        if self._base_tree is not None:
            return survey(self.directory, self._base_tree)
        return scan(self.directory, keep=Keep(self.directory), ignore=self._ignore)

    def _find_open_files(self, session: Session) -> None:
        """Find descriptors and file objects that were open on watched files before."""
        found = False
        for fd in _open_descriptors():
            found = session.description(fd) is not None or found
        if found:
            for raw in list(streams.living(gc.get_objects())):
                if not raw.closed and raw.writable():
                    description = session.files.get(raw.fileno())
                    if description is not None:
                        streams.attach(_slot, session, raw, raw.fileno(), description)

    def _unreached(self, notifications: Notifications) -> None:
        """Doubt the recording if something out of reach could have done what leaves no mark.

        Whatever changes the directory unseen is found by what it leaves. A sync leaves nothing.
        """
        for each in interposition().unreached:
            visible = not each.hidden and notifications.unproved is not None
            if each.names & _SYNCS or visible:
                names = ", ".join(sorted(each.names))
                self.builder.doubt(
                    BlindSpot(
                        f"{names} was bound before the recording by a holder that cannot be "
                        f"rewritten: {each.holder}; call it through its module, or record with "
                        "strace",
                        culprit=each.holder,
                        recorder="strace",
                    )
                )

    def _leave(self) -> None:
        """Undo everything; whatever fails on the way, the rest is undone as well."""
        session = self._session
        if session is None or session.notifications.closed:
            return
        session.turn.end()
        _slot.session = None
        surely(
            *(companion.stop for companion in self._companions),
            self._companions.clear,
            lambda: streams.restore_subclasses(self._subclasses),
            lambda: self._let_go(session),
            session.notifications.close,
        )

    def _let_go(self, session: Session) -> None:
        _mappings[:] = [each for each in _mappings if each is not self._mapped]
        for ref in session.attached.values():
            raw = ref()
            if raw is not None:
                streams.detach(raw)
        if self._holds:
            self._holds = False
            interposition().uninstall()


def _open_descriptors() -> list[int]:
    for directory in ("/proc/self/fd", "/dev/fd"):
        try:
            with real.scandir(directory) as entries:
                return [int(entry.name) for entry in entries]
        except OSError:
            continue
    return []
