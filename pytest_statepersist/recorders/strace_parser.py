"""The output of ``strace -f -y -xx -ttt -o FILE`` as calls.

Belongs here: text to `Call` and `Exit`, and the decoding of single arguments. Rules:

1. Strings must come as hexadecimal (``-xx``), so no comma or bracket of the data is in the text.
2. A call that was interrupted by others is put together again and keeps both its ends: what two
   calls did at the same time has no known order.
3. Text that does not have the form of a call is an error with its line, never passed over.

Facts: strace(1), and the NEWS of strace 5.0 to 6.x for what changed: "(deleted)" stands inside the
path up to some 5.x and behind it in 6.x; recorded outputs of several versions are in
``fixtures/strace``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from pytest_statepersist.errors import TraceError

__all__ = [
    "Call",
    "Descriptor",
    "Event",
    "Exit",
    "clone_flags",
    "descriptor",
    "flags",
    "members",
    "number",
    "parse",
    "text",
]


@dataclass(slots=True)
class Call:
    """One system call. ``start`` and ``end`` are line numbers: where it began and returned.

    ``result`` is ``None`` where it never returned (or its return was not seen); ``error`` is the
    name of the error. ``time`` is the wall time of its last line, in nanoseconds.
    """

    task: int
    name: str
    arguments: tuple[str, ...]
    result: int | None
    error: str
    result_path: bytes | None
    time: int | None
    start: int
    end: int
    injected: bool = False
    """Whether strace itself made it fail."""

    @property
    def succeeded(self) -> bool:
        """Whether it returned, and no error."""
        return self.result is not None and not self.error


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a task; ``line`` is its line number."""

    task: int
    line: int


Event: TypeAlias = Call | Exit


class Descriptor(NamedTuple):
    """A file descriptor as strace shows it; ``number`` is ``None`` for AT_FDCWD."""

    number: int | None
    path: bytes | None
    deleted: bool


_LINE = re.compile(r"(\d+)\s+(?:(\d+)\.(\d+) )?(.*)", re.S)
_COMPLETE = re.compile(r"(\w+)\((.*)\)\s+= (.+)", re.S)
_UNFINISHED = re.compile(r"(\w+)\((.*) <unfinished \.\.\.>(?:\)\s+= \?)?", re.S)
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>\s?(.*)\)\s+= (.+)", re.S)
_RESULT = re.compile(
    r"(\?|-?\d+|0x[0-9a-f]+)(?:<([^>]*)>(?:\(deleted\))?)?(?: ([A-Z][A-Z0-9]*))?(?: \(.*\))?", re.S
)
_DESCRIPTOR = re.compile(r"(AT_FDCWD|-?\d+|0x[0-9a-f]+)(?:<([^>]*)>(\(deleted\))?)?")
_DEEPER = re.compile(r"[\[\]{}()]|, ")
_DELETED = b" (deleted)"


def parse(lines: Iterable[str]) -> Iterator[Event]:
    """Yield calls in the order in which they returned, and the ends of tasks.

    A call that never returned comes when its task ends, or at the end. Raises `TraceError`.
    """
    pending: dict[int, Call] = {}
    at = -1
    for at, line in enumerate(lines):
        head = _LINE.match(line)
        if head is None:
            raise _unreadable(at, line)
        task, body = int(head[1]), head[4].rstrip("\n")
        seconds = head[2]
        time = None if seconds is None else int(seconds) * 10**9 + int(head[3].ljust(9, "0"))
        whole = _COMPLETE.fullmatch(body)
        if whole is not None:
            yield _call(task, whole[1], whole[2], whole[3], time, at, at, line)
        elif body.startswith("<... "):
            resumed = _RESUMED.fullmatch(body)
            if resumed is None:
                raise _unreadable(at, line)
            begun = pending.pop(task, None)
            if begun is None or begun.name != resumed[1]:
                # Its begin was before the recording, or under the number of a thread that is gone.
                yield _call(task, resumed[1], "", resumed[3], time, -1, at, line)
            else:
                arguments = begun.arguments[0] + resumed[2]
                yield _call(task, begun.name, arguments, resumed[3], time, begun.start, at, line)
        elif body.startswith("+++ "):
            if task in pending:
                yield _lost(pending.pop(task), at)
            yield Exit(task, at)
        elif body.endswith((" ...>", " ...>) = ?")):
            begun_here = _UNFINISHED.match(body)
            if begun_here is not None:
                pending[task] = Call(
                    task, begun_here[1], (begun_here[2],), None, "", None, time, at, at
                )
        elif not body.startswith("--- "):
            raise _unreadable(at, line)
    for call in pending.values():
        yield _lost(call, at)


def _unreadable(at: int, line: str) -> TraceError:
    return TraceError(
        f"line {at + 1} of strace's output is not one that this version can read: {line[:200]!r}; "
        "please report it with the output of strace --version"
    )


def _lost(call: Call, at: int) -> Call:
    call.arguments = _split(call.arguments[0])
    call.end = at
    return call


def _call(
    task: int,
    name: str,
    arguments: str,
    result: str,
    time: int | None,
    start: int,
    end: int,
    line: str,
) -> Call:
    found = _RESULT.fullmatch(result)
    if found is None:
        raise _unreadable(end, line)
    value, path, error, *_ = found.groups()
    return Call(
        task,
        name,
        _split(arguments),
        None if value == "?" else number(value),
        error or "",
        None if path is None else _bytes(path),
        time,
        start,
        end,
        result.endswith(" (INJECTED)"),
    )


def _split(arguments: str) -> tuple[str, ...]:
    """Split at the commas that are not inside brackets."""
    if "[" not in arguments and "{" not in arguments:
        return tuple(arguments.split(", ")) if arguments else ()
    parts: list[str] = []
    depth = begin = 0
    for mark in _DEEPER.finditer(arguments):
        symbol = mark[0]
        if symbol in "[{(":
            depth += 1
        elif symbol in "]})":
            depth -= 1
        elif depth == 0:
            parts.append(arguments[begin : mark.start()])
            begin = mark.end()
    parts.append(arguments[begin:])
    return tuple(parts)


def _bytes(hexadecimal: str) -> bytes:
    try:
        return bytes.fromhex(hexadecimal.replace("\\x", ""))
    except ValueError:
        raise TraceError(
            f"strace printed a string that is not in hexadecimal: {hexadecimal[:80]!r}; it must "
            "run with -xx"
        ) from None


def text(argument: str) -> bytes:
    """Decode a string argument; raises `TraceError` where strace cut it short."""
    if len(argument) < 2 or argument[0] != '"' or argument[-1] != '"':
        raise TraceError(
            f"strace did not print a whole string but {argument[:80]!r}; it must run with a "
            "large enough -s"
        )
    return _bytes(argument[1:-1])


def number(argument: str) -> int:
    """Decode a number: decimal, hexadecimal or octal (with a leading zero)."""
    try:
        if argument.startswith("0") and argument[1:].isdigit():
            return int(argument, 8)
        return int(argument, 0)
    except ValueError:
        raise TraceError(f"strace printed {argument[:80]!r} where a number was expected") from None


def flags(argument: str) -> frozenset[str]:
    """Decode flags to their names; a number stands for itself."""
    return frozenset(argument.split("|"))


def descriptor(argument: str) -> Descriptor:
    """Decode a file descriptor with the path that ``-y`` adds."""
    found = _DESCRIPTOR.fullmatch(argument)
    if found is None:
        raise TraceError(f"strace printed {argument[:80]!r} where a descriptor was expected")
    path = None if found[2] is None else _bytes(found[2])
    deleted = found[3] is not None
    if path is not None and path.endswith(_DELETED):
        path, deleted = path[: -len(_DELETED)], True
    return Descriptor(None if found[1] == "AT_FDCWD" else int(found[1], 0), path, deleted)


def members(argument: str) -> tuple[str, ...]:
    """Split an array or a structure into its parts."""
    if argument[:1] + argument[-1:] not in ("[]", "{}"):
        raise TraceError(f"strace printed {argument[:80]!r} where a list was expected")
    return _split(argument[1:-1])


def clone_flags(call: Call) -> frozenset[str]:
    """Return the flags of a call that makes a task; fork has none."""
    if call.name == "vfork":
        return frozenset({"CLONE_VM"})
    found = re.search(r"flags=([A-Z_|0-9a-fx]+)", " ".join(call.arguments))
    return frozenset() if found is None else flags(found[1])
