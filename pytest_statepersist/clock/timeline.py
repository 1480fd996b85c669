"""The one line of virtual time, and the threads and callbacks that wait on it.

Belongs here: moving time, waking in order, and knowing who waits. Rules:

1. One thread *drives*: when it waits, time moves to the next deadline instead of passing. Every
   other thread that waits is asleep until time has been moved past its deadline.
2. Time never moves while a thread known to the clock is still running: it first comes to wait or
   ends. A thread that makes no progress for ``settle_s`` real seconds is blocked on something that
   the clock cannot see (a bare lock, real input or output); time goes on without it, and
   `waiting()` shows it so. At which moment it goes on is then up to the machine, not to us.
3. A deadlock is claimed only when nobody can go on, and the message lists who waits for what.

Real time is used for rule 2 only, through functions that were bound before any patch.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from pytest_statepersist.errors import ClockClosed, ClockDeadlock, UserError

__all__ = ["ClockClosed", "ClockDeadlock", "Outcome", "Timeline", "Wait", "Waiting"]

_real_wait = threading.Condition.wait
_real_join = threading.Thread.join
_real_monotonic = time.monotonic
_new_lock = threading.Lock
_POLL_S = 0.002
_RELEASE_POLL_S = 0.25
_PATIENCE_NS = 400 * 86_400 * 1_000_000_000
_PATIENCE_STEPS = 1_000_000


CLOSED = (
    "the clock was closed, so this sleep would never end; stop the thread before its clock goes "
    "away (set its stop event and join it)"
)


class Outcome(Enum):
    """Why a wait ended."""

    TIME = "its time came"
    READY = "what it waited for happened"
    RELEASED = "the patch that made it virtual was taken away"


@dataclass(frozen=True, slots=True)
class Waiting:
    """One thread that waits: its name, for what, and the monotonic second at which it wakes.

    ``until`` is ``None`` for a wait without a limit, and for a thread blocked elsewhere.
    """

    thread: str
    what: str
    until: float | None


class Wait:
    """What one thread waits for; this one waits for nothing but time."""

    what = "a sleep"
    grace_s = 0.0
    """Real seconds to listen for the outside world before time is moved instead."""

    def __init__(self) -> None:
        self._gate = _new_lock()
        self._gate.acquire()
        self.released = False

    def ready(self) -> bool:
        """Say whether what is waited for has happened, whatever the time."""
        return False

    def outside(self) -> bool:
        """Say whether something outside this process could still end the wait."""
        return False

    def block(self) -> None:
        """Wait in real time until `wake` or `release` is called or the wait is ready."""
        self._gate.acquire()

    def wake(self) -> bool:
        """End the wait because its time came; False where it was ready before."""
        self._gate.release()
        return True

    def release(self) -> None:
        """End the virtual wait without an outcome."""
        self.released = True
        self._gate.release()

    def linger(self, seconds: float) -> bool:
        """Wait really, at most so long, and say whether the wait is ready."""
        end = _real_monotonic() + seconds
        while not self.ready():
            if _real_monotonic() >= end:
                return False
            self._gate.acquire(timeout=_POLL_S)
        return True


class NotifiedWait(Wait):
    """A wait for a `threading.Condition`, whose own waiter lock is the gate."""

    what = "a condition"

    def ready(self) -> bool:
        """Say whether somebody notified the condition."""
        return not self._gate.locked()

    @property
    def gate(self) -> threading.Lock:
        """The lock that `Condition.notify` releases."""
        return self._gate

    def block(self) -> None:
        """Wait for the notification; looks up now and then whether the patch is gone."""
        while not self._gate.acquire(timeout=_RELEASE_POLL_S):
            if self.released:
                return
        # The gate is open: a notification (or the time) came first, so this wait has its outcome.
        self.released = False

    def wake(self) -> bool:
        """Time out, unless the notification came first."""
        try:
            self._gate.release()
        except RuntimeError:
            return False
        return True

    def release(self) -> None:
        """Mark only: releasing the gate would look like a notification."""
        self.released = True

    def linger(self, seconds: float) -> bool:
        """Wait really for the notification, at most so long."""
        if not self._gate.acquire(timeout=max(0.0, seconds)):
            return False
        self._gate.release()
        return True


class EndWait(Wait):
    """A wait for the end of a thread."""

    def __init__(self, thread: threading.Thread) -> None:
        super().__init__()
        self._thread = thread
        self._woken = False
        self.what = f"the end of thread {thread.name!r}"

    def ready(self) -> bool:
        """Say whether the thread has ended."""
        return not self._thread.is_alive()

    def block(self) -> None:
        """Wait until the thread ends or time is up."""
        while not self._woken and not self.released and self._thread.is_alive():
            _real_join(self._thread, _POLL_S)

    def wake(self) -> bool:
        """Give up waiting, unless the thread has ended."""
        self._woken = True
        return self._thread.is_alive()

    def release(self) -> None:
        """Leave the virtual wait."""
        self.released = True

    def linger(self, seconds: float) -> bool:
        """Wait really for the end of the thread, at most so long."""
        _real_join(self._thread, max(0.0, seconds))
        return self.ready()


@dataclass(slots=True, eq=False)
class Entry:
    """Something on the timeline: a callback, or the wait of one thread.

    ``due`` gives the true nanosecond, ``None`` for never; it is a function because the clock
    that set it may come to run faster or slower afterwards.
    """

    due: Callable[[], int | None]
    rank: tuple[int, int]
    run: Callable[[], None] | None = None
    wait: Wait | None = None
    member: _Member | None = None
    owner: object = None
    shown: float | None = None
    outcome: Outcome | None = None


@dataclass(slots=True, eq=False)
class _Member:
    """A thread that the clock waits for before it moves time."""

    thread: threading.Thread
    number: int
    entry: Entry | None = None
    queued: bool = False
    ended: bool = False
    elsewhere: bool = False
    seen_at: tuple[int, int] = (0, 0)
    still_since: float = field(default_factory=_real_monotonic)

    def running(self) -> bool:
        if self.ended or self.elsewhere or self.queued or not self.thread.is_alive():
            return False
        entry = self.entry
        # A wait that is already ready belongs to a thread that is about to run.
        return entry is None or (entry.wait is not None and entry.wait.ready())


class Timeline:
    """Virtual time, shared by a clock and its peers; ``settle_s`` is explained in rule 2."""

    def __init__(self, *, settle_s: float = 2.0) -> None:
        self.settle_s = settle_s
        self._true = 0
        self._changed = threading.Condition(threading.RLock())
        self._moving = threading.RLock()
        self._entries: list[Entry] = []
        self._members: dict[int, _Member] = {}
        self._numbers = 0
        self._driver = threading.current_thread()
        self._closed = False
        self.before_move: list[Callable[[], None]] = []
        self.after_move: list[Callable[[], None]] = []

    @property
    def true(self) -> int:
        """Nanoseconds of virtual time that have passed."""
        return self._true

    # --- who takes part ---------------------------------------------------------------------

    def drive(self) -> None:
        """Make the calling thread the one whose waiting moves time."""
        with self._changed:
            self._driver = threading.current_thread()
            self._members.pop(id(self._driver), None)

    def driving(self) -> bool:
        """Say whether the calling thread drives; a dead driver is replaced by the caller."""
        if not self._driver.is_alive():
            self.drive()
        return threading.current_thread() is self._driver

    def adopt(self, thread: threading.Thread) -> None:
        """Make time wait for a thread from now on, started or about to be."""
        with self._changed:
            if thread is not self._driver and id(thread) not in self._members:
                for key, member in list(self._members.items()):
                    if type(member) is _Member and not member.thread.is_alive():
                        del self._members[key]
                self._numbers += 1
                self._members[id(thread)] = _Member(thread, self._numbers)

    def start(self, thread: threading.Thread, really: Callable[[], None]) -> None:
        """Start a thread as a member, so that its end is seen at once."""
        run = thread.run

        def run_and_tell() -> None:
            try:
                run()
            except ClockClosed:
                # The thread slept on a clock that is gone: this is its end, not an accident.
                pass
            finally:
                del thread.run  # only the instance's shadow of the method
                self._ended(thread)

        thread.run = run_and_tell  # type: ignore[method-assign]
        self._adopt_unstarted(thread)
        try:
            really()
        except BaseException:
            self._ended(thread)
            raise

    def _adopt_unstarted(self, thread: threading.Thread) -> None:
        with self._changed:
            self._numbers += 1
            # Not yet alive is not ended: until `run` is over, time waits for this thread.
            self._members[id(thread)] = _Starting(thread, self._numbers)

    def _ended(self, thread: threading.Thread) -> None:
        with self._changed:
            member = self._members.pop(id(thread), None)
            if member is not None:
                member.ended = True
            self._changed.notify_all()

    def waiting(self) -> tuple[Waiting, ...]:
        """Return the threads that wait, in the order in which the clock met them."""
        with self._changed:
            members = sorted(self._members.values(), key=lambda member: member.number)
            rows = []
            for member in members:
                if member.entry is not None and member.entry.wait is not None:
                    what, until = member.entry.wait.what, member.entry.shown
                elif member.elsewhere and member.thread.is_alive():
                    what, until = "something that the clock cannot see", None
                else:
                    continue
                rows.append(Waiting(member.thread.name, what, until))
            return tuple(rows)

    # --- waiting ----------------------------------------------------------------------------

    def call(self, due: Callable[[], int | None], run: Callable[[], None]) -> Entry:
        """Have ``run`` called by whoever moves time past ``due``."""
        with self._changed:
            self._numbers += 1
            entry = Entry(due, (0, self._numbers), run=run)
            self._entries.append(entry)
            return entry

    def forget(self, entry: Entry) -> None:
        """Take an entry off the timeline; one that is not there is no error."""
        with self._changed:
            if entry in self._entries:
                self._entries.remove(entry)

    def wait(
        self,
        wait: Wait,
        due: Callable[[], int | None],
        *,
        owner: object = None,
        shown: float | None = None,
    ) -> Outcome:
        """Wait in virtual time, and say what ended it.

        Raises `ClockDeadlock` in the driver, and `ClockClosed` in other threads.
        """
        if self.driving() or self._moves():
            return self._drive(wait, due)
        thread = threading.current_thread()
        self.adopt(thread)
        with self._changed:
            self._refuse_closed()
            member = self._members[id(thread)]
            entry = Entry(due, (1, member.number), None, wait, member, owner, shown)
            member.entry, member.elsewhere = entry, False
            self._entries.append(entry)
            self._changed.notify_all()
        try:
            wait.block()
        finally:
            with self._changed:
                if entry in self._entries:
                    self._entries.remove(entry)
                member.entry, member.still_since = None, _real_monotonic()
        if wait.released:
            return Outcome.RELEASED
        return entry.outcome or Outcome.READY

    def release(self, owner: object) -> None:
        """End every virtual wait that ``owner`` made; their threads go on in real time."""
        with self._changed:
            for entry in [e for e in self._entries if e.wait is not None and e.owner is owner]:
                self._entries.remove(entry)
                if entry.wait is not None:
                    entry.wait.release()

    def close(self) -> None:
        """Drop all callbacks, and raise `ClockClosed` in every thread that sleeps on the clock."""
        with self._changed:
            self._closed = True
            entries, self._entries = self._entries, []
            for entry in entries:
                if entry.wait is not None:
                    entry.wait.release()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ClockClosed(CLOSED)

    # --- moving time ------------------------------------------------------------------------

    def move_by(self, ns: int) -> None:
        """Move time by nanoseconds from where it stands when it is this thread's turn."""
        self._move(lambda: self._true + ns)

    def move_to(self, target: int) -> None:
        """Move time to a true nanosecond, stopping at every deadline on the way."""
        self._move(lambda: target)

    def _move(self, where: Callable[[], int]) -> None:
        with self._mover():
            self._refuse_closed()
            target = where()  # another thread may have moved time while this one waited
            while self._step(target):
                pass
            self._set(target)
            # What became due by the last movement (a frozen hand, a deadline of now) runs too.
            while self._step(self._true):
                pass

    def run_until(self, wait: Wait, limit: Callable[[], int | None]) -> bool:
        """Move time from deadline to deadline until the wait is ready; False at the limit."""
        return self._drive(wait, limit) is Outcome.READY

    def settle(self, until: Callable[[], bool] = lambda: False) -> None:
        """Wait in real time until no member runs, or until the given condition holds."""
        me = threading.current_thread()
        begun = _real_monotonic()
        with self._changed:
            while not until():
                running = [m for m in self._members.values() if m.thread is not me and m.running()]
                if not running:
                    return
                frames = sys._current_frames()
                now = _real_monotonic()
                for member in running:
                    frame = frames.get(member.thread.ident or 0)
                    seen_at = (id(frame), frame.f_lasti) if frame is not None else (0, 0)
                    if seen_at != member.seen_at or member.still_since < begun:
                        member.seen_at, member.still_since = seen_at, now
                    # A thread that spins on the clock moves for ever: it gets ten times as long.
                    still, long = now - member.still_since, now - begun
                    member.elsewhere = still > self.settle_s or long > 10 * self.settle_s
                del frames
                _real_wait(self._changed, _POLL_S)

    def _drive(self, wait: Wait, due: Callable[[], int | None]) -> Outcome:
        """Wait as the driver: every deadline up to ``due`` is run, then time stands at ``due``."""
        begun, steps = self._true, 0
        while True:
            with self._mover():
                while True:
                    self._refuse_closed()
                    self.settle(wait.ready)
                    if wait.ready() or (wait.grace_s and wait.linger(wait.grace_s)):
                        return Outcome.READY
                    mine = due()
                    if mine is None:
                        steps += 1
                        self._lose_patience(wait, begun, steps)
                    if self._step(mine):
                        continue
                    if mine is not None:
                        self._set(mine)
                        return Outcome.TIME if wait.wake() else Outcome.READY
                    break
            # Nothing has a deadline. The lock is free here: another thread may move time itself.
            # A thread that the clock does not know gets real time to end the wait.
            if wait.linger(self.settle_s if self._strangers() or self._queued() else 0.0):
                return Outcome.READY
            # A thread that has done all it does may still be on its way out: real time ends that.
            if self._stuck() and wait.linger(self.settle_s):
                return Outcome.READY
            if self._stuck() and not wait.outside():
                raise ClockDeadlock(self._explain(wait))

    def _lose_patience(self, wait: Wait, begun: int, steps: int) -> None:
        """Refuse to wait for ever while a periodic timer keeps time moving."""
        if self._true - begun > _PATIENCE_NS or steps > _PATIENCE_STEPS:
            days = (self._true - begun) / 86_400e9
            raise ClockDeadlock(
                f"{days:.1f} days of virtual time and {steps} timers have passed, and what the "
                f"driver waits for did not happen.\n{self._explain(wait)}"
            )

    def _strangers(self) -> list[str]:
        with self._changed:
            known = {member.thread for member in self._members.values()} | {self._driver}
        return sorted(thread.name for thread in threading.enumerate() if thread not in known)

    def _queued(self) -> bool:
        return any(member.queued for member in list(self._members.values()))

    def _stuck(self) -> bool:
        with self._changed:
            if any(entry.due() is not None for entry in self._entries):
                return False
            alive = [member for member in self._members.values() if member.thread.is_alive()]
            busy = [m for m in alive if m.running() or m.elsewhere or m.queued]
            return not busy

    def _step(self, limit: int | None) -> bool:
        """Run the earliest entry that is due up to ``limit``; False where there is none."""
        self.settle()
        with self._changed:
            best: tuple[int, tuple[int, int], Entry] | None = None
            for entry in self._entries:
                due = entry.due()
                if due is None or (limit is not None and due > limit):
                    continue
                if best is None or (due, entry.rank) < best[:2]:
                    best = (due, entry.rank, entry)
            if best is None:
                return False
            due, _, entry = best
            self._entries.remove(entry)
        self._set(due)
        if entry.run is not None:
            entry.run()
        elif entry.wait is not None and entry.member is not None:
            with self._changed:
                # Time waits for the thread from here on, before it has even woken up.
                entry.member.entry, entry.member.still_since = None, _real_monotonic()
                entry.outcome = Outcome.TIME if entry.wait.wake() else Outcome.READY
        return True

    def _set(self, true: int) -> None:
        if true <= self._true:
            return
        for tell in tuple(self.before_move):
            tell()
        self._true = true
        for tell in tuple(self.after_move):
            tell()

    def _moves(self) -> bool:
        member = self._members.get(id(threading.current_thread()))
        return member is not None and member.queued

    @contextmanager
    def _mover(self) -> Iterator[None]:
        """Let one thread at a time move time; a member that queues for it counts as waiting."""
        member = self._members.get(id(threading.current_thread()))
        nested = member is not None and member.queued
        if member is not None:
            with self._changed:
                member.queued = True
                self._changed.notify_all()
        try:
            with self._moving:
                yield
        finally:
            if member is not None and not nested:
                member.queued = False

    def _explain(self, wait: Wait) -> str:
        lines = [
            "every thread waits for something that no passing of time brings about:",
            f"  {self._driver.name!r} (drives the clock) waits for {wait.what}",
        ]
        lines += [f"  {row.thread!r} waits for {row.what}" for row in self.waiting()]
        strangers = self._strangers()
        if strangers:
            lines.append(
                f"Threads that the clock does not know: {', '.join(strangers)}. If one of them "
                "ends the wait, call clock.adopt(thread) so that time waits for it."
            )
        lines.append(
            "Usual causes: a lost notify, two threads that wait for each other, a stop event "
            "that nobody sets, or frozen monotonic time."
        )
        return "\n".join(lines)


class _Starting(_Member):
    """A member whose end is told by its own `run`, so that not yet alive counts as running."""

    __slots__ = ()

    def running(self) -> bool:
        if self.ended or self.elsewhere or self.queued:
            return False
        entry = self.entry
        return entry is None or (entry.wait is not None and entry.wait.ready())


def check_thread(thread: object) -> threading.Thread:
    """Return the thread; raises `UserError` for anything else."""
    if not isinstance(thread, threading.Thread):
        raise UserError(f"expected a threading.Thread, not {type(thread).__name__}")
    return thread
