"""What a fault sweep takes over from one case to the next changes none of its answers.

A sweep records a run once for all faults that lead to the same calls, explores a trace once, and
runs a recovery once on each disk. Here random stores are swept with and without all that.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.fault_injector import FaultInjector
from pytest_statepersist.fault_sweep.changes import Changes
from pytest_statepersist.fault_sweep.run import SweepRun
from pytest_statepersist.faults.installing import installed
from pytest_statepersist.faults.report import FaultKind, FaultReport
from pytest_statepersist.recorders import rebind
from pytest_statepersist.recorders.interpose import Interposition

SOAK = os.environ.get("STATEPERSIST_PROFILE") == "soak"
SEEDS = range(60) if SOAK else (7, 21)

Save = Callable[[Path, bytes], None]

KINDS = {7: {FaultKind.MIXTURE, FaultKind.POWER_LOSS, FaultKind.SILENT}, 21: set[FaultKind]()}
"""What is wrong with two of the stores: else nothing would be compared with nothing."""


@pytest.fixture(scope="module", autouse=True)
def replacements_once() -> Iterator[None]:
    """Put in place for all tests what each sweep would put in place for itself."""
    with installed():
        yield


class Forgets(dict[Any, Any]):
    """A memory that finds nothing again."""

    def get(self, key: Any, default: Any = None) -> Any:
        return default

    def setdefault(self, key: Any, default: Any = None) -> Any:
        return default


def store(seed: int) -> Save:
    """Return a way to save, sound or not: what it syncs, tries again, overlooks and replaces."""
    chance = random.Random(seed)
    syncs = chance.choice(["never", "once", "once", "until it works"])
    replaces = chance.random() < 0.7
    loops, durable = chance.random() < 0.7, chance.random() < 0.7
    overlooks = {each for each in ("write", "sync", "close") if chance.random() < 0.2}

    def attempt(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except OSError:
            if what not in overlooks:
                raise
            return 0

    def sync(descriptor: int) -> None:
        try:
            attempt("sync", os.fsync, descriptor)
        except OSError:
            if syncs != "until it works":
                raise
            os.fsync(descriptor)

    def save(directory: Path, data: bytes) -> None:
        final = directory / "state"
        path = directory / "temporary" if replaces else final
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            left = data
            while left:
                written = attempt("write", os.write, descriptor, left)
                left = left[written:] if loops and written else b""
            if syncs != "never":
                sync(descriptor)
        finally:
            attempt("close", os.close, descriptor)
        if replaces:
            os.replace(path, final)
        if durable:
            directory_descriptor = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(directory_descriptor)
            finally:
                os.close(directory_descriptor)

    return save


def sweep(save: Save) -> FaultReport:
    models = ("posix", "btrfs") if SOAK else ("posix",)
    return FaultInjector(
        errors=("EIO", "ENOSPC", "short"), recovery=False, states=20, model=models
    ).sweep(
        setup=lambda d: save(d, b"old" * 9),
        workload=lambda d: save(d, b"new" * 9),
        recover=lambda d: (d / "state").read_bytes(),
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_without_sharing_the_findings_are_the_same(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = store(seed)
    shared = sweep(save)
    enter = SweepRun.__enter__

    def forgetting(run: SweepRun) -> SweepRun:
        run.cases._runs = Forgets()
        run.cases._retried = Forgets()
        run.power._judged = Forgets()
        run.power._outcomes = Forgets()
        return enter(run)

    monkeypatch.setattr(SweepRun, "__enter__", forgetting)
    plain = sweep(save)
    assert shared.cases == plain.cases > 10
    assert shared.sites == plain.sites
    assert shared.not_covered == plain.not_covered
    assert [tell(each) for each in shared.findings] == [tell(each) for each in plain.findings]
    assert 0 < shared.states < plain.states  # else nothing was shared
    if seed in KINDS:
        assert {each.kind for each in shared.findings} == KINDS[seed]


def tell(finding: Any) -> tuple[Any, ...]:
    return (finding.kind, finding.site, finding.fault, finding.errors, finding.count)


def test_a_change_that_leaves_size_and_times_is_seen(tmp_path: Path) -> None:
    path, changes = tmp_path / "state", Changes(str(tmp_path))
    path.write_bytes(b"one")
    status = path.stat()
    for number in range(50):  # within one tick of the clock times do not move at all
        changes.begin()
        assert not changes.any()
        changes.begin()
        with path.open("r+b") as file:
            file.write(b"%03d" % number)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert changes.any()
    changes.close()


def test_changes_are_seen_in_directories_that_are_new_or_made_anew(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "below").mkdir(parents=True)
    changes = Changes(str(state))
    changes.begin()
    (state / "below" / "file").write_bytes(b"")
    assert changes.any()
    changes.begin()
    (state / "below" / "file").unlink()
    (state / "below").rmdir()
    assert changes.any()
    state.rmdir()
    state.mkdir()
    changes.begin()
    assert not changes.any()
    changes.begin()
    (state / "file").write_bytes(b"")
    assert changes.any()
    changes.close()


def test_gates_above_the_recorder_look_for_no_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes a look at the whole heap for each function; the recorder's own holders are known.

    A test before this one may have left something that really holds a function or two.
    """
    looked_for: list[object] = []

    def count(item: object) -> int:
        looked_for.append(item)
        return 0

    monkeypatch.setattr(rebind, "in_dead_frames", count)
    with Interposition(_BELOW, layer=5, rebind=True), Interposition(_ABOVE, layer=6, rebind=True):
        pass
    assert len(looked_for) < 3


def _passing_on(original: Any) -> Any:
    return lambda *arguments, **options: original(*arguments, **options)


def _kept(replacement: Any) -> Callable[[Any], Any]:
    """Hold a replacement by nature, as the recorder's table does."""
    return lambda original: replacement


_PLACES = [(os, n) for n in ("fsync", "rename", "unlink", "mkdir", "rmdir", "link")]
_BELOW = {each: _kept(_passing_on(getattr(*each))) for each in _PLACES}
_ABOVE = dict.fromkeys(_PLACES, _passing_on)
