"""Find every crash, I/O error and act of tampering that can lose or corrupt what your app saved.

Names are resolved when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_statepersist.clock import StateClock
    from pytest_statepersist.core.by_hand import TraceByHand
    from pytest_statepersist.core.models import MODELS, Model, get_model
    from pytest_statepersist.core.operations import Trace
    from pytest_statepersist.core.redundancy import Redundancy
    from pytest_statepersist.core.repairs import Repair, RepairSearch
    from pytest_statepersist.core.tree import HardLink, Tree
    from pytest_statepersist.errors import (
        BlindSpot,
        BundleError,
        ClockClosed,
        ClockDeadlock,
        CrashConsistencyError,
        NotCovered,
        RecorderUnavailable,
        StatePersistError,
        TraceError,
        UserError,
    )
    from pytest_statepersist.explorer.outcome import Kind, raises
    from pytest_statepersist.fault_injector import FaultInjector
    from pytest_statepersist.faults.report import FaultFinding, FaultKind, FaultReport
    from pytest_statepersist.findings import Finding, Report, Verdict
    from pytest_statepersist.leaks import ModeEvent, Sealed
    from pytest_statepersist.replaying import replay_bundle
    from pytest_statepersist.simulator import CrashSimulator, Recording
    from pytest_statepersist.tamper import Damage, Sweep

__all__ = [
    "MODELS",
    "BlindSpot",
    "BundleError",
    "ClockClosed",
    "ClockDeadlock",
    "CrashConsistencyError",
    "CrashSimulator",
    "Damage",
    "FaultFinding",
    "FaultInjector",
    "FaultKind",
    "FaultReport",
    "Finding",
    "HardLink",
    "Kind",
    "ModeEvent",
    "Model",
    "NotCovered",
    "RecorderUnavailable",
    "Recording",
    "Redundancy",
    "Repair",
    "RepairSearch",
    "Report",
    "Sealed",
    "StateClock",
    "StatePersistError",
    "Sweep",
    "Trace",
    "TraceByHand",
    "TraceError",
    "Tree",
    "UserError",
    "Verdict",
    "get_model",
    "raises",
    "replay_bundle",
]

_WHERE = {
    "Damage": "tamper",
    "ModeEvent": "leaks",
    "Sealed": "leaks",
    "StateClock": "clock",
    "Sweep": "tamper",
    "FaultInjector": "fault_injector",
    "FaultFinding": "faults.report",
    "FaultKind": "faults.report",
    "FaultReport": "faults.report",
    "MODELS": "core.models",
    "Model": "core.models",
    "get_model": "core.models",
    "Trace": "core.operations",
    "TraceByHand": "core.by_hand",
    "HardLink": "core.tree",
    "Redundancy": "core.redundancy",
    "Repair": "core.repairs",
    "RepairSearch": "core.repairs",
    "Tree": "core.tree",
    "Kind": "explorer.outcome",
    "raises": "explorer.outcome",
    "Finding": "findings",
    "Report": "findings",
    "Verdict": "findings",
    "CrashSimulator": "simulator",
    "replay_bundle": "replaying",
    "Recording": "simulator",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"{__name__}.{_WHERE.get(name, 'errors')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
