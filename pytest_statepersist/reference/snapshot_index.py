"""The authenticated index: which snapshot of each group is the current one.

The law: pure values and their encoding. The index is the single root of a snapshot store: a
snapshot counts if, and only if, the index names its commit number *and* its SHA-256, so that
neither an older snapshot of the same group nor one of an uncommitted step is ever taken for
the current one. Removed groups leave a tombstone with their last epoch. ``log`` is how far the
event log beside the store was durable when the index was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pytest_statepersist.reference import cbor
from pytest_statepersist.reference.errors import DamagedData, NewerVersion
from pytest_statepersist.reference.log_mark import LogMark

__all__ = ["Entry", "Index", "parse_snapshot_name", "snapshot_name"]

_VERSION = 1
_NAME = re.compile(
    r"(?:client|group-((?:[0-9a-f]{2}){1,64}))-([0-9]{8}|[1-9][0-9]{8,18})\.snapshot"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One snapshot: the commit that made it, the group's epoch (-1: none) and its digest."""

    commit: int
    epoch: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Index:
    """The state of a store after commit number ``commit``; snapshots are newest first."""

    commit: int = 0
    owners: dict[bytes, tuple[Entry, ...]] = field(default_factory=dict)
    removed: dict[bytes, int] = field(default_factory=dict)
    log: LogMark | None = None

    def after(
        self,
        written: dict[bytes, Entry],
        removed: Iterable[bytes],
        readmitted: Iterable[bytes],
        *,
        keep: int,
        log: LogMark | None,
    ) -> Index:
        """Return the next index: new snapshots on top, at most ``keep`` of each owner."""
        owners = dict(self.owners)
        tombstones = dict(self.removed)
        for group_id in readmitted:
            tombstones.pop(group_id, None)
        for owner, entry in written.items():
            owners[owner] = (entry, *owners.get(owner, ()))[:keep]
        for group_id in removed:
            gone = owners.pop(group_id, ())
            tombstones[group_id] = max(gone[0].epoch if gone else -1, tombstones.get(group_id, -1))
        return Index(self.commit + 1, owners, tombstones, log)

    def file_names(self) -> set[str]:
        """Return the names of all snapshots that count."""
        return {
            snapshot_name(owner, entry.commit)
            for owner, entries in self.owners.items()
            for entry in entries
        }

    def encode(self) -> bytes:
        """Return the index as bytes, to be sealed."""
        return cbor.encode(
            {
                "version": _VERSION,
                "commit": self.commit,
                "owners": {
                    owner.hex(): [[entry.commit, entry.epoch, entry.sha256] for entry in entries]
                    for owner, entries in self.owners.items()
                },
                "removed": {group_id.hex(): epoch for group_id, epoch in self.removed.items()},
                "log": [self.log.sequence, self.log.head] if self.log else None,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Index:
        """Return the index in opened bytes. Raises `DamagedData`, `NewerVersion`."""
        content: Any = cbor.decode(data)
        try:
            if content["version"] > _VERSION:
                raise NewerVersion(f"snapshot index version {content['version']}")
            log = content.get("log")  # not there in the first stores
            return cls(
                int(content["commit"]),
                {
                    bytes.fromhex(owner): tuple(Entry(*entry) for entry in entries)
                    for owner, entries in content["owners"].items()
                },
                {bytes.fromhex(g): int(epoch) for g, epoch in content["removed"].items()},
                LogMark(*log) if log is not None else None,
            )
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise DamagedData(f"the snapshot index cannot be read ({error!r})") from error


def snapshot_name(owner: bytes, commit: int) -> str:
    """Return a snapshot's file name; the empty owner is the client itself."""
    return f"{f'group-{owner.hex()}' if owner else 'client'}-{commit:08}.snapshot"


def parse_snapshot_name(name: str) -> tuple[bytes, int] | None:
    """Return owner and commit of a snapshot's file name, or None for any other name."""
    match = _NAME.fullmatch(name)
    return None if match is None else (bytes.fromhex(match[1] or ""), int(match[2]))
