"""A messenger whose channels come back: groups, history, invitations and identity together.

The law: the groups are the truth about which channels exist; the event log holds what was
said in them. So no step has to change both at once: a channel whose group is there is listed
with it, and a group without a word of history is listed under the name in its own context.
Orders of writing, each crash between two steps being harmless:

* sending: into the own log (and its outbox), then number reserved, then published; an update
  leaves the outbox only when it has come back from the transport;
* receiving: into the log, then the group's new epoch and position in one step; what is
  received a second time after a crash changes nothing, because updates are idempotent;
* committing: pending in the slots, then published, then the new epoch in one step;
* compacting: how far the log is durable into the groups' index, then the log.

Each change of a group takes along, in the authenticated index, how far the log was durable by
then and what was in it. So after a crash the log is what the index knows, or longer. A log that
is shorter, or another one, was cut or exchanged, and opening says so.

Below the root: ``identity.json``, ``mls_groups/``, ``commit_log/``, ``snapshots/`` and
``invites/``. One process at a time owns a root.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import check_size, checked_path, make_directory
from pytest_statepersist.reference.clock import Clock, SystemClock
from pytest_statepersist.reference.crdt import Add, Remove, Set
from pytest_statepersist.reference.envelope import EnvelopeKey
from pytest_statepersist.reference.errors import (
    ConflictError,
    DamagedData,
    NotFound,
    PersistenceError,
    TransportError,
    ValidationError,
)
from pytest_statepersist.reference.event_log import EventLog
from pytest_statepersist.reference.group_receiving import Rejected, Run, follow_frames
from pytest_statepersist.reference.groups import Groups, GroupView
from pytest_statepersist.reference.identity import (
    IDENTITY_NAME,
    Identity,
    load_identity,
    save_identity,
)
from pytest_statepersist.reference.invites import (
    Invite,
    InviteBook,
    InviteOrigin,
    InviteTicket,
    SavedInvite,
)
from pytest_statepersist.reference.locking import StoreLock
from pytest_statepersist.reference.log_files import LOG_DIRECTORY, SNAPSHOT_DIRECTORY
from pytest_statepersist.reference.log_frames import LARGEST_BODY
from pytest_statepersist.reference.message_protection import new_signature_key
from pytest_statepersist.reference.presence import is_directory
from pytest_statepersist.reference.replica import Delivered, Message, Replica, Update
from pytest_statepersist.reference.slots import CLIENT, SIGNATURE_KEYS, Changes
from pytest_statepersist.reference.snapshot_store import SlotValues, SnapshotStore
from pytest_statepersist.reference.transaction import recover
from pytest_statepersist.reference.transport import LARGEST_FRAME, Transport

__all__ = [
    "GROUP_DIRECTORY",
    "INVITE_DIRECTORY",
    "STATE_DIRECTORIES",
    "Channel",
    "Contents",
    "Messenger",
    "SyncReport",
    "has_identity",
    "settled_root",
]

GROUP_DIRECTORY = "mls_groups"
INVITE_DIRECTORY = "invites"
STATE_DIRECTORIES = (GROUP_DIRECTORY, LOG_DIRECTORY, SNAPSHOT_DIRECTORY, INVITE_DIRECTORY)

_logger = logging.getLogger(__name__)
_ATTEMPTS = 5
LARGEST_UPDATE = LARGEST_FRAME // 2
"""Bytes of one message, or topic, with what belongs to it."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel and its group; ``group`` is None, and ``problem`` says why, if it is damaged."""

    channel_id: str
    name: str
    topic: str
    group: GroupView | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a messenger holds, apart from what is derived or machine-bound."""

    identity: Identity
    slots: dict[bytes, SlotValues]
    removed: dict[bytes, int]
    replica: bytes
    invites: tuple[SavedInvite, ...]


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a `Messenger.sync` did to one channel."""

    channel_id: str
    epoch: int
    received: int
    delivered: int
    rejected: tuple[Rejected, ...]
    removed: bool


@checked
class Messenger:
    """An open messenger; use it in ``with``, or `close` it in the thread that opened it.

    ``known_epochs`` maps channel ids to epochs that the caller knows to have been reached.
    ``compact_after`` records the event log is compacted by itself.

    Opening raises `NotFound` (not set up: `init`), `RolledBack` (known epochs, or the event
    log: older than what was saved), `IntegrityError` (another event log), `WrongPassword`,
    `DamagedData`, `DamagedLog`, `LockTimeout`, `StorageError`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        key: EnvelopeKey,
        transport: Transport,
        clock: Clock | None = None,
        known_epochs: Mapping[str, int] | None = None,
        compact_after: int = 1000,
        lock_timeout: float = 10.0,
    ) -> None:
        self.root = checked_path(root)
        self._transport = transport
        self._clock = clock or SystemClock()
        self._compact_after = compact_after
        self._mutex = threading.RLock()
        reached = {_group_id(channel): epoch for channel, epoch in (known_epochs or {}).items()}
        with ExitStack() as opening:
            opening.enter_context(settled_root(self.root, lock_timeout=lock_timeout))
            self.identity = load_identity(self.root / IDENTITY_NAME)
            self._store = opening.enter_context(
                SnapshotStore(
                    self.root / GROUP_DIRECTORY, key=key, clock=self._clock, known_epochs=reached
                )
            )
            # The log was begun before the first group.
            known = self._store.log_mark
            in_use = known is not None or bool(self._store.groups())
            self._log = opening.enter_context(
                EventLog(self.root, key=key, known=known, must_exist=in_use)
            )
            self._store.note_log(self._log.mark)
            self.invites = InviteBook(self.root / INVITE_DIRECTORY, key=key)
            self._groups = Groups(
                self._store,
                identity=self.identity,
                signature_key=self._store.read(SIGNATURE_KEYS, CLIENT),
                clock=self._clock,
            )
            self._replica = self._rebuild()
            self._open = opening.pop_all()
        count = len(self._groups.ids())
        _logger.info("loaded %s and %d group(s)", self.identity.display_name, count)

    @classmethod
    def init(
        cls,
        root: str | os.PathLike[str],
        display_name: str,
        *,
        key: EnvelopeKey,
        clock: Clock | None = None,
    ) -> Identity:
        """Set up a root for a new user: durable on return; after a crash, call it again.

        Raises `ConflictError` if there is a user already, `ValidationError`, `StorageError`.
        """
        clock = clock or SystemClock()
        home = checked_path(root)
        make_directory(home)
        with settled_root(home):
            path = home / IDENTITY_NAME
            if has_identity(home):
                raise ConflictError(f"{path}: there is an identity already")
            with SnapshotStore(home / GROUP_DIRECTORY, key=key, clock=clock) as store:
                if "" not in store.keys(SIGNATURE_KEYS, CLIENT):  # else: left by a crash
                    store.write(SIGNATURE_KEYS, CLIENT, new_signature_key())
                identity = Identity.create(display_name, store.read(SIGNATURE_KEYS, CLIENT), clock)
            save_identity(path, identity)
            _logger.info("saved identity %s", identity.user_id)
            return identity

    # ---- channels ---------------------------------------------------------------------

    def channels(self) -> tuple[Channel, ...]:
        """Return all channels with their groups, also those whose group is damaged."""
        with self._mutex:
            return tuple(self._channel(group_id) for group_id in self._groups.ids())

    def channel(self, channel_id: str) -> Channel:
        """Return one channel. Raises `NotFound`."""
        with self._mutex:
            group_id = _group_id(channel_id)
            if group_id not in self._groups.ids():
                gone = " any more" if self._groups.was_removed(group_id) else ""
                raise NotFound(f"channel {channel_id} is not here{gone}")
            return self._channel(group_id)

    def create_channel(self, name: str) -> Channel:
        """Create a channel with its group: durable on return. Raises `StorageError`."""
        if not name.strip():
            raise ValidationError("name", "is empty")
        with self._mutex:
            view = self._groups.create(uuid.uuid4().bytes, name)
            return self._channel(view.group_id)

    def set_topic(self, channel_id: str, topic: str) -> None:
        """Set the topic for all members: like `send`."""
        with self._mutex:
            self._say(self.channel(channel_id), [self._replica.set_meta("topic", topic)])

    def rename_channel(self, channel_id: str, name: str) -> None:
        """Rename the channel for all members: like `send`."""
        with self._mutex:
            self._say(self.channel(channel_id), [self._replica.set_meta("name", name)])

    def leave(self, channel_id: str) -> None:
        """Ask the others to go on without us, and remove the group here, durably."""
        with self._mutex:
            group_id = _group_id(self.channel(channel_id).channel_id)
            self._transport.publish(group_id, self._groups.propose_leaving(group_id))
            self._groups.remove(group_id)

    def forget(self, channel_id: str) -> None:
        """Remove the group here, durably, also a damaged one, and tell nobody."""
        with self._mutex:
            self._groups.remove(_group_id(self.channel(channel_id).channel_id))

    def remove_member(self, channel_id: str, user_id: str) -> GroupView:
        """Put a user out of the channel and begin an epoch without him. Raises `NotFound`."""
        with self._mutex:
            group_id = _group_id(channel_id)
            self._sync(group_id)
            leaves = [m.leaf for m in self._groups.get(group_id).members if m.user_id == user_id]
            if not leaves:
                raise NotFound(f"user {user_id} is not a member of channel {channel_id}")
            return self._commit(group_id, remove=leaves)

    def advance(self, channel_id: str) -> GroupView:
        """Begin a new epoch, without those who asked to leave. Raises like `invite`."""
        with self._mutex:
            return self._commit(_group_id(channel_id))

    # ---- messages ---------------------------------------------------------------------

    def send(self, channel_id: str, text: str) -> str:
        """Send a message and return its id.

        On return the message and the number it was encrypted under are durable, and the
        transport has it. A `TransportError` means that it is saved and will be delivered by
        the next `sync`; do not send it again. After a `StorageError` read `history`: where
        the message is there, it is saved in the same way.
        """
        with self._mutex:
            message = Message(
                secrets.token_hex(8),
                str(self.identity.user_id),
                self.identity.display_name,
                self._clock.now(),
                text,
            )
            self._say(self.channel(channel_id), self._replica.add_message(message))
            return message.message_id

    def delete_message(self, channel_id: str, message_id: str) -> None:
        """Remove a message for all members: like `send`. Raises `NotFound`."""
        with self._mutex:
            present = self._replica.channel(channel_id).present
            if message_id not in present:
                raise NotFound(f"no message {message_id!r} in channel {channel_id}")
            self._say(self.channel(channel_id), [present.removal(message_id)])

    def history(self, channel_id: str) -> tuple[Message, ...]:
        """Return the messages of a channel, also of one that was left, in causal order."""
        with self._mutex:
            return self._replica.channel(channel_id).messages()

    def undelivered(self, channel_id: str) -> int:
        """Return how many of our updates have not yet been seen to arrive."""
        with self._mutex:
            return len(self._replica.outbox.get(channel_id, {}))

    def sync(self, channel_id: str) -> SyncReport:
        """Fetch what was missed and deliver what is waiting; all of it durable on return.

        Raises `NotFound`, `TransportError`, `DamagedData`, `StorageError`; then some of it may
        have been done, and calling again does the rest.
        """
        with self._mutex:
            return self._sync(_group_id(self.channel(channel_id).channel_id))

    # ---- invitations ------------------------------------------------------------------

    def invite(self, channel_id: str) -> str:
        """Return an invite code, as secret as a key; saved in the book, durable on return.

        Raises `TransportError` if the members could not be told, `NotFound`, `StorageError`.
        """
        with self._mutex:
            group_id = _group_id(self.channel(channel_id).channel_id)
            ticket = InviteTicket.new()
            self._commit(group_id, ticket=ticket)
            state, epoch_secrets = self._groups.current(group_id)
            position = self._groups.fetched(group_id)
            invite = Invite(ticket, state, epoch_secrets.secret, position)
            self.invites.save(invite, InviteOrigin.ISSUED, self._clock.now())
            return invite.encode()

    def revoke(self, channel_id: str, invite_id: str) -> None:
        """Let an invitation admit nobody from the next epoch on, and forget it."""
        with self._mutex:
            self._commit(_group_id(self.channel(channel_id).channel_id), revoke=[invite_id])
            self.invites.forget(invite_id)

    def join(self, code: str) -> Channel:
        """Join by an invite code, for the first time or again: durable on return.

        The code is saved first. Raises `ConflictError` (a member already), `DamagedData` (not
        a code), `NotFound` (revoked), `TransportError`, `StorageError`.
        """
        with self._mutex:
            invite = Invite.decode(code)
            group_id = invite.state.group_id
            if group_id in self._groups.ids() and self._channel(group_id).group is not None:
                raise ConflictError(f"already a member of channel {_channel_id(group_id)}")
            if invite.ticket.invite_id not in self._saved_ids():
                self.invites.save(invite, InviteOrigin.RECEIVED, self._clock.now())
            return self._join(invite)

    def rejoin(self, channel_id: str) -> Channel:
        """Join again a channel that was lost or left, by the newest saved code."""
        with self._mutex:
            return self.join(self.invites.newest_for(_group_id(channel_id)).encode())

    # ---- life -------------------------------------------------------------------------

    def epochs(self) -> dict[str, int]:
        """Return the epoch of each channel: what to pass as ``known_epochs`` some day."""
        with self._mutex:
            return {_channel_id(g): epoch for g, epoch in self._store.epochs().items()}

    def compact(self) -> None:
        """Fold the event log into a snapshot; see `EventLog.compact`."""
        with self._mutex:
            self._store.commit(Changes())  # takes the log's mark along
            self._log.compact(self._replica.dump())
            self._compacted_at = self._log.last_sequence

    def contents(self) -> Contents:
        """Return everything that is to be in a backup. Raises `DamagedData`, `StorageError`."""
        with self._mutex:
            slots, removed = self._store.dump()
            saved = self.invites.list()
            return Contents(self.identity, slots, removed, self._replica.dump(), saved)

    def close(self) -> None:
        """Give the root back; nothing is pending, so nothing is written. Harmless twice."""
        with self._mutex:
            self._open.close()

    def __enter__(self) -> Messenger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- helpers ----------------------------------------------------------------------

    def _channel(self, group_id: bytes) -> Channel:
        channel_id = _channel_id(group_id)
        meta = self._replica.channel(channel_id).meta
        name, topic = meta.get("name", ""), meta.get("topic", "")
        try:
            group = self._groups.get(group_id)
        except DamagedData as error:
            return Channel(channel_id, str(name), str(topic), None, str(error))
        return Channel(channel_id, str(name or group.name), str(topic), group)

    def _rebuild(self) -> Replica:
        found = self._log.recovered
        actor = str(self.identity.user_id)
        replica = Replica.load(actor, found.snapshot.state) if found.snapshot else Replica(actor)
        for record in found.records:
            replica.apply(record.data)
        self._compacted_at = found.snapshot.sequence if found.snapshot else 0
        return replica

    def _record(self, records: Sequence[bytes]) -> None:
        if not records:
            return
        for batch in _batches(records):
            last = self._log.append(*batch)
            self._store.note_log(self._log.mark)
            for record in batch:
                self._replica.apply(record)
        if last - self._compacted_at >= self._compact_after:
            try:
                self.compact()
            except PersistenceError as error:
                # The records are safe, and the next one tries again.
                _logger.warning("could not compact the event log yet: %s", error)

    def _say(self, channel: Channel, operations: Sequence[Set | Add | Remove]) -> None:
        if channel.group is None:
            raise DamagedData(channel.problem)
        update = self._replica.update(operations)
        # Before it is saved: what no frame can hold would wait for its delivery for ever.
        check_size(update.encode(), LARGEST_UPDATE, "text")
        self._record([self._replica.event(channel.channel_id, update, own=True)])
        try:
            report = self._sync(channel.group.group_id)
        except TransportError as error:
            raise TransportError(f"saved, and to be delivered by the next sync: {error}") from error
        if report.removed:
            raise NotFound(f"no longer a member of channel {channel.channel_id}; not delivered")

    def _sync(self, group_id: bytes) -> SyncReport:
        frames = self._transport.fetch(group_id, self._groups.fetched(group_id))
        received = self._groups.receive(group_id, frames)
        count, rejected = self._take_in(group_id, received.run)
        self._groups.acknowledge(received)
        delivered = 0
        if not received.run.removed:
            self._publish_pending(group_id)
            delivered = self._deliver(group_id)
        return SyncReport(
            _channel_id(group_id), received.run.session.epoch, count, delivered,
            (*received.run.rejected, *rejected), received.run.removed,
        )  # fmt: skip

    def _take_in(self, group_id: bytes, run: Run) -> tuple[int, tuple[Rejected, ...]]:
        """Put what was received into the log, durably, before its position moves on."""
        channel_id = _channel_id(group_id)
        waiting = self._replica.outbox.get(channel_id, {})
        records: list[bytes] = []
        arrived: list[str] = []
        rejected: list[Rejected] = []
        for opened in run.messages:
            try:
                update = Update.decode(opened.payload)
                update.check_author(opened.sender.user_id)
            except DamagedData as error:
                rejected.append(Rejected(run.fetched, str(error)))
                continue
            if update.update_id in waiting:
                arrived.append(update.update_id)
            else:
                records.append(self._replica.event(channel_id, update))
        count = len(records)
        if arrived:
            records.append(self._replica.event(channel_id, Delivered(tuple(arrived))))
        self._record(records)
        return count, tuple(rejected)

    def _publish_pending(self, group_id: bytes) -> None:
        """Publish a commit of ours that a crash or a failure left pending."""
        frame = self._groups.pending_commit(group_id)
        if frame is None:
            return
        try:
            epoch = self._groups.get(group_id).epoch
            self._transport.publish(group_id, frame, commit_after=epoch)
        except ConflictError:
            return  # another one was first; the next sync fetches it and drops ours
        self._groups.confirm_commit(group_id)

    def _deliver(self, group_id: bytes) -> int:
        waiting = list(self._replica.outbox.get(_channel_id(group_id), {}).values())
        for payload in waiting:
            self._transport.publish(group_id, self._groups.protect(group_id, payload))
        return len(waiting)

    def _commit(
        self,
        group_id: bytes,
        *,
        remove: Sequence[bytes] = (),
        ticket: InviteTicket | None = None,
        revoke: Sequence[str] = (),
    ) -> GroupView:
        for _ in range(_ATTEMPTS):
            if self._sync(group_id).removed:
                raise NotFound(f"no longer a member of channel {_channel_id(group_id)}")
            if self._groups.pending_commit(group_id) is not None:
                continue  # lost against one that is still to be fetched
            view = self._groups.get(group_id)
            present = {member.leaf for member in view.members}
            frame = self._groups.prepare_commit(
                group_id,
                remove=[leaf for leaf in remove if leaf in present],
                invite=ticket.public if ticket else None,
                revoke=revoke,
            )
            try:
                self._transport.publish(group_id, frame, commit_after=view.epoch)
            except ConflictError:
                continue
            return self._groups.confirm_commit(group_id)
        raise TransportError(f"others kept committing first in {_ATTEMPTS} attempts; try again")

    def _join(self, invite: Invite) -> Channel:
        group_id, guest, position = invite.state.group_id, invite.guest(), invite.fetched
        for _ in range(_ATTEMPTS):
            run = follow_frames(guest, self._transport.fetch(group_id, position), position)
            if run.removed:
                raise NotFound("the invitation was revoked; ask for a new one")
            self._take_in(group_id, run)
            guest, position = run.session, run.fetched
            joining = self._groups.prepare_joining(guest, position)
            try:
                frame = joining.commit.frame
                self._transport.publish(group_id, frame, commit_after=guest.epoch)
            except ConflictError:
                continue
            return self._channel(self._groups.complete_joining(joining).group_id)
        raise TransportError(f"others kept committing first in {_ATTEMPTS} attempts; try again")

    def _saved_ids(self) -> set[str]:
        return {saved.invite.ticket.invite_id for saved in self.invites.list()}


def _batches(records: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Yield records in portions that the log takes at once, however much was missed."""
    batch: list[bytes] = []
    size = 0
    for record in records:
        if batch and size + len(record) > LARGEST_BODY // 2:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += len(record)
    yield batch


@checked
@contextmanager
def settled_root(root: Path, *, lock_timeout: float = 10.0) -> Iterator[None]:
    """Hold the root's lock, with an interrupted import finished or cleared away.

    Raises `NotFound` (no such directory), `LockTimeout`, `DamagedData`, `StorageError`.
    """
    if not is_directory(checked_path(root)):
        raise NotFound(f"{root}: nothing was set up there")
    with StoreLock(root / ".lock", timeout=lock_timeout):
        recover(root, (".", *STATE_DIRECTORIES))
        yield


@checked
def has_identity(root: Path) -> bool:
    """Tell whether a user was set up there. Raises `DamagedData`, `StorageError`."""
    try:
        load_identity(root / IDENTITY_NAME)
    except NotFound:
        return False
    return True


def _channel_id(group_id: bytes) -> str:
    return str(uuid.UUID(bytes=group_id)) if len(group_id) == 16 else group_id.hex()


def _group_id(channel_id: str) -> bytes:
    try:
        return uuid.UUID(channel_id).bytes
    except ValueError:
        raise NotFound(f"{channel_id!r} is not a channel id") from None
