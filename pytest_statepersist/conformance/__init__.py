"""Conformance suites: inherit `StoreConformance`, say how your store is driven, read the result.

Belongs here: one module for each group of promises, one sentence in each test's docstring. The
names of the tests are part of the public interface: they are never changed, only added to.
"""

from __future__ import annotations

from pytest_statepersist.conformance.suite import GROUPS, StoreConformance

__all__ = ["GROUPS", "StoreConformance"]
