"""From the failures of an exploration to findings: diagnosed, confirmed, and alike ones counted.

Belongs here: what connects `core.diagnosis` with an engine that can run recovery. Rules:

1. Failures with the same signature (what failed how, which lines are missing, which line was last)
   are diagnosed once; the smallest stands for all.
2. Findings with the same cause at the same line are one finding with a count, and only those.
3. A finding in which recovery ran once is confirmed in a fresh process before it is reported.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.diagnosis import Diagnosis, diagnose
from pytest_statepersist.core.models import MODELS
from pytest_statepersist.explorer.engine import Engine
from pytest_statepersist.explorer.outcome import Expectation, Kind, same
from pytest_statepersist.explorer.search import Coverage, Failure, Step
from pytest_statepersist.findings import Finding, smallest_first

__all__ = ["Diagnoser"]

_ASKED_UP_TO = 500
"""Operations in a trace up to which each named model is asked whether it allows a disk."""
_DIAGNOSED = 60
"""Different signatures that are diagnosed for one model; the rest are counted as alike."""


class Diagnoser:
    """Explains failures by running recovery on their neighbours."""

    def __init__(self, engine: Engine, trace: op.Trace, expectation: Expectation) -> None:
        self.engine = engine
        self.trace = trace
        self.expectation = expectation
        self._known: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._merged: dict[tuple[Any, ...], Finding] = {}

    def findings(self, coverage: Iterable[Coverage]) -> tuple[Finding, ...]:
        """Return what the failures of all models come down to, smallest first."""
        for each in coverage:
            self._explain(each)
        found = (self._likely(each) for each in self._merged.values())
        return with_distinct_ids(smallest_first(found))

    def _likely(self, finding: Finding) -> Finding:
        """Say which of the named file systems allow this very disk, so that its odds are known."""
        if len(self.trace) > _ASKED_UP_TO or finding.failure.step is not None:
            return finding
        tree, point = finding.tree, finding.crash_point
        allowed = tuple(m.name for m in MODELS.values() if m.allows(self.trace, tree, at=point))
        models = tuple(dict.fromkeys((*finding.models, *allowed)))
        return replace(finding, models=models, allowed_by=allowed)

    def _explain(self, coverage: Coverage) -> None:
        # Each kind of failure has its share: the many of one must not hide the few of another.
        kinds = {failure.judgement.kind for failure in coverage.failures}
        share = max(1, _DIAGNOSED // max(1, len(kinds)))
        diagnosed = dict.fromkeys(kinds, 0)
        failures = sorted(coverage.failures, key=lambda f: (f.state.deviations, f.judgement.point))
        for failure in failures:
            signature = _signature(failure)
            key = self._known.get(signature)
            if key is not None:
                self._count(key, failure)
            elif diagnosed[failure.judgement.kind] < share:
                diagnosed[failure.judgement.kind] += 1
                self._known[signature] = self._add(self._finding(failure))

    def _count(self, key: tuple[Any, ...], failure: Failure) -> None:
        known = self._merged[key]
        models = tuple(dict.fromkeys((*known.models, failure.model.name)))
        self._merged[key] = replace(known, models=models, count=known.count + 1)

    def _add(self, finding: Finding) -> tuple[Any, ...]:
        """Keep a finding, or count it as one that is known; return its key."""
        key = (finding.cause, finding.failure.step is not None, finding.site or finding.culprit)
        known = self._merged.get(key)
        if known is None:
            self._merged[key] = finding
            return key
        smallest, other = smallest_first((known, finding))
        self._merged[key] = replace(
            smallest,
            models=tuple(dict.fromkeys((*known.models, *finding.models))),
            kinds=tuple(dict.fromkeys((*smallest.kinds, *other.kinds))),
            count=known.count + finding.count,
        )
        return key

    def _finding(self, failure: Failure) -> Finding:
        diagnosis = self._diagnose(failure)
        failure = self._reduced(failure, diagnosis)
        confirmed = self._confirm(failure)
        # A crash during recovery is explained by what recovery did.
        trace = self.trace if failure.step is None else failure.step.disk.trace
        operations = trace.operations
        culprit = operations[diagnosis.culprit] if diagnosis.culprit is not None else None
        site = culprit.site if culprit is not None else None
        kind = failure.judgement.kind
        return Finding(
            id="",
            kind=kind,
            cause=diagnosis.cause.value,
            site=site,
            models=(failure.model.name,),
            crash_point=failure.judgement.point,
            deviations=failure.state.deviations,
            on_disk=tuple(operations[n] for n in diagnosis.on_disk),
            missing=tuple(operations[n] for n in diagnosis.missing),
            observed=failure.outcome,
            expected=failure.judgement.expected,
            count=1,
            diagnosis=diagnosis,
            failure=failure,
            confirmed=confirmed,
            kinds=(kind,),
            culprit=culprit,
        )

    def _reduced(self, failure: Failure, diagnosis: Diagnosis) -> Failure:
        """Return the failure as the smallest history shows it: its state, point and outcome."""
        state, point, step = diagnosis.state, diagnosis.point, failure.step
        if step is not None:
            outcome = self.engine.nested(failure.disk, failure.state, step.disk, state).outcome
            return replace(failure, outcome=outcome, step=replace(step, state=state))
        outcome = self.engine.outcome(failure.disk, state).outcome
        judged = self.expectation.judge(outcome, [(point, point)], state.last)
        alike = [each for each in judged if each.kind is failure.judgement.kind]
        if not alike:  # the answer changes while it is looked at, as a lazy value's does
            return failure
        judgement = alike[0]
        return replace(failure, state=state, outcome=outcome, judgement=judgement)

    def _confirm(self, failure: Failure) -> bool | None:
        if failure.step is not None or self.engine.isolated:
            return None
        there = self.engine.confirm(failure.disk, failure.state)
        if there is None:
            return None
        if not same(there, failure.outcome):
            self.engine.isolate(
                f"on one disk recovery gave {failure.outcome} in this process and {there} in a "
                "fresh one"
            )
        return True

    def _diagnose(self, failure: Failure) -> Diagnosis:
        if failure.step is not None:
            return self._diagnose_recovery(failure, failure.step)
        judgement = failure.judgement

        def fails(state: CrashState, point: int) -> bool:
            if not any(begin <= point <= end for begin, end in state.points):
                return False
            outcome = self.engine.outcome(failure.disk, state).outcome
            found = self.expectation.judge(outcome, [(point, point)], state.last)
            return any(each.kind is judgement.kind for each in found)

        return diagnose(
            failure.disk,
            failure.state,
            judgement.point,
            fails,
            answered=failure.outcome.ok,
            lost=judgement.kind is Kind.DURABILITY,
        )

    def _diagnose_recovery(self, failure: Failure, step: Step) -> Diagnosis:
        """Diagnose the second crash in the trace of the recovery that it interrupted."""
        kind = failure.judgement.kind
        length = len(step.disk.trace)
        spans = step.state.points
        start = spans[-1][1] if step.kind is Kind.UNSTABLE else spans[0][0]

        def fails(state: CrashState, point: int) -> bool:
            if not any(begin <= point <= end for begin, end in state.points):
                return False
            outcome = self.engine.nested(failure.disk, failure.state, step.disk, state).outcome
            if step.kind is not None:
                assert step.first is not None
                return point >= length and not same(outcome, step.first)
            found = self.expectation.judge(outcome, failure.state.points, failure.state.last)
            return any(each.kind is kind for each in found)

        return diagnose(
            step.disk,
            step.state,
            start,
            fails,
            answered=step.outcome.ok,
            lost=step.kind is Kind.UNSTABLE,
            in_recovery=True,
        )


def _signature(failure: Failure) -> tuple[Any, ...]:
    """Return what failed and how, by lines: loops and models repeat the same story."""
    rows: list[Any] = [failure.judgement.kind, failure.outcome.ended, failure.step is not None]
    error = failure.outcome.error
    rows.append(type(error).__name__ if error is not None else None)
    rows.extend(_lines(failure.disk, failure.state, failure.judgement.point))
    if failure.step is not None:
        rows.append(failure.step.kind)
        rows.extend(_lines(failure.step.disk, failure.step.state, failure.step.state.points[0][0]))
    return tuple(rows)


def _lines(disk: Disk, state: CrashState, point: int) -> tuple[Any, ...]:
    effects, operations = disk.effects, disk.trace.operations

    def line(number: int) -> Any:
        if not 0 <= number < len(operations):
            return None
        return operations[number].site or number

    missing = frozenset(
        (line(effects.effects[index].operation), effects.effects[index].kind)
        for index in state.missing
    )
    absent = frozenset(
        line(number) for number in range(state.last + 1, point) if effects.of_operation[number]
    )
    return (missing, absent, line(state.last), line(point), len(state.ghosts), state.returned)


_PROJECT = ("pyproject.toml", "setup.py", "setup.cfg", "pytest.ini", "tox.ini", ".git")


def with_distinct_ids(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Give findings ids that stay when lines move, and when the project lies somewhere else.

    An id is made of the file's name in its project, the function, the cause, the kind, and what
    sort of operations is missing; of findings alike in all that, the n-th line is the n-th.
    """
    findings = tuple(findings)
    groups: dict[tuple[Any, ...], list[Finding]] = {}
    for finding in findings:
        groups.setdefault(_alike(finding), []).append(finding)
    ids: dict[int, str] = {}
    for key, group in groups.items():
        for number, finding in enumerate(sorted(group, key=_where)):
            text = repr((*key, number)).encode("utf-8", "surrogatepass")
            ids[id(finding)] = hashlib.sha256(text).hexdigest()[:8]
    return tuple(replace(finding, id=ids[id(finding)]) for finding in findings)


def _alike(finding: Finding) -> tuple[Any, ...]:
    site = finding.site
    return (
        finding.kind.value,
        finding.cause,
        finding.failure.step is not None,
        file_in_project(site.file) if site is not None else "",
        site.function if site is not None else "",
        tuple(sorted({type(operation).__name__ for operation in finding.missing})),
    )


def _where(finding: Finding) -> tuple[int, int]:
    return (finding.site.line if finding.site is not None else 0, finding.crash_point)


def file_in_project(file: str) -> str:
    """Return the name of a source file that is the same in every copy of its project."""
    for packages in ("site-packages", "dist-packages"):
        _, found, inside = file.rpartition(f"{os.sep}{packages}{os.sep}")
        if found:
            return inside.replace(os.sep, "/")
    directory = os.path.dirname(file)
    while directory and os.path.isabs(directory):
        if any(os.path.lexists(os.path.join(directory, name)) for name in _PROJECT):
            return os.path.relpath(file, directory).replace(os.sep, "/")
        parent = os.path.dirname(directory)
        if parent == directory:
            break
        directory = parent
    return os.path.basename(file)
