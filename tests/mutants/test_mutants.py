"""The suites bite: every mutant of the reference implementation is caught by its group.

A mutant that survives, or whose line is no longer there, fails the test; the score is printed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_statepersist.conformance import GROUPS
from tests.mutants.runner import STALE, mutated_source
from tests.mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent.parent
AT_ONCE = 2
SOAK = os.environ.get("STATEPERSIST_PROFILE") == "soak"
JUDGED = [number for number, mutant in enumerate(MUTANTS) if SOAK or not mutant.slow]


def test_there_are_enough_mutants_and_each_has_a_name_of_its_own() -> None:
    assert len(MUTANTS) >= 40
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert {mutant.group for mutant in MUTANTS} == set(GROUPS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_still_applies_and_compiles(mutant: Mutant) -> None:
    source = mutated_source(mutant)
    assert source is not None, f"{mutant.module} has no line {mutant.original!r}: {STALE}"
    compile(source, mutant.module, "exec")


def test_a_line_that_is_gone_is_noticed() -> None:
    assert mutated_source(Mutant("x", "atomic", "no such line", "pass", "", "", "")) is None


def test_every_mutant_is_caught_by_its_group(
    record_property: Callable[[str, object], None],
) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.runner", *map(str, numbers)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for numbers in (JUDGED[start::AT_ONCE] for start in range(AT_ONCE))
    ]  # fmt: skip
    lines = [line for worker in workers for line in worker.communicate()[0].splitlines()]
    answers = [json.loads(line) for line in lines]
    caught = Counter(answer["outcome"] for answer in answers)["caught"]
    left = f"; {len(MUTANTS) - len(JUDGED)} slow ones not run" if not SOAK else ""
    record_property(
        "mutants", f"{caught} of {len(JUDGED)} caught ({caught / len(JUDGED):.0%}){left}"
    )
    missed = [f"{a['name']}: {a['outcome']}, {a.get('why')}" for a in answers
              if a["outcome"] != "caught"]  # fmt: skip
    assert not missed, "\n".join(missed)
    assert {answer["name"] for answer in answers} == {MUTANTS[number].name for number in JUDGED}
