"""The functions of `os` and `fcntl` that ask the gate before they work.

Belongs here: a factory for each shape of arguments, which gets the original and returns what stands
in its place. `open` and files are in `gate_files`. Without a gate, and for what lies outside the
directory, each only passes through.
"""

from __future__ import annotations

import os
import pathlib
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from pytest_statepersist.faults.calls import Call, Operation
from pytest_statepersist.faults.gate import Gate, slot
from pytest_statepersist.recorders import real

__all__ = [
    "allocating",
    "copying",
    "exists",
    "growth_of",
    "listing",
    "looking",
    "on_descriptor",
    "on_path",
    "os_opening",
    "truncating",
    "writing",
    "writing_many",
]


def on_path(operation: Operation, *, second: bool = False) -> Callable[[Any], Any]:
    """Replace a function whose first argument (or either of two) is a path."""

    def factory(original: Any) -> Any:
        name = getattr(original, "__name__", operation.value)

        def call(*arguments: Any, **options: Any) -> Any:
            gate = slot.gate
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


def listing(original: Any) -> Any:
    """Replace listdir and scandir, whose path is the current directory unless it is given."""
    name = original.__name__

    def call(path: Any = ".") -> Any:
        gate = slot.gate
        place = None if gate is None else gate.place("." if path is None else path)
        if gate is None or place is None:
            return original(path)
        return gate.handler(Call(Operation.LIST, place, f"os.{name}"), lambda: original(path))

    call.__name__ = name
    return call


def looking(original: Any) -> Any:
    """Replace stat, lstat and readlink, and access, which answers no where it could not look."""
    name = original.__name__
    operation = Operation.READ if name == "readlink" else Operation.STAT

    def call(path: Any, *arguments: Any, **options: Any) -> Any:
        gate = slot.gate
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


def truncating(original: Any) -> Any:
    """Replace truncate and ftruncate: (path or descriptor, length)."""
    name = getattr(original, "__name__", "truncate")

    def call(path: Any, length: int) -> Any:
        gate = slot.gate
        place = None if gate is None else gate.place(path)
        if gate is None or place is None:
            return original(path, length)

        def growth() -> int:
            return max(0, length - real.stat(path).st_size)

        made = Call(Operation.TRUNCATE, place, f"os.{name}", size=length, growth=growth)
        return gate.handler(made, lambda: original(path, length))

    call.__name__ = name
    return call


def on_descriptor(operation: Operation, *, position: int = 0) -> Callable[[Any], Any]:
    """Replace a function that gets a descriptor at a position of its arguments."""

    def factory(original: Any) -> Any:
        name = getattr(original, "__name__", operation.value)

        def call(*arguments: Any, **options: Any) -> Any:
            gate = slot.gate
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


def writing(original: Any) -> Any:
    """Replace write and pwrite: (descriptor, bytes) and (descriptor, bytes, offset)."""
    name = original.__name__

    def call(fd: int, data: Any, *offset: int) -> Any:
        gate = slot.gate
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


def writing_many(original: Any) -> Any:
    """Replace writev and pwritev: (descriptor, buffers) and (descriptor, buffers, offset …)."""
    name = original.__name__

    def call(fd: int, buffers: Any, *rest: int) -> Any:
        gate = slot.gate
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


def copying(original: Any) -> Any:
    """Replace sendfile, copy_file_range and splice: the system copies from file to file."""
    name, backwards = original.__name__, original.__name__ == "sendfile"

    def call(*arguments: Any, **options: Any) -> Any:
        gate = slot.gate
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
            return growth_of(self.target, count)
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


def allocating(original: Any) -> Any:
    """Replace posix_fallocate: (descriptor, offset, length)."""
    def call(fd: int, offset: int, length: int, /) -> Any:
        gate = slot.gate
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


def os_opening(original: Any) -> Any:
    """Replace os.open, which says by its flags what it is for."""
    def open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> Any:
        gate = slot.gate
        place = None if gate is None else gate.place(path, dir_fd)
        if gate is None or place is None:
            return original(path, flags, mode, dir_fd=dir_fd)
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        creates = bool(flags & os.O_CREAT) and not exists(path, dir_fd)
        made = Call(Operation.OPEN, place, "os.open", writes=writes, creates=creates)
        made.synchronous = bool(flags & os.O_DSYNC)
        return gate.handler(made, lambda: original(path, flags, mode, dir_fd=dir_fd))

    return open


def exists(path: Any, dir_fd: int | None = None) -> bool:
    """Say whether there is something under a name, a dangling link included."""
    try:
        real.lstat(path, dir_fd=dir_fd)
    except OSError:
        return False
    return True


def growth_of(fd: int, count: int) -> int:
    """Return how many bytes longer a file is after a write where it stands."""
    size = real.fstat(fd).st_size
    return max(0, _position(fd, size) + count - size)
