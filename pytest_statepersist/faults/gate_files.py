"""Files of Python that ask the gate before each of their calls, and what opens them.

Belongs here: `open`, `io.FileIO` and the methods of raw files. Files stay the interpreter's own
objects: raw files get methods of the instance, which refer to the file weakly, as the recorder's
do.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

from pytest_statepersist.faults.calls import Call, Operation
from pytest_statepersist.faults.gate import slot
from pytest_statepersist.faults.gate_calls import exists, growth_of
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.streams import raw_of

__all__ = ["fileio", "opening"]


def opening(original: Any) -> Any:
    """Replace `open`, under each of its names."""
    def open(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        return _open_file(original, file, mode, rest, options, "open")

    return open


def _open_file(original: Any, file: Any, mode: str, rest: Any, options: Any, function: str) -> Any:
    gate = slot.gate
    place = None if gate is None or type(mode) is not str else gate.place(file)
    if gate is None or place is None:
        return original(file, mode, *rest, **options)
    if isinstance(file, int) or options.get("opener") is not None or len(rest) > 5:
        # It is open already, or the opener's own call was the one to stop.
        made = original(file, mode, *rest, **options)
    else:
        writes = any(letter in mode for letter in "wax+")
        creates = any(letter in mode for letter in "wax") and not exists(file)
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
            gate, owner = slot.gate, ref()
            if gate is None or owner is None or (owner.closed and operation is Operation.CLOSE):
                return run(*arguments)
            call = Call(operation, place, f"file.{name}", descriptor=fd)
            if operation is Operation.WRITE:
                view = memoryview(arguments[0]).cast("B")
                call.size, call.data = len(view), view
                call.shorten = lambda count: run(view[:count])
                call.growth = lambda: growth_of(fd, len(view))
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


def fileio(original: Any) -> Any:
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
