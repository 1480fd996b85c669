"""Faults in programs of any language: those that ignore errors are caught, sound ones pass."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.cli import main
from pytest_statepersist.core import operations as op
from pytest_statepersist.core.apply import apply
from pytest_statepersist.errors import RecorderUnavailable, UserError
from pytest_statepersist.fault_injector import FaultInjector
from pytest_statepersist.faults import supervisor, system_calls
from pytest_statepersist.faults.calls import Operation
from pytest_statepersist.faults.gate import gated
from pytest_statepersist.faults.inject import Counting, Fault, Injection
from pytest_statepersist.faults.leftovers import Leftover
from pytest_statepersist.faults.report import FaultKind, FaultReport
from pytest_statepersist.programs import Answer, ProgramRecorder, run_command
from pytest_statepersist.recorders import strace


def _missing() -> str:
    """Say why programs cannot be supervised here: tried, not guessed."""
    try:
        with tempfile.TemporaryDirectory() as directory:
            with gated(directory, Counting()):
                run_command("true", directory)
            with ProgramRecorder(Path(directory)):
                run_command("true", directory)
    except RecorderUnavailable as error:
        return str(error)
    return ""


_reason = _missing()
needs_supervision = pytest.mark.skipif(bool(_reason), reason=_reason or "-")
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is installed")

SETUP = "printf %s old > {dir}/note"
SOUND = (
    "printf %s new > {dir}/note.tmp && sync {dir}/note.tmp && mv {dir}/note.tmp {dir}/note"
    " && sync {dir}"
)
CARELESS = SOUND.replace("&&", ";") + "; true"
LOAD = "cat {dir}/note"


def sweep(workload: str, recover: str = LOAD, **options: Any) -> FaultReport:
    chosen = {"persistent": False, "recovery": False, "states": 20, **options}
    return FaultInjector(time_limit=20.0).sweep_commands(
        setup=SETUP, workload=workload, recover=recover, **chosen
    )


# -- shell programs --------------------------------------------------------------------------------


@needs_supervision
def test_a_shell_program_that_ignores_errors_is_caught() -> None:
    report = sweep(CARELESS, errors=["EIO"], operations=["write", "fsync", "rename"])
    assert report.ok is False
    found = {(each.kind, each.site.function, str(each.site.site)) for each in report.findings}
    assert (FaultKind.SILENT, "write", "sh:3") in found
    assert (FaultKind.POWER_LOSS, "fsync", "sync:2") in found
    # It loses nothing before the power fails, but where the failed sync has reverted the content.
    lost = [each for each in report.findings if each.site.function == "fsync"]
    assert {each.kind for each in lost} == {FaultKind.POWER_LOSS, FaultKind.SILENT}
    for each in lost:
        assert (each.kind is FaultKind.SILENT) == (each.fault.leaves is Leftover.REVERTED)
    assert all(finding.confirmed for finding in report.findings)


@needs_supervision
def test_a_sound_shell_program_passes() -> None:
    # What `mv` looks at would double the time and tells nothing more.
    kinds = [each for each in Operation if each is not Operation.STAT]
    options: dict[str, Any] = {"errors": ["EIO", "short"], "operations": kinds, "states": 100}
    report = sweep(SOUND, persistent=(False, True), **options)
    assert report.findings == (), str(report)
    assert report.ok is True, str(report)
    assert report.cases >= 20, str(report)
    assert report.states >= 20
    programs = {site.site.file for site in report.sites if site.site is not None}
    assert programs == {"sh", "sync", "mv"}


@needs_supervision
def test_a_program_that_believes_a_second_sync_is_caught() -> None:
    """On btrfs the file is empty again."""
    again = SOUND.replace("sync {dir}/note.tmp", "(sync {dir}/note.tmp || sync {dir}/note.tmp)")
    options: dict[str, Any] = {"errors": ["EIO"], "operations": ["fsync"], "model": "btrfs"}
    options["states"] = 100
    (finding,) = sweep(again, **options).findings
    assert finding.kind is FaultKind.SILENT
    assert (finding.site.function, finding.site.path) == ("fsync", "note.tmp")
    assert sweep(SOUND, **options).ok is True


@needs_supervision
def test_a_failed_sync_of_everything_puts_every_file_back() -> None:
    """On btrfs the new file is empty again, and the old one what it was."""
    options: dict[str, Any] = {"errors": ["EIO"], "operations": ["fsync"], "model": "btrfs"}
    options["states"] = 0
    whole = SOUND.replace("sync {dir}/note.tmp", "sync -f {dir}/note.tmp")
    again = whole.replace("sync -f {dir}/note.tmp", "(sync -f {dir}/note.tmp || sync -f {dir})")
    (finding,) = sweep(again, **options).findings
    assert finding.kind is FaultKind.SILENT
    assert finding.site.function == "syncfs"
    assert sweep(whole, **{**options, "states": 100}).ok is True
    two = "printf more > {dir}/other; " + whole
    report = sweep(two, **options)
    assert report.ok is None
    assert "all files, not some of them alone" in str(report)


@needs_supervision
def test_a_sync_of_everything_that_succeeded_made_all_durable() -> None:
    """What a later sync of one file cannot write is what came after it."""
    save = (
        "printf one > {dir}/note && sync -f {dir} && printf two >> {dir}/note"
        " && (sync {dir}/note || true)"
    )
    report = sweep(
        save,
        errors=["EIO"],
        operations=["fsync"],
        model="btrfs",
        states=0,
    )
    assert "returned exit code 0, output 'one'" in str(report), str(report)


@needs_supervision
def test_a_recovery_that_takes_an_error_for_nothing_saved_is_caught() -> None:
    options: dict[str, Any] = {"errors": ["EIO"], "operations": ["open", "read"], "states": 0}
    wrong = sweep(SOUND, "cat {dir}/note 2>&- || echo nothing", recovery=True, **options)
    kinds = {finding.kind for finding in wrong.findings}
    assert FaultKind.WRONG_ANSWER in kinds
    assert {f.fault.phase for f in wrong.findings} == {"recovery before", "recovery after"}
    right = sweep(SOUND, recovery=True, **options)
    assert right.ok is True, str(right)


@needs_supervision
def test_who_takes_a_file_that_cannot_be_looked_at_for_none_is_caught() -> None:
    looks = "if test -e {dir}/note; then cat {dir}/note; else echo nothing; fi"
    options: dict[str, Any] = {"errors": ["EIO"], "operations": ["stat"], "states": 0}
    report = sweep("printf new > {dir}/note", looks, recovery=True, **options)
    assert {finding.kind for finding in report.findings} == {FaultKind.WRONG_ANSWER}
    assert {finding.site.path for finding in report.findings} == {"note"}


@needs_supervision
def test_what_is_left_behind_may_not_stop_the_next_run() -> None:
    locked = "mkdir {dir}/lock && printf %s new > {dir}/note && rmdir {dir}/lock"
    report = sweep(locked, errors=["EIO"], operations=["open"], states=0)
    assert {finding.kind for finding in report.findings} == {FaultKind.RETRY}


@needs_supervision
def test_patterns_say_which_answers_are_right() -> None:
    report = sweep(
        SOUND,
        'cat {dir}/note; date +" at %N"',
        before="^old",
        after="^new",
        errors=["EIO"],
        operations=["fsync"],
        states=0,
    )
    assert report.ok is True, str(report)
    with pytest.raises(UserError, match="not what recovery gives before"):
        sweep(SOUND, before="^never")
    with pytest.raises(UserError, match="failed with exit code 3"):
        sweep("exit 3")


# -- programs in C ---------------------------------------------------------------------------------

WRITER = """
    #include <fcntl.h>
    #include <stdio.h>
    #include <string.h>
    #include <unistd.h>

    static int whole(int fd, const char *text, size_t left) {
        while (left) {
            ssize_t n = write(fd, text, left);
            if (n <= 0) return -1;
            text += n, left -= n;
        }
        return 0;
    }

    int main(int count, char **arguments) {
        if (chdir(arguments[1])) return 1;
        int fd = open("note.tmp", O_WRONLY | O_CREAT | O_TRUNC, 0644);
        if (fd < 0) return 1;
        %s
        if (close(fd)) return 1;
        if (rename("note.tmp", "note")) return 1;
        int directory = open(".", O_RDONLY);
        if (directory < 0 || fsync(directory)) return 1;
        return 0;
    }
"""
BODIES = {
    "sound": 'if (whole(fd, "the new text", 12) || fsync(fd)) return 1;',
    "ignores": 'write(fd, "the new text", 12); fsync(fd);',
    "believes_any_write": 'if (write(fd, "the new text", 12) < 0 || fsync(fd)) return 1;',
}


@pytest.fixture
def build(tmp_path: Path) -> Callable[[str], str]:
    def compiled(text: str) -> str:
        source, program = tmp_path / "writer.c", tmp_path / "writer"
        source.write_text(textwrap.dedent(text))
        subprocess.run(["cc", "-o", str(program), str(source)], check=True, capture_output=True)
        return f"{program} {{dir}}"

    return compiled


@needs_supervision
@needs_compiler
@pytest.mark.parametrize("name", BODIES)
def test_a_program_in_c(build: Callable[[str], str], name: str) -> None:
    report = sweep(
        build(WRITER % BODIES[name]),
        errors=["ENOSPC", "EIO", "short"],
        operations=["write", "fsync", "rename"],
        states=100,
    )
    found = {(f.kind, f.site.function, f.errors) for f in report.findings}
    if name == "sound":
        assert report.ok is True, str(report)
        assert report.cases >= 8
    elif name == "ignores":
        assert {name for _, name, _ in found} == {"write", "fsync"}
    else:
        (finding,) = report.findings
        assert (finding.site.function, finding.errors) == ("write", ("short",))
        assert "'the ne'" in finding.observed


@needs_supervision
@needs_compiler
def test_an_ignored_msync_error_is_seen(build: Callable[[str], str]) -> None:
    """msync names its file by an address only."""
    program = build("""
        #include <fcntl.h>
        #include <sys/mman.h>
        #include <unistd.h>
        int main(int count, char **arguments) {
            if (chdir(arguments[1])) return 1;
            int fd = open("note", O_RDWR);
            char *memory = mmap(0, 3, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            memory[0] = 'n'; memory[1] = 'e'; memory[2] = 'w';
            return msync(memory, 3, MS_SYNC) ? 1 : 0;
        }
    """)
    report = sweep(program, errors=["EIO"], operations=["fsync"], states=0)
    assert [(s.function, s.path) for s in report.sites if s.operation is Operation.FSYNC] == [
        ("msync", "note")
    ]
    assert report.cases == 2  # the content is kept, and it reverts


# -- strace's own injection ------------------------------------------------------------------------


@needs_supervision
def test_strace_itself_can_make_calls_fail() -> None:
    options: dict[str, Any] = {"errors": ["EIO"], "operations": ["write", "fsync", "rename"]}
    report = sweep(CARELESS, injection="strace", **options)
    found = {(each.kind, each.site.function, str(each.site.site)) for each in report.findings}
    assert (FaultKind.SILENT, "write", "sh:2") in found
    assert (FaultKind.POWER_LOSS, "fsync", "sync:2") in found
    assert all(finding.confirmed for finding in report.findings)
    sound = sweep(SOUND, injection="strace", states=100, **options)
    assert sound.ok is True, str(sound)
    assert sound.cases >= 4
    assert sound.states > 20


@needs_supervision
@needs_compiler
def test_strace_makes_calls_of_a_program_in_c_fail(build: Callable[[str], str]) -> None:
    report = sweep(
        build(WRITER % BODIES["ignores"]),
        errors=["EIO"],
        operations=["write", "fsync", "rename", "read"],
        recovery=True,
        injection="strace",
    )
    found = {each.site.function for each in report.findings}
    assert found == {"write", "fsync"}, str(report)
    assert {s.operation for s in report.sites} >= {Operation.OPEN, Operation.READ}


@needs_supervision
def test_what_strace_cannot_do_is_not_covered() -> None:
    report = sweep(
        SOUND,
        errors=["EIO", "short"],
        operations=["write", "close"],
        persistent=(False, True),
        injection="strace",
    )
    told = [each.partition(":")[0] for each in report.not_covered]
    assert told == ["writes of a part of the bytes", "errors of close", "faults that last"]
    assert report.cases == 1
    assert report.ok is None
    reverts = sweep(SOUND, errors=["EIO"], operations=["fsync"], model="btrfs", injection="strace")
    assert reverts.ok is None


@needs_supervision
def test_a_fault_that_strace_puts_elsewhere_as_well_is_no_case() -> None:
    """The second program opens another file by its call of the same number."""
    workload = "cat {dir}/note; cat /etc/passwd; " + SOUND
    report = sweep(workload, errors=["EACCES"], operations=["open"], injection="strace")
    assert report.ok is None
    assert any("strace met a call on another file" in each for each in report.not_covered)
    assert report.findings == ()


@needs_supervision
def test_strace_takes_over_where_seccomp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_SECCOMP", {os.uname().machine: 100_000})
    options: dict[str, Any] = {"errors": ["EIO"], "operations": ["rename"]}
    report = sweep(SOUND, **options)
    assert report.cases >= 1
    assert report.ok is True, str(report)
    with pytest.raises(RecorderUnavailable, match="SECCOMP_RET_USER_NOTIF"):
        sweep(SOUND, injection="seccomp", **options)
    with pytest.raises(UserError, match="injection="):
        sweep(SOUND, injection="ptrace", **options)


# -- the gate itself -------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir()
    return directory


@needs_supervision
def test_calls_are_counted_in_order_whatever_process_makes_them(state: Path) -> None:
    counting = Counting()
    with gated(state, counting):
        answer = run_command(
            "mkdir {dir}/d; cd {dir}; ln -s d l; echo x > l/f; mv d/f f; ln f g; chmod 600 f;"
            " rm g; rmdir d; cat f > /dev/null; ls {dir} > /dev/null; truncate -s 0 f",
            state,
        )
    assert answer.code == 0, answer
    seen = [
        f"{site.operation.value} {site.path}"
        for site in counting.sites
        if site.operation not in (Operation.CLOSE, Operation.LIST, Operation.STAT)
    ]
    assert seen == [
        "mkdir d",
        "symlink l",
        "open d/f",
        "write d/f",
        *(row for row in seen if row.startswith("rename f")),
        "link g",
        "attributes f",
        "unlink g",
        "rmdir d",
        "open f",
        "read f",
        *(row for row in seen[11:] if row == "read f"),
        "open ",
        "open f",
        "truncate f",
    ], seen


@needs_supervision
@pytest.mark.parametrize(
    ("how", "expected"), [(">", b"helloX"), (">>", b"oldhelloX")], ids=["position", "append"]
)
def test_a_shortened_write_happens_once_and_moves_the_position(
    state: Path, how: str, expected: bytes
) -> None:
    """The rest follows where the first part ended, in the file and in the recording alike."""
    (state / "f").write_text("old")
    program = f"{{ printf %s hello; printf %s X; }} {how} {{dir}}/f; true"
    counting = Counting()
    with gated(state, counting):
        run_command(program, state)
    index = next(s.index for s in counting.sites if s.operation is Operation.WRITE)
    (state / "f").write_text("old")
    injection, recorder = Injection(Fault(index, "short")), ProgramRecorder(state)
    with recorder, gated(state, injection) as gate:
        gate.unseen, injection.position = recorder.unseen, recorder.note_fault
        run_command(program, state)
    content = (state / "f").read_bytes()
    assert content == expected
    assert apply(recorder.trace).read("f") == content
    writes = [o for o in recorder.trace.operations if isinstance(o, op.Write)]
    assert [write.data for write in writes] == [b"he", b"llo", b"X"]
    assert recorder.began == recorder.trace.operations.index(writes[0])


@needs_supervision
def test_a_command_that_hangs_is_ended_with_its_supervisor(state: Path) -> None:
    class TooLong(Exception):
        pass

    import signal

    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(TooLong), gated(state, Counting()):
            run_command("echo x > {dir}/f; sleep 60", state)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (state / "f").read_text() == "x\n"


@needs_supervision
def test_what_a_handler_raises_is_raised_here(state: Path) -> None:
    def handler(call: Any, run: Callable[[], Any]) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), gated(state, handler):
        run_command("echo x > {dir}/f", state)
    assert os.listdir(state) == []


def test_the_tables_know_the_same_calls_on_every_machine() -> None:
    tables = system_calls.ARCHITECTURES
    names = {name: {call.name for call in each.calls.values()} for name, each in tables.items()}
    assert names["aarch64"] <= names["x86_64"]
    old = {"open", "creat", "rename", "link", "symlink", "unlink", "rmdir", "mkdir", "chmod"}
    old |= {"stat", "lstat", "access", "readlink"}
    assert names["x86_64"] - names["aarch64"] == old | {"chown", "lchown", "utimes"}


# -- where it cannot be ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "way_out"),
    [("platform", "Linux container"), ("kernel", "5.5"), ("machine", "aarch64")],
)
def test_where_programs_cannot_be_supervised(
    monkeypatch: pytest.MonkeyPatch, what: str, way_out: str
) -> None:
    if what == "platform":
        monkeypatch.setattr(supervisor.sys, "platform", "darwin")
    elif what == "kernel":
        old = os.uname_result(("Linux", "host", "4.19.0-generic", "#1", "x86_64"))
        monkeypatch.setattr(supervisor.os, "uname", lambda: old)
    else:
        monkeypatch.setattr(supervisor, "architecture", lambda: None)
    with pytest.raises(RecorderUnavailable, match=way_out):
        supervisor.check_supervision()


@needs_supervision
def test_a_container_that_refuses_says_what_it_needs(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A number of a system call that no kernel has answers as a profile does that forbids it.
    monkeypatch.setattr(supervisor, "_SECCOMP", {os.uname().machine: 100_000})
    needed = "SECCOMP_RET_USER_NOTIF"
    with pytest.raises(RecorderUnavailable, match=needed), gated(state, Counting()):
        run_command("true", state)


# -- the command line ------------------------------------------------------------------------------


@needs_supervision
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "template").mkdir()
    (tmp_path / "template" / "note").write_text("old")
    common = ["faults", "--dir", str(tmp_path / "template"), "--recover", LOAD, "--once"]
    common += ["--errors", "EIO", "--operations", "write,fsync", "--no-recovery"]
    report = tmp_path / "report.json"
    assert main([*common, "--workload", CARELESS, "--json", str(report)]) == 1
    out, err = capsys.readouterr()
    assert "silent loss: EIO from write('note.tmp') at sh:3" in out
    assert out.splitlines()[-1].endswith(" findings")
    assert "counting calls" in err
    data = json.loads(report.read_text())
    assert (data["check"], data["ok"], data["name"]) == ("faults", False, CARELESS)
    assert {each["kind"] for each in data["findings"]} == {"silent loss", "lost with the power"}

    assert main([*common, "--workload", SOUND]) == 0
    assert capsys.readouterr().out.endswith("\nsound\n")
    assert main([*common, "--workload", SOUND, "--states", "1", "--cases", "2"]) == 1
    out = capsys.readouterr().out
    assert "cases beyond the bound of 2" in out
    assert "only the first 1 states" in out
    assert out.endswith("\nnot covered: no finding, and no proof that there is none\n")
    assert (tmp_path / "template" / "note").read_text() == "old"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--errors", "EWRONG"], "there is no error 'EWRONG'"),
        (["--operations", "jump"], "there is no operation 'jump'"),
        (["--model", "fat"], "fat"),
        (["--dir", "/nowhere/at/all"], "is not a directory"),
        (["--cases", "0"], "cases="),
    ],
)
def test_what_cannot_be_run_is_no_verdict(
    wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["faults", "--workload", SOUND, "--recover", LOAD, *wrong]) == 2
    assert message in capsys.readouterr().err


def test_without_strace_it_cannot_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(strace.shutil, "which", lambda name: None)
    assert main(["faults", "--setup", SETUP, "--workload", SOUND, "--recover", LOAD]) == 2
    assert "apt install strace" in capsys.readouterr().err


def test_answers_are_shown_with_what_they_printed() -> None:
    assert repr(Answer(0, "", "")) == "exit code 0"
