"""What a recovery reads and changes in the directory of a crash state.

Belongs here: the log of one run. Recoveries are not run twice on disks that they cannot tell apart,
so this log must never leave out a read. Rules:

1. Names, listings, sizes and opened files are seen in Python, at the functions that do them.
2. inotify sees every opened file and every change, from native code and other processes too. An
   opened file that Python did not explain makes the run `native`: then it counts as having read
   every name, size and attribute, and the whole content of each file that was opened.
3. Where there is no inotify, every run counts as having read everything.
4. Seeing more than was read costs a run; seeing less would cost the truth. In doubt: everything.
"""

from __future__ import annotations

import enum
import os
import sys
import sysconfig
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from pytest_statepersist.errors import RecorderUnavailable
from pytest_statepersist.explorer.runner import refuse_exit
from pytest_statepersist.recorders import inotify
from pytest_statepersist.recorders.inotify import Inotify
from pytest_statepersist.recorders.interpose import Interposition

__all__ = ["Observation", "Observer", "Read"]


class Read(enum.IntEnum):
    """What was asked of a path."""

    LOOKUP = 0
    """Whether it is there, and of which kind."""
    STAT = 1
    """Size and attributes too."""
    TIMES = 2
    """Modification time too."""
    LIST = 3
    """The names in a directory and their kinds."""
    CONTENT = 4
    """Size, attributes and the bytes."""
    TREE = 5
    """Everything at and below the path."""


Asked = tuple[Read, str]


@dataclass(slots=True)
class Observation:
    """The log of one run: what was asked, in order, and which paths may have changed.

    Paths are relative to the directory; "" is the directory itself. ``native`` runs list the
    opened files only. ``everything`` stands for a run of which no limit is known.
    """

    asked: list[Asked] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)
    wrote: bool = False
    native: bool = False
    everything: bool = False
    times: bool = False
    """Whether modification times may have been read without being asked for in Python here."""
    reads: int = 0
    """How often anything was asked in Python; what was asked before counts again."""
    directory_times: bool = False
    """Whether modification times of directories were looked at, which are not modelled."""
    unmodelled: str = ""
    """What was looked at that no crash state is made to show, in words."""


@dataclass(slots=True)
class _Told:
    """What the kernel told of one run."""

    opened: list[str] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)
    wrote: bool = False
    everything: bool = False
    strayed: str | None = None


_REMEMBERED = 1024
_STDLIB = tuple(
    {os.path.normpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib")}
)
_CHANGE_TIMES = frozenset({"st_ctime", "st_ctime_ns", "st_birthtime", "getctime"})
_WRITE_TIMES = frozenset({"st_mtime", "st_mtime_ns", "getmtime"})
_TIMED = frozenset({"getmtime", "getatime", "getctime", "stat", "lstat", "is_newer"})
_QUIET = frozenset({"genericpath", "posixpath", "pathlib", "os", "glob", "shutil", "tempfile"})


class Observer:
    """Watches one directory while recoveries run in it; see `Observation`.

    Installed once for an exploration (`start`, `stop`); `begin` and `end` enclose one run.
    """

    def __init__(
        self,
        directory: str,
        elsewhere: str | None = None,
        outside: frozenset[str] = frozenset(),
    ) -> None:
        self._root = directory
        self._prefix = directory + os.sep
        self._elsewhere = elsewhere
        self._outside = outside
        self._outside_names = {os.path.basename(path) for path in outside}
        self._inside: dict[str, bool] = {}
        self._plain_paths: dict[str | None, str] = {}
        """Absolute paths below the directory, and what is left of them relative to it."""
        self._plain_opens: dict[str | None, Asked] = {}
        self._log: Observation | None = None
        self._opened: set[str] = set()
        self._seen: set[Asked] = set()
        self._thread = 0
        self._watches: dict[str, int] = {}
        self._inotify: Inotify | None = None
        self._events: dict[bytes, _Told] = {}
        """What the kernel's words mean: most runs of a recovery leave the same ones."""
        self.backwards = False
        """Whether directories are listed in the opposite order, to see whether that matters."""
        self.strayed: str | None = None
        """A path of the original directory that a recovery touched, which it must not see."""
        self._patches = Interposition(self._table(), layer=5, rebind=True)

    def start(self) -> None:
        """Put the observers in place."""
        try:
            self._inotify = Inotify()
            mask = inotify.CHANGES | inotify.OPEN
            for path, _, _ in os.walk(self._root):
                self._watches[path] = self._inotify.watch(path, mask)
            if self._elsewhere is not None:
                for path, _, _ in os.walk(self._elsewhere):
                    self._inotify.watch(path, inotify.OPEN | inotify.CHANGES)
        except (RecorderUnavailable, OSError):
            self._inotify = None
        self._patches.install()

    def stop(self) -> None:
        """Take the observers away; called twice it does nothing."""
        if self._patches.installed:
            self._patches.uninstall()
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    @property
    def notified(self) -> bool:
        """Whether the kernel tells what is opened and changed."""
        return self._inotify is not None

    def directories(self, changed: bool) -> None:
        """Watch the directories that are there now, after the shown state changed them."""
        if self._inotify is None or not changed:
            return
        self._inotify.read()
        self._events.clear()
        mask = inotify.CHANGES | inotify.OPEN
        try:
            for path, _, _ in os.walk(self._root):
                self._watches[path] = self._inotify.watch(path, mask)
        except (RecorderUnavailable, OSError):
            self._inotify.close()
            self._inotify = None

    def reads(self) -> int:
        """Return how often the run has asked anything so far."""
        return 0 if self._log is None else self._log.reads

    def begin(self) -> None:
        """Forget what happened so far and log from here on."""
        if self._inotify is not None:
            self._inotify.drain()
        self._opened.clear()
        self._seen.clear()
        self._thread = threading.get_ident()
        self._log = Observation()

    def end(self) -> Observation:
        """Return the log of the run since `begin`."""
        log, self._log = self._log, None
        assert log is not None
        if self._inotify is None:
            log.everything = True
            return log
        data = self._inotify.drain()
        if data:
            told = self._events.get(data)
            if told is None:
                told = self._events_in(data)
                if len(data) <= _REMEMBERED and len(self._events) < _REMEMBERED:
                    self._events[data] = told
            self._explain(log, told)
        return log

    def _events_in(self, data: bytes) -> _Told:
        """Return what events say, without what Python said of the run."""
        assert self._inotify is not None
        told = _Told()
        for event in self._inotify.parse(data):
            if event.mask & inotify.OVERFLOW:
                told.everything = told.wrote = True
                continue
            path = event.path
            if path != self._root and not path.startswith(self._prefix):
                if self._elsewhere is not None and event.directory:
                    told.strayed = told.strayed or path
                continue
            relative = path[len(self._prefix) :]
            if event.mask & inotify.OPEN:
                told.opened.append(relative)
            if event.mask & inotify.CHANGES:
                told.wrote = True
                told.changed.add(relative)
                if event.mask & inotify.IS_DIRECTORY:
                    # What happens inside a new directory is not watched.
                    told.everything = told.everything or bool(event.mask & inotify.CREATE)
        return told

    def _explain(self, log: Observation, told: _Told) -> None:
        log.everything = log.everything or told.everything
        log.wrote = log.wrote or told.wrote
        log.changed |= told.changed
        self.strayed = self.strayed or told.strayed
        unexplained = [path for path in told.opened if path not in self._opened]
        if unexplained:
            log.native = True
            log.asked.extend((Read.CONTENT, path) for path in dict.fromkeys(told.opened))
            # A native reader may have kept a writable map, of which nothing tells.
            log.changed.update(unexplained)

    # -- in Python

    def _relative(self, path: Any, dir_fd: int | None = None) -> str | None:
        """Return a path below the directory, ``None`` for one outside; in doubt log everything."""
        log = self._log
        if log is None:
            return None
        if isinstance(path, int):
            return None
        text = path if path.__class__ is str else os.fsdecode(path)
        if dir_fd is not None:
            log.everything = True
            return None
        known = self._plain_paths.get(text)
        if known is not None:
            return known
        absolute = text.startswith("/")
        if not absolute:
            text = os.path.join(os.getcwd(), text)
        if text != self._root and not text.startswith(self._prefix):
            if self._elsewhere is not None and text.startswith(self._elsewhere):
                self.strayed = self.strayed or text
            parent, name = os.path.split(text)
            if name in self._outside_names and self._is_outside(parent, name):
                log.unmodelled = f"{text}, which the workload wrote outside the directory"
            inside = self._inside.get(parent)
            if inside is None:
                self._log = None
                try:
                    real = os.path.realpath(parent) + os.sep
                finally:
                    self._log = log
                inside = self._inside[parent] = real.startswith(self._prefix)
            if inside:
                log.everything = True
            return None
        relative = text[len(self._prefix) :]
        if ".." in relative or "//" in relative or "./" in relative or relative.endswith("/"):
            log.everything = True
        elif absolute and len(self._plain_paths) < _REMEMBERED:
            self._plain_paths[text] = relative
        return relative

    def _is_outside(self, parent: str, name: str) -> bool:
        """Say whether this is a file that the workload wrote elsewhere."""
        log, self._log = self._log, None
        try:
            return os.path.join(os.path.realpath(parent), name) in self._outside
        finally:
            self._log = log

    def _note(self, read: Read, path: Any, dir_fd: int | None = None) -> str | None:
        log = self._log
        if log is None:
            return None
        log.reads += 1
        try:
            relative = self._relative(path, dir_fd)
        except (TypeError, ValueError):
            return None
        if relative is not None:
            asked = (read, relative)
            if asked not in self._seen:
                self._seen.add(asked)
                log.asked.append(asked)
        return relative

    def _stat(self, original: Any) -> Callable[..., Any]:
        def stat(path: Any, *, dir_fd: Any = None, follow_symlinks: bool = True) -> Any:
            if self._log is not None:
                frame = sys._getframe(1)
                caller = frame.f_code
                if caller.co_name == "stat" and frame.f_back is not None:
                    # pathlib's exists() and is_file() go through its stat().
                    outer = frame.f_back.f_code
                    caller = outer if _is_quiet(outer.co_filename) else caller
                kind = _stat_kind(caller.co_filename, caller.co_name)
                self._note(kind, path, dir_fd)
                if isinstance(path, int) or caller.co_name == "samefile":
                    self._log.everything = True
                self._unmodelled_times(kind, caller, frame, path)
            if follow_symlinks is True:
                return original(path) if dir_fd is None else original(path, dir_fd=dir_fd)
            return original(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

        return stat

    def _unmodelled_times(
        self, kind: Read, caller: types.CodeType, frame: types.FrameType, path: Any
    ) -> None:
        """Note a look at times that no state is made to show: of changes, and of directories.

        Which field of a stat result is used nobody can see; the names in the code that asked for
        it tell.
        """
        log = self._log
        if log is None or kind is not Read.TIMES:
            return
        names = {caller.co_name, *caller.co_names}
        if caller is not frame.f_code or caller.co_name in _TIMED:
            outer = frame.f_back
            names.update(outer.f_code.co_names if outer is not None else ())
        if not names.isdisjoint(_CHANGE_TIMES):
            log.unmodelled = f"the change time of {path}"
        elif not names.isdisjoint(_WRITE_TIMES) and not isinstance(path, int):
            self._log = None
            try:
                log.directory_times = log.directory_times or os.path.isdir(path)
            finally:
                self._log = log

    def _plain(self, read: Read) -> Callable[[Any], Callable[..., Any]]:
        def factory(original: Any) -> Callable[..., Any]:
            def asked(path: Any = ".", *arguments: Any, **options: Any) -> Any:
                self._note(read, path, options.get("dir_fd"))
                return original(path, *arguments, **options)

            return asked

        return factory

    def _descriptor(self, original: Any) -> Callable[..., Any]:
        def by_descriptor(*arguments: Any, **options: Any) -> Any:
            log = self._log
            if log is not None:
                log.reads += 1
                # Whatever it is about was opened, and its content counts as read; times do not.
                for path in self._opened:
                    log.asked.append((Read.TIMES, path))
            return original(*arguments, **options)

        return by_descriptor

    def _open(self, original: Any) -> Callable[..., Any]:
        def opened(file: Any, *arguments: Any, **options: Any) -> Any:
            log = self._log
            if log is not None:
                text = file if file.__class__ is str else None
                if isinstance(file, PurePath):
                    text = os.fspath(file)
                asked = self._plain_opens.get(text)
                if asked is not None and not options:
                    log.reads += 1
                    if asked not in self._seen:
                        self._seen.add(asked)
                        log.asked.append(asked)
                    self._opened.add(asked[1])
                else:
                    relative = self._note(Read.CONTENT, file, options.get("dir_fd"))
                    if relative is not None:
                        self._opened.add(relative)
                        if text in self._plain_paths:
                            self._plain_opens[text] = (Read.CONTENT, relative)
            return original(file, *arguments, **options)

        return opened

    def _listing(self, original: Any) -> Callable[..., Any]:
        def listed(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            if self._log is not None:
                if isinstance(path, int):
                    self._log.everything = True
                relative = self._note(Read.LIST, path)
                if relative is not None:
                    self._opened.add(relative)
                    caller = sys._getframe(1).f_code
                    if original is _scandir and not _is_quiet(caller.co_filename):
                        self._note(Read.TREE, path)
                        if not _CHANGE_TIMES.isdisjoint(caller.co_names):
                            self._log.unmodelled = f"change times in {path}"
            found = original(path, *arguments, **options)
            if not self.backwards or self._log is None:
                return found
            return found[::-1] if isinstance(found, list) else _Backwards(found)

        return listed

    def _moves(self, original: Any) -> Callable[..., Any]:
        """A file that is moved or linked may be read under its new name: it counts as read."""

        def moved(source: Any, destination: Any, *arguments: Any, **options: Any) -> Any:
            if self._log is not None:
                if options.get("src_dir_fd") is not None or options.get("dst_dir_fd") is not None:
                    self._log.everything = True
                self._note(Read.TREE, source)
                self._note(Read.LOOKUP, destination)
            return original(source, destination, *arguments, **options)

        return moved

    def _exit(self, original: Any) -> Callable[..., Any]:
        pid = os.getpid()

        def leave(status: int = 0) -> Any:
            return original(status) if self._log is None else refuse_exit(original, pid, status)

        return leave

    def _all(self, original: Any) -> Callable[..., Any]:
        def anything(*arguments: Any, **options: Any) -> Any:
            if self._log is not None:
                self._log.reads += 1
                self._log.everything = True
            return original(*arguments, **options)

        return anything

    def _table(self) -> dict[tuple[Any, str], Callable[[Any], Any]]:
        import builtins
        import io
        import posix

        makers: dict[str, Callable[[Any], Any]] = {
            "stat": self._stat,
            "lstat": self._stat,
            "access": self._plain(Read.STAT),
            "readlink": self._plain(Read.LOOKUP),
            "unlink": self._plain(Read.LOOKUP),
            "remove": self._plain(Read.LOOKUP),
            "rmdir": self._plain(Read.LIST),
            "mkdir": self._plain(Read.LOOKUP),
            "symlink": self._all,
            "truncate": self._plain(Read.CONTENT),
            "chmod": self._plain(Read.STAT),
            "chown": self._plain(Read.STAT),
            "utime": self._plain(Read.TIMES),
            "statvfs": self._all,
            "getxattr": self._plain(Read.STAT),
            "listxattr": self._plain(Read.STAT),
            "setxattr": self._plain(Read.STAT),
            "removexattr": self._plain(Read.STAT),
            "open": self._open,
            "listdir": self._listing,
            "scandir": self._listing,
            "rename": self._moves,
            "replace": self._moves,
            "link": self._moves,
            "fstat": self._descriptor,
            "chdir": self._all,
            "fchdir": self._all,
            "fwalk": self._all,
            "fork": self._all,
            "posix_spawn": self._all,
            "posix_spawnp": self._all,
            "_exit": self._exit,
            "execv": self._all,
            "execve": self._all,
        }
        table: dict[tuple[Any, str], Callable[[Any], Any]] = {}
        for name, maker in makers.items():
            table[os, name] = maker
            if name not in ("fwalk",):
                table[posix, name] = maker
        for module in (io, builtins, sys.modules["_io"]):
            table[module, "open"] = self._open
        import _posixsubprocess

        table[_posixsubprocess, "fork_exec"] = self._all
        return table


_scandir = os.scandir


class _Backwards:
    """What `os.scandir` gives, in the opposite order."""

    def __init__(self, entries: Any) -> None:
        with entries:
            self._entries = iter(list(entries)[::-1])

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._entries)

    def __enter__(self) -> _Backwards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._entries = iter(())


def _is_quiet(filename: str) -> bool:
    """Whether a caller in the standard library is known to use names and kinds only."""
    if filename.startswith("<frozen "):
        return filename[8:-1].split(".")[0] in _QUIET
    if not filename.startswith(_STDLIB) or "site-packages" in filename:
        return False
    return os.path.basename(os.path.dirname(filename)) == "pathlib" or (
        os.path.basename(filename).removesuffix(".py") in _QUIET
    )


def _stat_kind(filename: str, function: str) -> Read:
    if not _is_quiet(filename):
        return Read.TIMES
    if function in _TIMED:
        return Read.TIMES
    if function == "copystat":
        return Read.TIMES
    return Read.STAT if function in ("getsize", "copymode") else Read.LOOKUP
