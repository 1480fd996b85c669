"""What to do about a finding: the sync calls that were checked, or the protocol that would help.

Belongs here: sentences for `Repair` and for each class of bug that no sync call repairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.causes import Cause
from pytest_statepersist.core.repairs import Repair, SyncLine
from pytest_statepersist.report.operations import describe_operation, place

if TYPE_CHECKING:
    from pytest_statepersist.core.operations import Trace
    from pytest_statepersist.findings import Finding, Report

__all__ = ["advice", "redundancy_lines", "repair_lines"]

_REPLACE = (
    "write the new version to a temporary file, fsync it, rename it over the old one, fsync the "
    "directory"
)
_ONE_FILE = f"the update takes several steps. Do it in one: {_REPLACE}"
_PROTOCOL = {
    Cause.NOT_ATOMIC: (
        f"the update takes several steps. For one file: {_REPLACE}. For several files that must "
        "change together: put them into one, or write a journal, fsync it, and let recovery "
        "finish or undo what it says"
    ),
    Cause.TORN_WRITE: (
        f"a single write can reach the disk in parts. For a file: {_REPLACE}. For a log: give each "
        "record its length and a checksum, and let recovery ignore and cut a tail that is not whole"
    ),
    Cause.NOT_FLUSHED: (
        "the rename runs while bytes are still in the program's buffer. Flush and fsync the file, "
        "close it, and only then rename it"
    ),
    Cause.TEMPORARY: (
        "recovery takes a file that is not finished for data. Give temporaries names that recovery "
        "ignores, or keep them in a directory of their own, and remove old ones at the start"
    ),
    Cause.LEFTOVER: (
        "a crash leaves the file behind and nobody removes it. Let recovery remove or reuse what "
        "an earlier run left; for a lock use one that the kernel gives up (flock)"
    ),
    Cause.RECOVERY_NOT_IDEMPOTENT: (
        "recovery destroys what it needs when it has to start again. Let it bring the new state "
        f"about in one step ({_REPLACE}), and remove its input only after that is durable"
    ),
}


def advice(report: Report, finding: Finding) -> Iterator[str]:
    """Yield what to do about one finding."""
    step = finding.failure.step
    trace = report.trace if step is None else step.disk.trace
    where = "" if step is None else " in recovery"
    if finding.no_sync_helps:
        cause = Cause(finding.cause)
        protocol = _PROTOCOL.get(cause, f"the update is not atomic: {_REPLACE}")
        if cause is Cause.NOT_ATOMIC and len(_changed(trace)) == 1:
            protocol = _ONE_FILE
        yield f"No set of sync calls repairs this: {protocol}."
        return
    if not finding.repairs:
        yield _no_repair(report, finding)
        return
    for number, repair in enumerate(finding.repairs):
        word = f"Repair{where}:" if number == 0 else "or:"
        for line in repair.lines:
            yield f"{word} {_sync(trace, line)}"
            word = "  and"
    if _says_it_all(report):
        yield f"({_checked(report, finding.repairs[0])})"
    asked = {verdict.model for verdict in report.verdicts} - set(finding.repaired_under)
    others = [name for name in finding.models if name in asked]
    if others:
        yield f"(not under {', '.join(others)}: there every set that was tried leaves a failure)"


def _says_it_all(report: Report) -> bool:
    search = report.repair_search
    return search is not None and [f.repairs for f in report.findings] == [search.repairs]


def _checked(report: Report, repair: Repair) -> str:
    search = report.repair_search
    models = f" under {', '.join(search.models)}" if search is not None else ""
    return (
        f"checked: all was explored again with it, {repair.states:,} classes of disks{models}, and "
        "nothing is left that a sync could mend"
    )


def _changed(trace: Trace) -> set[int]:
    """Return the files and names that a trace changes, as inodes."""
    found = set()
    for each in trace.operations:
        if not isinstance(each, op.Fsync | op.SyncAll | op.SyncRange | op.Close):
            found.add(each.inode)
    return found


def _no_repair(report: Report, finding: Finding) -> str:
    search = report.repair_search
    if search is None:
        return "Repairs were not searched."
    if finding.failure.step is not None:
        return "Repairs inside recovery were not searched for this one."
    if search.reason:
        return f"No repair was found; the search stopped early: {search.reason}."
    missed = [name for name in finding.models if name not in search.models]
    if search.hopeless or missed == list(finding.models):
        names = ", ".join(missed or finding.models)
        return (
            f"Under {names} every set of sync calls that was tried leaves a failure; a protocol "
            f"that does not depend on them: {_REPLACE}."
        )
    return "No repair was found within the bound on deviations."


def _sync(trace: Trace, line: SyncLine) -> str:
    """Say what to sync after which call; one line of the source may make many of them."""
    calls = [f"#{n.after} {describe_operation(trace.operations[n.after])}" for n in line.insertions]
    first, where = describe_operation(line.call), place(line.site)
    if len(calls) == 1:
        return f"{first} after {calls[0]}, at {where}"
    if len({each.call.inode for each in line.insertions}) > 1:
        first = "fsync the directory of the name" if line.directory else "fsync the file"
    shown = f"{calls[0]}, {calls[1]}" + (", …" if len(calls) > 2 else "")
    return f"{first} after each of {len(calls)} calls, at {where}: {shown}"


def repair_lines(report: Report) -> Iterator[str]:
    """Yield the sets of sync calls for the whole report, where findings do not say it all."""
    search = report.repair_search
    if search is None or not search.repairs:
        return
    if _says_it_all(report):
        return
    best = "the smallest sets" if search.smallest else "sets"
    yield (
        f"Repairs that were checked under {', '.join(search.models)} ({best} of sync calls with "
        "which no finding is left that a sync can remove):"
    )
    for number, repair in enumerate(search.repairs, 1):
        yield from _numbered(report, number, repair)
    if any(finding.no_sync_helps for finding in report.findings):
        yield (
            "  None of them mends what no set of sync calls repairs. Where the way that is named "
            "there is taken, explore again: these may no longer be needed."
        )


def _numbered(report: Report, number: int, repair: Repair) -> Iterator[str]:
    for at, line in enumerate(repair.lines):
        start = f"{number}." if at == 0 else "  "
        yield f"  {start} {_sync(report.trace, line)}"
    yield f"     ({repair.states:,} classes of disks explored with it)"


def redundancy_lines(report: Report) -> Iterator[str]:
    """Yield which recorded sync calls could go, model by model; redundant one at a time."""
    for found in report.redundant_syncs:
        title = f"Sync calls that are not needed under {found.model}"
        if not found.each and not found.calls:
            yield f"{title}: {f'not covered; {found.reason}' if found.reason else 'none'}."
            continue
        yield f"{title}, one at a time:"
        for sync in found.each:
            with_others = sync in found.together or len(found.each) == 1
            mark = "" if with_others else " (not together with the others)"
            yield f"  {describe_operation(sync.call)} at {place(sync.site)}{mark}"
        for sync, alone in found.calls:
            which = ", ".join(f"#{number}" for number in alone)
            count = f"{len(alone)} of {len(sync.operations)} calls"
            what = f"{describe_operation(sync.call)} at {place(sync.site)}"
            yield f"  {count} of {what}, each by itself: {which}"
