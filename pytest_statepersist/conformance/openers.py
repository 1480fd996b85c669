"""Checks with several openers: interleaved at chosen calls, in threads, in processes.

Belongs here: schedules. An intruder comes at one chosen call of a change, in a thread of its own
and with an opener of its own; where it has to wait for a lock it is given a moment, and finishes
afterwards.
"""

from __future__ import annotations

import multiprocessing
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_statepersist.adapter import OpenStore
from pytest_statepersist.conformance.base import BaseBench, Change, Content, Shadow, not_covered
from pytest_statepersist.conformance.gates import gates
from pytest_statepersist.faults.calls import Call
from pytest_statepersist.faults.gate import gated
from pytest_statepersist.faults.inject import Counting

__all__ = ["OpenerChecks"]

_POINTS = 8
_PATIENCE_S = 0.05
_LIMIT_S = 20.0


class OpenerChecks(BaseBench):
    """What several openers do to each other."""

    def check_interleaved(self, change: Change) -> None:
        """Let another opener read and write at up to eight calls or so of a change."""
        with gates():
            self._interleave(change, {"key": self.value(1)})

    def _interleave(self, change: Change, before: Content) -> None:
        shadow = Shadow(before)
        change(shadow)
        counting = Counting()
        self._run(self.place("counting"), before, change, counting)
        points = [site.index for site in counting.sites if site.operation.changes]
        if not points:
            not_covered("neither Python code nor SQLite made a call to come in at")
        for number, point in enumerate(points[:: max(1, len(points) // _POINTS)]):
            directory = self.place(f"interleaved-{number}")
            intruder = _Intruder(self, directory, point)
            self._run(directory, before, change, intruder)
            intruder.finish()
            where = f"an opener that came at call {point}"
            assert intruder.error is None, f"{where} met {intruder.error!r}"
            if intruder.seen is not None:
                intruder.seen.pop("intruder", None)
                assert intruder.seen in (before, shadow.values), f"{where} saw {intruder.seen!r}"
            expected = dict(shadow.values)
            if intruder.saved:
                expected["intruder"] = self.value(9)
            found = self.content(directory, {**expected, "intruder": {}})
            assert found == expected, f"after {where} the store holds {found!r}"

    def _run(self, directory: Path, before: Any, change: Change, handler: Any) -> None:
        self.fill(before, directory)
        with self.opened(directory) as store, gated(directory, handler):
            change(store)

    def check_threads(self) -> None:
        """Save from four threads through one opener; one that refuses them all is not covered."""
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
        """Save from three processes into one directory."""
        if "fork" not in multiprocessing.get_all_start_methods():
            not_covered("processes that share the adapter need fork()")
        context = multiprocessing.get_context("fork")
        directory = self.place()
        workers = [
            context.Process(target=_save_in_process, args=(self, directory, f"p{n}"))
            for n in range(3)
        ]
        with warnings.catch_warnings():  # of forking beside threads, which do nothing here
            warnings.simplefilter("ignore", DeprecationWarning)
            for worker in workers:
                worker.start()
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
    """Counts the calls of the thread that made it, and comes in at one of them."""

    def __init__(self, bench: BaseBench, directory: Path, point: int) -> None:
        self.bench, self.directory, self.point = bench, directory, point
        self.count = 0
        self.owner = threading.get_ident()
        self.seen: dict[str, Any] | None = None
        self.saved = False
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._come_in, daemon=True)

    def __call__(self, call: Call, run: Callable[[], Any]) -> Any:
        if threading.get_ident() == self.owner:
            index, self.count = self.count, self.count + 1
            if index == self.point:
                self.thread.start()
                self.thread.join(_PATIENCE_S)
        return run()

    def finish(self) -> None:
        if self.thread.ident is not None:
            self.thread.join(_LIMIT_S)

    def _come_in(self) -> None:
        try:
            with self.bench.opened(self.directory) as store:
                self.seen = self.bench.read(store, {"key": {}, "more": {}})
                store.save("intruder", self.bench.value(9))
                self.saved = True
        except self.bench.adapter.busy:
            pass  # being told to come again is a fair answer
        except Exception as error:
            self.error = error


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


def _save_in_process(bench: BaseBench, directory: Path, name: str) -> None:
    with bench.opened(directory) as store:
        _save_five(bench, store, name, {})
