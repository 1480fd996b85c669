"""A report as plain data: what JSON files, distributed runs and annotations are made of.

Belongs here: the versioned shape of that data. Only strings, numbers, lists and dicts; nothing that
needs the package to be read.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pytest_statepersist.report.operations import describe_operation, place

if TYPE_CHECKING:
    from pytest_statepersist.checked import Checked, CheckedFinding
    from pytest_statepersist.core.operations import Operation
    from pytest_statepersist.findings import Finding, Report, Verdict

__all__ = ["VERSION", "as_check", "as_data", "as_json", "check_as_json", "document"]

VERSION = 1
"""Raised when a key changes its meaning or goes; new keys do not raise it."""


def as_data(name: str, report: Report) -> dict[str, Any]:
    """Return one exploration as data under the name of its test."""
    return {
        "name": name,
        "safe": report.safe,
        "recorder": report.recorder,
        "operations": len(report.trace),
        "recoveries": report.runs,
        "seconds": round(report.seconds, 3),
        "warnings": list(report.warnings),
        "verdicts": [_verdict(verdict) for verdict in report.verdicts],
        "findings": [_finding(finding) for finding in report.findings],
    }


def as_json(report: Report) -> str:
    """Return one report as JSON text; ``null`` for a verdict means "not covered"."""
    data = {"version": VERSION, **as_data(report.name, report)}
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def as_check(name: str, checked: Checked) -> dict[str, Any]:
    """Return one check that is no exploration as data, under the name of its test.

    "ok" is ``null`` where it is not covered; "check" is one of the values of `Check`.
    """
    return {
        "name": name,
        "check": checked.check.value,
        "ok": checked.ok,
        "cases": checked.cases,
        "coverage": checked.coverage,
        "seed": checked.seed,
        "seconds": round(checked.seconds, 3),
        "not_covered": list(checked.not_covered),
        "warnings": list(checked.warnings),
        "findings": [_checked(finding) for finding in checked.findings],
    }


def check_as_json(checked: Checked) -> str:
    """Return one such check as JSON text."""
    data = {"version": VERSION, **as_check(checked.name, checked)}
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def _checked(finding: CheckedFinding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "file": finding.site.file if finding.site else None,
        "line": finding.site.line if finding.site else None,
        "observed": finding.observed,
        "expected": finding.expected,
        "count": finding.count,
        "confirmed": finding.confirmed,
        "text": finding.text,
    }


def document(
    explorations: list[dict[str, Any]], checks: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Return what ``--statepersist-json`` writes: explorations, and every other check."""
    checks = checks or []
    findings = sum(len(each["findings"]) for each in [*explorations, *checks])
    verdicts = [verdict for each in explorations for verdict in each["verdicts"]]
    not_covered = sum(v["atomic"] is None or v["durable"] is None for v in verdicts)
    not_covered += sum(each["ok"] is None for each in checks)
    return {
        "version": VERSION,
        "tool": "pytest-statepersist",
        "explorations": explorations,
        "checks": checks,
        "totals": {
            "explorations": len(explorations),
            "checks": len(checks),
            "findings": findings,
            "verdicts": len(verdicts),
            "not_covered": not_covered,
        },
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "model": verdict.model,
        "atomic": verdict.atomic,
        "durable": verdict.durable,
        "complete": verdict.complete,
        "states": verdict.states,
        "coverage": verdict.coverage,
        "reason": verdict.reason,
        "text": str(verdict),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    where = f" at {place(finding.site)}" if finding.site else ""
    return {
        "id": finding.id,
        "kind": finding.kind.value,
        "cause": finding.cause,
        "file": finding.site.file if finding.site else None,
        "line": finding.site.line if finding.site else None,
        "models": list(finding.models),
        "allowed_by": list(finding.allowed_by),
        "crash_point": finding.crash_point,
        "deviations": finding.deviations,
        "count": finding.count,
        "observed": str(finding.observed),
        "expected": finding.expected,
        "confirmed": finding.confirmed,
        "missing": [_operation(each) for each in finding.missing],
        "on_disk": [_operation(each) for each in finding.on_disk],
        "repairs": [
            [f"{describe_operation(line.call)} at {place(line.site)}" for line in repair.lines]
            for repair in finding.repairs
        ],
        "repaired_under": list(finding.repaired_under),
        "kinds": [kind.value for kind in finding.kinds],
        "no_sync_helps": finding.no_sync_helps,
        "bundle": finding.bundle,
        "accepted": finding.accepted,
        "text": f"[{finding.id}] {finding.kind.value}: {finding.cause}{where}",
    }


def _operation(operation: Operation) -> dict[str, Any]:
    site = operation.site
    return {
        "call": describe_operation(operation),
        "file": site.file if site else None,
        "line": site.line if site else None,
    }
