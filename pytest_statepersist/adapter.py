"""A store described once, so that every machine and every conformance test can drive it.

The law: an adapter holds no state of its own. It opens stores in directories and passes each call
on to what it opened; what the store promises stands in frozen `Capabilities`. A promise that is not
declared is never tested and shows as "not covered"; one that is declared without the method
that it needs is an error. Values are JSON objects, keys are text.

The smallest useful adapter, for a store that keeps each value in a file of its own::

    class NotesAdapter(StoreAdapter):
        capabilities = Capabilities(durable=True, crash_recovery=True)

        def open(self, directory):
            return Notes(directory)

        def save(self, store, key, value):
            store.write(key, value)

        def load(self, store, key):
            return store.read(key)

        def delete(self, store, key):
            store.remove(key)

        def keys(self, store):
            return store.names()

        def close(self, store):
            store.close()
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pytest_statepersist.errors import UserError

__all__ = ["HOOKS", "Capabilities", "OpenStore", "StoreAdapter", "StoreClock", "Value"]

Value = dict[str, Any]
"""What is saved under a key: a JSON object."""


class StoreClock(Protocol):
    """The wall clock that a store is opened with where it forgets by age."""

    def now(self) -> datetime:
        """Return the present moment, aware, in UTC."""

    def monotonic(self) -> float:
        """Return seconds that never run backwards."""

    def sleep(self, seconds: float) -> None:
        """Let time pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a store promises. Only what every store can do is on by default."""

    delete: bool = True
    """Keys can be deleted."""
    list: bool = True
    """The keys can be listed."""
    durable: bool = False
    """A change survives any crash from the moment at which its call returned."""
    durable_on_close: bool = False
    """Changes survive any crash from the moment at which `close` returned."""
    atomic_keys: bool = False
    """Several keys saved in one call are all there after a crash, or none is."""
    crash_recovery: bool = False
    """After a crash at any moment the store opens by itself, and each value is whole."""
    snapshots: bool = False
    """Snapshots can be taken and listed."""
    stars: bool = False
    """A starred snapshot is never cleaned up."""
    retention: bool = False
    """Snapshots that are too old go when the store cleans up, and only those."""
    atomic_cleanup: bool = False
    """After a crash a clean-up has removed all that was due, or nothing."""
    encryption: bool = False
    """Nothing that is saved is readable on disk, and a wrong key opens nothing."""
    tamper_evident: bool = False
    """Any change to the files is told or harmless: never a wrong value without an error."""
    rollback_evident: bool = False
    """A file that is put back to an earlier state of itself is told."""
    key_change: bool = False
    """The key can be changed; after a crash exactly one of the two opens everything."""
    quota: bool = False
    """The store refuses, unharmed, what would exceed a bound."""
    concurrent_writers: bool = False
    """Several openers may write at the same time and lose nothing."""
    backup: bool = False
    """The store can be copied to a directory, and be made again what it was then."""
    migration: bool = False
    """What older versions of the code wrote can be opened, and loads equal."""
    refuses_newer: bool = False
    """What newer code wrote is refused and left untouched."""
    permissions: bool = False
    """Files and directories are readable by their owner only, at every moment."""


HOOKS: Mapping[str, tuple[str, ...]] = {
    "delete": ("delete",),
    "list": ("keys",),
    "atomic_keys": ("save_many",),
    "snapshots": ("snapshot", "snapshots"),
    "stars": ("star",),
    "retention": ("open_with_clock", "clean_up"),
    "encryption": ("open_with_key",),
    "key_change": ("open_with_key", "change_key"),
    "quota": ("open_with_quota",),
    "backup": ("backup", "restore"),
    "migration": ("write_old",),
    "refuses_newer": ("write_newer",),
}
"""The methods that a store needs for a capability, beside `open`, `save`, `load` and `close`."""


class StoreAdapter:
    """How to drive one kind of store; a subclass says it in about ten lines.

    ``open``, ``save`` and ``load`` are required. ``store`` is whatever ``open`` returned.
    """

    capabilities: ClassVar[Capabilities] = Capabilities()
    missing: ClassVar[tuple[type[BaseException], ...]] = (LookupError, FileNotFoundError)
    """What `load` and `delete` raise for a key that is not there."""
    refusal: ClassVar[tuple[type[BaseException], ...]] = (ValueError, TypeError)
    """What `save` raises for a key or a value that the store does not take."""
    damage: ClassVar[tuple[type[BaseException], ...]] = (Exception,)
    """What the store raises for data that was tampered with."""
    wrong_key: ClassVar[tuple[type[BaseException], ...]] = (Exception,)
    """What opening or loading with a wrong key raises."""
    busy: ClassVar[tuple[type[BaseException], ...]] = ()
    """What a call raises that lost against another opener, and may be tried again."""
    full: ClassVar[tuple[type[BaseException], ...]] = (OSError,)
    """What `save` raises where the quota does not suffice."""
    newer: ClassVar[tuple[type[BaseException], ...]] = (Exception,)
    """What opening or loading raises for data of newer code."""
    max_age: ClassVar[timedelta] = timedelta(days=30)
    """How old a snapshot may become."""
    old_versions: ClassVar[tuple[int, ...]] = ()
    """Format versions that `write_old` can write, oldest first."""

    @property
    def name(self) -> str:
        """What reports call this store."""
        return type(self).__name__.removesuffix("Adapter")

    # -- what every store has

    def open(self, directory: Path) -> Any:
        """Open the store in a directory that exists, creating it where it is empty."""
        raise NotImplementedError(f"{type(self).__name__} needs a method open(directory)")

    def save(self, store: Any, key: str, value: Value) -> None:
        """Save a value under a key, replacing the one before."""
        raise NotImplementedError(f"{type(self).__name__} needs a method save(store, key, value)")

    def load(self, store: Any, key: str) -> Value:
        """Return the value of a key; raises one of ``missing`` where there is none."""
        raise NotImplementedError(f"{type(self).__name__} needs a method load(store, key)")

    def delete(self, store: Any, key: str) -> None:
        """Delete a key; raises one of ``missing``, or nothing, where there is none."""
        raise NotImplementedError

    def keys(self, store: Any) -> Iterable[str]:
        """Return the keys that have a value, in any order."""
        raise NotImplementedError

    def close(self, store: Any) -> None:
        """Close what `open` returned; unless told otherwise by its own ``close``, if it has one."""
        close = getattr(store, "close", None)
        if close is not None:
            close()

    def abandon(self, store: Any) -> None:
        """Give up a store whose process is taken as dead: release handles, save nothing."""
        self.close(store)

    # -- what some stores have, each for a capability

    def save_many(self, store: Any, values: Mapping[str, Value]) -> None:
        """Save several values in one step (atomic_keys)."""
        raise NotImplementedError

    def snapshot(self, store: Any, name: str) -> str:
        """Take a snapshot and return its id (snapshots)."""
        raise NotImplementedError

    def snapshots(self, store: Any) -> Iterable[str]:
        """Return the ids of all snapshots (snapshots)."""
        raise NotImplementedError

    def star(self, store: Any, snapshot: str, starred: bool) -> None:
        """Protect a snapshot from clean-up, or no longer (stars)."""
        raise NotImplementedError

    def starred(self, store: Any) -> Iterable[str]:
        """Return the ids of the starred snapshots (optional, stars)."""
        raise NotImplementedError

    def clean_up(self, store: Any) -> None:
        """Remove what is too old by the store's clock (retention)."""
        raise NotImplementedError

    def keeps(self, age: timedelta, starred: bool) -> bool:
        """Say whether the policy keeps a snapshot of this age at a clean-up (retention)."""
        return starred or age <= self.max_age

    def open_with_clock(self, directory: Path, clock: StoreClock) -> Any:
        """Open the store so that ``clock`` tells it the time (retention)."""
        raise NotImplementedError

    def open_with_key(self, directory: Path, key: str) -> Any:
        """Open the store by a password or key; a new one gets it (encryption)."""
        raise NotImplementedError

    def change_key(self, store: Any, old: str, new: str) -> None:
        """Let ``new`` open the store, and ``old`` no more (key_change)."""
        raise NotImplementedError

    def sealed(self, data: bytes) -> Iterable[Any]:
        """Return the nonces in a file, or `leaks.Sealed` messages (optional, encryption)."""
        raise NotImplementedError

    def open_with_quota(self, directory: Path, quota: int) -> Any:
        """Open the store so that it holds no more than about ``quota`` bytes (quota)."""
        raise NotImplementedError

    def backup(self, store: Any, destination: Path) -> None:
        """Copy the store to ``destination``, which does not exist yet (backup)."""
        raise NotImplementedError

    def restore(self, store: Any, source: Path) -> None:
        """Make the store what it was when ``source`` was made (backup)."""
        raise NotImplementedError

    def write_old(self, directory: Path, version: int, values: Mapping[str, Value]) -> None:
        """Write what code of an old format version would have left (migration)."""
        raise NotImplementedError

    def expected_of_old(self, version: int, value: Value) -> Value:
        """Return what a value of an old version must load as; itself unless told (migration)."""
        return value

    def migrate(self, store: Any) -> None:
        """Bring everything to the present version; nothing where opening did that (migration)."""

    def open_old(self, directory: Path, version: int) -> Any:
        """Open with code that knows formats up to ``version`` only (optional, migration)."""
        raise NotImplementedError

    def write_newer(self, directory: Path) -> None:
        """Write what code newer than this would have left (refuses_newer)."""
        raise NotImplementedError

    # -- what the harness asks; not to be overridden

    def has(self, capability: str) -> bool:
        """Say whether the store has a capability.

        Raises `UserError` for a word that is none, and where a method for it is missing.
        """
        if capability not in _NAMES:
            raise UserError(f"{capability!r} is no capability; there are {', '.join(_NAMES)}")
        if not getattr(self.capabilities, capability):
            return False
        for hook in HOOKS.get(capability, ()):
            if not self.overrides(hook):
                raise UserError(
                    f"{type(self).__name__} declares {capability}=True but has no method {hook}(); "
                    f"write it, or declare {capability}=False"
                )
        return True

    def overrides(self, method: str) -> bool:
        """Say whether the subclass wrote a method itself."""
        return getattr(type(self), method) is not getattr(StoreAdapter, method)

    def lacks(self, *capabilities: str) -> str | None:
        """Return why something that needs all of these is skipped, ``None`` where it is not."""
        absent = [name for name in capabilities if not self.has(name)]
        if not absent:
            return None
        return f"{self.name} does not declare {', '.join(absent)}"

    @contextmanager
    def opened(self, directory: Path) -> Iterator[OpenStore]:
        """Open the store for a block and close it after; the block gets an `OpenStore`."""
        store = OpenStore(self, self.open(directory))
        try:
            yield store
        finally:
            store.close()


class OpenStore:
    """One opened store with the adapter's methods bound to it; closing twice is closing once."""

    def __init__(self, adapter: StoreAdapter, handle: Any) -> None:
        self.adapter = adapter
        self.handle = handle
        self.closed = False

    def save(self, key: str, value: Value) -> None:
        """Save a value under a key."""
        self.adapter.save(self.handle, key, value)

    def load(self, key: str) -> Value:
        """Return the value of a key; raises one of the adapter's ``missing``."""
        return self.adapter.load(self.handle, key)

    def delete(self, key: str) -> None:
        """Delete a key."""
        self.adapter.delete(self.handle, key)

    def keys(self) -> tuple[str, ...]:
        """Return the keys, sorted; a key that is listed twice is there twice."""
        return tuple(sorted(self.adapter.keys(self.handle)))

    def save_many(self, values: Mapping[str, Value]) -> None:
        """Save several values in one step."""
        self.adapter.save_many(self.handle, values)

    def content(self) -> dict[str, Value]:
        """Return everything that is stored."""
        return {key: self.load(key) for key in self.keys()}

    def get(self, key: str) -> Value | None:
        """Return the value of a key, ``None`` where it is missing."""
        try:
            return self.load(key)
        except self.adapter.missing:
            return None

    def close(self) -> None:
        """Close the store."""
        if not self.closed:
            self.closed = True
            self.adapter.close(self.handle)

    def abandon(self) -> None:
        """Give the store up as a dead process would."""
        if not self.closed:
            self.closed = True
            self.adapter.abandon(self.handle)


_NAMES = tuple(field.name for field in fields(Capabilities))
