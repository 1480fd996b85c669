"""Which tests run only in the soak profile, in which order the others run, and what may be skipped.

``STATEPERSIST_PROFILE=soak`` (``make soak``) runs them all. ``.ci/run`` installs what tests need
and sets ``STATEPERSIST_SKIPS=refuse``: then a skip is a failure, unless the machine itself lacks
something, such as a kernel, a file system, or a package that is not made for it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from typing import Any

import pytest

pytest_plugins = ["pytester"]

SOAK = (
    # Of the file store: the same crashes as in others, judged by another question.
    *(
        f"tests/conformance/test_reference_stores.py::TestFileStore::{name}"
        for name in (
            "test_several_keys_survive",
            "test_a_crashed_save_of_several_keys_can_be_repeated",
            "test_each_of_several_saves_survives",
            "test_a_crashed_first_save_can_be_repeated",
        )
    ),
    "tests/conformance/test_reference_stores.py::TestEncryptedFileStore",
    "tests/conformance/test_reference_stores.py::TestLocalStorage",
    "tests/conformance/test_reference_stores.py::TestVault",
    "tests/conformance/test_reference_stores.py::TestDatabase",
    "tests/conformance/test_reference_stores.py::TestGroupStore",
    "tests/mutants/test_mutants.py::test_ordinary_unit_tests",
)

REASON = "runs in the soak profile: STATEPERSIST_PROFILE=soak"
FIRST = (
    "tests/recorders/test_strace_maps.py",
    "tests/plugin",
    "tests/test_concurrency.py",
    "tests/test_fault",
)
"""What forks, and what searches all that a process has loaded: both take the longer, the more that
is. What forks most is a run of its own, in the Makefile."""
LAST = ("tests/test_engines.py", "tests/reference/test_remote.py", "tests/core")
"""After what a process has most memory: large modules are imported, large tables are kept. At the
end stand small tests, so that no worker waits for another."""
GIVEN = (
    REASON,
    "FileStore does not declare",  # what a store does not promise is not asked of it
    "this kernel",
    "this file system",
    "the file system",
    "the C library here",
    "azure",
)
"""How the reasons begin that no installation can take away."""


def pytest_configure() -> None:
    # Thousands of tests are in memory all the time, and hold nothing that could be collected.
    gc.set_threshold(10_000, 50, 50)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.scheduling import Together

    config.option.loadscopereorder = False  # the order is chosen here
    return Together(config, log)


def place_of(nodeid: str) -> int:
    """Return where in the order a test stands: negative what comes first, positive what last."""
    if nodeid.startswith(FIRST):
        return -1
    return next((at for at, begin in enumerate(LAST, 1) if nodeid.startswith(begin)), 0)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place_of(item.nodeid))
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
