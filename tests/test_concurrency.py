"""Concurrent savers: a lost update is found and replayed, and the same store with a lock passes."""

from __future__ import annotations

import asyncio
import fcntl
import json
import mmap
import multiprocessing
import os
import queue
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pytest_statepersist import CrashConsistencyError, CrashSimulator, NotCovered, UserError
from pytest_statepersist.concurrency import ConcurrencyReport, interposed

LOCK = threading.Lock()


@pytest.fixture(scope="module", autouse=True)
def replacements_once() -> Iterator[None]:
    """Put in place for all tests what each run would put in place for itself."""
    with interposed():
        yield


def load(directory: Path) -> Any:
    return json.loads((directory / "state.json").read_text())


def write(directory: Path, value: Any, name: str) -> None:
    temporary = directory / f"{name}.tmp"
    temporary.write_text(json.dumps(value))
    os.replace(temporary, directory / "state.json")


def setup(directory: Path) -> None:
    write(directory, [], "setup")


def add(directory: Path, *, item: str) -> None:
    """Read, change, write: whoever writes between the two is forgotten."""
    items = load(directory)
    write(directory, [*items, item], item)


def add_with_thread_lock(directory: Path, *, item: str) -> None:
    with LOCK:
        add(directory, item=item)


def add_with_flock(directory: Path, *, item: str) -> None:
    with open(directory / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        add(directory, item=item)


def add_with_lockf(directory: Path, *, item: str) -> None:
    with open(directory / "lock", "a") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        add(directory, item=item)


def add_with_filelock(directory: Path, *, item: str) -> None:
    with FileLock(directory / "lock"):
        add(directory, item=item)


def run(saver: Callable[..., None], **options: Any) -> ConcurrencyReport:
    return CrashSimulator().interleave(
        savers=[partial(saver, item="a"), partial(saver, item="b")],
        setup=setup,
        recover=lambda d: sorted(load(d)),
        **{"runs": 2, "check": False, **options},
    )


@pytest.mark.parametrize("processes", [False, True])
def test_a_lost_update_is_found_and_replayed(processes: bool) -> None:
    report = run(add, processes=processes)
    (finding,) = report.findings
    assert finding.kind == "lost update"
    assert "['a', 'b']" in finding.expected
    again = run(add, processes=processes, schedule=finding.schedule)
    assert again.schedules == 1
    assert again.findings == (finding,)


def add_in_a_thread(directory: Path, *, item: str) -> None:
    thread = threading.Thread(target=partial(add, directory, item=item))
    thread.start()
    thread.join()


async def add_beside_a_loop(directory: Path, *, item: str) -> None:
    await asyncio.to_thread(add, directory, item=item)


def add_in_a_thread_with_lock(directory: Path, *, item: str) -> None:
    thread = threading.Thread(target=partial(add_with_thread_lock, directory, item=item))
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    ("saver", "processes"),
    [(add_in_a_thread, False), (add_in_a_thread, True), (add_beside_a_loop, False)],
)
def test_threads_of_a_saver_are_scheduled(saver: Callable[..., Any], processes: bool) -> None:
    """Whatever they wrote at once went unscheduled, and a store without a lock passed."""
    report = run(saver, processes=processes, schedule="switch:0:3")
    (finding,) = report.findings
    assert finding.kind == "lost update"
    assert (0, "open state.json") in finding.steps


def test_threads_of_a_saver_that_take_a_lock_pass() -> None:
    report = run(add_in_a_thread_with_lock, runs=0)
    assert report.ok is True, str(report)
    assert report.schedules > 8


def test_a_thread_that_never_rests_does_not_hide_that_its_saver_waits() -> None:
    def saver(directory: Path, *, item: str) -> None:
        stop = threading.Event()

        def beat() -> None:
            while not stop.is_set():
                time.sleep(0.001)

        heart = threading.Thread(target=beat)
        heart.start()
        try:
            add_with_thread_lock(directory, item=item)
        finally:
            stop.set()
            heart.join()

    report = run(saver, schedule="switch:0:3")
    assert report.ok is True, str(report)


def test_threads_that_no_saver_has_started_are_not_covered() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # its thread is there before the savers are

        def saver(directory: Path, *, item: str) -> None:
            pool.submit(add, directory, item=item).result()

        report = run(saver, runs=0)
    assert report.ok is None
    assert "no saver had started" in str(report)


def test_a_thread_that_outlives_its_saver_is_not_covered() -> None:
    go, done = threading.Event(), threading.Semaphore(0)

    def late(directory: Path, item: str) -> None:
        go.wait(5)
        with suppress(OSError):  # the directory may be gone
            (directory / item).write_text("late")
        done.release()

    def saver(directory: Path, *, item: str) -> None:
        add(directory, item=item)
        threading.Thread(target=late, args=(directory, item)).start()

    report = run(saver, schedule="switch:0:1", check=False)
    go.set()
    assert done.acquire(timeout=5)
    assert report.ok is not True
    assert any("after its saver had returned" in each for each in report.not_covered)


def test_programs_and_maps_that_write_beside_python_are_not_covered() -> None:
    def by_program(directory: Path, *, item: str) -> None:
        add(directory, item=item)
        subprocess.run(["touch", directory / f"{item}.native"], check=True)

    def by_map(directory: Path, *, item: str) -> None:
        add(directory, item=item)
        with open(directory / item, "w+b") as file:
            file.truncate(8)
            with mmap.mmap(file.fileno(), 8) as view:
                view[:4] = b"done"
                view.flush()

    for saver, words in ((by_program, "a.native"), (by_map, "a memory map")):
        report = run(partial(saver), schedule="switch:0:1")
        assert report.ok is not True
        assert any(words in each for each in report.not_covered), str(report)
        if not report.findings:
            with pytest.raises(NotCovered, match=words):
                report.raise_for_findings()


def test_the_default_raises_and_shows_the_order() -> None:
    with pytest.raises(CrashConsistencyError, match="saver 0: start"):
        run(add, check=True)


@pytest.mark.parametrize(
    ("saver", "processes"),
    [
        (add_with_thread_lock, False),
        (add_with_flock, False),
        (add_with_flock, True),
        (add_with_lockf, True),
        (add_with_filelock, False),
        (add_with_filelock, True),
    ],
)
def test_the_same_store_with_a_lock_passes(saver: Callable[..., None], processes: bool) -> None:
    report = run(saver, processes=processes)
    assert report.ok is True, str(report)
    assert report.schedules > 8


SEMAPHORE, CONDITION, FREE = threading.Semaphore(), threading.Condition(), [True]
RLOCK, QUEUE, SIMPLE = threading.RLock(), queue.Queue[str](), queue.SimpleQueue[str]()
OF_PROCESSES = multiprocessing.Lock()
for each in (QUEUE, SIMPLE):
    each.put("token")


def limit(took: bool) -> None:
    if not took:
        raise TimeoutError


@contextmanager
def condition(limited: float) -> Iterator[None]:
    with CONDITION:
        limit(CONDITION.wait_for(lambda: FREE[0], timeout=limited))
        FREE[0] = False
    yield
    with CONDITION:
        FREE[0] = True
        CONDITION.notify()


@contextmanager
def acquired(lock: Any, limited: float) -> Iterator[None]:
    limit(lock.acquire(timeout=limited))
    try:
        yield
    finally:
        lock.release()


@contextmanager
def token(tokens: Any, limited: float) -> Iterator[None]:
    mine = tokens.get(timeout=limited)
    try:
        yield
    finally:
        tokens.put(mine)


@contextmanager
def polled(directory: Path, limited: float) -> Iterator[None]:
    end = time.monotonic() + limited
    with open(directory / "lock", "a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                limit(time.monotonic() < end)
                time.sleep(limited / 3)
        yield


@contextmanager
def five_tries(directory: Path, limited: float) -> Iterator[None]:
    for _ in range(5):
        with suppress(FileExistsError):
            os.close(os.open(directory / "taken", os.O_CREAT | os.O_EXCL))
            break
        time.sleep(limited / 5)
    else:
        raise TimeoutError
    yield
    os.unlink(directory / "taken")


@contextmanager
def busy(directory: Path, limited: float) -> Iterator[None]:
    with closing(
        sqlite3.connect(directory / "s.db", timeout=limited, isolation_level=None)
    ) as database:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")


WAITS: dict[str, Callable[[Path, float], Any]] = {
    "lock": lambda d, s: acquired(LOCK, s),
    "reentrant lock": lambda d, s: acquired(RLOCK, s),
    "semaphore": lambda d, s: acquired(SEMAPHORE, s),
    "condition": lambda d, s: condition(s),
    "queue": lambda d, s: token(QUEUE, s),
    "simple queue": lambda d, s: token(SIMPLE, s),
    "lock of processes": lambda d, s: acquired(OF_PROCESSES, s),
    "filelock": lambda d, s: FileLock(d / "lock", timeout=s),
    "flock": polled,
    "tries": five_tries,
    "SQLite": busy,
}


def add_within(directory: Path, *, item: str, way: str, limited: float) -> None:
    with WAITS[way](directory, limited):
        add(directory, item=item)


@pytest.mark.parametrize("way", WAITS)
def test_no_time_limit_is_over_while_the_other_can_go_on(way: str) -> None:
    """Three milliseconds passed in real time while the other saver was being scheduled."""
    saver = partial(add_within, way=way, limited=0.003)
    report = run(saver, schedule="switch:0:6")
    assert report.ok is True, str(report)


@pytest.mark.parametrize(("way", "calls"), [("lock", 3), ("flock", 4), ("SQLite", 7)])
def test_a_time_limit_is_over_where_the_other_is_late(way: str, calls: int) -> None:
    """Whoever goes on without the lock, after 30 s that nobody waits, is caught."""

    def goes_on(directory: Path, *, item: str) -> None:
        with suppress(TimeoutError, sqlite3.OperationalError):
            add_within(directory, item=item, way=way, limited=30)
            return
        add(directory, item=item)

    began = time.monotonic()
    gives_up = partial(add_within, way=way, limited=5)
    assert run(gives_up, schedule=f"late:0:{calls}").ok is True
    assert run(goes_on, schedule=f"switch:0:{calls}").ok is True
    report = run(goes_on, schedule=f"late:0:{calls}")
    assert [each.kind for each in report.findings] == ["lost update"], str(report)
    assert time.monotonic() - began < 20


def test_the_order_with_a_late_saver_is_tried_where_one_waits_with_a_limit() -> None:
    def goes_on(directory: Path, *, item: str) -> None:
        took = LOCK.acquire(timeout=30)
        add(directory, item=item)
        if took:
            LOCK.release()

    report = run(goes_on, runs=0)
    (finding,) = report.findings
    assert finding.schedule.startswith("late:0:")
    assert run(goes_on, schedule=finding.schedule).findings == (finding,)


def test_time_passes_where_nobody_can_make_a_call() -> None:
    """Both hold one lock and want the other's: whose limit is over first lets go."""
    locks = {"a": threading.Lock(), "b": threading.Lock()}

    def crossed(directory: Path, *, item: str) -> None:
        mine, other = (locks[name] for name in sorted(locks, key=lambda name: name != item))
        while True:
            with mine:
                load(directory)
                if other.acquire(timeout=5 if item == "a" else 60):
                    add(directory, item=item)
                    other.release()
                    return
            time.sleep(1)

    report = run(crossed, schedule="switch:0:2")
    assert report.ok is True, str(report)


def test_a_day_of_sleep_takes_no_time() -> None:
    async def saver(directory: Path, *, item: str) -> None:
        await asyncio.sleep(86_400)
        time.sleep(86_400)
        with LOCK:
            add(directory, item=item)

    report = run(saver, schedule="switch:0:3")
    assert report.ok is True, str(report)


def test_a_wait_in_c_with_a_time_limit_is_not_covered() -> None:
    mine, its = socket.socketpair()
    its.settimeout(0.12)  # a limit that the socket's own C code keeps

    def saver(directory: Path, *, item: str) -> None:
        with suppress(TimeoutError):
            its.recv(1)
        with LOCK:
            add(directory, item=item)

    with mine, its:
        report = run(saver, schedule="switch:0:1")
    assert report.ok is None
    assert report.not_covered == (
        "a wait with a time limit in real time, which no order decides about: poll",
    )


def add_when_free(directory: Path, *, item: str) -> None:
    """Try again at once, without a pause."""
    while True:
        try:
            os.close(os.open(directory / "taken", os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            continue
    add(directory, item=item)
    os.unlink(directory / "taken")


@pytest.mark.parametrize("processes", [False, True])
def test_who_tries_again_and_again_waits(processes: bool) -> None:
    report = run(add_when_free, processes=processes, runs=1)
    assert report.ok is True, str(report)
    assert report.schedules > 8


def test_who_looks_for_a_lock_file_in_a_loop_waits() -> None:
    """Not one call of this loop can be scheduled: it only computes."""

    def add_when_gone(directory: Path, *, item: str) -> None:
        while (directory / "taken").exists():
            continue
        add_when_free(directory, item=item)

    report = run(add_when_gone, schedule="switch:0:3")
    assert report.ok is True, str(report)
    assert report.schedules == 1


def count_in_sqlite(directory: Path, *, item: str, begin: str) -> None:
    with closing(sqlite3.connect(directory / "s.db", isolation_level=None)) as database:
        database.execute(begin)
        (count,) = database.execute("SELECT n FROM t").fetchone()
        database.execute("UPDATE t SET n = ?", (count + 1,))
        database.execute("COMMIT" if "BEGIN" in begin else "SELECT 1")


@pytest.mark.parametrize(
    ("begin", "schedule", "found"),
    [
        ("SELECT 1", "switch:0:4", ["lost update"]),
        ("BEGIN IMMEDIATE", "switch:0:4", []),
        ("BEGIN IMMEDIATE", "random:1", []),
    ],
)
def test_savers_through_sqlite_are_scheduled(begin: str, schedule: str, found: list[str]) -> None:
    def setup(directory: Path) -> None:
        with closing(sqlite3.connect(directory / "s.db")) as database, database:
            database.execute("CREATE TABLE t AS SELECT 0 AS n")

    def load(directory: Path) -> Any:
        with closing(sqlite3.connect(directory / "s.db")) as database:
            return database.execute("SELECT n FROM t").fetchone()

    report = CrashSimulator().interleave(
        savers=[partial(count_in_sqlite, item=item, begin=begin) for item in "ab"],
        setup=setup,
        recover=load,
        schedule=schedule,
        check=False,
    )
    assert [finding.kind for finding in report.findings] == found, str(report)
    assert report.not_covered == ()


def test_a_torn_pair_is_found() -> None:
    def save(directory: Path, *, item: str) -> None:
        (directory / "one").write_text(item)
        (directory / "two").write_text(item)

    report = CrashSimulator().interleave(
        savers=[partial(save, item="a"), partial(save, item="b")],
        setup=lambda d: save(d, item="-"),
        recover=lambda d: ((d / "one").read_text(), (d / "two").read_text()),
        check=False,
    )
    assert report.ok is False
    assert report.findings[0].kind == "lost update"


def test_a_deadlock_is_one_and_not_a_hang() -> None:
    def both(directory: Path, *, order: str) -> None:
        with open(directory / order[0], "a") as one, open(directory / order[1], "a") as two:
            fcntl.flock(one, fcntl.LOCK_EX)
            fcntl.flock(two, fcntl.LOCK_EX)

    started = time.monotonic()
    report = CrashSimulator().interleave(
        savers=[partial(both, order="xy"), partial(both, order="yx")],
        recover=lambda d: None,
        processes=True,
        runs=0,
        check=False,
    )
    assert {finding.kind for finding in report.findings} == {"deadlock"}
    assert time.monotonic() - started < 30


def test_an_error_counts_as_not_saved() -> None:
    class Conflict(Exception):
        pass

    def exclusive(directory: Path, *, item: str) -> None:
        try:
            os.close(os.open(directory / "taken", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise Conflict(item) from None
        add(directory, item=item)
        os.unlink(directory / "taken")

    assert run(exclusive, allow=(Conflict,)).ok is True
    report = run(exclusive)
    assert {finding.kind for finding in report.findings} == {"error"}


@pytest.mark.parametrize(
    "wrong", [{"savers": []}, {"savers": [add]}, {"schedule": "x"}, {"savers": [add] * 5}]
)
def test_wrong_arguments_are_user_errors(wrong: dict[str, Any]) -> None:
    savers = [partial(add, item="a"), partial(add, item="b")]
    with pytest.raises(UserError):
        CrashSimulator().interleave(
            **{"savers": savers, "setup": setup, "recover": load, "runs": 0, **wrong}
        )


def test_savers_that_fail_alone_are_a_user_error() -> None:
    def fails(directory: Path) -> None:
        raise RuntimeError("no")

    with pytest.raises(UserError, match="saver 0 raised RuntimeError: no"):
        CrashSimulator().interleave(savers=[fails, fails], recover=lambda d: None)
