"""Every durable operation of the reference with each of its calls failing once.

The calls are those of Python and of SQLite, below a gate that is in place for the whole module.
Whatever fails, what is found afterwards is the old or the new state, never a mixture, and where it
is not the new one the caller got an error of the one tree. A false "saved" is the worst.

Every operation is in every run, with some of its calls; the soak profile has them all, and the
fault sweep of this package besides, with every error, lasting ones and power losses after them.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pytest_statepersist.fault_injector import FaultInjector
from pytest_statepersist.faults.calls import ERRORS, FaultSite
from pytest_statepersist.faults.gate import gated
from pytest_statepersist.faults.inject import Counting, Fault, Injection
from pytest_statepersist.faults.installing import installed
from pytest_statepersist.faults.report import FaultReport
from pytest_statepersist.faults.sqlite import sqlite_gate
from pytest_statepersist.reference import conversation_json
from pytest_statepersist.reference.errors import PersistenceError
from tests.reference.durable_case import SOAK, Case, soak, wants_two
from tests.reference.durable_operations import CASES

OUR_OWN = ("all", "bob-id", "channel", "code", "frame", "key", "one", "two")
"""Files in which the cases keep what an operation needs; no store reads or writes them."""

NOT_LOCKS = [name for name in ERRORS if name != "ENOLCK"]
NAMED = {case.name: case for case in CASES}
LONG_AGO = 1_700_000_000 * 10**9
POINTS = 6
"""Calls of each operation that fail in a run that is not the soak."""


@pytest.fixture(scope="module")
def gates() -> Iterator[None]:
    with installed(), sqlite_gate():
        yield


def run_case(case: Case, directory: Path, into: list[object]) -> bool:
    """Run the operation; tell whether the caller heard of an error."""
    try:
        if wants_two(case.workload):
            case.workload(directory, into.append)
        else:
            case.workload(directory)
    except PersistenceError:
        return True
    return False


def chosen(case: Case, sites: list[FaultSite]) -> list[FaultSite]:
    """The calls that can meet an I/O error: all, or some that are spread over the operation."""
    possible = [site for site in sites if "EIO" in site.errors and site.path not in OUR_OWN]
    step = 1 if SOAK else max(1, len(possible) // POINTS)
    return possible[zlib.crc32(case.name.encode()) % step :: step]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_io_error_at_any_call_leaves_old_or_new_and_is_told(
    case: Case, ram_path: Path, gates: None
) -> None:
    start, disk = ram_path / "start", ram_path / "disk"
    start.mkdir()
    case.setup(start)
    # What was changed just now is read more often, and the calls would be others each time.
    for folder, _, names in os.walk(start):
        for name in names:
            os.utime(f"{folder}/{name}", ns=(LONG_AGO, LONG_AGO), follow_symlinks=False)

    def put_back() -> None:
        shutil.rmtree(disk, ignore_errors=True)
        shutil.copytree(start, disk, symlinks=True)

    put_back()
    before = case.recover(disk)
    put_back()
    counting = Counting()
    with gated(disk, counting):
        assert not run_case(case, disk, [])
    after = case.recover(disk)
    assert before != after
    points = chosen(case, counting.sites)
    assert len(points) >= min(4, len(counting.sites))
    if case.sqlite:
        assert any(site.function.startswith("sqlite.") for site in points)
    met = 0
    for site in points:
        put_back()
        acknowledged: list[object] = []
        failure = Injection(Fault(site.index, "EIO"))
        with gated(disk, failure):
            told = run_case(case, disk, acknowledged)
        met += failure.hits
        found = case.recover(disk)
        if told:
            allowed = may_be(case, found, before, after, acknowledged)
            assert allowed, f"a mixture after {site}: {found}"
        else:
            assert found == after, f"{site} failed, and the caller heard nothing of it: {found}"
    assert met >= len(points) * 3 / 4, "faults that were not met"


def may_be(
    case: Case, found: object, before: object, after: object, acknowledged: Sequence[object]
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


@soak
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_fault_sweep_finds_nothing(case: Case) -> None:
    report = swept(case, errors=NOT_LOCKS, states=30)
    assert report.findings == (), str(report)
    assert report.cases > 30
    # Once: a lock that is refused for ever stays with the process, as the documentation says.
    report = swept(case, errors=["ENOLCK"], persistent=False, states=30)
    assert report.findings == (), str(report)


def swept(case: Case, **options: Any) -> FaultReport:
    if case.item_by_item:
        case = one_by_one(case)
    # A recovery that met an error is asked again, and must find the same.
    return FaultInjector(time_limit=60.0, **options).sweep(
        setup=case.setup,
        workload=case.workload,
        recover=case.peek or case.recover,
        invariant=case.invariant,
        name=case.name,
    )


def one_by_one(case: Case) -> Case:
    """The same operation, of which some items may be new and others old until it has returned."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        case.setup(directory)
        before = case.recover(directory)
        case.workload(directory)
        after = case.recover(directory)

    def workload(directory: Path, acknowledge: Callable[[object], None]) -> None:
        case.workload(directory)
        acknowledge("all of them")

    def invariant(found: object, acknowledged: Sequence[object]) -> bool:
        return found == after if acknowledged else may_be(case, found, before, after, ())

    return replace(case, workload=workload, invariant=invariant)


def test_what_a_sweep_found_stays_mended() -> None:
    """A chain of directories that an error had cut short was never synced where it began."""
    report = swept(NAMED["make_directory"])
    assert report.ok, str(report)


@pytest.mark.parametrize("name", ["Database.add_message", "migrate-1"])
def test_a_log_that_could_not_be_synced_is_written_anew(
    name: str, ram_path: Path, gates: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep found what happens else: the beginning of an old log over a newer database."""
    case, start, disk = NAMED[name], ram_path / "start", ram_path / "disk"
    start.mkdir()
    case.setup(start)
    shutil.copytree(start, disk)
    with gated(disk, counting := Counting()):
        assert not run_case(case, disk, [])
    site = next(s for s in counting.sites if s.function == "sqlite.sync" and "-wal" in s.path)
    shutil.rmtree(disk)
    shutil.copytree(start, disk)
    synced, really = list[str](), os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with gated(disk, Injection(Fault(site.index, "EIO"))):
        assert run_case(case, disk, [])
    assert any(path.endswith("-wal") for path in synced)


def swallowing(really: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return really(*arguments, **options)
        except PersistenceError:
            return None

    return call


def test_an_error_that_is_swallowed_is_found(
    ram_path: Path, gates: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that says "saved" whatever the disk said."""
    careless = swallowing(conversation_json.Transaction.commit)
    monkeypatch.setattr(conversation_json.Transaction, "commit", careless)
    case = next(each for each in CASES if each.name == "Session.save-json")
    with pytest.raises(AssertionError, match="heard nothing of it"):
        test_an_io_error_at_any_call_leaves_old_or_new_and_is_told(case, ram_path, gates)
