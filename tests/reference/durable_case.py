"""What a durable operation is to the tests of crashes and faults."""

from __future__ import annotations

import inspect
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from pytest_statepersist.reference import atomic

SOAK = os.environ.get("STATEPERSIST_PROFILE") == "soak"
soak = pytest.mark.skipif(
    not SOAK, reason="runs in the soak profile: STATEPERSIST_PROFILE=soak"
)
"""What takes minutes, and has a cheaper form that is in every run."""

MODELS = ("posix", "ext4", "xfs", "btrfs", "kill")
SLOW = ("Conversations", "Messenger", "Session", "delete_all_data", "group_backup")
"""Owners of operations that take longer than the others: recovery opens several stores."""

SLOW_IN_SQLITE = ("AutoSave", "Retention", "StateRecovery")

RECOVERIES = (
    "DirectoryRegistry.remove", "DirectoryTransport.publish", "EventLog.append", "FileStore.save",
    "InviteBook.save", "LocalStorage.set", "Messenger.create_channel", "Session.save-json",
    "SnapshotStore.write", "Transaction.commit", "Vault.store", "backup_to_remote",
)  # fmt: skip
"""One operation for each kind of recovery; all others of a store share its recovery."""

RECOVERIES_OF_SQLITE = ("AutoSave.stop", "Database.add_message", "Session.save-sqlite", "migrate-3")
"""One operation for each kind of SQLite file."""

Invariant = Callable[[Any, Sequence[object]], bool]


@dataclass(frozen=True)
class Case:
    """A durable operation: what was there, what it does, what the next start then finds.

    ``name`` is ``Owner.method`` or a function's name, and a variant after a hyphen. What is found
    must be the state before or the state after, unless an ``invariant`` says more precisely what
    may be. With ``item_by_item`` an item that cannot be saved does not stop the others. ``sqlite``
    marks what writes through SQLite, whose file takes many more states (see `crash_settings`).
    ``encrypted``: nothing that it saves may be on the disk in the clear, in any crash state.
    ``peek`` finds what ``recover`` does, and leaves it there for the next one who looks.
    """

    name: str
    setup: Callable[[Path], object]
    workload: Callable[..., object]
    recover: Callable[[Path], object]
    item_by_item: bool = False
    invariant: Invariant | None = None
    sqlite: bool = False
    encrypted: bool = False
    peek: Callable[[Path], object] | None = None

    @property
    def operation(self) -> str:
        """The operation without its variant."""
        return self.name.partition("-")[0]

    @property
    def owner(self) -> str:
        """The class (or module, or function) that the operation belongs to."""
        return self.operation.partition(".")[0]

    @property
    def models(self) -> tuple[str, ...]:
        """The models of this run: all in the soak profile, else one of them, by the name.

        Those that are slow in SQLite are only killed in every run: the operations of `Database`
        show what a power failure does to such a file.
        """
        if not SOAK and self.sqlite and self.owner in (*SLOW, *SLOW_IN_SQLITE):
            return ("kill",)
        return MODELS if SOAK else (MODELS[zlib.crc32(self.name.encode()) % len(MODELS)],)

    @property
    def crash_settings(self) -> dict[str, Any]:
        """How far a crash is explored: `Settings` of the simulator.

        Every run tears each write and tries each crash point, and outside SQLite and the slow ones
        each state with one deviation from the order of the operations, and crashes during recovery
        for `RECOVERIES`. The soak profile has the deviations and the models for all. Crashes during
        recovery it has for all outside SQLite, whose recovery writes in each of hundreds of
        states, and there for `RECOVERIES_OF_SQLITE`.
        """
        return {
            "model": self.models,
            "deviations": int(SOAK or not (self.sqlite or self.owner in SLOW)),
            "recovery_crashes": int(not self.sqlite and (SOAK or self.name in RECOVERIES)),
            "samples": 3 if SOAK else 0,
        }


class _Killed(BaseException):
    pass


@contextmanager
def killed_before_the_last_sync() -> Iterator[None]:
    """Run a save of one file up to where its name is there; the locks go with the process."""

    def stop(path: object) -> None:
        raise _Killed

    with patch.object(atomic, "fsync_directory", stop), suppress(_Killed):
        yield


def wants_two(workload: Callable[..., object]) -> bool:
    """Tell whether a workload takes a function to acknowledge with."""
    parameters = inspect.signature(workload).parameters.values()
    return sum(each.default is each.empty for each in parameters) == 2
