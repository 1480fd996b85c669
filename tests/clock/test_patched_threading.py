"""Whatever blocks in `threading` and `queue`, in virtual time."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
import time
from typing import Any

import pytest

from pytest_statepersist.clock import (
    ClockDeadlock,
    StateClock,
)
from tests.clock.common import Real, waits_for


class AutoSave:
    """The background saver that every app has: it knows nothing of virtual time."""

    def __init__(self, interval: float) -> None:
        self.saves: list[float] = []
        self.interval = interval
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, name="autosave")

    def run(self) -> None:
        while not self.stopping.wait(self.interval):
            self.saves.append(time.monotonic())

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join()


def test_a_background_saver_runs_in_virtual_time(clock: StateClock) -> None:
    with clock.installed():
        saver = AutoSave(30)
        saver.thread.start()
        clock.advance(95)
        assert saver.saves == [1030, 1060, 1090]
        assert [(w.thread, w.until) for w in clock.waiting()] == [("autosave", 1120)]
        time.sleep(25)
        assert saver.saves[-1] == 1120
        saver.stop()
        assert clock.monotonic() == 1120


def test_two_background_savers_keep_their_order(clock: StateClock) -> None:
    logs = []
    for _ in range(10):
        with clock.installed():
            log: list[tuple[str, float]] = []
            begun, stop = time.monotonic(), threading.Event()

            def run(
                name: str,
                every: float,
                log: list[tuple[str, float]] = log,
                stop: threading.Event = stop,
                begun: float = begun,
            ) -> None:
                while not stop.wait(every):
                    log.append((name, time.monotonic() - begun))

            threads = [threading.Thread(target=run, args=args) for args in (("a", 20), ("b", 30))]
            for thread in threads:
                thread.start()
            clock.advance(60)
            stop.set()
            for thread in threads:
                thread.join()
            logs.append(log)
    assert logs == [[("a", 20), ("b", 30), ("a", 40), ("a", 60), ("b", 60)]] * 10


def test_everything_that_blocks_in_threading_is_virtual(clock: StateClock) -> None:
    with clock.installed():
        began = time.monotonic()

        def passed() -> float:
            nonlocal began
            now = time.monotonic()
            gone, began = now - began, now
            return gone

        assert not threading.Event().wait(10)
        assert passed() == 10
        condition = threading.Condition()
        with condition:
            assert not condition.wait_for(lambda: False, 20)
        assert passed() == 20
        assert not threading.Semaphore(0).acquire(timeout=30)
        assert passed() == 30
        with pytest.raises(queue.Empty):
            queue.Queue[int]().get(timeout=40)
        assert passed() == 40
        with pytest.raises(queue.Empty):
            queue.SimpleQueue[int]().get(timeout=50)
        assert passed() == 50
        fired: list[float] = []
        timer = threading.Timer(60, lambda: fired.append(time.monotonic()))
        timer.start()
        timer.join()
        assert (passed(), fired) == (60, [time.monotonic()])
        thread = threading.Thread(target=time.sleep, args=(70,))
        thread.start()
        thread.join(5)
        assert thread.is_alive()
        assert passed() == 5
        thread.join()
        assert passed() == 65
        with concurrent.futures.ThreadPoolExecutor(2) as pool:

            def nap(seconds: int) -> int:
                time.sleep(seconds)
                return seconds

            done = list(pool.map(nap, [10, 30, 20]))
            assert (done, passed()) == ([10, 30, 20], 30)
            with pytest.raises(concurrent.futures.TimeoutError):
                pool.submit(time.sleep, 100).result(timeout=40)
            assert passed() == 40
        assert passed() == 60


def test_producer_and_consumer_pass_on_in_order(clock: StateClock) -> None:
    with clock.installed():
        channel: queue.Queue[int | None] = queue.Queue(maxsize=1)
        got: list[tuple[int, float]] = []

        def produce() -> None:
            for number in range(5):
                time.sleep(10)
                channel.put(number)
            channel.put(None)

        def consume() -> None:
            while (item := channel.get()) is not None:
                got.append((item, time.monotonic()))

        threads = [threading.Thread(target=t) for t in (consume, produce)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [(n, 1010 + 10 * n) for n in range(5)]


def test_a_deadlock_in_patched_code_is_told(clock: StateClock) -> None:
    with clock.installed():
        gate = threading.Event()
        thread = threading.Thread(target=gate.wait, name="stuck")
        thread.start()
        with pytest.raises(ClockDeadlock) as caught:
            thread.join()
        assert "drives the clock) waits for the end of thread 'stuck'" in str(caught.value)
        assert "'stuck' waits for a condition" in str(caught.value)
        gate.set()
        thread.join()


def test_a_thread_that_the_clock_does_not_know_may_end_a_wait(clock: StateClock) -> None:
    event = threading.Event()
    go = threading.Lock()
    go.acquire()

    def stranger() -> None:
        go.acquire()
        Real.sleep(0.1)
        event.set()

    thread = threading.Thread(target=stranger)
    thread.start()
    with clock.installed():
        go.release()
        assert event.wait()
        assert clock.monotonic() == 1000
    thread.join()


def test_waits_that_outlive_the_block_go_on_in_real_time(clock: StateClock) -> None:
    woken: list[str] = []
    release = threading.Event()

    def sleeper() -> None:
        time.sleep(0.2)
        woken.append("sleeper")

    def waiter() -> None:
        woken.append(f"waiter {release.wait(3600)}")

    def patient() -> None:
        woken.append(f"patient {release.wait()}")

    threads = [
        threading.Thread(target=target, daemon=True) for target in (sleeper, waiter, patient)
    ]
    with clock.installed():
        for thread in threads:
            thread.start()
        clock.settle()
        assert len(clock.waiting()) == 3
    waits_for(lambda: woken == ["sleeper"])
    release.set()
    for thread in threads:
        thread.join(20)
    assert sorted(woken) == ["patient True", "sleeper", "waiter True"]


def test_a_notify_is_never_lost(clock: StateClock) -> None:
    """A waiter that is notified at the very moment of its deadline gets one or the other."""
    with clock.installed():
        for _ in range(50):
            condition, results = threading.Condition(), list[bool]()

            def wait(condition: Any = condition, results: list[bool] = results) -> None:
                with condition:
                    results.append(condition.wait(10))

            def notify(condition: Any = condition) -> None:
                time.sleep(10)
                with condition:
                    condition.notify()

            threads = [threading.Thread(target=t) for t in (notify, wait)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert results == [True]  # `notify` was started first, so it runs first


def test_misuse_of_threads_raises_as_ever(clock: StateClock) -> None:
    with clock.installed():
        with pytest.raises(RuntimeError, match="un-acquired"):
            threading.Condition().wait(1)
        thread = threading.Thread(target=lambda: None)
        with pytest.raises(RuntimeError, match="before it is started"):
            thread.join()
        thread.start()
        with pytest.raises(RuntimeError, match="once"):
            thread.start()
        thread.join()
        with pytest.raises(RuntimeError, match="current thread"):
            threading.current_thread().join()
