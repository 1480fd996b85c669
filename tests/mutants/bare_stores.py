"""Stores with one line of defence, for mutants that a whole store would catch by another one.

Belongs here: adapters around single parts of the reference implementation. The vault, for example,
checks the key inside an entry as well as the place that its ciphertext is bound to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pytest_statepersist.adapter import Capabilities, Value
from pytest_statepersist.machines.reference_stores import ReferenceAdapter
from pytest_statepersist.reference.atomic import read_bounded, remove_durably, write_atomic
from pytest_statepersist.reference.cipher import Cipher
from pytest_statepersist.reference.clock import ManualClock, ManualScheduler
from pytest_statepersist.reference.database import Database
from pytest_statepersist.reference.database_rows import AppMessage
from pytest_statepersist.reference.errors import NotFound
from pytest_statepersist.reference.ids import check_id
from pytest_statepersist.reference.local_storage import LocalStorage
from pytest_statepersist.reference.recovery import AutoSave, LiveState
from pytest_statepersist.reference.storage_keys import CRASH_RECORD

__all__ = ["AutoSavedAdapter", "SealedFilesAdapter"]


class SealedFilesAdapter(ReferenceAdapter):
    """One file for each key, sealed for its name by `Cipher` and nothing else."""

    capabilities = Capabilities(durable=True, encryption=True, tamper_evident=True)

    def open(self, directory: Path) -> Any:
        return self.open_with_key(directory, "usual")

    def open_with_key(self, directory: Path, key: str) -> Any:
        return directory, Cipher(hashlib.sha256(key.encode()).digest())

    def save(self, store: Any, key: str, value: Value) -> None:
        check_id(key)
        write_atomic(store[0] / key, store[1].encrypt(json.dumps(value).encode(), _context(key)))

    def load(self, store: Any, key: str) -> Value:
        value: Value = json.loads(
            store[1].decrypt(read_bounded(store[0] / key, 1 << 30), _context(key))
        )
        return value

    def delete(self, store: Any, key: str) -> None:
        remove_durably(store[0] / key)

    def keys(self, store: Any) -> Iterable[str]:
        return [path.name for path in store[0].iterdir() if not path.name.startswith(".")]


class AutoSavedAdapter(ReferenceAdapter):
    """The crash record of an app: changes wait for a quiet moment, and are saved at close."""

    capabilities = Capabilities(durable_on_close=True, crash_recovery=True, permissions=True)

    def open(self, directory: Path) -> Any:
        storage = LocalStorage(directory / "app.json")
        record = storage.get(CRASH_RECORD)
        messages = record["state"]["messages"] if record is not None else []
        values = {message["id"]: message["content"] for message in messages}
        live = lambda: LiveState(messages=tuple(map(_message, values.items())))  # noqa: E731
        # Nothing here stops cleanly, which alone would need a database: this one is not open.
        never = Database.__new__(Database)
        auto = AutoSave(storage, never, live, scheduler=ManualScheduler(_CLOCK), clock=_CLOCK)
        auto.start()
        return auto, values

    def save(self, store: Any, key: str, value: Value) -> None:
        store[1][check_id(key)] = json.dumps(value)
        store[0].changed()

    def load(self, store: Any, key: str) -> Value:
        if key not in store[1]:
            raise NotFound(key)
        value: Value = json.loads(store[1][key])
        return value

    def delete(self, store: Any, key: str) -> None:
        if store[1].pop(key, None) is None:
            raise NotFound(key)
        store[0].changed()

    def keys(self, store: Any) -> Iterable[str]:
        return list(store[1])

    def close(self, store: Any) -> None:
        store[0].close()

    def abandon(self, store: Any) -> None:
        """A dead process saves nothing."""


_NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
_CLOCK = ManualClock(_NOON)


def _context(key: str) -> str:
    return f"files/{key}"


def _message(item: tuple[str, str]) -> AppMessage:
    return AppMessage(id=item[0], session_id="s", role="user", content=item[1], created_at=_NOON,
                      sequence=0)  # fmt: skip
