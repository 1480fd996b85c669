"""What a failing history did to the disk, and why a crash broke it: text for `hypothesis.note`.

Belongs here: prose made of a `Past`, a crash and a diagnosis. It is made only where Hypothesis
shows it, since a diagnosis runs recovery many times.
"""

from __future__ import annotations

from collections.abc import Iterator

from pytest_statepersist.core.diagnosis import Judge, diagnose
from pytest_statepersist.core.effects import Kind as Effect
from pytest_statepersist.explorer.outcome import Judgement, Kind, Outcome
from pytest_statepersist.explorer.search import Failure
from pytest_statepersist.findings import Finding, Report
from pytest_statepersist.machines.lives import Past
from pytest_statepersist.report.operations import describe_operation, place
from pytest_statepersist.report.text import render_finding
from pytest_statepersist.strategies import Crash

__all__ = ["explanation", "timeline"]

_SHOWN = 40


def timeline(past: Past, crash: Crash) -> Iterator[str]:
    """Yield what happened on disk, rule by rule, up to the crash."""
    effects, state = crash.disk.effects, crash.state
    yield f"On disk, under {crash.model.name}:"
    starts = {mark.begin: [m for m in past.marks if m.begin == mark.begin] for mark in past.marks}
    for number, operation in enumerate(past.trace.operations[: crash.point + 1]):
        for mark in starts.get(number, ()):
            yield f"  {mark.label}"
        own = [
            e for e in effects.of_operation[number] if effects.effects[e].kind is not Effect.TIMES
        ]
        lost = [e for e in own if e in state.missing or number > state.last]
        if number == crash.point and len(lost) == len(own):
            break
        if number >= _SHOWN:
            yield f"    … {crash.point - number} more operations"
            break
        mark_text = "LOST" if own and len(lost) == len(own) else "PARTLY LOST" if lost else ""
        under_way = "  (under way)" if number == crash.point else ""
        yield (
            f"    {mark_text:>11}  #{number} {describe_operation(operation)}"
            f"  {place(operation.site)}{under_way}"
        )
    mark_now = past.mark_at(crash.point)
    where = f"during {mark_now.label}" if mark_now else "between two rules"
    yield f"  crash at {crash.point} of {len(past.trace)} operations, {where}"


def explanation(
    past: Past, crash: Crash, judge: Judge, observed: Outcome, kind: Kind
) -> Iterator[str]:
    """Yield the finding: the smallest history that fails alike, its cause, and what to do.

    ``judge`` runs recovery on a state of the same disk and says whether it fails alike.
    """
    found = diagnose(
        crash.disk, crash.state, crash.point, judge,
        answered=observed.ok, lost=kind is Kind.DURABILITY,
    )  # fmt: skip
    operations = past.trace.operations
    culprit = operations[found.culprit] if found.culprit is not None else None
    expected = str(past.expected_at(found.point))
    judgement = Judgement(kind, found.point, len(past.marks), expected)
    finding = Finding(
        id="machine",
        kind=kind,
        cause=found.cause.value,
        site=culprit.site if culprit is not None else None,
        models=(crash.model.name,),
        crash_point=found.point,
        deviations=found.state.deviations,
        on_disk=tuple(operations[n] for n in found.on_disk),
        missing=tuple(operations[n] for n in found.missing),
        observed=observed,
        expected=expected,
        count=1,
        diagnosis=found,
        failure=Failure(crash.model, crash.disk, found.state, observed, judgement),
        kinds=(kind,),
        culprit=culprit,
        no_sync_helps=found.in_order or None,
    )
    yield from render_finding(Report(past.trace, (finding,), ()), finding)
