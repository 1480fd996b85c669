"""What an exploration is told beyond the subject, checked when it is said.

Belongs here: `Settings` and changing them for one call.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from pytest_statepersist.core.models import Model, get_models
from pytest_statepersist.errors import UserError
from pytest_statepersist.explorer.outcome import (
    UNSET,
)
from pytest_statepersist.explorer.search import Bounds


@dataclass(frozen=True, slots=True)
class Settings:
    """What an exploration is told beyond the subject; each can be overridden for one call.

    ``budget`` is a number of recoveries for each model, or seconds as text ("30s").
    ``time_limit`` is in seconds for one recovery, ``None`` for none. With ``repairs`` the sync
    calls that would remove the findings are searched and checked; with ``redundant_syncs`` those
    that could be left out.
    """

    model: str | Model | tuple[str | Model, ...] = "posix"
    budget: int | str = 10_000
    deviations: int = 2
    recovery_crashes: int = 1
    seed: int = 0
    recorder: str = "auto"
    time_limit: float | None = 10.0
    samples: int = 200
    workspace: str | None = None
    repairs: bool = True
    redundant_syncs: bool = False

    def __post_init__(self) -> None:
        several = isinstance(self.model, Iterable) and not isinstance(self.model, str)
        get_models(tuple(self.model) if several else (self.model,))  # type: ignore[arg-type]
        self.bounds()
        if self.recorder not in ("auto", "python", "strace"):
            raise UserError(
                f"recorder={self.recorder!r} is unknown; choose from 'auto', 'python', 'strace'"
            )
        for name in ("deviations", "recovery_crashes", "samples"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise UserError(f"{name}={value!r} cannot be: give a whole number from 0")
        if not isinstance(self.seed, int):
            raise UserError(f"seed={self.seed!r} cannot be: give a whole number")
        limit = self.time_limit
        if limit is not None and not (isinstance(limit, int | float) and 0 < limit < inf):
            raise UserError(
                f"time_limit={self.time_limit!r} cannot be: give seconds above 0, or None"
            )

    def bounds(self) -> Bounds:
        """Return the bounds of a search; raises `UserError` for a budget that cannot be."""
        budget = self.budget
        if isinstance(budget, str):
            text = budget.strip().lower().removesuffix("s").strip()
            try:
                seconds = float(text) if budget.strip().lower().endswith("s") else -1.0
                states = int(text) if seconds < 0 else 1 << 40
            except ValueError:
                raise UserError(
                    f"budget={budget!r} is neither a number of recoveries nor seconds like '30s'"
                ) from None
            if not seconds < 0:
                return self._bounds(1 << 40, seconds)
            budget = states
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise UserError(
                f"budget={self.budget!r} cannot be: give 1 or more recoveries, or '30s'"
            )
        return self._bounds(budget, None)

    def _bounds(self, states: int, seconds: float | None) -> Bounds:
        if seconds is not None and not 0 < seconds < inf:
            raise UserError(f"budget={self.budget!r} cannot be: give seconds above 0")
        return Bounds(states, seconds, self.deviations, self.samples, self.seed)


def changed_settings(settings: Settings, changes: dict[str, Any]) -> Settings:
    """Return settings with changes; ``None`` leaves one as it is, save ``time_limit=None``.

    Raises `UserError` for a name that is no setting and a value that cannot be.
    """
    known = Settings.__dataclass_fields__
    for name in changes:
        if name not in known:
            raise UserError(f"there is no setting {name!r}; there are {', '.join(known)}")
    given = {key: value for key, value in changes.items() if value is not None}
    if (
        "model" in given
        and isinstance(given["model"], Iterable)
        and not isinstance(given["model"], str)
    ):
        given["model"] = tuple(given["model"])
    if changes.get("time_limit", UNSET) is None:
        given["time_limit"] = None
    return replace(settings, **given) if given else settings
