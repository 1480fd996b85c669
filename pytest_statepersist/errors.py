"""The one exception tree of the package.

Belongs here: every exception that a user of the harness can meet, and nothing else.
Each message names the culprit, the usual cause and the way out. The reference
implementation has a tree of its own (`reference.errors`), because it imports nothing from here.
"""

from __future__ import annotations

__all__ = [
    "BlindSpot",
    "BundleError",
    "ClockClosed",
    "ClockDeadlock",
    "CrashConsistencyError",
    "NotCovered",
    "RecorderUnavailable",
    "StatePersistError",
    "TraceError",
    "UserError",
]


class StatePersistError(Exception):
    """Base of everything that this package raises on purpose."""


class UserError(StatePersistError):
    """The call cannot mean what it says: a wrong argument, a wrong path, a wrong order of calls."""


class TraceError(UserError):
    """A trace contradicts itself or the tree it starts from, or its JSON form is not valid."""


class BundleError(UserError):
    """A bundle is damaged, of an unknown version, or asks for something that is not allowed."""


class RecorderUnavailable(UserError):
    """A recorder cannot work on this machine or interpreter; the message names the way out."""


class BlindSpot(StatePersistError):
    """Something changed that the recorder did not see, so no verdict would be honest.

    ``culprit`` is the path or function that was not seen, ``recorder`` the recorder that would
    have seen it (``None`` where there is none).
    """

    def __init__(self, message: str, *, culprit: str = "", recorder: str | None = None) -> None:
        super().__init__(message)
        self.culprit = culprit
        self.recorder = recorder


class NotCovered(BlindSpot):
    """Nothing was found, but a question that was asked has no answer, so it must not pass.

    ``report`` holds what was seen.
    """

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class CrashConsistencyError(StatePersistError, AssertionError):
    """At least one legal crash loses or corrupts what was saved; ``report`` holds the findings."""

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class ClockDeadlock(StatePersistError):
    """Everything waits and nothing has a deadline, so no amount of time would help."""


class ClockClosed(StatePersistError):
    """The clock was closed while a thread slept on it; raised in that thread.

    A thread that the clock started, or that was started while it was installed, just ends.
    """
