"""Running a recovery once, in this process: with a time limit, and surviving what it does.

Belongs here: the call itself. Rules:

1. Nothing that a recovery raises leaves this module, apart from the user's own Ctrl-C.
2. A hang is ended by an exception raised in the recovery's thread: by a timer signal in the main
   thread, elsewhere by the interpreter. It is raised again until the recovery gives in. What came
   too late is a hang too where the recovery, or a destructor, has swallowed that exception.
3. `os._exit` in a recovery becomes an exception where `refuse_exit` is in its place.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Self

from pytest_statepersist.errors import UserError
from pytest_statepersist.explorer.outcome import Ended, Outcome

__all__ = ["InLoop", "Recovery", "call", "is_skip", "run_recovery", "time_limit"]

Recovery = Callable[[Any], Any]
_AGAIN = 0.2
# What is below the wrapper, which looks each handler up among the members of an enum.
_get_handler = getattr(signal.getsignal, "__wrapped__", signal.getsignal)
_set_handler = getattr(signal.signal, "__wrapped__", signal.signal)
_SKIPS = frozenset({"builtins.Skipped", "_pytest.outcomes.Skipped", "unittest.case.SkipTest"})
_NEVER_AWAITED = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict, set})


class TimeIsUp(BaseException):
    """Raised inside a recovery that exceeded its time limit; never leaves this module."""


class Exited(BaseException):
    """Raised in place of `os._exit`, which would end the test run."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class InLoop(UserError):
    """Something asynchronous was to be awaited in the thread of an event loop that runs."""


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the user and await what it returns if it is a coroutine."""
    result = function(*arguments)
    if result.__class__ in _NEVER_AWAITED:
        return result
    if inspect.isawaitable(result):
        if asyncio._get_running_loop() is not None:
            getattr(result, "close", lambda: None)()
            raise InLoop(
                "inside an event loop that runs, nothing asynchronous can be awaited here: make "
                "the test def, not async def; async functions that are given are awaited"
            )
        return asyncio.run(_wait(result))
    return result


def is_skip(error: BaseException) -> bool:
    """Whether somebody says by this exception that the test is to be skipped."""
    names = {f"{each.__module__}.{each.__qualname__}" for each in type(error).__mro__}
    return not names.isdisjoint(_SKIPS)


async def _wait(awaitable: Any) -> Any:
    return await awaitable


def run_recovery(
    recover: Recovery, directory: object, limit: float | None, *, brief: bool = False
) -> Outcome:
    """Run a recovery and say how it ended; ``limit`` is in seconds, ``None`` for none.

    With ``brief`` an exception keeps its words, and not the lines that it came from.
    """
    try:
        limited = time_limit(limit)
        with limited:
            value = call(recover, directory)
        if limited.over:
            raise TimeIsUp
        return Outcome.returned(value)
    except TimeIsUp:
        return Outcome(Ended.HUNG, text=f"no answer within {limit:g} s")
    except Exited as error:
        return Outcome(Ended.DIED, text=f"the recovery called os._exit({error.status})")
    except (KeyboardInterrupt, InLoop):
        raise
    except BaseException as error:
        if limited.over:
            return Outcome(Ended.HUNG, text=f"no answer within {limit:g} s")
        return Outcome.raised(error, brief=brief)


def time_limit(seconds: float | None) -> Limit:
    """Raise `TimeIsUp` in this thread once the block has run for that many seconds."""
    if seconds is None:
        return _Unlimited()
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        return _BySignal(seconds)
    return _ByThread(seconds)


class Limit(AbstractContextManager["Limit"]):
    """A block with a limit of time; ``over`` is whether it took longer."""

    over: bool = False


class _Unlimited(Limit):
    def __exit__(self, *_: object) -> None:
        return None


_innermost: list[Limit] = []
"""The limits by signal that are in force in the main thread."""


def _expire(*_: object) -> None:
    if _innermost:
        _innermost[-1].over = True
    raise TimeIsUp


class _BySignal(Limit):
    """A limit by a timer signal; a class, because it is entered for every crash state."""

    __slots__ = ("_before", "_previous", "_seconds", "over")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.over = False

    def __enter__(self) -> Self:
        self._previous: Any = _get_handler(signal.SIGALRM)
        if self._previous is not _expire:
            _set_handler(signal.SIGALRM, _expire)
        _innermost.append(self)
        self._before = signal.setitimer(signal.ITIMER_REAL, self._seconds, _AGAIN)
        return self

    def __exit__(self, *_: object) -> None:
        # A signal may still arrive between the block and here; it must not escape.
        while True:
            try:
                signal.setitimer(signal.ITIMER_REAL, *self._before)
                if self._previous is not _expire:
                    _set_handler(signal.SIGALRM, self._previous)
                if _innermost and _innermost[-1] is self:
                    _innermost.pop()
                break
            except TimeIsUp:
                continue


class _ByThread(Limit):
    """A limit by another thread, for threads that get no signals."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ident = threading.get_ident()
        self._done = threading.Event()
        self._watcher = threading.Thread(
            target=self._watch, name="statepersist-time-limit", daemon=True
        )

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        if self._done.wait(self._seconds):
            return
        while not self._done.is_set():
            self.over = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._ident), ctypes.py_object(TimeIsUp)
            )
            self._done.wait(_AGAIN)


def refuse_exit(original: Callable[[int], Any], pid: int, status: int) -> None:
    """Do what `os._exit` does in a recovery: raise in the process ``pid``, exit in its children."""
    if os.getpid() != pid:
        original(status)
    raise Exited(status)
