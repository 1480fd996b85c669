"""The hub: record a workload, explore what a crash may leave, say what breaks.

Belongs here: `CrashSimulator` and the way from arguments to a `Report`. Recorders see, `core` says
what is legal, the explorer runs, diagnosis explains; this module only leads from one to the next.
Patches, processes and scratch directories are undone on every way out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_statepersist.arguments import (
    acknowledged_by,
    as_it_is_now,
    check_callables,
    refuse_links_back,
    user_call,
    watched_directory,
    with_acknowledge,
)
from pytest_statepersist.callables import written
from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState
from pytest_statepersist.core.models import Model, get_models
from pytest_statepersist.core.states import crash_states, disk_of
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.errors import UserError
from pytest_statepersist.explorer.fresh import FreshProcess
from pytest_statepersist.explorer.outcome import UNSET, Invariant
from pytest_statepersist.explorer.runner import Recovery, call
from pytest_statepersist.explorer.workplace import Workplace, workplace
from pytest_statepersist.exploring import explore_recorded
from pytest_statepersist.faults.fake import refuse_while_active
from pytest_statepersist.findings import Report
from pytest_statepersist.recording import Recorded, RecordingSession, record_workload
from pytest_statepersist.settings import Settings, changed_settings

if TYPE_CHECKING:
    from pytest_statepersist.checked import Checked
    from pytest_statepersist.concurrency import ConcurrencyReport
    from pytest_statepersist.kill import KillReport

__all__ = ["CrashSimulator", "Recording", "Settings"]


class CrashSimulator:
    """Records what a save does and runs recovery on every disk that a crash may leave.

    Keyword arguments are `Settings`; each method takes them too, for one call. Raises `UserError`
    for arguments that cannot be. Findings are written as bundles to the directory ``bundles``.
    """

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        bundles: str | os.PathLike[str] | None = None,
        **changes: Any,
    ) -> None:
        self.settings = changed_settings(settings or Settings(), changes)
        self.bundles = None if bundles is None else Path(bundles)
        self.reports: list[Report] = []

    def check(self, **arguments: Any) -> Report:
        """Explore as `explore` does, and raise where the answer is not yes.

        Raises `CrashConsistencyError` where there is a finding, `NotCovered` where there is none
        but a question stayed open: a test that passes says that all of it was looked at.
        """
        __tracebackhide__ = True
        report = self.explore(**arguments)
        report.raise_for_findings()
        report.raise_where_not_covered()
        return report

    def explore(
        self,
        *,
        workload: Callable[..., Any],
        recover: Recovery,
        setup: Callable[[Path], Any] | None = None,
        before: Any = UNSET,
        after: Any = UNSET,
        invariant: Invariant | None = None,
        name: str = "",
        **changes: Any,
    ) -> Report:
        """Record ``workload(directory)`` after ``setup(directory)`` and judge every crash.

        ``workload`` may take a second argument, a function that it calls with each value that it
        has acknowledged. ``recover(directory)`` loads. ``before`` and ``after`` are what it gives
        on the tree before and after; an ``invariant(recovered, acknowledged)`` judges instead.
        Raises `UserError`, or `BlindSpot` where something changed that no recorder saw.
        """
        refuse_while_active("CrashSimulator.explore")
        settings = changed_settings(self.settings, changes)
        check_callables(workload, recover, setup, invariant)
        before, after = as_it_is_now(before), as_it_is_now(after)
        started = time.perf_counter()
        instead = self.instead(
            recover=recover,
            before=before,
            after=after,
            invariant=invariant,
            name=name,
            settings=settings,
            acknowledged=lambda: acknowledged_by(workload, setup, settings),
        )
        if instead is not None:
            return instead
        with ExitStack() as stack:
            place = stack.enter_context(workplace(settings.workspace))
            directory = Path(place.directory)
            fresh = FreshProcess(recover, directory)
            stack.callback(fresh.close)
            if setup is not None:
                user_call("setup", call, setup, directory)
            recorded = record_workload(
                directory,
                with_acknowledge(workload),
                recorder=settings.recorder,
                setup=setup,
            )
            place = replace(place, outside=recorded.outside)
            report = explore_recorded(
                recorded, recover, directory, place, fresh, settings, before, after, invariant, True
            )
            # While the workplace is there: contents of large files are read from it.
            functions = {"setup": setup, "workload": workload, "recover": recover}
            return self._finish(report, name, started, {**functions, "invariant": invariant})

    @contextmanager
    def record(self, directory: str | os.PathLike[str], **changes: Any) -> Iterator[Recording]:
        """Record a block that changes ``directory``; the directory itself is only read.

        Gives a `Recording`, which is complete when the block has ended. Raises `UserError` where
        the path is no directory, `BlindSpot` where something changed unseen.
        """
        refuse_while_active("CrashSimulator.record")
        settings = changed_settings(self.settings, changes)
        path = watched_directory(directory)
        with ExitStack() as stack:
            place = stack.enter_context(workplace(settings.workspace, keep=True))
            recording = Recording(self, path, place, settings)
            stack.enter_context(RecordingSession(path, recording, settings.recorder))
            yield recording

    def kill(
        self,
        workload: Callable[..., Any],
        *,
        recover: Recovery,
        setup: Callable[[Path], Any] | None = None,
        at: int | Iterable[int] | str | None = None,
        seed: int | None = None,
        runs: int = 1,
        before: Any = UNSET,
        after: Any = UNSET,
        invariant: Invariant | None = None,
        check: bool = True,
    ) -> KillReport:
        """Run the workload in a child process and kill it: really, by SIGKILL.

        ``at`` is how many changing calls it may make, several such numbers, or "every"; with
        ``seed`` it is killed ``runs`` times at random moments. Recovery runs on what is there.
        ``before`` and ``after`` count beside an ``invariant`` as well. Raises `UserError` where a
        run without a kill does not give them, `CrashConsistencyError` where it is wrong, and
        `NotCovered` where no kill could show anything, unless ``check`` is False.
        """
        from pytest_statepersist.kill import kill

        refuse_while_active("CrashSimulator.kill")
        check_callables(workload, recover, setup, invariant)
        with workplace(self.settings.workspace) as place:
            report = kill(
                workload=with_acknowledge(workload),
                recover=recover,
                setup=setup,
                before=before,
                after=after,
                invariant=invariant,
                at=at,
                seed=seed,
                runs=runs,
                place=place,
                time_limit=self.settings.time_limit,
            )
        __tracebackhide__ = True
        self.keep_check(report.checked())
        if check:
            report.raise_for_findings()
        return report

    def keep_check(self, checked: Checked) -> None:
        """Take note of a kill or of savers that ran against each other; here nobody asks."""

    def keep(self, report: Report) -> Report:
        """Write a bundle for each finding where a place for them was given."""
        if self.bundles is None:
            return report
        from pytest_statepersist.replaying import keep_bundles

        return keep_bundles(report, self.bundles, prune=False)

    def instead(
        self,
        *,
        settings: Settings,
        name: str,
        acknowledged: Callable[[], tuple[Any, ...]],
        **arguments: Any,
    ) -> Report | None:
        """Return what stands for an exploration, ``None`` where it is to be done; not for users."""
        return None

    def interleave(
        self,
        *,
        savers: Sequence[Callable[[Path], Any]],
        recover: Recovery,
        setup: Callable[[Path], Any] | None = None,
        processes: bool = False,
        allow: tuple[type[BaseException], ...] = (),
        runs: int = 30,
        seed: int | None = None,
        schedule: str | None = None,
        check: bool = True,
    ) -> ConcurrencyReport:
        """Let savers run against each other, one file-system call at a time, in chosen orders.

        They run as threads, or as ``processes``. What they leave must be what they leave one after
        the other in some order; exceptions in ``allow`` say that a saver has not saved. ``runs``
        random orders by ``seed`` follow all orders with one switch; ``schedule`` replays one.
        Raises `CrashConsistencyError` where something is lost, and `NotCovered` where it could not
        be seen, unless ``check`` is False.
        """
        from pytest_statepersist.concurrency import interleave

        refuse_while_active("CrashSimulator.interleave")
        with workplace(self.settings.workspace) as place:
            report = interleave(
                savers=savers,
                recover=recover,
                setup=setup,
                place=place,
                processes=processes,
                allow=allow,
                runs=runs,
                seed=self.settings.seed if seed is None else seed,
                schedule=schedule,
                time_limit=self.settings.time_limit or 60.0,
            )
        __tracebackhide__ = True
        self.keep_check(report.checked())
        if check:
            report.raise_for_findings()
        return report

    def _finish(
        self,
        report: Report,
        name: str,
        started: float,
        functions: dict[str, Callable[..., Any] | None],
    ) -> Report:
        report = replace(report, name=name, seconds=time.perf_counter() - started)
        if report.findings:
            report = replace(report, sources=written(functions))
        report = self.keep(report)
        self.reports.append(report)
        return report


class Recording:
    """A recorded block: its trace, and the ways to explore it. Made by `CrashSimulator.record`."""

    def __init__(
        self, simulator: CrashSimulator, directory: Path, place: Workplace, settings: Settings
    ) -> None:
        self.directory = directory
        self.recorded: Recorded | None = None
        self._simulator = simulator
        self._place = place
        self._settings = settings
        self._acknowledge: Callable[[Any], None] | None = None

    def attach(self, acknowledge: Callable[[Any], None]) -> None:
        """Connect the recorder that runs; not for users."""
        self._acknowledge = acknowledge

    def acknowledge(self, value: Any) -> None:
        """Say, inside the block, that the subject has acknowledged this value as saved."""
        if self._acknowledge is None or self.recorded is not None:
            raise UserError("acknowledge() belongs inside the recorded block, which has ended")
        self._acknowledge(as_it_is_now(value))

    @property
    def trace(self) -> op.Trace:
        """The operations of the block; raises `UserError` while it still runs."""
        if self.recorded is None:
            raise UserError("the recording has no trace before its block has ended")
        return self.recorded.trace

    def explore(
        self,
        *,
        recover: Recovery,
        before: Any = UNSET,
        after: Any = UNSET,
        invariant: Invariant | None = None,
        name: str = "",
        place: Workplace | None = None,
        **changes: Any,
    ) -> Report:
        """Run ``recover(directory)`` on every disk that a crash may leave; see `CrashSimulator`.

        States appear in a directory of their own, which ``recover`` is given; or in ``place``,
        which may be where the recording was made if nothing there is needed any more.
        """
        settings = changed_settings(self._settings, changes)
        check_callables(recover, recover, None, invariant)
        started = time.perf_counter()
        if self.recorded is None:
            raise UserError("the recording cannot be explored before its block has ended")
        if place is None:
            refuse_links_back(self.trace, self.directory)
        values = tuple(value for _, value in self.recorded.acknowledged)
        instead = self._simulator.instead(
            recover=recover,
            before=before,
            after=after,
            invariant=invariant,
            name=name,
            settings=settings,
            acknowledged=lambda: values,
        )
        if instead is not None:
            return instead
        with ExitStack() as stack:
            if place is None:
                place = stack.enter_context(workplace(settings.workspace))
                place = replace(place, original=str(self.directory))
            place = replace(place, outside=self.recorded.outside)
            fresh = FreshProcess(recover, Path(place.directory))
            try:
                report = explore_recorded(
                    self.recorded,
                    recover,
                    Path(place.directory),
                    place,
                    fresh,
                    settings,
                    before,
                    after,
                    invariant,
                    False,
                )
            finally:
                fresh.close()
        functions = {"recover": recover, "invariant": invariant}
        return self._simulator._finish(report, name, started, functions)

    def check(self, **arguments: Any) -> Report:
        """Explore and raise as `CrashSimulator.check` does."""
        __tracebackhide__ = True
        report = self.explore(**arguments)
        report.raise_for_findings()
        report.raise_where_not_covered()
        return report

    def crash_states(
        self,
        model: str | Model = "posix",
        *,
        deviations: int | None = None,
        limit: int | None = None,
    ) -> Iterator[ShownState]:
        """Yield every legal crash state as a directory that may be read and changed.

        Each state is in a directory of its own until the next one is asked for.
        """
        (chosen,) = get_models(model)
        disk = disk_of(self.trace, chosen)
        with workplace(self._settings.workspace) as place:
            from pytest_statepersist.explorer.materialise import Materialiser

            for state in crash_states(self.trace, chosen, deviations=deviations, limit=limit):
                shown = Materialiser(place.directory, place.aside, self.trace, present=False)
                shown.show(disk, state)
                yield ShownState(Path(place.directory), disk.tree(state), state, chosen.name)


@dataclass(frozen=True, slots=True)
class ShownState:
    """One crash state on disk: ``path`` is its directory, ``crash_points`` inclusive spans."""

    path: Path
    tree: Tree
    state: CrashState
    model: str

    @property
    def deviations(self) -> int:
        """Operations that miss an effect although a later one has one on disk."""
        return self.state.deviations

    @property
    def crash_points(self) -> tuple[tuple[int, int], ...]:
        """Inclusive spans of crash points at which the state is legal."""
        return self.state.points


# -- arguments


# -- exploration
