"""What an exploration says: findings, verdicts and the report that holds them.

Belongs here: the values that users and renderers read. No prose, no search, no files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pytest_statepersist.core.diagnosis import Diagnosis
from pytest_statepersist.core.models import get_model
from pytest_statepersist.core.operations import Operation, Site, Trace
from pytest_statepersist.core.redundancy import Redundancy
from pytest_statepersist.core.repairs import Repair, RepairSearch
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.errors import CrashConsistencyError, NotCovered
from pytest_statepersist.explorer.outcome import Kind, Outcome
from pytest_statepersist.explorer.search import Coverage, Failure

__all__ = ["Finding", "Report", "Verdict"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one model says: True, False, or ``None`` for "not covered".

    ``complete`` is whether every state was covered, at least up to the bound on deviations;
    ``states`` counts the classes of crash states that a recovery could tell apart.
    """

    model: str
    atomic: bool | None
    durable: bool | None
    complete: bool
    states: int
    coverage: str = ""
    reason: str = ""
    asked: bool = True
    """Not so for ``durable`` where the invariant takes a lost save for a kept one."""

    def __str__(self) -> str:
        words = {True: "yes", False: "NO", None: "not covered"}
        durable = words[self.durable] if self.asked else "not asked"
        text = f"{self.model}: atomic {words[self.atomic]}, durable {durable}"
        told = self.reason and self.reason not in self.coverage
        return f"{text} ({self.coverage}{'; ' + self.reason if told else ''})"


@dataclass(frozen=True, slots=True)
class Finding:
    """One way in which a crash breaks the subject: the smallest history that shows it.

    ``models`` allow this disk, or one with the same cause at the same lines. ``count`` states have
    the same cause at the same lines, and show it as one of ``kinds``, of which ``kind`` is the
    smallest's. ``on_disk``
    and ``missing`` are operations that matter: those that reached the disk, those that had to and
    did not. ``crash_point`` counts the operations that had returned.
    """

    id: str
    kind: Kind
    cause: str
    site: Site | None
    models: tuple[str, ...]
    crash_point: int
    deviations: int
    on_disk: tuple[Operation, ...]
    missing: tuple[Operation, ...]
    observed: Outcome
    expected: str
    count: int
    diagnosis: Diagnosis
    failure: Failure = field(repr=False, compare=False)
    confirmed: bool | None = None
    kinds: tuple[Kind, ...] = ()
    culprit: Operation | None = None
    repairs: tuple[Repair, ...] = ()
    """Of each repair of the whole report the lines that this finding needs."""
    repaired_under: tuple[str, ...] = ()
    """The models under which the repairs were checked; under others they may not be enough."""
    no_sync_helps: bool | None = None
    """True: a plain stop of the program leaves this disk, whatever is synced; None: unknown."""
    allowed_by: tuple[str, ...] = ()
    """The named models that allow this very disk, asked for or not; empty for a very long trace."""
    bundle: str = ""
    """The id, or outside pytest the file, of the bundle that replays it; "" where none is kept."""
    accepted: str | None = None
    """The note of a baseline that accepts it, perhaps empty; None: it is not accepted."""

    @property
    def tree(self) -> Tree:
        """The disk that recovery saw."""
        return self.failure.disk.tree(self.failure.state)

    def __str__(self) -> str:
        where = f" at {self.site}" if self.site else ""
        return f"[{self.id}] {self.kind.value}: {self.cause}{where}"


_OPEN = (
    "Nothing was found, but not all that was asked was looked at, so this does not pass. What to "
    "do: the verdict says what stopped it. A budget: raise budget=, or lower deviations=. A "
    "recovery that gives the same before and after: return what was loaded. Native code: "
    "recorder='strace'. To go on without an answer, call explore(), which returns this report, and "
    "its raise_for_findings()."
)


@dataclass(frozen=True, slots=True)
class Report:
    """The result of an exploration under one or more models."""

    trace: Trace
    findings: tuple[Finding, ...]
    verdicts: tuple[Verdict, ...]
    coverage: tuple[Coverage, ...] = field(default=(), repr=False)
    recorder: str = "python"
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    runs: int = 0
    name: str = ""
    repair_runs: int = 0
    redundant_syncs: tuple[Redundancy, ...] = ()
    """Model by model, recorded sync calls that could go; empty where that was not asked for."""
    repair_search: RepairSearch | None = None
    """The search for sync calls that repair this; ``None`` where it was not asked for."""
    before: str = ""
    after: str = ""
    """What recovery was expected to give before and after the workload, in words."""
    sources: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """The functions that were given, as another test would write them; see `callables`."""

    @property
    def repairs(self) -> tuple[Repair, ...]:
        """Sets of sync calls with which no finding is left that a sync can remove, cheapest first.

        Each was explored like the recorded trace. Empty where none is needed, or none was found.
        """
        return self.repair_search.repairs if self.repair_search is not None else ()

    def verdict(self, model: str) -> Verdict:
        """Return the verdict of a model; raises `UserError` for one that is unknown or not run."""
        for verdict in self.verdicts:
            if verdict.model == model:
                return verdict
        return Verdict(
            get_model(model).name, None, None, False, 0, "not run", "this model was not asked for"
        )

    @property
    def states_checked(self) -> int:
        """Classes of crash states that were judged, over all models."""
        return sum(verdict.states for verdict in self.verdicts)

    @property
    def safe(self) -> bool:
        """Whether every model said yes to both questions; "not covered" is not safe."""
        return bool(self.verdicts) and all(v.atomic and v.durable for v in self.verdicts)

    def raise_for_findings(self) -> None:
        """Raise `CrashConsistencyError` where there is a finding that no baseline accepts."""
        __tracebackhide__ = True  # pytest then shows the test's own line
        if any(finding.accepted is None for finding in self.findings):
            raise CrashConsistencyError(str(self), self)

    def raise_where_not_covered(self) -> None:
        """Raise `NotCovered` where no finding says no, and something keeps a model from a yes."""
        __tracebackhide__ = True
        if any(v.atomic is None or (v.durable is None and v.asked) for v in self.verdicts):
            raise NotCovered(f"{self}\n{_OPEN}", self)

    def __str__(self) -> str:
        from pytest_statepersist.report.text import render

        return render(self)


def smallest_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort findings: fewest deviations, no ghosts, earliest point, fewest operations."""

    def size(finding: Finding) -> tuple[object, ...]:
        state = finding.diagnosis.state
        ghosts = len(state.ghosts) + (state.returned is not None)
        matter = len(finding.missing) + len(finding.on_disk)
        # Of equally small ones the one that most states show comes first.
        return (finding.deviations, ghosts, finding.crash_point, matter, -finding.count, finding.id)

    return tuple(sorted(findings, key=size))
