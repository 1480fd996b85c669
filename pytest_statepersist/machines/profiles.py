"""How long machines look: `dev`, `ci` and `soak`.

Belongs here: the choice, and Hypothesis settings made of it. A profile changes how many examples
are tried, and whether they are the same each time; never what counts as right.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, settings

from pytest_statepersist.errors import UserError

__all__ = ["PROFILES", "VARIABLE", "Profile", "current"]

VARIABLE = "STATEPERSIST_PROFILE"
"""The environment variable that names the profile; `dev` where it is not set."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How many examples a machine tries, of how many steps; ``fixed`` tries the same each time."""

    name: str
    examples: int
    steps: int
    fixed: bool

    def settings(self, weight: float = 1.0) -> settings:
        """Return the settings for a machine whose examples cost ``1 / weight`` of the usual."""
        found = settings(
            max_examples=max(5, round(self.examples * weight)),
            stateful_step_count=self.steps,
            deadline=None,
            derandomize=self.fixed,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
        )
        return settings(found, database=None) if self.fixed else found


PROFILES = {
    "dev": Profile("dev", examples=60, steps=15, fixed=False),
    "ci": Profile("ci", examples=120, steps=20, fixed=True),
    "soak": Profile("soak", examples=5000, steps=40, fixed=False),
}


def current() -> Profile:
    """Return the profile that the environment names. Raises `UserError` for one that is none."""
    name = os.environ.get(VARIABLE) or "dev"
    if name not in PROFILES:
        raise UserError(f"{VARIABLE}={name} names no profile; choose from {', '.join(PROFILES)}")
    return PROFILES[name]
