"""A report as JSON, for pipelines. Keys are only ever added while ``version`` stays the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pytest_statepersist.report.operations import describe_operation, place

if TYPE_CHECKING:
    from pytest_statepersist.findings import Finding, Report, Verdict

__all__ = ["as_json"]

_VERSION = 1


def as_json(report: Report) -> str:
    """Return the report as JSON text; ``null`` for a verdict means "not covered"."""
    data = {
        "version": _VERSION,
        "name": report.name,
        "safe": report.safe,
        "recorder": report.recorder,
        "operations": len(report.trace),
        "seconds": round(report.seconds, 3),
        "recoveries": report.runs,
        "warnings": list(report.warnings),
        "verdicts": [_verdict(verdict) for verdict in report.verdicts],
        "findings": [_finding(finding) for finding in report.findings],
    }
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "model": verdict.model,
        "atomic": verdict.atomic,
        "durable": verdict.durable,
        "complete": verdict.complete,
        "states": verdict.states,
        "coverage": verdict.coverage,
        "reason": verdict.reason,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "id": finding.id,
        "kinds": sorted(kind.value for kind in {finding.kind, *finding.kinds}),
        "cause": str(finding.cause),
        "site": None if finding.site is None else place(finding.site),
        "models": list(finding.models),
        "states": finding.count,
        "crash_point": finding.crash_point,
        "deviations": finding.deviations,
        "on_disk": [describe_operation(operation) for operation in finding.on_disk],
        "missing": [describe_operation(operation) for operation in finding.missing],
        "observed": str(finding.observed),
        "expected": finding.expected,
        "repairs": [
            [f"{describe_operation(line.call)} at {place(line.site)}" for line in repair.lines]
            for repair in finding.repairs
        ],
    }
