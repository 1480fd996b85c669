"""Event log, snapshot store and messenger under every power loss, two deviations at once.

That takes minutes, so it is for the soak profile: with one deviation the same operations are in
`test_every_durable_operation`, in every run. The canaries at the end leave out one sync each and
must be found, in every run too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pytest_statepersist import CrashSimulator
from pytest_statepersist.reference import event_log, log_files, snapshot_store
from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.envelope import EnvelopeKey
from pytest_statepersist.reference.event_log import EventLog
from pytest_statepersist.reference.identity import Identity, load_identity, save_identity
from pytest_statepersist.reference.invites import InviteBook, InviteOrigin
from pytest_statepersist.reference.message_protection import new_signature_key
from pytest_statepersist.reference.messenger import Messenger
from pytest_statepersist.reference.slots import GROUP_STATE, Changes
from pytest_statepersist.reference.snapshot_store import SnapshotStore
from tests.reference.durable_case import soak
from tests.reference.test_invites import SAMPLE
from tests.reference.test_snapshot_store import OTHER, at_epoch, epoch_of, state

MODEL = "posix"  # the weakest: what holds there holds everywhere
NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
CLOCK = ManualClock(NOON)
CHANNEL_FILE = "channel"
SIGNATURE = new_signature_key()
Acknowledge = Callable[[object], None]


def judged(**questions: object) -> None:
    report = CrashSimulator().explore(model=MODEL, samples=20, **questions)  # type: ignore[arg-type]
    assert report.findings == ()
    verdict = report.verdict(MODEL)
    assert (verdict.atomic, verdict.durable) == (True, True), verdict


# ---- event log ------------------------------------------------------------------------


def log_in(directory: Path) -> EventLog:
    return EventLog(directory / "log", segment_size=300, key=EnvelopeKey(bytes(32)))


def two_records(directory: Path) -> None:
    with log_in(directory) as log:
        log.append(b"old one")
        log.append(b"old two")


def what_the_log_holds(directory: Path) -> list[bytes]:
    with log_in(directory) as log:
        found = log.recovered
        state_before = [b"state: " + found.snapshot.state] if found.snapshot else []
        return state_before + [record.data for record in found.records]


def appending(directory: Path) -> None:
    with log_in(directory) as log:
        log.append(b"a batch over several blocks " * 400, b"and a second record")


def appending_and_rotating(directory: Path, acknowledge: Acknowledge) -> None:
    with log_in(directory) as log:
        for number in range(3):
            log.append(b"%d" % number * 200)
            acknowledge(number)


def compacting(directory: Path) -> None:
    with log_in(directory) as log:
        log.append(b"new")
        log.compact(b"three records")


@soak
def test_an_appended_batch() -> None:
    judged(setup=two_records, workload=appending, recover=what_the_log_holds)


@soak
def test_batches_over_several_segments() -> None:
    def whole(found: list[bytes], acknowledged: Sequence[object]) -> bool:
        expected = [b"old one", b"old two", *(b"%d" % number * 200 for number in range(3))]
        least = 2 + len(acknowledged)
        return found == expected[: len(found)] and least <= len(found) <= least + 1

    judged(
        setup=two_records,
        workload=appending_and_rotating,
        recover=what_the_log_holds,
        invariant=whole,
    )


@soak
def test_compaction() -> None:
    old = [b"old one", b"old two"]
    legal = (old, [*old, b"new"], [b"state: three records"])

    def one_of_three(found: list[bytes], acknowledged: Sequence[object]) -> bool:
        return found in legal

    judged(
        setup=two_records,
        workload=compacting,
        recover=what_the_log_holds,
        invariant=one_of_three,
    )


# ---- slots ----------------------------------------------------------------------------


def store_in(directory: Path) -> SnapshotStore:
    return SnapshotStore(directory / "store", key=EnvelopeKey(bytes(32)), clock=CLOCK)


def two_groups(directory: Path) -> None:
    with store_in(directory) as store:
        store.commit(at_epoch(1).write(GROUP_STATE, OTHER, state(1, OTHER)))


def epochs_and_removal(directory: Path) -> tuple[int, int | None]:
    with store_in(directory) as store:
        gone = store.was_removed(OTHER)
        return epoch_of(store), None if gone else store.read(GROUP_STATE, OTHER).epoch


def advancing(directory: Path) -> None:
    with store_in(directory) as store:
        store.commit(at_epoch(2).write(GROUP_STATE, OTHER, state(2, OTHER)))


def removing(directory: Path) -> None:
    with store_in(directory) as store:
        store.commit(Changes().remove_group(OTHER))


@soak
@pytest.mark.parametrize("workload", [advancing, removing])
def test_several_slots_of_several_groups(workload: Callable[[Path], None]) -> None:
    judged(setup=two_groups, workload=workload, recover=epochs_and_removal)


# ---- identity and invitations ---------------------------------------------------------


def naming(name: str) -> Callable[[Path], None]:
    made = Identity.create(name, SIGNATURE, CLOCK)
    return lambda directory: save_identity(directory / "identity.json", made)


@soak
def test_an_identity() -> None:
    judged(
        setup=naming("Old"),
        workload=naming("New"),
        recover=lambda directory: load_identity(directory / "identity.json").display_name,
    )


@soak
def test_a_saved_invitation() -> None:
    def book(directory: Path) -> InviteBook:
        return InviteBook(directory / "invites", key=EnvelopeKey(bytes(32)))

    judged(
        setup=lambda directory: book(directory),
        workload=lambda directory: book(directory).save(SAMPLE, InviteOrigin.ISSUED, NOON),
        recover=lambda directory: len(book(directory).list()),
        before=0,
        after=1,
    )


# ---- messenger ------------------------------------------------------------------------


class Silence:
    """A transport to nobody: it takes everything and has nothing."""

    def publish(self, group_id: bytes, frame: bytes, *, commit_after: int | None = None) -> int:
        return 1

    def fetch(self, group_id: bytes, after: int) -> tuple[tuple[int, bytes], ...]:
        return ()


def messenger_in(directory: Path) -> Messenger:
    return Messenger(
        directory / "home", key=EnvelopeKey(bytes(32)), transport=Silence(), clock=CLOCK
    )


def one_message(directory: Path) -> None:
    Messenger.init(directory / "home", "Alice", key=EnvelopeKey(bytes(32)), clock=CLOCK)
    with messenger_in(directory) as messenger:
        channel = messenger.create_channel("general").channel_id
        (directory / CHANNEL_FILE).write_text(channel)
        messenger.send(channel, "old")


def what_was_said(directory: Path) -> tuple[int, list[str], int]:
    with messenger_in(directory) as messenger:
        (channel,) = messenger.channels()
        assert channel.group is not None
        said = [message.text for message in messenger.history(channel.channel_id)]
        return channel.group.epoch, said, len(messenger.invites.list())


def sending(directory: Path) -> None:
    with messenger_in(directory) as messenger:
        messenger.send((directory / CHANNEL_FILE).read_text(), "new")


def inviting(directory: Path, acknowledge: Acknowledge) -> None:
    with messenger_in(directory) as messenger:
        messenger.invite((directory / CHANNEL_FILE).read_text())
        acknowledge("invited")


@soak
def test_a_sent_message() -> None:
    judged(setup=one_message, workload=sending, recover=what_was_said)


@soak
def test_an_invitation_with_its_commit() -> None:
    def in_step(found: tuple[int, list[str], int], acknowledged: Sequence[object]) -> bool:
        epoch, said, invites = found
        return said == ["old"] and invites <= epoch <= 1 and (invites == 1 or not acknowledged)

    judged(setup=one_message, workload=inviting, recover=what_was_said, invariant=in_step)


# ---- canaries -------------------------------------------------------------------------


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> Callable[[object, str], None]:
    """Let a module replace a file as people do who have not heard of power loss."""

    def careless(path: Path, data: bytes, *, mode: int = 0o600) -> None:
        temporary = Path(path).with_suffix(".new")
        temporary.write_bytes(data)
        temporary.replace(path)

    return lambda module, name: monkeypatch.setattr(module, name, careless)


def test_a_store_without_syncs_is_found(unsynced: Callable[[object, str], None]) -> None:
    unsynced(snapshot_store, "write_atomic")
    report = CrashSimulator().explore(
        model=MODEL,
        setup=two_groups,
        workload=advancing,
        recover=epochs_and_removal,
        deviations=1,
        recovery_crashes=0,
        repairs=False,
    )
    assert report.findings
    assert report.verdict(MODEL).durable is False


def test_a_log_without_syncs_is_found(unsynced: Callable[[object, str], None]) -> None:
    unsynced(log_files, "write_atomic")
    report = CrashSimulator().explore(
        model=MODEL,
        deviations=1,
        recovery_crashes=0,
        repairs=False,
        setup=two_records,
        workload=compacting,
        recover=what_the_log_holds,
        before=[b"old one", b"old two"],
    )
    assert report.findings
    assert event_log.write_atomic is not log_files.write_atomic
