"""Checks with several openers: interleaved at chosen calls, in threads, in processes.

Belongs here: schedules. An intruder comes at one chosen call of a change: a thread with an opener
of its own, a thread that shares the opener, or another process. Where it has to wait for a lock it
is given a moment, and finishes afterwards. Threads and processes that run freely come after that:
what they meet is real, but whether they meet it is luck, and only a store in C rests on that alone.
"""

from __future__ import annotations

import multiprocessing
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_statepersist.adapter import OpenStore
from pytest_statepersist.conformance.base import BaseBench, Change, Content, Shadow, not_covered
from pytest_statepersist.conformance.gates import gates
from pytest_statepersist.faults.calls import Call
from pytest_statepersist.faults.gate import gated
from pytest_statepersist.faults.inject import Counting

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkContext, ForkProcess
    from multiprocessing.synchronize import Barrier

__all__ = ["OpenerChecks"]

_POINTS = 8
_PATIENCE_S = 0.05
_LIMIT_S = 20.0


class OpenerChecks(BaseBench):
    """What several openers do to each other."""

    def check_interleaved(self, change: Change) -> None:
        """Let another opener read and write at up to eight calls or so of a change."""
        with gates():
            self._interleave(change, _Opener)

    def _interleave(self, change: Change, kind: type[_Intruder]) -> None:
        before: Content = {"key": self.value(1)}
        shadow = Shadow(before)
        change(shadow)
        counting = Counting()
        self.fill(before, directory := self.place("counting"))
        with self.opened(directory) as store, gated(directory, counting):
            change(store)
        points = [site.index for site in counting.sites if site.operation.changes]
        if not points and not kind.runs_freely:
            not_covered("neither Python code nor SQLite made a call to come in at")
        for number, point in enumerate(points[:: max(1, len(points) // _POINTS)]):
            self.fill(before, directory := self.place(f"interleaved-{number}"))
            intruder = kind(self, directory, point)
            with self.opened(directory) as store:
                intruder.shared = store
                with gated(directory, intruder):
                    change(store)
                if intruder.shares:
                    intruder.finish()
            intruder.finish()
            where = f"{intruder.what} that came at call {point}"
            assert intruder.error is None, f"{where} met {intruder.error}"
            if intruder.seen is not None:
                intruder.seen.pop("intruder", None)
                assert intruder.seen in (before, shadow.values), f"{where} saw {intruder.seen!r}"
            expected = dict(shadow.values)
            if intruder.saved:
                expected["intruder"] = self.value(9)
            found = self.content(directory, {**expected, "intruder": {}})
            assert found == expected, f"after {where} the store holds {found!r}"

    def check_threads(self) -> None:
        """Save from four threads through one opener; one that refuses them all is not covered.

        Before, another thread saves through the same opener at up to eight calls or so of a save,
        where Python code or SQLite makes one.
        """
        with gates():
            self._interleave(lambda store: store.save("key", self.value(2)), _Sharer)
        errors: list[BaseException] = []
        refusals: list[BaseException] = []
        saved: Content = {}
        with self.opened() as store:

            def run(name: str) -> None:
                try:
                    _save_five(self, store, name, saved)
                except self.adapter.refusal as error:
                    refusals.append(error)
                except Exception as error:
                    errors.append(error)

            threads = [threading.Thread(target=run, args=(f"t{n}",)) for n in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(_LIMIT_S)
        if len(refusals) < len(threads):
            errors += refusals  # a store that serves some threads has to serve them all
        assert not errors, f"a thread met {errors[0]!r}"
        assert refusals or len(saved) == 20, f"after {_LIMIT_S:.0f} s {len(saved)} of 20 saves"
        named: Content = {f"t{n}-{m}": {} for n in range(4) for m in range(5)}
        assert self.content(known=named) == saved
        if not saved:
            not_covered(f"{self.adapter.name} refuses other threads: {refusals[0]!r}")

    def check_processes(self) -> None:
        """Save from three processes into one directory.

        Before, another process saves at up to eight calls or so of a save, where Python code or
        SQLite makes one.
        """
        if "fork" not in multiprocessing.get_all_start_methods():
            not_covered("processes that share the adapter need fork()")
        with gates():
            self._interleave(lambda store: store.save("key", self.value(2)), _OtherProcess)
        directory = self.place()
        together = _fork().Barrier(3)
        workers = [_forked(_save_in_process, self, directory, f"p{n}", together) for n in range(3)]
        for worker in workers:
            worker.join(_LIMIT_S)
        codes = [worker.exitcode for worker in workers]
        for worker in workers:
            if worker.exitcode is None:
                worker.kill()
                worker.join()
            worker.close()
        assert codes == [0, 0, 0], f"the processes ended with {codes}"
        expected = {f"p{n}-{m}": self.value(m) for n in range(3) for m in range(5)}
        assert self.content(known=expected) == expected


class _Intruder:
    """Counts the calls of the thread that made it, and comes in at one of them.

    `seen` is what it read before it saved, None where it did not read; `error` is told as text.
    One that `shares` has the opener of the change; one that `runs_freely` is also let go later.
    """

    what = "an opener"
    shares = False
    runs_freely = False

    def __init__(self, bench: BaseBench, directory: Path, point: int) -> None:
        self.bench, self.directory, self.point = bench, directory, point
        self.count = 0
        self.owner = threading.get_ident()
        self.shared: OpenStore | None = None
        self.seen: dict[str, Any] | None = None
        self.saved = False
        self.error: str | None = None

    def __call__(self, call: Call, run: Callable[[], Any]) -> Any:
        if threading.get_ident() == self.owner:
            index, self.count = self.count, self.count + 1
            if index == self.point:
                self.come()
        return run()

    def come(self) -> None:
        """Come in, and stay for a moment."""
        raise NotImplementedError

    def finish(self) -> None:
        """Wait until it is through, where it came at all."""
        raise NotImplementedError


class _Opener(_Intruder):
    """A thread with an opener of its own."""

    def __init__(self, bench: BaseBench, directory: Path, point: int) -> None:
        super().__init__(bench, directory, point)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def come(self) -> None:
        self.thread.start()
        self.thread.join(_PATIENCE_S)

    def finish(self) -> None:
        if self.thread.ident is not None:
            self.thread.join(_LIMIT_S)

    def _run(self) -> None:
        try:
            self.act()
        except self.bench.adapter.busy:
            pass  # being told to come again is a fair answer
        except Exception as error:
            self.error = repr(error)

    def act(self) -> None:
        with self.bench.opened(self.directory) as store:
            self.seen = self.bench.read(store, {"key": {}, "more": {}})
            store.save("intruder", self.bench.value(9))
            self.saved = True


class _Sharer(_Opener):
    """A thread that saves through the opener of the change; it may be refused."""

    what = "a thread"
    shares = True
    runs_freely = True

    def act(self) -> None:
        assert self.shared is not None
        try:
            self.shared.save("intruder", self.bench.value(9))
            self.saved = True
        except self.bench.adapter.refusal:
            pass  # whether all of them are refused is another question


class _OtherProcess(_Intruder):
    """A process that was forked before the change, so that it inherits no lock of it."""

    what = "a process"
    runs_freely = True

    def __init__(self, bench: BaseBench, directory: Path, point: int) -> None:
        super().__init__(bench, directory, point)
        self.ours, theirs = _fork().Pipe()
        with theirs:
            self.process = _forked(_come_when_told, bench, directory, theirs, self.ours)

    def come(self) -> None:
        self.ours.send(True)
        self.ours.poll(_PATIENCE_S)

    def finish(self) -> None:
        if self.count > self.point:
            try:
                answered = self.ours.poll(_LIMIT_S)
                self.saved, self.error = self.ours.recv() if answered else (False, "no end of it")
            except EOFError:
                self.error = "its end, and told nothing"
        self.ours.close()  # one that was never called ends by that
        self.process.join(_PATIENCE_S)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.process.close()


def _come_when_told(bench: BaseBench, directory: Path, line: Connection, other: Connection) -> None:
    other.close()
    try:
        line.recv()
    except EOFError:
        return
    saved, error = False, None
    try:
        with bench.opened(directory) as store:
            store.save("intruder", bench.value(9))
            saved = True
    except bench.adapter.busy:
        pass
    except Exception as met:
        error = repr(met)
    line.send((saved, error))


def _fork() -> ForkContext:
    return multiprocessing.get_context("fork")


def _forked(target: Callable[..., None], *args: Any) -> ForkProcess:
    process = _fork().Process(target=target, args=args)
    with warnings.catch_warnings():  # of forking beside threads, which do nothing here
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    return process


def _save_five(bench: BaseBench, store: OpenStore, name: str, saved: Content) -> None:
    for number in range(5):
        for attempt in range(200):
            try:
                store.save(f"{name}-{number}", bench.value(number))
                saved[f"{name}-{number}"] = bench.value(number)
                break
            except bench.adapter.busy:
                if attempt == 199:
                    raise


def _save_in_process(bench: BaseBench, directory: Path, name: str, together: Barrier) -> None:
    together.wait(_LIMIT_S)
    with bench.opened(directory) as store:
        _save_five(bench, store, name, {})
