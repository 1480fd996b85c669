"""Prints the score of the mutants at the end of a run, also where workers ran them."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "mutants" and getattr(report, "when", "") == "call":
                    terminalreporter.line(f"mutants of the reference implementation: {value}")
