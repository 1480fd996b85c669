"""Every broken store is caught, with its class and its line; every sound one passes.

The broken ones are the engine's canaries: each must be caught under each model that it lists, and
must pass under each that it does not. The sound ones are the opposite: one finding is a false
alarm.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pytest_statepersist import CrashSimulator
from tests.zoo.spec import ALL_MODELS, ZooSpec, bug_lines

ZOO = Path(__file__).parent
BROKEN = sorted((ZOO / "broken").glob("*.py"))
RECOVERY = sorted((ZOO / "recovery").glob("*.py"))
SOUND = sorted((ZOO / "sound").glob("*.py"))


@cache
def load(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"zoo_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def explore(spec: ZooSpec, **options: Any) -> Any:
    judged_by: dict[str, Any] = (
        {"invariant": spec.invariant}
        if spec.invariant is not None
        else {"before": spec.before, "after": spec.after}
    )
    return CrashSimulator().explore(
        setup=spec.setup,
        workload=spec.workload,
        recover=spec.recover,
        **judged_by,
        **{"model": list(ALL_MODELS), **options},
    )
