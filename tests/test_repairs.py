"""Diagnosis on running stores: causes, repairs that were checked, syncs that are not needed."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist import CrashSimulator
from pytest_statepersist.core.operations import Fsync, Write
from tests.inserting import inserting, places_of
from tests.zoo.spec import ALL_MODELS, POWER_LOSS
from tests.zoo.steps import unframe

ZOO = Path(__file__).parent / "zoo"
GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden_reports"


@functools.cache
def spec_of(name: str) -> Any:
    path = ZOO / f"{name}.py"
    found = importlib.util.spec_from_file_location(f"repairs_{path.stem}", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.SPEC


@functools.cache
def zoo(name: str, *models: str, **options: Any) -> Any:
    spec = spec_of(name)
    return explore_spec(spec, spec.workload, *models, **options)


def explore_spec(spec: Any, workload: Any, *models: str, **options: Any) -> Any:
    judged: dict[str, Any] = (
        {"invariant": spec.invariant}
        if spec.invariant is not None
        else {"before": spec.before, "after": spec.after}
    )
    return CrashSimulator().explore(
        setup=spec.setup,
        workload=workload,
        recover=spec.recover,
        model=list(models or ALL_MODELS),
        **judged,
        **options,
    )


def lines(report: Any) -> list[list[tuple[str, str]]]:
    """Return, for each repair, what is synced and what kind of call it follows."""
    return [
        [
            (
                "directory" if line.directory else line.call.path,
                type(report.trace.operations[line.insertions[0].after]).__name__,
            )
            for line in repair.lines
        ]
        for repair in report.repairs
    ]


# -- repairs

ONE_LINE = {
    "broken/no_fsync_before_rename": ("state.json.tmp", "Write"),
    "broken/fsync_after_rename": ("state.json.tmp", "Write"),
    "broken/fsync_wrong_descriptor": ("state.json.tmp", "Write"),
    "broken/chmod_after_fsync": ("token.tmp", "SetAttributes"),
    "broken/no_directory_fsync": ("directory", "Rename"),
    "broken/deletion_comes_back": ("directory", "Unlink"),
    "broken/hard_link_switch": ("directory", "Link"),
    "broken/new_directory_not_synced": ("directory", "Mkdir"),
    "broken/unsynced_directory_published": ("directory", "Create"),
    "broken/old_deleted_before_new_durable": ("state-2.json", "Write"),
    "broken/index_before_data": ("records", "Write"),
    "broken/header_before_payload": ("slots", "Write"),
    "broken/log_cleared_before_data": ("data", "Write"),
    "broken/never_synced_log": ("log", "Write"),
    "broken/acknowledged_before_sync": ("log", "Write"),
    "broken/shrink_after_sync": ("jobs", "Truncate"),
}


def each(names: Iterable[str], *, half: bool = False) -> list[str]:
    """The default run and what it leaves out: all tests of a store share what was explored.

    With ``half`` the default run has every second store, chosen by name; the soak profile has all.
    """
    whole = not half or os.environ.get("STATEPERSIST_PROFILE") == "soak"
    return [name for name in names if whole or zlib.crc32(name.encode()) % 2]


@pytest.mark.parametrize("name", each(ONE_LINE))
def test_the_line_that_is_missing_is_found(name: str) -> None:
    report = zoo(name)
    assert lines(report) == [[ONE_LINE[name]]]
    assert report.repair_search.smallest
    assert set(report.repair_search.models) >= {f for x in report.findings for f in x.models}
    for finding in report.findings:
        assert finding.no_sync_helps is False
        assert finding.repairs[0].lines == report.repairs[0].lines
    sites = {finding.site for finding in report.findings}
    assert report.repairs[0].lines[0].site in sites


NO_SYNC_HELPS = {
    "broken/append_without_framing": "checksum",
    "broken/buffered_at_rename": "Flush and fsync the file, close it, and only then rename it",
    "broken/chmod_after_rename": "temporary file, fsync it, rename it over the old one",
    "broken/lock_file_left_behind": "flock",
    "broken/multi_block_overwrite": "temporary file, fsync it, rename it over the old one",
    "broken/newest_by_mtime": "temporary file, fsync it, rename it over the old one",
    "broken/remove_then_rename": "temporary file, fsync it, rename it over the old one",
    "broken/symlink_switch": "temporary file, fsync it, rename it over the old one",
    "broken/temporary_mistaken_for_data": "names that recovery ignores",
    "broken/truncate_in_place": "temporary file, fsync it, rename it over the old one",
    "broken/two_files_together": "journal",
    "recovery/removes_journal_first": "remove its input only after that is durable",
    "recovery/fails_on_own_leftovers": "Let recovery remove or reuse",
}


@pytest.mark.parametrize("name", each(NO_SYNC_HELPS))
def test_where_no_sync_helps_the_protocol_is_said(name: str) -> None:
    report = zoo(name)
    first = report.findings[0]
    assert first.no_sync_helps is True
    assert first.repairs == ()
    assert re.search(f"No set of sync calls repairs this: .*{NO_SYNC_HELPS[name]}", str(report))


SEVERAL_LINES = ("broken/two_unsynced_files", "broken/data_before_undo_log")


@pytest.mark.parametrize("name", each([*ONE_LINE, *SEVERAL_LINES], half=True))
def test_a_repair_that_is_really_made_leaves_nothing(name: str) -> None:
    """The store runs again and the operating system is called: nothing is inferred."""
    models = ("posix",)
    report, spec = zoo(name, *models), spec_of(name)
    assert report.repairs
    for repair in report.repairs:
        places = places_of(report.trace, repair)
        repaired = explore_spec(spec, inserting(spec.workload, report.trace, places), *models)
        assert len(repaired.trace) == len(report.trace) + len(repair.syncs)
        assert not repaired.findings


@pytest.mark.parametrize(
    "name", each([n for n in NO_SYNC_HELPS if n.startswith("broken")], half=True)
)
def test_where_no_sync_helps_syncing_everything_does_not(name: str) -> None:
    models = ("posix",)
    report, spec = zoo(name, *models), spec_of(name)
    synced = explore_spec(spec, inserting(spec.workload, report.trace, None), *models)
    assert len(synced.trace) > len(report.trace)
    hopeless = {finding.cause for finding in report.findings if finding.no_sync_helps}
    assert hopeless
    assert {finding.cause for finding in synced.findings} == hopeless
    assert all(finding.no_sync_helps for finding in synced.findings)


def test_a_repair_leaves_nothing_when_it_is_written_down() -> None:
    """The store with the line that was found added to its source is sound."""

    def save(directory: Path, *, repaired: bool) -> None:
        with open(directory / "t", "w") as file:
            file.write("2")
            file.flush()
            if repaired:
                os.fsync(file.fileno())
        os.replace(directory / "t", directory / "s")
        if repaired:
            descriptor = os.open(directory, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def explore(repaired: bool) -> Any:
        return CrashSimulator().explore(
            setup=lambda d: (d / "s").write_text("1"),
            workload=lambda d: save(d, repaired=repaired),
            recover=lambda d: int((d / "s").read_text()),
            model=list(POWER_LOSS),
        )

    report = explore(repaired=False)
    assert lines(report) == [[("t", "Write"), ("directory", "Rename")]]
    assert not explore(repaired=True).findings
    again = report.repairs[0].applied_to(report.trace)
    assert [type(each).__name__ for each in again.operations].count("Fsync") == 2


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("recovery/promotes_without_directory_sync", "Rename"),
        ("recovery/clears_log_before_durable", "Write"),
    ],
)
def test_a_crash_during_recovery_is_repaired_in_recovery(name: str, after: str) -> None:
    report = zoo(name)
    (finding,) = report.findings
    (line,) = finding.repairs[0].lines
    inner = finding.failure.step.disk.trace
    assert type(inner.operations[line.insertions[0].after]).__name__ == after
    assert "Repair in recovery: fsync" in str(report)
    assert report.repairs == ()


@pytest.mark.parametrize("models", [POWER_LOSS, ("btrfs",)], ids=["all", "btrfs"])
def test_a_repair_of_a_recovery_leaves_nothing_when_it_is_written_down(
    models: tuple[str, ...],
) -> None:
    """btrfs as well, whose syncs may bring new states: so it is explored, and not inferred."""
    report = zoo("recovery/clears_log_before_durable", *models)
    (finding,) = report.findings
    (line,) = finding.repairs[0].lines
    assert (line.call.path, line.insertions[0].after) == ("data", 0)
    assert finding.repaired_under == models

    def repaired(directory: Path) -> object:
        records, _ = unframe((directory / "redo").read_bytes())
        if records:
            with open(directory / "data", "r+b", buffering=0) as data:
                data.write(records[-1])
                os.fsync(data.fileno())
            os.truncate(directory / "redo", 0)
        return json.loads((directory / "data").read_bytes())

    spec = dataclasses.replace(spec_of("recovery/clears_log_before_durable"), recover=repaired)
    assert not explore_spec(spec, spec.workload, *models).findings


def test_where_btrfs_rules_a_repair_out_the_others_still_get_theirs() -> None:
    report = zoo("broken/data_before_undo_log")
    assert lines(report) == [[("undo", "Write")]]
    assert "btrfs" not in report.repair_search.models
    assert "posix" in report.repair_search.models
    mended = next(finding for finding in report.findings if finding.repairs)
    assert "btrfs" in mended.models
    assert "(not under btrfs: there every set that was tried leaves a failure)" in str(report)
    alone = zoo("broken/data_before_undo_log", "btrfs")
    assert alone.repair_search.hopeless
    assert alone.repairs == ()


def test_repairs_are_not_searched_when_they_are_not_wanted() -> None:
    report = zoo("broken/no_fsync_before_rename", "posix", repairs=False)
    assert report.repair_search is None
    assert "Repairs were not searched." in str(report)


def loop(directory: Path, rounds: int = 13) -> None:
    for number in range(rounds):
        temporary = directory / "t"
        temporary.write_text(json.dumps({"n": number}))
        os.replace(temporary, directory / "s")


def in_place_often(directory: Path) -> None:
    for number in range(17):
        (directory / "s").write_text(json.dumps({"n": number}))


def two_names(directory: Path) -> None:
    for number in range(6):
        for name in ("copy", "s"):
            (directory / "t").write_text(json.dumps({"n": number}))
            os.replace(directory / "t", directory / name)


@pytest.mark.parametrize("workload", [in_place_often, two_names])
def test_the_search_for_repairs_is_bounded(workload: Callable[[Path], None]) -> None:
    """About fifty operations of a small JSON store: 500 recoveries more; see bench_repairs."""
    report = CrashSimulator().explore(
        setup=lambda d: (d / "s").write_text(json.dumps({"n": -1})),
        workload=workload,
        recover=lambda d: json.loads((d / "s").read_text()),
        model=["posix", "ext4", "xfs", "btrfs"],
    )
    assert 48 <= len(report.trace) <= 56
    assert report.findings
    assert report.repair_search.explorations > 1
    assert report.repair_runs <= 500


def test_a_trace_of_fifty_operations_needs_few_more_recoveries() -> None:
    report = CrashSimulator().explore(
        setup=lambda d: (d / "s").write_text(json.dumps({"n": -1})),
        workload=loop,
        recover=lambda d: json.loads((d / "s").read_text()),
        invariant=lambda value, acknowledged: isinstance(value, dict),
        model=["posix", "ext4", "xfs", "btrfs"],
    )
    assert len(report.trace) >= 50
    assert report.repair_runs <= 500
    assert lines(report) == [[("t", "Write")]]
    assert len(report.repairs[0].syncs) == 13
    assert report.repair_search.smallest


# -- mixtures


def no_fsync(directory: Path) -> None:
    (directory / "a.tmp").write_text("2")
    os.replace(directory / "a.tmp", directory / "a")
    sync(directory)


def no_directory(directory: Path) -> None:
    with open(directory / "b.tmp", "w") as file:
        file.write("2")
        file.flush()
        os.fsync(file.fileno())
    os.replace(directory / "b.tmp", directory / "b")


def in_place(directory: Path) -> None:
    with open(directory / "c", "w") as file:
        file.write("2")
        file.flush()
        os.fsync(file.fileno())


def leftover(directory: Path) -> None:
    (directory / "lock").touch()
    sync(directory)
    (directory / "lock").unlink()
    sync(directory)


def sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


BUGS: dict[Callable[[Path], None], str] = {
    leftover: "leftover blocks recovery",
    no_fsync: "missing fsync before rename",
    in_place: "not atomic",
    no_directory: "missing directory fsync",
}


def make(directory: Path) -> None:
    for name in "abc":
        (directory / name).write_text("1")


def load(directory: Path) -> list[int]:
    if (directory / "lock").exists():
        raise BlockingIOError
    return [int((directory / name).read_text()) for name in "abc"]


def any_numbers(value: object, acknowledged: tuple[object, ...]) -> bool:
    """Each file by itself; what was acknowledged is the last one."""
    return isinstance(value, list) and (not acknowledged or value[1] == 2)


@pytest.mark.parametrize(
    "bugs",
    list(itertools.combinations(BUGS, 2)),
    ids=lambda b: "+".join(each.__name__ for each in b),
)
def test_different_causes_are_never_merged(bugs: tuple[Callable[[Path], None], ...]) -> None:
    def workload(directory: Path, acknowledge: Callable[[object], None]) -> None:
        for bug in bugs:
            bug(directory)
        if no_directory in bugs:
            acknowledge("b")

    report = CrashSimulator().explore(
        setup=make, workload=workload, recover=load, invariant=any_numbers
    )
    assert {BUGS[bug] for bug in bugs} <= {finding.cause for finding in report.findings}
    keys = [(f.cause, f.site) for f in report.findings]
    assert len(set(keys)) == len(keys)
    for finding in report.findings:
        assert finding.no_sync_helps == (
            finding.cause in ("leftover blocks recovery", "not atomic")
        ), finding


def test_passes_through_one_line_are_one_finding_with_a_count() -> None:
    report = zoo("broken/acknowledged_before_sync")
    (finding,) = report.findings
    assert finding.count > 3
    assert set(finding.models) == set(POWER_LOSS)


def test_the_first_finding_is_the_smallest() -> None:
    report = zoo("broken/two_unsynced_files")
    sizes = [finding.deviations for finding in report.findings]
    assert sizes == sorted(sizes)
    assert (
        min(failure.state.deviations for c in report.coverage for failure in c.failures)
        == (sizes[0])
    )


# -- paid for and not needed


def careful(directory: Path) -> None:
    with open(directory / "t", "w") as file:
        file.write("2")
        file.flush()
        os.fsync(file.fileno())
        os.fsync(file.fileno())
    sync(directory)
    os.replace(directory / "t", directory / "s")
    sync(directory)


def redundant(workload: Callable[[Path], None], **options: Any) -> Any:
    return CrashSimulator().explore(
        setup=lambda d: (d / "s").write_text("1"),
        workload=workload,
        recover=lambda d: int((d / "s").read_text()),
        redundant_syncs=True,
        **options,
    )


def test_syncs_that_are_not_needed_are_named_by_model() -> None:
    report = redundant(careful, model=["posix", "ext4", "btrfs"])
    assert not report.findings
    for found in report.redundant_syncs:
        told = [(each.call.path, [*each.operations]) for each in found.each]
        assert [operations for _, operations in told][:2] == [[2], [3]], found.model
        assert len(found.together) == 1
        assert found.reason == ""
    text = str(report)
    assert "Sync calls that are not needed under posix, one at a time:" in text
    assert "not together with the others" in text


def test_a_lean_save_has_none_and_a_broken_one_gets_no_answer() -> None:
    report = redundant(functools.partial(_lean, synced=True))
    assert [found.each for found in report.redundant_syncs] == [()]
    assert "not needed under posix: none." in str(report)
    report = redundant(functools.partial(_lean, synced=False))
    assert "findings" in report.redundant_syncs[0].reason
    assert zoo("sound/atomic_replace", "posix").redundant_syncs == ()


def _lean(directory: Path, synced: bool) -> None:
    with open(directory / "t", "w") as file:
        file.write("2")
        file.flush()
        if synced:
            os.fsync(file.fileno())
    os.replace(directory / "t", directory / "s")
    sync(directory)


@pytest.mark.parametrize("name", ["sound/atomic_replace", "sound/undo_journal", "sound/redo_log"])
def test_what_is_called_redundant_can_be_left_out(name: str) -> None:
    """Only recorded sync calls are named, and those that can go together are among them."""
    report = zoo(name, "posix", "ext4", redundant_syncs=True)
    for found in report.redundant_syncs:
        assert set(found.together) <= set(found.each)
        for each in found.each:
            for number in each.operations:
                assert isinstance(report.trace.operations[number], Fsync)


# -- the text


GOLDENS = [
    "broken/no_fsync_before_rename",
    "broken/truncate_in_place",
    "broken/two_unsynced_files",
    "recovery/promotes_without_directory_sync",
]


@pytest.mark.parametrize("name", GOLDENS)
def test_the_report_reads_as_it_should(name: str) -> None:
    text = str(zoo(name, "posix", "ext4"))
    text = re.sub(r"\S*/(\w+\.py):\d+", r"\1:N", text)
    text = re.sub(r"\[[0-9a-f]{8}\]", "[ID]", text) + "\n"
    path = GOLDEN / f"{Path(name).name}.txt"
    if os.environ.get("STATEPERSIST_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_a_history_shows_what_was_written_and_lost() -> None:
    (finding,) = zoo("broken/no_fsync_before_rename").findings
    assert [type(each) for each in finding.missing] == [Write]
    assert finding.culprit is finding.missing[0]
