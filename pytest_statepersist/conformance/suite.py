"""The suite that users inherit: all groups, one fixture to override, one to work on.

Belongs here: how pytest meets the groups: skipping what a store does not promise, expecting what
its list says, and giving each test a bench.
"""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from pytest_statepersist import matrix
from pytest_statepersist.adapter import StoreAdapter
from pytest_statepersist.conformance.atomic import AtomicConformance
from pytest_statepersist.conformance.backup import BackupConformance
from pytest_statepersist.conformance.bench import Bench
from pytest_statepersist.conformance.concurrency import ConcurrencyConformance
from pytest_statepersist.conformance.durable import DurableConformance
from pytest_statepersist.conformance.encryption import EncryptionConformance
from pytest_statepersist.conformance.errors import FaultConformance
from pytest_statepersist.conformance.migration import MigrationConformance
from pytest_statepersist.conformance.needs import choice_of, needs_of
from pytest_statepersist.conformance.permissions import PermissionConformance
from pytest_statepersist.conformance.recovery import RecoveryConformance
from pytest_statepersist.conformance.retention import RetentionConformance
from pytest_statepersist.conformance.round_trip import RoundTripConformance
from pytest_statepersist.conformance.xfails import read_xfails
from pytest_statepersist.errors import UserError

__all__ = ["GROUPS", "StoreConformance", "adapter_of", "all_test_ids", "names_of"]

GROUPS: dict[str, type] = {
    "round_trip": RoundTripConformance,
    "atomic": AtomicConformance,
    "durable": DurableConformance,
    "recovery": RecoveryConformance,
    "faults": FaultConformance,
    "permissions": PermissionConformance,
    "concurrency": ConcurrencyConformance,
    "retention": RetentionConformance,
    "encryption": EncryptionConformance,
    "backup": BackupConformance,
    "migration": MigrationConformance,
}
"""The groups by name, in the order in which a store is best improved."""


class StoreConformance(
    RoundTripConformance,
    AtomicConformance,
    DurableConformance,
    RecoveryConformance,
    FaultConformance,
    PermissionConformance,
    ConcurrencyConformance,
    RetentionConformance,
    EncryptionConformance,
    BackupConformance,
    MigrationConformance,
):
    """Inherit, override ``store``, and every promise of your store is tested.

    ``xfails`` is the path of a list of known failures, relative to the test file; the ini setting
    ``statepersist_xfails`` does the same for all suites.
    """

    xfails: ClassVar[str | os.PathLike[str] | None] = None

    @pytest.fixture
    def store(self) -> StoreAdapter:
        """Return an adapter of your store, its class, or a function that makes one."""
        raise UserError(
            f"{type(self).__name__} has to override the fixture `store`: return a StoreAdapter, "
            "which says how your store is opened, written and read"
        )

    @pytest.fixture
    def bench(self, request: pytest.FixtureRequest, store: object) -> Iterator[Bench]:
        """Give a bench on the store; not to be overridden."""
        from pytest_statepersist.options import settings_for

        adapter = adapter_of(store)
        test = request.function.__name__
        choice = choice_of(request.function)
        chosen = [name for name in choice if adapter.has(name)]
        needed = (*needs_of(request.function), *chosen)
        expected = self._expected_failures(request).get(test)
        absent = [name for name in needed if not adapter.has(name)]
        reason = adapter.lacks(*needed)
        if choice and not chosen:
            absent += choice
            reason = reason or f"{adapter.name} does not declare {' or '.join(choice)}"
        if reason is not None:
            matrix.not_declared(adapter, test, absent, reason)
            if expected is not None:
                pytest.fail(f"{test} is listed as failing, but {reason}: take its line out", False)
            pytest.skip(reason)
        matrix.about_to_test(adapter, test, needed)
        if expected is not None:
            request.applymarker(pytest.mark.xfail(reason=expected, strict=True))
        root = Path(tempfile.mkdtemp(prefix="statepersist-", dir=_in_memory()))
        try:
            yield Bench(adapter, root, settings_for(request.config, request.node))
        finally:
            shutil.rmtree(root, ignore_errors=True)

    def _expected_failures(self, request: pytest.FixtureRequest) -> dict[str, str]:
        known = all_test_ids(type(self))
        found: dict[str, str] = {}
        ini = request.config.getini("statepersist_xfails")
        if ini:
            path = request.config.rootpath / ini
            found.update(read_xfails(path, type(self).__name__, known))
        if self.xfails is not None:
            path = Path(inspect.getfile(type(self))).parent / self.xfails
            found.update(read_xfails(path, type(self).__name__, known))
        return found


def adapter_of(store: object) -> StoreAdapter:
    """Return the adapter that a ``store`` fixture gave: itself, or what its call returns."""
    made = store() if callable(store) else store
    if isinstance(made, StoreAdapter):
        return made
    raise UserError(
        f"the fixture `store` gave {made!r}; return a StoreAdapter, its class, or a function that "
        "makes one"
    )


def names_of(group: type) -> list[str]:
    """Return the names of the tests of one group, in the order in which they stand."""
    return [name for name in vars(group) if name.startswith("test_")]


def all_test_ids(suite: type = StoreConformance) -> list[str]:
    """Return the names of all tests of a suite, group by group."""
    names = [name for group in GROUPS.values() for name in names_of(group)]
    own = [name for name in dir(suite) if name.startswith("test_")]
    return names + [name for name in own if name not in names]


def _in_memory() -> str | None:
    shared = "/dev/shm"
    return shared if os.path.isdir(shared) and os.access(shared, os.W_OK | os.X_OK) else None
