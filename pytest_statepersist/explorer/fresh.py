"""Running a recovery in a process that nothing has touched before.

Belongs here: a server process that is set aside before the subject first runs, and forks a child
for each request. No cache, global or open file of the subject is inherited by them. Rules:

1. The server is forked at the start, when the callables are known, and knows nothing that was
   learned later; a request names no more than which callable to run.
2. A child that does not answer in time is killed; one that dies is an outcome, not an error.
3. Where the platform has no fork there is no fresh process, and the report says so.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pytest_statepersist.explorer.outcome import Ended, Outcome, Unpicklable, shorten
from pytest_statepersist.explorer.runner import Recovery, run_recovery

__all__ = ["FreshProcess", "fork"]

_HEADER = struct.Struct("<Q")


def fork() -> int:
    """Fork without the warning about other threads: the child only runs the subject and exits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


class FreshProcess:
    """A server that runs ``recover(directory)`` in a new child on each request."""

    def __init__(self, recover: Recovery, directory: object) -> None:
        self._recover = recover
        self._directory = directory
        self._lock = threading.Lock()
        self._pid: int | None = None
        self.available = hasattr(os, "fork")
        if self.available:
            self._start()

    def _start(self) -> None:
        ask_read, self._ask = os.pipe()
        self._answer, answer_write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = fork()
        if self._pid == 0:
            status = 1
            try:
                os.close(self._ask)
                os.close(self._answer)
                _become_server()
                self._serve(ask_read, answer_write)
                status = 0
            except BaseException:
                status = 1
            finally:
                os._exit(status)
        os.close(ask_read)
        os.close(answer_write)

    def _serve(self, ask: int, answer: int) -> None:
        while True:
            request = _read(ask, _HEADER.size)
            if len(request) < _HEADER.size:
                return
            limit = _HEADER.unpack(request)[0] / 1000
            _write(answer, self._in_child(limit, (ask, answer)))

    def _in_child(self, limit: float, close: tuple[int, int]) -> bytes:
        read, write = os.pipe()
        child = fork()
        if child == 0:
            try:
                os.setpgid(0, 0)
                os.close(read)
                for descriptor in close:
                    os.close(descriptor)
                outcome = run_recovery(self._recover, self._directory, limit or None)
                _write(write, _pack(outcome))
            finally:
                os._exit(0)
        os.close(write)
        try:
            data = _read_message(read, limit + 2 if limit else None)
        finally:
            os.close(read)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        if data is not None:
            return data
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
            text = f"killed by signal {os.WTERMSIG(status)}"
            return _pack(Outcome(Ended.DIED, text=text))
        if os.WIFEXITED(status):
            text = f"the process ended with status {os.WEXITSTATUS(status)} and no answer"
            return _pack(Outcome(Ended.DIED, text=text))
        return _pack(Outcome(Ended.HUNG, text=f"no answer within {limit:g} s"))

    def run(self, limit: float | None) -> Outcome:
        """Run the recovery on what the directory holds now; ``limit`` is in seconds."""
        with self._lock:
            os.write(self._ask, _HEADER.pack(int((limit or 0) * 1000)))
            header = _read(self._answer, _HEADER.size)
            if len(header) < _HEADER.size:
                return Outcome(Ended.DIED, text="the process set aside for fresh runs is gone")
            outcome: Outcome = pickle.loads(_read(self._answer, _HEADER.unpack(header)[0]))
            return outcome

    def close(self) -> None:
        """End the server; called twice it does nothing."""
        if self._pid:
            os.close(self._ask)
            os.close(self._answer)
            deadline = time.monotonic() + 2
            while True:
                done, _ = os.waitpid(self._pid, os.WNOHANG)
                if done:
                    break
                if time.monotonic() > deadline:
                    os.kill(self._pid, signal.SIGKILL)
                    os.waitpid(self._pid, 0)
                    break
                time.sleep(0.0005)
            self._pid = None


def _become_server() -> None:
    """Let go of the terminal, and of signals that belong to the parent.

    What was there before is never collected: to look at it would copy each page of it once more in
    each child.
    """
    gc.freeze()
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    if quiet > 2:
        os.close(quiet)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)


def _pack(outcome: Outcome) -> bytes:
    attempts: list[Callable[[], Outcome]] = [
        lambda: outcome,
        lambda: Outcome(
            outcome.ended, Unpicklable(shorten(outcome.value, 100_000)), None, outcome.text
        ),
    ]
    for attempt in attempts:
        try:
            data = pickle.dumps(attempt())
            pickle.loads(data)
        except Exception:
            continue
        return _HEADER.pack(len(data)) + data
    data = pickle.dumps(Outcome(outcome.ended, text=outcome.text))
    return _HEADER.pack(len(data)) + data


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _read(descriptor: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.read(descriptor, min(length, 1 << 20))
        if not part:
            break
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _read_message(descriptor: int, limit: float | None) -> bytes | None:
    """Return header and body of one message, ``None`` if it does not come in time or in whole."""
    deadline = None if limit is None else time.monotonic() + limit
    data = b""
    wanted = _HEADER.size
    while len(data) < wanted:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return None
        ready, _, _ = select.select([descriptor], [], [], left)
        if not ready:
            return None
        part = os.read(descriptor, 1 << 20)
        if not part:
            return None
        data += part
        if wanted == _HEADER.size and len(data) >= wanted:
            wanted += _HEADER.unpack(data[:wanted])[0]
    return data


def pickled(value: Any) -> bool:
    """Say whether a value survives the way between processes."""
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:
        return False
    return True
