"""Puts `datetime` on a clock, through freezegun or time-machine.

Belongs here: what follows the wall clock by way of another library, and the time zone of the
process. Rules:

1. The libraries are imported on use, never when this module is.
2. They are driven by their public calls only: started once, then moved whenever the clock moves.
3. What an adapter would get wrong is refused, not approximated. freezegun adds its offset to
   aware datetimes as well, so that it is offered for UTC only.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from enum import Enum
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pytest_statepersist.errors import UserError

if TYPE_CHECKING:
    from pytest_statepersist.clock.state import StateClock

__all__ = ["DatetimeAdapter", "follow_wall"]


class DatetimeAdapter(Enum):
    """Who replaces `datetime.now` and its relatives."""

    AUTO = "time-machine where it is installed, else freezegun"
    TIME_MACHINE = "time-machine: every reference, any zone"
    FREEZEGUN = "freezegun: names in loaded modules, UTC only"
    NONE = "nobody: `time` is on the clock, `datetime` is not"


@contextmanager
def follow_wall(
    clock: StateClock, adapter: DatetimeAdapter, ignore: tuple[str, ...]
) -> Iterator[DatetimeAdapter]:
    """Keep `datetime` and the process' time zone on the clock for a block.

    Yields the adapter that was chosen; ``ignore`` are modules that freezegun leaves alone.
    """
    chosen = _choose(clock, adapter)
    with ExitStack() as stack:
        if chosen is DatetimeAdapter.TIME_MACHINE:
            push = _time_machine(clock, stack)
        else:
            use_zone = stack.enter_context(_process_zone())
            use_zone(clock.zone.key)
            if chosen is DatetimeAdapter.FREEZEGUN:
                push = _freezegun(clock, stack, ignore)
            else:

                def push() -> None:
                    use_zone(clock.zone.key)

        stack.enter_context(clock.watched(after=push))
        yield chosen


def _choose(clock: StateClock, adapter: DatetimeAdapter) -> DatetimeAdapter:
    freezing = _freezegun_active()
    if adapter is DatetimeAdapter.AUTO:
        # time-machine refuses to start inside a freeze; freezegun nests in itself.
        if find_spec("time_machine") is not None and not freezing:
            adapter = DatetimeAdapter.TIME_MACHINE
        else:
            adapter = DatetimeAdapter.FREEZEGUN
    if adapter is DatetimeAdapter.TIME_MACHINE:
        if find_spec("time_machine") is None:
            raise UserError(
                "time-machine is not installed; `pip install time-machine`, or use "
                "DatetimeAdapter.FREEZEGUN"
            )
        if freezing:
            raise UserError(
                "time-machine cannot start while freezegun is active; leave freeze_time() first, "
                "or use DatetimeAdapter.FREEZEGUN"
            )
    if adapter is DatetimeAdapter.FREEZEGUN:
        if find_spec("freezegun") is None:
            raise UserError("freezegun is not installed; `pip install freezegun`")
        if clock.zone.key != "UTC":
            raise UserError(
                f"freezegun adds its offset to aware datetimes too, so local time in "
                f"{clock.zone.key} would be wrong; install time-machine, or use zone='UTC'"
            )
    return adapter


def _freezegun_active() -> bool:
    api = sys.modules.get("freezegun.api")
    return bool(getattr(api, "freeze_factories", ()))


def _time_machine(clock: StateClock, stack: ExitStack) -> Callable[[], None]:
    library: Any = import_module("time_machine")
    traveller = stack.enter_context(library.travel(clock.local_now(), tick=False))
    shown, zone = clock.time_ns(), clock.zone

    def push() -> None:
        nonlocal shown, zone
        if clock.zone is not zone:
            zone, shown = clock.zone, clock.time_ns()
            traveller.move_to(clock.local_now())
        elif clock.time_ns() != shown:
            traveller.shift(timedelta(microseconds=(clock.time_ns() - shown) // 1000))
            shown = clock.time_ns()

    return push


def _freezegun(clock: StateClock, stack: ExitStack, ignore: tuple[str, ...]) -> Callable[[], None]:
    library: Any = import_module("freezegun")
    start = clock.now().replace(tzinfo=None)
    factory = stack.enter_context(library.freeze_time(start, ignore=list(ignore)))
    shown = clock.time_ns()

    def push() -> None:
        nonlocal shown
        if clock.zone.key != "UTC":
            raise UserError("under freezegun the clock's zone stays UTC; install time-machine")
        if clock.time_ns() != shown:
            factory.tick(timedelta(microseconds=(clock.time_ns() - shown) // 1000))
            shown = clock.time_ns()

    return push


@contextmanager
def _process_zone() -> Iterator[Callable[[str], None]]:
    """Yield a function that sets the process' time zone; the old one comes back at the end."""
    before = os.environ.get("TZ")
    current = before

    def use(name: str | None) -> None:
        nonlocal current
        if name == current or not hasattr(time, "tzset"):
            return
        if name is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = name
        time.tzset()
        current = name

    try:
        yield use
    finally:
        use(before)
