"""The machines and suites bite: each mutant is caught by what is meant for it.

In every run that is one look, by a machine where there is one; in the soak profile all of them.
Each look stops at its first failure, and begins where the mutant was seen before (`SEEDS`, the
first crash states); the look of the ci profile as it is follows, and in the soak profile is the
only one. The score is printed at the end of the run. A mutant that survives, that fails for another
reason than the table says, or whose line is not there exactly once, fails its test. The sound
stores pass the same tests and machines: without that a score would mean nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_statepersist.conformance import GROUPS
from pytest_statepersist.machines import MACHINES
from tests.conftest import REASON
from tests.conftest import SOAK as TOO_LONG
from tests.mutants.forks import Forks
from tests.mutants.judge import Target, Verdict
from tests.mutants.mutation import Change, NoSuchLine, apply, changed_source, path_of
from tests.mutants.seeds import FIRST, SEEDS
from tests.mutants.table import MUTANTS, UNSEEN, Caught, Mutant
from tests.mutants.unit_tests import files_of, is_ordinary, run

SOAK = os.environ.get("STATEPERSIST_PROFILE") == "soak"
FEW = 2
also = pytest.mark.skipif(not SOAK, reason=REASON)
ROOT = Path(__file__).parent.parent.parent
CASES = [(mutant, caught) for mutant in MUTANTS for caught in mutant.caught]
MEANT = {
    mutant.name: min(mutant.caught, key=lambda caught: "/" in caught.target.by)
    for mutant in MUTANTS
}
"""By whom each mutant is caught in every run: a machine, where one is meant for it."""
USED = {caught.target for caught in MEANT.values()}
TARGETS = sorted({caught.target for _, caught in CASES}, key=str)
SUITE = "FileStoreAdapter"
"""The store whose whole suite runs in tests/conformance/test_reference_stores.py."""
CONTROLS = [each for each in TARGETS if each.store != SUITE or "/" not in each.by]


def test_there_are_enough_mutants_that_the_unit_tests_do_not_notice() -> None:
    assert sum(not mutant.noticed for mutant in MUTANTS) >= 40
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.caught for mutant in MUTANTS)


def test_every_group_and_every_machine_has_its_mutants() -> None:
    looking = {target.by.partition("/")[0] for target in TARGETS}
    assert looking == {*GROUPS, *MACHINES}


def test_the_file_store_passes_its_whole_suite_elsewhere() -> None:
    """Each target that is no control here runs there, and is not expected to fail."""
    from tests.conformance.test_reference_stores import TestFileStore

    assert TestFileStore.xfails is None
    place = "tests/conformance/test_reference_stores.py::TestFileStore::"
    for target in set(TARGETS) - set(CONTROLS):
        name = target.by.partition("/")[2]
        assert hasattr(TestFileStore, name)
        assert not (place + name).startswith(TOO_LONG)


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
    ("mutant", "caught"),
    [
        pytest.param(m, c, id=f"{m.name}: {c.target}", marks=() if c is MEANT[m.name] else also)
        for m, c in CASES
    ],
)
def test_mutant(
    mutant: Mutant, caught: Caught, forks: Forks, record_property: Callable[[str, object], None]
) -> None:
    record_property("mutant", mutant.name)
    for look in looks(mutant, caught):
        verdict = forks.judge(mutant.change, caught.target, **look)
        if not why_not(verdict, caught):
            break
    assert not why_not(verdict, caught), f"{why_not(verdict, caught)}:\n{verdict.message}"


def looks(mutant: Mutant, caught: Caught) -> Iterator[dict[str, int]]:
    """Yield how to look: where it was seen before, and then as the ci profile does by itself."""
    if not SOAK and "/" in caught.target.by:
        yield from ({"recoveries": number} for number in (40, 400))
    elif not SOAK and (seed := SEEDS.get((mutant.name, str(caught.target)))) is not None:
        yield {"seed": seed, "examples": FIRST}
    yield {}


def why_not(verdict: Verdict, caught: Caught) -> str:
    if verdict.outcome != "failed":
        return verdict.outcome
    if not re.fullmatch(caught.at, verdict.test):
        return f"it was {verdict.test} that failed"
    if not re.search(caught.why, verdict.message, re.DOTALL):
        return f"it failed for another reason than {caught.why!r}"
    return ""


@pytest.mark.parametrize("change", [change for change, _ in UNSEEN.values()], ids=UNSEEN)
def test_what_nothing_catches_still_applies(change: Change) -> None:
    compile(changed_source(change), str(path_of(change)), "exec")


def test_without_authentication_every_bit_of_a_header_is_still_noticed() -> None:
    """Why that mutant is not caught: it breaks nothing that could be seen."""
    script = """
import dataclasses
from pytest_statepersist.reference.cipher import Cipher, KdfCost
from pytest_statepersist.reference.errors import PersistenceError
from tests.mutants.mutation import apply
from tests.mutants.table import UNSEEN
assert apply(UNSEEN["header unauthenticated"][0]) == 1
cheap = KdfCost(memory_kib=8, iterations=1, lanes=1)
for cipher in (Cipher(bytes(32)), Cipher.from_passphrase("word", cost=cheap)):
    sealed = cipher.encrypt(b"text", "place")
    for bit in range(52 * 8):
        if 8 * 9 <= bit < 8 * 13 and not cipher.__dict__["_passphrase"] is None:
            continue  # would ask for up to a GiB; the key would be another one all the same
        changed = bytearray(sealed)
        changed[bit >> 3] ^= 1 << (bit & 7)
        try:
            cipher.decrypt(bytes(changed), "place")
        except PersistenceError:
            continue
        raise SystemExit(f"bit {bit} was not noticed")
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_what_kills_or_watches_calls_is_no_ordinary_test() -> None:
    (file,) = files_of("atomic")
    assert is_ordinary(file, "test_writes_and_replaces")
    assert not is_ordinary(file, "test_syncs_the_data_before_the_rename_and_the_name_after_it")
    assert not is_ordinary(file, "test_a_kill_at_any_call_leaves_old_or_new")
    assert not is_ordinary(file, "test_modes_hold_from_the_first_instant")


@pytest.mark.parametrize("module", sorted({mutant.change.module for mutant in MUTANTS}))
def test_ordinary_unit_tests_pass(module: str) -> None:
    found = run(None, module)
    assert found["code"] == 0, found
    assert found["passed"], f"{module} has no ordinary unit tests"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_ordinary_unit_tests_on_a_mutant(mutant: Mutant) -> None:
    """They pass, or the table says which one does not."""
    failed = [each.partition("[")[0] for each in run(mutant.change, mutant.change.module)["failed"]]
    assert failed == ([mutant.noticed] if mutant.noticed else [])


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(each, id=str(each), marks=() if each in USED else also)
        for each in CONTROLS
    ],
)
def test_the_sound_store_passes(target: Target, forks: Forks) -> None:
    """Machines look at a few examples, at all of the ci profile in the soak profile."""
    verdict = forks.judge(None, target, examples=None if SOAK else FEW)
    assert verdict.outcome == "passed", f"{verdict.test}: {verdict.message}"
