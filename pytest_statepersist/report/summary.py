"""The summary section: one line for each exploration and model, findings named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_statepersist.findings import Report

__all__ = ["summary_lines"]


def summary_lines(reports: Iterable[tuple[str, Report]]) -> Iterator[str]:
    """Yield the lines of the summary, in the order of the tests."""
    for name, report in reports:
        for verdict in report.verdicts:
            yield f"{name}: {verdict}"
        for finding in report.findings:
            yield f"  {finding}"
        for warning in report.warnings:
            yield f"  warning: {warning}"
