"""Recoveries that write: what they made is watched, put back, and crashed again."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist import MODELS, BlindSpot, CrashSimulator, Kind, UserError


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def labels_are_kept() -> bool:
    with tempfile.NamedTemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as file:
        try:
            os.setxattr(file.name, "user.version", b"1")
        except (AttributeError, OSError):  # another system; tmpfs before Linux 6.6
            return False
    return True


def save(path: Path, value: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(path.parent)


def test_a_recovery_that_makes_directories_is_crashed_again() -> None:
    def open_store(directory: Path) -> Path:
        store = directory / "deep" / "store"
        for path in (store.parent, store):
            if not path.exists():
                path.mkdir()
                sync(path.parent)
        for path in store.glob("*.tmp"):
            path.unlink()
        if not (store / "value").exists():
            save(store / "value", "nothing yet")
        return store

    def workload(directory: Path) -> None:
        save(open_store(directory) / "value", "saved")

    def recover(directory: Path) -> str:
        return json.loads((open_store(directory) / "value").read_text())

    # What the others allow, posix allows as well, but for reused blocks and names that return.
    every = os.environ.get("STATEPERSIST_PROFILE") == "soak"
    models = list(MODELS) if every else ["posix", "ext4-writeback", "btrfs"]
    report = CrashSimulator().explore(
        workload=workload, recover=recover, before="nothing yet", model=models
    )
    assert report.findings == ()
    assert report.safe


def test_a_recovery_that_forgets_what_it_returned_is_unstable() -> None:
    def recover(directory: Path) -> str:
        new, old = directory / "new", directory / "old"
        if new.exists() and new.read_text().isalpha():
            os.replace(new, old)
        return old.read_text()

    def setup(directory: Path) -> None:
        (directory / "old").write_text("old")
        sync(directory / "old")
        sync(directory)

    def workload(directory: Path) -> None:
        with open(directory / "new", "w") as file:
            file.write("new")
            file.flush()
            os.fsync(file.fileno())
        sync(directory)

    report = CrashSimulator().explore(setup=setup, workload=workload, recover=recover)
    assert report.safe  # the rename may be lost, and recovery then does it again

    def recover_and_clean(directory: Path) -> str:
        new, old = directory / "new", directory / "old"
        if new.exists():
            text = new.read_text()
            new.unlink()
            sync(directory)
            old.write_text(text)
            return text
        return old.read_text()

    broken = CrashSimulator().explore(
        setup=setup, workload=workload, recover=recover_and_clean, before="old", after="new"
    )
    assert not broken.safe
    assert any(finding.failure.step is not None for finding in broken.findings)
    assert broken.verdict("posix").durable is False or broken.verdict("posix").atomic is False


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_crashes_during_recovery_to_a_depth(depth: int) -> None:
    """A recovery that counts its runs down: the damage needs two interrupted recoveries."""

    def setup(directory: Path) -> None:
        save(directory / "state", "old")
        save(directory / "tries", 2)

    def workload(directory: Path) -> None:
        save(directory / "state", "new")

    def recover(directory: Path) -> str:
        tries = json.loads((directory / "tries").read_text())
        save(directory / "tries", tries - 1)
        if tries <= 0:
            return "gave up"
        save(directory / "tries", 2)
        return json.loads((directory / "state").read_text())

    report = CrashSimulator().explore(
        setup=setup,
        workload=workload,
        recover=recover,
        before="old",
        after="new",
        model="kill",
        recovery_crashes=depth,
    )
    assert report.safe is (depth < 2)
    if depth == 2:
        assert {f.kind for f in report.findings} <= {Kind.ATOMICITY, Kind.UNSTABLE}


def test_native_code_that_finds_nothing_is_not_taken_for_code_that_asked_nothing() -> None:
    """SQLite looks for the file itself; where it is missing, no event tells that it looked."""
    import sqlite3

    def workload(directory: Path) -> None:
        connection = sqlite3.connect(directory / "new")
        connection.execute("CREATE TABLE t (x)")
        connection.commit()
        connection.close()
        os.replace(directory / "new", directory / "db")  # the directory is never synced

    def recover(directory: Path) -> str:
        try:
            connection = sqlite3.connect(f"file:{directory / 'db'}?mode=ro", uri=True)
            try:
                connection.execute("SELECT * FROM t")
            finally:
                connection.close()
        except sqlite3.OperationalError:
            return "nothing"
        return "a table"

    report = CrashSimulator().explore(
        workload=workload, recover=recover, before="nothing", after="a table"
    )
    assert report.verdict("posix").durable is False
    assert report.verdict("posix").atomic is True


def test_a_recovery_that_turns_native_on_the_way_starts_again() -> None:
    """Python code first; only a state without the marker lets native code read the rest."""
    import ctypes

    libc = ctypes.CDLL(None)

    def natively(path: Path) -> bytes:
        descriptor = libc.open(os.fsencode(path), os.O_RDONLY)
        if descriptor < 0:
            return b"missing"
        buffer = ctypes.create_string_buffer(16)
        length = libc.read(descriptor, buffer, 16)
        libc.close(descriptor)
        return buffer.raw[:length]

    def setup(directory: Path) -> None:
        (directory / "marker").write_text("old")
        (directory / "data").write_text("old")

    def workload(directory: Path) -> None:
        (directory / "marker").unlink()
        (directory / "data").unlink()
        (directory / "marker").write_text("new")

    def recover(directory: Path) -> str:
        if (directory / "marker").exists():
            return (directory / "marker").read_text() or "empty"
        return natively(directory / "data").decode()

    report = CrashSimulator().explore(
        setup=setup, workload=workload, recover=recover, before="old", after="new"
    )
    observed = {finding.observed.value for finding in report.findings}
    assert "missing" in observed


@pytest.mark.parametrize(("crashes", "remove"), [(0, shutil.rmtree), (1, shutil.rmtree), (1, None)])
def test_a_recovery_that_puts_another_directory_in_place_is_told(
    crashes: int, remove: Any
) -> None:
    """What it left in the new one was in the next states; usually one could not be shown."""

    def recover(directory: Path) -> str:
        found = (directory / "state").read_text()
        if remove is None:
            os.rename(directory, f"{directory}.old{len(os.listdir(directory.parent))}")
        else:
            remove(directory)
        directory.mkdir()
        (directory / "state").write_text(found)
        (directory / "left").write_text("over")
        return found

    with pytest.raises(UserError, match="itself was removed or"):
        CrashSimulator(recovery_crashes=crashes).explore(
            setup=lambda d: save(d / "state", "old"),
            workload=lambda d: save(d / "state", "new"),
            recover=recover,
        )


@pytest.mark.skipif(not labels_are_kept(), reason="no extended attributes where states are shown")
@pytest.mark.parametrize("synced", [True, False])
def test_extended_attributes_are_part_of_what_recovery_reads(synced: bool) -> None:
    """States that differ in attributes alone shared one verdict, which was that of the first."""

    def workload(directory: Path) -> None:
        os.setxattr(directory / "state", "user.version", b"2")
        if synced:
            sync(directory / "state")

    report = CrashSimulator(model="posix", repairs=False).explore(
        setup=lambda d: (
            (d / "state").write_text("x"),
            os.setxattr(d / "state", "user.version", b"1"),
        ),
        workload=workload,
        recover=lambda d: os.getxattr(d / "state", "user.version"),
        before=b"1",
        after=b"2",
    )
    verdict = report.verdict("posix")
    assert verdict.atomic
    assert verdict.durable is synced


@pytest.mark.skipif(not labels_are_kept(), reason="no extended attributes where states are shown")
@pytest.mark.parametrize("recorder", ["python", "strace"])
def test_extended_attributes_of_directories_are_not_covered(recorder: str) -> None:
    with pytest.raises(BlindSpot, match="extended attributes of directories"):
        CrashSimulator(recorder=recorder).explore(
            setup=lambda d: (d / "deep").mkdir(),
            workload=lambda d: os.setxattr(d / "deep", "user.version", b"2"),
            recover=lambda d: os.listxattr(d / "deep"),
        )
