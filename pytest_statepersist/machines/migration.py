"""Migration: old formats open, an interrupted upgrade loses nothing, older code does no harm.

Belongs here: stores that an older version wrote. Whatever the version, whenever it is interrupted,
each value loads as `expected_of_old` says; what newer code wrote is refused and stays untouched.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from pytest_statepersist.adapter import OpenStore
from pytest_statepersist.machines.atomicity import CrashingMachine
from pytest_statepersist.machines.base import as_text
from pytest_statepersist.machines.files import files_of, remove_tree
from pytest_statepersist.machines.history import Drawing, initialize, rule
from pytest_statepersist.strategies import documents, keys

__all__ = ["MigrationMachine"]


class MigrationMachine(CrashingMachine):
    """Begins with a store of an old version, opens, saves and migrates it between crashes."""

    needs = ("migration",)
    uses = ("refuses_newer", "crash_recovery", "durable", "delete")
    weight = 0.75

    def __init__(self) -> None:
        super().__init__()
        self.version = 0
        self.untouched: dict[str, tuple[str, str]] = {}
        """What the older version wrote and nothing replaced: as it was, and as it loads now."""
        self.scratch = self.make_scratch()

    @initialize(
        data=st.data(),
        values=st.dictionaries(keys(), documents(max_leaves=3, large=False), max_size=3),
    )
    def open(self, data: Drawing, values: dict[str, dict[str, Any]]) -> None:
        """Open what an older version wrote; a crash may come during that already."""
        self.version = data.pick(self.adapter.old_versions, label="version")
        self.adapter.write_old(self.directory, self.version, values)
        expected = self.adapter.expected_of_old
        self.live = {key: as_text(expected(self.version, v)) for key, v in values.items()}
        self.touched.update(self.live)
        self.untouched = {key: (as_text(v), self.live[key]) for key, v in values.items()}
        before = self.nothing.settled(dict(self.live))
        self.begin_life(before)
        assert self.life is not None
        with self.life.rule(f"open version {self.version}", lambda: before, lambda: before):
            outcome = self.open_and_read()
        if not outcome.ok:
            raise AssertionError(
                f"what version {self.version} wrote cannot be loaded: {outcome}"
            ) from outcome.error
        assert outcome.value == self.live, (
            f"what version {self.version} wrote loads as {outcome.value}, not {self.live}"
        )

    @rule(data=st.data())
    def migrate(self, data: Drawing) -> None:
        """Bring everything to the present version; nothing that can be loaded changes."""
        self.do("migrate", {}, lambda: self.adapter.migrate(self.now.handle))
        self.then(data)

    @rule(data=st.data(), key=keys(), value=documents(max_leaves=3, large=False))
    def save(self, data: Drawing, key: str, value: dict[str, Any]) -> None:
        """Save beside or over old values."""
        self.untouched.pop(key, None)
        self.do(f"save({key!r})", {key: as_text(value)}, lambda: self.now.save(key, value))
        self.then(data)

    @precondition(lambda self: self.adapter.overrides("open_old"))
    @rule()
    def open_with_older_code(self) -> None:
        """Older code loads right values or refuses; it changes nothing that this code loads."""
        assert self.life is not None
        before = self.life.expected
        with self.life.rule("close", lambda: before, lambda: before):
            self.now.close()
        with self.life.rule("older code", lambda: before, lambda: before):
            self._read_with_older_code()
        with self.life.rule("open and load", lambda: before, lambda: before):
            outcome = self.open_and_read()
        if not outcome.ok:
            raise AssertionError(f"after older code: {outcome}") from outcome.error
        assert outcome.value == self.live, (
            f"after older code it holds {outcome.value}, not {self.live}"
        )

    @precondition(lambda self: self.can("refuses_newer"))
    @rule()
    def open_what_newer_code_wrote(self) -> None:
        """What newer code wrote is refused, and not one byte of it changes."""
        directory = self.scratch / "newer"
        if directory.exists():
            remove_tree(directory)
        directory.mkdir(mode=0o700)
        self.adapter.write_newer(directory)
        before = files_of(directory)
        refused = False
        try:
            store = OpenStore(self.adapter, self.adapter.open(directory))
        except self.adapter.newer:
            refused = True
        else:
            try:
                for key in store.keys() or ("",):
                    store.load(key)
            except self.adapter.newer:
                refused = True
            finally:
                store.close()
        assert refused, "what newer code wrote was opened as if it were understood"
        after = files_of(directory)
        changed = [name for name, data in before.items() if after.get(name) != data]
        assert not changed, f"what newer code wrote was refused, and changed: {changed}"

    def _read_with_older_code(self) -> None:
        refusals = (*self.adapter.newer, *self.adapter.missing)
        try:
            store = OpenStore(self.adapter, self.adapter.open_old(self.directory, self.version))
        except refusals:
            return
        try:
            for key in sorted(self.live):
                try:
                    found = store.load(key)
                except refusals:
                    continue
                # What this code saved it may show in its own way.
                allowed = self.untouched.get(key)
                assert allowed is None or as_text(found) in allowed, (
                    f"older code loads {found!r} under {key!r}, which it saved as {allowed}"
                )
        finally:
            store.close()
