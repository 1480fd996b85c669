"""The event log: what was acknowledged stays, torn tails go, damage is never passed over."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.reference.cipher import KdfCost
from pytest_statepersist.reference.envelope import EnvelopeKey
from pytest_statepersist.reference.errors import (
    DamagedLog,
    LockTimeout,
    PersistenceError,
    RolledBack,
    StorageError,
    ValidationError,
    WrongPassword,
)
from pytest_statepersist.reference.event_log import EventLog
from pytest_statepersist.reference.log_files import render_log
from pytest_statepersist.reference.log_frames import (
    SEGMENT_HEADER_SIZE,
    SegmentHeader,
    Tail,
    encode_batch,
    join_records,
    scan,
    split_records,
)
from pytest_statepersist.reference.log_inspection import inspect_log
from tests.reference.fault_points import failing
from tests.reference.kill_points import each_kill_point, tree

T = TypeVar("T")
CANARY = b"canary-7f3a in the clear"
FIRST = Path("commit_log") / "000001.log"


def contents(root: Path, **options: object) -> tuple[bytes | None, list[tuple[int, bytes]]]:
    with EventLog(root, **options) as log:  # type: ignore[arg-type]
        found = log.recovered
        state = found.snapshot.state if found.snapshot else None
        return state, [(record.sequence, record.data) for record in found.records]


def filled(root: Path, *records: bytes, **options: object) -> Path:
    with EventLog(root, **options) as log:  # type: ignore[arg-type]
        for record in records:
            log.append(record)
    return root


def test_records_come_back_in_order_with_their_numbers(ram_path: Path) -> None:
    with EventLog(ram_path) as log:
        assert log.last_sequence == 0
        assert log.append(b"one") == 1
        assert log.append(b"two", b"", b"four") == 4
    assert contents(ram_path) == (None, [(1, b"one"), (2, b"two"), (3, b""), (4, b"four")])
    with EventLog(ram_path) as log:
        assert log.append(b"five") == 5
    assert contents(ram_path)[1][-1] == (5, b"five")


def test_segments_are_numbered_and_run_on(ram_path: Path) -> None:
    expected = [(n, b"%d" % n * 50) for n in range(1, 20)]
    filled(ram_path, *(data for _, data in expected), segment_size=300)
    names = sorted(path.name for path in (ram_path / "commit_log").glob("*.log"))
    assert names[:2] == ["000001.log", "000002.log"]
    assert len(names) > 3
    assert contents(ram_path, segment_size=300) == (None, expected)


def test_compaction_replaces_records_and_removes_old_segments(ram_path: Path) -> None:
    filled(ram_path, *[b"x" * 100] * 10, segment_size=300)
    with EventLog(ram_path, segment_size=300) as log:
        log.compact(b"state of ten")
        log.append(b"eleven")
    assert contents(ram_path) == (b"state of ten", [(11, b"eleven")])
    with EventLog(ram_path) as log:
        log.compact(b"state of eleven")
    assert contents(ram_path) == (b"state of eleven", [])
    names = [name for name in tree(ram_path) if not name.endswith(".lock")]
    assert len(names) == 2
    assert names[1] == "snapshots/snapshot_11.dat"


def test_an_empty_log_can_be_compacted_and_rendered(ram_path: Path) -> None:
    with EventLog(ram_path / "a") as log:
        log.compact(b"zero")
        log.compact(b"still zero")
    assert contents(ram_path / "a") == (b"still zero", [])
    for name, data in render_log(b"made")[0].items():
        (ram_path / "b" / name).parent.mkdir(parents=True)
        (ram_path / "b" / name).write_bytes(data)
    assert contents(ram_path / "b") == (b"made", [])


def test_an_encrypted_log_shows_nothing_and_needs_its_password(ram_path: Path) -> None:
    def key(password: str) -> EnvelopeKey:
        return EnvelopeKey.from_password(password, cost=KdfCost(8, 1, 1))

    with EventLog(ram_path, key=key("right")) as log:
        log.append(CANARY)
        log.compact(b"state " + CANARY)
        log.append(CANARY)
    assert contents(ram_path, key=key("right")) == (b"state " + CANARY, [(2, CANARY)])
    assert all(CANARY not in data for data in tree(ram_path).values())
    with pytest.raises(WrongPassword):
        EventLog(ram_path, key=key("wrong"))
    contents(ram_path, key=key("right"))  # the failed opening kept no lock
    with pytest.raises(WrongPassword, match="is encrypted"):
        EventLog(ram_path)
    filled(ram_path / "no snapshot", CANARY, key=key("right"))
    with pytest.raises(WrongPassword, match="is encrypted"):
        EventLog(ram_path / "no snapshot")
    filled(ram_path / "plain", b"not secret")
    with pytest.raises(DamagedLog):
        EventLog(ram_path / "plain", key=key("right"))


def test_one_owner_at_a_time(ram_path: Path) -> None:
    with EventLog(ram_path), pytest.raises(LockTimeout):
        EventLog(ram_path, lock_timeout=0)
    with EventLog(ram_path) as log:
        pass
    log.close()
    for use in (lambda: log.append(b"x"), lambda: log.compact(b"x")):
        with pytest.raises(ValidationError):
            use()


def test_nothing_and_too_much_are_refused(ram_path: Path) -> None:
    with EventLog(ram_path) as log:
        with pytest.raises(ValidationError):
            log.append()
        with pytest.raises(ValidationError):
            log.append(bytes((64 << 20) + 1))
        assert log.append(b"fine") == 1


# ---- torn tails -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 600, 5000])
def test_a_tail_torn_anywhere_is_cut_and_nothing_before_it(ram_path: Path, size: int) -> None:
    filled(ram_path / "log", b"first" * 30, b"second")
    path = ram_path / "log" / FIRST
    before = path.read_bytes()
    with EventLog(ram_path / "log") as log:
        log.append(bytes(range(1, 251)) * (size // 250 + 1))
    whole = path.read_bytes()
    frame = range(len(before), len(whole))
    torn = [whole[:cut] for cut in frame[:: max(1, size // 100)]]
    edges = sorted(
        {frame.start, frame.stop, *range(512, frame.stop, 512)} - set(range(frame.start))
    )
    holes = list(itertools.pairwise(edges))
    for number, (start, end) in enumerate(holes):  # sectors that were never written: zeros
        torn.append(whole[:start] + bytes(end - start) + whole[end:])
        last = holes[-1][0] if number == 0 else start
        torn.append(whole[:last] + bytes(len(whole) - last))
    expected = (None, [(1, b"first" * 30), (2, b"second")])
    for data in torn:
        path.write_bytes(data)
        assert contents(ram_path / "log") == expected
        assert path.read_bytes() == before
        with EventLog(ram_path / "log") as log:
            assert log.recovered.torn_bytes == 0
            log.append(b"third")
        assert contents(ram_path / "log")[1][-1] == (3, b"third")


def test_what_was_cut_is_said(ram_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = filled(ram_path, b"one", b"two") / FIRST
    path.write_bytes(path.read_bytes()[:-1])
    with EventLog(ram_path) as log:
        assert log.recovered.torn_bytes > 0
    assert "unfinished batch" in caplog.text


# ---- damage ---------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_a_flipped_bit_is_reported_wherever_it_is(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = filled(tmp_path_factory.mktemp("log"), b"one" * 40, b"two" * 400, b"three")
    path = root / FIRST
    raw = bytearray(path.read_bytes())
    # The last byte apart: flipped to zero it is a hole. It cannot be, with one bit.
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)
    with pytest.raises(DamagedLog) as caught:
        EventLog(root)
    assert caught.value.path == str(path)
    assert path.read_bytes() == raw  # reported, not repaired behind anybody's back
    shutil.rmtree(root)


def test_a_hole_in_the_middle_is_damage_not_a_torn_tail(ram_path: Path) -> None:
    filled(ram_path, b"a" * 2000, b"b" * 2000, b"c" * 2000)
    path = ram_path / FIRST
    raw = path.read_bytes()
    path.write_bytes(raw[:2560] + bytes(512) + raw[3072:])
    with pytest.raises(DamagedLog, match="record 3 follows it"):
        EventLog(ram_path)
    found = inspect_log(ram_path)
    assert [record.sequence for record in found.records] == [1, 3]
    assert len(found.problems) == 1


def test_a_hole_before_a_torn_tail_is_still_damage(ram_path: Path) -> None:
    filled(ram_path, b"a" * 2000, b"b" * 2000)
    path = ram_path / FIRST
    raw = path.read_bytes()
    path.write_bytes(raw[:1024] + bytes(512) + raw[1536:-1])
    with pytest.raises(DamagedLog, match="bytes follow it"):
        EventLog(ram_path)


@pytest.mark.parametrize("missing", ["000001.log", "000002.log", "000003.log"])
def test_a_missing_segment_is_reported(ram_path: Path, missing: str) -> None:
    filled(ram_path, *[b"x" * 100] * 10, segment_size=300)
    (ram_path / "commit_log" / missing).unlink()
    with pytest.raises(DamagedLog):
        EventLog(ram_path)
    assert inspect_log(ram_path).records


def test_a_removed_record_is_reported(ram_path: Path) -> None:
    filled(ram_path, b"one", b"two", b"three")
    path = ram_path / FIRST
    raw = path.read_bytes()
    header = SegmentHeader.decode(raw)
    second = encode_batch(header, 2, 1, join_records([b"two"]))
    assert second in raw
    path.write_bytes(raw.replace(second, b""))
    with pytest.raises(DamagedLog):
        EventLog(ram_path)


def test_damaged_or_missing_snapshots_are_reported(ram_path: Path) -> None:
    with EventLog(ram_path) as log:
        log.append(b"one")
        log.compact(b"state")
        log.append(b"two")
    path = ram_path / "snapshots" / "snapshot_1.dat"
    raw = path.read_bytes()
    for bad in (raw[:-1], raw[:10], raw[:-1] + b"X", b"Y" + raw[1:]):
        path.write_bytes(bad)
        with pytest.raises(DamagedLog):
            EventLog(ram_path)
    found = inspect_log(ram_path)
    assert (found.snapshot, len(found.records), len(found.problems)) == (None, 1, 1)
    path.unlink()
    with pytest.raises(DamagedLog, match="gone"):
        EventLog(ram_path)


def test_a_snapshot_without_its_segments_is_reported(ram_path: Path) -> None:
    with EventLog(ram_path) as log:
        log.append(b"one")
        log.compact(b"state")
    for path in (ram_path / "commit_log").glob("*.log"):
        path.unlink()
    with pytest.raises(DamagedLog, match="no segment"):
        EventLog(ram_path)


def test_an_older_copy_is_noticed_by_who_knows_better(ram_path: Path) -> None:
    filled(ram_path / "log", b"one")
    shutil.copytree(ram_path / "log", ram_path / "old")
    filled(ram_path / "log", b"two")
    with EventLog(ram_path / "log", at_least=2):
        pass
    with pytest.raises(RolledBack):
        EventLog(ram_path / "old", at_least=2)


def test_segments_exchanged_between_logs_do_not_count(ram_path: Path) -> None:
    header, other = (SegmentHeader(1, 1, os.urandom(16)) for _ in range(2))
    frames = [encode_batch(header, n, 1, join_records([b"x" * 40])) for n in (1, 2)]
    good = scan(header.encode() + frames[0] + frames[1], header)
    assert (good.tail, len(good.batches)) == (Tail.CLEAN, 2)
    foreign = scan(other.encode() + frames[0] + frames[1], other)
    assert (foreign.tail, foreign.good_end) == (Tail.DAMAGED, SEGMENT_HEADER_SIZE)


@given(records=st.lists(st.binary(max_size=20), max_size=5))
@settings(max_examples=40, deadline=None)
def test_batches_divide_into_their_records(records: list[bytes]) -> None:
    body = join_records(records)
    assert split_records(body, len(records)) == tuple(records)
    with pytest.raises(PersistenceError):
        split_records(body, len(records) + 1)


# ---- kills and faults -----------------------------------------------------------------


def append_and_compact(root: Path, saved: list[bytes]) -> None:
    with EventLog(root, segment_size=120) as log:
        for number in range(3):
            log.append(b"new %d" % number * 10)
            saved.append(b"new %d" % number * 10)
        log.compact(b"|".join(everything(log) + saved))
        log.append(b"after")
        saved.append(b"after")


def everything(log: EventLog) -> list[bytes]:
    found = log.recovered
    state = found.snapshot.state.split(b"|") if found.snapshot else []
    return state + [record.data for record in found.records]


def all_records(root: Path) -> list[bytes]:
    with EventLog(root, segment_size=120) as log:
        return everything(log)


def test_a_kill_at_any_call_loses_nothing_acknowledged(ram_path: Path) -> None:
    root = ram_path / "log"
    saved: list[bytes] = []

    def make() -> Callable[[], None]:
        shutil.rmtree(root, ignore_errors=True)
        filled(root, b"old")
        saved.clear()
        return lambda: append_and_compact(root, saved)

    def after() -> None:
        found = all_records(root)
        acknowledged = [b"old", *saved]
        assert found[: len(acknowledged)] == acknowledged
        assert len(found) <= len(acknowledged) + 1
        assert all_records(root) == found

    assert each_kill_point(make, after) > 25


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_any_call_may_fail_and_trying_again_works(ram_path: Path, code: int) -> None:
    point, fired = 0, True
    while fired:
        root = ram_path / f"log{point}"
        filled(root, b"old")
        with failing(point, code) as fault:
            saved = use_stubbornly(root)
        fired = fault.fired
        assert all_records(root) == [b"old", *saved], fault.call
        point += 1
    assert point > 25


def use_stubbornly(root: Path) -> list[bytes]:
    """Append and compact; whatever fails is tried a second time, which must work."""
    saved: list[bytes] = []
    log = twice(lambda: EventLog(root, segment_size=120))
    for data in (b"new 0" * 10, b"new 1" * 10, b"new 2" * 10):
        twice(lambda data=data: log.append(data))
        saved.append(data)
    twice(lambda: log.compact(b"|".join([b"old", *saved])))
    twice(lambda: log.append(b"after"))
    log.close()
    return [*saved, b"after"]


def twice(action: Callable[..., T]) -> T:
    try:
        return action()
    except StorageError:
        return action()


def test_after_a_failed_sync_the_segment_is_written_anew(
    ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EventLog(ram_path) as log:
        log.append(b"one")
        inode = (ram_path / FIRST).stat().st_ino
        real = os.fsync
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(5, "EIO")))
            with pytest.raises(StorageError):
                log.append(b"lost")
        assert os.fsync is real
        assert log.append(b"two") == 2
        assert (ram_path / FIRST).stat().st_ino != inode
    assert contents(ram_path)[1] == [(1, b"one"), (2, b"two")]


def test_after_failed_syncs_the_next_opening_writes_the_segment_anew(
    ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pages that a failed sync left count as written: a second sync would prove nothing."""

    def failing(descriptor: int) -> None:
        raise OSError(5, "EIO")

    with EventLog(ram_path) as log:
        log.append(b"one")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            with pytest.raises(StorageError):
                log.append(b"two")
    inode = (ram_path / FIRST).stat().st_ino
    with EventLog(ram_path) as log:
        assert (ram_path / FIRST).stat().st_ino != inode
        log.append(b"three")
    inode = (ram_path / FIRST).stat().st_ino
    with EventLog(ram_path) as log:
        assert [record.data for record in log.recovered.records] == [b"one", b"two", b"three"]
    assert (ram_path / FIRST).stat().st_ino == inode, "written anew once only"
