"""A finding again, without searching: its disk is shown and recovery is judged on it.

Belongs here: turning findings into bundles, and bundles into verdicts. Rules:

1. A replay records nothing and explores nothing. It says what recovery does on one disk: FIXED, or
   FAILED. What it cannot judge is a `BundleError`, never FIXED.
2. The disk is shown where it was recorded when that place is free and ours; otherwise a disk that
   names its old place is refused, because a recovery would follow the name.
3. What is expected is found as an exploration finds it: from the trees before and after, each in a
   fresh process, so that no cache of the subject answers for the disk.
"""

from __future__ import annotations

import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pytest_statepersist.bundle import drop, read, write
from pytest_statepersist.bundle_json import (
    Bundle,
    absent,
    bundle_name,
    check_size,
    stored,
    test_suffix,
)
from pytest_statepersist.core.apply import apply
from pytest_statepersist.core.crash_state import CrashState
from pytest_statepersist.core.models import get_model
from pytest_statepersist.core.operations import Trace
from pytest_statepersist.core.states import disk_of
from pytest_statepersist.core.tree import File, Node, Symlink, Tree
from pytest_statepersist.errors import BundleError, CrashConsistencyError, UserError
from pytest_statepersist.explorer.fresh import FreshProcess
from pytest_statepersist.explorer.materialise import Materialiser, remove
from pytest_statepersist.explorer.outcome import (
    UNSET,
    Expectation,
    Expected,
    Invariant,
    Outcome,
    Raises,
    describe,
    fits,
    same,
)
from pytest_statepersist.explorer.runner import Recovery, run_recovery
from pytest_statepersist.findings import Finding, Report
from pytest_statepersist.report.operations import printable
from pytest_statepersist.report.text import render_finding

__all__ = [
    "Replayed",
    "installed_version",
    "judge",
    "keep_bundles",
    "replay_bundle",
    "show_disk",
    "still_there",
]

_ADDRESS = re.compile(r"0x[0-9a-f]{4,}")
_OURS = re.compile(r"statepersist-[A-Za-z0-9_]{8}")


# -- keeping


def keep_bundles(
    report: Report, directory: Path, *, test: str = "", ordinal: int = 0, prune: bool = True
) -> Report:
    """Write a bundle for each finding; return the report with their names in it.

    Bundles of the same exploration that are no longer found under a model that was covered in full
    are removed.
    """
    findings, warnings = [], []
    for finding in report.findings:
        name = bundle_name(finding.id, test, report.name, ordinal)
        try:
            path = write(_bundle(report, finding, name, test, ordinal), directory)
        except BundleError as error:
            warnings.append(f"the finding {finding.id} is not kept: {error}")
            findings.append(finding)
            continue
        findings.append(replace(finding, bundle=name if test else str(path)))
    if prune:
        names = [bundle_name(f.id, test, report.name, ordinal) for f in findings]
        sure = {v.model for v in report.verdicts if None not in (v.atomic, v.durable)}
        covered = {
            each.model.name: 1 << 20 if each.all_states else each.deviations
            for each in report.coverage
            if each.complete and each.model.name in sure
        }
        drop(directory, test_suffix(test, report.name, ordinal), but=names, covered=covered)
    return replace(
        report, findings=tuple(findings), warnings=(*report.warnings, *warnings)
    )


def _bundle(report: Report, finding: Finding, name: str, test: str, ordinal: int) -> Bundle:
    failure = finding.failure
    step, state = failure.step, failure.state
    points = state.points or ((finding.crash_point, finding.crash_point),)
    inner = step.disk.trace if step is not None else None
    traces = [report.trace, *([inner] if inner is not None else [])]
    tree = stored(failure.disk.tree(state), *traces)
    return Bundle(
        name=name,
        test=test,
        exploration=report.name,
        ordinal=ordinal,
        model=failure.model.name,
        kind=finding.kind.value,
        cause=finding.cause,
        text="\n".join(render_finding(report, finding))[:100_000],
        before=_plain(report.before),
        after=_plain(report.after),
        observed=str(finding.observed)[:100_000],
        expected=finding.expected[:100_000],
        crash_point=failure.judgement.point,
        deviations=finding.deviations,
        points=tuple((max(begin, 0), min(end, len(report.trace))) for begin, end in points),
        last=state.last,
        missing=tuple(sorted(state.missing)),
        step_missing=tuple(sorted(step.state.missing)) if step is not None else (),
        stable=step is None or step.kind is None,
        package=installed_version(),
        python=platform.python_version(),
        trace=replace(report.trace, base=stored(report.trace.base, *traces)),
        disk=tree if step is None else stored(step.disk.tree(step.state), *traces),
        interrupted=None if step is None else tree,
        step=None if inner is None else replace(inner, base=stored(inner.base, *traces)),
        sources=tuple(
            (name, text if text.isprintable() and len(text) < 2_000 else "")
            for name, text in report.sources
        ),
    )


def installed_version() -> str:
    """Return the version of this package, "unknown" where it is not installed."""
    try:
        return metadata.version("pytest-statepersist")
    except metadata.PackageNotFoundError:
        return "unknown"


def _plain(text: str) -> str:
    return _ADDRESS.sub("0x", text)[:100_000]


# -- showing


def show_disk(bundle: Bundle, tree: Tree, directory: Path) -> None:
    """Make an empty directory hold a tree of a bundle.

    Links into the directory in which the tree was recorded lead into this one. Raises `BundleError`
    where the bundle lacks bytes, or where the tree cannot be shown.
    """
    lacking = absent(tree)
    if lacking:
        raise BundleError(
            f"the bundle {bundle.name} has no bytes of {', '.join(lacking[:5])}: large files that "
            "the save does not touch are kept as a digest. Run the test itself to see this finding"
        )
    check_size(tree)
    nodes: dict[int, Node] = {}
    for number, node in tree.nodes.items():
        if isinstance(node, Symlink) and os.path.isabs(node.target):
            inner = os.path.relpath(node.target, bundle.trace.directory)
            node = Symlink(os.path.normpath(os.path.join(directory, inner)))
        elif isinstance(node, File):
            # Others give rights or labels, which are the system's to give.
            users = tuple(each for each in node.xattrs if each[0].startswith("user."))
            node = replace(node, xattrs=users)
        nodes[number] = node
    aside = tempfile.mkdtemp(prefix="statepersist-aside-")
    try:
        disk = disk_of(Trace(Tree(nodes)), get_model("posix"))
        state = CrashState(-1, frozenset(), points=((0, 0),))
        Materialiser(str(directory), aside, disk.trace, present=False).show(disk, state)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"the disk of {bundle.name} cannot be shown here: {error}") from None
    finally:
        remove(aside)


@contextmanager
def _place(bundle: Bundle, workspace: str | None) -> Iterator[Path]:
    """Make the directory in which disks are shown: the recorded one, where that is possible."""
    from pytest_statepersist.explorer.workplace import discard, in_memory

    parent = os.path.realpath(workspace or in_memory() or tempfile.gettempdir())
    old = Path(bundle.trace.directory)
    root = ""
    # A path from a bundle is made only where it is one that this package would choose itself.
    if str(old.parent.parent) == parent and _OURS.fullmatch(old.parent.name):
        try:
            os.mkdir(old.parent, 0o700)
            root = str(old.parent)
        except FileExistsError:
            root = ""
    same_place = bool(root) and old.name == "state"
    if not root:
        root = os.path.realpath(tempfile.mkdtemp(prefix="statepersist-", dir=parent))
    try:
        directory = Path(root, "state")
        directory.mkdir(0o755)
        if not same_place:
            _refuse_old_place(bundle)
        yield directory
    finally:
        discard(root)


def _refuse_old_place(bundle: Bundle) -> None:
    old = os.fsencode(bundle.trace.directory) if len(bundle.trace.directory) > 1 else b""
    if not old:
        return
    for path, _, node in bundle.disk.walk():
        if isinstance(node, File) and isinstance(node.content, bytes) and old in node.content:
            raise BundleError(
                f"{path} in the bundle {bundle.name} names the directory in which it was recorded, "
                f"{bundle.trace.directory}, which cannot be made again here. A recovery would "
                "follow it, so nothing is judged; run the test itself"
            )


# -- judging


@dataclass(frozen=True, slots=True)
class Replayed:
    """What recovery did on the disk of a bundle; ``problem`` is "" where that is allowed."""

    bundle: Bundle
    outcome: Outcome
    problem: str = ""

    @property
    def fixed(self) -> bool:
        """Whether recovery copes with the disk."""
        return not self.problem

    def __str__(self) -> str:
        if self.fixed:
            return f"FIXED {self.bundle.name}: recovery {self.outcome}"
        details = f"\n\n{self.outcome.details.rstrip()}" if self.outcome.details else ""
        return (
            f"FAILED {self.bundle.name}: recovery {self.outcome}\n"
            f"  expected {self.problem}\n"
            "  This is the disk as it was recorded. If the save was repaired, so that it no longer "
            "leaves\n  such a disk, run the test itself: it explores again, and the bundle goes "
            f"when it passes.\n\nThe finding was:\n{printable(self.bundle.text)}{details}"
        )


def judge(
    bundle: Bundle,
    *,
    recover: Recovery,
    before: Any = UNSET,
    after: Any = UNSET,
    invariant: Invariant | None = None,
    acknowledged: Callable[[], Sequence[Any]] = tuple,
    time_limit: float | None = 10.0,
    workspace: str | None = None,
) -> Replayed:
    """Run ``recover(directory)`` on the disk of a bundle and say whether its answer is allowed.

    ``acknowledged`` gives the values that the workload acknowledges, where it does. Raises
    `BundleError` where nothing can be judged.
    """
    values = _acknowledged(bundle, acknowledged)
    with _place(bundle, workspace) as directory:
        fresh = FreshProcess(recover, directory)
        try:
            return _judged(
                bundle, recover, (before, after), invariant, values, time_limit, directory, fresh
            )
        finally:
            fresh.close()


def _judged(
    bundle: Bundle,
    recover: Recovery,
    given: tuple[Any, Any],
    invariant: Invariant | None,
    values: tuple[tuple[int, Any], ...],
    limit: float | None,
    directory: Path,
    fresh: FreshProcess,
) -> Replayed:
    def alone(tree: Tree) -> Outcome:
        show_disk(bundle, tree, directory)
        if fresh.available:
            return fresh.run(limit)
        return run_recovery(recover, directory, limit)

    # First here, where a debugger reaches it and where nothing of the subject has run before.
    show_disk(bundle, bundle.disk, directory)
    outcome = run_recovery(recover, directory, limit)
    again = alone(bundle.disk)
    if not same(again, outcome):
        if fresh.available and not same(alone(bundle.disk), again):
            raise BundleError(
                f"recovery gives another answer each time on the disk of {bundle.name}: {outcome}, "
                f"then {again}; make it deterministic to get a verdict"
            )
        outcome = again
    first, last = alone(bundle.trace.base), alone(apply(bundle.trace))
    before, after = (
        _expected(bundle, which, text, value, found)
        for which, text, value, found in (
            ("before", bundle.before, given[0], first),
            ("after", bundle.after, given[1], last),
        )
    )
    expectation = Expectation(
        length=len(bundle.trace),
        before=before,
        after=after,
        acknowledged=values,
        invariant=invariant,
        demands_after=given[1] is not UNSET,
    )
    if not expectation.tells_apart:
        raise BundleError(
            f"recovery gives {describe(before)} before and after the save of {bundle.name}, so its "
            "answer cannot tell anything"
        )
    if not bundle.stable:
        assert bundle.interrupted is not None
        wanted = alone(bundle.interrupted)
        if not same(outcome, wanted):
            problem = f"{wanted}, as without the second crash"
            return Replayed(bundle, outcome, problem)
    judgements = expectation.judge(outcome, bundle.points, bundle.last)
    if not judgements:
        return Replayed(bundle, outcome)
    length, wrong = len(bundle.trace), judgements[0]
    when = "after the save had returned" if wrong.point >= length else "during the save"
    problem = f"{wrong.expected}: crash point {wrong.point} of {length}, {when}"
    return Replayed(bundle, outcome, problem)


def _expected(bundle: Bundle, which: str, text: str, value: Any, found: Outcome) -> Expected:
    """Return what a test expects now; raises `BundleError` where the bundle is of another one."""
    if value is UNSET:
        return found
    wanted: Expected = value if isinstance(value, Raises | Outcome) else Outcome.returned(value)
    if text and _plain(describe(wanted)) != text and not fits(found, wanted):
        raise BundleError(
            f"the bundle {bundle.name} does not fit the test any more: {which}= was {text} and is "
            f"{describe(wanted)}, and on the tree {which} the save recovery gives {found}. Explore "
            "again"
        )
    return wanted


def _acknowledged(
    bundle: Bundle, values: Callable[[], Sequence[Any]]
) -> tuple[tuple[int, Any], ...]:
    marks = bundle.trace.acknowledgements
    if not marks:
        return ()
    found = tuple(values())
    if [_plain(repr(value)) for value in found] != [_plain(mark.text) for mark in marks]:
        raise BundleError(
            f"the workload of {bundle.name} acknowledged {[mark.text for mark in marks]}, and now "
            f"{[repr(value) for value in found]}; nothing is judged, explore again"
        )
    return tuple(zip([mark.position for mark in marks], found, strict=True))


def replay_bundle(
    path: str | os.PathLike[str],
    *,
    recover: Recovery,
    setup: Callable[[Path], Any] | None = None,
    workload: Callable[..., Any] | None = None,
    before: Any = UNSET,
    after: Any = UNSET,
    invariant: Invariant | None = None,
    acknowledged: Sequence[Any] = (),
    time_limit: float | None = 10.0,
) -> Any:
    """Run ``recover(directory)`` on the disk of a bundle, for a regression test.

    ``before``, ``after`` and ``invariant`` are as in `CrashSimulator.check`. Where recovery fails
    on the disk and a ``workload`` is given, it is explored as ``check`` does it, under the model of
    the bundle: a save that no longer leaves such a disk is repaired as well. Returns what recovery
    returned. Raises `CrashConsistencyError` where neither is repaired, `BundleError` where the file
    is no bundle or cannot be judged.
    """
    __tracebackhide__ = True
    if not callable(recover):
        raise UserError(f"recover= takes a function of the directory, not {recover!r}")
    bundle = read(Path(path))
    done = judge(
        bundle,
        recover=recover,
        before=before,
        after=after,
        invariant=invariant,
        acknowledged=lambda: acknowledged,
        time_limit=time_limit,
    )
    if done.fixed:
        return done.outcome.value
    if workload is None:
        raise CrashConsistencyError(str(done), done)
    from pytest_statepersist.simulator import CrashSimulator

    report = CrashSimulator().explore(
        setup=setup,
        workload=workload,
        recover=recover,
        before=before,
        after=after,
        invariant=invariant,
        model=bundle.model,
        deviations=max(2, bundle.deviations),
        time_limit=time_limit,
    )
    if any(still_there(bundle, each.id, each.cause) for each in report.findings):
        raise CrashConsistencyError(str(report), report)
    verdict = report.verdict(bundle.model)
    if not verdict.complete or None in (verdict.atomic, verdict.durable):
        raise BundleError(
            f"recovery fails on the disk of {bundle.name}, and whether the save still leaves it is "
            f"not known: {verdict}"
        )
    return done.outcome.value


def still_there(bundle: Bundle, finding: str, cause: str) -> bool:
    """Say whether a finding is that of a bundle, or may be: a function can have another name."""
    return finding == bundle.name.split("-")[0] or cause == bundle.cause
