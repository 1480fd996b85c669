"""Backup: copy, change, restore; damaged backups; crashes inside a restore.

Belongs here: a store beside its backups. A restore makes the store exactly what it was, in one step
where the store promises crash recovery; a damaged backup is refused and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from pytest_statepersist.adapter import OpenStore
from pytest_statepersist.machines.atomicity import CrashingMachine
from pytest_statepersist.machines.base import Content, as_text, content_of
from pytest_statepersist.machines.expected import Changes
from pytest_statepersist.machines.files import copy_tree, files_of, remove_tree, write_changes
from pytest_statepersist.machines.history import Drawing, initialize, rule
from pytest_statepersist.machines.lives import Life, Past
from pytest_statepersist.strategies import Crash, documents, keys
from pytest_statepersist.tamper import Damage

__all__ = ["BackupMachine"]

_KINDS = (Damage.FLIP, Damage.TRUNCATE, Damage.EMPTY, Damage.MISSING, Damage.SWAP_NAMES,
          Damage.SPLICE)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Backup:
    """One backup: where it is, what it holds, and the rule of the life that made it."""

    place: Path
    content: Content
    life: Life
    mark: int


class BackupMachine(CrashingMachine):
    """Saves, backs up and restores, with crashes in between."""

    needs = ("backup",)
    uses = ("delete", "crash_recovery", "durable", "tamper_evident")
    weight = 0.75

    def __init__(self) -> None:
        super().__init__()
        # The backups crash with the store: they have to be durable too.
        self.scratch = self.make_scratch()
        self.backups: list[_Backup] = []
        self._before: list[_Backup] = []
        self._ended: Life | None = None
        self.made = 0

    @initialize()
    def open(self) -> None:
        """Open a new store."""
        self.begin_life(self.nothing)
        assert self.life is not None
        with self.life.rule("open", lambda: self.nothing, lambda: self.nothing):
            self.opened = self.open_store()

    @rule(data=st.data(), key=keys(), value=documents(max_leaves=3, large=False))
    def save(self, data: Drawing, key: str, value: dict[str, Any]) -> None:
        """Save a value."""
        self.do(f"save({key!r})", {key: as_text(value)}, lambda: self.now.save(key, value))
        self.then(data)

    @precondition(lambda self: self.live and self.can("delete"))
    @rule(data=st.data())
    def delete(self, data: Drawing) -> None:
        """Delete a key."""
        key = data.pick(sorted(self.live), label="key")
        self.do(f"delete({key!r})", {key: None}, lambda: self.now.delete(key))
        self.then(data)

    @rule(data=st.data())
    def back_up(self, data: Drawing) -> None:
        """Make a backup beside the store; the store does not change."""
        assert self.life is not None
        self.made += 1
        place = self.watched / f"backup-{self.made}"
        self.do("backup", {}, lambda: self.adapter.backup(self.now.handle, place))
        assert place.exists(), "backup() returned and there is nothing"
        self.backups.append(_Backup(place, dict(self.live), self.life, self.life.rules - 1))
        self.then(data)

    @precondition(lambda self: self.backups)
    @rule(data=st.data())
    def restore(self, data: Drawing) -> None:
        """Restore a backup: exactly what was there then."""
        number = data.pick(range(len(self.backups)), label="backup")
        place, content = self.backups[number].place, self.backups[number].content
        self.do(
            f"restore(backup {number})",
            self._to(content),
            lambda: self.adapter.restore(self.now.handle, place),
        )
        self.then(data)

    @precondition(lambda self: self.backups)
    @rule(data=st.data())
    def restore_elsewhere(self, data: Drawing) -> None:
        """A backup restores into a new store as well."""
        number = data.pick(range(len(self.backups)), label="backup")
        place, content = self.backups[number].place, self.backups[number].content
        with self._elsewhere() as store:
            self.adapter.restore(store.handle, place)
            found = content_of(store, tuple(content))
            assert found == content, f"restored elsewhere: {found}, backed up was {content}"

    @precondition(lambda self: self.backups and self.can("tamper_evident"))
    @rule(data=st.data())
    def restore_a_damaged_backup(self, data: Drawing) -> None:
        """A damaged backup is refused, or it gives what was backed up all the same."""
        number = data.pick(range(len(self.backups)), label="backup")
        place, content = self.backups[number].place, self.backups[number].content
        damaged = self.scratch / "damaged"
        copy_tree(place, damaged)
        root = damaged if damaged.is_dir() else self.scratch
        files = files_of(root)
        done = data.damage(files, (), _KINDS).on(files)
        write_changes(root, done.files)
        with self._elsewhere() as store:
            store.save("here", {"was": "before"})
            before = content_of(store, ("here",))
            try:
                self.adapter.restore(store.handle, damaged)
            except (*self.adapter.damage, *self.adapter.missing):
                allowed, what = before, "was refused and changed the store"
            else:
                allowed, what = content, "was restored without an error"
            try:
                found = content_of(store, ("here", *content))
            except Exception as error:
                raise AssertionError(
                    f"a damaged backup ({done.label}) {what}: loading raised {error!r}"
                ) from error
            assert found == allowed, f"a damaged backup ({done.label}) {what}: {found}"

    def crash(self, data: Drawing, model: str, *, late: bool = False) -> None:
        """Crash the store and its backups, which all belong to the life that ends."""
        self._before, self._ended = list(self.backups), self.life
        super().crash(data, model, late=late)

    def recover_from(self, past: Past, crash: Crash) -> None:
        """After a crash an acknowledged backup is there as a whole."""
        super().recover_from(past, crash)
        found = []
        for each in self._before:
            done = each.life is not self._ended or past.marks[each.mark].end <= crash.point
            if not each.place.exists():
                assert not (done and self.can("durable")), (
                    f"the backup {each.place.name} was acknowledged and is gone after a crash"
                )
            else:
                # One that is there must be whole, acknowledged or not.
                found.append(each)
        self.backups = found
        for each in found:
            with self._elsewhere() as store:
                self.adapter.restore(store.handle, each.place)
                content = content_of(store, tuple(each.content))
                assert content == each.content, (
                    f"after a crash {each.place.name} holds {content}, not {each.content}"
                )

    @contextmanager
    def _elsewhere(self) -> Iterator[OpenStore]:
        """Give a new store beside the one under test; what was made for it goes afterwards."""
        directory = self.scratch / "elsewhere"
        if directory.exists():  # a crash came in between
            remove_tree(directory)
        directory.mkdir(mode=0o700)
        try:
            with self.adapter.opened(directory) as store:
                yield store
        finally:
            for path in list(self.scratch.iterdir()):
                remove_tree(path)

    def open_store(self) -> OpenStore:
        """Open the store."""
        return OpenStore(self.adapter, self.adapter.open(self.directory))

    def _to(self, content: Content) -> Changes:
        gone: dict[str, str | None] = dict.fromkeys(self.live)
        return {**gone, **content}
