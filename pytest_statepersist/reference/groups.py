"""Groups that come back: what a session did with a group, the next session goes on with.

The law: `Groups` is the only writer of group slots. Whatever it hands out for others to see
(a message, a commit) is durable in the slots first, so that after any crash

* no message number is ever used twice: a number is reserved durably before it is used;
* a commit of our own is known to us when it comes back from the transport;
* state, secrets, counters and what is pending change together, in one step.

It does no networking: frames come in and go out as bytes (`channels` moves them). What it
persists is the state of groups; the protocol inside is a stand-in and not MLS, see
`message_protection`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytest_statepersist.reference import cbor
from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.clock import Clock
from pytest_statepersist.reference.errors import (
    ConflictError,
    DamagedData,
    NotFound,
    ValidationError,
)
from pytest_statepersist.reference.group_frames import FrameKind, Number
from pytest_statepersist.reference.group_receiving import Run, follow_frames
from pytest_statepersist.reference.group_session import (
    GroupSession,
    Place,
    found_group,
    new_leaf,
    tree_of,
)
from pytest_statepersist.reference.identity import Identity
from pytest_statepersist.reference.message_protection import x25519_public
from pytest_statepersist.reference.slots import (
    EPOCH_SECRETS,
    GROUP_STATE,
    MESSAGE_COUNTERS,
    OWN_LEAF,
    PENDING_COMMITS,
    PENDING_PROPOSALS,
    Changes,
    EpochSecrets,
    GroupState,
    InviteKey,
    Member,
    MessageCounters,
    OwnLeaf,
    PendingCommit,
    PendingProposal,
    SignatureKey,
    StorageProvider,
)

__all__ = ["GroupView", "Groups", "Joining", "Received"]


@dataclass(frozen=True, slots=True)
class GroupView:
    """What a group looks like from outside."""

    group_id: bytes
    name: str
    epoch: int
    members: tuple[Member, ...]
    own_leaf: bytes


@dataclass(frozen=True, slots=True)
class Received:
    """What a run of frames said, from a position and an epoch on; not stored yet."""

    group_id: bytes
    run: Run
    began_at: int
    began_in: int


@dataclass(frozen=True, slots=True)
class Joining:
    """A commit of our own by which we join, ready to be published, and what to store then."""

    commit: PendingCommit
    own: OwnLeaf
    counters: MessageCounters


@checked
class Groups:
    """All groups of one identity; safe between threads.

    ``block`` is how many message numbers one durable write reserves; those of a block that a
    crash or an exit leaves unused are skipped.
    """

    def __init__(
        self,
        storage: StorageProvider,
        *,
        identity: Identity,
        signature_key: SignatureKey,
        clock: Clock,
        block: int = 16,
    ) -> None:
        if block < 1:
            raise ValidationError("block", f"{block}: at least one number has to be reserved")
        self._storage = storage
        self._identity = identity
        self._signature_key = signature_key
        self._clock = clock
        self._block = block
        self._mutex = threading.RLock()
        self._numbers: dict[bytes, tuple[bytes, range]] = {}

    # ---- looking ----------------------------------------------------------------------

    def list(self) -> tuple[GroupView, ...]:
        """Return all groups that are there. Raises `DamagedData` for the first damaged one."""
        return tuple(self.get(group_id) for group_id in self._storage.groups())

    def ids(self) -> tuple[bytes, ...]:
        """Return the ids of all groups, also of those that cannot be read."""
        return self._storage.groups()

    def get(self, group_id: bytes) -> GroupView:
        """Return one group. Raises `NotFound`, `RolledBack`, `DamagedData`."""
        state = self._storage.read(GROUP_STATE, group_id)
        own = self._storage.read(OWN_LEAF, group_id)
        return GroupView(group_id, _name_of(state), state.epoch, state.members, own.leaf)

    def was_removed(self, group_id: bytes) -> bool:
        """Tell whether a group was here and was removed."""
        return self._storage.was_removed(group_id)

    def fetched(self, group_id: bytes) -> int:
        """Return how far this group's frames were received and acknowledged."""
        return self._storage.read(MESSAGE_COUNTERS, group_id).fetched

    def pending_commit(self, group_id: bytes) -> bytes | None:
        """Return our own commit that nobody has confirmed yet, to be published again."""
        try:
            return self._storage.read(PENDING_COMMITS, group_id).frame
        except NotFound:
            return None

    def current(self, group_id: bytes) -> tuple[GroupState, EpochSecrets]:
        """Return state and secrets, for an invitation. Handle with care."""
        read = self._storage.read
        return read(GROUP_STATE, group_id), read(EPOCH_SECRETS, group_id)

    # ---- life of a group --------------------------------------------------------------

    def create(self, group_id: bytes, name: str) -> GroupView:
        """Found a group with one member: durable on return. Raises `ConflictError`."""
        with self._mutex:
            if group_id in self._storage.groups() or self._storage.was_removed(group_id):
                raise ConflictError(f"group {group_id.hex()} is, or was, already here")
            own = new_leaf()
            context = cbor.encode({"name": name})
            state, secrets = found_group(group_id, context, self._self_at(own), own)
            changes = Changes().write(GROUP_STATE, group_id, state)
            changes.write(EPOCH_SECRETS, group_id, secrets).write(OWN_LEAF, group_id, own)
            self._storage.commit(changes.write(MESSAGE_COUNTERS, group_id, _fresh_counters(0)))
            return self.get(group_id)

    def remove(self, group_id: bytes) -> None:
        """Forget a group and its secrets for good: durable on return. Raises `NotFound`."""
        with self._mutex:
            if group_id not in self._storage.groups():
                raise NotFound(f"group {group_id.hex()} is not here")
            self._numbers.pop(group_id, None)
            self._storage.commit(Changes().remove_group(group_id))

    # ---- sending ----------------------------------------------------------------------

    def protect(self, group_id: bytes, payload: bytes) -> bytes:
        """Return a message for the group as bytes to publish.

        The message's number is durable before it is used, hence before the return: whatever
        crashes, no number is used twice. Raises like `get`, and `StorageError`.
        """
        return self._frame(group_id, FrameKind.MESSAGE, payload)

    def propose_leaving(self, group_id: bytes) -> bytes:
        """Return a proposal to publish: somebody else's next commit will leave us out."""
        return self._frame(group_id, FrameKind.PROPOSAL, b"leave")

    def prepare_commit(
        self,
        group_id: bytes,
        *,
        remove: Sequence[bytes] = (),
        invite: InviteKey | None = None,
        revoke: Sequence[str] = (),
    ) -> bytes:
        """Make the next epoch ready, without the given leaves and all who asked to leave.

        Returns the commit to publish; it is durable as pending by then. Once the transport
        has accepted it call `confirm_commit`; if another commit was faster, `receive` that.
        Raises `ConflictError` while another commit of ours is pending.
        """
        with self._mutex:
            if self.pending_commit(group_id) is not None:
                raise ConflictError("a commit is pending; confirm, publish or drop it first")
            session, own = self._session(group_id), self._storage.read(OWN_LEAF, group_id)
            leaving = {bytes.fromhex(k) for k in self._storage.keys(PENDING_PROPOSALS, group_id)}
            gone = {*remove, *leaving} - {own.leaf}
            state = session.state
            for leaf in remove:
                if session.member(leaf) is None:
                    raise NotFound(f"no member of the group is at leaf {leaf.hex()}")
            tree = {leaf: key for leaf, key in tree_of(state).items() if leaf not in gone}
            members = [member for member in state.members if member.leaf not in gone]
            invites = [item for item in state.invites if item.invite_id not in revoke]
            if invite is not None:
                invites.append(invite)
            number = self._number(group_id)
            pending = session.prepare(members, tree, invites, own.leaf, number, self._signature_key)
            self._storage.write(PENDING_COMMITS, group_id, pending)
            return pending.frame

    def confirm_commit(self, group_id: bytes) -> GroupView:
        """Enter the epoch of the pending commit, in one durable step. Raises `NotFound`."""
        with self._mutex:
            pending = self._storage.read(PENDING_COMMITS, group_id)
            changes = Changes().write(GROUP_STATE, group_id, pending.state)
            changes.write(EPOCH_SECRETS, group_id, pending.secrets)
            changes.delete(PENDING_COMMITS, group_id)
            self._keep_proposals(changes, group_id, pending.state, {})
            self._storage.commit(changes)
            return self.get(group_id)

    def drop_commit(self, group_id: bytes) -> None:
        """Give up the pending commit, if there is one; only if nobody can have seen it."""
        with self._mutex:
            self._storage.commit(Changes().delete(PENDING_COMMITS, group_id))

    # ---- receiving --------------------------------------------------------------------

    def receive(self, group_id: bytes, frames: Sequence[tuple[int, bytes]]) -> Received:
        """Open frames in the transport's order: (position, bytes) from `fetched` on.

        Changes nothing: store the messages, then call `acknowledge`; after a crash in between
        the same frames are received again. Frames that are not genuine are reported in
        ``run.rejected``. Raises like `get`.
        """
        with self._mutex:
            session = self._session(group_id)
            fetched = self.fetched(group_id)
            done = follow_frames(session, frames, fetched, self._pending(group_id))
            return Received(group_id, done, fetched, session.epoch)

    def acknowledge(self, received: Received) -> None:
        """Store what was received: new epoch, proposals and position, in one durable step.

        Raises `ConflictError` if the group has moved on since `receive`, `StorageError`.
        """
        with self._mutex:
            group_id, run = received.group_id, received.run
            counters = self._storage.read(MESSAGE_COUNTERS, group_id)
            epoch = self._storage.read(GROUP_STATE, group_id).epoch
            if (counters.fetched, epoch) != (received.began_at, received.began_in):
                raise ConflictError("the group has moved on since; receive the frames anew")
            if run.removed:
                self.remove(group_id)
                return
            if run.fetched == counters.fetched:
                return
            changes = Changes()
            if run.session.epoch != epoch:  # whatever was pending has come true, or lost
                changes.write(GROUP_STATE, group_id, run.session.state)
                changes.write(EPOCH_SECRETS, group_id, run.session.secrets)
                changes.delete(PENDING_COMMITS, group_id)
            self._keep_proposals(changes, group_id, run.session.state, run.proposals)
            counters = counters.model_copy(update={"fetched": run.fetched})
            self._storage.commit(changes.write(MESSAGE_COUNTERS, group_id, counters))

    # ---- joining ----------------------------------------------------------------------

    def prepare_joining(self, guest: GroupSession, fetched: int) -> Joining:
        """Return the commit by which a guest becomes a member; nothing is stored yet."""
        if fetched < 0:
            raise ValidationError("fetched", f"{fetched}: positions are counted from 0")
        own = new_leaf()
        me = self._self_at(own)
        before = {m.leaf for m in guest.state.members if m.user_id == me.user_id}
        members = [m for m in guest.state.members if m.leaf not in before] + [me]
        tree = {leaf: key for leaf, key in tree_of(guest.state).items() if leaf not in before}
        tree[own.leaf] = x25519_public(own.private_key)
        counters = _fresh_counters(fetched).model_copy(update={"reserved": 1})
        commit = guest.prepare(
            members, tree, guest.state.invites, own.leaf,
            Number(counters.incarnation, 0), self._signature_key,
        )  # fmt: skip
        return Joining(commit, own, counters)

    def complete_joining(self, joining: Joining) -> GroupView:
        """Become a member, in one durable step, once the commit was accepted."""
        with self._mutex:
            state = joining.commit.state
            group_id = state.group_id
            self._numbers.pop(group_id, None)
            changes = Changes().readmit_group(group_id)
            changes.write(GROUP_STATE, group_id, state)
            changes.write(EPOCH_SECRETS, group_id, joining.commit.secrets)
            changes.write(OWN_LEAF, group_id, joining.own)
            self._storage.commit(changes.write(MESSAGE_COUNTERS, group_id, joining.counters))
            return self.get(group_id)

    # ---- helpers ----------------------------------------------------------------------

    def _frame(self, group_id: bytes, kind: FrameKind, payload: bytes) -> bytes:
        with self._mutex:
            session, own = self._session(group_id), self._storage.read(OWN_LEAF, group_id)
            number = self._number(group_id)
            return session.protect(kind, payload, own.leaf, number, self._signature_key).encode()

    def _number(self, group_id: bytes) -> Number:
        """Return a message number that is, durably, reserved for this call alone."""
        incarnation, free = self._numbers.get(group_id, (b"", range(0)))
        if not free:
            counters = self._storage.read(MESSAGE_COUNTERS, group_id)
            free = range(counters.reserved, counters.reserved + self._block)
            incarnation = counters.incarnation
            reserved = counters.model_copy(update={"reserved": free.stop})
            self._storage.write(MESSAGE_COUNTERS, group_id, reserved)
        self._numbers[group_id] = (incarnation, free[1:])
        return Number(incarnation, free[0])

    def _session(self, group_id: bytes) -> GroupSession:
        state, secrets = self.current(group_id)
        return GroupSession(state, secrets, Place.of_member(self._storage.read(OWN_LEAF, group_id)))

    def _pending(self, group_id: bytes) -> PendingCommit | None:
        try:
            return self._storage.read(PENDING_COMMITS, group_id)
        except NotFound:
            return None

    def _keep_proposals(
        self, changes: Changes, group_id: bytes, state: GroupState, arrived: dict[str, bytes]
    ) -> None:
        """Keep the proposals of those who are still members; others are done."""
        present = {member.leaf.hex() for member in state.members}
        for leaf, frame in arrived.items():
            if leaf in present:
                changes.write(PENDING_PROPOSALS, group_id, PendingProposal(frame=frame), key=leaf)
        for leaf in self._storage.keys(PENDING_PROPOSALS, group_id):
            if leaf not in present:
                changes.delete(PENDING_PROPOSALS, group_id, key=leaf)

    def _self_at(self, own: OwnLeaf) -> Member:
        return Member(
            leaf=own.leaf,
            user_id=str(self._identity.user_id),
            name=self._identity.display_name,
            joined_at=self._clock.now(),
            signature_key=self._signature_key.public_key,
        )


def _fresh_counters(fetched: int) -> MessageCounters:
    return MessageCounters(incarnation=os.urandom(8), reserved=0, fetched=fetched)


def _name_of(state: GroupState) -> str:
    content: Any = cbor.decode(state.group_context)
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        raise DamagedData(f"group {state.group_id.hex()}: its context holds no name")
    return str(content["name"])
