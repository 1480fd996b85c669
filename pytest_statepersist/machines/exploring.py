"""A life that a crash ended badly, explored in full: its findings, their repairs, and the prose.

Belongs here: what happens once, for the smallest failing history: the crash engine looks at every
crash of that life, so that the reader gets a cause, a checked repair and a disk to replay, and not
only the one crash that was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_statepersist.core.models import Model
from pytest_statepersist.core.operations import Acknowledgement
from pytest_statepersist.explorer.outcome import Kind
from pytest_statepersist.explorer.workplace import Workplace
from pytest_statepersist.findings import Finding, Report
from pytest_statepersist.machines import kept
from pytest_statepersist.machines.base import Content
from pytest_statepersist.machines.expected import Expected
from pytest_statepersist.machines.lives import Past
from pytest_statepersist.machines.timeline import timeline
from pytest_statepersist.recording import Recorded
from pytest_statepersist.report.text import render_finding
from pytest_statepersist.simulator import Recording
from pytest_statepersist.strategies import Crash

__all__ = ["Promise", "explored", "told"]


@dataclass(frozen=True, slots=True)
class Promise:
    """What may be found from one moment of a life on, as the engine is told of it."""

    label: str
    expected: Expected

    def __repr__(self) -> str:
        return self.label


def explored(
    past: Past,
    model: Model,
    *,
    name: str,
    recover: Callable[[Any], Content],
    directory: Path,
    aside: Path,
    time_limit: float | None,
) -> Report:
    """Explore every crash of a life, at the path at which it was lived."""
    promises = [(0, Promise("the start", past.before))]
    for mark in past.marks:
        promises.append((mark.begin, Promise(f"{mark.label} began", mark.during)))
        promises.append((mark.end, Promise(mark.label, mark.after)))
    marks = tuple(Acknowledgement(at, repr(promise)) for at, promise in promises)
    recorded = Recorded(
        replace(past.trace, acknowledgements=marks), tuple(promises), "python", "python"
    )
    place = Workplace(str(directory), str(aside))
    with kept.exploring() as simulator:
        recording = Recording(simulator, directory, place, simulator.settings)
        recording.recorded = recorded
        return recording.explore(
            recover=recover, invariant=what_the_rules_promised, name=name, place=place,
            model=model, budget="20s", time_limit=time_limit,
        )  # fmt: skip


def what_the_rules_promised(recovered: Content, promises: tuple[Promise, ...]) -> bool:
    """Say whether recovery gave what the rules that had ended, or were running, allow."""
    return not promises or promises[-1].expected.allows(recovered)


def told(past: Past, report: Report, kind: Kind) -> tuple[Finding | None, Iterator[str]]:
    """Return the finding that is like the failure, and the words for it and those beside it."""
    alike = [each for each in report.findings if kind in (each.kind, *each.kinds)]
    if not alike:
        return None, iter(())
    found = alike[0]
    step = found.failure.step
    state, point = (
        (found.diagnosis.state, found.diagnosis.point)
        if step is None
        else (found.failure.state, found.crash_point)
    )
    crash = Crash(found.failure.disk, state, point)
    shown = replace(found, expected=str(past.expected_at(found.crash_point)))

    def words() -> Iterator[str]:
        yield from timeline(past, crash)
        yield from render_finding(report, shown)
        others = [each for each in report.findings if each is not found]
        if others:
            yield "The same history breaks in other ways too:"
            yield from (f"  {each}" for each in others)

    return shown, words()


