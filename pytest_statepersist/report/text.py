"""A report for a tired person: what was lost, how, where, and what to do.

Belongs here: the prose of `Report` and `Finding`. It reads values and formats them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_statepersist.core.tree import File, Tree, read_content, size_of
from pytest_statepersist.explorer.outcome import Kind
from pytest_statepersist.report.operations import describe_operation, place

if TYPE_CHECKING:
    from pytest_statepersist.findings import Finding, Report

__all__ = ["render", "render_finding"]

_LOST = {
    Kind.ATOMICITY: "a crash leaves something that is neither the old state nor the new one",
    Kind.DURABILITY: "what was acknowledged as saved is gone after a crash",
    Kind.UNRECOVERABLE: "after a crash the saved state cannot be loaded at all",
    Kind.HANG: "after a crash loading never ends",
    Kind.UNSTABLE: "loading gave one answer, and after another crash a different one",
}
_SHOWN = 12
_PREVIEW = 60


def render(report: Report) -> str:
    """Return the whole report as text."""
    lines: list[str] = []
    title = f"crash exploration of {report.name}" if report.name else "crash exploration"
    lines.append(f"{title}: {len(report.trace)} operations, recorded by {report.recorder}")
    lines.extend(f"  {verdict}" for verdict in report.verdicts)
    lines.extend(f"  warning: {text}" for text in report.warnings)
    if report.trace.base.nodes.keys() - {0}:
        lines.append("  everything that was there before the workload counts as on disk")
    for finding in report.findings:
        lines.append("")
        lines.extend(render_finding(report, finding))
    return "\n".join(lines)


def render_finding(report: Report, finding: Finding) -> Iterator[str]:
    """Yield the lines that explain one finding."""
    count = f", {finding.count} states alike" if finding.count > 1 else ""
    yield f"[{finding.id}] {finding.cause}, at {place(finding.site)}{count}"
    yield f"  What: {_LOST[finding.kind]}."
    yield f"  Recovery {finding.observed}"
    yield f"  Expected {finding.expected}"
    end = len(report.trace)
    when = "after the workload had returned" if finding.crash_point >= end else "during the workload"
    yield f"  Crash point {finding.crash_point} of {end}, {when}:"
    yield from _history(report, finding)
    yield "  The disk that recovery saw:"
    yield from _tree(finding.tree)
    if finding.failure.step is not None:
        yield from _again(finding)
    yield f"  Allowed by: {', '.join(finding.models)}"
    if finding.confirmed:
        yield "  Confirmed in a fresh process."


def _history(report: Report, finding: Finding) -> Iterator[str]:
    missing = set(finding.diagnosis.missing)
    there = set(finding.diagnosis.on_disk)
    state = finding.diagnosis.state
    effects = finding.failure.disk.effects
    shown = sorted(n for n in missing | there)
    for number in shown[:_SHOWN]:
        operation = report.trace.operations[number]
        lost = [e for e in effects.of_operation[number] if e in state.missing]
        if not lost or number not in missing:
            mark = "on disk"
        elif len(lost) == len(effects.of_operation[number]):
            mark = "NOT on disk"
        else:
            mark = "PARTLY on disk"
        yield f"    {mark:>14}  #{number} {describe_operation(operation)}  {place(operation.site)}"
    if len(shown) > _SHOWN:
        yield f"                    … and {len(shown) - _SHOWN} more operations"


def _tree(tree: Tree) -> Iterator[str]:
    rows = list(tree.walk())
    for path, _, node in rows[:_SHOWN]:
        if isinstance(node, File):
            size = size_of(node.content)
            start = read_content(node.content, 0, _PREVIEW)
            shown = repr(start)[1:] if start.strip(b"\0") else ("NULs" if start else "")
            yield f"    {path}: {size} bytes {shown}{'…' if size > _PREVIEW else ''}".rstrip()
        else:
            yield f"    {path}{'/' if hasattr(node, 'entries') else ' (link)'}"
    if not rows:
        yield "    (empty)"
    if len(rows) > _SHOWN:
        yield f"    … and {len(rows) - _SHOWN} more"


def _again(finding: Finding) -> Iterator[str]:
    step = finding.failure.step
    assert step is not None
    yield "  Then recovery itself was interrupted, and what it had done so far left:"
    yield from _tree(step.disk.tree(step.state))
    if step.first is not None:
        yield f"  Before that crash recovery had {step.first}"
