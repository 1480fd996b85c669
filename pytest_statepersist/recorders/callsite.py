"""Which line of the subject made a call, cheaply.

Belongs here: finding the first frame outside the standard library and this package. The reference
implementation inside this package counts as a subject, since it is one.
"""

from __future__ import annotations

import os.path
import sys
import sysconfig
import threading
from types import CodeType, FrameType

from pytest_statepersist.core.operations import Site
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.builder import Moment

__all__ = ["CallSites", "is_internal"]

_getframe, _get_ident = sys._getframe, threading.get_ident
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_SUBJECT = (os.path.join(_PACKAGE, "reference") + os.sep,)
_STDLIB = tuple(
    {os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib")}
    | {os.path.join(os.path.realpath(sysconfig.get_path("stdlib")), "")}
)
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def is_internal(filename: str) -> bool:
    """Say whether code of this file is the standard library's or this package's own."""
    if filename.startswith("<frozen "):
        return True
    if filename.startswith(_PACKAGE):
        return not filename.startswith(_SUBJECT)
    return filename.startswith(_STDLIB) and not is_installed(filename)


def is_installed(filename: str) -> bool:
    """Say whether code of this file is that of an installed library."""
    return any(part in filename for part in _INSTALLED)


class CallSites:
    """Makes the `Moment` of a call: site, wall time, and a small number for the thread."""

    __slots__ = ("_internal", "again", "now", "sites", "tasks")

    def __init__(self) -> None:
        self.now = real.clock()
        """True wall time in nanoseconds."""
        self.again = self.now
        """The time of one more call from where the last one came (`Clock`)."""
        self._internal: dict[str, bool] = {}
        self.sites: dict[tuple[int, int], tuple[Site, CodeType]] = {}
        """By id of the code object and instruction; kept with it, so that no id is used again."""
        self.tasks: dict[int, int] = {}
        """By thread identifier."""

    def moment(self, frame: FrameType | None = None) -> Moment:
        """Return what to record of a call that has just returned; ``frame`` as for `site`."""
        now = self.now()
        task = self.tasks.get(_get_ident())
        if frame is not None and task is not None:
            known = self.sites.get((id(frame.f_code), frame.f_lasti))
            if known is not None:
                return known[0], now, task
        if task is None:
            task = self.tasks[_get_ident()] = len(self.tasks)
        return self.site(frame), now, task

    def drain(self, pending: int = 0) -> None:
        """Do nothing: there are no notifications here (`Clock`)."""

    def site(self, frame: FrameType | None = None) -> Site | None:
        """Return the innermost line of the subject on this thread's stack, if there is one.

        ``frame`` is where to begin, for a caller that knows which frames are its own.
        """
        if frame is None:
            frame = _getframe(1)
        internal = self._internal
        while True:
            code = frame.f_code
            inner = internal.get(code.co_filename)
            if inner is None:
                inner = internal[code.co_filename] = is_internal(code.co_filename)
            if not inner:
                break
            back = frame.f_back
            if back is None:
                return None
            frame = back
        return self._at(frame)

    def own(self) -> tuple[Site | None, Site | None]:
        """Return the line of the subject's own code and that of an installed library below it.

        Where all of the subject is installed, that is its own code.
        """
        site = self.site(_getframe(1))
        if site is None or not is_installed(site.file):
            return site, None
        frame: FrameType | None = _getframe(1)
        while frame is not None:
            name = frame.f_code.co_filename
            if not is_internal(name) and not is_installed(name):
                return self._at(frame), site
            frame = frame.f_back
        return site, None

    def _at(self, frame: FrameType) -> Site:
        code = frame.f_code
        key = (id(code), frame.f_lasti)
        known = self.sites.get(key)
        if known is None:
            site = Site(code.co_filename, frame.f_lineno or code.co_firstlineno, code.co_name)
            known = self.sites[key] = (site, code)
        return known[0]
