"""`time` and `datetime` of the code under test on the clock, and real again afterwards."""

from __future__ import annotations

import datetime as dt
import importlib
import sched
import subprocess
import sys
import threading
import time
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic as bound_monotonic
from time import sleep as bound_sleep
from time import time as bound_time
from typing import Any

import pytest

from pytest_statepersist.clock import (
    DatetimeAdapter,
    StateClock,
)
from pytest_statepersist.errors import UserError
from tests.clock.common import ADAPTERS, DAY, START, Real


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_datetime_and_time_follow(clock: StateClock, adapter: DatetimeAdapter) -> None:
    with clock.installed(datetime=adapter):
        for advance, step in ((0.0, 0.0), (0.25, 0.0), (0.0, -7 * DAY)):
            clock.advance(advance)
            clock.step(step)
            assert dt.datetime.now(UTC) == datetime.now(UTC) == clock.now()
            assert datetime.now() == clock.now().replace(tzinfo=None)
            assert dt.date.today() == clock.now().date()
            assert time.time() == bound_time() == clock.time()
            assert time.time_ns() == clock.time_ns()
            assert time.monotonic() == bound_monotonic() == time.perf_counter()
            assert time.monotonic() == clock.monotonic()
            assert time.clock_gettime(time.CLOCK_MONOTONIC) == clock.monotonic()
            assert time.clock_gettime_ns(time.CLOCK_REALTIME) == clock.time_ns()
            assert time.gmtime()[:6] == time.localtime()[:6] == clock.now().timetuple()[:6]
            assert time.strftime("%Y-%m-%dT%H:%M:%S") == f"{clock.now():%Y-%m-%dT%H:%M:%S}"
            assert time.ctime() == time.asctime() == f"{clock.now():%a %b %e %H:%M:%S %Y}"
        assert time.gmtime(0).tm_year == 1970
        assert time.strftime("%Y", time.gmtime(0)) == "1970"
    assert abs(datetime.now(UTC).timestamp() - time.time()) < 5


@pytest.mark.parametrize("adapter", [*ADAPTERS, DatetimeAdapter.NONE])
def test_sleeping_takes_no_real_time(clock: StateClock, adapter: DatetimeAdapter) -> None:
    begun = Real.monotonic()
    with clock.installed(datetime=adapter):
        time.sleep(30 * DAY)
        bound_sleep(0.5)
        assert clock.monotonic() == 1000.5 + 30 * DAY
        assert time.time() == clock.time()
        with pytest.raises(ValueError, match="non-negative"):
            time.sleep(-1)
    assert Real.monotonic() - begun < 30


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_other_threads_see_the_same_time(clock: StateClock, adapter: DatetimeAdapter) -> None:
    """freezegun alone leaves `time.time` real below a frame of `threading`."""
    seen: list[Any] = []

    def look() -> None:
        seen.append((time.time(), time.monotonic(), datetime.now(UTC)))

    with clock.installed(datetime=adapter):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert seen == [(clock.time(), clock.monotonic(), clock.now())]


def test_local_time_leaps_in_naive_code() -> None:
    clock = StateClock(datetime(2026, 3, 28, tzinfo=UTC), zone="Europe/Berlin")
    with clock.installed(datetime=DatetimeAdapter.TIME_MACHINE):
        clock.advance_to(clock.next_dst_change().at - timedelta(seconds=1))
        assert datetime.now() == datetime(2026, 3, 29, 1, 59, 59)
        assert time.localtime()[3:6] == (1, 59, 59)
        clock.advance(1)
        assert datetime.now() == datetime(2026, 3, 29, 3, 0, 0)
        assert time.localtime()[3:6] == (3, 0, 0)
        clock.set_zone("Asia/Tokyo")
        assert datetime.now() == datetime(2026, 3, 29, 10, 0, 0)


def test_freezegun_refuses_what_it_would_get_wrong() -> None:
    clock = StateClock(START, zone="Europe/Berlin")
    with (
        pytest.raises(UserError, match="aware datetimes too"),
        clock.installed(datetime=DatetimeAdapter.FREEZEGUN),
    ):
        raise AssertionError("unreachable")


def test_inside_a_freeze_freezegun_is_chosen(clock: StateClock) -> None:
    import freezegun

    with freezegun.freeze_time("2001-01-01"):
        with clock.installed():
            assert datetime.now(UTC) == clock.now()
            clock.advance(60)
            assert datetime.now(UTC) == clock.now()
            assert time.monotonic() == 1060
        assert dt.datetime.now().year == 2001
        with (
            pytest.raises(UserError, match="while freezegun is active"),
            clock.installed(datetime=DatetimeAdapter.TIME_MACHINE),
        ):
            raise AssertionError("unreachable")


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_blocks_nest_and_are_undone_when_they_raise(
    clock: StateClock, adapter: DatetimeAdapter
) -> None:
    peer = clock.peer(skew=3600)
    with clock.installed(datetime=adapter):
        with pytest.raises(OSError, match="inside"), peer.installed(datetime=adapter):
            assert datetime.now(UTC) == peer.now()
            assert time.monotonic() == bound_monotonic() == peer.monotonic()
            time.sleep(10)
            raise OSError("inside")
        assert datetime.now(UTC) == clock.now() == START + timedelta(seconds=10)
        assert time.monotonic() == bound_monotonic() == clock.monotonic() == 1010


def test_a_kept_replacement_is_real_after_the_block(clock: StateClock) -> None:
    with clock.installed():
        kept = time.monotonic
        assert kept() == 1000
    assert abs(kept() - Real.monotonic()) < 5


def test_a_module_imported_inside_gets_the_real_functions_back(
    clock: StateClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_module_of_test_clock.py").write_text("from time import monotonic, sleep\n")
    monkeypatch.syspath_prepend(tmp_path)
    with clock.installed():
        module = importlib.import_module("late_module_of_test_clock")
        assert module.monotonic() == 1000
    assert module.monotonic is Real.monotonic
    assert module.sleep is Real.sleep
    del sys.modules["late_module_of_test_clock"]


def test_named_modules_stay_in_real_time(
    clock: StateClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("waits_for_another_process")
    exec("import time\ndef now(): return time.monotonic()", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with clock.installed(real=["waits_for_another_process"]):
        assert abs(module.now() - Real.monotonic()) < 5
    with clock.installed():
        assert module.now() == 1000


def test_child_processes_are_waited_for_in_real_time(clock: StateClock) -> None:
    with clock.installed():
        done = subprocess.run(
            [sys.executable, "-c", "import time; time.sleep(0.1); print('done')"],
            capture_output=True,
            timeout=60,
            check=True,
        )
    assert done.stdout.strip() == b"done"
    assert clock.monotonic() == 1000


def test_the_timers_of_the_standard_library_follow(clock: StateClock) -> None:
    """`sched` has kept `time.sleep` and `time.monotonic` as default arguments."""
    kept = sched.scheduler.__init__.__defaults__  # type: ignore[misc]
    fired: list[float] = []
    with clock.installed():
        timers = sched.scheduler()
        timers.enter(3600, 1, lambda: fired.append(time.monotonic()))
        timers.run()
    assert fired == [4600]
    assert sched.scheduler.__init__.__defaults__ == kept  # type: ignore[misc]
