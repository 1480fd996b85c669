"""The parser of strace's output: what is rendered is read back, and nothing is passed over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_statepersist.errors import TraceError
from pytest_statepersist.recorders.strace_parser import (
    Call,
    Descriptor,
    Exit,
    clone_flags,
    descriptor,
    flags,
    members,
    number,
    parse,
    text,
)


def hexadecimal(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)


def quoted(data: bytes) -> str:
    return f'"{hexadecimal(data)}"'


@dataclass(frozen=True)
class Said:
    """A call as a program makes it, and the text that strace has for it."""

    name: str
    arguments: tuple[str, ...]
    result: int | None
    error: str = ""
    path: bytes | None = None

    def end(self) -> str:
        if self.result is None:
            return "?"
        text = str(self.result)
        if self.path is not None:
            text += f"<{hexadecimal(self.path)}>"
        return text + (f" {self.error} (Something is wrong)" if self.error else "")


@dataclass
class Script:
    """Lines of output, and the calls that must come out of them, in the order of their ends."""

    lines: list[str] = field(default_factory=list)
    expected: list[tuple[int, Said, int, int]] = field(default_factory=list)


strings = st.binary(max_size=12).map(quoted)
paths = st.binary(min_size=1, max_size=8)
numbers = st.integers(-1, 1 << 40).map(str)
flag_sets = st.lists(
    st.sampled_from(["O_RDWR", "O_CREAT", "MAP_SHARED", "0x8"]), min_size=1, max_size=3
).map("|".join)
descriptors = st.builds(
    lambda n, p: f"{n}<{hexadecimal(p)}>", st.one_of(st.integers(0, 99), st.just("AT_FDCWD")), paths
)
simple = st.one_of(strings, numbers, flag_sets, descriptors, st.just("NULL"))
vectors = st.lists(
    st.builds(lambda data: f"{{iov_base={quoted(data)}, iov_len={len(data)}}}", st.binary())
).map(lambda parts: f"[{', '.join(parts)}]")
structures = st.lists(simple, min_size=1, max_size=3).map(
    lambda parts: "{" + ", ".join(f"f{i}={part}" for i, part in enumerate(parts)) + "}"
)
arguments = st.lists(st.one_of(simple, vectors, structures), max_size=5).map(tuple)
calls = st.builds(
    Said,
    st.sampled_from(["write", "openat", "renameat2", "clone3", "fsync", "exit_group"]),
    arguments,
    st.one_of(st.none(), st.integers(0, 1 << 31)),
    path=st.one_of(st.none(), paths),
) | st.builds(Said, st.just("open"), arguments, st.just(-1), error=st.sampled_from(["ENOENT"]))


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """Tasks that take turns; a call in which another task gets its turn is split in two."""
    waiting = {task: draw(st.lists(calls, max_size=4)) for task in (7, 1234, 99999)}
    script, open_calls = Script(), {}
    while any(waiting.values()) or open_calls:
        task = draw(st.sampled_from(sorted({t for t in waiting if waiting[t]} | set(open_calls))))
        at = len(script.lines)
        begin = f"{task:<5} 17.{at:06} "
        if task in open_calls:
            said, start, cut = open_calls.pop(task)
            rest = ", ".join(said.arguments)[cut:]
            gap = draw(st.sampled_from(["", " "])) if not rest else ""
            script.lines.append(f"{begin}<... {said.name} resumed>{gap}{rest}) = {said.end()}\n")
            script.expected.append((task, said, start, at))
            continue
        said = waiting[task].pop(0)
        whole = ", ".join(said.arguments)
        if draw(st.booleans()):
            cut = draw(st.sampled_from([len(whole), whole.find(", ") + 2 if ", " in whole else 0]))
            script.lines.append(f"{begin}{said.name}({whole[:cut]} <unfinished ...>\n")
            open_calls[task] = said, at, cut
        else:
            gap = " " * draw(st.integers(1, 4))
            script.lines.append(f"{begin}{said.name}({whole}){gap}= {said.end()}\n")
            script.expected.append((task, said, at, at))
        if draw(st.booleans()):
            script.lines.append(
                f"{task} --- SIGCHLD {{si_signo=SIGCHLD, si_code=CLD_EXITED}} ---\n"
            )
    return script


@settings(suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(scripts())
def test_what_was_rendered_is_read_back(script: Script) -> None:
    found = list(parse(script.lines))
    assert [
        (c.task, c.name, c.arguments, c.result, c.error, c.result_path, c.start, c.end)
        for c in found
        if isinstance(c, Call)
    ] == [
        (task, s.name, s.arguments, s.result, s.error, _path(s), start, end)
        for task, s, start, end in script.expected
    ]


def _path(said: Said) -> bytes | None:
    return None if said.result is None else said.path


@given(st.binary(), st.booleans())
def test_strings(data: bytes, cut: bool) -> None:
    if cut:
        with pytest.raises(TraceError, match="-s"):
            text(quoted(data) + "...")
    else:
        assert text(quoted(data)) == data


def test_a_string_that_is_not_hexadecimal_is_an_error() -> None:
    with pytest.raises(TraceError, match="-xx"):
        text('"plain"')


@pytest.mark.parametrize(
    ("argument", "value"), [("0", 0), ("0644", 0o644), ("-1", -1), ("0x1f", 31), ("4096", 4096)]
)
def test_numbers(argument: str, value: int) -> None:
    assert number(argument) == value


def test_a_number_that_is_none_is_an_error() -> None:
    with pytest.raises(TraceError, match="O_RDWR"):
        number("O_RDWR")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("3", Descriptor(3, None, False)),
        ("AT_FDCWD", Descriptor(None, None, False)),
        (f"AT_FDCWD<{hexadecimal(b'/d')}>", Descriptor(None, b"/d", False)),
        (f"3<{hexadecimal(b'/d/f')}>", Descriptor(3, b"/d/f", False)),
        (f"3<{hexadecimal(b'/d/f')}>(deleted)", Descriptor(3, b"/d/f", True)),
        (f"3<{hexadecimal(b'/d/f (deleted)')}>", Descriptor(3, b"/d/f", True)),
    ],
)
def test_descriptors_of_all_versions(argument: str, expected: Descriptor) -> None:
    assert descriptor(argument) == expected


def test_members_and_flags() -> None:
    assert members("[{a=1, b=2}, {c=3}]") == ("{a=1, b=2}", "{c=3}")
    assert members("[]") == ()
    assert flags("A|B") == {"A", "B"}
    with pytest.raises(TraceError, match="list"):
        members("NULL")


def one(lines: Sequence[str]) -> Call:
    (call,) = parse(lines)
    assert isinstance(call, Call)
    return call


def test_time_is_in_nanoseconds() -> None:
    assert one(["5 1700000000.000123 sync() = 0\n"]).time == 1_700_000_000_000_123_000
    assert one(["5 sync() = 0\n"]).time is None


def test_clone_flags() -> None:
    clone = "5 1.0 clone3({flags=CLONE_VM|CLONE_FILES, exit_signal=0} => {tid=[6]}, 88) = 6\n"
    assert clone_flags(one([clone])) == {"CLONE_VM", "CLONE_FILES"}
    assert clone_flags(one(["5 1.0 fork() = 6\n"])) == frozenset()


def test_a_call_that_never_returned_has_no_result() -> None:
    lines = ["5 1.0 write(3, <unfinished ...>\n", "5 1.1 +++ killed by SIGKILL +++\n"]
    call, end = parse(lines)
    assert isinstance(call, Call)
    assert not call.succeeded
    assert call.result is None
    assert end == Exit(5, 1)
    assert one(["5 1.0 write(3, <unfinished ...>\n"]).result is None


def test_an_end_whose_begin_was_not_seen_has_no_start() -> None:
    assert one(["5 1.0 <... write resumed>) = 3\n"]).start == -1


def test_octal_results_are_read() -> None:
    assert one(["5 1.0 umask(000) = 022\n"]).result == 0o22


@pytest.mark.parametrize(
    "line", ["no number here", "5 1.0 what is this", "5 1.0 write(3) = three", "5 1.0 <... x"]
)
def test_text_of_another_form_is_an_error_that_shows_it(line: str) -> None:
    with pytest.raises(TraceError, match="line 1 of strace's output"):
        list(parse([line + "\n"]))
