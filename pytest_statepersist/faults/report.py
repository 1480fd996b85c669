"""What a sweep of faults found: data, and the few sentences in which it is shown.

Belongs here: `FaultFinding`, `FaultReport`. What is right and wrong is judged elsewhere.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from pytest_statepersist.checked import Check, Checked, CheckedFinding
from pytest_statepersist.errors import CrashConsistencyError, NotCovered
from pytest_statepersist.faults.calls import FaultSite, Operation
from pytest_statepersist.faults.inject import Fault

__all__ = ["FaultFinding", "FaultKind", "FaultReport"]


class FaultKind(enum.Enum):
    """What is wrong after a call failed."""

    SILENT = "silent loss"
    """The workload reported no error, and what it saved is not there."""
    MIXTURE = "mixture"
    """Recovery gave something that is neither what was there before nor what was being saved."""
    UNRECOVERABLE = "unrecoverable"
    """Recovery raised after the fault was gone."""
    HANG = "hang"
    """The workload or the recovery did not end."""
    LOCKED = "left locked"
    """A lock was held after the error was reported, or a retry waited for ever."""
    RETRY = "retry fails"
    """With the fault gone, doing it again raised an error or did not save."""
    POWER_LOSS = "lost with the power"
    """A power failure after the fault loses or corrupts what was saved."""
    WRONG_ANSWER = "wrong answer"
    """A recovery met the fault, and returned something wrong in place of an error."""
    DAMAGED = "damaged by recovery"
    """A recovery met the fault, and a later one without it no longer finds what was saved."""


@dataclass(frozen=True, slots=True)
class FaultFinding:
    """One way in which a failing call breaks the subject.

    ``errors`` are all that lead to it at the same line, ``count`` the cases; ``fault`` is the first
    of them. ``details`` are the findings of the power-loss exploration where there was one.
    """

    kind: FaultKind
    site: FaultSite
    fault: Fault
    errors: tuple[str, ...]
    observed: str
    expected: str
    count: int = 1
    confirmed: bool | None = None
    details: tuple[Any, ...] = field(default=(), repr=False, compare=False)

    @property
    def operation(self) -> Operation:
        """The kind of call that failed."""
        return self.site.operation

    @property
    def errno(self) -> str:
        """The name of the error of the first case."""
        return self.fault.error

    @property
    def title(self) -> str:
        """What is wrong and which call failed, in one line."""
        lasting = ", from there on" if self.fault.persistent else ""
        during = "" if self.fault.phase == "workload" else f" during {self.fault.phase}"
        return f"{self.kind.value}: {'/'.join(self.errors)} from {self.site}{during}{lasting}"

    def __str__(self) -> str:
        lines = [
            self.title,
            f"  observed: {self.observed}",
            f"  expected: {self.expected}",
        ]
        if self.count > 1:
            lines.append(f"  in {self.count} cases")
        lines += [f"  {line}" for each in self.details[:1] for line in str(each).splitlines()]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class FaultReport:
    """The result of a sweep: how many cases ran, what was wrong, and what could not be seen."""

    cases: int
    sites: tuple[FaultSite, ...]
    findings: tuple[FaultFinding, ...]
    not_covered: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    states: int = 0
    """Power-loss states that were judged after faults."""
    seed: int = 0
    seconds: float = 0.0
    name: str = ""

    @property
    def ok(self) -> bool | None:
        """False with a finding, True without one; ``None`` where not all of it was covered."""
        if self.findings:
            return False
        return None if self.not_covered or not self.cases else True

    def raise_for_findings(self) -> None:
        """Raise `CrashConsistencyError` with all findings where there is one."""
        __tracebackhide__ = True  # pytest then shows the test's own line
        if self.findings:
            raise CrashConsistencyError(str(self), self)

    def raise_where_not_covered(self) -> None:
        """Raise `NotCovered` where there is no finding, and yet not all of it was covered."""
        __tracebackhide__ = True
        if self.ok is None:
            raise NotCovered(f"{self}\nsweep() gives the report, whatever it is.", self)

    @property
    def coverage(self) -> str:
        """How much was done, in words."""
        return (
            f"{self.cases:,} faults at {len(self.sites):,} calls, "
            f"{self.states:,} power-loss states"
        )

    def checked(self) -> Checked:
        """Return the result in the shape that every check has."""
        findings = tuple(
            CheckedFinding(
                each.kind.value,
                each.title,
                each.observed,
                each.expected,
                each.site.site,
                each.count,
                each.confirmed,
            )
            for each in self.findings
        )
        return Checked(
            Check.FAULTS,
            self.ok,
            self.cases,
            self.coverage,
            findings,
            self.not_covered,
            self.warnings,
            self.seed,
            self.seconds,
            self.name,
        )

    def __str__(self) -> str:
        found = f"{len(self.findings)} findings" if self.findings else "nothing found"
        head = f"{self.coverage}: {found}"
        lines = [head, *(str(each) for each in self.findings)]
        lines += [f"not covered: {each}" for each in self.not_covered]
        lines += [f"warning: {each}" for each in self.warnings]
        return "\n".join(lines)
