"""Small stores for the tests of the machines: a sound one, and one bug each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypothesis import Phase, settings

from pytest_statepersist.adapter import Capabilities, StoreAdapter

FEW = settings(max_examples=10, stateful_step_count=10, deadline=None, database=None)
MANY = settings(
    derandomize=True,
    max_examples=300,
    stateful_step_count=20,
    deadline=None,
    database=None,
    phases=[Phase.generate],
)


class Files(StoreAdapter):
    """One file for each key, replaced as it should be."""

    capabilities = Capabilities(durable=True, crash_recovery=True)
    sync_file = True
    sync_directory = True

    def open(self, directory: Path) -> Path:
        for name in os.listdir(directory):
            if name.endswith(".tmp"):
                os.unlink(directory / name)
        # What a killed writer renamed without syncing must not go away once it was shown.
        self._sync(directory)
        return directory

    def save(self, store: Path, key: str, value: dict[str, Any]) -> None:
        temporary = store / f"{key}.tmp"
        with open(temporary, "w") as file:
            file.write(json.dumps(value))
            file.flush()
            if self.sync_file:
                os.fsync(file.fileno())
        os.rename(temporary, store / f"{key}.json")
        if self.sync_directory:
            self._sync(store)

    def load(self, store: Path, key: str) -> dict[str, Any]:
        return dict(json.loads((store / f"{key}.json").read_text()))

    def delete(self, store: Path, key: str) -> None:
        os.unlink(store / f"{key}.json")
        if self.sync_directory:
            self._sync(store)

    def keys(self, store: Path) -> Iterable[str]:
        return [path.stem for path in store.glob("*.json")]

    @staticmethod
    def _sync(directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def steps_of(error: BaseException) -> list[str]:
    """Return the fewest steps that a failure tells of."""
    lines = "\n".join(getattr(error, "__notes__", ())).splitlines()
    if "The same failure in fewer steps:" in lines:
        rest = lines[lines.index("The same failure in fewer steps:") + 1 :]
        end = next((n for n, line in enumerate(rest) if not line.startswith("  ")), len(rest))
        return [line.strip() for line in rest[:end]]
    steps = [line.removeprefix("state.") for line in lines if line.startswith("state.")]
    return steps[:-1]  # the last one is teardown
