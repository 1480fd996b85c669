"""The strace recorder on real programs; the recorder itself compares with the real directory."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.errors import BlindSpot, RecorderUnavailable, UserError
from pytest_statepersist.recorders import sqlite_library, strace, strace_process
from pytest_statepersist.recorders.acl import mode_of_acl
from pytest_statepersist.recorders.builder import TraceBuilder
from pytest_statepersist.recorders.python import PythonRecorder
from pytest_statepersist.recorders.sqlite import SqliteRecorder
from pytest_statepersist.recorders.strace import StraceRecorder, check_available
from pytest_statepersist.recorders.strace_sites import lend_sites
from pytest_statepersist.recorders.strace_unseen import birth_time
from tests.needs import needs_strace

FIXTURES = Path(__file__).parents[2] / "fixtures" / "strace"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir()
    return directory


def kinds(trace: op.Trace) -> list[str]:
    return [f"{type(o).__name__} {o.path}".rstrip() for o in trace.operations]


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-E", "-c", code]


# -- commands --------------------------------------------------------------------------------------


@needs_strace
def test_a_command_is_recorded_with_its_output_and_exit_code(state: Path) -> None:
    code = "print('said'); f = open('f', 'w'); f.write('x'); f.close(); raise SystemExit(7)"
    trace, status, output = StraceRecorder(state).run(python(code), cwd=state)
    assert kinds(trace) == ["Create f", "Write f", "Close f"]
    assert (status, output) == (7, b"said\n")
    assert trace.recorder == "strace"
    assert trace.directory == str(state)
    created = trace.operations[0]
    assert created.site is not None
    assert created.site.file == os.path.basename(sys.executable)
    assert created.time is not None


@needs_strace
def test_the_environment_and_the_working_directory_are_the_callers(
    state: Path, tmp_path: Path
) -> None:
    code = "import os; os.rename(os.environ['FROM'], 'to')"
    (tmp_path / "other").mkdir()
    (state / "from").write_text("x")
    trace, status, _ = StraceRecorder(state).run(
        python(code.replace("'to'", f"{str(state / 'to')!r}")),
        cwd=tmp_path / "other",
        env={**os.environ, "FROM": "../state/from"},
    )
    assert status == 0
    assert kinds(trace) == ["Rename to"]


@needs_strace
@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_commit(state: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "GIT_CONFIG_NOSYSTEM": "1",
        **{
            f"GIT_{who}_{what}": "x"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
    }
    subprocess.run(["git", "init", "-q", "."], cwd=state, env=environment, check=True)
    (state / "file").write_text("hello\n")
    script = "git add file && git commit -q -m one"
    trace, status, output = StraceRecorder(state).run(
        ["sh", "-c", script], cwd=state, env=environment
    )
    assert status == 0, output
    found = kinds(trace)
    assert any(kind.startswith(("Link .git/objects", "Rename .git/objects")) for kind in found)
    assert "Rename .git/index" in found
    assert any(kind.startswith("Rename .git/refs/heads/") for kind in found)


@needs_strace
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is installed")
def test_a_small_c_program(state: Path, tmp_path: Path) -> None:
    """The program of the fixtures, on this machine's own kernel and strace."""
    program = tmp_path / "workload"
    build = ["cc", "-pthread", "-o", str(program), str(FIXTURES / "workload.c")]
    if subprocess.run(build, check=False, capture_output=True).returncode:
        pytest.skip("the C library here lacks a call that the workload makes")
    trace, status, output = StraceRecorder(state).run([program], cwd=state)
    assert status == 0, output
    copied = [o.data for o in trace.operations if isinstance(o, op.Write) and o.path == "copies"]
    assert copied == [b"app", b"end", b"appe"]


RANDOM_PROGRAM = """
import os, random, sys
choose = random.Random(int(sys.argv[1]))
names = ["a", "b", "d/c", "d/e", "d", "../outside"]
held = []
def step():
    name, other = choose.choice(names), choose.choice(names)
    match choose.randrange(16):
        case 0 | 1:
            how = choose.choice([0, os.O_TRUNC, os.O_APPEND, os.O_EXCL, os.O_DSYNC])
            held.append(os.open(name, os.O_RDWR | os.O_CREAT | how, 0o600 + choose.randrange(64)))
        case 2 if held: os.close(held.pop(choose.randrange(len(held))))
        case 3 | 4 if held:
            os.write(choose.choice(held), choose.randbytes(choose.randrange(6000)))
        case 5 if held: os.pwrite(choose.choice(held), b"pwrite", choose.randrange(9000))
        case 6 if held: os.ftruncate(choose.choice(held), choose.randrange(9000))
        case 7 if held: os.lseek(choose.choice(held), choose.randrange(5000), os.SEEK_SET)
        case 8 if held: held.append(os.dup(choose.choice(held)))
        case 9: os.rename(name, other)
        case 10: os.link(name, other)
        case 11: os.unlink(name)
        case 12: choose.choice([os.mkdir, os.rmdir])("d")
        case 13 if held: choose.choice([os.fsync, os.fdatasync])(choose.choice(held))
        case 14 if len(held) > 1:
            os.sendfile(choose.choice(held), choose.choice(held), None, choose.randrange(3000))
        case 15: os.chmod(name, choose.randrange(512) | 0o600)
        case _: os.symlink(other, name)
os.mkdir("d")
for _ in range(150):
    try: step()
    except OSError: pass
"""


@needs_strace
@pytest.mark.parametrize("seed", [0, 1, 2, 131, 174, 248])
def test_random_programs_are_explained(state: Path, seed: int) -> None:
    """The recorder compares with the directory; copies that were overwritten it may refuse."""
    command = [*python(RANDOM_PROGRAM), str(seed)]
    try:
        trace, status, output = StraceRecorder(state).run(command, cwd=state)
    except BlindSpot as spot:
        assert re.search("kernel copied|outside the directory", str(spot))  # noqa: PT017
        return
    assert status == 0, output
    assert len(trace) > 10


@needs_strace
def test_processes_share_positions_and_not_descriptors(state: Path) -> None:
    code = """
import os
fd = os.open("f", os.O_WRONLY | os.O_CREAT)
os.write(fd, b"one ")
if os.fork() == 0:
    os.write(fd, b"two ")
    os.close(fd)
    os.chdir("/")
    os._exit(0)
os.wait()
os.write(fd, b"three")
os.rename("f", "g")
"""
    trace, *_ = StraceRecorder(state).run(python(code), cwd=state)
    written = [o for o in trace.operations if isinstance(o, op.Write)]
    assert [(o.offset, o.data) for o in written] == [(0, b"one "), (4, b"two "), (8, b"three")]
    assert len({o.task for o in written}) == 2
    assert (state / "g").read_text() == "one two three"


@needs_strace
def test_failed_calls_do_not_show_and_failed_syncs_do(state: Path) -> None:
    code = """
import os
for call in (lambda: os.unlink("absent"), lambda: os.rename("absent", "f"),
             lambda: os.open("absent/f", os.O_CREAT), lambda: os.mkdir(".")):
    try: call()
    except OSError: pass
"""
    trace, *_ = StraceRecorder(state).run(python(code), cwd=state)
    assert kinds(trace) == []


ACL = """
import os, struct
f = open("f", "w")
os.fchmod(f.fileno(), 0o600)
rows = [(1, 6), (4, 4), (32, 4)]
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", t, p, 2**32 - 1) for t, p in rows)
os.setxattr(f.fileno(), "system.posix_acl_access", acl)
f.close()
"""


@needs_strace
def test_an_access_list_that_is_a_mode(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sed -i gives its new file the mode of the old one in this way."""
    try:
        os.setxattr(state, "system.posix_acl_access", mode_as_acl(0o755))
    except OSError:
        pytest.skip("this file system has no access control lists")
    trace, code, output = StraceRecorder(state).run(python(ACL), cwd=state)
    assert code == 0, output
    assert [o.mode for o in trace.operations if isinstance(o, op.SetAttributes)] == [0o600, 0o644]
    monkeypatch.chdir(state)
    (state / "f").unlink()
    with PythonRecorder(state) as recorder:
        exec(ACL)
    assert [o.mode for o in recorder.trace.operations if isinstance(o, op.SetAttributes)] == [
        0o600,
        0o644,
    ]


def mode_as_acl(mode: int) -> bytes:
    rows = ((1, mode >> 6), (4, mode >> 3), (32, mode))
    entries = (struct.pack("<HHI", tag, bits & 7, 2**32 - 1) for tag, bits in rows)
    return struct.pack("<I", 2) + b"".join(entries)


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o751])
def test_the_mode_of_an_access_list(mode: int) -> None:
    assert mode_of_acl(mode_as_acl(mode)) == mode
    masked = mode_as_acl(mode) + struct.pack("<HHI", 16, 1, 2**32 - 1)
    assert mode_of_acl(masked) == mode & 0o707 | 0o010
    assert mode_of_acl(b"") is mode_of_acl(b"\1\0\0\0") is mode_of_acl(b"\2\0\0\0") is None


@needs_strace
def test_a_command_that_does_not_exist(state: Path) -> None:
    with pytest.raises(UserError, match="no command"):
        StraceRecorder(state).run(["surely-no-such-command"])


@needs_strace
def test_a_command_that_does_not_end(state: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        StraceRecorder(state).run(python("import time; time.sleep(60)"), timeout=0.3)


# -- a block of this process -----------------------------------------------------------------------


@needs_strace
def test_a_block_with_threads_children_and_what_was_open_before(state: Path) -> None:
    old = os.open(state / "old", os.O_WRONLY | os.O_CREAT)
    same = os.dup(old)
    other = os.open(state / "old", os.O_WRONLY)
    appending = os.open(state / "old", os.O_WRONLY | os.O_APPEND)
    os.write(old, b"before ")
    waiting, go = threading.Event(), threading.Event()

    def thread() -> None:
        waiting.set()
        go.wait()
        (state / "early thread").write_text("x")

    early = threading.Thread(target=thread)
    early.start()
    waiting.wait()
    recorder = StraceRecorder(state)
    recorder.start()
    os.write(old, b"one ")
    os.write(same, b"two ")
    os.write(appending, b"end")
    os.write(other, b"B")
    recorder.acknowledge("written")
    go.set()
    early.join()
    late = threading.Thread(target=lambda: (state / "late thread").touch())
    late.start()
    late.join()
    subprocess.run(["sh", "-c", f"echo x > {state}/child"], check=True)
    trace = recorder.stop()
    for descriptor in (old, same, other, appending):
        os.close(descriptor)
    assert (state / "old").read_text() == "Before one two end"
    found = kinds(trace)
    assert found[:4] == ["Write old"] * 4
    for name in ("early thread", "late thread", "child"):
        assert f"Create {name}" in found
    (acknowledgement,) = trace.acknowledgements
    assert (acknowledgement.position, acknowledgement.text) == (4, "written")
    assert set(strace_process.tracers().values()) == {0}


@needs_strace
def test_a_thread_at_work_while_the_recording_begins(state: Path) -> None:
    """Work elsewhere is no matter; work in the directory is, or it comes after the begin."""
    for where in (state.parent, state):
        ended = threading.Event()

        def work(where: Path = where, ended: threading.Event = ended) -> None:
            while not ended.is_set():
                (where / "busy").write_text("x")

        thread = threading.Thread(target=work)
        thread.start()
        recorder = StraceRecorder(state)
        try:
            recorder.start()
            ended.set()
            thread.join()
            trace = recorder.stop()
        except BlindSpot as spot:
            assert where == state
            assert re.search("at work|differs|bytes|missing|at the same time", str(spot))  # noqa: PT017
        else:
            assert where == state or kinds(trace) == []
        finally:
            ended.set()
            thread.join()


@needs_strace
def test_every_processor_may_be_used_again_afterwards(state: Path) -> None:
    before = os.sched_getaffinity(0)
    with StraceRecorder(state) as recorder:
        assert len(os.sched_getaffinity(0)) == 1
        recorder.stop()
    assert os.sched_getaffinity(0) == before


@needs_strace
def test_a_block_that_raises_leaves_no_strace_behind(state: Path) -> None:
    with pytest.raises(ZeroDivisionError), StraceRecorder(state):
        raise ZeroDivisionError
    assert set(strace_process.tracers().values()) == {0}


@needs_strace
def test_two_at_once_are_refused(state: Path) -> None:
    with StraceRecorder(state) as first:
        with pytest.raises(RecorderUnavailable, match="traces this one already"):
            StraceRecorder(state).start()
        first.stop()
    with pytest.raises(UserError, match="not running"):
        first.stop()


@needs_strace
@pytest.mark.parametrize("mode", ["delete", "wal", "truncate"])
@pytest.mark.parametrize("synchronous", ["normal", "extra"])
def test_sqlite_is_seen_alike_from_inside_and_outside(
    state: Path, mode: str, synchronous: str
) -> None:
    """Two recorders that share nothing but the builder: each is the other's judge."""
    try:
        sqlite_library.library()
    except RecorderUnavailable as error:
        pytest.skip(str(error))
    outside = StraceRecorder(state)
    outside.start()
    inside = TraceBuilder(str(state), Tree(), recorder="sqlite")
    with SqliteRecorder(inside):
        connection = sqlite3.connect(state / "a.db")
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("CREATE TABLE t (x)")
        with connection:
            connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(1000)])
        connection.execute("VACUUM")
        connection.close()
    seen, known = outside.stop(), inside.finish()
    # As root, SQLite sets the owner that the file has: a call, and no change.
    calls = [o for o in seen.operations if not isinstance(o, op.SetAttributes)]
    assert [_essence(o) for o in calls] == [_essence(o) for o in known.operations]
    lent = lend_sites(seen, known)
    assert {o.site.file for o in lent.operations if o.site and o in calls} <= {__file__}
    assert sum(o.site is not None and o.site.file == __file__ for o in lent.operations) == len(
        known.operations
    )


def _essence(operation: op.Operation) -> tuple[object, ...]:
    hidden = {"site", "time", "task", "inode", "replaced"}
    slots = [name for cls in type(operation).__mro__ for name in getattr(cls, "__slots__", ())]
    return (
        type(operation).__name__,
        *((name, getattr(operation, name)) for name in slots if name not in hidden),
    )


def test_sites_are_lent_only_where_the_numbers_agree() -> None:
    def write(data: bytes, line: int) -> op.Write:
        return op.Write(inode=1, offset=0, data=data, path="f", site=op.Site("x.py", line))

    seen = op.Trace(Tree(), (write(b"a", 1), write(b"a", 2), write(b"b", 3)))
    lender = op.Trace(Tree(), (write(b"a", 10), write(b"b", 20)))
    found = [o.site.line for o in lend_sites(seen, lender).operations if o.site]
    assert found == [1, 2, 20]


# -- what cannot be known ------------------------------------------------------------------------


@needs_strace
def test_a_map_that_nothing_syncs_becomes_block_writes(state: Path) -> None:
    (state / "f").write_bytes(b"x" * 10000)
    code = """
import mmap, os
fd = os.open("f", os.O_RDWR)
m = mmap.mmap(fd, 0)
m[5000] = 65
m.close()
"""
    trace, *_ = StraceRecorder(state).run(python(code), cwd=state)
    written = [(o.offset, len(o.data)) for o in trace.operations if isinstance(o, op.Write)]
    assert written == [(4096, 4096)]


@needs_strace
@pytest.mark.parametrize("sync", ["m.flush()", "os.fsync(fd)", "os.sync()"])
def test_a_sync_of_a_mapped_file_is_not_covered(state: Path, sync: str) -> None:
    (state / "f").write_bytes(b"x" * 10000)
    code = f"""
import mmap, os
fd = os.open("f", os.O_RDWR)
m = mmap.mmap(fd, 0)
m[5000] = 65
{sync}
m[5001] = 66
"""
    with pytest.raises(BlindSpot, match="mapped into memory") as caught:
        StraceRecorder(state).run(python(code), cwd=state)
    assert caught.value.culprit == "f"


@needs_strace
def test_a_map_made_before_the_block(state: Path) -> None:
    (state / "f").write_bytes(b"x" * 5000)
    with open(state / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        with StraceRecorder(state) as recorder:
            memory[10] = 65
            trace = recorder.stop()
        assert [type(o) for o in trace.operations] == [op.Write]
        # Its own class was made before anybody could look, so that its flush is not watched.
        with StraceRecorder(state) as recorder:
            memory[10] = 66
            memory.flush()
            with pytest.raises(BlindSpot, match="mapped into memory"):
                recorder.stop()


@needs_strace
def test_copied_bytes_that_are_gone_come_from_their_source(state: Path, tmp_path: Path) -> None:
    (state / "source").write_text("0123456789")
    (tmp_path / "outside").write_text("foreign")
    code = """
import os
source = os.open(PATH, os.O_RDONLY)
target = os.open("target", os.O_RDWR | os.O_CREAT)
os.copy_file_range(source, target, 5, 2, 0)
os.pwrite(target, b"-----", 0)
"""
    inside = code.replace("PATH", "'source'")
    trace, *_ = StraceRecorder(state).run(python(inside), cwd=state)
    copied = [o.data for o in trace.operations if isinstance(o, op.Write)]
    assert copied == [b"23456", b"-----"]
    outside = code.replace("PATH", repr(str(tmp_path / "outside"))).replace("'target'", "'new'")
    with pytest.raises(BlindSpot, match="the kernel copied 5 bytes"):
        StraceRecorder(state).run(python(outside.replace('"target"', '"new"')), cwd=state)


@needs_strace
def test_a_file_from_outside_counts_as_written_and_not_synced(state: Path, tmp_path: Path) -> None:
    (tmp_path / "made before").write_text("content")
    os.chmod(tmp_path / "made before", 0o640)
    code = "import os; os.rename('../made before', 'f')"
    trace, *_ = StraceRecorder(state).run(python(code), cwd=state)
    assert [type(o).__name__ for o in trace.operations] == ["Create", "Write", "Rename"]
    made = "import os; f = open('../m', 'w'); f.write('x'); f.flush(); os.fsync(f.fileno())"
    trace, *_ = StraceRecorder(state).run(python(f"{made}; os.rename('../m', 'g')"), cwd=state)
    found = [type(o).__name__ for o in trace.operations]
    assert found == ["Create", "Write", "Fsync", "Rename", "Close"]


@needs_strace
def test_a_file_outside_that_may_have_been_there_before(state: Path, tmp_path: Path) -> None:
    code = """
import os
fd = os.open("../m", os.O_RDWR | os.O_CREAT)
os.write(fd, b"new")
os.fsync(fd)
os.rename("../m", "f")
"""
    (tmp_path / "m").write_text("old")
    with pytest.raises(BlindSpot, match="there before the recording"):
        StraceRecorder(state).run(python(code), cwd=state)
    (state / "f").unlink()
    if birth_time(str(state)) is None:
        pytest.skip("this file system does not say when a file was made")
    trace, *_ = StraceRecorder(state).run(python(code), cwd=state)
    assert [type(o).__name__ for o in trace.operations] == ["Create", "Write", "Fsync", "Rename"]


@needs_strace
def test_io_uring_is_refused_loudly(state: Path) -> None:
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
ring = libc.syscall(425, 4, ctypes.create_string_buffer(256))
os._exit(0 if ring >= 0 else 3)
"""
    recorder = StraceRecorder(state)
    libc = ctypes.CDLL(None, use_errno=True)
    ring = libc.syscall(425, 4, ctypes.create_string_buffer(256))
    if ring < 0:
        pytest.skip("this kernel has no io_uring, or does not allow it")
    os.close(ring)
    with pytest.raises(BlindSpot, match="io_uring"):
        recorder.run([sys.executable, "-c", code], cwd=state)


@needs_strace
def test_a_change_by_a_process_that_is_not_traced(state: Path) -> None:
    code = f"import sys; sys.stdin.read(); open({str(state / 'alien')!r}, 'w').close()"
    other = subprocess.Popen(python(code), stdin=subprocess.PIPE)
    with StraceRecorder(state) as recorder:
        assert other.stdin is not None
        other.stdin.close()
        other.wait()
        with pytest.raises(BlindSpot, match="alien") as caught:
            recorder.stop()
    assert caught.value.culprit == "alien"


@needs_strace
def test_two_threads_that_rename_at_once_are_not_covered_or_in_order(state: Path) -> None:
    """Whichever it is: a trace, when there is one, explains the directory."""

    def work(number: int) -> None:
        choose = random.Random(number)
        for _ in range(30):
            path = state / f"{number}"
            path.write_bytes(choose.randbytes(10))
            os.replace(path, state / f"{number}-done")

    recorder = StraceRecorder(state)
    recorder.start()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        trace = recorder.stop()
    except BlindSpot as spot:
        assert "at the same time" in str(spot)  # noqa: PT017
    else:
        assert kinds(trace).count("Rename 0-done") == 30


# -- what can go wrong with strace itself ----------------------------------------------------------


@pytest.fixture
def fake_strace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "strace"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def script(path: Path, *, version: str, otherwise: str) -> None:
    path.write_text(
        f'#!/bin/sh\nif [ "$1" = -V ]; then echo "strace -- version {version}"; exit; '
        f"fi\n{otherwise}\n"
    )
    path.chmod(0o755)


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="strace is Linux only")


@linux
def test_missing_strace_names_the_package_manager(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(state))
    with pytest.raises(RecorderUnavailable, match="apt install strace"):
        StraceRecorder(state).start()
    with pytest.raises(RecorderUnavailable, match="apt install strace"):
        StraceRecorder(state).run([sys.executable])


def test_another_platform_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RecorderUnavailable, match="darwin"):
        check_available()


@linux
def test_an_old_strace(state: Path, fake_strace: Path) -> None:
    script(fake_strace, version="4.26", otherwise="exit 1")
    with pytest.raises(RecorderUnavailable, match=r"4\.26 is too old"):
        StraceRecorder(state).start()


@needs_strace
def test_an_strace_that_writes_without_end_is_ended(state: Path) -> None:
    endless = ["sh", "-c", "while :; do cd .; done"]
    with pytest.raises(RecorderUnavailable, match="more than 100,000 bytes"):
        StraceRecorder(state, largest=100_000).run(endless, cwd=state, timeout=60)
    recorder = StraceRecorder(state, largest=100_000)
    recorder.start()
    for _ in range(3_000):
        os.chdir(".")
    with pytest.raises(RecorderUnavailable, match="more than 100,000 bytes"):
        recorder.stop()
    assert set(strace_process.tracers().values()) == {0}
    recorder.start()
    (state / "after").write_bytes(b"new")
    assert len(recorder.stop()) > 0


@linux
@pytest.mark.parametrize("attach", [True, False])
def test_no_permission_to_trace(
    state: Path, fake_strace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, attach: bool
) -> None:
    yama = tmp_path / "ptrace_scope"
    yama.write_text("2\n")
    monkeypatch.setattr(strace_process, "_YAMA", yama)
    said = "strace: attach: ptrace(PTRACE_SEIZE, 1): Operation not permitted"
    script(fake_strace, version="6.1", otherwise=f"echo '{said}' >&2; exit 1")
    recorder = StraceRecorder(state)
    with pytest.raises(RecorderUnavailable, match="SYS_PTRACE") as caught:
        if attach:
            recorder.start()
        else:
            recorder.run([sys.executable, "-c", ""])
    assert "write 1 or 0 into it" in str(caught.value)


@linux
def test_a_strace_that_never_attaches(
    state: Path, fake_strace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(fake_strace, version="6.1", otherwise="exec sleep 30")
    monkeypatch.setattr(strace, "_PATIENCE", 0.2)
    with pytest.raises(RecorderUnavailable, match="did not attach"):
        StraceRecorder(state).start()


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a directory"):
        StraceRecorder(tmp_path / "absent")
