"""Python's file objects: `open` and `io.FileIO`.

Belongs here: seeing bytes when they reach the raw layer; what is still in a buffer is in user
space and lost in a crash. Rules:

1. Files are the interpreter's own objects. A recorded raw file gets ``write``, ``truncate`` and
   ``close`` as attributes of the instance, which buffered layers in C find by name; so files that
   were opened before the recording are seen as well, and every type is as it always was.
2. The attributes refer to the raw file weakly: a file that nobody holds is closed at once.
3. Files opened for reading only are not touched.
4. Where a write goes is asked of the kernel, unless nobody but the file object can have moved the
   position: the recording saw it being opened, it cannot be read, it does not append, it was never
   sought in, and nobody was given its descriptor's number. Then it is counted, and the count is
   compared with the kernel's when the file is closed.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from threading import get_ident
from types import FrameType
from typing import Any, TypeAlias

from pytest_statepersist.core.operations import OUTSIDE, Write
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.session import (
    DRAIN,
    Description,
    Session,
    Slot,
    descriptor_path,
)

__all__ = [
    "Patched",
    "attach",
    "compare_position",
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
_lseek, _getframe, _get_ident = real.lseek, sys._getframe, get_ident
_ATTACHED = ("write", "truncate", "close", "seek", "fileno")


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
        rest = (mode, buffering, encoding, errors, newline, closefd, opener)
        if session is None or mode in _READING or type(mode) is not str:
            return real.open(file, *rest)
        if encoding is None and "b" not in mode and sys.flags.warn_default_encoding:
            rest = (*rest[:2], io.text_encoding(None, 2), *rest[3:])
        frame = _getframe(1)
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
    session.acquire()
    try:
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
            attach(slot, session, raw, fd, found)
            if opener is None and "+" not in mode and "a" not in mode and type(raw) is real.FileIO:
                _count(raw, found)
        return made
    finally:
        session.release()


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


def attach(slot: Slot, session: Session, raw: Any, fd: int, found: Description) -> None:
    """Give a raw file the attributes that record it."""
    kind = type(raw)
    plain = kind is real.FileIO
    raw_write, raw_truncate, raw_close = kind.write, kind.truncate, kind.close
    ref: Callable[[], Any] = weakref.ref(raw)
    closes = bool(raw.closefd)
    lock, wrote, now = session.lock, session.wrote, session.now
    acquire, release = session.acquire, session.release
    sites, tasks, log = session.sites, session.tasks, session.log
    node, number, durability = found.node, found.inode, found.durability
    previous = b""
    last_code, last_line, site = None, -1, None

    def write(data: Any, /) -> int | None:
        """Write and record. The one replacement that is written for speed alone."""
        nonlocal previous, last_code, last_line, site
        raw = ref()
        acquire()
        try:
            if raw is None or not plain or slot.session is not session:
                return _write_otherwise(slot, session, raw, raw_write, fd, found, data)
            count: int | None = raw_write(raw, data)
            if not count:
                return count
            frame = _getframe(1)
            code, line = frame.f_code, frame.f_lasti
            if code is not last_code or line != last_line:
                last_code, last_line, site = code, line, sites.get((id(code), line))
            task = tasks.get(_get_ident())
            kind = type(data)
            if (
                site is None
                or task is None
                or not node.inside
                or session.before_moment is not None
                or (kind is not bytes and kind is not memoryview)
                or count != (len(data) if kind is bytes else data.nbytes)
            ):
                last_code = None
                wrote(fd, found, data, count)
                return count
            if kind is memoryview:
                # Kept once where the same bytes come again: memory that is touched for the first
                # time costs more than all the rest here.
                data = data.tobytes()
                if data == previous:
                    data = previous
                previous = data
            end = found.position
            if end < 0:
                end = _lseek(fd, 0, 1)
            else:
                end += count
                found.position = end
            at = now()
            found.written = True
            node.changed = at
            if end > node.size:
                node.size = end
            log.append(
                (Write, node.path, site[0], at, task, number, end - count, data, durability)
            )
            if not len(log) % DRAIN:
                session.drain()
            return count
        finally:
            release()

    def truncate(size: int | None = None, /) -> int:
        with lock:
            result: int = raw_truncate(ref(), size)
            if slot.session is session:
                session.builder.truncate(found.inode, result, session.moment())
                found.written = True
            return result

    def close() -> None:
        raw = ref()
        acquire()
        try:
            open_before = raw is None or not raw.closed
            if open_before and found.position >= 0 and slot.session is session:
                compare_position(session, fd, found)
            try:
                if raw is not None:
                    raw_close(raw)
                elif closes:
                    warnings.warn(f"unclosed file {found.node.path!r}", ResourceWarning, 2)
                    real.close(fd)
            finally:
                ended = open_before and closes and slot.session is session
                if ended and session.files.get(fd) is found:
                    session.closed(fd, _getframe(1))
        finally:
            release()

    raw.write, raw.truncate, raw.close = write, truncate, close
    session.attached[fd] = ref


def _count(raw: Any, found: Description) -> None:
    """Count the position of a new file, until somebody else may move it."""
    ref: Callable[[], Any] = weakref.ref(raw)
    found.position = 0

    def seek(offset: int, whence: int = 0, /) -> int:
        found.position = -1
        result: int = real.FileIO.seek(ref(), offset, whence)
        return result

    def fileno() -> int:
        found.position = -1
        result: int = real.FileIO.fileno(ref())
        return result

    raw.seek, raw.fileno = seek, fileno


def compare_position(session: Session, fd: int, found: Description) -> None:
    """Doubt the recording where a counted position is not the kernel's: it was moved unseen."""
    counted, found.position = found.position, -1
    try:
        actual = real.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return  # the descriptor was closed beneath the object
    if actual != counted:
        session.moved(found)


def _write_otherwise(
    slot: Slot, session: Session, raw: Any, call: Any, fd: int, found: Description, data: Any
) -> int | None:
    """Write where the object is gone, of a subclass, or no longer recorded."""
    plain = raw is None or type(raw) is real.FileIO
    start = 0 if plain else real.lseek(fd, 0, os.SEEK_CUR)
    # Without the object (in a cycle that is being collected) the descriptor is still there.
    count: int | None = real.write(fd, data) if raw is None else call(raw, data)
    if count and slot.session is session:
        if plain:
            session.wrote(fd, found, data, count)
        else:
            _wrote_somehow(session, fd, found, start)
    return count


def _wrote_somehow(session: Session, fd: int, found: Description, start: int) -> None:
    """A subclass wrote what it liked: read it back."""
    end = real.lseek(fd, 0, os.SEEK_CUR)
    if end > start:
        session.wrote_at(found, start, session.read_back(fd, start, end - start))


def detach(raw: Any) -> None:
    """Take the attributes away again."""
    for name in _ATTACHED:
        try:
            delattr(raw, name)
        except AttributeError:
            pass


def living(objects: list[Any]) -> Iterator[Any]:
    """Yield the raw files among all objects of the process."""
    for candidate in objects:
        if issubclass(type(candidate), real.FileIO):
            yield candidate
