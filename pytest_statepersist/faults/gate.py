"""A gate before every call that Python code makes on one directory.

Belongs here: catching the call, saying what it is (`Call`), and asking a handler what becomes of
it. What a handler does (fail it, count bytes, kill the process, wait for a turn) is elsewhere.
Rules:

1. The handler runs before the real call and before the recorder, so that the recorder sees only
   what really happened. The one exception is a failed sync: it goes through the recorder, which
   notes it as failed, and fails below it (`fail_sync`).
2. Without a gate, and for what lies outside the directory, every replacement only passes through.
3. Files stay the interpreter's own objects: raw files get methods of the instance, which refer to
   the file weakly, as the recorder's do.
"""

from __future__ import annotations

import _io
import builtins
import fcntl
import io
import os
import pathlib
import posix
import stat
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import local
from types import FrameType
from typing import Any, Protocol

from pytest_statepersist.faults.calls import Call, Operation
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.interpose import Interposition, Table
from pytest_statepersist.recorders.python import interposition as recorder_interposition
from pytest_statepersist.recorders.streams import raw_of

__all__ = ["Gate", "Handler", "current", "fail_sync", "gated", "installed"]


class Handler(Protocol):
    """Decides about calls; ``run`` makes the call as it was asked for and returns its result."""

    def __call__(self, call: Call, run: Callable[[], Any]) -> Any:
        """Return what the caller gets, or raise what it meets."""


class Gate:
    """The directory that is watched, and who decides."""

    __slots__ = ("directory", "handler", "prefix", "runner", "unseen")

    def __init__(self, directory: str | os.PathLike[str], handler: Handler) -> None:
        self.directory = os.path.realpath(os.fspath(directory))
        self.prefix = self.directory + os.sep
        self.handler = handler
        self.unseen: Callable[[], AbstractContextManager[Any]] = nullcontext
        """Entered while this process does something for a program that its own call shows too."""
        self.runner: Callable[[list[str], dict[str, str]], tuple[int, bytes, bytes]] | None = None
        """What runs a command and its calls by this gate; ``None`` where the kernel is asked."""

    def place(self, path: Any, directory: int | None = None) -> str | None:
        """Return a path relative to the directory, ``None`` for what is outside."""
        if isinstance(path, int):
            return self.place_of(path)
        try:
            text = os.fsdecode(path)
        except TypeError:
            return None  # the call itself will refuse it
        if directory is not None and not text.startswith(os.sep):
            head = _path_of(directory)
            if head is None:
                return None
            text = os.path.join(head, text)
        return self._inside(os.path.abspath(text))

    def place_of(self, fd: int) -> str | None:
        """Return the path behind a descriptor relative to the directory, ``None`` outside."""
        path = _path_of(fd)
        return None if path is None else self._inside(path.removesuffix(" (deleted)"))

    def _inside(self, path: str) -> str | None:
        if path.startswith(self.prefix):
            return path[len(self.prefix) :]
        return "" if path == self.directory else None


class _Slot:
    gate: Gate | None = None


_slot = _Slot()


def current() -> Gate | None:
    """Return the gate that is in place in this process, if there is one."""
    return _slot.gate


_failing = local()


def _path_of(fd: int) -> str | None:
    try:
        return real.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        pass
    get_path = getattr(fcntl, "F_GETPATH", None)  # macOS
    if get_path is None:
        return None
    try:
        return os.fsdecode(fcntl.fcntl(fd, get_path, bytes(1024)).rstrip(b"\0"))
    except OSError:
        return None


@contextmanager
def installed() -> Iterator[None]:
    """Put the replacements in place; a gate takes effect in them without further cost."""
    with _Below(), recorder_interposition(), _above():
        yield


@contextmanager
def gated(directory: str | os.PathLike[str], handler: Handler) -> Iterator[Gate]:
    """Send every call on a directory to a handler; needs `installed` around it."""
    before, gate = _slot.gate, Gate(directory, handler)
    _slot.gate = gate
    try:
        yield gate
    finally:
        _slot.gate = before


def fail_sync(error: OSError, run: Callable[[], Any]) -> Any:
    """Make a sync fail below the recorder, so that it is recorded as one that failed."""
    _failing.error = error
    try:
        run()
    finally:
        _failing.error = None
    raise error  # nobody between here and the system took it


# -- replacements


def _on_path(operation: Operation, *, second: bool = False) -> Callable[[Any], Any]:
    """Replace a function whose first argument (or either of two) is a path."""

    def factory(original: Any) -> Any:
        name = getattr(original, "__name__", operation.value)

        def call(*arguments: Any, **options: Any) -> Any:
            gate = _slot.gate
            if gate is None or not arguments:
                return original(*arguments, **options)
            path = growth = None
            directory = options.get("dir_fd", options.get("src_dir_fd"))
            if second and len(arguments) > 1:
                other = options.get("dst_dir_fd", options.get("dir_fd"))
                path = gate.place(arguments[1], other)
                if path is not None and operation is not Operation.SYMLINK:
                    growth = _brought_in(gate, arguments[0], directory, arguments[1], other)
            if path is None and operation is not Operation.SYMLINK:
                path = gate.place(arguments[0], directory)
            if path is None:
                return original(*arguments, **options)
            made = Call(operation, path, f"os.{name}", growth=growth)
            return gate.handler(made, lambda: original(*arguments, **options))

        call.__name__ = name
        return call

    return factory


def _brought_in(
    gate: Gate, source: Any, source_fd: int | None, target: Any, target_fd: int | None
) -> Callable[[], int] | None:
    """Return what a file takes that a rename or link brings in from outside; else ``None``."""
    if gate.place(source, source_fd) is not None:
        return None

    def growth() -> int:
        try:
            taken = int(real.lstat(source, dir_fd=source_fd).st_size)
        except OSError:
            return 0  # the call itself will say so
        try:
            return taken - int(real.lstat(target, dir_fd=target_fd).st_size)
        except OSError:
            return taken

    return growth


def _listing(original: Any) -> Any:
    name = original.__name__

    def call(path: Any = ".") -> Any:
        gate = _slot.gate
        place = None if gate is None else gate.place("." if path is None else path)
        if gate is None or place is None:
            return original(path)
        return gate.handler(Call(Operation.LIST, place, f"os.{name}"), lambda: original(path))

    call.__name__ = name
    return call


def _looking(original: Any) -> Any:
    """Replace stat, lstat and readlink, and access, which answers no where it could not look."""
    name = original.__name__
    operation = Operation.READ if name == "readlink" else Operation.STAT

    def call(path: Any, *arguments: Any, **options: Any) -> Any:
        gate = _slot.gate
        if gate is None or isinstance(path, int):
            return original(path, *arguments, **options)
        place = gate.place(path, options.get("dir_fd"))
        if place is None or _looks_for_itself(sys._getframe(1)):
            return original(path, *arguments, **options)
        made = Call(operation, place, f"os.{name}")
        try:
            return gate.handler(made, lambda: original(path, *arguments, **options))
        except OSError:
            if name == "access":
                return False
            raise

    call.__name__ = name
    return call


def _looks_for_itself(frame: FrameType | None) -> bool:
    """Say whether this package looks, or what resolves links, which asks about every directory."""
    while frame is not None and frame.f_code.co_filename in _ABOUT_PATHS:
        if "realpath" in frame.f_code.co_name:
            return True
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(_OWN)


_HERE = os.path.dirname(os.path.dirname(__file__))
_OWN = tuple(os.path.join(_HERE, each, "") for each in ("faults", "recorders", "explorer"))
_ABOUT_PATHS = frozenset(
    each.__code__.co_filename for each in (os.path.exists, os.path.realpath, pathlib.Path.resolve)
)


def _truncating(original: Any) -> Any:
    name = getattr(original, "__name__", "truncate")

    def call(path: Any, length: int) -> Any:
        gate = _slot.gate
        place = None if gate is None else gate.place(path)
        if gate is None or place is None:
            return original(path, length)

        def growth() -> int:
            return max(0, length - real.stat(path).st_size)

        made = Call(Operation.TRUNCATE, place, f"os.{name}", size=length, growth=growth)
        return gate.handler(made, lambda: original(path, length))

    call.__name__ = name
    return call


def _on_descriptor(operation: Operation, *, position: int = 0) -> Callable[[Any], Any]:
    """Replace a function that gets a descriptor at a position of its arguments."""

    def factory(original: Any) -> Any:
        name = getattr(original, "__name__", operation.value)

        def call(*arguments: Any, **options: Any) -> Any:
            gate = _slot.gate
            if gate is None or len(arguments) <= position:
                return original(*arguments, **options)
            fd = arguments[position]
            fd = fd if isinstance(fd, int) else _fileno(fd)
            place = None if fd is None else gate.place_of(fd)
            if place is None:
                return original(*arguments, **options)
            made = Call(operation, place, f"os.{name}", descriptor=fd)
            return gate.handler(made, lambda: original(*arguments, **options))

        call.__name__ = name
        return call

    return factory


def _fileno(file: Any) -> int | None:
    try:
        return int(file.fileno())
    except (AttributeError, OSError, ValueError):
        return None


def _writing(original: Any) -> Any:
    """Replace write and pwrite: (descriptor, bytes) and (descriptor, bytes, offset)."""
    name = original.__name__

    def call(fd: int, data: Any, *offset: int) -> Any:
        gate = _slot.gate
        place = None if gate is None else gate.place_of(fd)
        if gate is None or place is None:
            return original(fd, data, *offset)
        view = memoryview(data).cast("B")

        def growth() -> int:
            status = real.fstat(fd)
            start = offset[0] if offset else _position(fd, status.st_size)
            return max(0, start + len(view) - status.st_size)

        made = Call(
            Operation.WRITE,
            place,
            f"os.{name}",
            size=len(view),
            descriptor=fd,
            data=view,
            shorten=lambda count: original(fd, view[:count], *offset),
            growth=growth,
        )
        return gate.handler(made, lambda: original(fd, data, *offset))

    call.__name__ = name
    return call


def _writing_many(original: Any) -> Any:
    """Replace writev and pwritev: (descriptor, buffers) and (descriptor, buffers, offset …)."""
    name = original.__name__

    def call(fd: int, buffers: Any, *rest: int) -> Any:
        gate = _slot.gate
        place = None if gate is None else gate.place_of(fd)
        if gate is None or place is None:
            return original(fd, buffers, *rest)
        joined = b"".join(memoryview(each).cast("B") for each in buffers)

        def growth() -> int:
            status = real.fstat(fd)
            start = rest[0] if rest else _position(fd, status.st_size)
            return max(0, start + len(joined) - status.st_size)

        made = Call(
            Operation.WRITE,
            place,
            f"os.{name}",
            size=len(joined),
            descriptor=fd,
            data=memoryview(joined),
            shorten=lambda count: original(fd, [joined[:count]], *rest),
            growth=growth,
        )
        return gate.handler(made, lambda: original(fd, buffers, *rest))

    call.__name__ = name
    return call


def _copying(original: Any) -> Any:
    """Replace sendfile, copy_file_range and splice: the system copies from file to file."""
    name, backwards = original.__name__, original.__name__ == "sendfile"

    def call(*arguments: Any, **options: Any) -> Any:
        gate = _slot.gate
        asked = None if gate is None else _copy_of(backwards, arguments, options)
        place = None if gate is None or asked is None else gate.place_of(asked.target)
        if gate is None or asked is None or place is None:
            return original(*arguments, **options)
        count = asked.available()

        def shorten(fewer: int) -> Any:
            named = {**options, **asked.named(fewer)}
            return original(*asked.with_count(arguments, fewer), **named)

        made = Call(
            Operation.WRITE,
            place,
            f"os.{name}",
            size=count,
            descriptor=asked.target,
            shorten=shorten,
            growth=lambda: asked.growth(count),
        )
        return gate.handler(made, lambda: original(*arguments, **options))

    call.__name__ = name
    return call


@dataclass(frozen=True, slots=True)
class _Copy:
    """What one such call asks for; ``start`` and ``offset`` are places in the two files."""

    source: int
    target: int
    count: int
    start: int | None
    offset: int | None
    position: int | None
    """Where among the arguments the count is, ``None`` where it has a name."""

    def available(self) -> int:
        """Return how many bytes there are to copy, of those that are asked for."""
        status = real.fstat(self.source)
        if not stat.S_ISREG(status.st_mode):
            return self.count
        start = self.start
        if start is None:
            start = real.lseek(self.source, 0, os.SEEK_CUR)
        return max(0, min(self.count, status.st_size - start))

    def growth(self, count: int) -> int:
        """Return how many bytes longer the target would be."""
        if self.offset is None:
            return _growth(self.target, count)
        return max(0, self.offset + count - real.fstat(self.target).st_size)

    def with_count(self, arguments: tuple[Any, ...], count: int) -> list[Any]:
        """Return the arguments of the same call for another count."""
        changed = list(arguments)
        if self.position is not None:
            changed[self.position] = count
        return changed

    def named(self, count: int) -> dict[str, int]:
        """Return the count under its name where it was given so."""
        return {} if self.position is not None else {"count": count}


def _copy_of(
    backwards: bool, arguments: tuple[Any, ...], options: dict[str, Any]
) -> _Copy | None:
    """Read a call; ``None`` for one that the system will refuse, or that sends to no file."""
    names: tuple[str, ...] = ("src", "dst", "count", "offset_src", "offset_dst")
    if backwards:
        names = ("out_fd", "in_fd", "offset", "count")
    given = {**dict(zip(names, arguments, strict=False)), **options}
    source, target = given.get(names[0]), given.get(names[1])
    if backwards:
        source, target = target, source
    count = given.get("count")
    if not isinstance(count, int) or count < 0:
        return None
    if not isinstance(source, int) or not isinstance(target, int):
        return None
    at = names.index("count")
    return _Copy(
        source,
        target,
        count,
        given.get("offset" if backwards else "offset_src"),
        given.get("offset_dst"),
        at if at < len(arguments) else None,
    )


def _allocating(original: Any) -> Any:
    def call(fd: int, offset: int, length: int, /) -> Any:
        gate = _slot.gate
        place = None if gate is None else gate.place_of(fd)
        if gate is None or place is None:
            return original(fd, offset, length)

        def growth() -> int:
            return max(0, offset + length - real.fstat(fd).st_size)

        made = Call(Operation.ALLOCATE, place, "os.posix_fallocate", size=length, growth=growth)
        return gate.handler(made, lambda: original(fd, offset, length))

    call.__name__ = "posix_fallocate"
    return call


def _position(fd: int, size: int) -> int:
    appends: bool = real.system.appends(fd)
    return size if appends else real.lseek(fd, 0, os.SEEK_CUR)


def _os_opening(original: Any) -> Any:
    def open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> Any:
        gate = _slot.gate
        place = None if gate is None else gate.place(path, dir_fd)
        if gate is None or place is None:
            return original(path, flags, mode, dir_fd=dir_fd)
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        creates = bool(flags & os.O_CREAT) and not _exists(path, dir_fd)
        made = Call(Operation.OPEN, place, "os.open", writes=writes, creates=creates)
        made.synchronous = bool(flags & os.O_DSYNC)
        return gate.handler(made, lambda: original(path, flags, mode, dir_fd=dir_fd))

    return open


def _exists(path: Any, dir_fd: int | None = None) -> bool:
    try:
        real.lstat(path, dir_fd=dir_fd)
    except OSError:
        return False
    return True


def _opening(original: Any) -> Any:
    def open(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        return _open_file(original, file, mode, rest, options, "open")

    return open


def _open_file(original: Any, file: Any, mode: str, rest: Any, options: Any, function: str) -> Any:
    gate = _slot.gate
    place = None if gate is None or type(mode) is not str else gate.place(file)
    if gate is None or place is None:
        return original(file, mode, *rest, **options)
    if isinstance(file, int) or options.get("opener") is not None or len(rest) > 5:
        # It is open already, or the opener's own call was the one to stop.
        made = original(file, mode, *rest, **options)
    else:
        writes = any(letter in mode for letter in "wax+")
        creates = any(letter in mode for letter in "wax") and not _exists(file)
        call = Call(Operation.OPEN, place, function, writes=writes, creates=creates)
        made = gate.handler(call, lambda: original(file, mode, *rest, **options))
    raw = raw_of(made)
    if raw is not None and "_gated" not in raw.__dict__:
        _attach(raw, place)
    return made


def _attach(raw: Any, place: str) -> None:
    """Give a raw file methods that ask the gate; those below are the recorder's or the type's."""
    kind, fd, ref, owned = type(raw), raw.fileno(), weakref.ref(raw), raw.closefd
    closed: list[int] = []

    def below(name: str) -> Callable[..., Any]:
        recorded: Callable[..., Any] | None = raw_dict.get(name)
        method = getattr(kind, name)

        def call(*arguments: Any) -> Any:
            owner = ref()
            if owner is not None:
                return method(owner, *arguments)
            # The collector clears references to a file before it flushes and closes it; a buffer
            # around it closes it once more, when its number may be another file's.
            if name == "write":
                if closed:
                    raise ValueError("I/O operation on closed file")
                return real.write(fd, *arguments)
            if name == "close" and owned and not closed:
                closed.append(fd)
                warnings.warn(f"unclosed file {place!r}", ResourceWarning, 2)
                real.close(fd)
            return None

        return recorded if recorded is not None else call

    def asking(name: str, operation: Operation) -> Callable[..., Any]:
        run = below(name)

        def method(*arguments: Any) -> Any:
            gate, owner = _slot.gate, ref()
            if gate is None or owner is None or (owner.closed and operation is Operation.CLOSE):
                return run(*arguments)
            call = Call(operation, place, f"file.{name}", descriptor=fd)
            if operation is Operation.WRITE:
                view = memoryview(arguments[0]).cast("B")
                call.size, call.data = len(view), view
                call.shorten = lambda count: run(view[:count])
                call.growth = lambda: _growth(fd, len(view))
            elif operation is Operation.TRUNCATE and arguments and arguments[0] is not None:
                call.growth = lambda: max(0, arguments[0] - real.fstat(fd).st_size)
            return gate.handler(call, lambda: run(*arguments))

        return method

    raw_dict = raw.__dict__
    methods = {"close": Operation.CLOSE}
    if raw.writable():
        methods |= {"write": Operation.WRITE, "truncate": Operation.TRUNCATE}
    if raw.readable():
        methods |= dict.fromkeys(("read", "readinto", "readall"), Operation.READ)
    made = {name: asking(name, operation) for name, operation in methods.items()}
    raw_dict.update(made, _gated=True)


def _growth(fd: int, count: int) -> int:
    size = real.fstat(fd).st_size
    return max(0, _position(fd, size) + count - size)


def _fileio(original: Any) -> Any:
    """Replace the type: it makes what is below it, and recognises every real one."""

    class Meta(type(original)):  # type: ignore[misc]
        def __call__(cls, file: Any = None, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if cls is FileIO and file is not None:
                return _open_file(original, file, mode, rest, options, "io.FileIO")
            return super().__call__(file, mode, *rest, **options)

        def __instancecheck__(cls, instance: object) -> bool:
            if cls is FileIO:
                return isinstance(instance, real.FileIO)
            return type.__instancecheck__(cls, instance)

        def __subclasscheck__(cls, kind: type) -> bool:
            if cls is FileIO:
                return issubclass(kind, real.FileIO)
            return type.__subclasscheck__(cls, kind)

    class FileIO(original, metaclass=Meta):  # type: ignore[misc]
        __doc__ = real.FileIO.__doc__

    FileIO.__module__, FileIO.__qualname__ = "_io", "FileIO"
    return FileIO


def _table() -> Table:
    path, descriptor = _on_path, _on_descriptor
    functions: dict[str, Callable[[Any], Any]] = {
        "open": _os_opening,
        "write": _writing,
        "pwrite": _writing,
        "writev": _writing_many,
        "pwritev": _writing_many,
        "posix_fallocate": _allocating,
        "sendfile": _copying,
        "copy_file_range": _copying,
        "splice": _copying,
        "read": descriptor(Operation.READ),
        "readv": descriptor(Operation.READ),
        "pread": descriptor(Operation.READ),
        "preadv": descriptor(Operation.READ),
        "fsync": descriptor(Operation.FSYNC),
        "fdatasync": descriptor(Operation.FSYNC),
        "close": descriptor(Operation.CLOSE),
        "truncate": _truncating,
        "ftruncate": _truncating,
        "stat": _looking,
        "lstat": _looking,
        "access": _looking,
        "readlink": _looking,
        "listdir": _listing,
        "scandir": _listing,
        "rename": path(Operation.RENAME, second=True),
        "replace": path(Operation.RENAME, second=True),
        "link": path(Operation.LINK, second=True),
        "symlink": path(Operation.SYMLINK, second=True),
        "unlink": path(Operation.UNLINK),
        "remove": path(Operation.UNLINK),
        "mkdir": path(Operation.MKDIR),
        "rmdir": path(Operation.RMDIR),
        "chmod": path(Operation.ATTRIBUTES),
        "fchmod": path(Operation.ATTRIBUTES),
        "chown": path(Operation.ATTRIBUTES),
        "fchown": path(Operation.ATTRIBUTES),
        "lchown": path(Operation.ATTRIBUTES),
        "utime": path(Operation.ATTRIBUTES),
        "setxattr": path(Operation.ATTRIBUTES),
        "removexattr": path(Operation.ATTRIBUTES),
    }
    table: dict[tuple[Any, str], Callable[[Any], Any]] = {}
    for name, factory in functions.items():
        for module in (os, posix):
            table[module, name] = factory
    for module in (builtins, io, _io):
        table[module, "open"] = _opening
    for module in (io, _io):
        table[module, "FileIO"] = _fileio
    for name in ("flock", "lockf"):
        table[fcntl, name] = descriptor(Operation.LOCK)
    return table


_made: list[Interposition] = []


def _above() -> Interposition:
    if not _made:
        _made.append(Interposition(_table(), layer=2, rebind=True))
    return _made[0]


class _Below:
    """Makes the syncs that the recorder calls fail on demand, until the last user has gone."""

    users = 0

    def __enter__(self) -> None:
        _Below.users += 1
        real.system.fsync = _fsync_below
        if _fdatasync is not None:
            real.system.fdatasync = _fdatasync_below

    def __exit__(self, *_: object) -> None:
        _Below.users -= 1
        if _Below.users:
            return
        real.system.fsync = _fsync
        if _fdatasync is not None:
            real.system.fdatasync = _fdatasync


# Globals of this package are the one place where the recorder does not look for bound functions.
_fsync = real.system.fsync
_fdatasync = getattr(real.system, "fdatasync", None)


def _meet() -> None:
    error = getattr(_failing, "error", None)
    if error is not None:
        _failing.error = None
        raise error


def _fsync_below(fd: Any) -> None:
    _meet()
    _fsync(fd)


def _fdatasync_below(fd: Any) -> None:
    _meet()
    assert _fdatasync is not None  # else it would not have been put in place
    _fdatasync(fd)
