"""Moments as text that sorts like time.

The law: a stored moment is UTC, with six digits after the second and a ``Z``:
``2025-01-31T08:09:10.000000Z``. All are of one length, so that comparing the text compares the
time, and no local time zone ever gets into a file.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, PlainSerializer

from pytest_statepersist.reference.errors import DamagedData

__all__ = ["Moment", "before", "microseconds", "moment_from_text", "text_of_moment"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def text_of_moment(moment: datetime) -> str:
    """Return the stored form of an aware moment."""
    if moment.tzinfo is not UTC:  # the models' moments are
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def moment_from_text(text: str) -> datetime:
    """Return the moment of any ISO 8601 text with an offset. Raises `DamagedData`."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise DamagedData(f"{text!r} is not a moment in ISO 8601") from error
    if moment.tzinfo is None:
        raise DamagedData(f"{text!r} has no offset from UTC, so it names no moment")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise DamagedData(f"{text!r} is before year 1 or after year 9999 in UTC") from error


def before(moment: datetime, age: timedelta) -> datetime:
    """Return the moment that is ``age`` earlier, or the calendar's end where there is none."""
    try:
        return moment - age
    except OverflowError:
        return (datetime.min if age > timedelta(0) else datetime.max).replace(tzinfo=UTC)


def microseconds(text: object) -> int | None:
    """Return the moment of a text in microseconds since 1970, or None if it names none."""
    if not isinstance(text, str):
        return None
    try:
        since = moment_from_text(text) - _EPOCH
    except DamagedData:
        return None
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _aware(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("has no time zone; pass tzinfo=UTC")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("is before year 1 or after year 9999 in UTC") from None


Moment = Annotated[datetime, AfterValidator(_aware), PlainSerializer(text_of_moment)]
"""An aware datetime, kept in UTC: the type of every time in the models."""
