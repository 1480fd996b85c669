"""Checks by errors of the operating system: each call of a change fails once, in turn.

Belongs here: running a change with one fault, and judging what is left by a fresh opener. Only
calls that Python code or SQLite makes in this process on the store's directory are reached; where
there is none, the test is not covered.
"""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pytest_statepersist.adapter import OpenStore
from pytest_statepersist.conformance.base import Change, Content, Shadow, not_covered
from pytest_statepersist.conformance.crashes import CrashChecks
from pytest_statepersist.conformance.gates import gates
from pytest_statepersist.errors import BlindSpot, UserError
from pytest_statepersist.fault_injector import FaultInjector
from pytest_statepersist.faults.calls import SHORT, FaultSite, Operation
from pytest_statepersist.faults.gate import gated
from pytest_statepersist.faults.inject import Counting, Fault, Injection

__all__ = ["FaultChecks"]


class FaultChecks(CrashChecks):
    """What an error of the disk leaves."""

    def before_fault(self) -> Content:
        """Return what a store holds before a change that meets a fault."""
        return {"key": self.value(1), "kept": self.value(5)}

    def check_faults(self, code: int, change: Change) -> None:
        """Fail where a change that met an error was acknowledged and is not there, or did harm."""
        name = errno.errorcode[code]
        for site, told, found, after in self._each(name, change):
            before = self.before_fault()
            allowed = (before, after) if told else (after,)
            assert found in allowed, (
                f"{name} in {site.function}({site.path}): the call "
                f"{'raised' if told else 'returned as if all were well'}, and the store holds "
                f"{found!r} where {' or '.join(map(repr, allowed))} is right"
            )

    def check_failed_syncs(self, change: Change) -> None:
        """Fail where a failed sync is not told, and what was acknowledged can be lost by it."""
        if not self.adapter.has("durable"):
            not_covered(f"{self.adapter.name} does not declare durable")
        untold = [
            site
            for site, told, _, _ in self._each(
                "EIO", change, lambda site: site.operation is Operation.FSYNC
            )
            if not told
        ]
        if untold:
            self._harmless(untold, change)

    def _harmless(self, untold: list[FaultSite], change: Change) -> None:
        """Fail where a sync that failed and was not told was needed: a power loss decides that."""
        before = self.before_fault()
        shadow = Shadow(before)
        change(shadow)
        known = {**before, **shadow.values}

        def workload(directory: Path) -> None:
            with self.opened(directory) as store:
                change(store)

        try:
            report = FaultInjector(
                errors=("EIO",), operations=("fsync",), persistent=False, recovery=False
            ).sweep(
                setup=lambda directory: self.fill(before, directory),
                workload=workload,
                recover=lambda directory: self.content(directory, known),
                before=before,
                after=shadow.values,
            )
        except BlindSpot as error:
            not_covered(f"the recorder has a blind spot: {error}")
        paths = ", ".join(sorted({repr(site.path) for site in untold}))
        assert not report.findings, (
            f"fsync of {paths} failed, and the call returned as if it had not:\n{report}"
        )

    def check_short_writes(self) -> None:
        """Fail where the rest of a short write is lost."""
        for site, told, found, after in self._each(
            SHORT, lambda store: store.save("key", self._big)
        ):
            allowed = (self.before_fault(), after) if told else (after,)
            assert found in allowed, f"a short write to {site.path!r} was taken for the whole"

    def check_retry(self, code: int, change: Change) -> None:
        """Fail where the same opener cannot do again what failed."""

        def again(store: OpenStore) -> None:
            change(store)

        for site, told, found, after in self._each(errno.errorcode[code], change, retry=again):
            assert not told or found == after, (
                f"after {errno.errorcode[code]} in {site.function}({site.path}) the change was "
                f"made again, and the store holds {found!r}"
            )

    def check_retry_is_durable(self, change: Change) -> None:
        """Fail where a change made again after a failed sync is acknowledged and can be lost."""
        before = self.before_fault()
        shadow = Shadow(before)
        change(shadow)
        after = shadow.values
        syncs = [
            site
            for site, told, _, _ in self._each(
                "EIO", change, lambda site: site.operation is Operation.FSYNC
            )
            if told
        ]
        open_question = "no sync failed in a way that was told"
        judged = 0
        for site in syncs:

            def workload(directory: Path, site: FaultSite = site) -> None:
                with self.opened(directory) as store:
                    with _failing(directory, site, "EIO"), suppress(Exception):
                        change(store)
                    change(store)

            try:
                with gates():
                    report = self.explore(
                        setup=lambda directory: self.fill(before, directory),
                        workload=workload,
                        recover=lambda directory: self.content(directory, {**before, **after}),
                        before=before,
                        after=after,
                    )
            except UserError as error:  # told again: nothing was acknowledged
                open_question = str(error)
                continue
            judged += 1
            assert all(verdict.durable is not False for verdict in report.verdicts), (
                f"fsync of {site.path!r} failed, the change was made again, and it was not "
                f"durable:\n{report}"
            )
        if not judged:
            not_covered(open_question)

    def check_faults_at_opening(self, code: int) -> None:
        """Fail where an error while opening costs a value."""
        with gates():
            self._at_opening(errno.errorcode[code], self.before_fault())

    def _at_opening(self, name: str, before: Content) -> None:
        def open_and_close(directory: Path) -> None:
            with self.opened(directory):
                pass

        sites = self._sites(lambda d: self.fill(before, d), open_and_close, name, lambda s: True)
        for number, site in enumerate(sites):
            directory = self.place(f"opening-{number}")
            self.fill(before, directory)
            with _failing(directory, site, name):
                try:
                    open_and_close(directory)
                except Exception:
                    pass
            try:
                found = self.content(directory, before)
            except Exception:
                gc.collect()  # what failed half way may hold its lock until it is collected
                found = self.content(directory, before)
            assert found == before, (
                f"{name} in {site.function}({site.path}) while opening cost a value"
            )

    @property
    def _big(self) -> dict[str, Any]:
        return {"text": self.noise(5000)}

    def _each(
        self,
        name: str,
        change: Change,
        wanted: Callable[[FaultSite], bool] = lambda site: True,
        retry: Change | None = None,
    ) -> list[tuple[FaultSite, bool, Content, Content]]:
        """Return (call, whether the change raised, what is there then, what would be right)."""
        # Installing costs more than a whole save: once for all runs.
        with gates():
            return list(self._runs(name, change, wanted, retry))

    def _runs(
        self,
        name: str,
        change: Change,
        wanted: Callable[[FaultSite], bool],
        retry: Change | None,
    ) -> Iterator[tuple[FaultSite, bool, Content, Content]]:
        before = self.before_fault()
        shadow = Shadow(before)
        change(shadow)
        after = shadow.values

        def prepare(directory: Path) -> OpenStore:
            self.fill(before, directory)
            return OpenStore(self.adapter, self.adapter.open(directory))

        with _keeping() as opened:
            sites = self._sites(
                lambda directory: opened.append(prepare(directory)),
                lambda directory: change(opened[-1]),
                name,
                wanted,
            )
        for number, site in enumerate(sites):
            directory = self.place(f"fault-{number}")
            store = prepare(directory)
            told = False
            with _failing(directory, site, name) as injection:
                try:
                    change(store)
                except Exception:
                    told = True
            if not injection.hits:
                store.close()
                continue
            try:
                if told and retry is not None:
                    try:
                        retry(store)
                    except Exception as error:
                        raise AssertionError(
                            f"after {name} in {site.function}({site.path}) the opener could not "
                            f"make the change again: {error!r}"
                        ) from error
            finally:
                _close_quietly(store)
            yield site, told, self.content(directory, {**before, **after}), after

    def _sites(
        self,
        prepare: Callable[[Path], object],
        run: Callable[[Path], object],
        name: str,
        wanted: Callable[[FaultSite], bool],
    ) -> list[FaultSite]:
        directory = self.place("counting")
        prepare(directory)
        counting = Counting()
        with gated(directory, counting):
            run(directory)
        sites = [
            site
            for site in counting.sites
            if site.operation.changes and name in site.errors and wanted(site)
        ]
        if not sites:
            not_covered("neither Python code nor SQLite made a call that could fail like this")
        return sites


@contextmanager
def _failing(directory: Path, site: FaultSite, name: str) -> Iterator[Injection]:
    injection = Injection(Fault(site.index, name))
    with gated(directory, injection):
        yield injection


@contextmanager
def _keeping() -> Iterator[list[OpenStore]]:
    stores: list[OpenStore] = []
    try:
        yield stores
    finally:
        for store in stores:
            store.close()


def _close_quietly(store: OpenStore) -> None:
    try:
        store.close()
    except Exception:
        pass  # it was told that something is wrong; what counts is what a fresh opener finds
