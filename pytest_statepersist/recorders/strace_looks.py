"""Looking at mapped files from inside of the process that strace records.

Belongs here: the moments at which Python code can look (a flush, a sync, a store through the map's
own methods, its end, an acknowledgement), and marking them in strace's stream. What a look tells is
`strace_maps`'. Rules:

1. A look reads the file, which shows every store into any map of it, whoever made it.
2. Around a sync there are two looks: what both saw is what the sync found.
3. The stores of a map's own methods are between two looks at their blocks, so that their order is
   known; those through a buffer of it (memoryview, NumPy) are seen at the next look.
"""

from __future__ import annotations

import mmap as mmap_module
import os
import posix
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pytest_statepersist.core.tree import BLOCK
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.callsite import CallSites
from pytest_statepersist.recorders.interpose import Interposition
from pytest_statepersist.recorders.maps import maps_for_writing
from pytest_statepersist.recorders.strace_maps import Look, blocks_of

__all__ = ["Looks", "Seen"]

_LIMIT = 64 << 20


@dataclass(frozen=True, slots=True)
class Seen:
    """A look at the file that had this path; ``None`` for one that is too large to read."""

    path: str
    look: Look | None


class _Slot:
    looks: Looks | None = None


_slot = _Slot()


def _forget_in_child() -> None:
    _slot.looks = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


class Looks:
    """The looks of one recording; ``mark`` puts a word into strace's stream.

    ``unseen`` hides from it what this class does itself.
    """

    def __init__(
        self, mark: Callable[[str], None], unseen: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.seen: list[Seen] = []
        self._mark, self._unseen = mark, unseen
        self._files: dict[int, int] = {}
        """Descriptors of our own by the number of the real file."""
        self._last: dict[int, dict[int, bytes]] = {}
        """The last whole look at each, so that equal blocks are kept only once."""
        self._lock = threading.RLock()
        self._sites = CallSites()
        self._interposition = Interposition(_TABLE, layer=2, rebind=True)

    def start(self) -> None:
        """Begin to look at what is mapped from now on."""
        self._interposition.install()
        _slot.looks = self

    def stop(self) -> None:
        """Look no more."""
        _slot.looks = None
        self._interposition.uninstall()
        for descriptor in self._files.values():
            with suppress(OSError):
                real.close(descriptor)
        self._files.clear()

    def add(self, fileno: int) -> None:
        """Look at the file of a descriptor from now on."""
        with self._lock:
            status = real.fstat(fileno)
            if status.st_ino not in self._files:
                with self._unseen():
                    path = f"/proc/self/fd/{fileno}"
                    self._files[status.st_ino] = real.os_open(path, os.O_RDONLY | os.O_CLOEXEC)

    def look(self) -> None:
        """Look at every mapped file, as a whole."""
        with self._lock:
            for descriptor in self._files.values():
                self._see(descriptor, None)

    @contextmanager
    def syncing(self) -> Iterator[None]:
        """Look before and after a sync."""
        if not self._files:
            yield
            return
        with self._lock:
            self.look()
            self._mark("syncing")
            try:
                yield
            finally:
                self._mark("synced")
                self.look()

    @contextmanager
    def storing(self, mapping: Any, begin: int, end: int) -> Iterator[None]:
        """Look at some blocks before and after a store of the map's own methods."""
        known = getattr(mapping, "_statepersist_place", None)
        if known is None or begin >= end:
            yield
            return
        number, offset = known
        with self._lock:
            descriptor = self._files.get(number)
            first, last = (offset + begin) // BLOCK, (offset + end - 1) // BLOCK
            blocks = range(first, last + 1)
            if descriptor is not None:
                self._see(descriptor, blocks)
            try:
                yield
            finally:
                if descriptor is not None:
                    self._see(descriptor, blocks, stored=True)

    def _see(self, descriptor: int, blocks: range | None, *, stored: bool = False) -> None:
        size = real.fstat(descriptor).st_size
        path = real.readlink(f"/proc/self/fd/{descriptor}")
        look: Look | None = None
        if blocks is not None:
            found = {
                block: real.pread(descriptor, BLOCK, block * BLOCK)
                for block in blocks
                if block * BLOCK < size
            }
            look = Look(size, found, self._sites.site(), stored)
        elif size <= _LIMIT:
            last = self._last.get(descriptor, {})
            now = blocks_of(_whole(descriptor, size))
            kept = {n: last[n] if last.get(n) == block else block for n, block in now.items()}
            self._last[descriptor] = kept
            look = Look(size, kept, self._sites.site())
        self.seen.append(Seen(path, look))
        self._mark(f"look/{len(self.seen) - 1}")


def _whole(descriptor: int, size: int) -> bytes:
    found = bytearray()
    while len(found) < size and (piece := real.pread(descriptor, size - len(found), len(found))):
        found += piece
    return bytes(found)


def _mmap(original: Any) -> Any:
    class Meta(type(original)):  # type: ignore[misc]
        def __instancecheck__(cls, instance: object) -> bool:
            if cls is mmap:
                return isinstance(instance, original)
            return type.__instancecheck__(cls, instance)

    class mmap(original, metaclass=Meta):  # type: ignore[misc]
        __doc__ = original.__doc__
        _statepersist_place: tuple[int, int] | None = None

        def __new__(cls, fileno: int, length: int, *args: Any, **options: Any) -> Any:
            looks = _slot.looks
            watched = looks is not None and fileno != -1 and maps_for_writing(args, options)
            if looks is not None and watched:
                looks.add(fileno)
            made = super().__new__(cls, fileno, length, *args, **options)
            if looks is not None and watched:
                offset = args[3] if len(args) > 3 else options.get("offset", 0)
                made._statepersist_place = real.fstat(fileno).st_ino, offset
                looks.look()
            return made

        def flush(self, *args: Any) -> Any:
            looks = _slot.looks
            if looks is None:
                return super().flush(*args)
            with looks.syncing():
                return super().flush(*args)

        def __setitem__(self, index: Any, value: Any) -> None:
            looks = _slot.looks
            if looks is None:
                super().__setitem__(index, value)
                return
            if isinstance(index, slice):
                touched = range(*index.indices(len(self)))
                begin, end = (min(touched), max(touched) + 1) if touched else (0, 0)
            else:
                begin = index if index >= 0 else len(self) + index
                end = begin + 1
            with looks.storing(self, begin, end):
                super().__setitem__(index, value)

        def write(self, data: Any) -> int:
            looks = _slot.looks
            if looks is None:
                return int(super().write(data))
            with looks.storing(self, self.tell(), self.tell() + memoryview(data).nbytes):
                return int(super().write(data))

        def write_byte(self, byte: int) -> None:
            looks = _slot.looks
            if looks is None:
                super().write_byte(byte)
                return
            with looks.storing(self, self.tell(), self.tell() + 1):
                super().write_byte(byte)

        def move(self, dest: int, src: int, count: int) -> None:
            looks = _slot.looks
            if looks is None:
                super().move(dest, src, count)
                return
            with looks.storing(self, dest, dest + count):
                super().move(dest, src, count)

        def resize(self, newsize: int) -> None:
            if _slot.looks is not None:
                _slot.looks.look()
            super().resize(newsize)

        def close(self) -> None:
            if _slot.looks is not None and not self.closed:
                _slot.looks.look()
            super().close()

        def __exit__(self, *_: object) -> None:
            self.close()

        def __del__(self) -> None:
            if _slot.looks is not None and not self.closed:
                _slot.looks.look()

    mmap.__module__, mmap.__qualname__ = "mmap", "mmap"
    return mmap


def _syncing(original: Any) -> Any:
    def sync(*arguments: Any) -> Any:
        looks = _slot.looks
        if looks is None:
            return original(*arguments)
        with looks.syncing():
            return original(*arguments)

    sync.__name__ = getattr(original, "__name__", "sync")
    return sync


_TABLE = {(mmap_module, "mmap"): _mmap} | {
    (module, name): _syncing for module in (os, posix) for name in ("fsync", "fdatasync", "sync")
}
