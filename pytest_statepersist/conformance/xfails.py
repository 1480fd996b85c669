"""The list of tests that a store is known to fail, so that a suite can be adopted today.

Belongs here: reading the list. It is TOML: one table for each suite class, one line for each test
with the reason in words::

    [TestMyStore]
    test_the_first_save_survives = "issue 12: the directory is not synced"

A listed test that passes fails the run, and so does one that the store does not declare: the list
only ever shrinks.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

__all__ = ["read_xfails"]


def read_xfails(path: Path, suite: str, known: Collection[str]) -> Mapping[str, str]:
    """Return the listed tests of one suite with their reasons.

    Raises `pytest.UsageError` for a file that cannot be read, and for a test that is not in the
    suite: a typing error must not keep a test from being looked at.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise pytest.UsageError(f"statepersist_xfails: {path} cannot be read ({error})") from error
    listed = tables.get(suite, {})
    if not isinstance(listed, dict):
        raise pytest.UsageError(f"{path}: {suite} must be a table, [{suite}]")
    for name, reason in listed.items():
        if name not in known:
            raise pytest.UsageError(f"{path}: [{suite}] lists {name!r}, which is no test of it")
        if not isinstance(reason, str) or not reason.strip():
            raise pytest.UsageError(f"{path}: {name} needs its reason in words")
    return listed
