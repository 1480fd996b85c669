"""A run of frames, followed in the transport's order.

The law: a pure function from a session and frames to what they say and where they lead. A
frame that is not genuine is passed over *and reported*; it changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_statepersist.reference.errors import DamagedData, IntegrityError
from pytest_statepersist.reference.group_frames import Frame, FrameKind
from pytest_statepersist.reference.group_session import GroupSession, Opened
from pytest_statepersist.reference.slots import PendingCommit

__all__ = ["Rejected", "Run", "follow_frames"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A frame that was passed over, and why."""

    position: int
    reason: str


@dataclass(frozen=True, slots=True)
class Run:
    """Where a run of frames has led.

    ``proposals`` maps a leaf (hexadecimal) to the frame by which it asked to leave;
    ``removed`` says that a commit has put us out; ``fetched`` is the last position.
    """

    session: GroupSession
    messages: tuple[Opened, ...]
    proposals: dict[str, bytes]
    rejected: tuple[Rejected, ...]
    removed: bool
    fetched: int


def follow_frames(
    session: GroupSession,
    frames: Sequence[tuple[int, bytes]],
    fetched: int,
    pending: PendingCommit | None = None,
) -> Run:
    """Follow the frames (position, bytes) after ``fetched``; ``pending`` is our own commit."""
    messages: list[Opened] = []
    proposals: dict[str, bytes] = {}
    rejected: list[Rejected] = []
    for position, data in frames:
        if position <= fetched:
            continue
        fetched = position
        try:
            frame = _decode(data, session.state.group_id)
            if frame.kind is FrameKind.COMMIT:
                following = _advance(session, frame, data, pending)
                if following is None:
                    return Run(session, tuple(messages), {}, tuple(rejected), True, fetched)
                session = following
            elif frame.kind is FrameKind.PROPOSAL:
                proposals[session.open(frame).sender.leaf.hex()] = data
            else:
                messages.append(session.open(frame))
        except (DamagedData, IntegrityError) as error:
            rejected.append(Rejected(position, str(error)))
            name = session.state.group_id.hex()
            _logger.warning("group %s: passed over frame %d: %s", name, position, error)
    return Run(session, tuple(messages), proposals, tuple(rejected), False, fetched)


def _decode(data: bytes, group_id: bytes) -> Frame:
    frame = Frame.decode(data)
    if frame.group_id != group_id:
        raise IntegrityError("a frame of another group")
    return frame


def _advance(
    session: GroupSession, frame: Frame, data: bytes, pending: PendingCommit | None
) -> GroupSession | None:
    if frame.epoch < session.epoch:
        return session  # seen already: our own, or delivered twice
    if pending is not None and pending.frame == data:
        return GroupSession(pending.state, pending.secrets, session.place)
    return session.follow(frame)
