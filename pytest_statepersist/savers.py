"""A saver under the scheduler: where it waits for its turn, and whether it moves.

Belongs here: running a saver in a thread or in a process of its own, stopping it before each call
on the directory, and seeing from outside what it does. Who comes next is decided elsewhere. Rules:

1. A thread that a saver starts belongs to that saver, and so on: its calls are the saver's. One of
   them at a time waits for a turn or makes a call; only a call for a lock lets the others go on.
2. A call that no saver's thread makes goes through unscheduled, and is told: it is not covered.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pytest_statepersist.explorer.fresh import fork
from pytest_statepersist.explorer.runner import call
from pytest_statepersist.faults.calls import Call, Operation
from pytest_statepersist.faults.installing import installed
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.interpose import Interposition

__all__ = ["ProcessTask", "Task", "ThreadTask", "Turns", "interposed", "outlived"]

_HEADER = struct.Struct("<cI")
_SETTLED = 4
"""So many looks at a sleeping saver, a millisecond apart and nothing moved: it waits for a lock."""
_OWN_SETTLED = 50
"""So many looks at its first thread, while others of its threads still move."""
_GRACE = 0.1
"""Seconds after which a saver counts as waiting where the system does not show what it does."""
_BUSY = 500_000_000
"""Nanoseconds of processor time after which one counts as waiting that makes no call."""
_NAP = 0.001
"""Seconds that a thread sleeps at most which a saver has started."""


class _Aborted(BaseException):
    """Raised in a saver whose order is given up."""


class _Station(threading.local):
    task: Task | None = None
    """Whose thread this is; in a process of its own every thread is that saver's."""


_station = _Station()


class Turns:
    """The gate's handler: a saver's call waits for its turn; ``unscheduled`` tells of the others.

    While it ``listens``, a call counts as unscheduled that no saver makes; that of the thread which
    made this object never does.
    """

    def __init__(self) -> None:
        self.listens = False
        self.unscheduled: dict[str, None] = {}
        self._scheduler = threading.get_ident()

    def __call__(self, call: Call, run: Callable[[], Any]) -> Any:
        """Wait for the turn and make the call."""
        task = _station.task
        if call.operation in (Operation.CLOSE, Operation.STAT):
            return run()  # what was seen is old by the next call, before which others may come
        what = f"{call.operation.value} {call.path}".strip()
        if task is None or task.over:
            if self.listens and threading.get_ident() != self._scheduler:
                self.unscheduled[_STRANGER if task is None else _LATE] = None
            return run()
        with task.turn:
            task.wait(b"r" if what in task.failed else b"p", what)
            if call.operation is not Operation.LOCK:
                return _made(task, what, run)
        return _made(task, what, run)


_STRANGER = "calls of a thread that no saver had started: they came when they came"
_LATE = "calls of a thread that went on after its saver had returned: they came when they came"


def outlived(tasks: Iterable[Task]) -> tuple[str, ...]:
    """Return what is not covered where a thread went on after its saver had returned."""
    return (_LATE,) if any(task.outlived for task in tasks) else ()



def _made(task: Task, what: str, run: Callable[[], Any]) -> Any:
    try:
        result = run()
    except OSError:
        task.failed.add(what)
        raise
    task.failed.discard(what)
    return result


def _sleep(original: Any) -> Any:
    def sleep(seconds: float) -> None:
        task = _station.task
        if task is None or task.over:
            original(seconds)
        elif task.is_own_thread():
            with task.turn:
                task.wait(b"s", "sleep")
        else:  # it must not keep the turn from the saver's other threads
            original(min(seconds, _NAP))

    return sleep


def _start(original: Any) -> Any:
    """Let a thread belong to the saver that starts it."""

    def start(self: threading.Thread) -> None:
        task = _station.task
        if task is not None:
            run = self.run

            def adopted() -> None:
                del self.run
                with task.adopted(), suppress(_Aborted):
                    run()

            task.begins()
            self.run = adopted  # type: ignore[method-assign]
        original(self)

    return start


_sleeping = Interposition({(time, "sleep"): _sleep}, layer=3, rebind=True)
_starting = Interposition({(threading.Thread, "start"): _start}, layer=3)


@contextmanager
def interposed() -> Iterator[None]:
    """Put the replacements in place that `interleave` needs; around many calls they cost once."""
    with installed(), _sleeping, _starting:
        yield


class Task:
    """A saver that runs elsewhere: where it waits, and whether it moves."""

    def __init__(self) -> None:
        self._arrive, self._tell = os.pipe()
        self._turn, self._give = os.pipe()
        self.at: str | None = None
        self.asleep = False
        self.ended = False
        self.stuck = False
        self.busy = False
        self.error = ""
        self.over = False
        """In the saver: whether it has returned, or its order was given up."""
        self.turn = threading.RLock()
        """In the saver: held by the one of its threads that waits for a turn or makes a call."""
        self.starting = 0
        """In the saver: threads that were started and have not yet begun."""
        self.outlived = False
        """Whether a thread that it had started went on after it had returned."""
        self.others: set[int] = set()
        """In the saver: the threads that it has started and that run."""
        self._lock = threading.Lock()
        self.failed: set[str] = set()
        """In the saver: calls that failed when they were made last."""

    def wait(self, kind: bytes, what: str) -> None:
        """In the saver: say where it is, and wait for the turn."""
        text = what.encode()
        real.write(self._tell, _HEADER.pack(kind, len(text)) + text)
        if real.read(self._turn, 1) != b"g":
            raise _Aborted

    def finish(self, error: BaseException | None) -> None:
        """In the saver: say how it ended."""
        text = f"{type(error).__name__}: {error}".encode() if error is not None else b""
        kind = b"l" if self.starting or self.others else b"e"
        real.write(self._tell, _HEADER.pack(kind, len(text)) + text)

    def go(self) -> None:
        """Give the turn."""
        self.at = None
        os.write(self._give, b"g")

    def settle(self) -> None:
        """Wait until the saver has arrived somewhere, ended, or waits for something else."""
        if self.at is not None or self.ended:
            return
        still, last, begun, worked = 0, None, time.monotonic(), self.worked()
        own_still, own_last = 0, None
        while True:
            ready, _, _ = select.select([self._arrive], [], [], 0.001)
            if ready:
                self._hear()
                return
            moved = self.motion()
            if moved is None:
                self.stuck = time.monotonic() - begun > _GRACE
            else:
                still = still + 1 if moved == last and moved[0] == "S" else 0
                self.stuck = still >= _SETTLED
            last = moved
            # A thread beside it may never rest (a heartbeat): what counts is that it waits itself.
            own = _seen(self.places()[0]) if self.places() else None
            rests = own is not None and own[0] == "S" and own == own_last
            own_still, own_last = own_still + 1 if rests else 0, own
            self.stuck |= own_still >= _OWN_SETTLED and not self.starting
            # Once known to be in a loop it is given only a moment to have found what it looks for.
            self.busy |= self.worked() - worked > _BUSY
            self.stuck |= self.busy
            if self.stuck:
                return

    def _hear(self) -> None:
        self.stuck = self.busy = False
        kind, length = _HEADER.unpack(_exactly(self._arrive, _HEADER.size))
        text = _exactly(self._arrive, length).decode(errors="replace")
        if kind in (b"e", b"l"):
            self.ended, self.error, self.outlived = True, text, kind == b"l"
        else:
            self.at, self.asleep = text, kind in (b"s", b"r")

    def motion(self) -> tuple[str, ...] | None:
        """Return what changes as long as the saver runs, ``None`` where nothing shows it."""
        seen = [each for each in map(_seen, self.places()) if each is not None]
        if not seen:
            return None
        rests = not self.starting and all(state == "S" for state, *_ in seen)
        return ("S" if rests else "R", *(part for each in seen for part in each))

    def worked(self) -> int:
        """Return the nanoseconds of processor time that the saver has had, 0 where none shows."""
        total = 0
        for place in self.places():
            with (
                suppress(OSError, IndexError),
                real.open(f"{place}/schedstat", encoding="ascii") as file,
            ):
                total += int(file.read().split()[0])
        return total

    def places(self) -> list[str]:
        """Return where the system shows what the saver's threads do."""
        raise NotImplementedError

    def is_own_thread(self) -> bool:
        """In the saver: say whether it runs in the thread that it was given."""
        return True

    def begins(self) -> None:
        """In the saver: note a thread that is about to begin."""
        with self._lock:
            self.starting += 1

    @contextmanager
    def adopted(self) -> Iterator[None]:
        """In a thread that the saver has started: belong to it, and be seen."""
        _station.task, number = self, threading.get_native_id()
        with self._lock:
            self.others.add(number)
            self.starting -= 1
        try:
            yield
        finally:
            with self._lock:
                self.others.discard(number)
            _station.task = None

    def close(self) -> None:
        """End the saver as far as that is possible."""
        for end in (self._arrive, self._tell, self._turn, self._give):
            os.close(end)


def _exactly(fd: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = os.read(fd, length - len(data))
        if not part:
            raise EOFError("a saver's process ended without a word")
        data += part
    return data


def _seen(path: str) -> tuple[str, ...] | None:
    """Return state and context switches of a thread: a thread at rest makes none."""
    try:
        with real.open(f"{path}/status", encoding="ascii", errors="replace") as status:
            lines = status.read().splitlines()
    except OSError:
        return None
    state = next(line.split()[1] for line in lines if line.startswith("State:"))
    return (state, *(line for line in lines if "ctxt_switches" in line))


class ThreadTask(Task):
    """A saver in a thread of this process."""

    def __init__(self, saver: Callable[[Path], Any], directory: Path) -> None:
        super().__init__()
        self._thread = threading.Thread(target=self._run, args=(saver, directory), daemon=True)
        self._thread.start()

    def _run(self, saver: Callable[[Path], Any], directory: Path) -> None:
        _station.task = self
        error: BaseException | None = None
        try:
            self.wait(b"p", "start")
            call(saver, directory)
        except _Aborted:
            return
        except BaseException as raised:
            error = raised
        finally:
            self.over = True
            _station.task = None
        with suppress(OSError):
            self.finish(error)

    def places(self) -> list[str]:
        """Return where the system shows its threads."""
        with self._lock:
            threads = [self._thread.native_id, *self.others]
        return [f"/proc/self/task/{each}" for each in threads]

    def is_own_thread(self) -> bool:
        """Say whether it runs in its own thread, not in one that it has started."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """End the thread where it waits for a turn."""
        if not self.ended and self.at is not None:
            os.write(self._give, b"x")
        self.over = True
        self._thread.join(0.2)
        if not self._thread.is_alive() and not self.others:
            super().close()  # else the pipes stay open for the thread that cannot be ended


class ProcessTask(Task):
    """A saver in a process of its own."""

    def __init__(self, saver: Callable[[Path], Any], directory: Path) -> None:
        super().__init__()
        self._pid = fork()
        if self._pid == 0:
            try:
                os.setpgid(0, 0)
                self._run(saver, directory)
            finally:
                os._exit(0)

    def _run(self, saver: Callable[[Path], Any], directory: Path) -> None:
        _Station.task = _station.task = self
        self._own = threading.get_ident()
        error: BaseException | None = None
        try:
            self.wait(b"p", "start")
            call(saver, directory)
        except BaseException as raised:
            error = raised
        self.over = True
        self.finish(error)

    def places(self) -> list[str]:
        """Return where the system shows its threads."""
        tasks = f"/proc/{self._pid}/task"
        with suppress(OSError):
            return [f"{tasks}/{each}" for each in sorted(os.listdir(tasks), key=int)]
        return []

    def is_own_thread(self) -> bool:
        """Say whether it runs in its first thread."""
        return threading.get_ident() == self._own

    def close(self) -> None:
        """Kill the process and all that it has started."""
        for kill, target in ((os.killpg, self._pid), (os.kill, self._pid)):
            with suppress(ProcessLookupError, PermissionError):
                kill(target, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        super().close()
