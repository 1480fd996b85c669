"""Which tests run only in the soak profile; and where all is installed, nothing else is skipped.

``STATEPERSIST_PROFILE=soak`` (``make soak``) runs them all. ``.ci/run`` installs what tests need
and sets ``STATEPERSIST_SKIPS=refuse``: then a skip is a failure, unless the machine itself lacks
something, such as a kernel, a file system, or a package that is not made for it.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

pytest_plugins = ["pytester"]

SOAK = (
    "tests/conformance/test_reference_stores.py",
    "tests/mutants/test_mutants.py::test_mutant[",
    "tests/mutants/test_mutants.py::test_the_sound_store_passes",
)

REASON = "runs in the soak profile: STATEPERSIST_PROFILE=soak"
GIVEN = (
    REASON,
    "this kernel",
    "this file system",
    "the file system",
    "the C library here",
    "azure",
)
"""How the reasons begin that no installation can take away."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("STATEPERSIST_PROFILE") == "soak":
        return
    for item in items:
        if item.nodeid.startswith(SOAK):
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("STATEPERSIST_SKIPS") != "refuse" or not report.skipped:
        return report
    if hasattr(report, "wasxfail"):
        return report
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if not reason.removeprefix("Skipped: ").startswith(GIVEN):
        report.outcome = "failed"
        report.longrepr = f"skipped where everything is installed: {reason}"
    return report
