"""What one case of a sweep is held against, and what it showed: data.

Belongs here: `Problem`, `Result`, `Reference`, the options of a sweep, and reading an outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pytest_statepersist.core.models import Model
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.explorer.outcome import (
    Expected,
    Outcome,
)
from pytest_statepersist.faults.calls import (
    Operation,
)
from pytest_statepersist.faults.report import FaultKind
from pytest_statepersist.programs import Answer

__all__ = ["FAR", "Options", "Problem", "Reference", "Result", "forget", "refused"]

FAR = 1 << 40
"""A crash point that no recording reaches."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong after a fault."""

    kind: FaultKind
    observed: str
    expected: str


@dataclass(frozen=True, slots=True)
class Result:
    """What one case showed. ``met`` is whether the fault happened at all."""

    met: bool
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    states: int = 0
    hung: bool = False
    late: bool = False
    """Whether some run did not end within its limit: a hang, or a machine that was busy."""

    @property
    def kinds(self) -> frozenset[FaultKind]:
        """What kinds of problem there are."""
        return frozenset(each.kind for each in self.problems)


@dataclass(slots=True)
class Reference:
    """What the runs without a fault gave: all that a case is held against."""

    base: Tree
    final: Tree
    before: Expected
    after: Expected
    acknowledged: tuple[Any, ...] = ()
    again: Expected | None = None
    """What recovery gives when the workload ran twice."""
    again_raises: bool = False
    demands_after: bool = False
    """Whether ``after`` was given: it counts beside an invariant as well."""
    left: frozenset[tuple[str, str]] = field(default_factory=frozenset)
    uses_sqlite: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a sweep, as `FaultInjector` describes them; checked when they are made."""

    errors: tuple[str, ...]
    operations: frozenset[Operation]
    persistent: tuple[bool, ...]
    recovery: bool
    models: tuple[Model, ...]
    deviations: int
    states: int
    time_limit: float
    cases: int
    seed: int
    workspace: str | None
    progress: Callable[[int, int], None] | None
    injection: str = "auto"


def refused(outcome: Outcome) -> bool:
    """Say whether a program's recovery said by its exit code that it could not load."""
    return isinstance(outcome.value, Answer) and outcome.value.code != 0


def forget(outcome: Outcome) -> None:
    """Let go of the frames that an exception holds, and of the files that are open in them."""
    error: BaseException | None = outcome.error
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
