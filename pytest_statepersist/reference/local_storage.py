"""A small key-value store with a quota, for settings and the state of the user interface.

The law: the whole store is one file that is replaced atomically, so that each call that changes
something is one step, durable on return, and a crash leaves the state before or after it. Each
entry is a line with a checksum of its own: one damaged line costs one entry, never the others,
and stays in the file until somebody says `discard_damaged`.

    {"entries":2,"format":"local-storage","version":2}
    6d0f6ea1 ["sidepanel.theme","dark"]
    0f9f0b5e ["sidepanel.tour.completed",true]

Version 1 kept ``ui.sidebarCollapsed`` and ``ui.lastView`` as entries of their own; they are
read into ``ui``, and the file becomes version 2 when it is next written. A newer file is
refused and left alone.

Safe between threads, and between processes by a lock file beside the store; reading takes no
lock and writes nothing.
"""

from __future__ import annotations

import logging
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import (
    checked_path,
    fsync_directory,
    is_temporary,
    make_directory,
    read_bounded,
    write_atomic,
)
from pytest_statepersist.reference.errors import (
    DamagedData,
    NewerVersion,
    NotFound,
    QuotaExceeded,
    StorageError,
    ValidationError,
)
from pytest_statepersist.reference.locking import StoreLock
from pytest_statepersist.reference.storage_keys import (
    KEYS,
    RECENT_COMMANDS,
    RECENT_SEARCHES,
    Key,
)
from pytest_statepersist.reference.values import from_json, to_json

__all__ = ["DEFAULT_QUOTA", "Damage", "LocalStorage"]

DEFAULT_QUOTA = 5 * 1024 * 1024
KEPT_ON_CLEANUP = 10
_VERSION = 2
_TEMPORARY_TAIL = len(".0123456789abcdef.tmp~")
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Damage:
    """What could not be read: damaged lines that are still in the file, and missing entries."""

    lines: int
    missing: int


@dataclass(frozen=True, slots=True)
class _Content:
    entries: Mapping[str, str] = field(default_factory=dict)  # full name to JSON text
    damaged: tuple[bytes, ...] = ()
    missing: int = 0


@checked
class LocalStorage:
    """The store in the file ``path``; names get ``prefix`` and a dot in front.

    ``quota`` bounds the bytes of all names and JSON values together. The directory is created.
    Raises `DamagedData` (the file's first line cannot be read), `NewerVersion`, `LockTimeout`,
    `StorageError`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        prefix: str = "sidepanel",
        quota: int = DEFAULT_QUOTA,
        timeout: float = 10.0,
    ) -> None:
        if not prefix:
            raise ValidationError("prefix", "is empty; foreign keys could not be told from ours")
        self.path = checked_path(path)
        if not self.path.name:
            raise ValidationError("path", f"{self.path} names no file")
        self.prefix = prefix
        self.quota = quota
        self._lock = StoreLock(self.path.with_name(self.path.name + ".lock"), timeout=timeout)
        self._cached = threading.Lock()
        self._raw: bytes | None = None
        self._unsettled = False  # a save failed after its rename, here or in a killed process
        self._content = _Content()
        make_directory(self.path.parent)
        with self._lock:
            self._remove_temporaries()
            # A writer that was killed may have renamed without syncing; what we are about to
            # show must not go away again.
            fsync_directory(self.path.parent)
            self._load()
            self._unsettled = False

    # -- reading -------------------------------------------------------------------------

    @overload
    def get(self, name: Key[T]) -> T: ...
    @overload
    def get(self, name: str, default: Any = None) -> Any: ...

    def get(self, name: Key[T] | str, default: Any = None) -> Any:
        """Return a value, or the default if it is absent, damaged or against its schema.

        A `Key` gives a typed value and knows its own default; a name gives plain JSON. Raises
        `NewerVersion` if newer code wrote the value: a default would then overwrite it.
        """
        full = self._full(name)
        key = KEYS.get(name) if isinstance(name, str) else name
        text = self._load().entries.get(full)
        if isinstance(name, Key):
            default = name.default()
        if text is None:
            return default
        try:
            plain = from_json(text)
            if key is None:
                return plain
            typed = key.load(plain)
        except (DamagedData, ValidationError) as error:
            _log.warning("%s: %s: %s; using the default", self.path, self._full(name), error)
            return default
        return typed if isinstance(name, Key) else key.dump(typed)

    def names(self) -> tuple[str, ...]:
        """Return the names that are stored, without the prefix, sorted."""
        return tuple(sorted(name[len(self.prefix) + 1 :] for name in self._load().entries))

    def __contains__(self, name: Key[Any] | str) -> bool:
        return self._full(name) in self._load().entries

    @property
    def bytes_used(self) -> int:
        """What counts against the quota now."""
        return _size(self._load().entries)

    @property
    def damage(self) -> Damage:
        """What of the file could not be read."""
        content = self._load()
        return Damage(len(content.damaged), content.missing)

    # -- writing -------------------------------------------------------------------------

    @overload
    def set(self, name: Key[T], value: T) -> None: ...
    @overload
    def set(self, name: str, value: Any) -> None: ...

    def set(self, name: Key[Any] | str, value: Any) -> None:
        """Store a value: atomic, and durable on return.

        Known names take only what their schema allows. Where the quota does not suffice, the
        histories of searches and commands are cut to 10 in the same step; if that is not
        enough, nothing is changed at all. Raises `QuotaExceeded`, `ValidationError`,
        `NewerVersion` (newer code wrote the present value), `LockTimeout`, `StorageError`.
        """
        self._change({self._full(name): self._text(name, value)})

    def remove(self, name: Key[Any] | str) -> bool:
        """Remove a value; durable on return. Returns whether there was one."""
        return self._change({self._full(name): None})

    def clear(self) -> None:
        """Remove every value; durable on return."""
        with self._lock:
            self._store(_Content(damaged=self._load().damaged))

    def discard_damaged(self) -> int:
        """Give up what could not be read; return how many lines went."""
        with self._lock:
            content = self._load()
            if content.damaged or content.missing:
                self._store(_Content(content.entries))
        return len(content.damaged)

    # -- export and import ---------------------------------------------------------------

    def export_all(self, *, include_private: Iterable[str] = ()) -> dict[str, Any]:
        """Return all values by their full names, for a backup.

        Private ones (the auth token, the crash record) are left out unless named one by one:
        ``include_private=["auth.token"]``. Raises `ValidationError` for a name not private.
        """
        asked = set(include_private)
        private = {name for name, key in KEYS.items() if key.private}
        if unknown := asked - private:
            raise ValidationError(
                "include_private", f"{sorted(unknown)[0]!r} is not one of {sorted(private)}"
            )
        hidden = {self._full(name) for name in private - asked}
        entries = self._load().entries
        return {name: from_json(entries[name]) for name in sorted(entries) if name not in hidden}

    def import_all(self, data: Mapping[str, Any]) -> int:
        """Store the values of an export in one step: all or none. Returns how many.

        Names without our prefix belong to others and are skipped. Raises what `set` raises.
        """
        start = self.prefix + "."
        changes: dict[str, str | None] = {
            full: self._text(full[len(start) :], value)
            for full, value in data.items()
            if full.startswith(start) and len(full) > len(start)
        }
        if changes:
            self._change(changes)
        return len(changes)

    # -- inside --------------------------------------------------------------------------

    def _full(self, name: Key[Any] | str) -> str:
        bare = name.name if isinstance(name, Key) else name
        if not isinstance(bare, str):
            raise ValidationError("name", f"{bare!r} is no text")
        if not bare:
            raise ValidationError("name", "is empty")
        to_json(bare)  # refuses what UTF-8 cannot express
        return f"{self.prefix}.{bare}"

    def _text(self, name: Key[Any] | str, value: Any) -> str:
        key = KEYS.get(name) if isinstance(name, str) else name
        return to_json(value if key is None else key.dump(key.check(value)))

    def _change(self, changes: Mapping[str, str | None]) -> bool:
        with self._lock:
            content = self._load()
            self._protect_newer(content.entries, changes)
            wanted = {**content.entries, **changes}
            entries = {name: text for name, text in wanted.items() if text is not None}
            if entries == content.entries:
                self._settle()
                return False
            growing = any(text is not None for text in changes.values())
            if growing and _size(entries) > self.quota:
                entries = self._cleaned(entries, keep=changes)
            self._store(_Content(entries, content.damaged, content.missing))
        return True

    def _cleaned(self, entries: dict[str, str], *, keep: Mapping[str, Any]) -> dict[str, str]:
        """Return the entries with shorter histories. What is being set is stored as it is."""
        cleaned = dict(entries)
        for key in (RECENT_SEARCHES, RECENT_COMMANDS):
            full = self._full(key)
            if full in cleaned and full not in keep:
                history = from_json(cleaned[full])
                if isinstance(history, list):
                    cleaned[full] = to_json(history[:KEPT_ON_CLEANUP])
        if (size := _size(cleaned)) > self.quota:
            raise QuotaExceeded(
                f"{self.path}: {size} bytes would be stored and {self.quota} are allowed, even "
                "with the histories cut; nothing was changed. Remove something, or open the "
                "store with a larger quota"
            )
        return cleaned

    def _protect_newer(self, entries: Mapping[str, str], changes: Mapping[str, Any]) -> None:
        for full in changes:
            key = KEYS.get(full[len(self.prefix) + 1 :])
            if key is not None and full in entries:
                try:
                    key.load(from_json(entries[full]))
                except (DamagedData, ValidationError):
                    pass  # damaged: to be replaced is the best that can happen to it

    def _store(self, content: _Content) -> None:
        self._unsettled = True
        write_atomic(self.path, _encode(content))
        self._unsettled = False

    def _settle(self) -> None:
        """Make what is there durable: the last sync of its name may have failed, or not come."""
        if self._unsettled:
            fsync_directory(self.path.parent)
            self._unsettled = False

    def _load(self) -> _Content:
        # Read anew each time, parsed only when it changed: size and times of a file that another
        # process replaces twice within one tick of the kernel's clock can be the same.
        try:
            # A line with a short name and value takes several times what counts as its size.
            raw = read_bounded(self.path, 16 * self.quota + (1 << 26))
        except NotFound:
            return _Content()
        with self._cached:
            if raw != self._raw:
                self._content = _decode(raw, self.path, self.prefix)
                self._raw, self._unsettled = raw, True
            return self._content

    def _remove_temporaries(self) -> None:
        """Remove ours only: the directory may belong to other stores as well."""
        start = f".{self.path.name}."
        try:
            for name in os.listdir(self.path.parent):
                ours = name.startswith(start) and is_temporary(name)
                if ours and len(name) == len(self.path.name) + 1 + _TEMPORARY_TAIL:
                    os.unlink(self.path.parent / name)
        except OSError as error:
            raise StorageError(self.path, error) from error


def _size(entries: Mapping[str, str]) -> int:
    return sum(len(name.encode()) + len(text.encode()) for name, text in entries.items())


def _line(body: bytes) -> bytes:
    return b"%08x %s" % (zlib.crc32(body), body)


def _encode(content: _Content) -> bytes:
    header = {
        "format": "local-storage",
        "version": _VERSION,
        "entries": len(content.entries) + len(content.damaged) + content.missing,
    }
    lines = [to_json(header).encode()]
    for name in sorted(content.entries):
        lines.append(_line(b"[%s,%s]" % (to_json(name).encode(), content.entries[name].encode())))
    lines.extend(content.damaged)
    return b"\n".join(lines) + b"\n"


def _decode(raw: bytes, path: Path, prefix: str) -> _Content:
    first, *lines = raw.removesuffix(b"\n").split(b"\n")
    version, expected = _header(first, path)
    entries: dict[str, str] = {}
    damaged: list[bytes] = []
    for line in lines:
        entry = _entry(line)
        if entry is None:
            damaged.append(line)
        else:
            entries[entry[0]] = entry[1]
    missing = max(0, expected - len(lines))
    if damaged or missing:
        _log.warning("%s: %d damaged lines, %d missing", path, len(damaged), missing)
    for step in _UPGRADES[version - 1 :]:
        entries = step(entries, prefix)
    return _Content(entries, tuple(damaged), missing)


def _header(line: bytes, path: Path) -> tuple[int, int]:
    try:
        header = from_json(line)
        if header["format"] == "local-storage":
            version, entries = int(header["version"]), int(header["entries"])
            if version > _VERSION:
                raise NewerVersion(
                    f"{path}: format version {version}, this code knows {_VERSION}. Nothing was "
                    "changed. Update the application"
                )
            if version >= 1:
                return version, entries
    except (DamagedData, KeyError, TypeError, ValueError):
        pass
    raise DamagedData(
        f"{path}: the first line is not that of a local storage file; it is another file, or it "
        "was damaged. Restore a backup, or move it away to start with an empty store"
    )


def _entry(line: bytes) -> tuple[str, str] | None:
    checksum, space, body = line.partition(b" ")
    if not space or checksum != b"%08x" % zlib.crc32(body):
        return None
    try:
        name, value = from_json(body)
        return (name, to_json(value)) if isinstance(name, str) else None
    except (DamagedData, ValidationError, TypeError, ValueError):
        return None


def _fold_ui(entries: dict[str, str], prefix: str) -> dict[str, str]:
    folded = dict(entries)
    ui = from_json(folded.get(f"{prefix}.ui", "{}"))
    if not isinstance(ui, dict):
        return folded
    for field_name in ("sidebarCollapsed", "lastView"):
        text = folded.pop(f"{prefix}.ui.{field_name}", None)
        if text is not None:
            ui.setdefault(field_name, from_json(text))
    if ui:
        folded[f"{prefix}.ui"] = to_json(ui)
    return folded


_UPGRADES: tuple[Callable[[dict[str, str], str], dict[str, str]], ...] = (_fold_ui,)
