"""Channel metadata and message history, replicated: a state made of updates.

The law: pure. A `Replica` is a function of the set of updates it was given, so that it can be
rebuilt from the event log, and so that members who have seen the same updates show the same
channel. Each channel has a last-writer-wins map for its metadata, one for the bodies of its
messages (an edit is a later write), and an observed-remove set of the messages that are there.

Beside that the outbox: our own updates which have not yet come back from the transport.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pytest_statepersist.reference import cbor
from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.crdt import (
    Add,
    LastWriterWinsMap,
    ObservedRemoveSet,
    Remove,
    Set,
    Stamper,
    read_stamp,
    read_tags,
    read_value,
)
from pytest_statepersist.reference.errors import DamagedData
from pytest_statepersist.reference.timestamps import moment_from_text, text_of_moment

__all__ = ["ChannelDocument", "Delivered", "Message", "Replica", "Update"]

_META, _BODIES = "meta", "bodies"


@checked
@dataclass(frozen=True, slots=True)
class Message:
    """A message in a channel's history; ``order`` is greater than that of all its author saw."""

    message_id: str
    author_id: str
    author_name: str
    sent_at: datetime
    text: str
    order: int = 0

    def encode_body(self) -> bytes:
        """Return what the map of bodies holds."""
        sent_at = text_of_moment(self.sent_at)
        return cbor.encode([self.author_id, self.author_name, sent_at, self.text, self.order])

    @classmethod
    def decode_body(cls, message_id: str, body: object) -> Message:
        """Return the message of a stored body. Raises `DamagedData`."""
        content: Any = cbor.decode(body) if isinstance(body, bytes) else None
        match content:
            case [
                str() as author_id,
                str() as name,
                str() as sent_at,
                str() as text,
                int() as order,
            ]:
                sent = moment_from_text(sent_at)
                return cls(message_id, author_id, name, sent, text, order)
        raise DamagedData(f"message {message_id!r}: its body cannot be read")


@checked
@dataclass(frozen=True, slots=True)
class Update:
    """Operations that belong together, as one member made them; ``update_id`` is unique.

    A `Set` names its map before its key: ``meta/topic``, ``bodies/ID``.
    """

    update_id: str
    operations: tuple[Set | Add | Remove, ...]

    def encode(self) -> bytes:
        """Return the update as bytes, for the log and for the wire."""
        return cbor.encode([self.update_id, [_encode_operation(o) for o in self.operations]])

    @classmethod
    def decode(cls, data: bytes) -> Update:
        """Return the update in untrusted bytes. Raises `DamagedData`."""
        content: Any = cbor.decode(data)
        if not isinstance(content, list) or len(content) != 2 or not isinstance(content[0], str):
            raise DamagedData("not an update")
        if not isinstance(content[1], list):
            raise DamagedData("an update without operations")
        return cls(content[0], tuple(_decode_operation(item) for item in content[1]))

    def check_author(self, author_id: str) -> None:
        """Raise `DamagedData` if it writes messages in somebody else's name."""
        for operation in self.operations:
            if isinstance(operation, Set) and operation.key.startswith(_BODIES + "/"):
                message = Message.decode_body(operation.key, operation.value)
                if message.author_id != author_id:
                    raise DamagedData(f"a message by {author_id} in the name of another member")


@dataclass(frozen=True, slots=True)
class Delivered:
    """Event: these updates of our own have come back from the transport."""

    update_ids: tuple[str, ...]


@checked
@dataclass(slots=True)
class ChannelDocument:
    """The replicated content of one channel."""

    meta: LastWriterWinsMap = field(default_factory=LastWriterWinsMap)
    bodies: LastWriterWinsMap = field(default_factory=LastWriterWinsMap)
    present: ObservedRemoveSet = field(default_factory=ObservedRemoveSet)

    def apply(self, update: Update) -> None:
        """Take in an update; order and repetition do not matter."""
        for operation in update.operations:
            if isinstance(operation, Set):
                table, _, key = operation.key.partition("/")
                target = self.meta if table == _META else self.bodies
                target.apply(Set(key, operation.value, operation.stamp))
            else:
                self.present.apply(operation)

    def messages(self) -> tuple[Message, ...]:
        """Return the messages that are there: causes before effects, else by time of sending."""
        found = [
            Message.decode_body(message_id, self.bodies.get(message_id))
            for message_id in self.present
            if message_id in self.bodies
        ]
        return tuple(sorted(found, key=lambda m: (m.order, m.sent_at, m.message_id)))


@checked
class Replica:
    """All channels of one user. ``actor`` names this user among the writers."""

    def __init__(self, actor: str) -> None:
        self.stamper = Stamper(actor)
        self.channels: dict[str, ChannelDocument] = {}
        self.outbox: dict[str, dict[str, bytes]] = {}

    def channel(self, channel_id: str) -> ChannelDocument:
        """Return a channel's document, empty if nothing was said there yet."""
        return self.channels.get(channel_id) or ChannelDocument()

    def event(self, channel_id: str, what: Update | Delivered, *, own: bool = False) -> bytes:
        """Return the log record of an update (our ``own``: to be delivered) or a delivery."""
        if isinstance(what, Delivered):
            return cbor.encode([channel_id, "delivered", list(what.update_ids)])
        return cbor.encode([channel_id, "own" if own else "update", what.encode()])

    def apply(self, record: bytes) -> None:
        """Take in a log record. Raises `DamagedData`."""
        content: Any = cbor.decode(record)
        try:
            channel_id, kind, payload = content
            if kind == "delivered":
                for update_id in payload:
                    self.outbox.get(channel_id, {}).pop(update_id, None)
                return
            update = Update.decode(payload)
        except (TypeError, ValueError) as error:
            raise DamagedData("not an event of ours") from error
        for operation in update.operations:
            if isinstance(operation, Set):
                self.stamper.observe(operation.stamp)
        self.channels.setdefault(channel_id, ChannelDocument()).apply(update)
        if kind == "own":
            self.outbox.setdefault(channel_id, {})[update.update_id] = payload

    def set_meta(self, key: str, value: str) -> Set:
        """Return the operation that sets a metadata value."""
        return Set(f"{_META}/{key}", value, self.stamper.stamp())

    def add_message(self, message: Message) -> tuple[Set, Add]:
        """Return the operations that add a message."""
        stamp = self.stamper.stamp()
        body = replace(message, order=stamp.counter).encode_body()
        key = f"{_BODIES}/{message.message_id}"
        return Set(key, body, stamp), Add(message.message_id, self.stamper.tag())

    def update(self, operations: Sequence[Set | Add | Remove]) -> Update:
        """Return an update of these operations."""
        return Update(self.stamper.tag(), tuple(operations))

    def dump(self) -> bytes:
        """Return the whole state, for a snapshot."""
        return cbor.encode(
            {
                "channels": {
                    channel_id: [
                        document.meta.dump(),
                        document.bodies.dump(),
                        document.present.dump(),
                    ]
                    for channel_id, document in self.channels.items()
                },
                "outbox": self.outbox,
            }
        )

    @classmethod
    def load(cls, actor: str, state: bytes) -> Replica:
        """Return the replica of `dump`. Raises `DamagedData`."""
        replica = cls(actor)
        content: Any = cbor.decode(state)
        try:
            for channel_id, (meta, bodies, present) in content["channels"].items():
                document = ChannelDocument(
                    LastWriterWinsMap.load(meta),
                    LastWriterWinsMap.load(bodies),
                    ObservedRemoveSet.load(present),
                )
                replica.channels[channel_id] = document
                for stamp in (*document.meta.stamps(), *document.bodies.stamps()):
                    replica.stamper.observe(stamp)
            replica.outbox = {c: dict(box) for c, box in content["outbox"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedData(f"the snapshot of the channels cannot be read ({error!r})") from error
        return replica


def _encode_operation(operation: Set | Add | Remove) -> list[object]:
    if isinstance(operation, Set):
        stamp = operation.stamp
        return ["set", operation.key, operation.value, stamp.counter, stamp.actor]
    if isinstance(operation, Add):
        return ["add", operation.element, operation.tag]
    return ["remove", operation.element, sorted(operation.tags)]


def _names_a_place(key: str) -> bool:
    table, _, name = key.partition("/")
    return table in (_META, _BODIES) and name != ""


def _decode_operation(item: object) -> Set | Add | Remove:
    match item:
        case ["set", str() as key, value, counter, actor] if _names_a_place(key):
            return Set(key, read_value(value), read_stamp(counter, actor))
        case ["add", str() as element, str() as tag]:
            return Add(element, tag)
        case ["remove", str() as element, tags]:
            return Remove(element, read_tags(tags))
    raise DamagedData("not an operation of a replicated type")
