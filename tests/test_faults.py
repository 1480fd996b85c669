"""The fault sweep: every broken store of the zoo is caught, every sound one passes.

What the sweep does to single calls is tested on its own: which errors fit, what the recorder sees
of a call that failed, and what is reported as not covered.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import importlib.util
import io
import itertools
import json
import mmap
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from filelock import FileLock

from pytest_statepersist.core import operations as op
from pytest_statepersist.errors import CrashConsistencyError, NotCovered, UserError
from pytest_statepersist.explorer.outcome import Ended, raises
from pytest_statepersist.explorer.runner import run_recovery
from pytest_statepersist.fault_injector import FaultInjector
from pytest_statepersist.faults.calls import ERRORS, Call, Operation, fitting
from pytest_statepersist.faults.gate import Gate, gated
from pytest_statepersist.faults.inject import Counting, Fault, Injection
from pytest_statepersist.faults.installing import installed
from pytest_statepersist.faults.leftovers import Leftover
from pytest_statepersist.faults.locks import held_locks, locks_known
from pytest_statepersist.faults.report import FaultKind
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.python import PythonRecorder
from pytest_statepersist.recording import shared_memory_in, sqlite_companions
from tests.zoo.spec import ZooSpec, bug_lines
from tests.zoo.steps import replace_durably

ZOO = Path(__file__).parent / "zoo" / "faults"
BROKEN = sorted((ZOO / "broken").glob("*.py"))
SOUND = sorted((ZOO / "sound").glob("*.py"))


FAILED_SYNC: dict[str, Any] = {
    "operations": ["fsync"],
    "errors": ["EIO"],
    "persistent": False,
    "recovery": False,
}


@pytest.fixture(scope="module", autouse=True)
def replacements_once() -> Iterator[None]:
    """Put in place for all tests what each sweep would put in place for itself."""
    with installed():
        yield


@cache
def load(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"zoo_faults_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def sweep(path: Path, **options: Any) -> Any:
    spec: ZooSpec = load(path).SPEC
    return FaultInjector(**{"time_limit": 0.5, **options}).sweep(
        setup=spec.setup,
        workload=spec.workload,
        recover=spec.recover,
        before=spec.before,
        after=spec.after,
    )


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_store_is_caught(path: Path) -> None:
    options: dict[str, Any] = {"errors": ["EIO", "short"]}
    if path.stem == "lock_not_released":  # each case waits for the limit, and again to be sure
        options = {"persistent": False, "operations": ["fsync"], "time_limit": 0.2}
    options |= {"errors": ["EIO"]} if "lock" in path.stem else {}
    options |= {"errors": ["ENOSPC"]} if "close" in path.stem else {}
    report = sweep(path, **options)
    assert report.ok is False
    kinds = {finding.kind.value for finding in report.findings}
    assert kinds <= load(path).KINDS, str(report)
    (line,) = bug_lines(path.read_text())
    sites = [finding.site.site for finding in report.findings]
    if "lock" not in path.stem and "leftover" not in path.stem:
        assert {(Path(site.file), site.line) for site in sites} == {(path, line)}, str(report)
    assert all(finding.confirmed for finding in report.findings)


@pytest.mark.parametrize("path", SOUND, ids=lambda path: path.stem)
def test_a_sound_store_passes(path: Path) -> None:
    report = sweep(path, time_limit=5.0)
    assert report.findings == (), str(report)
    assert report.ok is True, str(report)
    assert report.cases > 50
    assert report.states > 20
    assert not report.warnings


def test_a_lock_of_fcntl_that_is_left_is_seen(tmp_path: Path) -> None:
    """Whoever closes the file drops it, and the recorder reads all files at its end."""

    def leaks(directory: Path) -> None:
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT)
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        store(directory, 2)
        os.close(descriptor)

    report = FaultInjector(
        errors=["ENOSPC"], operations=["fsync"], persistent=False, time_limit=1.0
    ).sweep(setup=lambda d: store(d, 1), workload=leaks, recover=state, before=1, after=2)
    assert {finding.kind for finding in report.findings} == {FaultKind.LOCKED}, str(report)


@pytest.mark.parametrize("sound", [False, True])
def test_who_finds_everything_in_place_must_still_sync_it(sound: bool) -> None:
    """No sync failed: opening the directory did, so that its new name was never synced."""

    def save(directory: Path, text: str) -> None:
        inside = directory / "inside"
        if sound or not inside.exists():
            inside.mkdir(exist_ok=True)
            sync_directory(directory)
        with open(inside / "new", "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(inside / "new", inside / "note")
        sync_directory(inside)

    def recover(directory: Path) -> str:
        note = directory / "inside" / "note"
        return note.read_text() if note.exists() else "nothing"

    report = FaultInjector(errors=["EMFILE"], operations=["open"], persistent=False).sweep(
        workload=lambda d: save(d, "new"), recover=recover
    )
    if sound:
        assert report.ok is True, str(report)
        return
    assert {finding.kind for finding in report.findings} == {FaultKind.POWER_LOSS}, str(report)
    assert "a call failed, doing it again succeeded" in report.findings[0].observed


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def test_who_acknowledges_nothing_has_not_reported_success() -> None:
    def careful(directory: Path, acknowledge: Callable[[object], None]) -> None:
        with suppress(OSError):
            store(directory, 2)
            acknowledge(2)

    def careless(directory: Path, acknowledge: Callable[[object], None]) -> None:
        with suppress(OSError):
            store(directory, 2)
        acknowledge(2)

    injector = FaultInjector(errors=["ENOSPC", "EIO"], operations=["write", "fsync"])
    arguments: dict[str, Any] = {"setup": lambda d: store(d, 1), "recover": state, "before": 1}
    report = injector.sweep(workload=careful, **arguments)
    assert report.ok is True, str(report)
    report = injector.sweep(workload=careless, states=0, **arguments)
    assert FaultKind.SILENT in {finding.kind for finding in report.findings}, str(report)


def test_a_call_at_which_a_run_has_hung_is_not_tried_again_and_again() -> None:
    """Each takes its whole limit and more: a sweep with a hundred faults took minutes."""
    lock = threading.Lock()

    def keeps_its_lock(directory: Path) -> None:
        assert lock.acquire(timeout=60)
        store(directory, 2)
        lock.release()

    report = FaultInjector(
        errors=["ENOSPC", "EIO"],
        operations=["fsync", "rename"],
        persistent=False,
        time_limit=0.2,
        states=0,
    ).sweep(setup=lambda d: store(d, 1), workload=keeps_its_lock, recover=state, before=1, after=2)
    assert {finding.kind for finding in report.findings} == {FaultKind.LOCKED}, str(report)
    calls = {finding.site.index for finding in report.findings}
    assert report.cases == len(calls) > 1
    assert any("faults were not tried: at the same call" in each for each in report.not_covered)


def test_a_lock_that_is_kept_on_purpose_is_not_left() -> None:
    kept: list[int] = []

    def locked_for_good(directory: Path) -> None:
        kept.append(os.open(directory / "lock", os.O_RDWR | os.O_CREAT))
        fcntl.lockf(kept[-1], fcntl.LOCK_EX)
        store(directory, 2)

    report = FaultInjector(errors=["ENOSPC"], operations=["fsync"], persistent=False).sweep(
        setup=lambda d: store(d, 1), workload=locked_for_good, recover=state, before=1, after=2
    )
    for descriptor in kept:
        os.close(descriptor)
    assert report.findings == (), str(report)


def test_sqlite_passes_but_for_a_directory_that_it_cannot_open() -> None:
    report = sweep(ZOO / "sqlite_extra.py", persistent=False, states=12, errors=["EIO"])
    assert report.cases > 20
    again = [each for each in report.findings if "doing it again succeeded" in each.observed]
    first = [each for each in report.findings if each not in again]
    assert {finding.site.function for finding in first} == {"sqlite.openDirectory"}
    # It says so when it could not sync that the journal is gone. Told to save again, it has nothing
    # to write, and succeeds without a sync: the journal may come back and undo what was saved.
    assert {finding.site.function for finding in again} == {"sqlite.syncDirectory"}
    assert {finding.kind for finding in report.findings} == {FaultKind.POWER_LOSS}


def test_a_failed_directory_sync_inside_sqlite_is_seen() -> None:
    """SQLite ignores it when it has made a journal, so only the power-loss states can tell."""
    path = ZOO / "sqlite_two_pages.py"
    options = {**FAILED_SYNC, "states": 30}
    report = sweep(path, **options)
    assert [site.function for site in report.sites].count("sqlite.syncDirectory") == 2
    (finding,) = report.findings
    assert finding.kind is FaultKind.POWER_LOSS
    assert finding.site.function == "sqlite.syncDirectory"
    assert "not on disk: create state.db-journal" in finding.observed
    # There fsync of the journal has brought its name to the disk already, but may not take it away.
    for finding in sweep(path, model="ext4", **options).findings:
        assert "doing it again succeeded" in finding.observed


@pytest.mark.parametrize(
    ("which", "reported"), [(0, ""), (1, "SQLITE_IOERR_DIR_FSYNC")], ids=["made", "removed"]
)
def test_a_failed_directory_sync_inside_sqlite_is_in_the_trace(
    tmp_path: Path, which: int, reported: str
) -> None:
    """After it removed a journal SQLite reports it; after it made one the trace alone knows."""
    from pytest_statepersist.faults.sqlite import sqlite_gate

    spec, counting, answer = load(ZOO / "sqlite_two_pages.py").SPEC, Counting(), ""
    for name in ("counted", "recorded"):
        (tmp_path / name).mkdir()
        spec.setup(tmp_path / name)
    with sqlite_gate(), gated(tmp_path / "counted", counting):
        spec.workload(tmp_path / "counted")
    syncs = [s.index for s in counting.sites if s.function == "sqlite.syncDirectory"]
    companions, _ = sqlite_companions()
    recorder = PythonRecorder(tmp_path / "recorded", companions=companions)
    fault = Injection(Fault(syncs[which], "EIO"))
    with installed(), sqlite_gate(), recorder, gated(tmp_path / "recorded", fault):
        try:
            spec.workload(tmp_path / "recorded")
        except sqlite3.OperationalError as error:
            answer = error.sqlite_errorname
    directory = [o for o in recorder.trace.operations if isinstance(o, op.Fsync) and not o.inode]
    assert [o.failed for o in directory] == [which == 0, which == 1]
    assert answer == reported


@pytest.mark.parametrize("model", ["ext4", "xfs", "btrfs"])
def test_a_second_fsync_is_not_believed_on_any_file_system(model: str) -> None:
    path = ZOO / "broken" / "retries_fsync.py"
    report = sweep(path, model=model, operations=["fsync"], errors=["EIO"], recovery=False)
    (finding,) = report.findings
    # On btrfs what was written is gone at once, elsewhere with the power.
    reverts = model == "btrfs"
    assert finding.kind is (FaultKind.UNRECOVERABLE if reverts else FaultKind.POWER_LOSS)
    assert finding.fault.leaves is (Leftover.REVERTED if reverts else Leftover.KEPT)
    assert finding.operation is Operation.FSYNC
    assert finding.errno == "EIO"


def test_a_kill_loses_nothing_of_what_a_failed_sync_leaves() -> None:
    """A killed process leaves the page cache to the system."""
    path = ZOO / "broken" / "retries_fsync.py"
    assert sweep(path, model="kill", operations=["fsync"]).ok is True


def test_pages_that_read_well_after_a_failed_sync_are_not_on_disk() -> None:
    path = ZOO / "broken" / "old_temporary_believed.py"
    report = sweep(path, model="ext4", **FAILED_SYNC)
    assert [finding.kind for finding in report.findings] == [FaultKind.POWER_LOSS], str(report)
    assert "doing it again succeeded" in report.findings[0].observed
    # On btrfs the temporary is empty again, and written anew.
    assert sweep(path, model="btrfs", **FAILED_SYNC).ok is True


@pytest.mark.parametrize(("model", "ok"), [("ext4", True), ("btrfs", False), ("posix", False)])
def test_what_reverts_leaves_a_hole_behind_it(model: str, ok: bool) -> None:
    """On ext4 the next entry of a log takes along the one that failed; on btrfs that is gone."""

    def append(directory: Path, acknowledge: Callable[[object], None]) -> None:
        with open(directory / "log", "r+b", buffering=0) as log:
            end = log.seek(0, os.SEEK_END)
            for entry in (2, 3):
                end += os.pwrite(log.fileno(), b"%d\n" % entry, end)
                with suppress(OSError):
                    os.fsync(log.fileno())
                    acknowledge(entry)

    def entries(directory: Path) -> set[int]:
        lines = (directory / "log").read_bytes().split(b"\n")
        whole = itertools.takewhile(bytes.isdigit, lines)
        return {int(line) for line in whole}

    report = FaultInjector(model=model, **FAILED_SYNC).sweep(
        setup=lambda d: replace_durably(d / "log", b"1\n"),
        workload=append,
        recover=entries,
        invariant=lambda found, done: {1, *done} <= found,
    )
    assert report.ok is ok, str(report)
    assert {finding.fault.leaves for finding in report.findings} <= {Leftover.REVERTED}


@pytest.mark.parametrize("after", [2, 3])
def test_after_counts_beside_an_invariant(after: int) -> None:
    """A sync that fails is passed over, which this invariant allows; what was saved is gone."""

    def save(directory: Path) -> None:
        with suppress(OSError):
            replace_durably(directory / "n", b"2")

    def sweep() -> Any:
        return FaultInjector(errors=["EIO"], operations=["fsync"]).sweep(
            setup=lambda d: replace_durably(d / "n", b"1"),
            workload=save,
            recover=lambda d: int((d / "n").read_bytes()),
            invariant=lambda found, done: found >= 1,
            after=after,
        )

    if after == 3:
        with pytest.raises(UserError, match="without any fault recovery returned 2"):
            sweep()
        return
    assert {finding.kind for finding in sweep().findings} >= {FaultKind.SILENT}


def append_locked(directory: Path, entry: int) -> None:
    """Rename without a sync of the directory: the last entry can always be lost."""
    with FileLock(directory / "lock"):
        with suppress(FileNotFoundError):
            shutil.copy(directory / "log", directory / "new")
        with open(directory / "new", "ab") as log:
            log.write(bytes([entry]))
            log.flush()
            os.fsync(log.fileno())
        os.replace(directory / "new", directory / "log")


@pytest.mark.parametrize("persistent", [False, True])
def test_a_fault_in_a_library_is_at_the_line_that_called_it(persistent: bool) -> None:
    """And an entry that is there twice, since a lock was not given back, may be lost once."""
    report = FaultInjector(errors=["ENOLCK"], persistent=[persistent]).sweep(
        setup=lambda d: append_locked(d, 1),
        workload=lambda d: append_locked(d, 2),
        recover=lambda d: (d / "log").read_bytes(),
    )
    assert "durability already" in str(report)
    if not persistent:
        assert not report.findings, str(report)
        return
    (finding,) = report.findings
    assert finding.kind is FaultKind.LOCKED
    assert finding.site.site is not None
    assert finding.site.through is not None
    line = append_locked.__code__.co_firstlineno + 2
    assert str(finding.site.site) == f"{__file__}:{line}"
    assert "filelock" in finding.site.through.file


class Wal:
    """A database in WAL mode; closing it copies the log into it, syncs it, and removes the log.

    SQLite keeps the log where that sync failed. Who takes it away then, because the value reads
    well, leaves it in pages that are marked clean, or (btrfs) in none at all.
    """

    def __init__(self, *, tidies: bool) -> None:
        self.tidies = tidies

    def save(self, directory: Path, value: int) -> None:
        database = sqlite3.connect(directory / "s.db", isolation_level=None)
        with closing(database):
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.execute("CREATE TABLE IF NOT EXISTS numbers (number)")
            database.execute("BEGIN IMMEDIATE")
            database.execute("DELETE FROM numbers")
            database.execute("INSERT INTO numbers VALUES (?)", (value,))
            database.execute("COMMIT")
        if self.tidies:
            (directory / "s.db-wal").unlink(missing_ok=True)

    def load(self, directory: Path) -> list[Any]:
        with closing(sqlite3.connect(directory / "s.db")) as database:
            return database.execute("SELECT number FROM numbers").fetchall()


@pytest.mark.parametrize("model", ["ext4", "xfs", "btrfs"])
def test_what_a_failed_sync_inside_sqlite_leaves(model: str) -> None:
    reports = {
        tidies: FaultInjector(model=model, **FAILED_SYNC).sweep(
            setup=lambda d, store=store: store.save(d, 1),
            workload=lambda d, store=store: store.save(d, 2),
            recover=store.load,
        )
        for tidies, store in ((each, Wal(tidies=each)) for each in (False, True))
    }
    assert reports[False].ok is True, str(reports[False])
    found = {finding.kind: finding for finding in reports[True].findings}
    # Where the sync of the log failed nothing was copied, and it is taken away all the same.
    assert found[FaultKind.SILENT].site.path == "s.db-wal"
    if model == "btrfs":
        assert found[FaultKind.SILENT].count == 2  # that, and the database that is as it was
        assert found[FaultKind.SILENT].fault.leaves is Leftover.REVERTED
    else:
        finding = found[FaultKind.POWER_LOSS]
        assert (finding.site.function, finding.site.path) == ("sqlite.sync", "s.db")
        assert finding.fault.leaves is Leftover.KEPT


def test_what_reverts_inside_sqlite_is_in_the_trace_and_keeps_its_locks(tmp_path: Path) -> None:
    """By SQLite's own descriptor: closing another one would drop the locks of this process."""
    from pytest_statepersist.faults.sqlite import sqlite_gate

    store, counting = Wal(tidies=True), Counting()
    for name in ("counted", "recorded"):
        (tmp_path / name).mkdir()
        store.save(tmp_path / name, 1)
    with sqlite_gate(), gated(tmp_path / "counted", counting):
        store.save(tmp_path / "counted", 2)
    (site,) = (s for s in counting.sites if s.path == "s.db" and s.function == "sqlite.sync")
    assert site.reverts
    before = (tmp_path / "recorded" / "s.db").read_bytes()
    companions, _ = sqlite_companions()
    ignore = shared_memory_in(tmp_path / "recorded")
    recorder = PythonRecorder(tmp_path / "recorded", companions=companions, ignore=ignore)
    fault = Injection(Fault(site.index, "EIO", leaves=Leftover.REVERTED))
    with sqlite_gate(), recorder, gated(tmp_path / "recorded", fault):
        store.save(tmp_path / "recorded", 2)
    assert (tmp_path / "recorded" / "s.db").read_bytes() == before
    calls = [type(o) for o in recorder.trace.operations if getattr(o, "path", "") == "s.db"]
    failed = [getattr(o, "failed", False) for o in recorder.trace.operations]
    assert failed.count(True) == 1
    assert calls[calls.index(op.Fsync) + 1 :][:2] == [op.Truncate, op.Write]


@pytest.mark.parametrize("model", ["posix", "ext4", "btrfs"])
def test_a_failed_sync_of_a_directory_is_followed_by_power_failures(model: str) -> None:
    """It leaves no content that could be kept or revert: what is lost is the same everywhere."""

    def save(directory: Path, text: str) -> None:
        with open(directory / "note.tmp", "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(directory / "note.tmp", directory / "note")
        fd = os.open(directory, os.O_RDONLY)
        try:
            with suppress(OSError):
                os.fsync(fd)
        finally:
            os.close(fd)

    report = FaultInjector(model=model, **FAILED_SYNC).sweep(
        setup=lambda d: save(d, "old"),
        workload=lambda d: save(d, "new"),
        recover=lambda d: (d / "note").read_text(),
    )
    assert [finding.kind for finding in report.findings] == [FaultKind.POWER_LOSS], str(report)
    assert report.findings[0].site.path == ""


def test_who_takes_a_link_that_cannot_be_read_for_none_is_caught() -> None:
    """Many a store names its newest version by a link."""

    def save(directory: Path, version: int) -> None:
        replace_durably(directory / str(version), b"%d" % version)
        os.symlink(str(version), directory / "next")
        os.replace(directory / "next", directory / "current")
        fd = os.open(directory, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    def load(directory: Path) -> bytes:
        try:
            newest = os.readlink(directory / "current")
        except OSError:
            return b"nothing"
        return (directory / newest).read_bytes()

    report = FaultInjector(errors=["EIO"], operations=["read"], persistent=False, states=0).sweep(
        setup=lambda d: save(d, 1), workload=lambda d: save(d, 2), recover=load
    )
    assert {(f.kind, f.site.function) for f in report.findings} == {
        (FaultKind.WRONG_ANSWER, "os.readlink")
    }


def test_looks_of_a_recorder_and_of_what_resolves_links_are_no_calls_of_the_subject(
    tmp_path: Path,
) -> None:
    """A run that is recorded makes the same calls as one that is not: faults are put by number."""

    def look(directory: Path) -> tuple[bool, ...]:
        os.rename(directory / "a", directory / "b")
        sqlite3.connect(directory / "s.db").execute("PRAGMA journal_mode=WAL").connection.close()
        shutil.copy(directory / "b", directory.resolve() / "c")
        return os.path.exists(directory / "c"), os.access(directory / "c", os.R_OK)

    sites = []
    for name in ("alone", "recorded"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(b"1")
        counting = Counting()
        recorder = PythonRecorder(
            tmp_path / name,
            companions=sqlite_companions()[0],
            ignore=shared_memory_in(tmp_path / name),
        )
        with recorder if name == "recorded" else nullcontext(), gated(tmp_path / name, counting):
            assert look(tmp_path / name) == (True, True)
        sites.append([(s.function, s.path) for s in counting.sites])
        (tmp_path / name / "b").rename(tmp_path / name / "a")
        (tmp_path / name / "c").unlink()
        with gated(tmp_path / name, Injection(Fault(len(sites[-1]) - 1, "EACCES"))):
            assert look(tmp_path / name) == (True, False)
    assert sites[0] == sites[1]
    assert sites[0][-2:] == [("os.stat", "c"), ("os.access", "c")]


def test_a_failed_sync_puts_back_what_the_last_one_left(tmp_path: Path) -> None:
    """The whole file, size included, however it was opened; and the trace holds it."""
    (tmp_path / "f").write_bytes(b"synced before")

    def save() -> bytes:
        with open(tmp_path / "f", "ab", buffering=0) as file:
            file.write(b", and now")
            os.fsync(file.fileno())
            file.write(b", and never")
            os.truncate(tmp_path / "f", 4)
            with suppress(OSError):
                os.fsync(file.fileno())
        return (tmp_path / "f").read_bytes()

    counting = Counting()
    with installed(), gated(tmp_path, counting):
        assert save() == b"sync"
    syncs = [site for site in counting.sites if site.operation is Operation.FSYNC]
    assert all(site.reverts for site in syncs)
    (tmp_path / "f").write_bytes(b"synced before")
    fault = Fault(syncs[1].index, "EIO", leaves=Leftover.REVERTED)
    recorder = PythonRecorder(tmp_path)
    with installed(), recorder, gated(tmp_path, Injection(fault)):
        assert save() == b"synced before, and now"
    assert [o.failed for o in recorder.trace.operations if isinstance(o, op.Fsync)] == [False, True]


def state(path: Path) -> Any:
    return json.loads((path / "state.json").read_text())


def store(path: Path, value: Any) -> None:
    replace_durably(path / "state.json", json.dumps(value).encode())


def test_check_raises_with_the_line_the_error_and_what_was_lost(tmp_path: Path) -> None:
    def careless(directory: Path) -> None:
        (directory / "state.json").write_text("22222222")

    with pytest.raises(CrashConsistencyError) as caught:
        FaultInjector(errors=["ENOSPC"], states=0).check(
            setup=lambda d: store(d, 1), workload=careless, recover=state, before=1, after=22222222
        )
    text = str(caught.value)
    assert "ENOSPC" in text
    assert "test_faults.py" in text
    assert "returned 2222" in text


def test_it_runs_from_nothing_saved_and_over_several_saves() -> None:
    report = FaultInjector(states=30).sweep(
        workload=lambda d: store(d, [1]), recover=state, before=raises(FileNotFoundError)
    )
    assert report.findings == ()

    def saves(directory: Path, acknowledge: Callable[[object], None]) -> None:
        for number in range(1, 4):
            store(directory, number)
            acknowledge(number)

    report = FaultInjector(states=40).sweep(
        setup=lambda d: store(d, 0),
        workload=saves,
        recover=state,
        invariant=lambda found, done: found in (len(done), len(done) + 1) or found in done,
    )
    assert report.findings == (), str(report)
    assert {site.operation for site in report.sites} >= {Operation.FSYNC, Operation.RENAME}


def test_a_workload_that_adds_may_add_twice_when_it_is_done_again() -> None:
    def add(directory: Path) -> None:
        store(directory, state(directory) + 1)

    report = FaultInjector().sweep(
        setup=lambda d: store(d, 1), workload=add, recover=state, before=1, after=2
    )
    assert report.ok is True, str(report)


def test_what_cannot_tell_is_not_covered() -> None:
    arguments: dict[str, Any] = {
        "setup": lambda d: store(d, 1),
        "workload": lambda d: store(d, 1),
        "recover": state,
    }
    report = FaultInjector(states=0).sweep(**arguments)
    assert report.ok is None
    assert "cannot tell" in report.not_covered[0]
    with pytest.raises(NotCovered, match="cannot tell"):
        FaultInjector(states=0, errors=["EIO"], operations=["write"]).check(**arguments)


def test_a_cut_sweep_and_one_without_faults_are_not_covered() -> None:
    save: dict[str, Any] = {
        "setup": lambda d: store(d, 1),
        "workload": lambda d: store(d, 2),
        "recover": state,
    }
    report = FaultInjector(cases=5, states=0).sweep(**save)
    assert report.cases == 5
    assert report.ok is None
    report = FaultInjector(operations=["mkdir"]).sweep(**save)
    assert report.cases == 0
    assert report.ok is None


def test_writes_through_a_map_are_not_covered() -> None:
    def mapped(directory: Path) -> None:
        with open(directory / "map", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            view[:1] = b"2"
            view.flush()

    report = FaultInjector(states=0).sweep(
        setup=lambda d: (d / "map").write_bytes(b"1" * 4096),
        workload=mapped,
        recover=lambda d: (d / "map").read_bytes()[:1],
    )
    assert report.ok is None
    assert any("map" in each for each in report.not_covered)


def test_a_cache_in_the_process_is_noticed() -> None:
    cache: dict[Path, int] = {}

    def save(directory: Path, value: int) -> None:
        cache[directory] = value
        (directory / "state.json").write_text(str(value).rjust(20))

    report = FaultInjector(errors=["ENOSPC"], persistent=True, recovery=False, states=0).sweep(
        setup=lambda d: save(d, 1),
        workload=lambda d: save(d, 2),
        recover=lambda d: cache[d] if d in cache else state(d),
        before=1,
        after=2,
    )
    assert report.ok is False  # the cache said 2; the disk holds half of it
    assert any("fresh" in each for each in report.warnings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"errors": ["EPERMANENT"]},
        {"operations": ["frobnicate"]},
        {"persistent": ()},
        {"time_limit": 0},
        {"errors": ()},
    ],
)
def test_wrong_options_are_user_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        FaultInjector(**wrong)


def test_a_workload_that_fails_by_itself_is_a_user_error() -> None:
    with pytest.raises(UserError, match="without a crash"):
        FaultInjector().sweep(workload=lambda d: 1 / 0, recover=lambda d: None)


# -- single calls


@pytest.fixture
def gate_of(tmp_path: Path) -> Iterator[Callable[[Any], Any]]:
    with installed():
        yield lambda handler: gated(tmp_path, handler)


def counted(tmp_path: Path, gate_of: Any, work: Callable[[], object]) -> list[tuple[str, str]]:
    counting = Counting()
    with gate_of(counting):
        work()
    return [(site.operation.value, site.path) for site in counting.sites]


def test_a_place_is_the_same_in_whatever_way_it_is_written(tmp_path: Path) -> None:
    gate = Gate(tmp_path, lambda call, run: run())
    pieces = ["", ".", "..", "a", ".b", "c.", "..d", tmp_path.name]
    for parts in itertools.product(pieces, repeat=3):
        path = f"{tmp_path}/{'/'.join(parts)}"
        plain, root = os.path.abspath(path), f"{tmp_path}/"
        expected = plain[len(root) :] if plain.startswith(root) else None
        assert gate.place(path) == ("" if plain == str(tmp_path) else expected), path
        assert gate.place(os.fsencode(path)) == gate.place(path)


def test_every_kind_of_call_is_seen_with_its_path(tmp_path: Path, gate_of: Any) -> None:
    def work() -> None:
        (tmp_path / "d").mkdir()
        with open(tmp_path / "d" / "f", "w") as file:
            file.write("x")
        os.link(tmp_path / "d" / "f", tmp_path / "g")
        os.symlink("g", tmp_path / "s")
        os.truncate(tmp_path / "g", 0)
        os.chmod(tmp_path / "g", 0o600)
        os.rename("d/f", "f", src_dir_fd=top, dst_dir_fd=top)
        os.listdir(tmp_path)
        raw = io.FileIO(tmp_path / "f", "r+")
        raw.write(b"abc")
        raw.close()
        (tmp_path / "f").read_bytes()
        (tmp_path / "f").unlink()
        (tmp_path / "d").rmdir()
        (tmp_path.parent / "elsewhere").write_text("not seen")

    top = os.open(tmp_path, os.O_RDONLY)
    seen = counted(tmp_path, gate_of, work)
    os.close(top)
    assert ("mkdir", "d") in seen
    assert ("open", "d/f") in seen
    assert ("write", "d/f") in seen
    assert ("link", "g") in seen
    assert ("symlink", "s") in seen
    assert ("truncate", "g") in seen
    assert ("attributes", "g") in seen
    assert ("rename", "f") in seen
    assert ("list", "") in seen
    assert ("write", "f") in seen
    assert ("read", "f") in seen
    assert ("unlink", "f") in seen
    assert ("rmdir", "d") in seen
    assert not any("elsewhere" in path for _, path in seen)


def test_files_stay_the_interpreters_own(tmp_path: Path, gate_of: Any) -> None:
    with gate_of(Counting()), open(tmp_path / "f", "wb", buffering=0) as raw:
        assert isinstance(raw, io.FileIO)
        assert not isinstance(3, io.FileIO)
        assert type(raw).__name__ == "FileIO"


def test_the_recorder_sees_only_what_happened(tmp_path: Path, gate_of: Any) -> None:
    def save() -> None:
        with open(tmp_path / "f", "wb", buffering=0) as file:
            file.write(b"0123456789")
            os.fsync(file.fileno())

    for index, error, expected in (
        (1, "ENOSPC", [op.Create, op.Close]),
        (1, "short", [op.Create, op.Write, op.Fsync, op.Close]),
        (2, "EIO", [op.Create, op.Write, op.Fsync, op.Close]),
    ):
        recorder = PythonRecorder(tmp_path)
        with recorder, gate_of(Injection(Fault(index, error))), suppress(OSError):
            save()
        operations = recorder.trace.operations
        kinds = [type(each) for each in operations]
        assert [kind for kind in kinds if kind in expected] == [
            kind for kind in expected if kind in kinds
        ]
        syncs = [each for each in operations if isinstance(each, op.Fsync)]
        assert [each.failed for each in syncs] == ([error == "EIO"] if syncs else [])
        writes = [each for each in operations if isinstance(each, op.Write)]
        if error == "short":
            assert writes[0].data == b"01234"
        os.unlink(tmp_path / "f")


def test_a_full_disk_stops_in_the_middle_of_a_write(tmp_path: Path, gate_of: Any) -> None:
    with gate_of(Injection(Fault(0, "ENOSPC", persistent=True))):
        pass
    injection = Injection(Fault(1, "ENOSPC", persistent=True))
    with gate_of(injection), pytest.raises(OSError) as caught, open(tmp_path / "f", "wb") as file:
        file.write(b"0123456789")
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "f").read_bytes() == b"01234"
    assert injection.hits == 2  # what is left over is written by close, and there is no room


@pytest.mark.parametrize("operation", Operation)
def test_only_errors_that_fit_are_injected(operation: Operation) -> None:
    call = Call(operation, "f", "f", size=8, shorten=lambda count: count)
    errors = fitting(call)
    assert set(errors) <= set(ERRORS)
    assert errors
    assert ("short" in errors) is (operation is Operation.WRITE)
    assert ("EINTR" in errors) is (operation is Operation.CLOSE)
    call.native = True
    assert ("EINTR" in fitting(call)) is (
        operation
        in (Operation.CLOSE, Operation.OPEN, Operation.READ, Operation.WRITE, Operation.FSYNC)
    )


def test_sqlite_reports_what_its_calls_meet(tmp_path: Path) -> None:
    from pytest_statepersist.faults.sqlite import sqlite_gate

    with closing(sqlite3.connect(tmp_path / "s.db")) as database:
        database.execute("CREATE TABLE t (v)")
    messages = set()
    for error in ("ENOSPC", "EIO"):
        for index in range(12):
            with sqlite_gate(), gated(tmp_path, Injection(Fault(index, error, persistent=True))):
                try:
                    with closing(sqlite3.connect(tmp_path / "s.db")) as database, database:
                        database.execute("INSERT INTO t VALUES (1)")
                except sqlite3.DatabaseError as raised:
                    messages.add(raised.sqlite_errorname.split("_")[1])
            with closing(sqlite3.connect(tmp_path / "s.db")) as database:
                assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert {"FULL", "IOERR"} <= messages


def test_sqlite_closes_whatever_close_says(tmp_path: Path) -> None:
    from pytest_statepersist.faults.sqlite import sqlite_gate

    def save() -> None:
        with closing(sqlite3.connect(tmp_path / "s.db")) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS t (v)")

    counting = Counting()
    with sqlite_gate(), gated(tmp_path, counting):
        save()
    closes = [site for site in counting.sites if site.operation is Operation.CLOSE]
    assert {site.path for site in closes} == {"s.db", "s.db-journal"}
    assert set(closes[0].errors) == {"EIO", "ENOSPC", "EDQUOT", "EINTR"}
    before = len(os.listdir("/dev/fd"))
    with (
        sqlite_gate(),
        gated(tmp_path, Injection(Fault(0, "EIO", persistent=True))),
        suppress(sqlite3.OperationalError),
    ):
        save()
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.skipif(not locks_known(), reason="the system does not tell")
def test_locks_of_this_process_are_found(tmp_path: Path) -> None:
    with open(tmp_path / "a", "w") as one, open(tmp_path / "b", "w") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        fcntl.lockf(two, fcntl.LOCK_EX)
        assert held_locks(str(tmp_path)) == {("a", "FLOCK"), ("b", "POSIX")}
        assert (
            held_locks(str(tmp_path / "c")) == frozenset()
        )  # as another disk, with its own inodes
        os.unlink(tmp_path / "a")
        assert held_locks(str(tmp_path)) == {("b", "POSIX")}
    assert held_locks(str(tmp_path)) == frozenset()


# -- machines that are busy


@pytest.mark.parametrize("fresh", [False, True], ids=["this process", "a fresh one"])
def test_a_machine_that_is_busy_is_no_hang(tmp_path: Path, fresh: bool) -> None:
    """A run exceeds its limit once and never again: that was the machine, not the subject."""
    late, lock = tmp_path / "late", threading.Lock()

    def save(directory: Path) -> None:
        lock.acquire()
        try:
            store(directory, 2)
        except OSError:
            if not late.exists():
                late.touch()
                time.sleep(0.6)  # ended by the limit: as if the machine had stood still
            raise
        finally:
            interrupted = late.exists() and not late.read_text()
            if interrupted:
                late.write_text("never again")
            if not (interrupted and fresh):
                lock.release()

    report = FaultInjector(
        errors=["EIO"], operations=["fsync"], persistent=False, time_limit=0.3, states=0
    ).sweep(setup=lambda d: store(d, 1), workload=save, recover=state, before=1, after=2)
    assert late.exists()
    assert report.findings == (), str(report)
    assert report.ok is True, str(report)
    # Where the interruption left something locked here, the rest runs elsewhere, and that is told.
    assert [("locked in this process" in each) for each in report.warnings] == [True] * fresh


def test_a_hang_that_swallows_its_end_is_one() -> None:
    def recover(directory: Path) -> int:
        with suppress(BaseException):
            time.sleep(5)
        return 1

    assert run_recovery(recover, None, 0.1).ended is Ended.HUNG


def test_a_file_left_to_the_collector_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector clears references to a file first; its lock must not be held for ever."""

    class Holder:
        pass

    with installed(), gated(tmp_path, lambda call, run: run()):
        holder: Any = Holder()
        holder.itself = holder
        holder.file = open(tmp_path / "locked", "wb")  # noqa: SIM115  (it is left open)
        fd = holder.file.fileno()
        closed: list[int] = []
        close = real.close
        monkeypatch.setattr(real, "close", lambda each: closed.append(each) or close(each))
        fcntl.flock(fd, fcntl.LOCK_EX)
        del holder
        with pytest.warns(ResourceWarning, match="unclosed file"):
            gc.collect()
    assert closed.count(fd) == 1  # by the second time the number may be another file's
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with open(tmp_path / "locked", "rb") as again:
        fcntl.flock(again.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
