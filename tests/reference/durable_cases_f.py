"""Block F: one `Case` for each durable operation of log, slots, groups, messenger and backup.

Each looks at what a new process is shown. Where one step of a messenger takes two files' commits,
an invariant says which of the states between is legal.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.envelope import EnvelopeKey
from pytest_statepersist.reference.errors import NotFound
from pytest_statepersist.reference.event_log import EventLog
from pytest_statepersist.reference.group_backup import export_state, import_state
from pytest_statepersist.reference.group_frames import Frame
from pytest_statepersist.reference.groups import Groups
from pytest_statepersist.reference.identity import Identity, load_identity, save_identity
from pytest_statepersist.reference.invites import Invite, InviteBook, InviteOrigin, InviteTicket
from pytest_statepersist.reference.message_protection import new_signature_key
from pytest_statepersist.reference.messenger import Messenger, has_identity
from pytest_statepersist.reference.slots import (
    GROUP_STATE,
    MESSAGE_COUNTERS,
    OWN_LEAF,
    PENDING_PROPOSALS,
    Member,
    OwnLeaf,
)
from pytest_statepersist.reference.snapshot_store import SnapshotStore
from pytest_statepersist.reference.transport import DirectoryTransport
from tests.reference.durable_case import Case
from tests.reference.test_groups import admit
from tests.reference.test_invites import SAMPLE
from tests.reference.test_snapshot_store import OTHER, at_epoch, epoch_of, state

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
CLOCK = ManualClock(NOON)
CANARY = "canary-f604 of the group"
GROUP = uuid.UUID(int=7).bytes
KEYS = {name: new_signature_key() for name in ("Alice", "Bob")}
IDENTITIES = {name: Identity.create(name, key, CLOCK) for name, key in KEYS.items()}


def key() -> EnvelopeKey:
    return EnvelopeKey(bytes(32))


# ---- event log ------------------------------------------------------------------------


def log_in(directory: Path) -> EventLog:
    return EventLog(directory / "log", segment_size=300, key=key())


def two_records(directory: Path) -> None:
    with log_in(directory) as log:
        log.append(b"old one")
        log.append(b"old two")


def what_the_log_holds(directory: Path) -> list[bytes]:
    with log_in(directory) as log:
        found = log.recovered
        start = [b"state: " + found.snapshot.state] if found.snapshot else []
        return start + [record.data for record in found.records]


def appending(directory: Path) -> None:
    with log_in(directory) as log:
        log.append(CANARY.encode() * 200, b"and a second record")


def appending_thrice(directory: Path, acknowledge: Callable[[object], None]) -> None:
    with log_in(directory) as log:
        for number in range(3):
            log.append(b"%d" % number * 200)
            acknowledge(number)


def whole_batches(found: list[bytes], acknowledged: Sequence[object]) -> bool:
    """What was acknowledged is there in its order, and perhaps one more of each attempt.

    A number that comes again, or falls, means that somebody began anew after an error.
    """
    if found[:2] != [b"old one", b"old two"]:
        return False
    said = [number for number in acknowledged if isinstance(number, int)]
    there = iter(found[2:])
    kept = all(b"%d" % number * 200 in there for number in said)
    attempts = 1 + sum(later <= earlier for earlier, later in pairwise(said))
    return kept and len(found) - 2 <= len(said) + attempts


def compacting(directory: Path, acknowledge: Callable[[object], None]) -> None:
    with log_in(directory) as log:
        log.append(b"new")
        acknowledge("appended")
        log.compact(CANARY.encode())
        acknowledge("compacted")


def compacted(found: list[bytes], acknowledged: Sequence[object]) -> bool:
    old = [b"old one", b"old two"]
    new, state = [b"new"], [b"state: " + CANARY.encode()]
    if acknowledged[-1:] == ["compacted"]:
        return found == state
    if acknowledged.count("appended") > 1:  # begun anew after an error
        return found in ([*old, *new, *new], [*state, *new], state)
    return found in (old, [*old, *new], state)[len(acknowledged) :]


# ---- slots ----------------------------------------------------------------------------


def store_in(directory: Path, name: str = "store") -> SnapshotStore:
    return SnapshotStore(directory / name, key=key(), clock=CLOCK)


def two_groups(directory: Path) -> None:
    with store_in(directory) as store:
        store.commit(at_epoch(1).write(GROUP_STATE, OTHER, state(1, OTHER)))


def in_store(change: Callable[[SnapshotStore], object]) -> Callable[[Path], None]:
    def workload(directory: Path) -> None:
        with store_in(directory) as store:
            change(store)

    return workload


def slots_of(directory: Path) -> object:
    with store_in(directory) as store:
        leaf = store.keys(OWN_LEAF, OTHER)
        try:
            other: int | None = store.read(GROUP_STATE, OTHER).epoch
        except NotFound:
            other = None
        return epoch_of(store), other, leaf, store.was_removed(OTHER)


# ---- groups ---------------------------------------------------------------------------


@contextmanager
def groups_in(directory: Path, name: str = "Alice") -> Iterator[Groups]:
    with store_in(directory, name) as store:
        yield Groups(
            store, identity=IDENTITIES[name], signature_key=KEYS[name], clock=CLOCK, block=2
        )


def in_groups(*changes: Callable[[Groups], object]) -> Callable[[Path], None]:
    def workload(directory: Path) -> None:
        with groups_in(directory) as groups:
            for change in changes:
                change(groups)

    return workload


def founding(groups: Groups) -> None:
    groups.create(GROUP, "general")


def of_two(directory: Path) -> None:
    """Alice and Bob; what Bob then says waits in a file."""
    with groups_in(directory) as alice, groups_in(directory, "Bob") as bob:
        founding(alice)
        admit(alice, bob)
        (directory / "frame").write_bytes(bob.protect(GROUP, CANARY.encode()))


def groups_look(directory: Path) -> object:
    """All that the app sees of its groups. A reserved number that was not used is no state."""
    shown, removed = numbered(directory)
    return [view[:-1] for view in shown], removed


def numbered(directory: Path) -> tuple[list[tuple[object, ...]], bool]:
    with store_in(directory, "Alice") as store:
        groups = Groups(
            store, identity=IDENTITIES["Alice"], signature_key=KEYS["Alice"], clock=CLOCK
        )
        return [
            (
                view.name,
                view.epoch,
                [member.name for member in view.members],
                groups.pending_commit(view.group_id) is not None,
                len(store.keys(PENDING_PROPOSALS, view.group_id)),
                groups.fetched(view.group_id),
                store.read(MESSAGE_COUNTERS, view.group_id).reserved,
            )
            for view in groups.list()
        ], groups.was_removed(GROUP)


def never_a_number_twice(found: object, acknowledged: Sequence[object]) -> bool:
    """What was acknowledged is the number of a message: the durable counter is above it."""
    assert isinstance(found, tuple)
    ((*_, reserved),), removed = found
    return not removed and all(int(str(number)) < reserved for number in acknowledged)


def protecting(directory: Path, acknowledge: Callable[[object], None]) -> None:
    with groups_in(directory) as groups:
        for _ in range(3):
            acknowledge(Frame.decode(groups.protect(GROUP, b"x")).number.counter)


def proposing(directory: Path, acknowledge: Callable[[object], None]) -> None:
    """A proposal is a message: what has to be durable is that its number is taken."""
    with groups_in(directory) as groups:
        for _ in range(3):
            acknowledge(Frame.decode(groups.propose_leaving(GROUP)).number.counter)


def receiving(directory: Path) -> None:
    with groups_in(directory) as groups:
        frame = (directory / "frame").read_bytes()
        groups.acknowledge(groups.receive(GROUP, [(9, frame)]))


def preparing(groups: Groups) -> None:
    groups.prepare_commit(GROUP, invite=InviteTicket.new().public)


GROUPS: list[tuple[str, Callable[[Path], object], Callable[[Path], object]]] = [
    ("create", in_groups(), in_groups(founding)),
    ("remove", in_groups(founding), in_groups(lambda g: g.remove(GROUP))),
    ("prepare_commit", of_two, in_groups(preparing)),
    (
        "confirm_commit",
        in_groups(founding, preparing),
        in_groups(lambda g: g.confirm_commit(GROUP)),
    ),
    ("drop_commit", in_groups(founding, preparing), in_groups(lambda g: g.drop_commit(GROUP))),
    ("acknowledge", of_two, receiving),
]


def joining(directory: Path, acknowledge: Callable[[object], None]) -> None:
    """Alice joins the group that Bob founded; what an error had cut short is begun anew."""
    with groups_in(directory, "Bob") as bob, groups_in(directory) as alice:
        if bob.pending_commit(GROUP) is not None:
            bob.drop_commit(GROUP)
        admit(bob, alice)
    acknowledge("joined")


def joined(found: object, acknowledged: Sequence[object]) -> bool:
    """Not there yet, or a member, in a later epoch where Bob had to begin anew."""
    assert isinstance(found, tuple)
    groups, removed = found
    if not groups:
        return not acknowledged and not removed
    ((name, epoch, members, pending, proposals, counters),) = groups
    rest = (name, members, pending, proposals, counters, removed)
    return epoch >= 2 and rest == ("general", ["Bob", "Alice"], False, 0, 1, False)


def founded_by_bob(directory: Path) -> None:
    with groups_in(directory, "Bob") as bob:
        founding(bob)


# ---- identity, invitations, transport -------------------------------------------------


def naming(name: str) -> Callable[[Path], None]:
    return lambda directory: save_identity(directory / "identity.json", IDENTITIES[name])


def book(directory: Path) -> InviteBook:
    return InviteBook(directory / "invites", key=key())


def inviting_someone(directory: Path) -> None:
    book(directory).save(SAMPLE, InviteOrigin.ISSUED, NOON)


def mailbox(directory: Path) -> DirectoryTransport:
    return DirectoryTransport(directory / "mailbox")


def publish(directory: Path) -> None:
    mailbox(directory).publish(GROUP, b"a frame", commit_after=1)


# ---- messenger ------------------------------------------------------------------------


def messenger_in(directory: Path, name: str = "alice") -> Messenger:
    return Messenger(directory / name, key=key(), transport=mailbox(directory), clock=CLOCK)


def in_messenger(change: Callable[[Messenger, str], object]) -> Callable[[Path], None]:
    def workload(directory: Path) -> None:
        with messenger_in(directory) as messenger:
            change(messenger, (directory / "channel").read_text())

    return workload


def one_message(directory: Path) -> None:
    Messenger.init(directory / "alice", "Alice", key=key(), clock=CLOCK)
    with messenger_in(directory) as messenger:
        channel = messenger.create_channel("general").channel_id
        (directory / "channel").write_text(channel)
        messenger.send(channel, "old")


def with_invite(directory: Path) -> None:
    one_message(directory)
    with messenger_in(directory) as messenger:
        messenger.invite((directory / "channel").read_text())


def with_bob(directory: Path) -> None:
    """Bob is a member and has said something that Alice has not fetched."""
    one_message(directory)
    channel = (directory / "channel").read_text()
    Messenger.init(directory / "bob", "Bob", key=key(), clock=CLOCK)
    with messenger_in(directory) as alice:
        code = alice.invite(channel)
    with messenger_in(directory, "bob") as bob:
        bob.join(code)
        bob.send(channel, CANARY)
    with messenger_in(directory) as alice:
        alice.sync(channel)
        (directory / "bob-id").write_text(
            next(m.user_id for m in _members(alice, channel) if m.name == "Bob")
        )
    with messenger_in(directory, "bob") as bob:
        bob.send(channel, CANARY + "!")


def _members(messenger: Messenger, channel: str) -> Sequence[Member]:
    group = messenger.channel(channel).group
    assert group is not None
    return group.members


Shown = tuple[list[tuple[str, str, int | None, list[str]]], int]


def messenger_look(directory: Path) -> Shown | None:
    """Channels, epochs, messages and the number of saved invitations, as the app shows them."""
    if not has_identity(directory / "alice"):
        return None
    with messenger_in(directory) as messenger:
        channels = [
            (
                channel.name,
                channel.topic,
                None if channel.group is None else channel.group.epoch,
                sorted(message.text for message in messenger.history(channel.channel_id)),
            )
            for channel in messenger.channels()
        ]
        return sorted(channels, key=repr), len(messenger.invites.list())


OLD_AND_BOBS = [CANARY, "old"]
STEPS: dict[str, tuple[Shown, ...]] = {
    # The commit comes true in the group, then the code is saved; a member more is no member yet.
    "invite": tuple(
        ([("general", "", n, ["old"])], saved) for n, saved in ((0, 0), (1, 0), (1, 1))
    ),
    "revoke": tuple(
        ([("general", "", n, ["old"])], saved) for n, saved in ((1, 1), (2, 1), (2, 0))
    ),
    # The code is kept first, so that the group can be joined again whatever happens.
    "join": (([], 0), ([], 1), ([("general", "", 2, [])], 1)),
    "rejoin": (([("", "", None, [])], 1), ([("general", "", 3, [])], 1)),
    # What others said is fetched before a commit.
    "remove_member": (
        ([("general", "", 2, OLD_AND_BOBS)], 1),
        ([("general", "", 2, [CANARY, CANARY + "!", "old"])], 1),
        ([("general", "", 3, [CANARY, CANARY + "!", "old"])], 1),
    ),
}
"""What a messenger shows after each of its durable steps, where an operation has several."""


def is_at_least(found: Any, expected: Any, *, more_codes: bool) -> bool:
    """The same, perhaps in a later epoch: who has begun anew after an error made one more.

    So did who invites: one more code.
    """
    epochs = [[channel[2] or 0 for channel in shown[0]] for shown in (found, expected)]
    rest = [[(*channel[:2], *channel[3:]) for channel in shown[0]] for shown in (found, expected)]
    later = all(one >= other for one, other in zip(*epochs, strict=False))
    codes = found[1] >= expected[1] if more_codes else found[1] == expected[1]
    return rest[0] == rest[1] and later and codes


def stepwise(name: str, setup: Callable[[Path], object], work: Callable[[Path], object]) -> Case:
    """The case of an operation in several steps: any of them, and once it returned the last."""

    def workload(directory: Path, acknowledge: Callable[[object], None]) -> None:
        work(directory)
        acknowledge("returned")

    def one_of(found: object, acknowledged: Sequence[object]) -> bool:
        legal = STEPS[name]
        if acknowledged:
            return is_at_least(found, legal[-1], more_codes=name == "invite")
        return found in legal

    return Case(f"Messenger.{name}", setup, workload, messenger_look, invariant=one_of)


def joinable(directory: Path) -> None:
    """Bob's channel, and a code for Alice, who has none."""
    for name in ("alice", "bob"):
        Messenger.init(directory / name, name.title(), key=key(), clock=CLOCK)
    with messenger_in(directory, "bob") as bob:
        channel = bob.create_channel("general").channel_id
        (directory / "channel").write_text(channel)
        (directory / "code").write_text(bob.invite(channel))


def joined_and_lost(directory: Path) -> None:
    joinable(directory)
    with messenger_in(directory) as alice:
        alice.join((directory / "code").read_text())
    for path in (directory / "alice/mls_groups").glob("group-*"):
        path.write_bytes(b"a failing disk")


def joining_by_code(directory: Path) -> None:
    with messenger_in(directory) as messenger:
        messenger.join((directory / "code").read_text())


def revoking(messenger: Messenger, channel: str) -> None:
    (saved,) = messenger.invites.list()
    messenger.revoke(channel, Invite.decode(saved.code).ticket.invite_id)


def removing(directory: Path) -> None:
    with messenger_in(directory) as messenger:
        messenger.remove_member(
            (directory / "channel").read_text(), (directory / "bob-id").read_text()
        )


Step = tuple[str, Callable[[Path], object], Callable[[Messenger, str], object]]
MESSENGER: list[Step] = [
    ("create_channel", one_message, lambda m, c: m.create_channel("more")),
    ("set_topic", one_message, lambda m, c: m.set_topic(c, CANARY)),
    ("rename_channel", one_message, lambda m, c: m.rename_channel(c, CANARY)),
    ("leave", with_bob, lambda m, c: m.leave(c)),
    ("forget", one_message, lambda m, c: m.forget(c)),
    ("advance", one_message, lambda m, c: m.advance(c)),
    ("send", one_message, lambda m, c: m.send(c, CANARY)),
    ("delete_message", one_message, lambda m, c: m.delete_message(c, m.history(c)[0].message_id)),
    ("sync", with_bob, lambda m, c: m.sync(c)),
]


def exported(directory: Path) -> None:
    one_message(directory)
    export(directory)


def export(directory: Path) -> None:
    with messenger_in(directory) as messenger:
        export_state(messenger, directory / "export", key=key(), clock=CLOCK)


def export_look(directory: Path) -> object:
    """An export is worth what it brings back."""
    if not (directory / "export").exists():
        return None
    into(directory, "laptop")
    with messenger_in(directory, "laptop") as messenger:
        return [channel.name for channel in messenger.channels()]


def into(directory: Path, name: str) -> None:
    import_state(
        directory / name, directory / "export", export_key=key(), key=key(), replace=True,
        clock=CLOCK,
    )  # fmt: skip


def changed_since(directory: Path) -> None:
    exported(directory)
    with messenger_in(directory) as messenger:
        messenger.set_topic((directory / "channel").read_text(), "since then")


_CASES = [
    Case("EventLog.append", two_records, appending, what_the_log_holds),
    Case(
        "EventLog.append-segments", two_records, appending_thrice, what_the_log_holds,
        invariant=whole_batches,
    ),
    Case("EventLog.compact", two_records, compacting, what_the_log_holds, invariant=compacted),
    Case(
        "SnapshotStore.commit", two_groups,
        in_store(lambda s: s.commit(at_epoch(2).write(GROUP_STATE, OTHER, state(2, OTHER)))),
        slots_of,
    ),
    Case(
        "SnapshotStore.write", two_groups,
        in_store(lambda s: s.write(OWN_LEAF, OTHER, OwnLeaf(leaf=b"l", private_key=b"k"))),
        slots_of,
    ),
    Case(
        "SnapshotStore.delete", two_groups,
        in_store(lambda s: s.delete(GROUP_STATE, OTHER)), slots_of,
    ),
    *(Case(f"Groups.{name}", setup, work, groups_look) for name, setup, work in GROUPS),
    Case("Groups.protect", of_two, protecting, numbered, invariant=never_a_number_twice),
    Case("Groups.propose_leaving", of_two, proposing, numbered, invariant=never_a_number_twice),
    Case("Groups.complete_joining", founded_by_bob, joining, groups_look, invariant=joined),
    Case("save_identity", naming("Alice"), naming("Bob"),
         lambda d: load_identity(d / "identity.json").display_name),
    Case("InviteBook.save", lambda d: book(d), inviting_someone, lambda d: len(book(d).list())),
    Case(
        "InviteBook.forget", inviting_someone,
        lambda d: book(d).forget(SAMPLE.ticket.invite_id), lambda d: len(book(d).list()),
    ),
    Case("DirectoryTransport.publish", lambda d: mailbox(d), publish,
         lambda d: mailbox(d).fetch(GROUP, 0)),
    Case(
        "Messenger.init", lambda d: None,
        lambda d: Messenger.init(d / "alice", "Alice", key=key(), clock=CLOCK), messenger_look,
    ),
    *(
        Case(f"Messenger.{name}", setup, in_messenger(work), messenger_look)
        for name, setup, work in MESSENGER
    ),
    stepwise("invite", one_message, in_messenger(lambda m, c: m.invite(c))),
    stepwise("revoke", with_invite, in_messenger(revoking)),
    stepwise("remove_member", with_bob, removing),
    stepwise("join", joinable, joining_by_code),
    stepwise("rejoin", joined_and_lost, in_messenger(lambda m, c: m.rejoin(c))),
    Case(
        "Messenger.compact", one_message, in_messenger(lambda m, c: m.compact()),
        lambda d: (messenger_look(d), len(list((d / "alice").rglob("snapshot_*.dat")))),
    ),
    Case("group_backup.export_state", one_message, export, export_look),
    Case("group_backup.import_state", changed_since, lambda d: into(d, "alice"), messenger_look),
]  # fmt: skip
PLAIN = ("save_identity", "DirectoryTransport.publish")
"""What is stored in the clear by design, or comes encrypted already."""

CASES = [replace(case, encrypted=case.name not in PLAIN) for case in _CASES]
