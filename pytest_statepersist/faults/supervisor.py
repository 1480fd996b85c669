"""A gate before the system calls of another program, in whatever language it is written.

Belongs here: stopping a program and its children before each call on a file, and asking the gate of
this process what becomes of it: it happens, it fails with an error, or only a part of a write does.
Rules:

1. The kernel asks (seccomp's user notification, Linux 5.5), one call at a time, in the order in
   which they are made, whatever process makes them. `strace_injection` is the way where it may not.
2. Calls on other files pass at once, and so do those of 32-bit programs.
3. What this process does for the program (the part of a shortened write) is marked in the stream
   that strace writes, since the program's own call shows it already.

Facts: seccomp_unotify(2), pidfd_getfd(2), process_vm_readv(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from pytest_statepersist.core.operations import Site
from pytest_statepersist.errors import RecorderUnavailable
from pytest_statepersist.faults.calls import Call, Operation
from pytest_statepersist.faults.gate import Gate
from pytest_statepersist.faults.system_calls import LOCKING, Shape, SystemCall, architecture
from pytest_statepersist.recorders import real

__all__ = ["Supervisor", "check_supervision"]

_OLDEST = (5, 5)
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_PIDFD_GETFD = 438
_SET_FILTER, _NEW_LISTENER = 1, 1 << 3
_NOTIFY, _ALLOW = 0x7FC00000, 0x7FFF0000
_RECEIVE, _ANSWER = 0xC0502100, 0xC0182101
_CONTINUE = 1
_QUESTION = struct.Struct("=QIIiIQ6Q")
"""Identity, task, flags, number of the call, architecture, instruction, six arguments."""
_REPLY = struct.Struct("=QqiI")
_INSTRUCTION = struct.Struct("=HBBI")
_AT_FDCWD = -100
_PAGE = 4096
_GO_ON = object()


def check_supervision() -> None:
    """Raise `RecorderUnavailable` where the calls of other programs cannot be supervised."""
    if not sys.platform.startswith("linux"):
        raise RecorderUnavailable(
            f"faults can be put into another program on Linux only, this is {sys.platform}: run "
            "this in a Linux container or virtual machine"
        )
    release = os.uname().release
    version = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    if version < _OLDEST:
        raise RecorderUnavailable(
            f"Linux {release} is too old to put faults into another program: 5.5 (2020) is needed"
        )
    if architecture() is None:
        raise RecorderUnavailable(
            f"faults can be put into programs on x86_64 and aarch64, not on {os.uname().machine}"
        )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Supervisor:
    """Asks a gate about each call on its directory that a program and its children make.

    Use as a context manager around the program's life; ``install`` is for `subprocess.Popen`'s
    ``preexec_fn``. ``unseen`` is entered while this process acts for the program.
    """

    def __init__(
        self, gate: Gate, unseen: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> None:
        check_supervision()
        found = architecture()
        assert found is not None  # that was checked
        self._gate, self._unseen = gate, unseen
        self._calls = found.calls
        self._counts: dict[str, int] = {}
        self._failure: BaseException | None = None
        self._library = ctypes.CDLL(None, use_errno=True)
        code = b"".join(_filter(found.audit, found.calls))
        self._code = ctypes.create_string_buffer(code, len(code))
        self._program = _Program(len(code) // _INSTRUCTION.size, ctypes.addressof(self._code))
        self._seccomp = _SECCOMP[os.uname().machine]

    def __enter__(self) -> Supervisor:
        self._ours, self._theirs = socket.socketpair()
        self._stopped, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, name="statepersist-supervisor")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._stop, b"x")
        self._thread.join()
        for end in (self._ours, self._theirs):
            end.close()
        os.close(self._stopped)
        os.close(self._stop)
        if self._failure is not None:
            raise self._failure

    def install(self) -> None:
        """In the child, before it becomes the program: from here on its calls are asked about."""
        library = self._library
        library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        listener = library.syscall(
            self._seccomp, _SET_FILTER, _NEW_LISTENER, ctypes.byref(self._program)
        )
        if listener < 0:
            self._theirs.send(ctypes.get_errno().to_bytes(1, "little"))
            return
        socket.send_fds(self._theirs, [b"\0"], [listener])

    # -- this process: one question after another ----------------------------------------------

    def _run(self) -> None:
        ours = self._ours.fileno()
        if ours not in select.select([ours, self._stopped], [], [])[0]:
            return
        error, descriptors, *_ = socket.recv_fds(self._ours, 1, 1)
        if not descriptors:
            number = error[0] if error else errno.EPERM
            self._failure = RecorderUnavailable(
                f"the calls of the program cannot be supervised ({os.strerror(number)}): in a "
                "container its seccomp profile must allow seccomp(2) with SECCOMP_RET_USER_NOTIF"
            )
            return
        listener = descriptors[0]
        try:
            waiting = select.poll()
            waiting.register(listener, select.POLLIN)
            waiting.register(self._stopped, select.POLLIN)
            while True:
                events = dict(waiting.poll())
                if self._stopped in events or events.get(listener, 0) & select.POLLHUP:
                    return  # the program has ended
                self._one(listener)
        finally:
            os.close(listener)

    def _one(self, listener: int) -> None:
        question = bytearray(_QUESTION.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, question)
        except OSError:
            return  # whoever asked was killed
        number, task, _, call, _, _, *arguments = _QUESTION.unpack(question)
        value = failed = flags = 0
        try:
            result = self._asked(self._calls[call], task, arguments)
            if result is _GO_ON:
                flags = _CONTINUE
            else:
                value = result
        except OSError as error:
            failed = -(error.errno or errno.EIO)
        except BaseException as error:
            self._failure, failed = error, -errno.EIO
        with suppress(OSError):
            fcntl.ioctl(listener, _ANSWER, _REPLY.pack(number, value, failed, flags))

    def _asked(self, call: SystemCall, task: int, arguments: list[int]) -> Any:
        if call.name == "fcntl" and arguments[1] not in LOCKING:
            return _GO_ON
        made = self._call(call, task, arguments)
        return _GO_ON if made is None else self._gate.handler(made, lambda: _GO_ON)

    def _call(self, call: SystemCall, task: int, arguments: list[int]) -> Call | None:
        """Return what a call is for the gate, ``None`` for one on another file."""
        for at in call.names:
            path = _path(call.shape, at, task, arguments)
            place = None if path is None else self._gate.place(path)
            if path is not None and place is not None:
                break
        else:
            return None
        operation = call.operation
        if operation is Operation.STAT and call.shape is Shape.AT and not _text(task, arguments[1]):
            return None  # of an open file: nothing is looked up
        if call.name == "unlinkat" and arguments[2] & 0x200:  # AT_REMOVEDIR
            operation = Operation.RMDIR
        made = Call(operation, place, call.name, native=True, foreign=True)
        made.site = self._site(task)
        if operation is Operation.OPEN:
            how = _open_flags(call, task, arguments)
            made.writes = how & os.O_ACCMODE != os.O_RDONLY
            made.creates = bool(how & os.O_CREAT) and not os.path.lexists(path)
            made.synchronous = bool(how & os.O_DSYNC)
        elif call.size >= 0:
            self._sized(made, call, task, arguments)
        return made

    def _sized(self, made: Call, call: SystemCall, task: int, arguments: list[int]) -> None:
        if made.operation is Operation.READ:
            made.size = arguments[call.size]
            return
        pieces = [(arguments[1], arguments[2])]
        if call.vector:
            pieces = _vectors(task, arguments[1], arguments[2])
        made.size = sum(length for _, length in pieces)
        at = _signed(arguments[call.offset]) if call.offset >= 0 else -1

        def shorten(count: int) -> int:
            data = b"".join(_memory(task, base, length) for base, length in pieces)[:count]
            return self._write_for(task, _signed(arguments[0]), data, at)

        made.shorten = shorten

    def _write_for(self, task: int, number: int, data: bytes, offset: int) -> int:
        """Write for a program, through its own open file, so that its position moves as well."""
        pidfd = os.pidfd_open(_process_of(task))
        try:
            with self._unseen():
                descriptor = self._library.syscall(_PIDFD_GETFD, pidfd, number, 0)
                if descriptor < 0:
                    raise OSError(ctypes.get_errno(), "pidfd_getfd")
                try:
                    if offset >= 0:
                        return os.pwrite(descriptor, data, offset)
                    return os.write(descriptor, data)
                finally:
                    os.close(descriptor)
        finally:
            os.close(pidfd)

    def _site(self, task: int) -> Site:
        try:
            with real.open(f"/proc/{task}/comm", errors="replace") as file:
                name = file.read().strip()
        except OSError:
            name = "?"
        self._counts[name] = self._counts.get(name, 0) + 1
        return Site(name, self._counts[name])


def _filter(audit: int, calls: dict[int, SystemCall]) -> list[bytes]:
    """Return the program that seccomp runs at each call: it picks those to be asked about."""
    load, equal, answer = 0x20, 0x15, 0x06
    code = [
        _INSTRUCTION.pack(load, 0, 0, 4),  # the architecture
        _INSTRUCTION.pack(equal, 1, 0, audit),
        _INSTRUCTION.pack(answer, 0, 0, _ALLOW),
        _INSTRUCTION.pack(load, 0, 0, 0),  # the call's number
    ]
    for number in calls:
        code.append(_INSTRUCTION.pack(equal, 0, 1, number))
        code.append(_INSTRUCTION.pack(answer, 0, 0, _NOTIFY))
    code.append(_INSTRUCTION.pack(answer, 0, 0, _ALLOW))
    return code


def _signed(value: int) -> int:
    """Return an argument that C declares as int or off_t."""
    if value >= 1 << 63:
        return value - (1 << 64)
    return value


def _path(shape: Shape, at: int, task: int, arguments: list[int]) -> str | None:
    if shape is Shape.DESCRIPTOR:
        return _of_descriptor(task, arguments[at])
    if shape is Shape.ADDRESS:
        return _mapped(task, arguments[at])
    if shape is Shape.PATH:
        return _named(task, _AT_FDCWD, arguments[at])
    return _named(task, arguments[at], arguments[at + 1])


def _of_descriptor(task: int, argument: int) -> str | None:
    number = ctypes.c_int(argument & 0xFFFFFFFF).value
    name = "cwd" if number == _AT_FDCWD else f"fd/{number}"
    try:
        return real.readlink(f"/proc/{task}/{name}").removesuffix(" (deleted)")
    except OSError:
        return None


def _named(task: int, directory: int, address: int) -> str | None:
    """Return an absolute path, its directory resolved; a null pointer names the descriptor."""
    name = os.fsdecode(_text(task, address)) if address else ""
    if not name:
        return _of_descriptor(task, directory)
    if not name.startswith("/"):
        base = _of_descriptor(task, directory)
        if base is None:
            return None
        name = os.path.join(base, name)
    head, tail = os.path.split(name.rstrip("/") or "/")
    return os.path.join(os.path.realpath(head), tail)


def _mapped(task: int, address: int) -> str | None:
    with suppress(OSError), real.open(f"/proc/{task}/maps", errors="replace") as maps:
        for line in maps:
            span, *_, path = line.rstrip("\n").split(maxsplit=5)
            begin, end = (int(part, 16) for part in span.split("-"))
            if begin <= address < end:
                return path if path.startswith("/") else None
    return None


def _open_flags(call: SystemCall, task: int, arguments: list[int]) -> int:
    if call.name == "creat":
        return os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    if call.name == "openat2":
        return int.from_bytes(_memory(task, arguments[2], 8), sys.byteorder)
    return arguments[call.flags]


def _text(task: int, address: int) -> bytes:
    """Read a string that ends with a zero byte; pages behind its end may not be there."""
    found = b""
    while b"\0" not in found and len(found) < _PAGE:
        piece = _memory(task, address, _PAGE - address % _PAGE)
        if not piece:
            break
        found += piece
        address += len(piece)
    return found.split(b"\0", 1)[0]


def _vectors(task: int, address: int, count: int) -> list[tuple[int, int]]:
    rows = struct.iter_unpack("=QQ", _memory(task, address, count * 16))
    return [(base, length) for base, length in rows]


def _memory(task: int, address: int, length: int) -> bytes:
    """Read from another process; what cannot be read is left out."""
    buffer = ctypes.create_string_buffer(max(length, 1))
    mine = _Vector(ctypes.addressof(buffer), length)
    theirs = _Vector(address, length)
    library = ctypes.CDLL(None, use_errno=True)
    library.process_vm_readv.restype = ctypes.c_ssize_t
    count = library.process_vm_readv(
        task, ctypes.byref(mine), ctypes.c_ulong(1), ctypes.byref(theirs), ctypes.c_ulong(1), 0
    )
    return buffer.raw[: max(count, 0)]


def _process_of(task: int) -> int:
    with real.open(f"/proc/{task}/status", errors="replace") as status:
        for line in status:
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    return task
