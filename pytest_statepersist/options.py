"""What pytest was told about exploring crashes, and where the results are collected.

Belongs here: reading ini settings, options and markers into settings of a `CrashSimulator`.
"""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["CURRENT", "MARKER_KEYWORDS", "REPORTS", "settings_for"]

REPORTS: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()
"""Explorations of this run as plain data, see `report.data`."""
CURRENT: pytest.StashKey[pytest.Item] = pytest.StashKey()
"""The test that runs."""
MARKER_KEYWORDS = (
    "model",
    "budget",
    "seed",
    "deviations",
    "recovery_crashes",
    "recorder",
    "time_limit",
    "repairs",
    "redundant_syncs",
)
_BY_MARKER_ONLY = frozenset({"repairs", "redundant_syncs"})


def settings_for(config: pytest.Config, node: pytest.Item | None) -> dict[str, Any]:
    """Return the settings for a test: ini, then options, then the closest marker."""
    found: dict[str, Any] = {}
    numbers = {"seed": int, "deviations": int, "recovery_crashes": int, "time_limit": float}
    for name in ("workspace", *MARKER_KEYWORDS):
        if name in _BY_MARKER_ONLY:
            continue
        text = config.getini(f"statepersist_{name}")
        if text:
            found[name] = _number(name, text, numbers[name]) if name in numbers else text
    for name in ("model", "budget", "seed", "deviations"):
        value = config.getoption(f"--statepersist-{name}")
        if value is not None:
            found[name] = value
    if node is not None:
        for mark in reversed(list(node.iter_markers("statepersist"))):
            found.update(mark.kwargs)
    if isinstance(found.get("model"), str):
        found["model"] = _models(found["model"])
    if isinstance(found.get("budget"), str) and found["budget"].isdigit():
        found["budget"] = int(found["budget"])
    return found


def _number(name: str, text: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(text)
    except ValueError:
        raise pytest.UsageError(f"statepersist_{name} = {text!r} is not a number") from None


def _models(text: str) -> tuple[str, ...]:
    if text.strip() == "all":
        from pytest_statepersist.core.models import MODELS

        return tuple(MODELS)
    return tuple(name.strip() for name in text.split(",") if name.strip())
