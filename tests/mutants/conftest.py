"""Prints the score of the mutants at the end of a run, also where workers ran them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mutants.forks import Forks


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Give the warm process that judges mutants; each worker has its own."""
    with Forks() as made:
        yield made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    cases: dict[str, list[bool]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                for key, value in report.user_properties:
                    if key == "mutant":
                        cases.setdefault(value, []).append(report.passed)
    if cases:
        caught = sum(all(passed) for passed in cases.values())
        looks = sum(map(len, cases.values()))
        terminalreporter.line(
            f"mutants of the reference implementation: {caught} of {len(cases)} caught "
            f"({caught / len(cases):.1%}), each by all that are meant for it ({looks} in all)"
        )
        for name, passed in cases.items():
            if not all(passed):
                terminalreporter.line(f"  not caught: {name}")
