"""The store lock: reentrant in a thread, exclusive between threads, objects and processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_statepersist.reference.errors import LockTimeout, StorageError, ValidationError
from pytest_statepersist.reference.locking import StoreLock


def test_is_reentrant_and_releases_at_the_last_exit(tmp_path: Path) -> None:
    lock = StoreLock(tmp_path / ".lock", timeout=0)
    with lock, lock:
        assert lock.held
        with pytest.raises(LockTimeout, match="another process or store object"):
            StoreLock(tmp_path / ".lock", timeout=0).acquire()
    assert not lock.held
    with StoreLock(tmp_path / ".lock", timeout=0):
        pass


def test_only_the_thread_that_holds_it_gives_it_back(tmp_path: Path) -> None:
    """Another thread, or one too many, changes nothing: the lock stays with whoever has it."""
    lock, other = (StoreLock(tmp_path / ".lock", timeout=0) for _ in range(2))
    said: list[str] = []

    def release() -> None:
        try:
            lock.release()
        except ValidationError as error:
            said.append(str(error))

    lock.acquire()
    thread = threading.Thread(target=release)
    thread.start()
    thread.join()
    assert lock.held
    with pytest.raises(LockTimeout):
        other.acquire()
    lock.release()
    release()
    assert len(said) == 2
    with other, pytest.raises(LockTimeout):
        lock.acquire()
    with lock:
        pass


def test_excludes_other_threads(tmp_path: Path) -> None:
    lock = StoreLock(tmp_path / ".lock", timeout=0.01)
    errors: list[BaseException] = []

    def other() -> None:
        try:
            lock.acquire()
        except LockTimeout as error:
            errors.append(error)

    with lock:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "another thread" in str(errors[0])


def test_counts_right_with_many_threads(tmp_path: Path) -> None:
    lock = StoreLock(tmp_path / ".lock", timeout=30)
    number = 0

    def work() -> None:
        nonlocal number
        for _ in range(50):
            with lock:
                read = number
                number = read + 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert number == 200


def test_excludes_another_process_until_it_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pytest_statepersist.reference.locking import StoreLock\n"
        "lock = StoreLock(sys.argv[1])\n"
        "lock.acquire()\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    path = tmp_path / ".lock"
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=root,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"held"
        with pytest.raises(LockTimeout):
            StoreLock(path, timeout=0.05).acquire()
        holder.kill()
        holder.wait()
    with StoreLock(path, timeout=5):
        pass


def test_a_lock_file_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    lock = StoreLock(tmp_path / "f" / ".lock", timeout=0)
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(StorageError):
        lock.acquire()
    assert not lock.held


@pytest.mark.skipif(os.name == "nt", reason="flock is of POSIX")
@pytest.mark.parametrize("times", [1, 3])
def test_a_lock_that_the_system_does_not_release_is_released_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Who held it has done what he wanted and hears no error; nobody is kept out for ever."""
    import fcntl

    refusals = iter([OSError(errno.ENOLCK, "No locks available")] * times)
    really = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_UN:
            for error in refusals:
                raise error
        really(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock, other = (StoreLock(tmp_path / ".lock", timeout=0) for _ in range(2))
    with lock:
        pass
    assert not lock.held
    if times > 1:  # two at the release: a third at the first attempt to take it
        with pytest.raises(LockTimeout):
            other.acquire()
    with other, pytest.raises(LockTimeout):
        lock.acquire()
    with lock:
        pass
