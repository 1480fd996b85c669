"""The typed slots of a group-messaging client, and what a storage provider must do for them.

The law: everything that a client has to remember about its groups lives in one of the slots
below, each with its own model; a provider stores models and asks nothing about their meaning.
Several slots change in one `StorageProvider.commit`, which is atomic and durable, because
half a change (a new epoch's state with the old epoch's secrets) is a lost group.

This is persistence of group state, not an implementation of the MLS protocol: ratchet tree
and group context are opaque bytes, and what is in them is between the protocol and itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic import ValidationError as PydanticError

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.errors import DamagedData, InvalidId, ValidationError
from pytest_statepersist.reference.timestamps import Moment

__all__ = [
    "CLIENT",
    "EPOCH_SECRETS",
    "GROUP_STATE",
    "KEY_PACKAGES",
    "MESSAGE_COUNTERS",
    "OWN_LEAF",
    "PENDING_COMMITS",
    "PENDING_PROPOSALS",
    "PRE_SHARED_KEYS",
    "SIGNATURE_KEYS",
    "SLOTS",
    "Changes",
    "EpochSecrets",
    "GroupState",
    "InviteKey",
    "KeyPackage",
    "Member",
    "MessageCounters",
    "OwnLeaf",
    "PendingCommit",
    "PendingProposal",
    "PreSharedKey",
    "Scope",
    "SignatureKey",
    "Slot",
    "StorageProvider",
    "check_group_id",
]

CLIENT = b""
"""The owner of the slots that belong to the client and to no group."""

_LONGEST_GROUP_ID = 64


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Member(_Model):
    """One member; ``leaf`` names the place in the tree, anew at each joining."""

    leaf: bytes
    user_id: str
    name: str
    joined_at: Moment
    signature_key: bytes


class InviteKey(_Model):
    """An outstanding invitation: whoever holds the private half may join."""

    invite_id: str
    public_key: bytes


class GroupState(_Model):
    """The public part of a group at one epoch."""

    group_id: bytes
    epoch: int = Field(ge=0)
    ratchet_tree: bytes
    group_context: bytes
    members: tuple[Member, ...]
    invites: tuple[InviteKey, ...] = ()


class EpochSecrets(_Model):
    """The secret of the current epoch and those of a few before it, newest first."""

    epoch: int = Field(ge=0)
    secret: bytes
    earlier: tuple[bytes, ...] = ()


class KeyPackage(_Model):
    """A key pair under which others may add this client to a group."""

    public_key: bytes
    private_key: bytes
    created_at: Moment


class SignatureKey(_Model):
    """The client's Ed25519 key pair, as raw bytes."""

    public_key: bytes
    private_key: bytes


class PendingProposal(_Model):
    """A change that a member asked for and that no commit has made yet."""

    frame: bytes


class PendingCommit(_Model):
    """A change of our own that was made ready, and perhaps published, but not confirmed."""

    frame: bytes
    state: GroupState
    secrets: EpochSecrets


class OwnLeaf(_Model):
    """Our own place in a group and its X25519 private key."""

    leaf: bytes
    private_key: bytes


class PreSharedKey(_Model):
    """A secret agreed outside the group."""

    secret: bytes


class MessageCounters(_Model):
    """Which message numbers may be in use, and how far the transport was read.

    Every number below ``reserved`` may have been used. ``incarnation`` is drawn anew when a
    state is restored from a backup, which may be older than the messages that were sent.
    """

    incarnation: bytes
    reserved: int = Field(ge=0)
    fetched: int = Field(ge=0, default=0)


class Scope(Enum):
    """To whom a slot belongs."""

    CLIENT = "client"
    GROUP = "group"


T = TypeVar("T", bound=BaseModel)
T_co = TypeVar("T_co", bound=BaseModel, covariant=True)


@checked
@dataclass(frozen=True, slots=True)
class Slot(Generic[T_co]):
    """A named place for values of one model; several values are told apart by a key."""

    name: str
    scope: Scope
    model: type[T_co]

    def decode(self, value: object) -> T_co:
        """Return the model of stored data. Raises `DamagedData`."""
        try:
            return self.model.model_validate(value)
        except PydanticError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DamagedData(f"slot {self.name}: {where}: {first['msg']}") from error


GROUP_STATE = Slot("group_state", Scope.GROUP, GroupState)
EPOCH_SECRETS = Slot("epoch_secrets", Scope.GROUP, EpochSecrets)
KEY_PACKAGES = Slot("key_packages", Scope.CLIENT, KeyPackage)
SIGNATURE_KEYS = Slot("signature_keys", Scope.CLIENT, SignatureKey)
PENDING_PROPOSALS = Slot("pending_proposals", Scope.GROUP, PendingProposal)
PENDING_COMMITS = Slot("pending_commits", Scope.GROUP, PendingCommit)
OWN_LEAF = Slot("own_leaf", Scope.GROUP, OwnLeaf)
PRE_SHARED_KEYS = Slot("pre_shared_keys", Scope.CLIENT, PreSharedKey)
MESSAGE_COUNTERS = Slot("message_counters", Scope.GROUP, MessageCounters)

SLOTS: tuple[Slot[BaseModel], ...] = (
    GROUP_STATE,
    EPOCH_SECRETS,
    KEY_PACKAGES,
    SIGNATURE_KEYS,
    PENDING_PROPOSALS,
    PENDING_COMMITS,
    OWN_LEAF,
    PRE_SHARED_KEYS,
    MESSAGE_COUNTERS,
)


@checked
class Changes:
    """Changes of any slots of any groups, to be made in one step. Nothing is touched yet."""

    def __init__(self) -> None:
        self._slots: dict[tuple[bytes, str, str], BaseModel | None] = {}
        self.removed: set[bytes] = set()
        self.readmitted: set[bytes] = set()

    def write(self, slot: Slot[T], owner: bytes, value: T, *, key: str = "") -> Changes:
        """Let a slot hold ``value``. Raises `ValidationError`, `InvalidId`."""
        if not isinstance(value, slot.model):
            problem = f"holds a {slot.model.__name__}, not a {type(value).__name__}"
            raise ValidationError(slot.name, problem)
        self._slots[_place(slot, owner, key)] = value
        return self

    def delete(self, slot: Slot[T], owner: bytes, *, key: str = "") -> Changes:
        """Let a slot be empty; it may be so already."""
        self._slots[_place(slot, owner, key)] = None
        return self

    def remove_group(self, group_id: bytes) -> Changes:
        """Remove a group with all its slots, and remember that it was removed."""
        self.removed.add(check_group_id(group_id))
        return self

    def readmit_group(self, group_id: bytes) -> Changes:
        """Let a removed group be written again, from nothing: without this it stays removed."""
        self.readmitted.add(check_group_id(group_id))
        return self

    def owners(self) -> tuple[bytes, ...]:
        """Return whose slots change, in order."""
        return tuple(sorted({owner for owner, _, _ in self._slots}))

    def of(self, owner: bytes) -> Iterator[tuple[str, str, BaseModel | None]]:
        """Yield slot name, key and value (None: empty) of one owner's changes."""
        for (whose, name, key), value in self._slots.items():
            if whose == owner:
                yield name, key, value


class StorageProvider(Protocol):
    """What a group-messaging client asks of its storage."""

    def read(self, slot: Slot[T], owner: bytes, *, key: str = "") -> T:
        """Return a slot's value. Raises `NotFound`, `DamagedData`."""

    def keys(self, slot: Slot[T], owner: bytes) -> tuple[str, ...]:
        """Return the keys under which a slot holds something, in order."""

    def groups(self) -> tuple[bytes, ...]:
        """Return the ids of all groups that are there, in order."""

    def was_removed(self, group_id: bytes) -> bool:
        """Tell whether a group was here and was removed."""

    def write(self, slot: Slot[T], owner: bytes, value: T, *, key: str = "") -> None:
        """Store one value: atomic, and durable on return."""

    def delete(self, slot: Slot[T], owner: bytes, *, key: str = "") -> None:
        """Empty one slot, durably. Raises `NotFound`."""

    def commit(self, changes: Changes) -> None:
        """Make all changes in one step: all or none after a crash, durable on return."""


@checked
def check_group_id(group_id: bytes) -> bytes:
    """Return ``group_id`` if it has 1 to 64 bytes; else raise `InvalidId`."""
    if not isinstance(group_id, bytes) or not 1 <= len(group_id) <= _LONGEST_GROUP_ID:
        raise InvalidId(f"group id {group_id!r}: a group id is 1 to {_LONGEST_GROUP_ID} bytes long")
    return group_id


def _place(slot: Slot[T], owner: bytes, key: str) -> tuple[bytes, str, str]:
    if slot.scope is Scope.GROUP:
        check_group_id(owner)
    elif owner != CLIENT:
        raise ValidationError(slot.name, "belongs to the client: pass CLIENT as its owner")
    return owner, slot.name, key
