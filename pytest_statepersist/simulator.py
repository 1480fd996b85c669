"""The hub: record a workload, explore what a crash may leave, say what breaks.

Belongs here: `CrashSimulator` and the way from arguments to a `Report`. Recorders see, `core` says
what is legal, the explorer runs, diagnosis explains; this module only leads from one to the next.
Patches, processes and scratch directories are undone on every way out.
"""

from __future__ import annotations

import inspect
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_statepersist.callables import written
from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.models import Model, get_models
from pytest_statepersist.core.redundancy import Redundancy
from pytest_statepersist.core.states import crash_states, disk_of
from pytest_statepersist.core.tree import Symlink, Tree
from pytest_statepersist.diagnosing import Diagnoser
from pytest_statepersist.errors import BlindSpot, UserError
from pytest_statepersist.explorer.engine import Engine, Restart, Workplace, in_order_states
from pytest_statepersist.explorer.fresh import FreshProcess
from pytest_statepersist.explorer.outcome import (
    DATA,
    UNSET,
    Expectation,
    Expected,
    Invariant,
    Kind,
    Outcome,
    Raises,
    Unset,
    describe,
    refuse_what_is_read_later,
    same,
)
from pytest_statepersist.explorer.runner import Recovery, call
from pytest_statepersist.explorer.search import Bounds, Coverage, search
from pytest_statepersist.faults.fake import refuse_while_active
from pytest_statepersist.findings import Report, Verdict
from pytest_statepersist.mixing import judge_earlier, judge_mixtures, without_order
from pytest_statepersist.recording import Recorded, RecordingSession, record_workload
from pytest_statepersist.repairing import RUNS, AlteredTraces, redundant_syncs, with_repairs

if TYPE_CHECKING:
    from pytest_statepersist.checked import Checked
    from pytest_statepersist.concurrency import ConcurrencyReport
    from pytest_statepersist.kill import KillReport

__all__ = ["CrashSimulator", "Recording", "Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What an exploration is told beyond the subject; each can be overridden for one call.

    ``budget`` is a number of recoveries for each model, or seconds as text ("30s").
    ``time_limit`` is in seconds for one recovery, ``None`` for none. With ``repairs`` the sync
    calls that would remove the findings are searched and checked; with ``redundant_syncs`` those
    that could be left out.
    """

    model: str | Model | tuple[str | Model, ...] = "posix"
    budget: int | str = 10_000
    deviations: int = 2
    recovery_crashes: int = 1
    seed: int = 0
    recorder: str = "auto"
    time_limit: float | None = 10.0
    samples: int = 200
    workspace: str | None = None
    repairs: bool = True
    redundant_syncs: bool = False

    def __post_init__(self) -> None:
        get_models(self.model if isinstance(self.model, str | Model) else tuple(self.model))
        self.bounds()
        if self.recorder not in ("auto", "python", "strace"):
            raise UserError(
                f"recorder={self.recorder!r} is unknown; choose from 'auto', 'python', 'strace'"
            )
        for name in ("deviations", "recovery_crashes", "samples"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise UserError(f"{name}={value!r} cannot be: give a whole number from 0")
        if self.time_limit is not None and self.time_limit <= 0:
            raise UserError(
                f"time_limit={self.time_limit!r} cannot be: give seconds above 0, or None"
            )

    def bounds(self) -> Bounds:
        """Return the bounds of a search; raises `UserError` for a budget that cannot be."""
        budget = self.budget
        if isinstance(budget, str):
            text = budget.strip().lower().removesuffix("s").strip()
            try:
                seconds = float(text) if budget.strip().lower().endswith("s") else -1.0
                states = int(text) if seconds < 0 else 1 << 40
            except ValueError:
                raise UserError(
                    f"budget={budget!r} is neither a number of recoveries nor seconds like '30s'"
                ) from None
            if seconds >= 0:
                return self._bounds(1 << 40, seconds)
            budget = states
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise UserError(
                f"budget={self.budget!r} cannot be: give 1 or more recoveries, or '30s'"
            )
        return self._bounds(budget, None)

    def _bounds(self, states: int, seconds: float | None) -> Bounds:
        if seconds is not None and seconds <= 0:
            raise UserError(f"budget={self.budget!r} cannot be: give seconds above 0")
        return Bounds(states, seconds, self.deviations, self.samples, self.seed)


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
        _check_callables(workload, recover, setup, invariant)
        started = time.perf_counter()
        instead = self.instead(
            recover=recover,
            before=before,
            after=after,
            invariant=invariant,
            name=name,
            settings=settings,
            acknowledged=lambda: _acknowledged_by(workload, setup, settings),
        )
        if instead is not None:
            return instead
        with ExitStack() as stack:
            place = stack.enter_context(workplace(settings.workspace))
            directory = Path(place.directory)
            fresh = FreshProcess(recover, directory)
            stack.callback(fresh.close)
            if setup is not None:
                _user_call("setup", call, setup, directory)
            recorded = record_workload(
                directory,
                _with_acknowledge(workload),
                recorder=settings.recorder,
                setup=setup,
            )
            place = replace(place, outside=recorded.outside)
            report = _explore(
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
        path = _watched(directory)
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
        Raises `CrashConsistencyError` where it is wrong, unless ``check`` is False.
        """
        from pytest_statepersist.kill import kill

        refuse_while_active("CrashSimulator.kill")
        _check_callables(workload, recover, setup, invariant)
        with workplace(self.settings.workspace) as place:
            report = kill(
                workload=_with_acknowledge(workload),
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
        Raises `CrashConsistencyError` where something is lost, unless ``check`` is False.
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
        self._acknowledge(value)

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
        _check_callables(recover, recover, None, invariant)
        started = time.perf_counter()
        if self.recorded is None:
            raise UserError("the recording cannot be explored before its block has ended")
        if place is None:
            _refuse_links_back(self.trace, self.directory)
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
                report = _explore(
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


def changed_settings(settings: Settings, changes: dict[str, Any]) -> Settings:
    known = Settings.__dataclass_fields__
    for name in changes:
        if name not in known:
            raise UserError(f"there is no setting {name!r}; there are {', '.join(known)}")
    given = {key: value for key, value in changes.items() if value is not None}
    if (
        "model" in given
        and isinstance(given["model"], Iterable)
        and not isinstance(given["model"], str)
    ):
        given["model"] = tuple(given["model"])
    if changes.get("time_limit", UNSET) is None:
        given["time_limit"] = None
    return replace(settings, **given) if given else settings


def _refuse_links_back(trace: op.Trace, directory: Path) -> None:
    """A link in the state that leads to the user's directory would let a recovery write there."""
    targets = [node.target for node in trace.base.nodes.values() if isinstance(node, Symlink)]
    targets += [each.target for each in trace.operations if isinstance(each, op.Symlink)]
    for target in targets:
        if os.path.isabs(target) and Path(os.path.normpath(target)).is_relative_to(directory):
            raise UserError(
                f"the state holds an absolute symbolic link into {directory} itself ({target}), "
                "through which a recovery could change your files. Use check(setup=…, workload=…, "
                "recover=…), where each state appears at the path at which the workload ran."
            )


def _check_callables(workload: Any, recover: Any, setup: Any, invariant: Any) -> None:
    for name, value in (("workload", workload), ("recover", recover)):
        if not callable(value):
            raise UserError(f"{name}= takes a function of the directory, not {value!r}")
    for name, value in (("setup", setup), ("invariant", invariant)):
        if value is not None and not callable(value):
            raise UserError(f"{name}= takes a function, not {value!r}")
    given = {"workload": workload, "recover": recover, "setup": setup, "invariant": invariant}
    for name, value in given.items():
        if inspect.isgeneratorfunction(value) or inspect.isasyncgenfunction(value):
            raise UserError(f"{name}= is a generator function, whose body would never run")
    if inspect.iscoroutinefunction(invariant):
        raise UserError("invariant= is async; give a plain function that returns or asserts")


def _with_acknowledge(
    workload: Callable[..., Any],
) -> Callable[[Path, Callable[[Any], None]], Any]:
    """Give every workload the same form: those that take one argument are not told."""
    try:
        parameters = [
            p
            for p in inspect.signature(workload).parameters.values()
            if p.kind is not p.VAR_KEYWORD
        ]
    except (TypeError, ValueError):
        parameters = []
    for parameter in parameters:
        if parameter.name in ("ack", "acknowledge"):
            if parameter.kind is not parameter.KEYWORD_ONLY:
                return workload
            name = parameter.name
            return lambda directory, acknowledge: workload(directory, **{name: acknowledge})
    positional = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    wants = sum(p.default is p.empty for p in positional) >= 2 or any(
        p.kind is p.VAR_POSITIONAL for p in positional
    )
    if wants:
        return workload
    return lambda directory, acknowledge: workload(directory)


def _acknowledged_by(
    workload: Callable[..., Any], setup: Callable[[Path], Any] | None, settings: Settings
) -> tuple[Any, ...]:
    """Run a workload without recording it; return the values that it acknowledges."""
    values: list[Any] = []
    with workplace(settings.workspace) as place:
        directory = Path(place.directory)
        if setup is not None:
            _user_call("setup", call, setup, directory)
        _user_call("workload", call, _with_acknowledge(workload), directory, values.append)
    return tuple(values)


def _user_call(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (KeyboardInterrupt, UserError, BlindSpot):
        raise
    except BaseException as error:
        raise UserError(
            f"{what} raised {type(error).__name__}: {error}. Nothing was judged: {what} has to "
            "succeed once, without a crash, before crashes can be explored."
        ) from error


def _watched(directory: str | os.PathLike[str]) -> Path:
    path = Path(directory)
    if path.is_symlink():
        raise UserError(
            f"{path} is a symbolic link; give the directory itself, {path.resolve()}, so that it "
            "is clear what is watched"
        )
    if not path.exists():
        raise UserError(f"{path} does not exist; make the directory before recording it")
    if not path.is_dir():
        raise UserError(f"{path} is not a directory; give the directory that holds the state")
    return path.resolve()


@contextmanager
def workplace(parent: str | None, keep: bool = False) -> Iterator[Workplace]:
    """Make a directory for states and one for scratch, in memory where there is one."""
    root = tempfile.mkdtemp(prefix="statepersist-", dir=parent or _in_memory())
    try:
        root = os.path.realpath(root)
        directory, aside = f"{root}/state", f"{root}/aside"
        os.mkdir(directory, 0o755)
        os.mkdir(aside, 0o700)
        yield Workplace(directory, aside)
    finally:
        if not keep:
            _discard(root)
        else:
            _later(root)


def _in_memory() -> str | None:
    shared = "/dev/shm"
    if os.path.isdir(shared) and os.access(shared, os.W_OK | os.X_OK):
        return shared
    return None


def _discard(root: str) -> None:
    def force(function: Any, path: str, _: Any) -> None:
        for each in (os.path.dirname(path), path):
            try:
                os.chmod(each, stat.S_IRWXU)
            except OSError:
                pass
        try:
            function(path)
        except OSError:
            pass

    shutil.rmtree(root, onerror=force)


def _later(root: str) -> None:
    """A recording may be explored after its block: its copies live as long as the process."""
    import atexit

    atexit.register(_discard, root)


# -- exploration


def _explore(
    recorded: Recorded,
    recover: Recovery,
    argument: Path,
    place: Workplace,
    fresh: FreshProcess,
    settings: Settings,
    before: Any,
    after: Any,
    invariant: Invariant | None,
    present: bool,
) -> Report:
    models = get_models(settings.model)
    engine = Engine(
        trace=recorded.trace,
        recover=recover,
        argument=argument,
        place=place,
        fresh=fresh,
        record=recorded.record_recovery(argument),
        time_limit=settings.time_limit,
        recovery_crashes=settings.recovery_crashes,
        deviations=settings.deviations,
        present=present,
    )
    with engine:
        for _ in range(3):
            try:
                return _Exploration(
                    engine, recorded, models, settings, before, after, invariant
                ).go()
            except Restart:
                continue
    raise UserError(
        "recovery gives another answer each time it is run on the same disk, even in fresh "
        "processes; make it deterministic (seed it, freeze its clock) to get a verdict"
    )


class _Exploration:
    def __init__(
        self,
        engine: Engine,
        recorded: Recorded,
        models: tuple[Model, ...],
        settings: Settings,
        before: Any,
        after: Any,
        invariant: Invariant | None,
    ) -> None:
        self.engine = engine
        self.recorded = recorded
        self.trace = recorded.trace
        self.models = models
        self.settings = settings
        self.bounds = settings.bounds()
        self.given = (before, after)
        self.invariant = invariant
        self.unstable = ""

    def go(self) -> Report:
        self.engine.searching = False
        disks = [disk_of(self.trace, model) for model in self.models]
        expectation = self._expectation(disks[0])
        self._same_twice()
        accepts_loss = self._settle(disks[0], expectation)
        self.engine.searching = True
        coverage = []
        for disk in disks:
            coverage.append(self._cover(disk, expectation))
        self.engine.check_sentinels()
        self._confirm_passes(coverage, disks)
        findings = Diagnoser(self.engine, self.trace, expectation).findings(coverage)
        runs = self.engine.runs
        search_for_repairs = None
        if findings and self.settings.repairs:
            models = self._models_to_repair(coverage)
            oracle = AlteredTraces(
                self.engine, models, expectation, self.bounds.deviations, runs + RUNS
            )
            search_for_repairs, findings = with_repairs(self.trace, oracle, findings)
        repair_runs = self.engine.runs - runs
        redundant: tuple[Redundancy, ...] = ()
        if self.settings.redundant_syncs and expectation.tells_apart:
            redundant = redundant_syncs(
                self.trace, self.engine, self.models, expectation, self.bounds.deviations
            )
        verdicts = tuple(
            self._verdict(each, expectation, accepts_loss) for each in coverage
        )
        return Report(
            trace=self.trace,
            findings=findings,
            verdicts=verdicts,
            coverage=tuple(coverage),
            recorder=self.recorded.recorder,
            warnings=(*self.recorded.warnings, *self.engine.warnings),
            runs=runs,
            repair_search=search_for_repairs,
            repair_runs=repair_runs,
            redundant_syncs=redundant,
            before=describe(expectation.before),
            after=describe(expectation.after),
        )

    def _cover(self, disk: Disk, expectation: Expectation) -> Coverage:
        """Search one model; what memory maps changed in an unknown order counts as open."""
        nothing = without_order(self.trace, disk.model)
        if nothing is not None:
            return nothing

        def cover(each: Disk, bounds: Bounds) -> Coverage:
            visit = self.engine.visitor(each, bounds.deviations)
            return search(each, visit, expectation, bounds, lambda: self.engine.runs)

        found = cover(disk, self.bounds)
        judge_earlier(self.recorded.earlier, found, cover, self.bounds)
        judge_mixtures(self.trace, found, cover, self.bounds)
        return found

    def _models_to_repair(self, coverage: list[Coverage]) -> list[Model]:
        """Leave out models that had no failure, and to which a sync can bring none."""
        return [c.model for c in coverage if c.failures or c.model.waives_order]

    def _expectation(self, disk: Disk) -> Expectation:
        """Find out what recovery gives before and after, in a way that no cache can disturb."""
        start, end = in_order_states(self.trace, disk)
        first = self.engine.outcome(disk, start).outcome
        refuse_what_is_read_later(first)
        last = self.engine.outcome(disk, end).outcome
        refuse_what_is_read_later(last)
        self.engine.trust(disk, start, first)
        self.engine.trust(disk, end, last)
        if not self.engine.isolated and self.engine.fresh.available:
            self._not_cached(disk, start, first)
            self._not_cached(disk, end, last)
        before, after = (self._given(value) for value in self.given)
        expected_after: Expected = last if after is None else after
        return Expectation(
            length=len(self.trace),
            before=first if before is None else before,
            after=expected_after,
            acknowledged=self.recorded.acknowledged,
            invariant=self.invariant,
        )

    def _settle(self, disk: Disk, expectation: Expectation) -> bool:
        """Have each value asked while its disk is there; say whether a lost save would pass."""
        start, end = in_order_states(self.trace, disk)
        lazy = any(type(each.value) not in DATA for _, _, each in self.engine.sentinels)
        self.engine.settle_with(
            expectation.settle, forget=lazy or expectation.invariant is not None
        )
        first, last = (self.engine.outcome(disk, state).outcome for state in (start, end))
        expectation.refuse_what_raises(last)
        for state in (start, end):
            self.engine.check_order(disk, state)
        return expectation.accepts_loss(first)

    def _not_cached(self, disk: Disk, state: CrashState, here: Outcome) -> None:
        there = self.engine.confirm(disk, state)
        if there is not None and not same(here, there):
            self.engine.isolate(
                f"on one disk recovery gave {here} in this process and {there} in a fresh one"
            )

    def _given(self, value: Any) -> Expected | None:
        if isinstance(value, Unset):
            return None
        if isinstance(value, Raises | Outcome):
            return value
        return Outcome.returned(value)

    def _same_twice(self) -> None:
        """Nothing can be said of a recovery whose answer changes from run to run."""
        if not self.engine.isolated:
            self.engine.check_sentinels()
            return
        for disk, state, expected in self.engine.sentinels:
            again = self.engine.confirm(disk, state)
            if again is not None and not same(again, expected):
                raise UserError(
                    f"recovery is not deterministic: on one disk it gave {expected}, then {again}, "
                    "each time in a fresh process. Seed it, freeze its clock, or compare less of "
                    "what it returns; without that no verdict would mean anything."
                )

    def _confirm_passes(self, coverage: list[Coverage], disks: list[Disk]) -> None:
        """Run states that passed again in a fresh process; a false pass is worse than none."""
        if self.engine.isolated or not self.engine.fresh.available:
            return
        confirmed: dict[int, Outcome] = {}
        for disk, found in zip(disks, coverage, strict=True):
            for state in found.passes:
                outcome = self.engine.outcome(disk, state).outcome
                if id(outcome) not in confirmed:
                    confirmed[id(outcome)] = outcome
                    self._not_cached(disk, state, outcome)
                    self.engine.check_order(disk, state)

    # -- verdicts

    def _verdict(
        self, coverage: Coverage, expectation: Expectation, accepts_loss: bool
    ) -> Verdict:
        broken = {kind for kind, count in coverage.failing.items() if count}
        atomic: bool | None = not broken - {Kind.DURABILITY}
        durable: bool | None = not (Kind.DURABILITY in broken or coverage.lost_after_return)
        reason = ""
        covered = coverage.complete
        if not covered:
            atomic, durable = _only_no(atomic), _only_no(durable)
            reason = coverage.reason
        if not expectation.tells_apart:
            atomic, durable = _only_no(atomic), _only_no(durable)
            reason = (
                "recovery gives the same answer before and after the workload, so it cannot tell "
                "whether anything was saved"
            )
        if self.engine.doubts:
            atomic, durable = _only_no(atomic), _only_no(durable)
            reason = reason or "; ".join(self.engine.doubts)
        asked = True
        if accepts_loss and durable:
            durable, asked = None, False
            reason = reason or (
                "the invariant takes what was there before for what must be there after; "
                "acknowledge what was saved, or give after="
            )
        name, count = coverage.model.name, coverage.states
        return Verdict(name, atomic, durable, covered, count, str(coverage), reason, asked)


def _only_no(value: bool | None) -> bool | None:
    return value if value is False else None
