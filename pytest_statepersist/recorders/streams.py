"""Python's file objects: `open` and `io.FileIO`.

Belongs here: seeing bytes when they reach the raw layer; what is still in a buffer is in user
space and lost in a crash. Rules:

1. Files are the interpreter's own objects. A recorded raw file gets ``write``, ``truncate`` and
   ``close`` as attributes of the instance, which buffered layers in C find by name; so files that
   were opened before the recording are seen as well, and every type is as it always was.
2. The attributes refer to the raw file weakly: a file that nobody holds is closed at once.
3. Files opened for reading only are not touched.
4. What makes or cuts a file directly in the directory, as most saves do, goes a short way. It asks
   all that the long way asks, and what is in the least unexpected goes that one.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import PosixPath
from threading import get_ident
from types import FrameType
from typing import Any, TypeAlias

from pytest_statepersist.core.operations import OUTSIDE, ROOT
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.rawfile import ATTRIBUTES, RawFile
from pytest_statepersist.recorders.session import (
    Description,
    Session,
    Slot,
    descriptor_path,
)

__all__ = [
    "Patched",
    "attach",
    "detach",
    "make_fileio",
    "make_open",
    "patch_subclasses",
    "raw_of",
    "restore_subclasses",
]

Patched: TypeAlias = list[tuple[type, Any, Any]]
"""Classes, what they had themselves as ``__init__`` (``None`` for nothing), and what they got."""

_READING = frozenset({"r", "rb", "rt", "br", "tr", "U"})
_MAKING = frozenset({"w", "wb", "wt", "x", "xb", "xt"})
_getframe, _Buffered, _open = sys._getframe, io.BufferedWriter, real.open
_new, _ref, _FileIO, _get_ident = object.__new__, weakref.ref, real.FileIO, get_ident
_warns = bool(sys.flags.warn_default_encoding)


def raw_of(file: Any) -> Any:
    """Return the raw file below a text or buffered layer, ``None`` if there is none."""
    for name in ("buffer", "raw"):
        file = getattr(file, name, file)
    return file if isinstance(file, real.FileIO) else None


def make_open(slot: Slot) -> Callable[..., Any]:
    """Return the replacement of `open`."""

    def open(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Callable[[str, int], int] | None = None,
    ) -> Any:
        session = slot.session
        if session is None or mode in _READING or type(mode) is not str:
            return real.open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if _warns and encoding is None and "b" not in mode:
            encoding = io.text_encoding(None, 2)
        frame = _getframe(1)
        # A path becomes text once: `open` would ask it for the same text, and gives it out.
        text = file.__str__() if type(file) is PosixPath else file
        if mode in _MAKING and type(text) is str and opener is None:
            known = session.here
            name = known[text] if text in known else session.name_here(text)
            if name is not None:
                turn = session.turn
                if _get_ident() == turn.owner:
                    outer = turn.inside
                    turn.inside = True
                    try:
                        if turn.owner is not None:
                            try:
                                made = _open(
                                    text, mode, buffering, encoding, errors, newline, closefd
                                )
                            except BaseException:
                                _after_failure(session, text, mode, (ROOT, name))
                                raise
                            raw = made.raw if type(made) is _Buffered else raw_of(made)
                            fd = raw.fileno()
                            found = session.opened_here(fd, text, name, "w" in mode, frame)
                            if found is not None:
                                attach(slot, session, raw, fd, found, True)
                            return made
                    finally:
                        turn.inside = outer
        rest = (mode, buffering, encoding, errors, newline, closefd, opener)
        return _opening(slot, session, file, mode, opener, lambda: real.open(file, *rest), frame)

    return open


def make_fileio(slot: Slot) -> type:
    """Return the replacement of `io.FileIO`: a type that makes and recognises the real ones."""

    class Meta(type(real.FileIO)):  # type: ignore[misc]
        def __call__(cls, file: Any = None, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if file is None and "file" not in options:
                return type.__call__(real.FileIO if cls is FileIO else cls, *rest, **options)
            make = real.FileIO if cls is FileIO else super().__call__
            session = slot.session
            if session is None or mode in _READING:
                return make(file, mode, *rest, **options)
            opener = options.get("opener", rest[1] if len(rest) > 1 else None)
            call = lambda: make(file, mode, *rest, **options)  # noqa: E731
            return _opening(slot, session, file, mode, opener, call)

        def __instancecheck__(cls, instance: object) -> bool:
            if cls is FileIO:
                return isinstance(instance, real.FileIO)
            return type.__instancecheck__(cls, instance)

        def __subclasscheck__(cls, kind: type) -> bool:
            if cls is FileIO:
                return issubclass(kind, real.FileIO)
            return type.__subclasscheck__(cls, kind)

    class FileIO(real.FileIO, metaclass=Meta):
        __doc__ = real.FileIO.__doc__

    FileIO.__module__, FileIO.__qualname__ = "_io", "FileIO"
    return FileIO


def patch_subclasses(slot: Slot, ours: type, patched: Patched) -> None:
    """Make the subject's own subclasses of the real FileIO recorded, until `restore_subclasses`.

    A class that was made before cannot be given another base, but another ``__init__``. What was
    there is added to ``patched``.
    """
    for kind in real.FileIO.__subclasses__():
        if kind is not ours:
            own = vars(kind).get("__init__")
            recorded = _recorded_init(slot, own or real.FileIO.__init__)
            patched.append((kind, own, recorded))
            setattr(kind, "__init__", recorded)  # noqa: B010


def restore_subclasses(patched: Patched) -> None:
    """Put back what `patch_subclasses` replaced; called twice it does nothing."""
    while patched:
        kind, own, recorded = patched[-1]
        if vars(kind).get("__init__") is recorded:
            if own is None:
                delattr(kind, "__init__")
            else:
                setattr(kind, "__init__", own)  # noqa: B010
        patched.pop()


def _recorded_init(slot: Slot, original: Any) -> Any:
    def __init__(self: Any, file: Any, mode: str = "r", *rest: Any, **options: Any) -> None:
        session = slot.session
        if session is None or mode in _READING:
            original(self, file, mode, *rest, **options)
            return

        def call() -> Any:
            original(self, file, mode, *rest, **options)
            return self

        _opening(slot, session, file, mode, options.get("opener"), call)

    return __init__


def _opening(
    slot: Slot,
    session: Session,
    file: Any,
    mode: str,
    opener: Any,
    call: Callable[[], Any],
    frame: FrameType | None = None,
) -> Any:
    if isinstance(file, int):
        return _take_over(slot, session, call())
    place = session.place(file)
    if opener is None and place[0] == OUTSIDE and _may_block(file):
        return call()
    with session.lock:
        try:
            made = call()
        except BaseException:
            # The file may have been made or cut although the call failed later (an unknown
            # encoding, a wrong buffer size).
            _after_failure(session, file, mode, place)
            raise
        raw = raw_of(made)
        if raw is None:
            return made
        fd = raw.fileno()
        if opener is not None and fd in session.files:
            found: Description | None = session.files[fd]
        else:
            if opener is not None:  # what it opened need not be what it was asked for
                file = os.path.realpath(descriptor_path(fd))
                place = session.place(file)
            found = session.opened(fd, file, place=place, truncated="w" in mode, frame=frame)
        if found is not None:
            counted = opener is None and "+" not in mode and "a" not in mode
            attach(slot, session, raw, fd, found, counted and type(raw) is real.FileIO)
        return made


def _take_over(slot: Slot, session: Session, made: Any) -> Any:
    """A file object on a descriptor that is open already."""
    raw = raw_of(made)
    if raw is not None:
        with session.lock:
            found = session.description(raw.fileno())
            if found is not None:
                attach(slot, session, raw, raw.fileno(), found)
    return made


def _may_block(file: Any) -> bool:
    try:
        return not stat.S_ISREG(real.stat(file).st_mode)
    except OSError:
        return False


def _after_failure(session: Session, file: Any, mode: str, place: tuple[int, str]) -> None:
    if not any(letter in mode for letter in "wax"):
        return
    number = session.builder.entry(*place)
    try:
        status = real.stat(file)
    except OSError:
        return
    if not stat.S_ISREG(status.st_mode):
        return
    identity = (status.st_dev, status.st_ino)
    if number is None and place[0] != OUTSIDE and session.builder.find(identity) is None:
        mode_bits = stat.S_IMODE(status.st_mode)
        at = session.moment()
        number = session.builder.create(*place, at, mode=mode_bits, identity=identity)
    elif number is not None and "w" in mode and status.st_size == 0:
        session.builder.truncate(number, 0, session.moment())
    if number is not None:
        session.builder.opened(number)
        session.builder.close(number, session.moment(), written=False)


def attach(
    slot: Slot,
    session: Session,
    raw: Any,
    fd: int,
    found: Description,
    counted: bool = False,
) -> None:
    """Give a raw file the attributes that record it; with ``counted`` its position is counted."""
    ref = _ref(raw)
    made = _new(RawFile)
    made.slot, made.session, made.raw, made.fd, made.found = slot, session, ref, fd, found
    made.closes, made.plain = raw.closefd, type(raw) is _FileIO
    own = raw.__dict__
    own["write"] = made.write if made.plain else made.write_slowly
    own["truncate"], own["close"] = made.truncate, made.close
    if counted:
        found.position = 0
        own["seek"], own["fileno"] = made.seek, made.fileno
    session.attached[fd] = ref


def detach(raw: Any) -> None:
    """Take the attributes away again."""
    for name in ATTRIBUTES:
        try:
            delattr(raw, name)
        except AttributeError:
            pass


def living(objects: list[Any]) -> Iterator[Any]:
    """Yield the raw files among all objects of the process."""
    for candidate in objects:
        if issubclass(type(candidate), real.FileIO):
            yield candidate
