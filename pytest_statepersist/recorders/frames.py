"""Local variables of functions that are running, or are over and still kept.

Belongs here: finding an object in the frames of all threads, and giving those of this thread
another one. A frame of another thread cannot be written to; one that is over is never run again.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

from pytest_statepersist.recorders.callsite import is_internal

__all__ = ["in_dead_frames", "rewrite_frame", "running"]

_OPTIMIZED = 0x1  # inspect.CO_OPTIMIZED: the locals are not in a dict
_RESUMED = 0x20 | 0x80 | 0x200  # inspect.CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR


def running(
    new: dict[int, Any],
) -> tuple[list[types.FrameType], list[tuple[str, frozenset[str]]]]:
    """Return this thread's frames with a local to rewrite, and in words those of other threads.

    With the words come the names of what is held.
    """
    mine = [frame for frame in _stack(sys._getframe(1)) if _locals(frame, new)]
    others: list[tuple[str, frozenset[str]]] = []
    tops = sys._current_frames()
    # A frame that is held by a variable of its own would stay until the next collection.
    tops.pop(threading.get_ident(), None)
    for top in tops.values():
        for frame in _stack(top):
            if names := _locals(frame, new):
                where = frame.f_code.co_qualname
                what = f"local variable {names[0]!r} of {where} in another thread"
                held = [new[id(frame.f_locals[name])] for name in names]
                _drop_copy(frame.f_locals)
                called = frozenset(getattr(item, "__name__", "?") for item in held)
                others.append((what, called))
    return mine, others


def in_dead_frames(item: Any) -> int:
    """Count the local variables of functions that are over, as a kept traceback keeps them.

    Nobody calls anything from there any more. A generator's frame may run again, and is not dead.
    """
    alive = {id(frame) for top in sys._current_frames().values() for frame in _stack(top)}
    holders = gc.get_referrers(item)
    shown = {id(holder) for holder in holders}
    count = 0
    for frame in holders:
        if (
            isinstance(frame, types.FrameType)
            and id(frame) not in alive
            and not frame.f_code.co_flags & _RESUMED
        ):
            values = frame.f_locals
            found = sum(value is item for value in list(values.values()))
            # Who asked for the copy before left it there.
            count += found * (2 if id(values) in shown else 1)
            _drop_copy(values)
    return count


def rewrite_frame(frame: types.FrameType, new: dict[int, Any]) -> bool:
    """Give the local variables of a frame what takes the place of what they hold, if anything."""
    names = _locals(frame, new)
    if names:
        values = frame.f_locals
        for name in names:
            values[name] = new[id(values[name])]
        if sys.version_info < (3, 13):
            write_back = ctypes.pythonapi.PyFrame_LocalsToFast
            write_back(ctypes.py_object(frame), ctypes.c_int(0))
        _drop_copy(values)
    return bool(names)


def _stack(frame: types.FrameType | None) -> Iterator[types.FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _locals(frame: types.FrameType, new: dict[int, Any]) -> list[str]:
    """Return the local variables of a function's frame that hold something to replace."""
    if not frame.f_code.co_flags & _OPTIMIZED or is_internal(frame.f_code.co_filename):
        return []
    values = frame.f_locals
    names = [name for name, value in list(values.items()) if id(value) in new]
    _drop_copy(values)
    return names


def _drop_copy(values: Any) -> None:
    """Before PEP 667 f_locals is a copy that lives as long as the frame, with each value."""
    if sys.version_info < (3, 13):
        values.clear()
