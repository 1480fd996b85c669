"""Transports: one order for all, one commit for each epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_statepersist.reference.errors import ConflictError, TransportError
from pytest_statepersist.reference.transport import (
    DirectoryTransport,
    MemoryTransport,
    Transport,
)
from tests.reference.fault_points import failing

GROUP, OTHER = b"g" * 16, b"o" * 16


@pytest.fixture(params=["memory", "directory"])
def transport(request: pytest.FixtureRequest, ram_path: Path) -> Transport:
    return MemoryTransport() if request.param == "memory" else DirectoryTransport(ram_path / "box")


def test_frames_come_in_one_order_from_any_position(transport: Transport) -> None:
    assert transport.fetch(GROUP, 0) == ()
    assert [transport.publish(GROUP, frame) for frame in (b"a", b"b", b"a")] == [1, 2, 3]
    assert transport.publish(OTHER, b"x") == 1
    assert transport.fetch(GROUP, 0) == ((1, b"a"), (2, b"b"), (3, b"a"))
    assert transport.fetch(GROUP, 2) == ((3, b"a"),)
    assert transport.fetch(GROUP, 3) == ()


def test_the_first_commit_of_an_epoch_wins(transport: Transport) -> None:
    transport.publish(GROUP, b"message")
    assert transport.publish(GROUP, b"commit", commit_after=0) == 2
    assert transport.publish(GROUP, b"commit", commit_after=0) == 2  # published again: the same
    with pytest.raises(ConflictError, match="epoch 0"):
        transport.publish(GROUP, b"late", commit_after=0)
    assert transport.publish(GROUP, b"next", commit_after=1) == 3
    assert transport.publish(OTHER, b"late", commit_after=0) == 1
    assert len(transport.fetch(GROUP, 0)) == 3


def test_a_mailbox_outlives_its_transport(ram_path: Path) -> None:
    DirectoryTransport(ram_path).publish(GROUP, b"one")
    assert DirectoryTransport(ram_path).fetch(GROUP, 0) == ((1, b"one"),)
    (ram_path / GROUP.hex() / "notes.txt").write_text("not a frame")
    assert len(DirectoryTransport(ram_path).fetch(GROUP, 0)) == 1


def test_any_failing_call_is_a_transport_error_and_can_be_tried_again(ram_path: Path) -> None:
    point, fired = 0, True
    while fired:
        transport = DirectoryTransport(ram_path / str(point))
        with failing(point) as fault:
            try:
                transport.publish(GROUP, b"c", commit_after=0)
            except TransportError:
                assert transport.publish(GROUP, b"c", commit_after=0) == 1
            try:
                found = transport.fetch(GROUP, 0)
            except TransportError:
                found = transport.fetch(GROUP, 0)
        assert found == ((1, b"c"),)
        fired = fault.fired
        point += 1
    assert point > 6
