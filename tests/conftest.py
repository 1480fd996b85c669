"""Which tests run only in the soak profile: too long for every run, or not yet measured.

``STATEPERSIST_PROFILE=soak`` (``make soak``) runs them all.
"""

from __future__ import annotations

import os

import pytest

pytest_plugins = ["pytester"]

SOAK = (
    "tests/conformance/test_reference_stores.py",
    "tests/mutants/test_mutants.py::test_every_mutant_is_caught",
    "tests/reference/test_every_durable_operation.py",
    "tests/machines/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("STATEPERSIST_PROFILE") == "soak":
        return
    reason = "runs in the soak profile: STATEPERSIST_PROFILE=soak"
    for item in items:
        if item.nodeid.startswith(SOAK):
            item.add_marker(pytest.mark.skip(reason=reason))
