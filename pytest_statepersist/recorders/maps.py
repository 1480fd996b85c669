"""`mmap.mmap` on watched files.

Belongs here: stores into a mapping, which are no calls. Rules:

1. Stores through the object's own methods are recorded as the writes that they are.
2. Stores through a buffer of it (memoryview, NumPy) are found by comparing with what was there: at
   every recorded call, before a flush and at the end. They are recorded where they are found. Of
   several that are found together nobody saw the order, and they say so (``unordered``); a version
   of a word that came and went between two calls is not seen.
3. A flush is a sync of its range, and of nothing else.
"""

from __future__ import annotations

import mmap as mmap_module
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytest_statepersist.core.mixtures import changed_words
from pytest_statepersist.core.tree import BLOCK
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.session import Session, Slot

__all__ = ["Mappings", "make_mmap", "maps_for_writing"]

_LIMIT = 256 << 20
_mmap = mmap_module.mmap
_SHARED = getattr(mmap_module, "MAP_SHARED", 1)
_WRITE = getattr(mmap_module, "PROT_WRITE", 2)


@dataclass(slots=True, eq=False)
class _Mapping:
    object: Callable[[], Any]
    inode: int
    offset: int
    last: bytearray


class Mappings:
    """The writable shared mappings of watched files in one recording."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._mappings: list[_Mapping] = []
        self.found: set[int] = set()
        """Files with stores that were found, not seen: others may have come and gone between."""

    def add(self, mapping: Any, fileno: int, offset: int) -> None:
        """Watch a new mapping of a descriptor's file."""
        session = self._session
        status = real.fstat(fileno)
        number = session.builder.find((status.st_dev, status.st_ino))
        if number is None:
            return
        inode = session.builder[number]
        size = len(mapping)
        if size > _LIMIT:
            session.unseen(inode.path, f"is mapped ({size} bytes: too many to compare) and written")
            return
        inode.was_opened = True
        last = bytearray(memoryview(mapping))
        self._mappings.append(_Mapping(weakref.ref(mapping), number, offset, last))
        session.before_moment = self.sample
        session.turn.end()  # the quick way asks nobody before its moment

    def sample(self) -> None:
        """Record what was stored into any mapping since the last time."""
        changed: list[tuple[_Mapping, int, bytes, bytes]] = []
        for mapping in list(self._mappings):
            found = mapping.object()
            if found is None or found.closed:
                self._mappings.remove(mapping)
            else:
                changed += self._compare(mapping, found, 0, len(mapping.last))
        several = len(changed) > 1
        self.found.update(mapping.inode for mapping, _, _, _ in changed)
        for mapping, start, old, new in changed:
            unordered = several or len(changed_words(old, new)) > 1
            self._write(mapping, start, new, unordered=unordered)
        if not self._mappings:
            self._session.before_moment = None

    def stored(self, mapping: Any, start: int, stop: int) -> None:
        """Record what the object's own methods stored in a range."""
        for known in self._mappings:
            if known.object() is mapping:
                for _, at, _, new in self._compare(known, mapping, start, stop):
                    self._write(known, at, new)

    def flushed(self, mapping: Any, offset: int, size: int) -> None:
        """Record a sync of a range of the mapping."""
        for known in self._mappings:
            if known.object() is mapping:
                at = self._session.callsites.moment()
                start = known.offset + offset
                self._session.builder.sync_range(known.inode, start, size, at)

    def resized(self, mapping: Any) -> None:
        """Record that the file was given the size of the mapping."""
        for known in self._mappings:
            if known.object() is mapping:
                at = self._session.callsites.moment()
                size = len(mapping)
                self._session.builder.truncate(known.inode, known.offset + size, at)
                known.last = bytearray(memoryview(mapping))

    def _write(
        self, mapping: _Mapping, start: int, data: bytes, *, unordered: bool = False
    ) -> None:
        at = self._session.callsites.moment()
        offset = mapping.offset + start
        self._session.builder.write(mapping.inode, offset, data, at, unordered=unordered)

    def _compare(
        self, mapping: _Mapping, found: Any, start: int, stop: int
    ) -> list[tuple[_Mapping, int, bytes, bytes]]:
        """Return what is new in a range, block by block: where, the old bytes, the new ones."""
        changed: list[tuple[_Mapping, int, bytes, bytes]] = []
        # Behind the end of a file that was cut there is only SIGBUS.
        stop = min(stop, len(mapping.last), max(_mmap.size(found) - mapping.offset, 0))
        with memoryview(found) as view, memoryview(mapping.last) as last:
            if view[start:stop] == last[start:stop]:
                self._session.builder[mapping.inode].changed = self._session.callsites.now()
                return changed
            while start < stop:
                end = min((start // BLOCK + 1) * BLOCK, stop)
                if view[start:end] != last[start:end]:
                    data = view[start:end].tobytes()
                    changed.append((mapping, start, last[start:end].tobytes(), data))
                    last[start:end] = data
                start = end
        return changed


def make_mmap(slot: Slot, mappings: Any) -> type:
    """Return the replacement of `mmap.mmap`; ``mappings()`` gives those of the recording."""

    class Meta(type(_mmap)):  # type: ignore[misc]
        def __instancecheck__(cls, instance: object) -> bool:
            return (
                isinstance(instance, _mmap)
                if cls is mmap
                else type.__instancecheck__(cls, instance)
            )

    class mmap(_mmap, metaclass=Meta):
        __doc__ = _mmap.__doc__

        def __new__(cls, fileno: int, length: int, *args: Any, **options: Any) -> Any:
            made = super().__new__(cls, fileno, length, *args, **options)
            session = slot.session
            if session is not None and fileno != -1 and maps_for_writing(args, options):
                with session.lock:
                    offset = args[3] if len(args) > 3 else options.get("offset", 0)
                    mappings().add(made, fileno, offset)
            return made

        def flush(self, *args: Any) -> Any:
            session = slot.session
            if session is None:
                return super().flush(*args)
            with session.lock:
                mappings().sample()
                result = super().flush(*args)
                offset = args[0] if args else 0
                size = args[1] if len(args) > 1 else len(self) - offset
                mappings().flushed(self, offset, size)
                return result

        def __setitem__(self, index: Any, value: Any) -> None:
            session = slot.session
            if session is None:
                super().__setitem__(index, value)
                return
            with session.lock:
                super().__setitem__(index, value)
                if isinstance(index, slice):
                    touched = range(*index.indices(len(self)))
                    if touched:
                        mappings().stored(self, min(touched), max(touched) + 1)
                else:
                    at = index if index >= 0 else len(self) + index
                    mappings().stored(self, at, at + 1)

        def write(self, data: Any) -> int:
            session = slot.session
            if session is None:
                return int(super().write(data))
            with session.lock:
                count = int(super().write(data))
                mappings().stored(self, self.tell() - count, self.tell())
                return count

        def write_byte(self, byte: int) -> None:
            session = slot.session
            if session is None:
                super().write_byte(byte)
                return
            with session.lock:
                super().write_byte(byte)
                mappings().stored(self, self.tell() - 1, self.tell())

        def move(self, dest: int, src: int, count: int) -> None:
            session = slot.session
            if session is None:
                super().move(dest, src, count)
                return
            with session.lock:
                super().move(dest, src, count)
                mappings().stored(self, dest, dest + count)

        def resize(self, newsize: int) -> None:
            session = slot.session
            if session is None:
                super().resize(newsize)
                return
            with session.lock:
                mappings().sample()
                super().resize(newsize)
                mappings().resized(self)

        def close(self) -> None:
            session = slot.session
            if session is not None:
                with session.lock:
                    if not self.closed:
                        mappings().sample()
            super().close()

        def __exit__(self, *_: object) -> None:
            self.close()

        def __del__(self) -> None:
            session = slot.session
            if session is not None:
                with session.lock:
                    if not self.closed:
                        mappings().stored(self, 0, len(self))

    mmap.__module__, mmap.__qualname__ = "mmap", "mmap"
    return mmap


def maps_for_writing(args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Say whether arguments of `mmap.mmap` after the length ask for a shared, writable map."""
    names = ("flags", "prot", "access", "offset")
    given = dict(zip(names, args, strict=False)) | options
    access = given.get("access", mmap_module.ACCESS_DEFAULT)
    if access != mmap_module.ACCESS_DEFAULT:
        return bool(access == mmap_module.ACCESS_WRITE)
    flags, protection = given.get("flags", _SHARED), given.get("prot", _WRITE)
    return bool(flags & _SHARED and protection & _WRITE)
