"""The functions of `os` that set modes, owners, times and extended attributes.

Belongs here: the replacements of these for `calls`, whose rules they follow, and `before`, which
compares what a call by path or descriptor is about to change with the model.
"""

# ruff: noqa: D102 (each method is documented where the function of its name in `os` is)

from __future__ import annotations

import os
import stat
from typing import Any

from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.acl import ACCESS, mode_of_acl
from pytest_statepersist.recorders.labels import labels
from pytest_statepersist.recorders.real import system
from pytest_statepersist.recorders.session import Session, Slot

__all__ = ["AttributeCalls", "before"]


class AttributeCalls:
    """Replacements by the name that each has in `os`."""

    __slots__ = ("_slot",)

    def __init__(self, slot: Slot) -> None:
        self._slot = slot

    def chmod(
        self, path: Any, mode: int, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> None:
        options = _options(dir_fd, follow_symlinks)
        self._attributes(lambda: system.chmod(path, mode, **options), path, "mode", **options)

    def fchmod(self, fd: int, mode: int) -> None:
        self._attributes(lambda: system.fchmod(fd, mode), fd, "mode")

    def lchmod(self, path: Any, mode: int) -> None:
        self._attributes(lambda: system.lchmod(path, mode), path, "mode", follow_symlinks=False)

    def chown(
        self,
        path: Any,
        uid: int,
        gid: int,
        *,
        dir_fd: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        options = _options(dir_fd, follow_symlinks)
        self._attributes(lambda: system.chown(path, uid, gid, **options), path, "owner", **options)

    def fchown(self, fd: int, uid: int, gid: int) -> None:
        self._attributes(lambda: system.fchown(fd, uid, gid), fd, "owner")

    def lchown(self, path: Any, uid: int, gid: int) -> None:
        call = lambda: system.lchown(path, uid, gid)  # noqa: E731
        self._attributes(call, path, "owner", follow_symlinks=False)

    def utime(
        self,
        path: Any,
        times: Any = None,
        *,
        dir_fd: int | None = None,
        follow_symlinks: bool = True,
        **ns: Any,
    ) -> None:
        options = _options(dir_fd, follow_symlinks)
        given = {} if times is None else {"times": times}
        call = lambda: system.utime(path, **given, **ns, **options)  # noqa: E731
        self._attributes(call, path, "mtime", **options)

    def _attributes(
        self,
        call: Any,
        path: Any,
        kind: str,
        *,
        dir_fd: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        session = self._slot.session
        if session is None:
            call()
            return
        with session.lock:
            number = before(session, path, dir_fd, follow_symlinks)
            call()
            if number is None:
                return
            if isinstance(path, int):
                status = real.fstat(path)
            else:
                status = real.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
            mode = stat.S_IMODE(status.st_mode)
            session.builder.set_attributes(
                number,
                session.moment(),
                # A change of owner takes the set-user-id bits away.
                mode=mode if kind != "mtime" else None,
                mtime=status.st_mtime_ns if kind == "mtime" else None,
                owner=(status.st_uid, status.st_gid) if kind == "owner" else None,
            )

    def setxattr(
        self, path: Any, attribute: Any, value: Any, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        def call() -> None:
            system.setxattr(path, attribute, value, flags, follow_symlinks=follow_symlinks)

        self._xattr(call, path, attribute, bytes(value), follow_symlinks)

    def removexattr(self, path: Any, attribute: Any, *, follow_symlinks: bool = True) -> None:
        def call() -> None:
            system.removexattr(path, attribute, follow_symlinks=follow_symlinks)

        self._xattr(call, path, attribute, None, follow_symlinks)

    def _xattr(
        self, call: Any, path: Any, attribute: Any, value: bytes | None, follow_symlinks: bool
    ) -> None:
        session = self._slot.session
        if session is None:
            call()
            return
        with session.lock:
            number = before(session, path, None, follow_symlinks)
            call()
            if number is None:
                return
            name = os.fsdecode(attribute)
            xattrs = labels(session.builder, number, name, value)
            mode = mode_of_acl(value) if value is not None and name == ACCESS else None
            session.builder.set_attributes(number, session.moment(), mode=mode, xattrs=xattrs)


def _options(dir_fd: int | None, follow_symlinks: bool) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if dir_fd is not None:
        options["dir_fd"] = dir_fd
    if not follow_symlinks:
        options["follow_symlinks"] = False
    return options


def before(
    session: Session, path: Any, dir_fd: int | None = None, follow_symlinks: bool = True
) -> int | None:
    """Return the inode that a call is about to change, after comparing it with the model."""
    try:
        if isinstance(path, int):
            status = real.fstat(path)
        else:
            status = real.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
    except (OSError, TypeError, ValueError):
        return None  # the call itself will fail
    number = session.builder.find((status.st_dev, status.st_ino))
    if number is not None:
        session.compare(session.builder[number], status)
    return number
