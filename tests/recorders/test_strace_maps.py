"""Shared writable memory maps under strace: what is known becomes writes, what is not is not said.

First the rules on events made by hand, then whole programs: stores that are sound, broken in the
ways in which maps break, and those of which nobody can know.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist import CrashSimulator
from pytest_statepersist.core import operations as op
from pytest_statepersist.core.apply import apply
from pytest_statepersist.core.tree import BLOCK, Directory, File, Tree
from pytest_statepersist.errors import BlindSpot
from pytest_statepersist.findings import Report
from pytest_statepersist.recorders.python import PythonRecorder
from pytest_statepersist.recorders.strace import StraceRecorder
from pytest_statepersist.recorders.strace_maps import Look, MapEvent, MapKind, blocks_of, settle
from tests.needs import needs_strace

# -- the rules -------------------------------------------------------------------------------------

OLD = b"a" * BLOCK + b"b" * BLOCK
BASE = Tree({0: Directory({"f": 1, "g": 2}), 1: File(OLD), 2: File(b"")})
FIRST = b"A" + OLD[1:]
BOTH = FIRST[:BLOCK] + b"B" + OLD[BLOCK + 1 :]


def event(kind: MapKind, position: int, **more: Any) -> MapEvent:
    return MapEvent(kind, 1, position, name=kind.name.lower(), **more)


def looked(position: int, content: bytes, *, stored: bool = False) -> MapEvent:
    look = Look(len(content), blocks_of(content), stored=stored)
    return event(MapKind.LOOK, position, look=look)


OPENED, CLOSED = event(MapKind.OPENED, 0), event(MapKind.CLOSED, 0)
SYNC = op.SyncRange(1, 0, 2 * BLOCK, path="f")
FSYNC_OF_G = op.Fsync(2, path="g")
CREATE = op.Create(3, 0, "h", path="h")


def settled(
    operations: list[op.Operation], events: list[MapEvent], final: bytes | None, *saved: int
) -> op.Trace:
    acknowledgements = tuple(op.Acknowledgement(position) for position in saved)
    trace = op.Trace(BASE, tuple(operations), acknowledgements)
    late, early = settle(trace, events, lambda inode: final)
    assert early is None
    return late


def shape(trace: op.Trace) -> list[str]:
    return [
        f"{type(o).__name__} {o.offset // BLOCK}{'?' if o.unordered else ''}"
        if isinstance(o, op.Write)
        else type(o).__name__
        for o in trace.operations
    ]


def test_what_is_found_at_the_end_comes_as_late_as_it_can() -> None:
    close = op.Close(1, path="f")
    trace = settled([CREATE, close], [event(MapKind.OPENED, 1)], FIRST)
    assert shape(trace) == ["Create", "Close", "Write 0"]
    assert apply(trace).read("f") == FIRST
    assert shape(settled([], [OPENED], OLD)) == []


def test_two_blocks_have_no_order_and_say_so() -> None:
    assert shape(settled([], [OPENED], BOTH)) == ["Write 0?", "Write 1?"]
    # A look between them gives them one.
    assert shape(settled([], [OPENED, looked(0, FIRST)], BOTH)) == ["Write 0", "Write 1"]


def test_other_calls_in_between_leave_the_order_open() -> None:
    assert shape(settled([CREATE], [OPENED], FIRST)) == ["Create", "Write 0?"]
    assert shape(settled([CREATE], [OPENED, CLOSED], FIRST)) == ["Write 0", "Create"]


def test_one_store_of_the_maps_own_method_is_one_write() -> None:
    changed = b"A" * 100 + OLD[100:]
    assert shape(settled([], [OPENED], changed)) == ["Write 0?"]
    known = [OPENED, looked(0, OLD), looked(0, changed, stored=True)]
    assert shape(settled([], known, changed)) == ["Write 0"]


def test_a_watched_sync_forces_what_was_seen_before_it() -> None:
    events = [OPENED, looked(0, FIRST), event(MapKind.SYNC, 1, watched=True), looked(1, FIRST)]
    assert shape(settled([SYNC], events, BOTH)) == ["Write 0", "SyncRange", "Write 1"]


def test_a_store_during_a_watched_sync_is_a_blind_spot() -> None:
    events = [OPENED, looked(0, OLD), event(MapKind.SYNC, 1, watched=True), looked(1, FIRST)]
    with pytest.raises(BlindSpot, match="mapped into memory for writing when sync ran"):
        settled([SYNC], events, FIRST)


def test_an_unwatched_sync_is_a_blind_spot_even_if_nothing_is_seen_to_change() -> None:
    with pytest.raises(BlindSpot, match="mapped into memory") as caught:
        settled([SYNC], [OPENED, event(MapKind.SYNC, 1)], OLD)
    assert caught.value.culprit == "f"


def test_a_sync_of_another_range_says_nothing_of_this_one() -> None:
    events = [OPENED, event(MapKind.SYNC, 1, begin=0, end=BLOCK, watched=True)]
    changed = OLD[:BLOCK] + b"B" + OLD[BLOCK + 1 :]
    other = op.SyncRange(1, 0, BLOCK, path="f")
    late, early = settle(op.Trace(BASE, (other,)), events, lambda inode: changed)
    assert early is not None
    assert (shape(late), shape(early)) == (["SyncRange", "Write 1?"], ["Write 1?", "SyncRange"])
    assert shape(settled([other], [OPENED, looked(0, changed), *events[1:]], changed)) == [
        "Write 1",
        "SyncRange",
    ]


@pytest.mark.parametrize(
    "ordering",
    [
        FSYNC_OF_G,
        op.SyncAll(),
        op.Write(2, 0, b"x", op.Durability.DATA, path="g"),
    ],
    ids=lambda o: type(o).__name__,
)
def test_before_or_after_a_sync_of_another_file_both_are_given(ordering: op.Operation) -> None:
    late, early = settle(op.Trace(BASE, (ordering,)), [OPENED], lambda inode: FIRST)
    assert early is not None
    assert shape(late)[1] == shape(early)[0] == "Write 0?"
    # After the end of the map there is no doubt.
    assert shape(settled([ordering], [OPENED, CLOSED], FIRST))[0] == "Write 0"
    failed = op.Fsync(2, failed=True, path="g")
    assert shape(settled([failed], [OPENED], FIRST)) == ["Fsync", "Write 0?"]


def test_before_or_after_an_acknowledgement_is_a_blind_spot() -> None:
    saved = MapEvent(MapKind.SAVED, -1, 0)
    with pytest.raises(BlindSpot, match="before or after an acknowledgement"):
        settled([], [OPENED, saved], FIRST, 0)
    before = settled([], [OPENED, looked(0, FIRST), saved], FIRST, 0)
    after = settled([], [OPENED, looked(0, OLD), saved, looked(0, OLD)], FIRST, 0)
    assert [ack.position for ack in before.acknowledgements] == [1]
    assert [ack.position for ack in after.acknowledgements] == [0]


def test_calls_on_the_same_block_have_no_known_order() -> None:
    call = op.Write(1, 10, b"call", path="f")
    changed = b"A" + OLD[1:10] + b"call" + OLD[14:]
    with pytest.raises(BlindSpot, match="and by calls as well"):
        settled([call], [OPENED], changed)
    elsewhere = op.Write(1, BLOCK, b"call", path="f")
    found = settled([elsewhere], [OPENED], FIRST[:BLOCK] + b"call" + OLD[BLOCK + 4 :])
    assert shape(found) == ["Write 1", "Write 0?"]


def test_a_file_that_is_gone_must_have_been_looked_at() -> None:
    unlink = op.Unlink(1, 0, "f", path="f")
    with pytest.raises(BlindSpot, match="removed before anybody looked"):
        settled([unlink], [OPENED, CLOSED], None)
    assert shape(settled([unlink], [OPENED, looked(0, FIRST), CLOSED], None)) == [
        "Write 0",
        "Unlink",
    ]


def test_another_size_than_calls_gave_is_a_blind_spot() -> None:
    with pytest.raises(BlindSpot, match="has 1 bytes where calls gave it"):
        settled([], [OPENED], b"A")


# -- programs --------------------------------------------------------------------------------------


def setup(directory: Path) -> None:
    """Two slots and a selector in the block before them."""
    with open(directory / "f", "wb") as file:
        file.write(bytes(BLOCK) + b"A" * BLOCK + b"B" * BLOCK)
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def recover(directory: Path) -> bytes:
    content = (directory / "f").read_bytes()
    begin = BLOCK * (1 + content[0])
    return content[begin : begin + BLOCK]


def explore(workload: Callable[[Path], Any], **options: Any) -> Report:
    chosen = {"recorder": "strace", "repairs": False, "setup": setup, "recover": recover}
    return CrashSimulator().explore(workload=workload, **{**chosen, **options})


def sound(directory: Path) -> None:
    with open(directory / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[2 * BLOCK : 3 * BLOCK] = b"C" * BLOCK
        memory.flush()
        memory[0] = 1
        memory.flush(0, BLOCK)


def sound_by_fsync(directory: Path) -> None:
    with open(directory / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory.seek(2 * BLOCK)
        memory.write(b"C" * BLOCK)
        os.fsync(file.fileno())
        memory.move(0, 2, 1)
        memory.seek(0)
        memory.write_byte(1)
        os.fdatasync(file.fileno())


def forgets_the_last_flush(directory: Path) -> None:
    with open(directory / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[2 * BLOCK :] = b"C" * BLOCK
        memory.flush()
        memory[0] = 1


def flushes_the_wrong_range(directory: Path) -> None:
    with open(directory / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[2 * BLOCK :] = b"C" * BLOCK
        memory.flush(0, BLOCK)  # the data is behind it
        memory[0] = 1
        memory.flush(0, BLOCK)


@needs_strace
@pytest.mark.parametrize("workload", [sound, sound_by_fsync])
def test_a_sound_store_on_a_map_passes(workload: Callable[[Path], None]) -> None:
    report = explore(workload, model=["posix", "ext4", "kill"])
    assert report.safe, str(report)
    assert report.recorder.startswith("strace")


@needs_strace
@pytest.mark.parametrize("workload", [sound, forgets_the_last_flush, flushes_the_wrong_range])
def test_strace_and_python_see_the_same(workload: Callable[[Path], None]) -> None:
    one, other = (explore(workload, recorder=name) for name in ("strace", "python"))
    assert [(v.atomic, v.durable, v.states) for v in one.verdicts] == [
        (v.atomic, v.durable, v.states) for v in other.verdicts
    ]
    kinds = [type(operation) for operation in other.trace.operations]
    assert [type(o) for o in one.trace.operations if not isinstance(o, op.Close)] == kinds


@needs_strace
def test_a_forgotten_flush_is_caught() -> None:
    report = explore(forgets_the_last_flush)
    assert (report.verdicts[0].atomic, report.verdicts[0].durable) == (True, False)
    line = forgets_the_last_flush.__code__.co_firstlineno + 4
    assert {(f.site.file, f.site.line) for f in report.findings if f.site} == {(__file__, line)}


@needs_strace
def test_a_flush_of_the_wrong_range_is_caught() -> None:
    report = explore(flushes_the_wrong_range)
    assert report.verdicts[0].atomic is False


@needs_strace
@pytest.mark.parametrize("recorder", ["strace", "python"])
def test_numpy(recorder: str) -> None:
    numpy = pytest.importorskip("numpy")

    def workload(directory: Path, last: bool = True) -> None:
        array = numpy.memmap(directory / "f", dtype="u1", mode="r+")
        array[2 * BLOCK :] = ord("C")
        array.flush()
        array[0] = 1
        if last:
            array.flush()

    options = {"recorder": recorder, "model": ["posix", "ext4", "btrfs", "kill"]}
    report = explore(lambda d: workload(d), **options)
    answers = {v.model: (v.atomic, v.durable) for v in report.verdicts}
    # Python saw that the stores went through a buffer, where others may have come and gone.
    known = (True, True) if recorder == "strace" else (None, None)
    assert answers["posix"] == answers["ext4"] == known, str(report)
    assert not report.findings
    # In which order a block was filled is not known, and there it would matter.
    assert answers["btrfs"] == answers["kill"] == (None, None)
    assert "in an order that nobody saw" in report.verdict("kill").reason
    careless = explore(lambda d: workload(d, last=False), recorder=recorder)
    assert careless.verdicts[0].durable is False


@needs_strace
@pytest.mark.parametrize("recorder", ["strace", "python"])
def test_two_stores_into_one_block_have_no_known_order(recorder: str) -> None:
    """A header that counts records, and the record, in one block and without a flush between."""

    def workload(directory: Path) -> None:
        with open(directory / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            view = memoryview(memory)
            view[0:8] = struct.pack("<Q", 1)
            view[800:808] = b"a record"
            view.release()
            memory.flush()

    def load(directory: Path) -> bytes:
        content = (directory / "f").read_bytes()
        return content[800:808] if content[0] else b""

    report = explore(workload, recover=load, recorder=recorder)
    assert report.findings == ()
    assert (report.verdicts[0].atomic, report.verdicts[0].durable) == (None, None)
    assert "depends on the order of stores into one block of 'f'" in report.verdicts[0].reason

    def checked(directory: Path) -> bytes:
        content = (directory / "f").read_bytes()
        return content[800:808] if content[0] and content[800:808] == b"a record" else b""

    report = explore(workload, recover=checked, recorder=recorder)
    assert report.safe if recorder == "strace" else "came and went" in report.verdicts[0].reason


@needs_strace
def test_a_thread_that_stores_while_another_syncs_is_not_covered_or_in_order(
    tmp_path: Path,
) -> None:
    """The looks around the sync differ, or the store came before or after both."""
    import threading

    setup(tmp_path)
    with StraceRecorder(tmp_path) as recorder:
        with open(tmp_path / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            view = memoryview(memory)

            def store() -> None:
                for number in range(200):
                    view[BLOCK] = number

            thread = threading.Thread(target=store)
            thread.start()
            memory.flush()
            thread.join()
            view.release()
        try:
            trace: op.Trace | None = recorder.stop()
        except BlindSpot as blind:
            trace, why = None, str(blind)
    if trace is None:
        assert "mapped into memory" in why
    else:
        assert apply(trace).read("f")[BLOCK] == 199


@needs_strace
def test_lmdb_that_writes_through_its_map_is_not_covered(tmp_path: Path) -> None:
    """It calls msync from C: nobody can look at what it forces."""
    lmdb = pytest.importorskip("lmdb")

    def put(directory: Path, value: bytes) -> None:
        options = {"map_size": 1 << 20, "writemap": True, "lock": False}
        with (
            lmdb.open(str(directory), **options) as environment,
            environment.begin(write=True) as transaction,
        ):
            transaction.put(b"key", value)

    with pytest.raises(BlindSpot, match="mapped into memory"):
        explore(
            lambda d: put(d, b"new"),
            setup=lambda d: put(d, b"old"),
            recover=lambda d: (d / "data.mdb").read_bytes(),
        )


@pytest.mark.parametrize("how", ["unchanged", "changed"])
def test_a_native_store_in_a_file_system_in_memory_is_noticed(how: str) -> None:
    """There a store through a map leaves no time, so only the bytes can tell."""
    import ctypes

    shared = Path("/dev/shm")
    if not shared.is_dir():
        pytest.skip("this kernel has no file system in memory")
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    with tempfile.TemporaryDirectory(dir=shared) as name:
        directory = Path(name)
        (directory / "f").write_bytes(b"x" * 5000)
        recorder = PythonRecorder(directory)
        recorder.start()
        descriptor = os.open(directory / "f", os.O_RDWR)
        address = library.mmap(None, BLOCK, 3, 1, descriptor, 0)
        if how == "changed":
            ctypes.memset(address, 65, 1)
        library.munmap(ctypes.c_void_p(address), ctypes.c_size_t(BLOCK))
        os.close(descriptor)
        if how == "changed":
            with pytest.raises(BlindSpot, match="'f' has other bytes"):
                recorder.stop()
        else:
            assert len(recorder.stop()) == 0


def journalled(directory: Path, *, first: bool) -> None:
    """The map is changed natively, before or after the journal is durable: strace cannot tell."""
    import ctypes

    journal = os.open(directory / "journal", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(journal, b"undo")
    descriptor = os.open(directory / "f", os.O_RDWR)
    library = ctypes.CDLL(None)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    address = library.mmap(None, BLOCK, 3, 1, descriptor, 0)
    if first:
        ctypes.memset(address, 1, 1)
    os.fsync(journal)
    if not first:
        ctypes.memset(address, 1, 1)
    library.munmap(ctypes.c_void_p(address), ctypes.c_size_t(BLOCK))
    os.fsync(descriptor)
    os.close(descriptor)
    os.close(journal)


def undone(directory: Path) -> object:
    """What the selector says, unless it was changed and the journal that could undo it is torn."""
    journal = directory / "journal"
    changed = (directory / "f").read_bytes()[0]
    if changed and (not journal.exists() or journal.read_bytes() != b"undo"):
        raise ValueError("changed before the journal was there")
    return changed


@needs_strace
@pytest.mark.parametrize("first", [True, False])
def test_a_verdict_that_hangs_on_the_moment_of_a_store_is_not_covered(first: bool) -> None:
    def begin(directory: Path) -> None:
        setup(directory)
        (directory / "journal").write_bytes(b"")

    report = explore(lambda d: journalled(d, first=first), setup=begin, recover=undone)
    assert report.findings == ()
    assert report.verdicts[0].atomic is None
    assert "before or after a sync of another one" in report.verdicts[0].reason


PROGRAM = """
    #include <fcntl.h>
    #include <sys/mman.h>
    #include <unistd.h>
    int main(int count, char **arguments) {
        if (chdir(arguments[1])) return 1;
        int fd = open("f", O_RDWR);
        char *memory = mmap(0, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        for (int at = 8192; at < 12288; at++) memory[at] = 'C';
        %s
        memory[0] = 1;
        %s
        return 0;
    }
"""
MSYNC = "if (msync(memory, 12288, MS_SYNC)) return 1;"


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., list[str]]:
    def compiled(*parts: str) -> list[str]:
        source, program = tmp_path / "mapper.c", tmp_path / "mapper"
        source.write_text(textwrap.dedent(PROGRAM % parts))
        subprocess.run(["cc", "-o", str(program), str(source)], check=True, capture_output=True)
        return [str(program)]

    return compiled


@needs_strace
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is installed")
def test_a_program_in_c_that_never_syncs_is_judged(build: Callable[..., list[str]]) -> None:
    program = build("", "")
    report = explore(lambda d: subprocess.run([*program, str(d)], check=True))
    assert (report.verdicts[0].atomic, report.verdicts[0].durable) == (False, False), str(report)


@needs_strace
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is installed")
def test_a_program_in_c_that_syncs_its_map_is_not_covered(
    build: Callable[..., list[str]],
) -> None:
    program = build(MSYNC, MSYNC)
    with pytest.raises(BlindSpot, match="when msync ran on it"):
        explore(lambda d: subprocess.run([*program, str(d)], check=True))
