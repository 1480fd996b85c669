"""Every durable operation of the reference under every legal crash.

One `Case` for each, in `durable_cases_abc`, `_de` and `_f`; `durable_operations` says of every
other public method why it has none. Each operation must be atomic and durable in all five models.
Sabotaged versions show that the checks would notice. Encrypted operations are also searched for
plaintext in each of their crash states, and all of them for files that others could read. What a
failing call leaves is in `test_every_durable_fault`.

Every operation is tried in every run. `Case.crash_settings` says how far; STATEPERSIST_PROFILE=soak
goes all the way. Whether a recovery remembers what it should read is asked in every run only for
`RECOVERIES`: each pass is run again in a fresh process then, which takes longer than all the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.models import get_models
from pytest_statepersist.core.states import crash_states, disk_of
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.findings import Report, Verdict
from pytest_statepersist.leaks import LeakReport, ModeEvent, scan_leaks, scan_permissions
from pytest_statepersist.reference import atomic, transaction
from pytest_statepersist.simulator import CrashSimulator
from tests.reference import durable_cases_abc, durable_cases_de, durable_cases_f
from tests.reference.durable_case import (
    RECOVERIES,
    RECOVERIES_OF_SQLITE,
    Case,
    soak,
    wants_two,
)
from tests.reference.durable_operations import (
    CASES,
    HARMLESS,
    METHODS,
    declared_harmless,
    public_operations,
)
from tests.reference.snapshot_helpers import CANARY as SNAPSHOT_SECRET
from tests.reference.test_snapshot_store import SECRET as EPOCH_SECRET
from tests.unconfirmed import unconfirmed

NAMED = {case.name: case for case in CASES}


def test_every_public_operation_has_a_case_or_a_reason() -> None:
    everything, cases, harmless = (
        public_operations(),
        {c.operation for c in CASES},
        declared_harmless(),
    )
    assert len(everything) > 200
    assert everything - cases - harmless == set(), "neither a case nor a reason"
    assert cases & harmless == set(), "a case, and a reason to have none"
    assert (cases | harmless) - everything == set(), "not there any more"
    assert all(owner not in HARMLESS for owner in METHODS)
    assert len(NAMED) == len(CASES), "two cases of one name"
    assert NAMED.keys() >= {*RECOVERIES, *RECOVERIES_OF_SQLITE}


def each(cases: Iterable[Case]) -> list[Any]:
    """Parameters; all tests of one operation share what was seen."""
    return [pytest.param(case, id=case.name) for case in cases]


@dataclass(frozen=True)
class Seen:
    """What one exploration showed. Not the report itself: a hundred traces slow down the rest."""

    operations: int
    verdicts: tuple[Verdict, ...]
    files: tuple[ModeEvent, ...]
    directories: tuple[ModeEvent, ...]
    late: tuple[str, ...]
    leaks: LeakReport


@cache
def seen_of(case: Case) -> Seen:
    """Explore an operation, once for all that asks about it; raises for a finding."""
    report = explored(case, **case.crash_settings)
    files, directories, late = modes_of(report.trace)
    leaks = scan_leaks(crash_trees(report.trace, case.models) if case.encrypted else [], CANARIES)
    return Seen(
        len(report.trace), report.verdicts, tuple(files), tuple(directories), tuple(late), leaks
    )


def explored(case: Case, **settings: Any) -> Report:
    with nullcontext() if case.name in RECOVERIES else unconfirmed():
        return CrashSimulator(time_limit=None, repairs=False, **settings).check(
            setup=case.setup,
            workload=under_a_careless_umask(case.workload),
            recover=case.recover,
            invariant=case.invariant,
            name=case.name,
        )


def under_a_careless_umask(workload: Callable[..., object]) -> Callable[..., object]:
    """Let the umask hide nothing, so that the trace shows the modes that were asked for."""

    def run(directory: Path, *acknowledge: Any) -> object:
        before = os.umask(0)
        try:
            return workload(directory, *acknowledge)
        finally:
            os.umask(before)

    if wants_two(workload):
        return lambda directory, acknowledge: run(directory, acknowledge)
    return lambda directory: run(directory)


@pytest.mark.parametrize("case", each(CASES))
def test_survives_every_legal_crash(case: Case) -> None:
    seen = seen_of(case)
    assert seen.operations > 0, "nothing was recorded, so nothing was tried"
    assert [verdict.model for verdict in seen.verdicts] == list(case.models)
    for verdict in seen.verdicts:
        assert (verdict.atomic, verdict.durable) == (True, True), str(verdict)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "Session.save-sqlite" else soak)
        for name in RECOVERIES_OF_SQLITE
    ],
)
def test_sqlite_survives_a_crash_during_recovery(name: str) -> None:
    case = NAMED[name]
    # One that takes what it is offered gives another answer the next time, crash or not.
    case = replace(case, recover=case.peek or case.recover)
    report = explored(case, model="posix", deviations=0, recovery_crashes=1, samples=0)
    verdict = report.verdict("posix")
    assert (verdict.atomic, verdict.durable) == (True, True), str(verdict)


def test_without_the_sync_of_new_names_the_simulator_finds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(atomic, "fsync_directory", lambda path: None)
    case = NAMED["write_atomic"]
    report = CrashSimulator(model="posix", deviations=1, repairs=False).explore(
        setup=case.setup, workload=case.workload, recover=case.recover
    )
    assert report.verdict("posix").durable is False
    assert report.verdict("posix").atomic is True


def test_without_the_sync_before_the_journal_goes_the_simulator_finds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The transaction's own directory syncs make it atomic: without them it is not."""
    monkeypatch.setattr(transaction, "fsync_directory", lambda path: None)
    case = NAMED["Transaction.commit"]
    report = CrashSimulator(model="posix", deviations=1, repairs=False).explore(
        setup=case.setup, workload=case.workload, recover=case.recover
    )
    assert report.verdict("posix").atomic is False


# ---- plaintext ------------------------------------------------------------------------

CANARIES = {
    "file store": durable_cases_abc.CANARY,
    "vault": durable_cases_de.CANARY,
    "groups": durable_cases_f.CANARY,
    "epoch secret": EPOCH_SECRET,
    "snapshot secret": SNAPSHOT_SECRET,
}
ENCRYPTED = [case for case in CASES if case.encrypted]
"""Every operation that encrypts: what it writes may show none of the above at any moment."""


def crash_trees(trace: op.Trace, models: Iterable[str]) -> Iterator[tuple[str, Tree]]:
    """Every crash state of a trace with up to one deviation, temporaries and journals included."""
    for model in get_models(tuple(models)):
        disk = disk_of(trace, model)
        for number, state in enumerate(crash_states(trace, model, deviations=1)):
            yield f"{model.name} {number}", disk.tree(state)


def test_every_part_that_encrypts_is_searched() -> None:
    owners = {case.owner for case in ENCRYPTED}
    assert owners >= {
        "DirectoryRegistry", "EventLog", "FileStore", "Groups", "InviteBook", "Messenger",
        "SnapshotStore", "StateSnapshot", "Vault", "backup_to_remote", "group_backup",
    }  # fmt: skip
    assert len(ENCRYPTED) > 40


@pytest.mark.parametrize("case", each(ENCRYPTED))
def test_no_crash_state_shows_plaintext(case: Case) -> None:
    report = seen_of(case).leaks
    report.raise_if_findings()
    assert report.ok is True
    assert report.states >= 4
    assert report.parts > report.states / 2


def test_plaintext_of_an_unencrypted_store_is_found() -> None:
    trace = explored(NAMED["FileStore.save"], deviations=0, samples=0).trace
    report = scan_leaks(crash_trees(trace, ["posix"]), CANARIES)
    assert report.ok is False
    assert {finding.canary for finding in report.findings} == {"file store"}


# ---- permissions ----------------------------------------------------------------------


@pytest.mark.parametrize("case", each(CASES))
def test_files_and_directories_are_private_from_the_first_instant(case: Case) -> None:
    """Each that was ever made, temporaries included, under a umask that hides nothing."""
    seen = seen_of(case)
    if seen.files:
        scan_permissions(seen.files).raise_if_findings()
    if seen.directories:
        scan_permissions(seen.directories, allowed=0o700).raise_if_findings()
    assert seen.late == (), "a mode that is set afterwards is set too late"


def modes_of(trace: op.Trace) -> tuple[list[ModeEvent], list[ModeEvent], list[str]]:
    """The modes of new files and directories, and changes of modes (filelock's own left out)."""
    made = trace.operations
    files = [ModeEvent(each.path, each.mode) for each in made if isinstance(each, op.Create)]
    directories = [ModeEvent(each.path, each.mode) for each in made if isinstance(each, op.Mkdir)]
    late = [
        each.path
        for each in made
        if isinstance(each, op.SetAttributes)
        and each.mode is not None
        and not each.path.endswith(".lock")
    ]
    return files, directories, late


def test_files_that_others_may_read_are_found(ram_path: Path) -> None:
    def careless(directory: Path) -> None:
        (directory / "new").mkdir()
        (directory / "new/file").write_bytes(b"x")
        (directory / "new/file").chmod(0o600)

    with CrashSimulator().record(ram_path) as recording:
        under_a_careless_umask(careless)(ram_path)
    files, directories, late = modes_of(recording.trace)
    assert scan_permissions(files).ok is False
    assert scan_permissions(directories, allowed=0o700).ok is False
    assert late == ["new/file"]
