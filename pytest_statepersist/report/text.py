"""A report for a tired person: what was lost, how, where, and what to do.

Belongs here: the prose of `Report` and `Finding`. It reads values and formats them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_statepersist.core.effects import Kind as Effect
from pytest_statepersist.core.tree import File, Tree, read_content, size_of
from pytest_statepersist.explorer.outcome import Kind
from pytest_statepersist.report.advice import advice, redundancy_lines, repair_lines
from pytest_statepersist.report.operations import describe_operation, place, printable

if TYPE_CHECKING:
    from pytest_statepersist.core.crash_state import CrashState, Disk
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
    count = len(report.findings)
    found = f"{count or 'no'} {'finding' if count == 1 else 'findings'}"
    lines.append(
        f"{title}: {found} in {len(report.trace)} operations, recorded by {report.recorder}"
    )
    lines.extend(f"  {verdict}" for verdict in report.verdicts)
    lines.extend(f"  warning: {text}" for text in report.warnings)
    if report.trace.base.nodes.keys() - {0}:
        lines.append("  everything that was there before the workload counts as on disk")
    for finding in report.findings:
        lines.append("")
        lines.extend(render_finding(report, finding))
    for more in (list(repair_lines(report)), list(redundancy_lines(report))):
        if more:
            lines.extend(["", *more])
    return "\n".join(lines)


def render_finding(report: Report, finding: Finding) -> Iterator[str]:
    """Yield what was lost, how, what recovery saw, and what to do."""
    count = f", {finding.count} states alike" if finding.count > 1 else ""
    yield f"[{finding.id}] {finding.cause}, at {place(finding.site)}{count}"
    kinds = finding.kinds or (finding.kind,)
    yield f"  What was lost: {'; '.join(_LOST[kind] for kind in kinds)}."
    yield from _how(report, finding)
    yield "  What recovery saw:"
    step = finding.failure.step
    yield from _tree(finding.tree if step is None else step.disk.tree(step.state))
    yield f"    Recovery {finding.observed}"
    yield f"    Expected {finding.expected.removeprefix('returned ')}"
    yield "  What to do:"
    yield from (f"    {line}" for line in advice(report, finding))
    yield f"  Allowed by: {', '.join(finding.allowed_by or finding.models)}"
    alike = [name for name in finding.models if name not in finding.allowed_by]
    if finding.allowed_by and alike:
        yield f"  The same cause, with another disk, under: {', '.join(alike)}"
    if finding.confirmed:
        yield "  Confirmed in a fresh process."
    if finding.accepted is not None:
        yield f"  Accepted by the baseline{': ' if finding.accepted else ''}{finding.accepted}"
    if finding.bundle:
        yield f"  Replay it: pytest --statepersist-replay {finding.bundle}"


def _how(report: Report, finding: Finding) -> Iterator[str]:
    end, step = len(report.trace), finding.failure.step
    when = (
        "after the workload had returned" if finding.crash_point >= end else "during the workload"
    )
    yield f"  How: crash point {finding.crash_point} of {end}, {when}:"
    diagnosis, disk = finding.diagnosis, finding.failure.disk
    if step is None:
        yield from _history(disk, diagnosis.state, {*diagnosis.missing}, {*diagnosis.on_disk})
        return
    state = finding.failure.state
    lost = {disk.effects.effects[index].operation for index in state.missing}
    if lost:
        yield from _history(disk, state, lost, set())
    else:
        yield "    everything up to there was on disk; it left:"
    yield from _tree(disk.tree(state))
    length = len(step.disk.trace)
    when = "after it had returned" if diagnosis.point >= length else "while it ran"
    yield f"  Then recovery was interrupted at crash point {diagnosis.point} of {length}, {when}:"
    yield from _history(step.disk, step.state, {*diagnosis.missing}, {*diagnosis.on_disk})
    if step.first is not None:
        yield f"    Before that crash recovery had {step.first}"


def _history(disk: Disk, state: CrashState, missing: set[int], there: set[int]) -> Iterator[str]:
    effects = disk.effects
    shown = sorted(missing | there)
    for number in shown[:_SHOWN]:
        operation = disk.trace.operations[number]
        own = [
            e for e in effects.of_operation[number] if effects.effects[e].kind is not Effect.TIMES
        ]
        lost = [e for e in own if e in state.missing or number > state.last]
        part = ""
        if number not in missing:
            mark = "on disk"
        elif len(lost) == len(own) and number not in there:
            mark = "NOT on disk"
        else:
            mark, part = "PARTLY on disk", _part(disk, own, lost)
        what = f"#{number} {describe_operation(operation)}{part}"
        yield f"    {mark:>14}  {what}  {place(operation.site)}"
    if len(shown) > _SHOWN:
        yield f"                    … and {len(shown) - _SHOWN} more operations"


def _part(disk: Disk, own: list[int], lost: list[int]) -> str:
    """Say which part of a write is there and which is not."""
    effects = disk.effects.effects
    grown = [e for e in own if effects[e].kind is Effect.RAISE]
    written = [e for e in own if effects[e].kind is Effect.DATA]
    lacking = [e for e in written if e in lost]
    if grown and written and not lacking and any(e in lost for e in grown):
        return " (its bytes, not its length)"
    if not lacking:
        return ""
    if grown and lacking == written:
        return " (its length, not its bytes)" if not any(e in lost for e in grown) else ""
    ranges = []
    for each in lacking[:3]:
        begin = effects[each].unit * disk.unit + effects[each].start
        ranges.append(f"{begin}..{begin + len(effects[each].data)}")
    return f" (without bytes {', '.join(ranges)}{'…' if len(lacking) > 3 else ''})"


def _tree(tree: Tree) -> Iterator[str]:
    rows = list(tree.walk())
    for name, _, node in rows[:_SHOWN]:
        path = printable(name)
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
