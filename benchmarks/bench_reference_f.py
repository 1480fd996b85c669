"""The headline figures of groups and event log, measured.

Run: ``pytest benchmarks/bench_reference_f.py --benchmark-only -s``. Times are taken twice:
``durable`` with all syncs, as the code is, and ``no-fsync`` with `os.fsync` replaced by
nothing; the durable one is what a user pays. Sizes need no clock: they are printed and, where
a figure was published elsewhere, stand beside it.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.envelope import EnvelopeKey, Purpose
from pytest_statepersist.reference.event_log import EventLog
from pytest_statepersist.reference.messenger import Messenger
from pytest_statepersist.reference.slots import GROUP_STATE
from pytest_statepersist.reference.snapshot_store import SnapshotStore
from pytest_statepersist.reference.transport import MemoryTransport

CLAIMED_SNAPSHOT_BYTES = (800, 900)
CLOCK = ManualClock(datetime(2025, 3, 1, 12, tzinfo=UTC))
KEY = bytes(range(32))


@pytest.fixture(params=["durable", "no-fsync"])
def syncing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no-fsync":
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    mode: str = request.param
    return mode


def opened(root: Path, network: MemoryTransport) -> Messenger:
    return Messenger(root, key=EnvelopeKey(KEY), transport=network, clock=CLOCK)


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[tuple[Messenger, str]]:
    Messenger.init(tmp_path / "alice", "Alice", key=EnvelopeKey(KEY), clock=CLOCK)
    with opened(tmp_path / "alice", MemoryTransport()) as messenger:
        yield messenger, messenger.create_channel("general").channel_id


@pytest.mark.parametrize("members", [1, 2, 3, 10])
def test_size_of_a_group_snapshot(benchmark: Any, tmp_path: Path, members: int) -> None:
    network = MemoryTransport()
    names = [f"user{number}" for number in range(members)]
    for name in names:
        Messenger.init(tmp_path / name, name, key=EnvelopeKey(KEY), clock=CLOCK)
    with opened(tmp_path / names[0], network) as founder:
        channel = founder.create_channel("general").channel_id
        code = founder.invite(channel) if members > 1 else ""
    for name in names[1:]:
        with opened(tmp_path / name, network) as guest:
            guest.join(code)
    with opened(tmp_path / names[0], network) as founder:
        founder.sync(channel)
    directory = tmp_path / names[0] / "mls_groups"
    newest = max(directory.glob("group-*.snapshot"), key=lambda path: path.name)
    low, high = CLAIMED_SNAPSHOT_BYTES
    size = newest.stat().st_size
    benchmark.extra_info["bytes"] = size
    print(f"\n{members} member(s): {size} bytes (elsewhere {low} to {high})")

    def load() -> None:
        with SnapshotStore(directory, key=EnvelopeKey(KEY)) as store:
            store.read(GROUP_STATE, uuid.UUID(channel).bytes)

    benchmark(load)


def test_commit_of_an_epoch(benchmark: Any, syncing: str, chat: tuple[Messenger, str]) -> None:
    messenger, channel = chat
    benchmark(messenger.advance, channel)


def test_sending_a_message(benchmark: Any, syncing: str, chat: tuple[Messenger, str]) -> None:
    messenger, channel = chat
    benchmark(messenger.send, channel, "a message of a usual length, as people write them")


def test_opening_with_100_messages(benchmark: Any, syncing: str, tmp_path: Path) -> None:
    network = MemoryTransport()
    root = tmp_path / "alice"
    Messenger.init(root, "Alice", key=EnvelopeKey(KEY), clock=CLOCK)
    with opened(root, network) as messenger:
        channel = messenger.create_channel("general").channel_id
        for number in range(100):
            messenger.send(channel, f"message {number}")
    benchmark(lambda: opened(root, network).close())


@pytest.mark.parametrize("records", [1, 100])
def test_appending_to_the_log(benchmark: Any, syncing: str, tmp_path: Path, records: int) -> None:
    batch = [b"x" * 200] * records
    with EventLog(tmp_path, key=EnvelopeKey(KEY)) as log:
        benchmark(log.append, *batch)


def test_compaction(benchmark: Any, syncing: str, tmp_path: Path) -> None:
    state = b"s" * 100_000
    with EventLog(tmp_path, key=EnvelopeKey(KEY)) as log:
        counter = itertools.count()

        def work() -> None:
            log.append(b"%d" % next(counter))
            log.compact(state)

        benchmark(work)


def test_sealing_an_envelope(benchmark: Any) -> None:
    key = EnvelopeKey(KEY)
    benchmark(key.seal, b"x" * 800, purpose=Purpose.SNAPSHOT, context=b"group")


def test_deriving_a_key_from_a_password_at_the_default_cost(benchmark: Any) -> None:
    def work() -> None:
        EnvelopeKey.from_password("pw").seal(b"", purpose=Purpose.INDEX, context=b"")

    benchmark.pedantic(work, rounds=3)
