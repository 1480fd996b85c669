"""Groups come back: numbers never repeat, epochs advance, nothing old is taken for new."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.envelope import EnvelopeKey
from pytest_statepersist.reference.errors import (
    ConflictError,
    IntegrityError,
    NotFound,
    StorageError,
    ValidationError,
)
from pytest_statepersist.reference.group_frames import Frame, FrameKind, Number
from pytest_statepersist.reference.group_receiving import follow_frames
from pytest_statepersist.reference.groups import Groups
from pytest_statepersist.reference.identity import Identity
from pytest_statepersist.reference.invites import Invite, InviteTicket
from pytest_statepersist.reference.message_protection import (
    decrypt_message,
    encrypt_message,
    new_signature_key,
    new_x25519_key,
    open_sealed,
    seal_to,
    x25519_public,
)
from pytest_statepersist.reference.slots import MESSAGE_COUNTERS, PENDING_PROPOSALS
from pytest_statepersist.reference.snapshot_store import SnapshotStore
from tests.reference.fault_points import failing
from tests.reference.kill_points import each_kill_point

GROUP = uuid.UUID(int=7).bytes
CLOCK = ManualClock(datetime(2025, 3, 1, 12, tzinfo=UTC))
KEYS = {name: new_signature_key() for name in ("Alice", "Bob", "Carol")}
IDENTITIES = {name: Identity.create(name, key, CLOCK) for name, key in KEYS.items()}


class Session:
    """One process' life: a store and its groups."""

    def __init__(self, root: Path, name: str = "Alice", block: int = 16) -> None:
        self.store = SnapshotStore(root / name, key=EnvelopeKey(bytes(32)), clock=CLOCK)
        self.groups = Groups(
            self.store,
            identity=IDENTITIES[name],
            signature_key=KEYS[name],
            clock=CLOCK,
            block=block,
        )

    def __enter__(self) -> Groups:
        return self.groups

    def __exit__(self, *exc: object) -> None:
        self.store.close()


def number_of(frame: bytes) -> tuple[bytes, int]:
    number = Frame.decode(frame).number
    return number.incarnation, number.counter


def admit(alice: Groups, bob: Groups, position: int = 0) -> list[bytes]:
    """Let Bob join Alice's group; return the frames that were published."""
    ticket = InviteTicket.new()
    invitation = alice.prepare_commit(GROUP, invite=ticket.public)
    alice.confirm_commit(GROUP)
    state, secrets = alice.current(GROUP)
    invite = Invite.decode(Invite(ticket, state, secrets.secret, position + 1).encode())
    joining = bob.prepare_joining(invite.guest(), position + 1)
    alice.acknowledge(
        alice.receive(GROUP, [(position + 1, invitation), (position + 2, joining.commit.frame)])
    )
    bob.complete_joining(joining)
    return [invitation, joining.commit.frame]


def heard(groups: Groups, *frames: tuple[int, bytes]) -> list[bytes]:
    received = groups.receive(GROUP, frames)
    assert received.run.rejected == ()
    groups.acknowledge(received)
    return [opened.payload for opened in received.run.messages]


def test_a_group_of_an_earlier_session_is_there_and_sends(ram_path: Path) -> None:
    with Session(ram_path) as alice, Session(ram_path, "Bob") as bob:
        alice.create(GROUP, "general")
        admit(alice, bob)
    with Session(ram_path) as alice:
        (view,) = alice.list()
        assert (view.name, view.epoch) == ("general", 2)
        assert [member.name for member in view.members] == ["Alice", "Bob"]
        assert all(member.joined_at == CLOCK.now() for member in view.members)
        frame = alice.protect(GROUP, b"from a later session")
    with Session(ram_path, "Bob") as bob:
        assert heard(bob, (3, frame)) == [b"from a later session"]
        reply = bob.protect(GROUP, b"and back")
    with Session(ram_path) as alice:
        assert heard(alice, (3, frame), (4, reply)) == [b"from a later session", b"and back"]


def test_no_number_is_used_twice_over_sessions(ram_path: Path) -> None:
    with Session(ram_path, block=3) as alice:
        alice.create(GROUP, "general")
    seen: list[tuple[bytes, int]] = []
    for _ in range(4):
        with Session(ram_path, block=3) as alice:
            seen += [number_of(alice.protect(GROUP, b"x")) for _ in range(5)]
    assert len(set(seen)) == len(seen) == 20


def test_a_number_is_durable_before_the_message_exists(ram_path: Path) -> None:
    with Session(ram_path) as alice:
        alice.create(GROUP, "general")
        shutil.copytree(ram_path / "Alice", ram_path / "before" / "Alice")
        _, counter = number_of(alice.protect(GROUP, b"x"))
        shutil.copytree(ram_path / "Alice", ram_path / "after" / "Alice")
    for name, expected in (("before", False), ("after", True)):
        session = Session(ram_path / name)
        reserved = session.store.read(MESSAGE_COUNTERS, GROUP).reserved
        session.store.close()
        assert (reserved > counter) is expected


def test_a_kill_at_any_call_repeats_no_number(ram_path: Path) -> None:
    sent: list[tuple[bytes, int]] = []
    root, base = ram_path / "world", ram_path / "base"
    with Session(base) as alice:
        alice.create(GROUP, "general")

    def make() -> Callable[[], None]:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(base, root)
        sent.clear()
        return work

    def work() -> None:
        for _ in range(2):
            with Session(root, block=2) as alice:
                for _ in range(3):
                    sent.append(number_of(alice.protect(GROUP, b"x")))

    def after() -> None:
        work()
        assert len(set(sent)) == len(sent) >= 6

    assert each_kill_point(make, after) > 20


def test_after_any_failing_call_sending_again_repeats_no_number(ram_path: Path) -> None:
    point, fired = 0, True
    while fired:
        with Session(ram_path / str(point), block=1) as alice:
            alice.create(GROUP, "general")
            sent: list[tuple[bytes, int]] = []
            with failing(point) as fault:
                for _ in range(3):
                    try:
                        sent.append(number_of(alice.protect(GROUP, b"x")))
                    except StorageError:
                        sent.append(number_of(alice.protect(GROUP, b"again")))
        with Session(ram_path / str(point), block=1) as alice:
            sent.append(number_of(alice.protect(GROUP, b"later")))
        assert len(set(sent)) == 4, fault.call
        fired = fault.fired
        point += 1
    assert point > 20


def test_epochs_advance_and_messages_of_the_last_few_are_understood(ram_path: Path) -> None:
    with Session(ram_path) as alice, Session(ram_path, "Bob") as bob:
        alice.create(GROUP, "general")
        admit(alice, bob)
        late = [bob.protect(GROUP, b"late %d" % n) for n in range(2)]
        position = 2
        for _ in range(3):
            commit = alice.prepare_commit(GROUP)
            alice.confirm_commit(GROUP)
            position += 1
            assert heard(bob, (position, commit)) == []
        assert alice.get(GROUP).epoch == bob.get(GROUP).epoch == 5
        assert heard(alice, (6, late[0])) == [b"late 0"]
        alice.prepare_commit(GROUP)
        alice.confirm_commit(GROUP)
        received = alice.receive(GROUP, [(7, late[1])])
        assert "epoch 2" in received.run.rejected[0].reason


def test_a_pending_commit_survives_and_comes_true_when_it_comes_back(ram_path: Path) -> None:
    with Session(ram_path) as alice, Session(ram_path, "Bob") as bob:
        alice.create(GROUP, "general")
        frames = admit(alice, bob)
        commit = alice.prepare_commit(GROUP)
        with pytest.raises(ConflictError):
            alice.prepare_commit(GROUP)
    with Session(ram_path) as alice:
        assert alice.pending_commit(GROUP) == commit
        assert alice.get(GROUP).epoch == 2
        assert heard(alice, *enumerate([*frames, commit], start=1)) == []
        assert (alice.get(GROUP).epoch, alice.pending_commit(GROUP)) == (3, None)
        with pytest.raises(NotFound):
            alice.confirm_commit(GROUP)


def test_a_faster_commit_of_another_replaces_ours(ram_path: Path) -> None:
    with Session(ram_path) as alice, Session(ram_path, "Bob") as bob:
        alice.create(GROUP, "general")
        admit(alice, bob)
        ours, theirs = alice.prepare_commit(GROUP), bob.prepare_commit(GROUP)
        bob.confirm_commit(GROUP)
        assert heard(alice, (3, theirs)) == []
        assert alice.pending_commit(GROUP) is None
        assert heard(alice, (4, ours)) == []  # too late: ignored
        assert heard(bob, (3, theirs), (4, alice.protect(GROUP, b"agreed"))) == [b"agreed"]
        alice.prepare_commit(GROUP)
        alice.drop_commit(GROUP)
        assert alice.pending_commit(GROUP) is None


def test_a_removed_member_is_out_and_the_group_stays_removed(ram_path: Path) -> None:
    with Session(ram_path) as alice, Session(ram_path, "Bob") as bob:
        alice.create(GROUP, "general")
        admit(alice, bob)
        leaf = bob.get(GROUP).own_leaf
        with pytest.raises(NotFound):
            alice.prepare_commit(GROUP, remove=[b"nobody"])
        commit = alice.prepare_commit(GROUP, remove=[leaf])
        alice.confirm_commit(GROUP)
        secret = alice.protect(GROUP, b"without Bob")
        received = bob.receive(GROUP, [(3, commit), (4, secret)])
        assert received.run.removed
        assert received.run.messages == ()
        bob.acknowledge(received)
    with Session(ram_path, "Bob") as bob:
        assert bob.ids() == ()
        assert bob.was_removed(GROUP)
        for use in (bob.get, bob.remove, lambda g: bob.protect(g, b"x")):
            with pytest.raises(NotFound):
                use(GROUP)
        with pytest.raises(ConflictError):
            bob.create(GROUP, "again")


def test_a_proposal_to_leave_waits_for_the_next_commit(ram_path: Path) -> None:
    with Session(ram_path) as alice, Session(ram_path, "Bob") as bob:
        alice.create(GROUP, "general")
        admit(alice, bob)
        leaf = bob.get(GROUP).own_leaf
        heard(alice, (3, bob.propose_leaving(GROUP)))
        bob.remove(GROUP)
    session = Session(ram_path)
    assert session.store.keys(PENDING_PROPOSALS, GROUP) == (leaf.hex(),)
    session.groups.prepare_commit(GROUP)
    view = session.groups.confirm_commit(GROUP)
    assert [member.name for member in view.members] == ["Alice"]
    assert session.store.keys(PENDING_PROPOSALS, GROUP) == ()
    session.store.close()


def test_receiving_twice_before_acknowledging_gives_the_same(ram_path: Path) -> None:
    with Session(ram_path) as alice, Session(ram_path, "Bob") as bob:
        alice.create(GROUP, "general")
        admit(alice, bob)
        frames = [(3, alice.protect(GROUP, b"one"))]
        first, again = bob.receive(GROUP, frames), bob.receive(GROUP, frames)
        assert first.run.messages == again.run.messages
        bob.acknowledge(first)
        assert bob.receive(GROUP, frames).run.messages == ()
        with pytest.raises(ConflictError, match="moved on"):
            bob.acknowledge(again)
        stale = bob.receive(GROUP, [])
        bob.prepare_commit(GROUP)
        bob.confirm_commit(GROUP)
        with pytest.raises(ConflictError, match="moved on"):
            bob.acknowledge(stale)


def test_what_is_not_genuine_is_rejected_and_changes_nothing(ram_path: Path) -> None:
    with Session(ram_path) as alice, Session(ram_path, "Bob") as bob:
        alice.create(GROUP, "general")
        admit(alice, bob)
        good = alice.protect(GROUP, b"good")
        frame = Frame.decode(good)
        session = bob._session(GROUP)
        own = bob.get(GROUP).own_leaf
        number = Number(b"i" * 8, 0)
        forged = [
            b"",
            b"junk",
            good[:-1] + bytes([good[-1] ^ 1]),
            session.protect(FrameKind.MESSAGE, b"x", frame.leaf, number, KEYS["Bob"]).encode(),
            session.protect(FrameKind.MESSAGE, b"x", b"nobody", number, KEYS["Bob"]).encode(),
            session.protect(FrameKind.COMMIT, b"x", own, number, KEYS["Bob"]).encode(),
            # A guest who puts himself in by throwing Alice out.
            session.prepare(
                [m.model_copy(update={"leaf": b"new"}) for m in session.state.members[1:]],
                {b"new": b"k" * 32}, (), b"new", number, KEYS["Carol"],
            ).frame,
        ]  # fmt: skip
        received = alice.receive(GROUP, list(enumerate(forged, start=3)))
        assert len(received.run.rejected) == len(forged)
        assert (received.run.messages, received.run.session.epoch) == ((), 2)
        alice.acknowledge(received)
        assert alice.get(GROUP).epoch == 2
        with pytest.raises(ConflictError, match="moved on"):
            alice.acknowledge(received)


def test_a_guest_whose_invitation_is_revoked_cannot_follow(ram_path: Path) -> None:
    with Session(ram_path) as alice:
        alice.create(GROUP, "general")
        ticket = InviteTicket.new()
        alice.prepare_commit(GROUP, invite=ticket.public)
        alice.confirm_commit(GROUP)
        state, secrets = alice.current(GROUP)
        guest = Invite(ticket, state, secrets.secret, 0).guest()
        commit = alice.prepare_commit(GROUP)
        alice.confirm_commit(GROUP)
        followed = follow_frames(guest, [(1, commit)], 0)
        assert (followed.session.epoch, followed.removed) == (2, False)
        assert followed.session.secrets == alice.current(GROUP)[1].model_copy(
            update={"earlier": (secrets.secret,)}
        )
        revoked = alice.prepare_commit(GROUP, revoke=[ticket.invite_id])
        alice.confirm_commit(GROUP)
        assert follow_frames(followed.session, [(2, revoked)], 1).removed


def test_a_kill_at_any_call_leaves_a_group_that_works(ram_path: Path) -> None:
    root, base = ram_path / "world", ram_path / "base"
    with Session(base) as alice, Session(base, "Bob") as bob:
        alice.create(GROUP, "general")
        before = admit(alice, bob)
    frames: list[bytes] = []

    def make() -> Callable[[], None]:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(base, root)
        frames[:] = before
        return work

    def work() -> None:
        with Session(root) as alice:
            frames.append(alice.prepare_commit(GROUP))
            alice.confirm_commit(GROUP)
            frames.append(alice.protect(GROUP, b"new epoch"))

    def after() -> None:
        with Session(root) as alice, Session(root, "Bob") as bob:
            pending = alice.pending_commit(GROUP)
            if pending is not None:
                if pending not in frames:
                    frames.append(pending)
                alice.confirm_commit(GROUP)
            frames.append(alice.protect(GROUP, b"after the crash"))
            assert heard(bob, *enumerate(frames, start=1))[-1] == b"after the crash"
            assert alice.get(GROUP).epoch == bob.get(GROUP).epoch

    assert each_kill_point(make, after) > 20


def test_a_block_of_numbers_has_one_at_least(ram_path: Path) -> None:
    session = Session(ram_path)
    with pytest.raises(ValidationError):
        Groups(
            session.store,
            identity=IDENTITIES["Bob"],
            signature_key=KEYS["Bob"],
            clock=CLOCK,
            block=0,
        )
    session.store.close()


def test_sealing_and_message_keys_are_bound_to_their_context() -> None:
    private = new_x25519_key()
    sealed = seal_to(x25519_public(private), b"entropy", b"context")
    assert open_sealed(private, sealed, b"context") == b"entropy"
    for key, data, context in (
        (new_x25519_key(), sealed, b"context"),
        (private, sealed, b"other"),
        (private, sealed[:-1], b"context"),
    ):
        with pytest.raises(IntegrityError):
            open_sealed(key, data, context)
    secret, guard = bytes(32), b"abcd"
    data = encrypt_message(secret, b"number", guard, b"plain", b"header")
    assert decrypt_message(secret, b"number", guard, data, b"header") == b"plain"
    for args in (
        (b"other", guard, data, b"header"),
        (b"number", b"abce", data, b"header"),
        (b"number", guard, data, b"other"),
    ):
        with pytest.raises(IntegrityError):
            decrypt_message(secret, *args)
