"""The machines and suites bite: each mutant is caught by all that are meant for it.

The score is printed at the end of the run. A mutant that survives, that fails for another reason
than the table says, or whose line is not there exactly once, fails its test. The sound stores pass
the same tests and machines: without that a score would mean nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import pytest

from pytest_statepersist.conformance import GROUPS
from pytest_statepersist.machines import MACHINES
from tests.mutants.forks import Forks
from tests.mutants.judge import Target
from tests.mutants.mutation import Change, NoSuchLine, apply, changed_source, path_of
from tests.mutants.table import MUTANTS, Caught, Mutant

SOAK = os.environ.get("STATEPERSIST_PROFILE") == "soak"
FEW = 6
CASES = [(mutant, caught) for mutant in MUTANTS for caught in mutant.caught]
TARGETS = sorted({caught.target for _, caught in CASES}, key=str)


def test_there_are_enough_mutants_that_the_unit_tests_do_not_notice() -> None:
    assert sum(not mutant.noticed for mutant in MUTANTS) >= 40
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.caught for mutant in MUTANTS)


def test_every_group_and_every_machine_has_its_mutants() -> None:
    looking = {target.by.partition("/")[0] for target in TARGETS}
    assert looking == {*GROUPS, *MACHINES}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_still_applies_and_compiles(mutant: Mutant) -> None:
    compile(changed_source(mutant.change), str(path_of(mutant.change)), "exec")


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("atomic.write_atomic", "no such line"),
        ("atomic.write_atomic", "_discard(temporary)"),  # twice
        ("atomic.no_such_function", "pass"),
    ],
)
def test_a_line_that_is_not_there_exactly_once_is_noticed(where: str, line: str) -> None:
    with pytest.raises(NoSuchLine):
        changed_source(Change(where, line, "pass"))


def test_a_change_that_changes_nothing_is_refused() -> None:
    line = "fsync_directory(target.parent)"
    with pytest.raises(ValueError, match="changes nothing"):
        apply(Change("atomic.write_atomic", line, line))


@pytest.mark.parametrize(
    ("mutant", "caught"), CASES, ids=[f"{m.name}: {c.target}" for m, c in CASES]
)
def test_mutant(
    mutant: Mutant, caught: Caught, forks: Forks, record_property: Callable[[str, object], None]
) -> None:
    record_property("mutant", mutant.name)
    verdict = forks.judge(mutant.change, caught.target)
    assert verdict.outcome == "failed", f"{verdict.outcome}: {verdict.message}"
    assert re.fullmatch(caught.at, verdict.test), f"it was {verdict.test} that failed"
    assert re.search(caught.why, verdict.message, re.DOTALL), (
        f"it failed for another reason than {caught.why!r}:\n{verdict.message}"
    )


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_sound_store_passes(target: Target, forks: Forks) -> None:
    """Machines look at a few examples, at all of the ci profile in the soak profile."""
    verdict = forks.judge(None, target, examples=None if SOAK else FEW)
    assert verdict.outcome == "passed", f"{verdict.test}: {verdict.message}"
