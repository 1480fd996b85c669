"""Hypothesis machines that drive any store through its adapter, each for one kind of promise.

Belongs here: one module for each machine, a model in memory that says what must hold, and what the
machines share. Names are resolved when they are first used, so that the adapters of the reference
stores can be had without Hypothesis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_statepersist.machines.atomicity import AtomicityMachine
    from pytest_statepersist.machines.backup import BackupMachine
    from pytest_statepersist.machines.base import StoreMachine, replay_history
    from pytest_statepersist.machines.concurrency import ConcurrencyMachine
    from pytest_statepersist.machines.history import initialize, rule
    from pytest_statepersist.machines.integrity import IntegrityMachine
    from pytest_statepersist.machines.migration import MigrationMachine
    from pytest_statepersist.machines.retention import RetentionMachine
    from pytest_statepersist.machines.round_trip import RoundTripMachine

__all__ = [
    "MACHINES",
    "AtomicityMachine",
    "BackupMachine",
    "ConcurrencyMachine",
    "IntegrityMachine",
    "MigrationMachine",
    "RetentionMachine",
    "RoundTripMachine",
    "StoreMachine",
    "initialize",
    "replay_history",
    "rule",
]

_WHERE = {
    "RoundTripMachine": "round_trip",
    "AtomicityMachine": "atomicity",
    "RetentionMachine": "retention",
    "IntegrityMachine": "integrity",
    "BackupMachine": "backup",
    "MigrationMachine": "migration",
    "ConcurrencyMachine": "concurrency",
}
MACHINES = tuple(_WHERE)
"""The names of all machines."""
_BESIDE = {
    "StoreMachine": "base",
    "initialize": "history",
    "replay_history": "base",
    "rule": "history",
}


def __getattr__(name: str) -> Any:
    where = _WHERE.get(name) or _BESIDE.get(name)
    if where is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{where}"), name)
