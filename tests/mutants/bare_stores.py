"""Stores with one line of defence, for mutants that a whole store would catch by another one.

Belongs here: adapters around single parts of the reference implementation. The vault, for example,
checks the key inside an entry as well as the place that its ciphertext is bound to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytest_statepersist.adapter import Capabilities, Value
from pytest_statepersist.machines.reference_stores import ReferenceAdapter
from pytest_statepersist.reference.atomic import read_bounded, remove_durably, write_atomic
from pytest_statepersist.reference.cipher import Cipher
from pytest_statepersist.reference.ids import check_id

__all__ = ["SealedFilesAdapter"]


class SealedFilesAdapter(ReferenceAdapter):
    """One file for each key, sealed for its name by `Cipher` and nothing else."""

    capabilities = Capabilities(durable=True, encryption=True, tamper_evident=True)

    def open(self, directory: Path) -> Any:
        return self.open_with_key(directory, "usual")

    def open_with_key(self, directory: Path, key: str) -> Any:
        return directory, Cipher(hashlib.sha256(key.encode()).digest())

    def save(self, store: Any, key: str, value: Value) -> None:
        check_id(key)
        write_atomic(store[0] / key, store[1].encrypt(json.dumps(value).encode(), key))

    def load(self, store: Any, key: str) -> Value:
        value: Value = json.loads(store[1].decrypt(read_bounded(store[0] / key, 1 << 30), key))
        return value

    def delete(self, store: Any, key: str) -> None:
        remove_durably(store[0] / key)

    def keys(self, store: Any) -> Iterable[str]:
        return [path.name for path in store[0].iterdir() if not path.name.startswith(".")]

