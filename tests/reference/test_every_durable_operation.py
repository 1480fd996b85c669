"""Every durable operation of the reference under every legal crash and every failing call.

One `Case` for each, in `durable_cases_abc`, `_de` and `_f`; `durable_operations` says of every
other public method why it has none. Each operation must be atomic and durable in all five models,
and each must, when any one call of the file system fails, leave the old or the new state and say
so. Sabotaged versions show that the checks would notice. Encrypted operations are also searched
for plaintext in each of their crash states.
"""

from __future__ import annotations

import errno
import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.core.models import get_models
from pytest_statepersist.core.states import crash_states, disk_of
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.leaks import scan_leaks
from pytest_statepersist.reference import atomic, transaction
from pytest_statepersist.reference.errors import PersistenceError
from pytest_statepersist.simulator import CrashSimulator
from tests.reference import durable_cases_abc, durable_cases_de, durable_cases_f
from tests.reference.durable_case import Case
from tests.reference.durable_operations import (
    CASES,
    HARMLESS,
    METHODS,
    declared_harmless,
    public_operations,
)
from tests.reference.snapshot_helpers import CANARY as SNAPSHOT_SECRET
from tests.reference.test_snapshot_store import SECRET as EPOCH_SECRET

MODELS = ("posix", "ext4", "xfs", "btrfs", "kill")
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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_survives_every_legal_crash(case: Case) -> None:
    report = CrashSimulator(model=MODELS, time_limit=None, repairs=False, **case.settings).check(
        setup=case.setup,
        workload=case.workload,
        recover=case.recover,
        invariant=case.invariant,
        name=case.name,
    )
    for model in MODELS:
        verdict = report.verdict(model)
        assert (verdict.atomic, verdict.durable) == (True, True), str(verdict)


class Injected(OSError):
    """The one call that fails."""


CALLS = ("open", "write", "fsync", "replace", "rename", "unlink", "mkdir", "read", "listdir")


@pytest.mark.parametrize("case", [c for c in CASES if not c.sqlite], ids=lambda case: case.name)
def test_an_io_error_at_any_call_leaves_old_or_new_and_is_told(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call in turn fails once; the clean-up then works. A false "saved" is the worst."""
    start, disk = tmp_path / "start", tmp_path / "disk"
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
    if len(inspect.signature(workload).parameters) == 1:
        return workload
    return lambda directory: workload(directory, into.append)


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
ENCRYPTED = [
    "FileStore.save-encrypted",
    "StateSnapshot.save-secrets",
    "Vault.store",
    "Vault.store-again",
    "Vault.delete",
    "Vault.change_password",
    "Vault.import_key",
    "EventLog.append",
    "EventLog.compact",
    "SnapshotStore.commit",
    "SnapshotStore.write",
    "SnapshotStore.delete",
    "Groups.acknowledge",
    "Groups.propose_leaving",
    "Groups.prepare_commit",
    "InviteBook.save",
    "Messenger.set_topic",
    "Messenger.rename_channel",
    "Messenger.send",
    "Messenger.sync",
    "Messenger.compact",
    "group_backup.export_state",
    "group_backup.import_state",
]


def crash_trees(case: Case, directory: Path) -> Iterator[tuple[str, Tree]]:
    """Every crash state of a case in every model, temporaries and journals included."""
    case.setup(directory)
    with CrashSimulator().record(directory) as recording:
        case.workload(directory)
    for model in get_models(MODELS):
        disk = disk_of(recording.trace, model)
        for number, state in enumerate(crash_states(recording.trace, model, deviations=1)):
            yield f"{model.name} {number}", disk.tree(state)


@pytest.mark.parametrize("name", ENCRYPTED)
def test_no_crash_state_shows_plaintext(name: str, tmp_path: Path) -> None:
    report = scan_leaks(crash_trees(NAMED[name], tmp_path), CANARIES)
    report.raise_if_findings()
    assert report.ok is True
    assert report.states > 30
    assert report.parts > report.states / 2


def test_plaintext_of_an_unencrypted_store_is_found(tmp_path: Path) -> None:
    report = scan_leaks(crash_trees(NAMED["FileStore.save"], tmp_path), CANARIES)
    assert report.ok is False
    assert {finding.canary for finding in report.findings} == {"file store"}
