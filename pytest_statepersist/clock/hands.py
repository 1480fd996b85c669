"""The arithmetic of clocks: hands that run at a rate, and the days on which local time jumps.

Belongs here: pure functions and values over integers of nanoseconds. Nothing here reads the real
time, starts a thread or keeps a timer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pytest_statepersist.errors import UserError

__all__ = ["DstChange", "Hand", "as_zone", "nanoseconds", "next_dst_change"]

MICROSECOND = 1_000
SECOND = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Hand:
    """One hand of a clock: at true time ``since`` it showed ``shown`` and runs at ``rate``.

    True time and the shown value are nanoseconds; a rate of 1 is a perfect clock, 0 a stopped one.
    """

    since: int
    shown: int
    rate: Fraction = Fraction(1)

    def at(self, true: int) -> int:
        """Return what the hand shows at a true time, in whole microseconds (given in ns).

        A microsecond is what `datetime` resolves, so that every view shows the same moment.
        """
        passed = true - self.since
        exact = self.shown + (passed if self.rate == 1 else math.floor(passed * self.rate))
        return exact - exact % MICROSECOND

    def when(self, shown: int) -> int | None:
        """Return the first true time at which the hand shows at least ``shown``.

        ``None`` for a stopped hand that has not come so far.
        """
        missing = shown - self.shown
        if missing <= 0:
            return self.since
        if self.rate == 0:
            return None
        return self.since + (missing if self.rate == 1 else math.ceil(missing / self.rate))

    def moved(self, true: int, by: int) -> Hand:
        """Return the hand turned by ``by`` nanoseconds at true time ``true``."""
        return Hand(true, self.at(true) + by, self.rate)

    def running_at(self, true: int, rate: Fraction) -> Hand:
        """Return the hand with another rate from true time ``true`` on."""
        return Hand(true, self.at(true), rate)


def nanoseconds(amount: float | timedelta, *, what: str) -> int:
    """Return seconds or a `timedelta` as nanoseconds, rounded up to whole microseconds.

    Raises `UserError` for what is not a finite number.
    """
    if isinstance(amount, timedelta):
        return (amount // timedelta(microseconds=1)) * MICROSECOND
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise UserError(f"{what} must be seconds or a timedelta, not {amount!r}")
    if isinstance(amount, float) and not math.isfinite(amount):
        raise UserError(f"{what} must be finite, not {amount!r}")
    # Take off the noise of floats before rounding up: 0.1 + 0.2 is 300,000 us, not 300,001.
    microseconds = math.ceil(round(amount * 1_000_000, 3))
    return microseconds * MICROSECOND


def to_ns(moment: datetime, *, what: str) -> int:
    """Return an aware moment as nanoseconds since the epoch; raises `UserError` for a naive one."""
    if not isinstance(moment, datetime):
        raise UserError(f"{what} must be an aware datetime, not {moment!r}")
    if moment.tzinfo is None:
        raise UserError(
            f"{what} has no time zone ({moment!r}), so it could mean many moments; "
            "give an aware datetime, for example datetime(2026, 1, 1, tzinfo=UTC)"
        )
    return ((moment - _EPOCH) // timedelta(microseconds=1)) * MICROSECOND


def from_ns(ns: int) -> datetime:
    """Return nanoseconds since the epoch as an aware UTC moment."""
    return _EPOCH + timedelta(microseconds=ns // MICROSECOND)


def as_zone(zone: str | ZoneInfo) -> ZoneInfo:
    """Return the time zone with that name; raises `UserError` for an unknown one."""
    if isinstance(zone, ZoneInfo):
        if not zone.key:
            raise UserError("a ZoneInfo without a key cannot be given to the process as TZ")
        return zone
    try:
        return ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UserError(
            f"there is no time zone {zone!r} here; write it as in the IANA list "
            "('Europe/Berlin'), and install `tzdata` where the system has no list"
        ) from error


@dataclass(frozen=True, slots=True)
class DstChange:
    """A moment at which local time jumps in a zone.

    ``at`` is the first moment of the new offset (UTC), ``jump`` what local time gains there:
    positive in spring (an hour is missing), negative in autumn (an hour comes twice).
    """

    zone: str
    at: datetime
    jump: timedelta


def next_dst_change(zone: ZoneInfo, after: datetime, *, days: int = 800) -> DstChange | None:
    """Return the first change of the zone's offset after a moment, ``None`` if there is none."""

    def offset(moment: datetime) -> timedelta:
        return moment.astimezone(zone).utcoffset() or timedelta()

    low = after.astimezone(UTC)
    before = offset(low)
    # Half-day steps: some zones (Morocco in Ramadan) change twice within weeks, none within hours.
    for _ in range(days * 2):
        high = low + timedelta(hours=12)
        if offset(high) != before:
            break
        low = high
    else:
        return None
    while high - low > timedelta(seconds=1):
        middle = (low + (high - low) / 2).replace(microsecond=0)
        if middle <= low:
            middle = low + timedelta(seconds=1)
        if offset(middle) == before:
            low = middle
        else:
            high = middle
    at = high.replace(microsecond=0)
    return DstChange(zone.key, at, offset(at) - before)
