"""Members and their machines, for the tests of groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.envelope import EnvelopeKey
from pytest_statepersist.reference.messenger import Messenger
from pytest_statepersist.reference.transport import MemoryTransport, Transport

KEY = bytes(range(32))


@dataclass
class World:
    """A transport, a clock, and a root for each name below one directory."""

    directory: Path
    transport: Transport = field(default_factory=MemoryTransport)
    clock: ManualClock = field(
        default_factory=lambda: ManualClock(datetime(2025, 3, 1, 12, tzinfo=UTC))
    )

    def root(self, name: str) -> Path:
        return self.directory / name

    def init(self, *names: str) -> None:
        for name in names:
            Messenger.init(self.root(name), name.title(), key=EnvelopeKey(KEY), clock=self.clock)

    def open(self, name: str, **options: object) -> Messenger:
        """Open somebody's messenger: a session of its own, as a process would have."""
        self.clock.advance(1)
        return Messenger(
            self.root(name),
            key=EnvelopeKey(KEY),
            transport=options.pop("transport", self.transport),  # type: ignore[arg-type]
            clock=self.clock,
            **options,  # type: ignore[arg-type]
        )

    def texts(self, name: str, channel_id: str) -> list[str]:
        with self.open(name) as messenger:
            messenger.sync(channel_id)
            return [message.text for message in messenger.history(channel_id)]


def channel_of(world: World, *names: str) -> str:
    """A channel of these members; the first one founds it."""
    world.init(*names)
    with world.open(names[0]) as founder:
        channel_id = founder.create_channel("general").channel_id
        codes = [founder.invite(channel_id) for _ in names[1:]]
    for name, code in zip(names[1:], codes, strict=True):
        with world.open(name) as guest:
            guest.join(code)
    return channel_id
