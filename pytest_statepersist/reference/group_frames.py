"""What members of a group send each other, as bytes.

The law: one frame is one encrypted, signed unit: a message, a proposal or a commit. Decoding
checks the shape only; whether a frame is genuine is decided by a `group_session`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from pytest_statepersist.reference import cbor
from pytest_statepersist.reference.errors import DamagedData

__all__ = ["Frame", "FrameKind", "Number"]


class FrameKind(IntEnum):
    """What a frame is for."""

    MESSAGE = 1
    PROPOSAL = 2
    COMMIT = 3


@dataclass(frozen=True, slots=True)
class Number:
    """A message number; with leaf and epoch it names one key and nonce for ever."""

    incarnation: bytes
    counter: int

    def encode(self, leaf: bytes) -> bytes:
        """Return the bytes that the message key is derived from."""
        return cbor.encode([leaf, self.incarnation, self.counter])


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. ``sealed`` (commits only) maps a place in the group to sealed entropy."""

    kind: FrameKind
    group_id: bytes
    epoch: int
    leaf: bytes
    number: Number
    guard: bytes
    body: bytes = b""
    sealed: dict[str, bytes] = field(default_factory=dict)
    signature: bytes = b""

    def header(self) -> bytes:
        """Return what the body's encryption is bound to."""
        return cbor.encode(self._fields()[:7])

    def to_sign(self) -> bytes:
        """Return what the sender signs: everything but the signature."""
        return replace(self, signature=b"").encode()

    def encode(self) -> bytes:
        """Return the frame as bytes."""
        return cbor.encode(self._fields())

    def _fields(self) -> list[object]:
        number = [self.number.incarnation, self.number.counter]
        return [
            int(self.kind), self.group_id, self.epoch, self.leaf, *number, self.guard,
            self.body, self.sealed, self.signature,
        ]  # fmt: skip

    @classmethod
    def decode(cls, data: bytes) -> Frame:
        """Return the frame in untrusted bytes. Raises `DamagedData`."""
        content: Any = cbor.decode(data)
        shape = (int, bytes, int, bytes, bytes, int, bytes, bytes, dict, bytes)
        if (
            not isinstance(content, list)
            or len(content) != len(shape)
            or not all(isinstance(item, kind) for item, kind in zip(content, shape, strict=True))
            or not all(isinstance(item, bytes) for item in content[8].values())
        ):
            raise DamagedData("not a group frame")
        kind, group_id, epoch, leaf, incarnation, counter, guard, body, sealed, sign = content
        if kind not in tuple(FrameKind):
            raise DamagedData(f"unknown kind of frame {kind}")
        number = Number(incarnation, counter)
        return cls(FrameKind(kind), group_id, epoch, leaf, number, guard, body, sealed, sign)
