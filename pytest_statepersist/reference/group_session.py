"""One group at one epoch, as a value: protect, open, prepare a commit, follow one.

The law: nothing here touches storage or transport. A `GroupSession` is made of what the slots
hold and returns what the slots should hold next; `groups` decides when that is durable.

How the stand-in protocol advances: a commit carries the next public state, encrypted for the
members of this epoch, and fresh entropy, sealed for each place of the *next* one. Places are
the leaves of the members and the keys of outstanding invitations, so that a guest can follow
the group from the moment of the invitation on, and a removed member cannot.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from pytest_statepersist.reference import cbor
from pytest_statepersist.reference.errors import DamagedData, IntegrityError
from pytest_statepersist.reference.group_frames import Frame, FrameKind, Number
from pytest_statepersist.reference.message_protection import (
    GUARD_SIZE,
    SECRET_SIZE,
    decrypt_message,
    encrypt_message,
    next_secret,
    open_sealed,
    seal_to,
    sign,
    verify,
    x25519_public,
)
from pytest_statepersist.reference.slots import (
    GROUP_STATE,
    EpochSecrets,
    GroupState,
    InviteKey,
    Member,
    OwnLeaf,
    PendingCommit,
    SignatureKey,
)

__all__ = ["GroupSession", "Opened", "Place", "found_group", "new_leaf", "tree_of"]

EARLIER_EPOCHS = 3


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the group we stand, and the private key that opens what is sealed for it."""

    name: str
    private_key: bytes

    @classmethod
    def of_member(cls, own: OwnLeaf) -> Place:
        """Return a member's place."""
        return cls(_leaf_place(own.leaf), own.private_key)

    @classmethod
    def of_guest(cls, invite_id: str, private_key: bytes) -> Place:
        """Return the place of whoever holds an invitation."""
        return cls(_invite_place(invite_id), private_key)


@dataclass(frozen=True, slots=True)
class Opened:
    """A message that authenticated: from whom, when in the group's life, and what."""

    sender: Member
    epoch: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class GroupSession:
    """A group's state and secrets, seen from one place in it."""

    state: GroupState
    secrets: EpochSecrets
    place: Place

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self.state.epoch

    def member(self, leaf: bytes) -> Member | None:
        """Return the member at a leaf."""
        return next((member for member in self.state.members if member.leaf == leaf), None)

    def protect(
        self, kind: FrameKind, payload: bytes, leaf: bytes, number: Number, key: SignatureKey
    ) -> Frame:
        """Return a signed, encrypted frame from ``leaf``. The number must be fresh."""
        group_id, guard = self.state.group_id, os.urandom(GUARD_SIZE)
        frame = Frame(kind, group_id, self.epoch, leaf, number, guard)
        body = encrypt_message(
            self.secrets.secret, number.encode(leaf), guard, payload, frame.header()
        )
        return _signed(replace(frame, body=body), key)

    def open(self, frame: Frame) -> Opened:
        """Return what a message or proposal says.

        Raises `IntegrityError` (not from a member, changed, or of an epoch whose secret is
        not, or no longer, here).
        """
        sender = self.member(frame.leaf)
        if sender is None:
            raise IntegrityError("the sender is not a member of the group")
        verify(sender.signature_key, frame.to_sign(), frame.signature)
        return Opened(sender, frame.epoch, self._decrypt(frame))

    def prepare(
        self,
        members: Iterable[Member],
        tree: dict[bytes, bytes],
        invites: Iterable[InviteKey],
        leaf: bytes,
        number: Number,
        key: SignatureKey,
    ) -> PendingCommit:
        """Return the commit that leads to the next epoch with these members and invitations."""
        state = self.state.model_copy(
            update={
                "epoch": self.epoch + 1,
                "members": tuple(members),
                "ratchet_tree": _encode_tree(tree),
                "invites": tuple(invites),
            }
        )
        public = cbor.encode(state.model_dump())
        frame = self.protect(FrameKind.COMMIT, public, leaf, number, key)
        entropy = os.urandom(SECRET_SIZE)
        sealed = {
            name: seal_to(public_key, entropy, _seal_context(frame, name))
            for name, public_key in _places(state).items()
            if name != _leaf_place(leaf)
        }
        signed = _signed(replace(frame, sealed=sealed), key)
        secrets = self._secrets_of(entropy, public)
        return PendingCommit(frame=signed.encode(), state=state, secrets=secrets)

    def follow(self, frame: Frame) -> GroupSession | None:
        """Return the session after somebody's commit, or None if it leaves us out.

        Raises `IntegrityError` or `DamagedData` if the commit is not genuine; it has to be
        one for the epoch after this one.
        """
        if frame.epoch != self.epoch:
            raise IntegrityError(f"a commit after epoch {frame.epoch}, we are at {self.epoch}")
        public = self._decrypt(frame)
        state = GROUP_STATE.decode(cbor.decode(public))
        self._check_successor(state, frame)
        if self.place.name not in _places(state):
            return None
        mine = frame.sealed.get(self.place.name)
        if mine is None:
            raise IntegrityError("the commit seals nothing for this place")
        entropy = open_sealed(self.place.private_key, mine, _seal_context(frame, self.place.name))
        return GroupSession(state, self._secrets_of(entropy, public), self.place)

    def _check_successor(self, state: GroupState, frame: Frame) -> None:
        old = {member.leaf: member for member in self.state.members}
        sender = old.get(frame.leaf)
        added = [member for member in state.members if old.get(member.leaf) != member]
        if sender is None:  # somebody joins: adds exactly himself, replaces only himself
            if [member.leaf for member in added] != [frame.leaf]:
                raise IntegrityError("a commit by somebody who is not a member")
            sender = added[0]
            gone = old.keys() - {member.leaf for member in state.members}
            if any(old[leaf].user_id != sender.user_id for leaf in gone):
                raise IntegrityError("a joining member removes others")
        elif added:
            raise IntegrityError("a commit that adds members who have not joined")
        verify(sender.signature_key, frame.to_sign(), frame.signature)
        if state.group_id != self.state.group_id or state.epoch != self.epoch + 1:
            raise IntegrityError("a commit that leads to another group or epoch")
        if {member.leaf for member in state.members} != tree_of(state).keys():
            raise IntegrityError("a commit whose tree does not fit its members")

    def _decrypt(self, frame: Frame) -> bytes:
        age = self.epoch - frame.epoch
        known = (self.secrets.secret, *self.secrets.earlier)
        if not 0 <= age < len(known):
            raise IntegrityError(f"of epoch {frame.epoch}, whose secret is not here")
        number = frame.number.encode(frame.leaf)
        return decrypt_message(known[age], number, frame.guard, frame.body, frame.header())

    def _secrets_of(self, entropy: bytes, public: bytes) -> EpochSecrets:
        earlier = (self.secrets.secret, *self.secrets.earlier)[:EARLIER_EPOCHS]
        secret = next_secret(self.secrets.secret, entropy, public)
        return EpochSecrets(epoch=self.epoch + 1, secret=secret, earlier=earlier)


def found_group(
    group_id: bytes, context: bytes, founder: Member, own: OwnLeaf
) -> tuple[GroupState, EpochSecrets]:
    """Return state and secrets of a new group with one member, at epoch 0."""
    state = GroupState(
        group_id=group_id,
        epoch=0,
        ratchet_tree=_encode_tree({own.leaf: x25519_public(own.private_key)}),
        group_context=context,
        members=(founder,),
    )
    return state, EpochSecrets(epoch=0, secret=os.urandom(SECRET_SIZE))


def new_leaf() -> OwnLeaf:
    """Return a fresh leaf: a random name, never used again, and its key."""
    return OwnLeaf(leaf=os.urandom(8), private_key=os.urandom(32))


def _encode_tree(tree: dict[bytes, bytes]) -> bytes:
    """Return the stand-in's "ratchet tree": the public key of each leaf."""
    return cbor.encode({leaf.hex(): public_key for leaf, public_key in tree.items()})


def tree_of(state: GroupState) -> dict[bytes, bytes]:
    """Return the public key of each leaf. Raises `DamagedData`."""
    content: Any = cbor.decode(state.ratchet_tree)
    try:
        return {bytes.fromhex(leaf): bytes(public_key) for leaf, public_key in content.items()}
    except (AttributeError, ValueError, TypeError) as error:
        raise DamagedData("the ratchet tree cannot be read") from error


def _signed(frame: Frame, key: SignatureKey) -> Frame:
    return replace(frame, signature=sign(key, frame.to_sign()))


def _places(state: GroupState) -> dict[str, bytes]:
    places = {_leaf_place(leaf): public for leaf, public in tree_of(state).items()}
    return places | {_invite_place(i.invite_id): i.public_key for i in state.invites}


def _leaf_place(leaf: bytes) -> str:
    return f"leaf {leaf.hex()}"


def _invite_place(invite_id: str) -> str:
    return f"invite {invite_id}"


def _seal_context(frame: Frame, place: str) -> bytes:
    return frame.header() + place.encode()
