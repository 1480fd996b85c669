"""Event loops in virtual time."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from pytest_statepersist.clock import (
    ClockDeadlock,
    StateClock,
)
from tests.clock.common import DAY, Real


def test_loops_run_in_virtual_time(clock: StateClock) -> None:
    log: list[tuple[str, float]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert loop.time() == clock.monotonic()
        loop.call_later(45, lambda: log.append(("later", loop.time())))
        await asyncio.gather(nap("a", 30), nap("b", 10), nap("c", 30 * DAY))
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(60):
                await asyncio.Event().wait()

    async def nap(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        log.append((name, asyncio.get_running_loop().time()))

    with clock.installed():
        asyncio.run(main())
    end = 1000 + 30 * DAY
    assert log == [("b", 1010), ("a", 1030), ("later", 1045), ("c", end)]
    assert clock.monotonic() == end + 60


def test_a_loop_that_is_running_already_is_covered(clock: StateClock) -> None:
    async def main() -> float:
        with clock.installed():
            await asyncio.sleep(3600)
            moved = clock.monotonic()
        await asyncio.sleep(0.001)
        return moved

    assert asyncio.run(main()) == 4600
    assert clock.monotonic() == 4600


def test_loop_timers_and_clock_timers_share_one_order(clock: StateClock) -> None:
    log: list[str] = []

    async def main() -> None:
        clock.after(20, lambda: log.append("clock"))
        loop = asyncio.get_running_loop()
        loop.call_later(10, log.append, "loop 1")
        loop.call_later(30, log.append, "loop 2")
        await asyncio.sleep(40)

    with clock.installed():
        asyncio.run(main())
    assert log == ["loop 1", "clock", "loop 2"]


def test_work_in_an_executor_is_waited_for(clock: StateClock) -> None:
    async def main() -> tuple[str, float]:
        def work() -> str:
            Real.sleep(0.02)
            time.sleep(20)
            return "done"

        result = await asyncio.wait_for(asyncio.to_thread(work), 30)
        return result, time.monotonic()

    with clock.installed():
        assert asyncio.run(main()) == ("done", 1020)


def test_real_sockets_still_work(clock: StateClock) -> None:
    async def main() -> bytes:
        ours, theirs = socket.socketpair()
        theirs_reader, theirs_writer = await asyncio.open_connection(sock=theirs)
        reader, writer = await asyncio.open_connection(sock=ours)

        async def echo() -> None:
            theirs_writer.write(await theirs_reader.readexactly(5))
            await theirs_writer.drain()

        task = asyncio.create_task(echo())
        writer.write(b"hello")
        answer = await asyncio.wait_for(reader.readexactly(5), 30)
        await task
        for each in (writer, theirs_writer):
            each.close()
            await each.wait_closed()
        return answer

    with clock.installed():
        assert asyncio.run(main()) == b"hello"
    assert clock.monotonic() == 1000


def test_a_loop_in_another_thread_follows_the_driver(clock: StateClock) -> None:
    log: list[float] = []

    async def beat() -> None:
        for _ in range(3):
            await asyncio.sleep(10)
            log.append(time.monotonic())

    with clock.installed():
        thread = threading.Thread(target=lambda: asyncio.run(beat()), name="loop")
        thread.start()
        clock.advance(15)
        assert log == [1010]
        assert [w.what for w in clock.waiting()] == ["an event loop's next event"]
        clock.advance(15)
        assert log == [1010, 1020, 1030]
        thread.join()


def test_a_loop_that_waits_for_nothing_is_a_deadlock(clock: StateClock) -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with clock.installed(), pytest.raises(ClockDeadlock, match="event loop"):
        asyncio.run(main())


def test_without_asyncio_loops_are_real(clock: StateClock) -> None:
    async def main() -> float:
        await asyncio.sleep(0.01)
        return asyncio.get_running_loop().time()

    with clock.installed(asyncio=False):
        assert abs(asyncio.run(main()) - Real.monotonic()) < 5
    assert clock.monotonic() == 1000
