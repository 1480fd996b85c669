"""Every durable operation of the reference under every legal crash and every failing call.

One `Case` for each, in `durable_cases_abc`, `_de` and `_f`; `durable_operations` says of every
other public method why it has none. Each operation must be atomic and durable in all five models,
and each must, when any one call of the file system fails, leave the old or the new state and say
so. Sabotaged versions show that the checks would notice. Encrypted operations are also searched
for plaintext in each of their crash states, and all of them for files that others could read.

Every operation is tried in every run. `Case.crash_settings` says how far; STATEPERSIST_PROFILE=soak
goes all the way.
"""

from __future__ import annotations

import errno
import inspect
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.models import get_models
from pytest_statepersist.core.states import crash_states, disk_of
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.fault_injector import FaultInjector
from pytest_statepersist.findings import Report
from pytest_statepersist.leaks import ModeEvent, scan_leaks, scan_permissions
from pytest_statepersist.reference import atomic, transaction
from pytest_statepersist.reference.errors import PersistenceError
from pytest_statepersist.simulator import CrashSimulator
from tests.reference import durable_cases_abc, durable_cases_de, durable_cases_f
from tests.reference.durable_case import RECOVERIES, RECOVERIES_OF_SQLITE, SOAK, Case
from tests.reference.durable_operations import (
    CASES,
    HARMLESS,
    METHODS,
    declared_harmless,
    public_operations,
)
from tests.reference.snapshot_helpers import CANARY as SNAPSHOT_SECRET
from tests.reference.test_snapshot_store import SECRET as EPOCH_SECRET

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
    """Parameters; all tests of one operation go to one worker, since they share its report."""
    return [
        pytest.param(case, id=case.name, marks=pytest.mark.xdist_group(f"durable {case.name}"))
        for case in cases
    ]


@pytest.mark.parametrize("case", each(CASES))
def test_survives_every_legal_crash(case: Case) -> None:
    report = report_of(case)
    assert len(report.trace) > 0, "nothing was recorded, so nothing was tried"
    assert [verdict.model for verdict in report.verdicts] == list(case.models)
    for verdict in report.verdicts:
        assert (verdict.atomic, verdict.durable) == (True, True), str(verdict)


@pytest.mark.skipif(not SOAK, reason="runs in the soak profile: minutes each")
@pytest.mark.parametrize("name", RECOVERIES_OF_SQLITE)
def test_sqlite_survives_a_crash_during_recovery(name: str) -> None:
    report = explored(
        NAMED[name], model="posix", deviations=0, recovery_crashes=1, samples=0
    )
    verdict = report.verdict("posix")
    assert (verdict.atomic, verdict.durable) == (True, True), str(verdict)


@cache
def report_of(case: Case) -> Report:
    """Explore an operation, once for all that asks about it; raises for a finding."""
    return explored(case, **case.crash_settings)


def explored(case: Case, **settings: Any) -> Report:
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


@pytest.mark.parametrize("case", each(c for c in CASES if c.sqlite or SOAK))
def test_a_fault_at_any_call_leaves_old_or_new_and_is_told(case: Case) -> None:
    """The fault sweep, inside SQLite too. In the soak profile of every operation, with every error.

    A run of CI takes some of the calls of each operation, drawn by its name; each fails with EIO.
    """
    bounds: dict[str, Any] = {"recovery": True, "states": 30, "deviations": 1}
    if not SOAK:
        seed = zlib.crc32(case.name.encode())
        bounds = {"errors": ["EIO"], "persistent": False, "recovery": False, "states": 0}
        bounds |= {"cases": 10, "seed": seed}
    report = FaultInjector(time_limit=60.0, **bounds).sweep(
        setup=case.setup,
        workload=case.workload,
        recover=case.recover,
        invariant=case.invariant,
        name=case.name,
    )
    assert report.findings == (), str(report)
    assert report.cases >= (10 if not SOAK else 30)
    if case.sqlite:
        assert any(site.function.startswith("sqlite.") for site in report.sites)


class Injected(OSError):
    """The one call that fails."""


CALLS = (
    "open", "write", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "read",
    "listdir", "scandir", "stat", "lstat",
)  # fmt: skip


@pytest.mark.parametrize("case", each(c for c in CASES if not c.sqlite))
def test_an_io_error_at_any_call_leaves_old_or_new_and_is_told(
    case: Case, ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call in turn fails once; the clean-up then works. A false "saved" is the worst."""
    start, disk = ram_path / "start", ram_path / "disk"
    start.mkdir()
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nothing here is about power
    case.setup(start)
    shutil.copytree(start, disk, symlinks=True)
    before = case.recover(disk)
    after: object = None
    for point in range(-1, 1_000):
        shutil.rmtree(disk)
        shutil.copytree(start, disk, symlinks=True)
        acknowledged: list[object] = []
        workload = _acknowledging(case.workload, acknowledged)
        told, made = _run_failing_at(point, workload, disk, monkeypatch)
        found = case.recover(disk)
        if point == -1:  # no failure
            after = found
            assert before != after
            assert made > 1
        elif made <= point:
            break
        elif told:
            allowed = _allowed(case, found, before, after, acknowledged)
            assert allowed, f"a mixture after call {point} failed: {found}"
        else:
            assert found == after, f"call {point} failed, and the caller heard nothing of it"
    assert found == after


def _acknowledging(workload: Callable[..., object], into: list[object]) -> Callable[[Path], object]:
    if not wants_two(workload):
        return workload
    return lambda directory: workload(directory, into.append)


def wants_two(workload: Callable[..., object]) -> bool:
    """Tell whether a workload takes a function to acknowledge with."""
    parameters = inspect.signature(workload).parameters.values()
    return sum(each.default is each.empty for each in parameters) == 2


def _allowed(
    case: Case, found: object, before: object, after: object, acknowledged: list[object]
) -> bool:
    if case.invariant is not None:
        return case.invariant(found, acknowledged)
    if case.item_by_item and isinstance(found, dict):
        assert isinstance(before, dict)
        assert isinstance(after, dict)
        return all(
            found.get(place) in (before.get(place), after.get(place))
            for place in found.keys() | before.keys() | after.keys()
        )
    return found in (before, after)


def _run_failing_at(
    point: int, workload: Callable[[Path], object], directory: Path, patch: pytest.MonkeyPatch
) -> tuple[bool, int]:
    made = 0
    here = str(directory)

    def wrap(name: str) -> Callable[..., object]:
        really = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> object:
            nonlocal made
            if _concerns(here, args):
                made += 1
                if made == point + 1:
                    raise Injected(errno.EIO, f"injected into {name}")
            return really(*args, **kwargs)

        return call

    with patch.context() as patched:
        for name in CALLS:
            patched.setattr(os, name, wrap(name))
        try:
            workload(directory)
        except PersistenceError:
            return True, made
    return False, made


def _concerns(here: str, args: tuple[Any, ...]) -> bool:
    """Tell whether a call is about our directory; the lock file is filelock's own business."""
    if not args or isinstance(args[0], int):
        return bool(args) and args[0] > 2
    path = os.fspath(args[0])
    return isinstance(path, str) and path.startswith(here) and not path.endswith(".lock")


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
    report = scan_leaks(crash_trees(report_of(case).trace, case.models), CANARIES)
    report.raise_if_findings()
    assert report.ok is True
    assert report.states > 5
    assert report.parts > report.states / 2


def test_plaintext_of_an_unencrypted_store_is_found() -> None:
    trace = report_of(NAMED["FileStore.save"]).trace
    report = scan_leaks(crash_trees(trace, ["posix"]), CANARIES)
    assert report.ok is False
    assert {finding.canary for finding in report.findings} == {"file store"}


# ---- permissions ----------------------------------------------------------------------


@pytest.mark.parametrize("case", each(CASES))
def test_files_and_directories_are_private_from_the_first_instant(case: Case) -> None:
    """Each that was ever made, temporaries included, under a umask that hides nothing."""
    files, directories, late = modes_of(report_of(case).trace)
    if files:
        scan_permissions(files).raise_if_findings()
    if directories:
        scan_permissions(directories, allowed=0o700).raise_if_findings()
    assert late == [], "a mode that is set afterwards is set too late"


def modes_of(trace: op.Trace) -> tuple[list[ModeEvent], list[ModeEvent], list[op.SetAttributes]]:
    """The modes of new files and directories, and changes of modes (filelock's own left out)."""
    made = trace.operations
    files = [ModeEvent(each.path, each.mode) for each in made if isinstance(each, op.Create)]
    directories = [ModeEvent(each.path, each.mode) for each in made if isinstance(each, op.Mkdir)]
    late = [
        each
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
    assert [each.path for each in late] == ["new/file"]
