"""A saver under the scheduler: where it waits for its turn, and whether it moves.

Belongs here: running a saver in a thread or in a process of its own, stopping it before each call
on the directory, and seeing from outside what it does. Who comes next is decided elsewhere. Rules:

1. A thread that a saver starts belongs to that saver, and so on: its calls are the saver's. One of
   them at a time waits for a turn or makes a call; only a call for a lock lets the others go on.
2. A call that no saver's thread makes goes through unscheduled, and is told: it is not covered.
3. One that sleeps and has changed nothing since it slept last looks for something: it sleeps until
   nobody else can make a call. Otherwise a call of another wakes it as well.
"""

from __future__ import annotations

import os
import platform
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
from pytest_statepersist.saver_time import Moments, Waiter, in_real_time, interposed_time, limited

__all__ = [
    "ProcessTask",
    "Task",
    "ThreadTask",
    "Turns",
    "hastened",
    "interposed",
    "sqlite_scheduled",
    "uncovered",
]

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
_NAPS = 8
"""So many of SQLite's sleeps in a row try the patience once: a minute is some 600 of them."""
_REAL_WAIT = 0.03
"""Seconds without a move after which a thread waits, and not for the interpreter's lock."""
_LIMITED_CALLS: dict[str, dict[int, tuple[str, int]]] = {
    "x86_64": {
        7: ("poll", 2), 23: ("select", 4), 35: ("nanosleep", 0), 128: ("rt_sigtimedwait", 2),
        202: ("futex", 3), 220: ("semtimedop", 3), 230: ("clock_nanosleep", 2),
        232: ("epoll_wait", 3), 270: ("pselect6", 4), 271: ("ppoll", 2), 281: ("epoll_pwait", 3),
    },
    "aarch64": {
        22: ("epoll_pwait", 3), 72: ("pselect6", 4), 73: ("ppoll", 2), 98: ("futex", 3),
        101: ("nanosleep", 0), 115: ("clock_nanosleep", 2), 137: ("rt_sigtimedwait", 2),
        192: ("semtimedop", 3),
    },
}  # fmt: skip
"""System calls by number that wait with a time limit, and which argument it is (unistd.h)."""


class _Aborted(BaseException):
    """Raised in a saver whose order is given up."""


class _Station(threading.local):
    alone: Waiter | None = None
    """The clock of a saver that runs in no order."""
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
                return _made(task, call, what, run)
        return _made(task, call, what, run)


_STRANGER = "calls of a thread that no saver had started: they came when they came"
_LATE = "calls of a thread that went on after its saver had returned: they came when they came"


def uncovered(tasks: Iterable[Task]) -> tuple[str, ...]:
    """Return what is not covered: a thread that outlived its saver, a wait in real time."""
    late = (_LATE,) if any(task.outlived for task in tasks) else ()
    names = sorted({task.real_wait for task in tasks if task.real_wait})
    return late + tuple(
        f"a wait with a time limit in real time, which no order decides about: {name}"
        for name in names
    )


def _made(task: Task, call: Call, what: str, run: Callable[[], Any]) -> Any:
    try:
        result = run()
    except OSError:
        task.failed.add(what)
        task.looks = True
        raise
    task.failed.discard(what)
    if call.operation.changes and (call.operation is not Operation.OPEN or call.writes):
        task.looks = False
    return result


def _sleep(original: Any) -> Any:
    def sleep(seconds: float) -> None:
        task = _station.task
        if task is None and _station.alone is not None and seconds >= 0 and not in_real_time(1):
            _station.alone.skip(seconds)
        elif task is None or task.over or seconds < 0 or in_real_time(1):
            original(seconds)
        elif task.is_own_thread():
            task.sleep(seconds, looks=task.looks)
        else:  # it must not keep the turn from the saver's other threads
            original(min(seconds, _NAP))

    return sleep


def _sleep_in_c(seconds: float, original: Callable[[], int]) -> int:
    """Sleep as SQLite does until it asks for a lock again; it counts how long it has slept."""
    task = _station.task
    if task is None or task.over:
        return original()
    task.naps += 1
    if task.naps % _NAPS and task.moments.patience(task.number) > 0:
        return int(seconds * 1_000_000)
    with suppress(BaseException):  # nothing passes through C code
        if task.is_own_thread():
            task.sleep(seconds, looks=True)
        else:
            limited(task.waiter, seconds, _slept)
    return int(seconds * 1_000_000)


def _slept(seconds: float) -> bool:
    _real_sleep(seconds)
    return False


def _waiter() -> Waiter | None:
    task = _station.task
    if task is None:
        return _station.alone
    return None if task.over else task.waiter


@contextmanager
def hastened() -> Iterator[None]:
    """Let all waits of this thread be over soon: nobody else is there to be waited for."""
    _station.alone = Waiter(Moments(), 0, alone=True)
    try:
        yield
    finally:
        _station.alone = None


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


_real_sleep = time.sleep
_sleeping = Interposition({(time, "sleep"): _sleep}, layer=3, rebind=True)
_starting = Interposition({(threading.Thread, "start"): _start}, layer=3)


@contextmanager
def interposed() -> Iterator[None]:
    """Put the replacements in place that `interleave` needs; around many calls they cost once."""
    with installed(), _sleeping, _starting, interposed_time(_waiter):
        yield


@contextmanager
def sqlite_scheduled() -> Iterator[None]:
    """Schedule SQLite's calls, and let it sleep by the savers' time."""
    from pytest_statepersist.faults.sqlite import sqlite_gate
    from pytest_statepersist.recorders.sqlite_library import library

    with sqlite_gate(), library().sleeping(_sleep_in_c):
        yield


class Task:
    """A saver that runs elsewhere: where it waits, and whether it moves."""

    def __init__(self, moments: Moments, number: int) -> None:
        self.moments, self.number = moments, number
        self.waiter = Waiter(moments, number)
        self._arrive, self._tell = os.pipe()
        self._turn, self._give = os.pipe()
        self.at: str | None = None
        self.last = ""
        """The call for which it was given the turn last."""
        self.asleep = False
        self.until: int | None = None
        """When it has slept long enough, ``None`` where it does not sleep."""
        self.deep = False
        """Whether it sleeps until nobody else can make a call."""
        self.waits: set[str] = set()
        """Before which calls it has slept, or waited with a time limit."""
        self.real_wait = ""
        """The system call with a time limit in which it has waited in real time, if any."""
        self._moved: tuple[tuple[str, ...] | None, float] = (None, 0.0)
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
        self.naps = 0
        """In the saver: how often SQLite has slept in it."""
        self.outlived = False
        """Whether a thread that it had started went on after it had returned."""
        self.others: set[int] = set()
        """In the saver: the threads that it has started and that run."""
        self._lock = threading.Lock()
        self.waiter.has_company = self.has_company
        self.failed: set[str] = set()
        """In the saver: calls that failed when they were made last."""
        self.looks = True
        """In the saver: whether it has changed nothing since it slept, or its last call failed."""

    def wait(self, kind: bytes, what: str) -> None:
        """In the saver: say where it is, and wait for the turn."""
        text = what.encode()
        real.write(self._tell, _HEADER.pack(kind, len(text)) + text)
        if real.read(self._turn, 1) != b"g":
            raise _Aborted

    def sleep(self, seconds: float, *, looks: bool) -> None:
        """In the saver: sleep by the order's time."""
        self.looks = True
        if self.waiter.is_over(seconds):
            return
        until = self.moments.now + int(seconds * 1e9)
        with self.turn:
            self.wait(b"d" if looks else b"s", str(until))

    def save(self, saver: Callable[[Path], Any], directory: Path) -> None:
        """In the saver: run it; one that returns False when its time was over has said so."""
        if call(saver, directory) is False and self.moments.gave_up(self.number):
            raise TimeoutError("the saver returned False")

    def finish(self, error: BaseException | None) -> None:
        """In the saver: say how it ended."""
        text = f"{type(error).__name__}: {error}".encode() if error is not None else b""
        kind = b"l" if self.starting or self.others else b"e"
        real.write(self._tell, _HEADER.pack(kind, len(text)) + text)

    def go(self) -> None:
        """Give the turn."""
        if self.until is None and not self.asleep:
            self.last = self.at or ""
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
            limit = bool(self.moments.deadline(self.number))  # it then looks at the time in between
            rests = own is not None and own[0] == "S" and (limit or own == own_last)
            own_still, own_last = own_still + 1 if rests else 0, own
            self.stuck |= own_still >= _OWN_SETTLED and not self.starting
            # Once known to be in a loop it is given only a moment to have found what it looks for.
            self.busy |= self.worked() - worked > _BUSY
            self.stuck |= self.busy
            self.stuck &= not self.moments.is_due(self.number)
            if self.stuck:
                self._look_at_its_wait(moved)
                return

    def _look_at_its_wait(self, motion: tuple[str, ...] | None) -> None:
        """Note a wait with a time limit: one that is seen, or one that passes in real time."""
        if self.moments.deadline(self.number):
            self.waits.add(self.last)
            return
        known, since = self._moved
        if motion != known or motion is None:
            self._moved = (motion, time.monotonic())
        elif time.monotonic() - since > _REAL_WAIT and not self.has_programs():
            self.real_wait = next(filter(None, map(_limited_call, self.places())), self.real_wait)

    def _hear(self) -> None:
        self.stuck = self.busy = False
        kind, length = _HEADER.unpack(_exactly(self._arrive, _HEADER.size))
        text = _exactly(self._arrive, length).decode(errors="replace")
        if kind in (b"e", b"l"):
            self.ended, self.error, self.outlived = True, text, kind == b"l"
        else:
            self.at, self.asleep = text, kind in (b"s", b"d", b"r")
            self.deep, self.until = kind == b"d", None
            if kind in (b"s", b"d"):
                self.at, self.until = "sleep", int(text)
                self.waits.add(self.last)

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

    def has_programs(self) -> bool:
        """Say whether a program that it has started still runs: what it does takes real time."""
        for place in self.places():
            with suppress(OSError), real.open(f"{place}/children", encoding="ascii") as file:
                if file.read().strip():
                    return True
        return False

    def is_own_thread(self) -> bool:
        """In the saver: say whether it runs in the thread that it was given."""
        return True

    def has_company(self) -> bool:
        """In the saver: say whether another thread runs that it has started."""
        with self._lock:
            return bool(self.starting or self.others - {threading.get_native_id()})

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


def _limited_call(path: str) -> str:
    """Return the name of a system call with a time limit that a thread is in, "" for any other."""
    try:
        with real.open(f"{path}/syscall", encoding="ascii", errors="replace") as file:
            number, *arguments = file.read().split()
    except (OSError, ValueError):
        return ""
    calls = _LIMITED_CALLS.get(platform.machine(), {})
    name, place = calls.get(int(number), ("", 0)) if number.isdigit() else ("", 0)
    if not name or place >= len(arguments):
        return ""
    limit = int(arguments[place], 16)
    forever = limit & 0xFFFFFFFF == 0xFFFFFFFF if "poll" in name and name != "ppoll" else not limit
    return "" if forever else name


class ThreadTask(Task):
    """A saver in a thread of this process."""

    def __init__(
        self, saver: Callable[[Path], Any], directory: Path, moments: Moments, number: int
    ) -> None:
        super().__init__(moments, number)
        self._thread = threading.Thread(target=self._run, args=(saver, directory), daemon=True)
        self._thread.start()

    def _run(self, saver: Callable[[Path], Any], directory: Path) -> None:
        _station.task = self
        error: BaseException | None = None
        try:
            self.wait(b"p", "start")
            self.save(saver, directory)
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

    def __init__(
        self, saver: Callable[[Path], Any], directory: Path, moments: Moments, number: int
    ) -> None:
        super().__init__(moments, number)
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
            self.save(saver, directory)
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
